//! Workers that any executable provides: a program in any language is a provider.
//!
//! Each call runs the executable once: one JSON request on its standard input, JSON lines on its standard output
//! (progress, then one answer), logs on its standard error. [`protocol`] holds the words of both sides, and is
//! published as `schema/provider-protocol.schema.json`; `examples/providers` holds two executables.
//!
//! | module       | holds                                                                      |
//! |--------------|----------------------------------------------------------------------------|
//! | `config`     | what a pool file says of such a provider                                    |
//! | [`protocol`] | requests and answers, as types                                              |
//! | [`warden`]   | the step between us and the executable: it ends what takes too long          |
//! | `call`       | one call: what is sent, what is heard, and what that comes to                |
//! | `logs`       | what executables print on standard error, kept for each operation            |
//! | `unstarted`  | why an executable could not be started                                       |
//! | `shared`     | one listing for all who want one at the same time                           |
//! | `provider`   | the contract's methods as calls                                             |
//!
//! Linux only. Trusts nothing that an executable answers; does not retry, and knows no engine.

mod call;
mod config;
mod logs;
pub mod protocol;
mod provider;
mod shared;
mod unstarted;
pub mod warden;

pub use config::Config;
pub use provider::{ExecProvider, OpenError, ReadSecret, Settings};
