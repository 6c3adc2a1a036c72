//! The exit codes: one enum, documented in `--help` and the README.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: an error; usage errors included.
    Error,
    /// 2: there are changes (`plan --detailed-exitcode`).
    Changes,
    /// 3: the plan is stale.
    Stale,
    /// 4: a lock is held by somebody else.
    Locked,
    /// 5: partly applied; run again.
    Partial,
    /// 6: refused by a guard.
    Refused,
    /// 130: interrupted; run again to go on.
    Interrupted,
    /// The code of the command that a lease was held for (`lease run`).
    Command(u8),
}

impl Exit {
    /// Every code of `pool`'s own, and what it means.
    pub const MEANINGS: [(u8, &'static str); 8] = [
        (0, "done"),
        (1, "error; wrong usage included"),
        (2, "there are changes (plan --detailed-exitcode)"),
        (3, "the plan is stale"),
        (4, "a lock is held by somebody else"),
        (5, "partly applied; run again"),
        (6, "refused by a guard"),
        (130, "interrupted; run again to go on"),
    ];

    /// Returns the number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Error => 1,
            Self::Changes => 2,
            Self::Stale => 3,
            Self::Locked => 4,
            Self::Partial => 5,
            Self::Refused => 6,
            Self::Interrupted => 130,
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
