//! The one test binary: everything that needs more than one module, a process or a file.
//!
//! | module        | proves                                                      |
//! |---------------|-------------------------------------------------------------|
//! | `crash`       | a run killed at any point is finished by the next one         |
//! | `tidy`        | the house rules that no compiler checks                       |

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod crash;
mod local;
mod sandbox;
mod schema;
mod state;
mod support;
mod tidy;
mod transcripts;
