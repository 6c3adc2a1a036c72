//! The one test binary: everything that needs more than one module, a process or a file.
//!
//! | module        | proves                                                      |
//! |---------------|-------------------------------------------------------------|
//! | `api`         | the HTTP API without a socket                                    |
//! | `crash`       | a run killed at any point is finished by the next one         |
//! | `desk`        | who gets a lease when, and what its end does                     |
//! | `embedded`    | `StaticPoolManager` as a library                                |
//! | `engines`     | one scenario on every provider with real workers                 |
//! | `executables` | `exec` providers: killed runs, limits, places, servers without them |
//! | `faults`      | what a run makes of full disks, lies, silence                  |
//! | `healing`     | what a server does when workers break                            |
//! | `history`     | what everybody was told under kills and faults can all be true     |
//! | `limits`      | how much is asked of a provider                                  |
//! | `local`       | real processes, with the real binary                            |
//! | `model`       | leases against a model                                           |
//! | `reached`     | how providers are reached, and who is concerned when that changes |
//! | `reports`     | what users reported                                             |
//! | `rolling`     | apply and changing files beside a server                         |
//! | `serve`       | the real server, its clients, and what survives it                |
//! | `state`       | what is wrong with a state file is said before any call         |
//! | `schema`      | the published schema, the examples, the README's tables          |
//! | `transcripts` | what people see: `tests/cases`                                   |
//! | `tidy`        | the house rules that no compiler checks                          |

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;
mod attempts;
mod completions;
mod crash;
mod credentials;
mod deploying;
mod desk;
mod digests;
mod docs;
mod ec2;
mod editors;
mod embedded;
mod engines;
mod executables;
mod expiry;
mod faults;
mod formats;
mod healing;
mod history;
mod language_server;
mod limits;
mod local;
mod model;
mod pipelines;
mod probing;
mod reached;
mod reference;
mod reports;
mod rolling;
mod sandbox;
mod schema;
mod serve;
mod state;
mod support;
mod terminals;
mod tidy;
mod transcripts;
mod trials;
