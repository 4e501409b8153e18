//! Log lines on stderr: one an event, as text or as JSON, without control bytes.

use crate::clock;
use env_logger::{Builder, Target};
use log::{LevelFilter, Record};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object.
    Json,
    /// For people.
    Text,
}

/// Begins to log. To be called once in a process.
pub fn init(level: LevelFilter, format: Format) {
    let write = move |out: &mut env_logger::fmt::Formatter, record: &Record<'_>| line(out, record, format);
    Builder::new().filter_level(level).target(Target::Stderr).format(write).init();
}

fn line(out: &mut impl Write, record: &Record<'_>, format: Format) -> io::Result<()> {
    let mut time = Vec::with_capacity(32);
    clock::wall().write_rfc3339(&mut time);
    let time = String::from_utf8_lossy(&time);
    let level = record.level();
    let message = record.args().to_string();
    let message = scrubbed(&message);
    match format {
        Format::Text => writeln!(out, "{time} {level:<5} {message}"),
        Format::Json => {
            let (level, target) = (level.as_str().to_ascii_lowercase(), record.target());
            let message = serde_json::Value::from(message);
            writeln!(
                out,
                r#"{{"timestamp":"{time}","level":"{level}","target":"{target}","message":{message}}}"#
            )
        }
    }
}

/// The text with its control characters spelt out. This is the only place where text from elsewhere becomes a line, so
/// none can end a line, begin another, or speak to a terminal.
pub(crate) fn scrubbed(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(clean, "{}", c.escape_default());
        } else {
            clean.push(c);
        }
    }
    Cow::Owned(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    fn logged(message: &str, format: Format) -> String {
        let mut out = Vec::new();
        let args = format_args!("{message}");
        let record = Record::builder().level(Level::Warn).target("carapace").args(args).build();
        line(&mut out, &record, format).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_one_line_whatever_is_in_it() {
        let nasty = "a\nb\r\u{1b}[31m\u{7f}\u{85}\0 é \"quoted\" \\n";
        let text = logged(nasty, Format::Text);
        let (_, message) = text.split_once("WARN  ").unwrap();
        assert_eq!(message, "a\\nb\\r\\u{1b}[31m\\u{7f}\\u{85}\\u{0} é \"quoted\" \\n\n");
        let json = logged(nasty, Format::Json);
        assert!(!json.trim_end_matches('\n').chars().any(char::is_control));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["level"], "warn");
        assert_eq!(value["target"], "carapace");
        assert_eq!(value["message"], "a\\nb\\r\\u{1b}[31m\\u{7f}\\u{85}\\u{0} é \"quoted\" \\n");
    }

    #[test]
    fn lines_begin_with_the_time() {
        let text = logged("x", Format::Text);
        let time = text.split(' ').next().unwrap();
        assert_eq!((time.len(), time.as_bytes()[10], time.as_bytes()[26]), (27, b'T', b'Z'));
    }
}
