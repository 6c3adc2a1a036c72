//! How calls end that do not end by themselves, where secrets are, and what is kept of a call.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use pool_provider::{CreateRequest, HumanDuration, SecretSource, WorkerProvider as _};
use serde_json::json;
use tokio::time::timeout;

use super::ground::{Ground, PATIENCE, created, owner, request, running, wait_until};

/// A script that never ends by itself, with a child that does not either; `how` is what it does about SIGTERM.
fn endless(ground: &Ground, how: &str) -> String {
    let mark = ground.folder.path().display().to_string();
    format!(
        "{how}\n(trap '' TERM; sh -c 'while :; do sleep 0.05; done' {mark}/child) >/dev/null 2>&1 &\n\
         touch {mark}/begun\nwhile :; do sleep 0.05; done # {mark}/itself"
    )
}

/// Waits until nothing is left: what is killed takes a moment to be gone.
async fn gone(mark: &str) {
    wait_until("nothing of the group runs", || running(mark).is_empty()).await;
}

#[tokio::test]
async fn a_call_that_ends_late_is_ended_at_its_deadline_and_its_group_with_it() {
    let ground = Ground::new();
    let mut config = ground.scripted(&endless(&ground, "trap '' TERM"));
    // Long enough to be begun, and to answer `describe`.
    config.timeout = HumanDuration::from_secs(2);
    let provider = ground.open(config).await.unwrap();
    let error = timeout(PATIENCE, provider.list(&owner(), None)).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("ended at its deadline, after 2s"), "{error}");
    assert!(ground.path("begun").exists());
    gone(ground.folder.path().to_str().unwrap()).await;
}

#[tokio::test]
async fn a_last_word_after_sigterm_counts() {
    let ground = Ground::new();
    let last =
        r#"{"type":"error","code":"out_of_capacity","message":"still waiting for a machine"}"#;
    let how = format!("trap \"echo '{}'; exit\" TERM", last.replace('"', "\\\""));
    let mut config = ground.scripted(&endless(&ground, &how));
    config.timeout = HumanDuration::from_secs(2);
    let provider = ground.open(config).await.unwrap();
    let error = timeout(PATIENCE, provider.list(&owner(), None)).await.unwrap().unwrap_err();
    assert_eq!(error.code(), "out_of_capacity", "{error}");
    // What it left behind in its group is gone all the same.
    gone(ground.folder.path().to_str().unwrap()).await;
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_ended() {
    let ground = Ground::new();
    let provider = ground.script(&endless(&ground, "trap '' TERM")).await;
    // Its deadline is later than anybody waits here.
    let request = CreateRequest { timeout: PATIENCE * 60, ..request() };
    let begun = ground.path("begun");
    tokio::select! {
        answer = provider.create(&request) => panic!("{answer:?}"),
        () = wait_until("it has begun", || begun.exists()) => {}
    }
    gone(ground.folder.path().to_str().unwrap()).await;
}

#[tokio::test]
async fn an_answer_is_not_kept_waiting_by_what_still_has_the_output() {
    let ground = Ground::new();
    let mark = ground.folder.path().display();
    // As when a worker is started without redirecting its output.
    let script = format!("sh -c 'sleep 30 # {mark}' &\necho '{}'", created(&json!({})));
    let provider = ground.script(&script).await;
    let answer = timeout(Duration::from_secs(20), provider.create(&request())).await;
    assert!(answer.unwrap().is_ok());
}

#[tokio::test]
async fn a_flood_without_an_end_is_ended_and_takes_no_more_memory_than_it_may() {
    let ground = Ground::new();
    for flood in ["cat /dev/zero", "yes"] {
        let provider = ground
            .script(&format!("trap '' TERM\n{flood} # {}", ground.folder.path().display()))
            .await;
        let error = timeout(PATIENCE, provider.list(&owner(), None)).await.unwrap().unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("no line of the protocol") || told.contains("more than 64 MiB"),
            "{told}"
        );
    }
    // On standard error, by two at a time, it keeps no deadline waiting.
    let mut config = ground.scripted("trap '' TERM\nyes >&2 &\nyes >&2");
    config.timeout = HumanDuration::from_secs(2);
    let provider = ground.open(config).await.unwrap();
    let error = timeout(PATIENCE, provider.list(&owner(), None)).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("ended at its deadline"), "{error}");
}

