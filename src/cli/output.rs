//! The only door to the terminal. A reader that goes away (`pool plan | head`) ends the output quietly; a progress bar
//! steps aside for every other line, so that neither is written into the other.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use crate::render::Look;

/// Back to the beginning of a line, which is empty then.
const REWIND: &str = "\r\u{1b}[2K";

/// What stands on the terminal's last line.
#[derive(Debug, Default, PartialEq, Eq)]
enum Bar {
    #[default]
    None,
    Shown(String),
    Over,
}

fn say(text: &str) {
    let mut out = io::stderr().lock();
    let _nobody_reads = out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err();
}

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
    /// How a run goes, as long as it does.
    bar: Arc<Mutex<Bar>>,
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

    /// Shows `text` on the terminal's last line, in place of what it said before.
    pub(crate) fn show_bar(&self, text: &str) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if *bar != Bar::Over {
            // Without wrapping: in a window that was made narrower a second line would stay behind.
            let text = format!("\u{1b}[?7l{text}\u{1b}[?7h");
            say(&format!("{REWIND}{text}"));
            *bar = Bar::Shown(text);
        }
    }

    /// Takes the bar off the terminal.
    pub(crate) fn clear_bar(&self) {
        self.replace_bar(Bar::None);
    }

    /// Takes the bar off the terminal for good, whoever still has something to say.
    pub(crate) fn end_bar(&self) {
        self.replace_bar(Bar::Over);
    }

    fn replace_bar(&self, next: Bar) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Bar::Shown(_) = std::mem::replace(&mut *bar, next) {
            say(REWIND);
        }
    }

    fn beside_bar<T>(&self, write: impl FnOnce() -> T) -> T {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        let Bar::Shown(text) = &*bar else { return write() };
        say(REWIND);
        let written = write();
        say(text);
        written
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
        self.beside_bar(|| say(text));
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
