//! Rules between fields: what no schema can say.
//!
//! Input: a pool that satisfies the schema, and the providers that files declare. Output: every rule that it
//! breaks, by pointer relative to the pool. Looks at nothing else, so `plan` may rely on all of this.

use std::time::Duration;

use pool_provider::HumanDuration;

use super::diagnostic::{Diagnostic, did_you_mean};
use super::leases::Reuse;
use super::pointer::escape;
use super::policy::HealthCheckKind;
use super::providers::{Declared, Found, ProviderKind};
use super::types::StaticPoolConfig;

/// Returns every rule that `pool` breaks.
pub(super) fn check(pool: &StaticPoolConfig, providers: &Declared) -> Vec<(String, Diagnostic)> {
    let mut broken = Vec::new();
    check_provider(pool, providers, &mut broken);
    check_health(pool, &mut broken);
    check_update(pool, &mut broken);
    check_leases(pool, &mut broken);
    check_environment(pool, &mut broken);
    if pool.provisioning.timeout.get().is_zero() {
        broken.push((
            "/provisioning/timeout".to_owned(),
            Diagnostic::error("zero-timeout", "`timeout` must be longer than 0s")
                .help("leave it out for its default, or write how long: 30s"),
        ));
    }
    broken
}

/// How long EC2's status checks of a new instance may well take.
const STATUS_CHECKS: Duration = Duration::from_secs(5 * 60);

type Broken = Vec<(String, Diagnostic)>;

fn check_provider(pool: &StaticPoolConfig, providers: &Declared, broken: &mut Broken) {
    let provider = pool.provider_name();
    let kind = match providers.find(provider) {
        Found::Right(config) => config.kind,
        Found::Wrong => return,
        Found::Nowhere => return broken.push(no_provider(pool, &providers.names())),
    };
    check_own(pool, &kind, broken);
    if let ProviderKind::Ec2(ec2) = &kind {
        check_instances(pool, ec2.settle, broken);
    }
    if !kind.worker_types().contains(&pool.worker_type) {
        let has: Vec<&str> = kind.worker_types().iter().map(|known| known.as_str()).collect();
        broken.push((
            "/worker_type".to_owned(),
            Diagnostic::error(
                "wrong-worker-type",
                format!("the provider `{provider}` has no workers of type `{}`", pool.worker_type),
            )
            .help(format!("it has: {}", has.join(", "))),
        ));
    }
}