#[tokio::test]
async fn nothing_of_its_group_works_on_when_an_executable_has_ended() {
    let ground = Ground::new();
    let mark = ground.folder.path().display().to_string();
    let script = format!(
        "sh -c 'trap \"\" TERM; while :; do sleep 0.05; done # {mark}' >/dev/null 2>&1 &\nkill -9 $$"
    );
    let provider = ground.script(&script).await;
    assert!(provider.create(&request()).await.unwrap_err().is_unknown());
    gone(&mark).await;
}

#[tokio::test]
async fn what_is_told_has_no_secret_in_it_and_nothing_that_terminals_obey() {
    let ground = Ground::new();
    let words = r#"echo "Authorization: Bearer the-providers-secret \\033[31m" >&2; exit 1"#;
    let mut config = ground.scripted(&words.replace("\\\\", "\\"));
    config.secrets.insert("token".to_owned(), SecretSource::FromEnv("TOKEN".to_owned()));
    let provider = ground.open(config).await.unwrap();
    let error = provider.create(&request()).await.unwrap_err().to_string();
    assert!(error.contains("Bearer ***"), "{error}");
    assert!(!error.contains("secret") && !error.contains('\x1b'), "{error}");
    let line = json!({ "type": "error", "code": "quota", "message": "the-workers-secret is bad\u{1b}[2J" });
    let provider = ground.script(&format!("echo '{line}'")).await;
    let error = provider.create(&request()).await.unwrap_err().to_string();
    assert_eq!(error, "quota exceeded: *** is bad [2J");
    // In an answer that cannot be understood, and in a line that is cut where the secret stands.
    let answer = super::ground::created(&json!({ "attempt": "the-workers-secret" }));
    let long = format!("{}the-workers-secret", "x".repeat(110));
    for script in [format!("echo '{answer}'"), format!("echo '{long}'")] {
        let error = ground.script(&script).await.create(&request()).await.unwrap_err().to_string();
        assert!(error.contains("***") && !error.contains("the-work"), "{error}");
    }
}

#[tokio::test]
async fn an_executable_runs_where_it_was_declared() {
    let ground = Ground::new();
    let script = ground.scripted(&format!("pwd >{}/where; exit 1", ground.folder.path().display()));
    drop(script);
    let mut config = Ground::config(&["./provider.sh"]);
    config.directory = Some(ground.folder.path().to_owned());
    std::fs::set_permissions(ground.path("provider.sh"), std::fs::Permissions::from_mode(0o755))
        .unwrap();
    let provider = ground.open(config).await.unwrap();
    let _no_answer = provider.list(&owner(), None).await;
    assert_eq!(
        ground.read("where").trim(),
        ground.folder.path().canonicalize().unwrap().display().to_string()
    );
}

#[tokio::test]
async fn secrets_come_by_a_descriptor_and_are_in_no_argument_or_variable() {
    let ground = Ground::new();
    let folder = ground.folder.path().display().to_string();
    let script = format!(
        "cat >{folder}/request; cat <&$POOL_SECRETS_FD >{folder}/secrets; env >{folder}/env\n\
         cat /proc/$$/cmdline /proc/$PPID/cmdline /proc/$PPID/environ >{folder}/seen; exit 1"
    );
    let mut config = ground.scripted(&script);
    config.secrets.insert("token".to_owned(), SecretSource::FromEnv("TOKEN".to_owned()));
    config.environment.insert("REGION".to_owned(), "eu".to_owned());
    config.pass_environment.push("AWS_*".to_owned());
    let provider = ground.open(config).await.unwrap();
    let _no_answer = provider.create(&request()).await;
    let secrets: serde_json::Value = serde_json::from_str(&ground.read("secrets")).unwrap();
    let expected = json!({
        "provider": { "token": "the-providers-secret" },
        "worker": { "SECRET": "the-workers-secret" },
    });
    assert_eq!(secrets, expected);
    for file in ["request", "env", "seen"] {
        let text = ground.read(file);
        assert!(!text.is_empty(), "{file}");
        assert!(!text.contains("-secret"), "{file}: {text}");
    }
    // The environment is what was allowed, and nothing else.
    let names: std::collections::BTreeSet<String> = ground
        .read("env")
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0.to_owned()))
        .filter(|name| name != "PWD" && name != "_" && name != "SHLVL" && name != "OLDPWD")
        .collect();
    let expected = ["AWS_PROFILE", "PATH", "POOL_METHOD", "POOL_SECRETS_FD", "REGION"];
    assert_eq!(names, expected.map(str::to_owned).into());
    let logs = std::fs::read_dir(ground.path("logs")).unwrap().flatten();
    for log in logs {
        assert!(!std::fs::read_to_string(log.path()).unwrap().contains("-secret"));
    }
}

