//! What machines and reviewers get: findings for GitHub, GitLab and code scanning, plans as Markdown, files beside the text.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use pool::config::rules::RULES;
use serde_json::Value;

use crate::editors::{installed, modules};
use crate::sandbox::Sandbox;

fn pool(id: &str, size: u32, image: &str) -> String {
    format!(
        "- {{pool_id: {id}, worker_type: vm, provider: sim, fixed_size: {size}, worker_config: {{image: {image}, \
         cpu_cores: 1, memory_mb: 1}}}}\n"
    )
}

fn file(pools: &[String]) -> String {
    format!("version: 1\npools:\n{}", pools.concat())
}

/// A file with an error in its third line, a second one, and a warning.
const BROKEN: &str = "version: 1\npools:\n- {pool_id: ci, worker_type: vm, provider: sim, fixd_size: 3, fixed_size: -1, worker_config: {image: a, \
                      cpu_cores: 1, memory_mb: 1}}\n";

#[test]
fn findings_are_annotations_of_github() {
    let sandbox = Sandbox::new();
    sandbox.write("a, b: c.yaml", BROKEN);
    let told = sandbox.pool(&["validate", "a, b: c.yaml", "--format", "github"]).exits(1);
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", told.stdout);
    let place = "file=a%2C b%3A c.yaml,line=3,endLine=3,col=49,endColumn=58,title=unknown-key";
    let message = "unknown key `fixd_size`%0Adid you mean `fixed_size`?";
    assert_eq!(lines[0], format!("::error {place}::{message}"));
    assert!(
        lines[1].contains("title=out-of-range::`fixed_size` must be at least 0"),
        "{}",
        lines[1]
    );
    sandbox.write("fine.yaml", &file(&[pool("ci", 1, "a")]));
    assert_eq!(sandbox.pool(&["validate", "fine.yaml", "--format", "github"]).exits(0).stdout, "");
    // What stands nowhere in a file is told all the same.
    let nowhere = sandbox.pool(&["validate", "none.yaml", "--format", "github"]).exits(1).stdout;
    assert!(nowhere.starts_with("::error title=unreadable::cannot read none.yaml"), "{nowhere}");
}