/// What only some types of providers know of.
fn check_own(pool: &StaticPoolConfig, kind: &ProviderKind, broken: &mut Broken) {
    let is_docker = matches!(kind, ProviderKind::Docker(_));
    let mut complain = |pointer: &str, summary: &str| {
        let help = format!("the provider `{}` is of type `{}`", pool.provider_name(), kind.name());
        broken
            .push((pointer.to_owned(), Diagnostic::error("not-of-this-type", summary).help(help)));
    };
    if pool.network.is_some() && !is_docker {
        complain("/network", "only containers have a `network`");
    }
    if pool.worker_config.docker.is_some() && !is_docker {
        complain("/worker_config/docker", "only containers have a `docker` block");
    }
    if pool.worker_config.ec2.is_some() && !matches!(kind, ProviderKind::Ec2(_)) {
        complain("/worker_config/ec2", "only instances of EC2 have an `ec2` block");
    }
    if !pool.worker_config.attributes.is_empty() && !matches!(kind, ProviderKind::Exec(_)) {
        let summary = "only workers of a provider of type `exec` have `attributes`";
        complain("/worker_config/attributes", summary);
    }
    let docker = pool.worker_config.docker.iter();
    for (number, port) in docker.flat_map(|docker| &docker.ports).enumerate() {
        if let Some(why) = pool_docker::wrong_port(port, pool.fixed_size.saturating_sub(1)) {
            let pointer = format!("/worker_config/docker/ports/{number}");
            let found = Diagnostic::error("wrong-port", why);
            broken.push((pointer, found.help("ports are from 1 to 65535, those of all slots too")));
        }
    }
    let ports = pool.worker_config.docker.as_ref().map_or(&[][..], |docker| &docker.ports);
    let network = pool.network.as_deref().or(kind.network());
    if network == Some("none") && !ports.is_empty() {
        let found = Diagnostic::error("no-network", "workers without a network publish no ports");
        let pointer = "/worker_config/docker/ports".to_owned();
        broken.push((pointer, found.help("leave the ports out, or `network: none`")));
    }
    if network == Some("none") && pool.health_check.port.is_some() {
        let found =
            Diagnostic::error("no-network", "workers without a network cannot be connected to");
        let pointer = "/health_check/type".to_owned();
        broken.push((pointer, found.help("use the container's own HEALTHCHECK, or a command")));
    }
    let last = pool.fixed_size.saturating_sub(1);
    if let Some((one, other)) = pool_docker::meeting_ports(ports, last) {
        let summary = format!("`{}` and `{}` meet on the host", ports[one], ports[other]);
        let help = format!("slot n takes the host port plus n: leave {} between them", last + 1);
        let pointer = format!("/worker_config/docker/ports/{other}");
        broken.push((pointer, Diagnostic::error("wrong-port", summary).help(help)));
    }
    if pool.worker_config.docker_enabled && matches!(kind, ProviderKind::Local(_)) {
        let found =
            Diagnostic::warning("no-docker", "`docker_enabled` changes nothing for processes")
                .help("they use whatever Docker engine their user may use");
        broken.push(("/worker_config/docker_enabled".to_owned(), found));
    }
    if pool.worker_config.docker_enabled && is_docker {
        let summary =
            "`docker_enabled` lets a job do everything that the engine can, on its host as well";
        let found = Diagnostic::warning("docker-socket", summary)
            .help("leave it out where jobs are not trusted with the host");
        broken.push(("/worker_config/docker_enabled".to_owned(), found));
    }
}

/// What EC2 does not take, and what takes it longer than elsewhere.
fn check_instances(pool: &StaticPoolConfig, settle: HumanDuration, broken: &mut Broken) {
    let worker = &pool.worker_config;
    let mut complain = |pointer: &str, summary: String, help: &str| {
        let found = Diagnostic::error("not-for-instances", summary).help(help);
        broken.push((format!("/worker_config/{pointer}"), found));
    };
    if !pool_ec2::is_image(&worker.image) {
        let summary = format!("`{}` is no machine image of EC2", worker.image);
        let help = "write its id, ami-…, or resolve:ssm:PARAMETER";
        complain("image", summary, help);
    }
    let by_user_data = "write into `ec2.user_data` what it runs when it starts";
    if !worker.command.is_empty() {
        complain("command", "an instance is given no command".to_owned(), by_user_data);
    }
    if !worker.environment.is_empty() {
        complain("environment", "an instance is given no environment".to_owned(), by_user_data);
    }
    for (field, wrong) in [
        ("labels", pool_ec2::wrong_tags(&worker.labels, &[])),
        ("tags", pool_ec2::wrong_tags(&worker.labels, &worker.tags)),
    ] {
        if let Some(why) = wrong {
            complain(field, why, "labels and tags are the instance's own tags, which have limits");
            break;
        }
    }
    let own = worker.ec2.as_ref();
    let data = own.and_then(|own| own.user_data.as_ref()).map_or(0, String::len);
    if data > pool_ec2::MOST_USER_DATA {
        let summary = format!("`user_data` has {data} bytes; EC2 takes 16384");
        complain("ec2/user_data", summary, "fetch the rest from somewhere");
    }
    let types = own.map_or(&[][..], |own| &own.instance_types);
    if types.is_empty() && pool_ec2::fitting(worker.cpu_cores, worker.memory_mb).is_empty() {
        let summary = format!(
            "no type of instance that is known here has {} cores and {} MiB",
            worker.cpu_cores, worker.memory_mb
        );
        complain("cpu_cores", summary, "name types in `ec2.instance_types`");
    }
    for (number, name) in types.iter().enumerate() {
        let Some((cores, memory_mb)) = pool_ec2::size_of(name) else { continue };
        if cores < worker.cpu_cores || memory_mb < worker.memory_mb {
            let summary =
                format!("{name} has {cores} cores and {memory_mb} MiB, less than asked for");
            let help =
                "lower `cpu_cores` and `memory_mb`, which jobs ask by, or name a larger type";
            complain(&format!("ec2/instance_types/{number}"), summary, help);
        }
    }
    check_time(pool, settle, broken);
}

