//! What editors offer to write as a whole: a pool of each kind, a file of several, a provider of each type.
//!
//! `defaultSnippets` is an extension of JSON Schema that VS Code's JSON server and yaml-language-server understand;
//! others ignore it. `${1:text}` is a place to stop at, with what stands there at first; a text that begins with `^`
//! is written without quotes. With the texts as they stand at first, each snippet is valid: a test tries them all.

use serde_json::{Value, json};

/// Where snippets are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In an empty file.
    File,
    /// In the list of pools.
    Pools,
    /// Among the providers.
    Providers,
}

/// Returns the snippets of a place, as `defaultSnippets`.
pub(crate) fn snippets(place: Place) -> Value {
    let all = match place {
        Place::File => vec![
            pools_file(),
            snippet("pool: processes", "One pool of processes on this machine", &processes()),
            snippet("pool: containers", "One pool of containers", &containers()),
        ],
        Place::Pools => vec![
            snippet("pool of processes", "Processes on this machine", &processes()),
            snippet("pool of containers", "Containers of a Docker engine", &containers()),
            snippet("pool of instances", "Instances of Amazon EC2", &instances()),
            snippet("pool of an executable", "What an executable creates", &of_an_executable()),
        ],
        Place::Providers => vec![
            snippet(
                "provider: docker",
                "A Docker engine, or podman's service",
                &json!({ "${1:build-host}": {
                    "type": "docker",
                    "host": "${2:unix:///var/run/docker.sock}",
                    "max_concurrency": "^${3:5}",
                } }),
            ),
            snippet(
                "provider: ec2",
                "Amazon EC2 in a region",
                &json!({ "${1:frankfurt}": {
                    "type": "ec2",
                    "region": "${2:eu-central-1}",
                    "subnets": ["${3:subnet-0a1b2c3d}"],
                    "security_groups": ["${4:sg-0a1b2c3d}"],
                } }),
            ),
            snippet(
                "provider: exec",
                "An executable that speaks the provider protocol",
                &json!({ "${1:cloud}": {
                    "type": "exec",
                    "command": ["${2:./providers/cloud.sh}"],
                    "secrets": { "${3:token}": { "from_env": "${4:CLOUD_TOKEN}" } },
                } }),
            ),
            snippet(
                "provider: local",
                "Processes on this machine, with settings of their own",
                &json!({ "${1:machine}": { "type": "local", "stop_grace": "${2:30s}" } }),
            ),
            snippet(
                "provider: sim",
                "A simulated cloud, for trying things out",
                &json!({ "${1:cloud}": { "type": "sim" } }),
            ),
        ],
    };
    Value::Array(all)
}

fn snippet(label: &str, description: &str, body: &Value) -> Value {
    json!({ "label": label, "description": description, "body": body })
}

fn pools_file() -> Value {
    let body = json!({ "version": 1, "pools": [processes()] });
    snippet(
        "pools: a file of several",
        "A file with a list of pools, and providers if need be",
        &body,
    )
}

fn processes() -> Value {
    json!({
        "pool_id": "${1:ci-linux}",
        "worker_type": "process",
        "fixed_size": "^${2:3}",
        "worker_config": {
            "image": "${3:/bin/sleep}",
            "command": ["${4:infinity}"],
            "cpu_cores": "^${5:1}",
            "memory_mb": "^${6:64}",
        },
    })
}

fn containers() -> Value {
    json!({
        "pool_id": "${1:ci-linux}",
        "worker_type": "container",
        "provider": "${2:docker}",
        "fixed_size": "^${3:3}",
        "worker_config": {
            "image": "${4:busybox:1.36}",
            "cpu_cores": "^${5:2}",
            "memory_mb": "^${6:2048}",
        },
    })
}

fn instances() -> Value {
    json!({
        "pool_id": "${1:ci-linux}",
        "worker_type": "vm",
        "provider": "${2:ec2}",
        "fixed_size": "^${3:3}",
        "worker_config": {
            "image": "${4:ami-0a1b2c3d4e5f60718}",
            "cpu_cores": "^${5:2}",
            "memory_mb": "^${6:8192}",
            "ec2": { "instance_types": ["${7:m7i.large}", "${8:m6i.large}"] },
        },
        "provisioning": { "timeout": "${9:10m}" },
    })
}

fn of_an_executable() -> Value {
    json!({
        "pool_id": "${1:ci-linux}",
        "worker_type": "${2|vm,process,container,host|}",
        "provider": "${3:cloud}",
        "fixed_size": "^${4:3}",
        "worker_config": {
            "image": "${5:debian-12}",
            "cpu_cores": "^${6:2}",
            "memory_mb": "^${7:2048}",
            "attributes": { "${8:flavor}": "${9:small}" },
        },
    })
}
