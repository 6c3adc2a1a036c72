//! What is measured, under names that alerts can rely on.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::pool::Watcher;
use crate::pool::desk::Waiting;
use crate::state::{Ended, PoolSummary};
use crate::worker::{Phase, PoolId};

/// What all names begin with.
pub const PREFIX: &str = "pool";

/// Upper bounds in seconds: leases are promised within 10 ms.
const LATENCIES: [f64; 12] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0];
/// Upper bounds of the number of changes in a transaction.
const BATCHES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    pool: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    pool: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    pool: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCall {
    provider: String,
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfError {
    provider: String,
    call: &'static str,
    code: &'static str,
}

type Histograms = Family<OfPool, Histogram, fn() -> Histogram>;
type Share = Gauge<f64, AtomicU64>;

/// What is to be known of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its name after [`PREFIX`], without `_total` for counters and what else Prometheus adds.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// The names of its labels, with commas between them.
    pub labels: &'static str,
    /// What it measures.
    pub help: &'static str,
}

/// A registry that remembers what is in it: the other one keeps that to itself until something was measured.
struct DescribedRegistry {
    inner: Registry,
    described: Vec<Described>,
}

impl DescribedRegistry {
    fn add(
        &mut self,
        name: &'static str,
        labels: &'static str,
        help: &'static str,
        metric: impl Metric,
    ) {
        let kind = metric.metric_type().as_str().to_owned();
        self.described.push(Described { name, kind, labels, help });
        self.inner.register(name, help, metric);
    }
}

/// Everything that is measured.
pub struct Metrics {
    registry: DescribedRegistry,
    workers: Family<OfPhase, Gauge>,
    availability: Family<OfPool, Share>,
    overdue: Family<OfPool, Gauge>,
    leased: Family<OfPool, Gauge>,
    waiting: Family<OfPool, Gauge>,
    oldest: Family<OfPool, Share>,
    granted: Histograms,
    queued: Histograms,
    ended: Family<OfReason, Counter>,
    provisioning_attempts: Family<OfPool, Counter>,
    provisioning_successes: Family<OfPool, Counter>,
    probes: Family<OfResult, Counter>,
    replacements: Family<OfReason, Counter>,
    stopped: Family<OfPool, Gauge>,
    /// The pools of which that was ever told.
    told_stopped: Mutex<BTreeSet<PoolId>>,
    calls: Family<OfCall, Counter>,
    call_errors: Family<OfError, Counter>,
    batches: Histogram,
    log_bytes: Gauge,
    reload_failures: Counter,
    refused: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

fn latencies() -> Histogram {
    Histogram::new(LATENCIES)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut this = Self {
            registry: DescribedRegistry {
                inner: Registry::with_prefix(PREFIX),
                described: Vec::new(),
            },
            workers: Family::default(),
            availability: Family::default(),
            overdue: Family::default(),
            leased: Family::default(),
            waiting: Family::default(),
            oldest: Family::default(),
            granted: Family::new_with_constructor(latencies),
            queued: Family::new_with_constructor(latencies),
            ended: Family::default(),
            provisioning_attempts: Family::default(),
            provisioning_successes: Family::default(),
            probes: Family::default(),
            replacements: Family::default(),
            stopped: Family::default(),
            told_stopped: Mutex::default(),
            calls: Family::default(),
            call_errors: Family::default(),
            batches: Histogram::new(BATCHES),
            log_bytes: Gauge::default(),
            reload_failures: Counter::default(),
            refused: Gauge::default(),
        };
        this.register();
        this
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        let help = "Workers by phase";
        r.add("workers", "pool, phase", help, self.workers.clone());
        let help = "Ready workers as a share of fixed_size";
        r.add("availability_ratio", "pool", help, self.availability.clone());
        let help = "Workers that are in their phase for longer than they should be";
        r.add("workers_overdue", "pool", help, self.overdue.clone());
        r.add("leases_open", "pool", "Open leases", self.leased.clone());
        r.add("queue_length", "pool", "Requests that wait for workers", self.waiting.clone());
        let help = "For how long the first request has waited";
        r.add("queue_oldest_wait_seconds", "pool", help, self.oldest.clone());
        let help = "From a request for workers to its leases, waiting included";
        r.add("lease_latency_seconds", "pool", help, self.granted.clone());
        let help = "Waiting in the line alone, of those requests that had to";
        r.add("queue_wait_seconds", "pool", help, self.queued.clone());
        let help = "Leases by how they ended";
        r.add("leases_ended", "pool, reason", help, self.ended.clone());
        let help = "Attempts to create a worker";
        r.add("provisioning_attempts", "pool", help, self.provisioning_attempts.clone());
        let help = "Workers that came and passed their health check";
        r.add("provisioning_successes", "pool", help, self.provisioning_successes.clone());
        r.add("probes", "pool, result", "Health probes by result", self.probes.clone());
        let help = "Workers that were replaced, by reason";
        r.add("replacements", "pool, reason", help, self.replacements.clone());
        let help = "1 while too many workers are unhealthy for any to be replaced";
        r.add("remediation_stopped", "pool", help, self.stopped.clone());
        r.add("provider_calls", "provider, call", "Calls of providers", self.calls.clone());
        let help = "Calls that failed, by error";
        r.add("provider_errors", "provider, call, code", help, self.call_errors.clone());
        r.add("batch_size", "", "Changes in one transaction", self.batches.clone());
        r.add("state_log_bytes", "", "Size of the write-ahead log", self.log_bytes.clone());
        let help = "Config files that were changed and refused";
        r.add("config_reload_failures", "", help, self.reload_failures.clone());
        let help = "1 while the server does not do as its files say";
        r.add("config_refused", "", help, self.refused.clone());
    }

