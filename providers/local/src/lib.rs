//! Workers that are processes on this machine: the embedded default provider.
//!
//! A worker is one process, in a session of its own, that outlives whoever created it. Nothing
//! supervises it. It is identified by process id *and* start time, which its launcher wrote into an
//! exclusive claim before it executed the worker's program ([`launch`]), and it is found again by that
//! claim or by the tags in its environment, whichever still tells (`find`).
//!
//! | module     | holds                                                             |
//! |------------|-------------------------------------------------------------------|
//! | [`claim`]  | the files that make an attempt exclusive and remember its process   |
//! | `config`   | what a pool file says of such a provider                            |
//! | [`launch`] | the step between us and the worker's program                        |
//! | `ends`     | telling when a process ends                                         |
//! | `find`     | which workers run, from claims and from `/proc`                     |
//! | `proc`     | what `/proc` says of one process                                    |
//! | `stop`     | SIGTERM, grace, SIGKILL, for a worker and what it started           |
//! | `limits`   | control groups, where the system lets us                            |
//!
//! Linux only. Does not restart what dies: that is the reconciler's decision.

pub mod claim;
mod config;
mod ends;
mod find;
pub mod launch;
mod limits;
mod proc;
mod provider;
mod stop;

pub use config::Config;
pub use provider::{LocalProvider, Settings};
