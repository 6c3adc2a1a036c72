//! The binary on a terminal, as people have one: progress, colour, width, locales, logs, readers that go away.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::sandbox::{Ran, Sandbox};

/// Runs its arguments on a terminal of a size, types what it is told to, and prints every byte that comes back.
///
/// The first argument is `ROWSxCOLUMNS`, the second a list of `wait for this`, `type that`, separated by tabs.
const TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios, time
rows, columns = map(int, sys.argv[1].split("x"))
script = [part.encode().decode("unicode_escape").encode() for part in sys.argv[2].split("\t") if part]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.execvp(sys.argv[3], sys.argv[3:])
seen, end = b"", time.monotonic() + 60
while time.monotonic() < end:
    if script and script[0] in seen:
        seen = b""
        os.write(terminal, script[1])
        del script[:2]
    if not select.select([terminal], [], [], 0.05)[0]:
        continue
    try:
        got = os.read(terminal, 65536)
    except OSError:
        got = b""
    if not got:
        break
    seen += got
    os.write(1, got)
else:
    os.kill(pid, signal.SIGKILL)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status) if not script else 99)
"#;

/// Runs a command on a terminal; returns what stands on the screen in the end, and every byte that came.
pub(crate) fn on_terminal(
    sandbox: &Sandbox,
    size: (u16, u16),
    script: &[(&str, &str)],
    command: &[&str],
) -> (String, Vec<u8>, Option<i32>) {
    let script: Vec<String> = script.iter().flat_map(|(a, b)| [(*a).into(), (*b).into()]).collect();
    let program = sandbox.write("terminal.py", TERMINAL);
    let output = Command::new("python3")
        .arg(program)
        .args([format!("{}x{}", size.0, size.1), script.join("\t")])
        .args(command)
        .current_dir(sandbox.path())
        .env_clear()
        .envs(sandbox.variables())
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let [rows, columns] = [size.0, size.1].map(|length| length.try_into().unwrap());
    let mut screen = vt100::Parser::new(rows, columns, 0);
    screen.process(&output.stdout);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (screen.screen().contents(), output.stdout, output.status.code())
}

const POOL: &str = env!("CARGO_BIN_EXE_pool");

/// A simulated pool whose creates take a while, and of which one fails.
fn slow() -> Sandbox {
    let sandbox = Sandbox::new();
    let settings = r#"{"latency_ms": 250, "capacity": 5}"#;
    sandbox.write(".pool/sim/settings.json", settings);
    sandbox.write(
        "ci.yaml",
        "pool_id: ci\nworker_type: container\nprovider: sim\nfixed_size: 6\nworker_config: {image: a, cpu_cores: 1, \
         memory_mb: 64}\nprovisioning: {max_concurrency: 2, max_attempts: 1}\n",
    );
    sandbox
}

