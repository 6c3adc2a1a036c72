//! The command blocks of the documentation do what it says.

use std::path::Path;

use crate::pipelines::has;
use crate::sandbox::Sandbox;

/// The blocks of shell commands in a page.
fn blocks(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let after = text.split("```sh\n").skip(1);
    after.map(|after| after.split("```").next().unwrap().to_owned()).collect()
}

fn pool(id: &str, size: u32, image: &str, more: &str) -> String {
    format!(
        "pool_id: {id}\nworker_type: container\nprovider: sim\nfixed_size: {size}\nworker_config: {{image: \
         registry.example.com/{image}, cpu_cores: 1, memory_mb: 1{more}}}\n"
    )
}

#[test]
fn the_policies_on_plans_tell_good_ones_from_bad_ones() {
    if !has(&["jq"]) {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write("pools/ci.yaml", &pool("ci", 12, "ci:1", ""));
    sandbox.write("pools/old.yaml", &pool("old", 1, "old:1", ""));
    sandbox.pool(&["apply", "pools", "--auto-approve"]).exits(0);
    let mut blocks = blocks("policies.md");
    let plan = blocks.remove(0);
    assert_eq!(blocks.len(), 5);
    let verdicts = || -> Vec<Option<i32>> {
        let planned = sandbox.shell(&plan);
        assert_eq!(planned.code, Some(0), "{}", planned.stderr);
        blocks.iter().map(|policy| sandbox.shell(policy).code).collect()
    };
    sandbox.write("pools/ci.yaml", &pool("ci", 11, "ci:1", ""));
    assert_eq!(verdicts(), [Some(0); 5]);
    // Everything that is forbidden at once.
    let bad = pool("ci", 50, "ci:2", ", docker_enabled: true").replace("registry.", "elsewhere.");
    sandbox.write("pools/ci.yaml", &bad);
    std::fs::remove_file(sandbox.path().join("pools/old.yaml")).unwrap();
    assert_eq!(verdicts(), [Some(1); 5]);
}