#[tokio::test]
async fn a_secret_that_is_not_there_keeps_the_executable_from_being_run() {
    let ground = Ground::new();
    let mut config = ground.scripted(&format!("touch {}", ground.path("ran").display()));
    config.secrets.insert("token".to_owned(), SecretSource::FromEnv("NOWHERE".to_owned()));
    // What it can do it says without.
    let provider = ground.open(config).await.unwrap();
    let error = provider.list(&owner(), None).await.unwrap_err();
    assert_eq!(error.code(), "unauthenticated");
    assert!(error.to_string().contains("token (from_env: NOWHERE)"), "{error}");
    assert!(!ground.path("ran").exists());
}

#[tokio::test]
async fn a_secret_that_is_printed_is_not_in_the_log() {
    let ground = Ground::new();
    // In pieces, as a slow writer prints it, and as the very last.
    let script = "printf 'the token is the-prov' >&2; sleep 0.2; echo 'iders-secret, as in' >&2\n\
                  cat <&$POOL_SECRETS_FD >&2; printf the-workers-secret >&2; exit 1";
    let mut config = ground.scripted(script);
    config.secrets.insert("token".to_owned(), SecretSource::FromEnv("TOKEN".to_owned()));
    let provider = ground.open(config).await.unwrap();
    let error = provider.create(&request()).await.unwrap_err().to_string();
    let log = ground.read("logs/ci-3-2-070707.create.1.log");
    for text in [&error, &log] {
        assert!(!text.contains("-secret") && text.contains("***"), "{text}");
    }
    assert!(log.contains("the token is ***, as in\n"), "{log}");
    assert!(log.ends_with("***"), "{log}");
}

#[tokio::test]
async fn what_is_printed_on_standard_error_is_kept_for_each_operation() {
    let ground = Ground::new();
    let provider = ground.script("echo \"trying $POOL_METHOD\" >&2; exit 1").await;
    let error = provider.create(&request()).await.unwrap_err().to_string();
    let log = ground.path("logs/ci-3-2-070707.create.1.log");
    assert!(error.contains("the last that it said: trying create"), "{error}");
    assert!(error.ends_with(log.to_str().unwrap()), "{error}");
    // A repeat goes on in the same file.
    let _no_answer = provider.create(&request()).await;
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(text.matches("== create, operation 17, token token").count(), 2, "{text}");
    assert_eq!(text.matches("trying create").count(), 2, "{text}");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&log), mode(&ground.path("logs"))), (0o600, 0o700));
    // A flood is cut, and does not keep the call from its end.
    let provider = ground.script("head -c 9000000 /dev/zero | tr '\\0' 'x' >&2; exit 1").await;
    let _no_answer = provider.create(&request()).await;
    let length = log.metadata().unwrap().len();
    assert!((500_000..600_000).contains(&length), "{length}");
}

#[tokio::test]
async fn what_is_left_of_a_group_is_told_in_the_log() {
    let ground = Ground::new();
    let script =
        format!("sleep 300 >/dev/null 2>&1 &\necho '{}'", super::ground::created(&json!({})));
    let provider = ground.script(&script).await;
    provider.create(&request()).await.unwrap();
    let log = || ground.read("logs/ci-3-2-070707.create.1.log");
    assert!(log().contains("what was left of its process group was killed"), "{}", log());
    // One that leaves nothing behind hears nothing of it.
    let ground = Ground::new();
    let script = format!("sleep 0.1; echo '{}'", super::ground::created(&json!({})));
    ground.script(&script).await.create(&request()).await.unwrap();
    let log = ground.read("logs/ci-3-2-070707.create.1.log");
    assert!(!log.contains("process group"), "{log}");
}

#[tokio::test]
async fn a_script_with_the_line_ends_of_windows_is_told_so() {
    let ground = Ground::new();
    let path = ground.write("provider.py", "#!/usr/bin/env python3\r\nprint(1)\r\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = ground.open(Ground::config(&[path.to_str().unwrap()])).await.unwrap_err();
    assert!(error.to_string().contains("save it with Unix line ends"), "{error}");
}

#[tokio::test]
async fn a_deadline_names_the_setting_that_it_is_of() {
    let ground = Ground::new();
    let mut config = ground.scripted("sleep 300");
    config.timeout = pool_provider::HumanDuration::from_secs(1);
    let provider = ground.open(config).await.unwrap();
    let error = provider.list(&owner(), None).await.unwrap_err().to_string();
    assert!(error.contains("after 1s (timeout of the provider)"), "{error}");
}