/// Instances take their time, and what EC2 shows of them.
fn check_time(pool: &StaticPoolConfig, settle: HumanDuration, broken: &mut Broken) {
    if pool.provisioning.timeout <= settle {
        let summary = format!(
            "`timeout` ({}) must be longer than the provider's `settle` ({settle})",
            pool.provisioning.timeout
        );
        let found = Diagnostic::error("short-timeout", summary)
            .help("raise `timeout`, or lower `settle`: what became of a lost call is known only after that");
        return broken.push(("/provisioning/timeout".to_owned(), found));
    }
    let by_ec2 = pool.health_check.kind == HealthCheckKind::Provider;
    if by_ec2 && pool.provisioning.timeout.get() < STATUS_CHECKS {
        let summary = format!(
            "EC2's status checks take minutes; a new worker has {} to pass them",
            pool.provisioning.timeout
        );
        let found = Diagnostic::warning("short-timeout", summary)
            .help("set `provisioning.timeout: 10m`, or a `health_check` of type tcp or http");
        broken.push(("/provisioning/timeout".to_owned(), found));
    }
}

fn no_provider(pool: &StaticPoolConfig, known: &[&str]) -> (String, Diagnostic) {
    let provider = pool.provider_name();
    let (pointer, summary) = match &pool.provider {
        Some(named) => ("/provider", format!("there is no provider `{named}`")),
        None => (
            "/worker_type",
            format!(
                "workers of type `{}` come from the provider `{provider}`, which is not there",
                pool.worker_type
            ),
        ),
    };
    let help = match did_you_mean(provider, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!(
            "set `provider` to one of: {}; or declare it under `providers`",
            known.join(", ")
        ),
    };
    (pointer.to_owned(), Diagnostic::error("unknown-provider", summary).help(help))
}

fn check_health(pool: &StaticPoolConfig, broken: &mut Broken) {
    let health = &pool.health_check;
    let mut complain = |field: &str, summary: String, help: &str| {
        let found = Diagnostic::error("health-check", summary).help(help);
        broken.push((format!("/health_check/{field}"), found));
    };
    let networked = matches!(health.kind, HealthCheckKind::Tcp | HealthCheckKind::Http);
    if networked && health.port.is_none() {
        complain("type", "a `tcp` or `http` check needs a `port`".into(), "add `port:`");
    }
    if !networked && health.port.is_some() {
        complain("port", "only `tcp` and `http` checks have a `port`".into(), "remove it");
    }
    if health.kind != HealthCheckKind::Http && health.path.is_some() {
        complain(
            "path",
            "only an `http` check has a `path`".into(),
            "remove it, or set `type: http`",
        );
    }
    if health.kind == HealthCheckKind::Exec && health.command.is_empty() {
        complain("type", "an `exec` check needs a `command`".into(), "add `command:`");
    }
    if health.kind != HealthCheckKind::Exec && !health.command.is_empty() {
        complain("command", "only an `exec` check has a `command`".into(), "set `type: exec`");
    }
    if health.interval.get().is_zero() {
        complain("interval", "`interval` must be longer than 0s".into(), "5s is the default");
    }
    if health.timeout.get().is_zero() {
        complain("timeout", "`timeout` must be longer than 0s".into(), "2s is the default");
    }
    if health.timeout > health.interval {
        let summary = format!(
            "`timeout` ({}) must not be longer than `interval` ({})",
            health.timeout, health.interval
        );
        complain("timeout", summary, "a probe must end before the next one starts");
    }
    if health.freshness.is_some_and(|freshness| freshness < health.interval) {
        let help = "a probe must vouch for a worker until the next one";
        complain("freshness", "`freshness` must not be shorter than `interval`".into(), help);
    }
    if health.start_period >= pool.provisioning.timeout {
        let help = "a worker must pass its check within `provisioning.timeout`";
        let summary = "`start_period` must be shorter than `provisioning.timeout`".to_owned();
        complain("start_period", summary, help);
    }
    let highest = u64::from(health.port.unwrap_or(0))
        + u64::from(health.port_step) * u64::from(pool.fixed_size.saturating_sub(1));
    if highest > u64::from(u16::MAX) {
        let summary = format!("the last slot's port would be {highest}, above 65535");
        complain("port_step", summary, "choose a lower `port` or a smaller `port_step`");
    }
}

