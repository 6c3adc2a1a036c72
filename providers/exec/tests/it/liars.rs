//! The conformance suite finds executables that break the contract: the Python example, each time with one thing wrong.

use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use pool_provider::HumanDuration;
use pool_provider::conformance::{Finding, Outcome, Suite};
use serde_json::json;

use super::examples::Example;
use super::ground::{Ground, repository};

/// Two tries of a rule side by side are two deployments.
static TRIES: AtomicU8 = AtomicU8::new(20);

/// Ends what a liar left behind.
struct Cleaner(String);

impl Drop for Cleaner {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if String::from_utf8_lossy(&environ).contains(&self.0) {
                let pid = entry.file_name();
                let _gone = Command::new("kill").arg("-9").arg(pid).status();
            }
        }
    }
}

/// Runs one rule on the Python example with `right` replaced by `wrong`, and says how it is broken.
async fn broken(rule: &str, right: &str, wrong: &str) -> String {
    broken_by(rule, &[(right, wrong)]).await
}

/// The same with several things wrong.
async fn broken_by(rule: &str, lies: &[(&str, &str)]) -> String {
    let findings = tried(rule, lies).await;
    let [finding] = findings.as_slice() else { panic!("{rule}: {findings:?}") };
    let Outcome::Broken(how) = &finding.outcome else { panic!("not found out: {finding}") };
    assert!(!finding.advice.is_empty());
    how.clone()
}

/// Tries the rules that have these words in them, on the Python example with several things wrong.
async fn tried(rule: &str, lies: &[(&str, &str)]) -> Vec<Finding> {
    let ground = Ground::new();
    let text =
        std::fs::read_to_string(repository().join("examples/providers/processes.py")).unwrap();
    let mut lying = text;
    for (right, wrong) in lies {
        assert!(lying.contains(right), "the example has no {right:?}");
        lying = lying.replacen(right, wrong, 1);
    }
    let path = ground.write("liar.py", &lying);
    let mark = format!("LIAR={}", ground.folder.path().display());
    let _cleaner = Cleaner(mark.clone());
    let mut config = Ground::config(&["python3", path.to_str().unwrap()]);
    config.grace = HumanDuration::from_secs(0);
    config.config.insert("folder".to_owned(), json!(ground.path("workers")));
    config.config.insert("page_size".to_owned(), json!(2));
    let (name, value) = mark.split_once('=').unwrap();
    config.environment.insert(name.to_owned(), value.to_owned());
    let subject =
        Example(ground.open(config).await.unwrap(), vec![(name.to_owned(), value.to_owned())]);
    let is_it = |sentence: &str| sentence.contains(rule);
    let seed = [TRIES.fetch_add(1, Ordering::Relaxed); 15];
    Suite::new(&subject, seed).run(&is_it, &mut |_| {}).await
}

#[tokio::test]
async fn where_nothing_can_be_created_nothing_else_is_tried() {
    let right = "def create(config, params, secrets):\n";
    let refuses = format!("{right}    raise Refused('quota', 'no rack is left')\n");
    let findings = tried("", &[(right, &refuses)]).await;
    let (first, rest) = findings.split_first().unwrap();
    let Outcome::Broken(how) = &first.outcome else { panic!("{first}") };
    assert!(how.contains("quota exceeded: no rack is left"), "{how}");
    assert_eq!(rest.len(), 18);
    for finding in rest {
        assert_eq!(finding.outcome, Outcome::NotTried("the first rule is broken"), "{finding}");
    }
}

#[tokio::test]
async fn a_worker_that_ends_with_its_call_is_found_out() {
    let right = "os.setsid()";
    let how = broken("is created, listed", right, "pass").await;
    assert!(how.contains("gone 3s later") || how.contains("expected 1 workers"), "{how}");
}

#[tokio::test]
async fn a_delete_that_does_not_find_anything_may_say_so() {
    let right = "    return None\n\n\ndef probe";
    let wrong = "    if not home.workers():\n        raise Refused('not_found', 'nothing is left')\n    return None\n\n\ndef probe";
    for rule in ["scoped to its owner", "deleting twice", "names another id"] {
        let findings = tried(rule, &[(right, wrong)]).await;
        assert_eq!(findings[0].outcome, Outcome::Kept, "{}", findings[0]);
    }
}