#[test]
fn findings_are_gitlabs_code_quality() {
    let sandbox = Sandbox::new();
    sandbox.write("pool.yaml", BROKEN);
    let read = |file: &str, code: i32| -> Vec<Value> {
        let ran = sandbox.pool(&["validate", file, "--format", "gitlab=found.json"]).exits(code);
        // People are told too, as always.
        assert_eq!(ran.stdout.contains("Valid"), code == 0, "{}", ran.stdout);
        serde_json::from_str(&sandbox.read("found.json")).unwrap()
    };
    let found = read("./pool.yaml", 1);
    assert_eq!(found.len(), 2);
    for issue in &found {
        assert_eq!(issue["location"]["path"], "pool.yaml", "relative, without ./");
        assert_eq!(issue["location"]["lines"]["begin"], 3);
        assert_eq!(issue["severity"], "major");
        assert!(issue["description"].is_string() && issue["check_name"].is_string(), "{issue}");
    }
    let prints = |found: &[Value]| -> BTreeSet<String> {
        found.iter().map(|issue| issue["fingerprint"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(prints(&found).len(), 2);
    // The same mistake in two documents is two findings.
    sandbox.write("pool.yaml", &format!("{BROKEN}---\n{BROKEN}"));
    let twice = read("pool.yaml", 1);
    assert_eq!((twice.len(), prints(&twice).len()), (5, 5), "and the pool is given twice");
    // A finding that only moves is the same one.
    sandbox.write("pool.yaml", &BROKEN.replacen("version: 1\n", "# a line more\nversion: 1\n", 1));
    assert_eq!(prints(&read("pool.yaml", 1)), prints(&found));
    sandbox.write("pool.yaml", &file(&[pool("ci", 1, "a")]));
    assert_eq!(read("pool.yaml", 0), [Value::Null; 0]);
}

#[test]
fn findings_are_sarif_as_its_own_validator_wants_it() {
    let sandbox = Sandbox::new();
    sandbox.write("a b.yaml", BROKEN);
    sandbox.pool(&["validate", "a b.yaml", "none.yaml", "--format", "sarif=found.sarif"]).exits(1);
    sandbox.pool(&["validate", "a b.yaml", "--format", "sarif=found.sarif"]).exits(1);
    let sarif: Value = serde_json::from_str(&sandbox.read("found.sarif")).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    let region = &results[0]["locations"][0]["physicalLocation"]["region"];
    assert_eq!((&region["startLine"], &region["startColumn"]), (&3.into(), &49.into()));
    let Some(modules) = modules() else { return };
    let tool = modules.join("@microsoft/sarif-multitool-linux/Sarif.Multitool");
    // Its package has it as a plain file.
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ran = Command::new(tool)
        .args(["validate", "found.sarif", "--output", "checked.sarif"])
        .env("DOTNET_SYSTEM_GLOBALIZATION_INVARIANT", "1")
        .current_dir(sandbox.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let checked = sandbox.read("checked.sarif");
    let checked: Value = serde_json::from_str(checked.trim_start_matches('\u{feff}')).unwrap();
    let found = checked["runs"][0]["results"].as_array().unwrap();
    let errors: Vec<&Value> = found.iter().filter(|one| one["level"] == "error").collect();
    assert!(errors.is_empty() && ran.status.success(), "{errors:?} {said}");
}

/// The rules that the code names, by the words that name them.
fn named_rules() -> BTreeSet<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let mut named = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        for begin in ["Diagnostic::error(", "Diagnostic::warning(", "fault(", "wrong("] {
            for after in text.split(begin).skip(1) {
                let Some(rest) = after.trim_start().strip_prefix('"') else { continue };
                let (word, _) = rest.split_once('"').unwrap();
                if !word.is_empty()
                    && word.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
                {
                    named.insert(word.to_owned());
                }
            }
        }
    }
    named
}

#[test]
fn every_rule_is_in_the_list() {
    let listed: BTreeSet<String> = RULES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(listed.len(), RULES.len(), "twice");
    let unlisted: Vec<_> = named_rules().difference(&listed).cloned().collect();
    assert!(unlisted.is_empty(), "{unlisted:?} is not in the list");
    let unknown: Vec<_> = listed.difference(&named_rules()).cloned().collect();
    assert!(unknown.is_empty(), "{unknown:?} is in no code");
}

#[test]
fn a_plan_is_a_comment_with_what_goes_away_first() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "p.yaml",
        &file(&[pool("a", 3, "one"), pool("b", 2, "one"), pool("gone", 1, "one")]),
    );
    sandbox.pool(&["apply", "p.yaml", "--auto-approve"]).exits(0);
    let told = sandbox.pool(&["plan", "p.yaml", "--format", "markdown"]).exits(0).stdout;
    let first = told.lines().next().unwrap();
    assert!(first.starts_with("<!-- pool plan e1-") && first.ends_with(" -->"), "{told}");
    assert!(told.lines().nth(1).unwrap().starts_with("### No changes. "), "{told}");
    sandbox.write("p.yaml", &file(&[pool("a", 4, "two"), pool("b", 1, "one")]));
    let ran = sandbox.pool(&[
        "plan",
        "p.yaml",
        "--format",
        "markdown=plan.md",
        "--format",
        "json=plan.json",
        "--out",
        "plan",
    ]);
    let ran = ran.exits(0);
    assert!(ran.stdout.contains("Plan: 4 to add"), "people are shown it too: {}", ran.stdout);
    let json: Value = serde_json::from_str(&sandbox.read("plan.json")).unwrap();
    let comment = sandbox.read("plan.md");
    let digest = json["pool"]["effect_digest"].as_str().unwrap();
    assert!(comment.contains(&format!("pool apply --expect-digest {digest}")), "{comment}");
    for row in ["| a | 4 | 0 | 3 |", "| b | 0 | 0 | 1 |", "| gone | 0 | 0 | 1 |"] {
        assert!(comment.contains(row), "{row}: {comment}");
    }
    let place = |words: &str| comment.find(words).unwrap_or_else(|| panic!("{words}: {comment}"));
    assert!(place("gone[0] will be destroyed") < place("a[0-2] must be replaced"));
    assert!(place("a[0-2] must be replaced") < place("a[3] will be created"));
    assert!(comment.contains("\n- worker gone-0-1\n"), "coloured as a diff: {comment}");
    assert_eq!(comment.matches("<details>").count(), comment.matches("</details>").count());
    // The same from the file of the plan.
    let shown = sandbox.pool(&["show", "plan", "--format", "markdown"]).exits(0).stdout;
    assert_eq!(shown, comment);
}

