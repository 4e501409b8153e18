//! Everything that is printed goes through here: format, colour, and no control byte of a peer's.

use std::fmt::{self, Write as _};
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use clap::ValueEnum;
use serde_json::Value;

/// How a command prints what it found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// How a piece of text is to stand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// As it should be.
    Good,
    /// Refused, or wrong.
    Bad,
    /// Worth a look.
    Odd,
    /// Less important than the rest.
    Faint,
    /// A heading.
    Strong,
    /// As any other.
    Plain,
}

/// Standard output, buffered.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    is_coloured: bool,
    out: BufWriter<StdoutLock<'static>>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let stdout = io::stdout();
        let is_coloured = format == Format::Text && stdout.is_terminal() && wants_colour();
        Self { format, is_coloured, out: BufWriter::with_capacity(64 * 1024, stdout.lock()) }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// A line of text.
    pub(crate) fn line(&mut self, line: impl fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    /// Bytes that are a line, with their line end.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// A JSON value as a line.
    pub(crate) fn json(&mut self, value: &Value) -> io::Result<()> {
        self.line(value)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The text as it is to be printed: coloured where there are colours.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Good => "32",
            Style::Bad => "31",
            Style::Odd => "33",
            Style::Faint => "2",
            Style::Strong => "1",
            Style::Plain => return text.to_owned(),
        };
        if self.is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn wants_colour() -> bool {
    // NO_COLOR counts when it is set and not empty (no-color.org).
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Says on standard error what went wrong.
pub(crate) fn complain(what: impl fmt::Display) {
    // Nobody is left to be told when this fails.
    let _ = writeln!(io::stderr(), "carapace-debug: {what}");
}

/// Text that came from elsewhere, with what could move the cursor or hide something made visible.
pub(crate) fn scrubbed(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        let is_bidi =
            matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || is_bidi {
            // Writing to a string does not fail.
            let _ = write!(clean, "{}", c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::scrubbed;

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(scrubbed("a\x1b[31mb\nc\u{202e}d é"), "a\\u{1b}[31mb\\nc\\u{202e}d é");
    }
}