#[tokio::test]
async fn what_cannot_be_deleted_is_told() {
    let right = "def delete(config, params, secrets):\n";
    let findings =
        tried("is created, listed", &[(right, &format!("{right}    return None\n"))]).await;
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert!(matches!(finding.outcome, Outcome::Broken(_)), "{finding}");
    let [left] = finding.left.as_slice() else { panic!("{finding:?}") };
    assert!(left.why.contains("expected 0 workers in the listing"), "{}", left.why);
}

#[tokio::test]
async fn a_second_worker_of_one_attempt_is_found_out() {
    let right = "{params['attempt']}\"\n    found";
    let how =
        broken("a repeated create", right, "{params['attempt']}.{os.getpid()}\"\n    found").await;
    assert!(how.contains("the second create of one attempt answered"), "{how}");
}

#[tokio::test]
async fn workers_of_others_are_found_out() {
    // Others in this very folder, that is: no other test's.
    let right = "tags.get(\"WORKER_OWNER\") == self.owner";
    let how =
        broken("scoped to its owner", right, "f\"LIAR={os.environ['LIAR']}\" in environ").await;
    assert!(how.contains("another deployment sees"), "{how}");
}

#[tokio::test]
async fn late_effects_are_found_out() {
    let right = "def create(config, params, secrets):\n";
    let wrong = "def create(config, params, secrets):\n    if os.fork():\n        os.wait()\n    else:\n        \
                 os.setsid()\n        sys.stdout = open(os.devnull, 'w')\n        time.sleep(2)\n        create_at_last(config, params, secrets)\n        \
                 os._exit(0)\n    return get(config, params, secrets)\n\n\ndef create_at_last(config, params, \
                 secrets):\n";
    let how = broken_by(
        "what a cut off create brings",
        &[(right, wrong), ("\"settle_ms\": 1000", "\"settle_ms\": 0")],
    )
    .await;
    assert!(how.contains("came and"), "{how}");
}

#[tokio::test]
async fn a_delete_that_takes_later_attempts_is_found_out() {
    let how =
        broken("tried again under its name", "int(attempt) <= params[\"attempt\"]", "True").await;
    assert!(how.contains("expected 1 workers in the listing, found none"), "{how}");
}

#[tokio::test]
async fn a_delete_that_does_not_look_at_the_id_is_found_out() {
    let right = "is_named and params.get(\"provider_id\") in (None, worker_id)";
    let how = broken("names another id", right, "is_named").await;
    assert!(how.contains("found none"), "{how}");
}

#[tokio::test]
async fn errors_with_the_wrong_name_are_found_out() {
    let how = broken("what does not exist", "Refused(\"not_found\"", "Refused(\"transient\"").await;
    assert!(how.contains("get answered `transient`"), "{how}");
    let right = "Refused(\"invalid_spec\", f\"there is";
    let how = broken("cannot succeed", right, "Refused(\"transient\", f\"there is").await;
    assert!(how.contains("create answered `transient`"), "{how}");
}

#[tokio::test]
async fn a_page_that_is_forgotten_is_found_out() {
    let right = "page[-1][\"provider_id\"] if len(rest) > len(page) else None";
    let how = broken("whole over all its pages", right, "None").await;
    assert!(how.contains("expected 5 workers"), "{how}");
}

#[tokio::test]
async fn tags_that_do_not_change_are_found_out() {
    let right = "\"tags\": params[\"tags\"]}";
    let how = broken("change in place", right, "\"tags\": []}").await;
    assert!(how.contains("listed with labels"), "{how}");
}

#[tokio::test]
async fn a_deleted_worker_that_is_never_gone_is_found_out() {
    let how = broken("becomes healthy", "\"health\": \"gone\"", "\"health\": \"unhealthy\"").await;
    assert!(how.contains("was never gone"), "{how}");
}

#[tokio::test]
async fn a_reset_that_loses_its_worker_is_found_out() {
    let right = "home.write(worker_id, note | {\"resetting\": note.get(\"resetting\", worker)})";
    let wrong = "time.sleep(0.3)\n    home.stop(lambda tags: tags[\"WORKER_ID\"] == worker_id)\n    time.sleep(0.3)";
    let how = broken("repeated when its caller is gone", right, wrong).await;
    assert!(how.contains("abandoned after") || how.contains("expected 1 workers"), "{how}");
}