    /// Returns everything that is measured, whether or not there was anything to measure yet.
    pub fn described(&self) -> &[Described] {
        &self.registry.described
    }

    /// Writes everything, with the pools as they are now.
    pub fn encode(
        &self,
        summaries: &[PoolSummary],
        waiting: impl Fn(&PoolId) -> Waiting,
        (log_bytes, refused): (u64, bool),
    ) -> String {
        // A pool that is gone is not told of any more.
        self.workers.clear();
        self.availability.clear();
        self.overdue.clear();
        self.leased.clear();
        self.waiting.clear();
        self.oldest.clear();
        let mut told = self.told_stopped.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|pool| {
            let is_there = summaries.iter().any(|summary| summary.pool == *pool);
            if !is_there {
                self.stopped.remove(&OfPool { pool: pool.to_string() });
            }
            is_there
        });
        drop(told);
        for summary in summaries {
            let pool = summary.pool.to_string();
            for phase in Phase::ALL.into_iter().filter(|phase| *phase != Phase::Deleted) {
                let label = OfPhase { pool: pool.clone(), phase: phase.as_str() };
                let count = summary.phases.get(&phase).copied().unwrap_or(0);
                self.workers.get_or_create(&label).set(i64::from(count));
            }
            let label = OfPool { pool };
            self.availability.get_or_create(&label).set(summary.availability());
            self.overdue.get_or_create(&label).set(i64::from(summary.overdue));
            self.leased.get_or_create(&label).set(i64::from(summary.leased));
            let waits = waiting(&summary.pool);
            let requests = i64::try_from(waits.requests).unwrap_or(i64::MAX);
            self.waiting.get_or_create(&label).set(requests);
            self.oldest.get_or_create(&label).set(waits.oldest.as_secs_f64());
        }
        self.refused.set(i64::from(refused));
        self.log_bytes.set(i64::try_from(log_bytes).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _written =
            prometheus_client::encoding::text::encode(&mut text, &self.registry.inner).is_ok();
        text
    }

    /// Counts the changes of one transaction.
    pub fn batch(&self, jobs: usize) {
        self.batches.observe(f64::from(u32::try_from(jobs).unwrap_or(u32::MAX)));
    }

    /// Counts a changed config that was refused.
    pub fn reload_failed(&self) {
        self.reload_failures.inc();
    }

    /// Counts a provider call, and its error if it failed.
    pub fn call(&self, provider: &str, call: &'static str, error: Option<&'static str>) {
        let provider = provider.to_owned();
        self.calls.get_or_create(&OfCall { provider: provider.clone(), call }).inc();
        if let Some(code) = error {
            self.call_errors.get_or_create(&OfError { provider, call, code }).inc();
        }
    }
}

impl Watcher for Metrics {
    fn granted(&self, pool: &PoolId, waited: Duration) {
        let label = OfPool { pool: pool.to_string() };
        self.granted.get_or_create(&label).observe(waited.as_secs_f64());
    }

    fn queued(&self, pool: &PoolId, waited: Duration) {
        let label = OfPool { pool: pool.to_string() };
        self.queued.get_or_create(&label).observe(waited.as_secs_f64());
    }

    fn ended(&self, ended: &Ended) {
        let (pool, reason) = (ended.name.pool.to_string(), ended.ending.as_str().to_owned());
        self.ended.get_or_create(&OfReason { pool, reason }).inc();
    }

    fn probed(&self, pool: &PoolId, passed: bool) {
        let result = if passed { "passed" } else { "failed" };
        self.probes.get_or_create(&OfResult { pool: pool.to_string(), result }).inc();
    }

    fn provisioning(&self, pool: &PoolId, succeeded: Option<bool>) {
        let label = OfPool { pool: pool.to_string() };
        match succeeded {
            None => {
                // Both from the first attempt on: nothing is not none to those who compare them.
                drop(self.provisioning_successes.get_or_create(&label));
                self.provisioning_attempts.get_or_create(&label).inc()
            }
            Some(true) => self.provisioning_successes.get_or_create(&label).inc(),
            Some(false) => 0,
        };
    }

    fn replaced(&self, pool: &PoolId, reason: &str) {
        let label = OfReason { pool: pool.to_string(), reason: reason.to_owned() };
        self.replacements.get_or_create(&label).inc();
    }

    fn remediation(&self, pool: &PoolId, stopped: bool) {
        let label = OfPool { pool: pool.to_string() };
        self.told_stopped.lock().unwrap_or_else(PoisonError::into_inner).insert(pool.clone());
        self.stopped.get_or_create(&label).set(i64::from(stopped));
    }
}
