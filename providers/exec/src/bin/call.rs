//! The warden step as a program of its own, for those who embed the provider in another binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    pool_exec::warden::run()
}
