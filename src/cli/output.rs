//! The only door to the terminal. A reader that goes away (`pool plan | head`) ends the output quietly.

use std::io::{self, Write as _};

use crate::render::Look;

/// Writes to standard output and standard error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    /// How text on standard output may look.
    pub look: Look,
    /// How text on standard error may look.
    pub error_look: Look,
    /// Whether only errors and data are wanted.
    pub quiet: bool,
}

#[expect(clippy::unused_self, reason = "whoever may print was given a printer")]
impl Printer {
    /// Writes data.
    pub(super) fn data(self, text: &str) {
        let mut out = io::stdout().lock();
        let _reader_may_be_gone =
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err();
    }

    /// Writes one JSON document, indented.
    pub(super) fn json(self, value: &serde_json::Value) {
        self.data(&format!("{value:#}\n"));
    }

    /// Writes one JSON document on one line.
    pub(super) fn json_line(self, value: &serde_json::Value) {
        self.data(&format!("{value}\n"));
    }

    /// Writes a message that is not data.
    pub(super) fn note(self, text: &str) {
        if !self.quiet {
            self.error(&format!("{text}\n"));
        }
    }

    /// Writes what went wrong.
    pub(super) fn error(self, text: &str) {
        let _nobody_reads = io::stderr().lock().write_all(text.as_bytes()).is_err();
    }
}
