//! How text may look: colour and width, decided by whoever owns the terminal.

use console::Style;

/// Whether text may be coloured, and how wide a line may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Whether escape codes are welcome.
    pub colour: bool,
    /// Columns.
    pub width: usize,
}

impl Look {
    /// Plain text, 80 columns.
    pub const PLAIN: Self = Self { colour: false, width: 80 };

    fn paint(self, style: Style, text: &str) -> String {
        if self.colour { style.force_styling(true).apply_to(text).to_string() } else { text.into() }
    }

    /// What comes.
    pub fn added(self, text: &str) -> String {
        self.paint(Style::new().green(), text)
    }

    /// What changes.
    pub fn changed(self, text: &str) -> String {
        self.paint(Style::new().yellow(), text)
    }

    /// What goes, and what is wrong.
    pub fn removed(self, text: &str) -> String {
        self.paint(Style::new().red(), text)
    }

    /// What to read first.
    pub fn strong(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    /// What can be skipped.
    pub fn faint(self, text: &str) -> String {
        self.paint(Style::new().dim(), text)
    }
}
