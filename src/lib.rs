//! `pool` keeps a fixed number of workers ready, as YAML or JSON files say.
//!
//! Text becomes a desired state; a pure function compares it with what is recorded and what is observed,
//! and yields a plan; a thin shell carries the plan out. The command line and [`StaticPoolManager`] are
//! two doors to the same rooms. `ARCHITECTURE.md` has the bird's eye view and the decisions.
//!
//! ```text
//! config text ─▶ StaticPoolConfig ─▶ DesiredPool ──┐
//! state (SQLite) ─────────────────▶ RecordedPool ──┼─▶ plan(.., now) ─▶ Plan ─▶ render
//! provider.list(owner) ───────────▶ Observation ───┘                     │
//!                                                                       ▼
//!             event ◀─ record result ◀─ provider call ◀─ record intent ◀─ apply
//! ```
//!
//! Modules in reading order; each may use only those above it, and a test holds the exact table:
//!
//! | module      | decides or holds                                                    |
//! |-------------|---------------------------------------------------------------------|
//! | [`worker`]  | the words of the domain: identity, phases, addresses                  |
//! | [`clock`]   | the only reads of time and entropy                                    |
//! | [`config`]  | what the files and the environment ask for                            |
//! | [`desired`] | what one pool should be                                  (pure)       |
//! | [`plan`]    | what to do, in which order, and why                      (pure)       |
//! | [`health`]  | probe results and thresholds to a verdict                (pure)       |
//! | [`lease`]   | who may have which worker                                (pure)       |
//! | [`state`]   | the record: intents, results, locks, events; SQL inside               |
//! | [`probe`]   | runs one health probe                                                 |
//! | [`apply`]   | carries out a plan                                                    |
//! | [`pool`]    | observe → plan → check → apply; `ResourcePool`; provider registry      |
//! | [`render`]  | data to text and JSON                                                 |
//! | [`serve`]   | the HTTP server                                                       |
//! | [`cli`]     | the command line                                                      |
//!
//! Where things go: a new action in `plan::Action`, `plan::slot` and `apply::step`; a new flag in its
//! command's file under `cli`; a new column in a new file under `state/migrations`; a new field of a pool in
//! `config::types` or `config::policy`, and in the table of `plan::compare`.

pub mod apply;
pub mod cli;
pub mod clock;
pub mod config;
pub mod desired;
pub mod health;
pub mod lease;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod render;
pub mod serve;
pub mod state;
pub mod worker;

pub use config::{
    HealthCheckConfig, ProvisioningConfig, StaticPoolConfig, StaticWorkerConfig, WorkerType,
};
pub use pool::{ResourcePool, StaticPoolManager, StaticPoolState};
pub use pool_provider::WorkerProvider;
