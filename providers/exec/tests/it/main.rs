//! Executables as providers: the examples keep the contract, and whatever others do has a clear outcome.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod endings;
mod examples;
mod ground;
mod liars;