#[test]
fn a_comment_is_never_longer_than_github_takes_and_never_breaks_out_of_its_blocks() {
    let sandbox = Sandbox::new();
    let many: Vec<String> = (0..400).map(|n| pool(&format!("pool-{n:03}"), 3, "one")).collect();
    sandbox.write("p.yaml", &file(&many));
    let comment = sandbox.pool(&["plan", "p.yaml", "--format", "markdown"]).exits(0).stdout;
    assert!(comment.chars().count() < 65_536, "{}", comment.chars().count());
    assert!(comment.contains("parts are left out here"), "{}", &comment[..300]);
    assert!(comment.trim_end().ends_with('.') && comment.contains("--expect-digest e1-"));
    // A long list of what goes keeps neither itself nor others out.
    let lock = |size: u32| file(&[pool("large", size, "one"), pool("small", 1, "one")]);
    sandbox.write("p.yaml", &lock(3000));
    sandbox.pool(&["apply", "p.yaml", "--auto-approve", "-q", "--parallelism", "1000"]).exits(0);
    sandbox.write("p.yaml", &lock(0));
    let comment = sandbox.pool(&["plan", "p.yaml", "--format", "markdown"]).exits(0).stdout;
    assert!(comment.contains("large[0-2999] will be destroyed") && comment.contains("more lines"));
    assert!(comment.contains("- worker large-0-1") && comment.chars().count() < 65_536);
    let evil = "version: 1\npools:\n- {pool_id: evil, worker_type: vm, provider: sim, fixed_size: 1, worker_config: {cpu_cores: 1, \
                memory_mb: 1, image: \"a\\n```\\n</details><script>\"}}\n";
    sandbox.write("p.yaml", evil);
    let comment = sandbox.pool(&["plan", "p.yaml", "--format", "markdown"]).exits(0).stdout;
    let fences: Vec<&str> = comment.lines().filter(|line| line.starts_with("````")).collect();
    assert_eq!(fences, ["````diff", "````"], "{comment}");
}

#[test]
fn a_job_of_github_gets_annotations_a_summary_and_outputs() {
    let mut sandbox = Sandbox::new();
    sandbox.write("p.yaml", &file(&[pool("a", 2, "one")]));
    sandbox.pool(&["apply", "p.yaml", "--auto-approve"]).exits(0);
    sandbox.write("p.yaml", &file(&[pool("a", 1, "one"), pool("b", 1, "one")]));
    let path = |name: &str| sandbox.path().join(name).display().to_string();
    let (summary, output) = (path("summary.md"), path("output"));
    sandbox.write("output", "before=1\n");
    sandbox.set("GITHUB_STEP_SUMMARY", &summary);
    sandbox.set("GITHUB_OUTPUT", &output);
    let told = sandbox.pool(&["plan", "p.yaml", "--format", "github"]).exits(0).stdout;
    let expected = "::warning file=p.yaml,line=3,col=4,title=pool plan::a: 0 to add, 0 to change, 1 to destroy\n\
                    ::notice file=p.yaml,line=4,col=4,title=pool plan::b: 1 to add, 0 to change, 0 to destroy\n";
    assert_eq!(told, expected);
    assert!(sandbox.read("summary.md").contains("| a | 0 | 0 | 1 |"));
    let output = sandbox.read("output");
    let begin = "before=1\nadd=1\nchange=0\ndestroy=1\nchanges=true\ndigest=e1-";
    assert!(output.starts_with(begin), "{output}");
}