fn lines(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(|line| line.trim_end().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn progress_on_a_terminal_leaves_nothing_but_what_a_log_has() {
    let logged = slow().pool(&["apply", "ci.yaml", "--auto-approve"]).exits(5);
    let (screen, bytes, code) = on_terminal(
        &slow(),
        (60, 100),
        &[],
        &[POOL, "apply", "ci.yaml", "--auto-approve", "--no-color"],
    );
    assert_eq!(code, Some(5), "{screen}");
    // It did show something meanwhile, on a line that it took back.
    let shown = String::from_utf8(bytes).unwrap();
    assert!(shown.contains("0/6") && shown.contains('\r') && shown.is_ascii(), "{shown:?}");
    let logged = lines(&format!("{}{}", logged.stdout, logged.stderr));
    assert_eq!(lines(&screen), logged, "{screen}");
}

#[test]
fn log_lines_stay_whole_beside_progress() {
    let (screen, _, code) = on_terminal(
        &slow(),
        (200, 220),
        &[],
        &[POOL, "apply", "ci.yaml", "--auto-approve", "--no-color", "-v"],
    );
    assert_eq!(code, Some(5), "{screen}");
    let calls = screen.lines().filter(|line| line.contains("call=\"create\""));
    let whole = |line: &&str| {
        line.split(' ').next().unwrap().parse::<jiff::Timestamp>().is_ok()
            && line.contains("took_ms=")
    };
    assert_eq!(calls.clone().filter(whole).count(), 6, "{screen}");
    assert_eq!(calls.count(), 6, "{screen}");
}

#[test]
fn an_interrupted_run_takes_its_progress_off_the_terminal() {
    let sandbox = slow();
    let script = [("0/6", "\\x03")];
    let command = [POOL, "apply", "ci.yaml", "--auto-approve", "--no-color"];
    let (screen, _, code) = on_terminal(&sandbox, (40, 100), &script, &command);
    assert_eq!(code, Some(130), "{screen}");
    let last = screen.lines().rev().find(|line| !line.trim().is_empty()).unwrap();
    assert_eq!(last, "interrupted; run again to go on from here", "{screen}");
    assert!(!screen.contains("/6"), "{screen}");
}

#[test]
fn where_builds_run_a_terminal_gets_plain_lines() {
    let mut sandbox = slow();
    sandbox.set("CI", "true");
    let command = [POOL, "apply", "ci.yaml", "--auto-approve", "--no-color"];
    let (_, bytes, code) = on_terminal(&sandbox, (60, 100), &[], &command);
    assert_eq!(code, Some(5));
    let text = String::from_utf8(bytes).unwrap();
    assert!(!text.contains('\u{1b}') && !text.replace("\r\n", "").contains('\r'), "{text:?}");
}

#[test]
fn a_person_at_a_terminal_is_asked_and_a_word_is_not_a_yes() {
    let sandbox = slow();
    let command = [POOL, "apply", "ci.yaml", "--no-color"];
    let (screen, _, code) = on_terminal(&sandbox, (60, 100), &[("> ", "y\\n")], &command);
    assert_eq!(code, Some(1), "{screen}");
    assert!(screen.contains("not approved; nothing was changed"), "{screen}");
    let (screen, _, code) = on_terminal(&sandbox, (60, 100), &[("> ", "yes\\n")], &command);
    assert_eq!(code, Some(5), "{screen}");
}

#[test]
fn colour_is_decided_by_flag_then_variables_then_terminal() {
    let coloured = |terminal: bool, set: &[(&str, &str)], flags: &[&str]| {
        let mut sandbox = slow();
        for (name, value) in set {
            sandbox.set(name, value);
        }
        let mut command = vec![POOL, "plan", "ci.yaml"];
        command.extend(flags);
        let bytes = if terminal {
            on_terminal(&sandbox, (60, 100), &[], &command).1
        } else {
            sandbox.pool(&command[1..]).stdout.into_bytes()
        };
        bytes.contains(&0x1b)
    };
    assert!(coloured(true, &[], &[]));
    assert!(!coloured(false, &[], &[]));
    assert!(!coloured(true, &[("NO_COLOR", "1")], &[]));
    assert!(coloured(true, &[("NO_COLOR", "")], &[]), "no-color.org: when not empty");
    assert!(coloured(false, &[("CLICOLOR_FORCE", "1")], &[]));
    assert!(!coloured(false, &[("CLICOLOR_FORCE", "0")], &[]));
    assert!(!coloured(false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], &[]));
    assert!(coloured(false, &[("NO_COLOR", "1")], &["--color", "always"]));
    assert!(!coloured(true, &[("CLICOLOR_FORCE", "1")], &["--no-color"]));
    assert!(!coloured(true, &[], &["--color=never"]));
}

#[test]
fn a_terminal_that_cannot_do_colour_gets_none_and_a_narrow_one_gets_narrow_help() {
    let sandbox = slow();
    let dumb = format!("TERM=dumb exec {POOL} apply ci.yaml --auto-approve");
    let (_, bytes, _) = on_terminal(&sandbox, (60, 100), &[], &["sh", "-c", &dumb]);
    assert!(!bytes.contains(&0x1b), "{}", String::from_utf8_lossy(&bytes));
    let (screen, ..) = on_terminal(&sandbox, (200, 60), &[], &[POOL, "plan", "--help"]);
    let examples = screen.find("Examples:").unwrap();
    let widest = screen[..examples].lines().map(str::len).max().unwrap();
    assert!(widest <= 60 && screen.lines().count() > 30, "{screen}");
}

#[test]
fn a_reader_that_goes_away_ends_the_output_quietly() {
    let sandbox = Sandbox::new();
    for command in ["pool schema", "pool --help", "pool man", "pool completions bash"] {
        // No `head`: it may be fast enough to read all. What reads nothing is gone at once.
        let ran = sandbox.shell(&format!("({command}; echo $? >&2) | true"));
        assert_eq!(ran.stderr, "0\n", "{command}");
    }
}

#[test]
fn every_locale_is_told_the_same() {
    let told = |locale: Option<&str>| -> Vec<Ran> {
        let mut sandbox = slow();
        if let Some(locale) = locale {
            for name in ["LANG", "LC_ALL", "LC_NUMERIC"] {
                sandbox.set(name, locale);
            }
        }
        sandbox.write(
            "bad.yaml",
            "pool_id: İSTANBUL\nfixed_size: 1,5\nworker_type: PROCESS\nimage: ı\n",
        );
        let runs: [&[&str]; 5] = [
            &["plan", "ci.yaml"],
            &["apply", "ci.yaml", "--auto-approve"],
            &["validate", "bad.yaml"],
            &["plan", "--help"],
            &["config", "ci.yaml"],
        ];
        runs.iter().map(|run| sandbox.pool(run)).collect()
    };
    let plain = told(None);
    for locale in ["C", "tr_TR.UTF-8", "de_DE.UTF-8", "ja_JP.eucJP"] {
        assert_eq!(told(Some(locale)), plain, "{locale}");
    }
    // And in what any terminal can show, as far as it is our own.
    for ran in plain.iter().take(2) {
        assert!(ran.stdout.is_ascii() && ran.stderr.is_ascii(), "{ran:?}");
    }
}

#[test]
fn names_that_are_no_text_are_taken_as_they_are_or_refused_by_name() {
    let sandbox = slow();
    let latin = PathBuf::from(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    std::fs::create_dir(sandbox.path().join(&latin)).unwrap();
    std::fs::copy(sandbox.path().join("ci.yaml"), sandbox.path().join(&latin).join("ci.yaml"))
        .unwrap();
    let ran = sandbox.command(&["validate"]).arg(&latin).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let state = latin.join("state.db");
    let ran = sandbox.command(&["plan", "ci.yaml", "--state"]).arg(&state).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    // A value that would be left out without a word would not be what somebody set.
    let value = std::ffi::OsStr::from_bytes(b"\xe9");
    let ran = sandbox
        .command(&["plan", "ci.yaml"])
        .env("POOL__CI__WORKER_CONFIG__IMAGE", value)
        .output()
        .unwrap();
    let told = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{told}");
    assert!(told.contains("POOL__CI__WORKER_CONFIG__IMAGE") && told.contains("hint:"), "{told}");
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set() {
    let mut sandbox = slow();
    for name in [
        "POOL_STATE",
        "POOL_REQUIRE_STATE",
        "POOL_SERVER",
        "POOL_HOLDER",
        "POOL_LOG",
        "POOL_LOG_FORMAT",
    ] {
        sandbox.set(name, "");
    }
    sandbox.pool(&["plan", "ci.yaml"]).exits(0);
    let refused = sandbox.pool(&["status"]).exits(1).stderr;
    assert!(refused.contains(".pool/state.db"), "{refused}");
    let away = sandbox.pool(&["lease", "list"]).exits(1).stderr;
    assert!(away.contains("http://127.0.0.1:7070 does not answer"), "{away}");
}

#[test]
fn what_is_done_is_told_when_asked_and_never_a_secret() {
    let mut sandbox = slow();
    sandbox.set("TOKEN", "not-for-any-log");
    let with_secret = sandbox
        .read("ci.yaml")
        .replace("memory_mb: 64", "memory_mb: 64, environment: {T: {from_env: TOKEN}}");
    sandbox.write("ci.yaml", &with_secret);
    let plan = ["plan", "ci.yaml"];
    let quiet = sandbox.pool(&plan).exits(0);
    assert_eq!(quiet.stderr, "");
    let told = sandbox.pool(&[&plan[..], &["-v"]].concat()).exits(0);
    assert_eq!(told.stdout, quiet.stdout, "data stays data");
    assert!(told.stderr.contains("provider=sim call=\"list\""), "{}", told.stderr);
    assert!(told.stderr.is_ascii(), "{}", told.stderr);
    sandbox.set("POOL_LOG_FORMAT", "json");
    let more = sandbox.pool(&["apply", "ci.yaml", "--auto-approve", "-vvv"]).exits(5);
    let events = more.stderr.lines().filter(|line| line.starts_with('{'));
    assert!(events.clone().count() > 10, "{}", more.stderr);
    for event in events {
        let event: serde_json::Value = serde_json::from_str(event).unwrap();
        assert!(event["timestamp"].is_string(), "{event}");
    }
    assert!(!more.stderr.contains("not-for-any-log"), "{}", more.stderr);
}