fn check_update(pool: &StaticPoolConfig, broken: &mut Broken) {
    let surge = pool.update.max_surge.of_rounded_up(pool.fixed_size);
    let unavailable = pool.update.max_unavailable.of_rounded_down(pool.fixed_size);
    if surge == 0 && unavailable == 0 && pool.fixed_size > 0 {
        broken.push((
            "/update".to_owned(),
            Diagnostic::error(
                "no-room-to-update",
                format!(
                    "`max_surge` and `max_unavailable` come to 0 workers of {}: nothing could ever \
                     be replaced",
                    pool.fixed_size
                ),
            )
            .help("set one of them to 1 or more"),
        ));
    }
}

fn check_leases(pool: &StaticPoolConfig, broken: &mut Broken) {
    let leases = &pool.leases;
    let mut complain = |field: &str, summary: String, help: &str| {
        let found = Diagnostic::error("leases", summary).help(help);
        broken.push((format!("/leases/{field}"), found));
    };
    if leases.default_ttl.get().is_zero() {
        complain(
            "default_ttl",
            "`default_ttl` must be longer than 0s".into(),
            "10m is the default",
        );
    }
    if leases.default_ttl > leases.max_ttl {
        let summary = format!(
            "`default_ttl` ({}) must not be longer than `max_ttl` ({})",
            leases.default_ttl, leases.max_ttl
        );
        complain("default_ttl", summary, "shorten it, or raise `max_ttl`");
    }
    let one_shot = leases.reuse == Reuse::OneShot;
    if one_shot && leases.recycle.is_some() {
        let summary = "a worker that has one lease is never recycled".to_owned();
        complain("recycle", summary, "remove it, or set `reuse: reusable`");
    }
    if one_shot && leases.max_uses.is_some() {
        let summary = "a worker that has one lease has no `max_uses`".to_owned();
        complain("max_uses", summary, "remove it, or set `reuse: reusable`");
    }
    if leases.recycle.as_ref().is_some_and(|recycle| !recycle.reset && recycle.command.is_empty()) {
        let summary = "`recycle` does not say how a worker is cleaned".to_owned();
        complain("recycle", summary, "set `reset: true`, or a `command`");
    }
    if leases.recycle.as_ref().is_some_and(|recycle| recycle.timeout.get().is_zero()) {
        complain(
            "recycle/timeout",
            "`timeout` must be longer than 0s".into(),
            "60s is the default",
        );
    }
}

fn check_environment(pool: &StaticPoolConfig, broken: &mut Broken) {
    for name in pool.worker_config.environment.keys() {
        let pointer = || format!("/worker_config/environment/{}", escape(name));
        let first_is_letter = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first_is_letter || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            broken.push((
                pointer(),
                Diagnostic::error("bad-variable-name", format!("`{name}` cannot name a variable"))
                    .help("use letters, digits and underscores, with no digit first"),
            ));
        } else if name.starts_with("POOL_") {
            broken.push((
                pointer(),
                Diagnostic::error("reserved-variable", format!("`{name}` is reserved"))
                    .help("variables that start with POOL_ are set by pool itself"),
            ));
        }
    }
}
