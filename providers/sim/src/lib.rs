//! A simulated cloud: for faults and scale, never in place of a real provider where one can run.
//!
//! Its workers exist only in a [`Cloud`], which lives in memory or in a file that several processes
//! share. [`Settings`] give it latency, capacity, quota, rate limits, failures and late effects; every
//! decision is drawn from a seed, so that a run can be repeated. Without settings it has none of these.
//!
//! | module      | holds                                                           |
//! |-------------|-----------------------------------------------------------------|
//! | `cloud`     | the workers, the call counts; in memory or in a log file         |
//! | `config`    | what a pool file says of such a provider                         |
//! | `settings`  | the knobs, and the seeded draw                                   |
//! | `provider`  | the provider trait over both                                     |

mod cloud;
mod config;
mod provider;
mod settings;

pub use cloud::{Call, Cloud, SimWorker};
pub use config::Config;
pub use provider::SimProvider;
pub use settings::{CallFaults, RateLimit, Settings};
