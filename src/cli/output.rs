//! The only door to the terminal. A reader that goes away (`pool plan | head`) ends the output quietly.

use std::io::{self, Write as _};
use std::sync::{Arc, OnceLock};

use crate::render::Look;

/// Writes to standard output and standard error.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    /// How text on standard output may look.
    pub(crate) look: Look,
    /// How text on standard error may look.
    pub(crate) error_look: Look,
    /// Whether only errors and data are wanted.
    pub(crate) quiet: bool,
    /// Why data could not be written, if it could not.
    failure: Arc<OnceLock<String>>,
}

impl Printer {
    /// Builds the door.
    pub(crate) fn new(look: Look, error_look: Look, quiet: bool) -> Self {
        Self { look, error_look, quiet, failure: Arc::default() }
    }

    /// Writes data.
    pub(crate) fn data(&self, text: &str) {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                let _told_before = self.failure.set(error.to_string()).is_err();
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Returns why data could not be written: an empty backup must not look like success.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Writes one JSON document, indented.
    pub(crate) fn json(&self, value: &serde_json::Value) {
        self.data(&format!("{value:#}\n"));
    }

    /// Writes one JSON document on one line.
    pub(crate) fn json_line(&self, value: &serde_json::Value) {
        self.data(&format!("{value}\n"));
    }

    /// Writes a message that is not data.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.error(&format!("{text}\n"));
        }
    }

    /// Writes what went wrong.
    #[expect(clippy::unused_self, reason = "whoever may print was given a printer")]
    pub(crate) fn error(&self, text: &str) {
        let _nobody_reads = io::stderr().lock().write_all(text.as_bytes()).is_err();
    }
}
