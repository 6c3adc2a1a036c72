//! The only door to the terminal. A reader that goes away (`pool plan | head`) ends the output quietly; a progress bar
//! steps aside for every other line, so that neither is written into the other.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use indicatif::ProgressBar;
use tracing_subscriber::fmt::MakeWriter;

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
    /// What stands on the terminal's last line.
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Printer {
    /// Builds a door for text without any look.
    pub(crate) fn plain() -> Self {
        Self::new(Look::PLAIN, Look::PLAIN, false)
    }

    /// Builds the door.
    pub(crate) fn new(look: Look, error_look: Look, quiet: bool) -> Self {
        Self { look, error_look, quiet, failure: Arc::default(), bar: Arc::default() }
    }

    /// Keeps `bar` on the terminal's last line from now on.
    pub(crate) fn begin_bar(&self, bar: ProgressBar) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    /// Has the bar say something else. One that was taken off stays off, whoever still has something to say.
    pub(crate) fn redraw_bar(&self, text: String) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.set_message(text);
            bar.tick();
        }
    }

    /// Takes the bar off the terminal.
    pub(crate) fn end_bar(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }

    fn beside_bar<T>(&self, write: impl FnOnce() -> T) -> T {
        match &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Writes data.
    pub(crate) fn data(&self, text: &str) {
        let written = self.beside_bar(|| {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        match written {
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
    pub(crate) fn error(&self, text: &str) {
        self.beside_bar(|| {
            let _nobody_reads = io::stderr().lock().write_all(text.as_bytes()).is_err();
        });
    }
}

/// Where log lines go: whole ones, one at a time.
pub(crate) struct LogLines(Printer);

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.error(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Printer {
    type Writer = LogLines;

    fn make_writer(&'a self) -> LogLines {
        LogLines(self.clone())
    }
}
