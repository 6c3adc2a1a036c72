//! What is for running it: the unit, the alert rules, the image, each read by the program that it is for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pipelines::has;
use serde_json::Value;

use crate::sandbox::{Ran, Sandbox, asked_for, wait_until};
use crate::serve::Server;

const POOL: &str = env!("CARGO_BIN_EXE_pool");

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn run(program: &str, arguments: &[&str]) -> Ran {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() {
    if !has(&["systemd-analyze"]) {
        return;
    }
    let sandbox = Sandbox::new();
    let unit = std::fs::read_to_string(deploy("pool.service")).unwrap();
    let exec = "ExecStart=/usr/local/bin/pool serve --log-format json";
    assert!(unit.contains(exec));
    // The program has to be there.
    let unit = sandbox.write("pool.service", &unit.replace("/usr/local/bin/pool", POOL));
    let unit = unit.to_str().unwrap();
    let verified = run("systemd-analyze", &["verify", unit]).exits(0);
    assert_eq!(verified.stderr, "", "a warning is a mistake too");
    let security = run("systemd-analyze", &["security", "--offline=true", "--threshold=20", unit]);
    assert_eq!(security.code, Some(0), "exposed to more than 2.0:\n{}", security.stdout);
    // And the line is one that the program takes: with the state of an apply, it serves.
    sandbox.write(
        "pool.yaml", "pool_id: ci\nworker_type: process\nfixed_size: 0\nworker_config: {image: a, cpu_cores: 1, memory_mb: 1}\n");
    let words: Vec<&str> = exec.split(' ').skip(1).collect();
    assert_eq!(words, ["serve", "--log-format", "json"]);
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    let server = Server::start(&sandbox, &[]);
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
}

/// The names after `pool_` in a text, without what Prometheus adds to counters and histograms.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("pool_"));
    let bare = |name: &str| {
        let endings = ["_total", "_bucket", "_count", "_sum"];
        let short = endings.iter().find_map(|ending| name.strip_suffix(ending));
        short.unwrap_or(name).to_owned()
    };
    names.map(bare).collect()
}

#[test]
fn alerts_are_rules_about_metrics_that_exist() {
    if !has(&["promtool"]) {
        return;
    }
    let rules = deploy("pool.alerts.yml");
    run("promtool", &["check", "rules", "--lint-fatal", rules.to_str().unwrap()]).exits(0);
    run("promtool", &["test", "rules", deploy("pool.alerts.test.yml").to_str().unwrap()]).exits(0);
    // Each was seen to fire.
    let tests = std::fs::read_to_string(deploy("pool.alerts.test.yml")).unwrap();
    let fires = |name: &str| {
        let heading = format!("alertname: {name}\n");
        let cases = tests.split(&heading).skip(1);
        let own = cases.map(|case| case.split("- alertname").next().unwrap());
        own.into_iter().any(|case| case.contains("exp_labels"))
    };
    let text = std::fs::read_to_string(&rules).unwrap();
    for name in text.split("- alert: ").skip(1).filter_map(|after| after.lines().next()) {
        assert!(fires(name), "{name} fires in no test");
    }
    let metrics = pool::serve::metrics::Metrics::default();
    let measured: BTreeSet<String> =
        metrics.described().iter().map(|metric| format!("pool_{}", metric.name)).collect();
    let expressions: String = text
        .split("expr:")
        .skip(1)
        .map(|after| after.split("labels:").next().unwrap().split("for:").next().unwrap())
        .collect();
    let asked = metrics_in(&expressions);
    assert!(asked.len() >= 12, "{asked:?}");
    assert!(asked.is_subset(&measured), "{:?}", asked.difference(&measured));
    // Values of labels are names of ours.
    let reasons: Vec<&str> = expressions
        .split("reason=")
        .skip(1)
        .map(|after| after.trim_start_matches('~').split('"').nth(1).unwrap())
        .collect();
    assert_eq!(reasons.len(), 3);
    let endings = std::fs::read_to_string(deploy("../src/lease/terms.rs")).unwrap();
    let sources = std::fs::read_to_string(deploy("../src/plan/types.rs")).unwrap();
    for reason in reasons {
        // `(create|replace)_because_missing` is a variant of the plan's reasons, the others are a lease's outcomes.
        let Some(ends) = reason.strip_prefix("(create|replace)_because_(") else {
            assert!(endings.contains(&format!("\"{reason}\"")), "{reason}");
            continue;
        };
        for end in ends.trim_end_matches(')').split('|') {
            let capital = end[..1].to_uppercase() + &end[1..];
            assert!(sources.contains(&format!("Because{capital},")), "{end}");
        }
    }
}

#[test]
fn the_image_is_built_and_serves() {
    let Some(host) = asked_for("POOL_TEST_DOCKER") else {
        assert!(asked_for("POOL_TEST_ENGINES").is_none(), "POOL_TEST_DOCKER is not set");
        crate::engines::not_run("an engine; POOL_TEST_DOCKER is not set");
        return;
    };
    // In place of the two images that come from a registry: one whose cargo has everything built already, one with
    // the C library that the program needs.
    let sandbox = Sandbox::new();
    let script = r#"
        set -eu
        mkdir -p base/bin base/tmp build/bin build/root
        for library in $(ldd "$POOL" | grep -o '/[^ ]*'); do install -D "$library" "base$library"; done
        busybox=$(command -v busybox)
        for root in base build; do
          cp "$busybox" $root/bin/busybox
          for applet in sh mkdir cp chown cat sleep; do ln -sf busybox $root/bin/$applet; done
        done
        cp "$POOL" build/root/pool
        printf '#!/bin/sh\n[ "$*" = "build --release --locked --bin pool" ] && mkdir -p target/release && cp /root/pool target/release/pool\n' > build/bin/cargo
        chmod +x build/bin/cargo
        tar -C base -c . | docker import - pool-test-base:1 >&2
        tar -C build -c . | docker import - pool-test-build:1 >&2
        docker build -q -t pool-test-image --build-arg BASE_IMAGE=pool-test-base:1 --build-arg BUILD_IMAGE=pool-test-build:1 "$REPOSITORY" >&2
        mkdir pools
        cp "$REPOSITORY/examples/simulated.json" pools
        docker run -d --name pool-test-server --network host -v "$PWD/pools:/etc/pool:ro" pool-test-image serve /etc/pool --listen 127.0.0.1:0 >&2
    "#;
    let docker = |script: &str| {
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(sandbox.path())
            .env("DOCKER_HOST", &host)
            .env("DOCKER_BUILDKIT", "0")
            .env("POOL", POOL)
            .env("REPOSITORY", env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    docker(script).exits(0);
    wait_until("the pool in the container", || {
        docker("docker exec pool-test-server /usr/local/bin/pool status --check").code == Some(0)
    });
    let who = docker("docker exec pool-test-server /bin/cat /proc/1/status").exits(0).stdout;
    assert!(
        who.lines()
            .any(|line| line.split_whitespace().eq(["Uid:", "10001", "10001", "10001", "10001"])),
        "{who}"
    );
    // SIGTERM ends it as it should end: at once, with 0.
    let stopped = docker("docker stop -t 20 pool-test-server >&2; docker inspect -f '{{.State.ExitCode}}' pool-test-server; docker logs pool-test-server 2>&1 | tail -1; docker rm -v pool-test-server >&2").exits(0);
    assert!(
        stopped.stdout.starts_with("0\n") && stopped.stdout.contains("stopping"),
        "{}",
        stopped.stdout
    );
}