#[test]
fn formats_that_cannot_be_had_are_refused_with_what_can() {
    let sandbox = Sandbox::new();
    sandbox.write("p.yaml", &file(&[pool("a", 2, "one")]));
    for (arguments, words) in [
        (&["--format", "yaml"][..], "the formats are: text, json, markdown, github"),
        (&["--format", "json="], "there is no file after the `=`"),
        (&["--format", "json", "--format", "markdown"], "two formats cannot both be written to"),
        (&["--json", "--format", "markdown"], "write one of them to a file"),
        (&["--format", "json=none/plan.json"], "writing none/plan.json"),
    ] {
        let ran = sandbox.pool(&[&["plan", "p.yaml"], arguments].concat()).exits(1);
        assert!(ran.stderr.contains(words), "{arguments:?}: {}", ran.stderr);
    }
    let ran =
        sandbox.pool(&["plan", "p.yaml", "--format", "text=p.txt", "--format", "json"]).exits(0);
    assert_eq!(ran.json()["format_version"], "1.2");
    assert!(sandbox.read("p.txt").contains("Plan: 2 to add"));
}

/// What tfcmt and its kind look for in the text of a plan and of an apply (suzuki-shunsuke/tfcmt, `terraform` parser).
#[test]
fn commenters_for_terraform_find_what_they_look_for() {
    let sandbox = Sandbox::new();
    let matches = |text: &str, pattern: &str| {
        let script = "import re, sys; sys.exit(not re.search(sys.argv[1], sys.stdin.read(), re.M))";
        let mut ran = Command::new("python3")
            .args(["-c", script, pattern])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut ran.stdin.take().unwrap(), text.as_bytes()).unwrap();
        ran.wait().unwrap().success()
    };
    let labelled = |size, image: &str, label: &str| {
        file(&[pool("ci", size, image)
            .replace("memory_mb: 1}", &format!("memory_mb: 1, labels: {{a: {label}}}}}"))])
    };
    sandbox.write("p.yaml", &labelled(3, "one", "b"));
    let created = sandbox.pool(&["plan", "p.yaml"]).exits(0).stdout;
    let applied = sandbox.pool(&["apply", "p.yaml", "--auto-approve"]).exits(0).stdout;
    let same = sandbox.pool(&["plan", "p.yaml"]).exits(0).stdout;
    sandbox.write("p.yaml", &labelled(3, "one", "c"));
    let updated = sandbox.pool(&["plan", "p.yaml"]).exits(0).stdout;
    sandbox.write("p.yaml", &labelled(2, "two", "b"));
    let replaced = sandbox.pool(&["plan", "p.yaml"]).exits(0).stdout;
    for (text, pattern) in [
        (&created, r"^((Plan: \d|No changes.))"),
        (&created, r"^ *# (.*) will be created$"),
        (&created, r"^Plan: 3 to add, 0 to change, 0 to destroy\.$"),
        (&applied, r"^(Apply complete!)"),
        (&same, r"^(No changes.)"),
        (&updated, r"^ *# (.*) will be updated in-place$"),
        (&replaced, r"^ *# (.*)(?: is tainted, so)? must be replaced$"),
        (&replaced, r"^ *# (.*) will be destroyed$"),
        (&replaced, r"([1-9][0-9]* to destroy.)"),
    ] {
        assert!(matches(text, pattern), "{pattern}: {text}");
    }
    assert!(!matches(&same, "([1-9][0-9]* to destroy.)"));
}

/// A reader of Terraform's plans that nobody here wrote.
#[test]
fn terraform_compliance_reads_the_plan() {
    let how = "pip install -r tests/editors/requirements.txt in a virtual environment there";
    let Some(reader) = installed("target/checkers/bin/terraform-compliance", how) else { return };
    let sandbox = Sandbox::new();
    let feature = "Feature: workers\n  Scenario: images come from our registry\n    Given I have pool_worker defined\n    \
                   Then it must contain image\n    And its value must match the \"^registry\\.example\\.com/.*\" regex\n";
    sandbox.write("features/images.feature", feature);
    let read = |image: &str| {
        sandbox.write(
            "p.yaml",
            &file(&[pool("ci", 2, image), pool("other", 1, "registry.example.com/a:1")]),
        );
        sandbox.pool(&["plan", "p.yaml", "--format", "json=plan.json"]).exits(0);
        let ran = Command::new(&reader)
            .args(["-p", "plan.json", "-f", "features", "--no-ansi"])
            .current_dir(sandbox.path())
            .output()
            .unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stdout).into_owned())
    };
    let (code, said) = read("registry.example.com/ci:1");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 scenarios (1 passed)"), "{said}");
    let (code, said) = read("elsewhere.example.com/ci:1");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("pool_worker.ci[0]"), "{said}");
}
