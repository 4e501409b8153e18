//! A step of the demo: what was done, what came of it, and whether that is as it should be.

use serde_json::{Value, json};

use crate::audit::record;
use crate::failure::Failure;
use crate::output::{Format, Output, Style, scrubbed};

/// Where lines are broken: a terminal of 80 columns less the margin.
const WIDTH: usize = 100;
/// The margin that labels stand in.
const MARGIN: usize = 10;
/// What a record's further lines stand behind.
const INDENT: &str = "      ";
/// Longer texts are cut: this is a demo.
const TEXT_CHARS_MAX: usize = 600;

/// One step.
#[derive(Debug)]
pub(super) struct Step {
    title: &'static str,
    about: String,
    shown: Vec<(&'static str, String)>,
    records: Vec<Vec<u8>>,
    checks: Vec<(String, Result<(), String>)>,
}

impl Step {
    pub(super) fn new(title: &'static str, about: impl Into<String>) -> Self {
        Self { title, about: about.into(), shown: Vec::new(), records: Vec::new(), checks: Vec::new() }
    }

    /// Something to be seen, with a label of one word.
    pub(super) fn show(&mut self, label: &'static str, text: impl AsRef<str>) {
        self.shown.push((label, text.as_ref().to_owned()));
    }

    /// What the audit log says of it.
    pub(super) fn records(&mut self, records: Vec<Vec<u8>>) {
        self.records = records;
    }

    /// Something that has to be so; `found` is printed when it is not.
    pub(super) fn check(&mut self, claim: impl Into<String>, is_so: bool, found: impl FnOnce() -> String) {
        self.checks.push((claim.into(), if is_so { Ok(()) } else { Err(found()) }));
    }

    /// As [`Self::check`], for two values that have to be equal.
    pub(super) fn check_eq<T: PartialEq + std::fmt::Debug>(
        &mut self,
        claim: impl Into<String>,
        found: T,
        wanted: T,
    ) {
        let is_so = found == wanted;
        self.check(claim, is_so, || format!("{found:?} in place of {wanted:?}"));
    }

    /// The records as JSON; a line that is none is null.
    pub(super) fn parsed_records(&self) -> Vec<Value> {
        self.records.iter().map(|line| serde_json::from_slice(line).unwrap_or_default()).collect()
    }

    /// How many records have this value in this field.
    pub(super) fn count_records(&self, field: &str, value: impl Into<Value>) -> usize {
        let value = value.into();
        self.parsed_records().iter().filter(|record| record.get(field) == Some(&value)).count()
    }

    pub(super) fn checks(&self) -> usize {
        self.checks.len()
    }

    pub(super) fn wrong(&self) -> usize {
        self.checks.iter().filter(|(_, result)| result.is_err()).count()
    }

    pub(super) fn print(&self, number: usize, of: usize, output: &mut Output) -> Result<(), Failure> {
        match output.format() {
            Format::Json => output.json(&self.json(number))?,
            Format::Text => self.text(number, of, output)?,
        }
        Ok(())
    }

    fn json(&self, number: usize) -> Value {
        let shown: Vec<Value> =
            self.shown.iter().map(|(label, text)| json!({ "what": label, "text": text })).collect();
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|(claim, result)| json!({ "claim": claim, "ok": result.is_ok(), "found": result.as_ref().err() }))
            .collect();
        json!({
            "step": number, "title": self.title, "shown": shown, "audit": self.parsed_records(), "checks": checks,
        })
    }

    fn text(&self, number: usize, of: usize, output: &mut Output) -> Result<(), Failure> {
        output.line("")?;
        output.line(output.paint(Style::Strong, &format!("{number}/{of}  {}", self.title)))?;
        labelled("", &self.about, Style::Faint, output)?;
        for (label, text) in &self.shown {
            labelled(label, &scrubbed_lines(text), Style::Plain, output)?;
        }
        for (place, line) in self.records.iter().enumerate() {
            recorded(if place == 0 { "audit" } else { "" }, line, output)?;
        }
        let right: Vec<&str> = self
            .checks
            .iter()
            .filter(|(_, result)| result.is_ok())
            .map(|(claim, _)| claim.as_str())
            .collect();
        let mut mark = marked("ok", Style::Good, output);
        for line in broken(&right.join("; ")) {
            output.line(format_args!("{mark} {line}"))?;
            mark = margin("", output);
        }
        for (claim, result) in &self.checks {
            if let Err(found) = result {
                let mark = marked("WRONG", Style::Bad, output);
                output.line(format_args!("{mark} {claim}: {}", scrubbed(found)))?;
            }
        }
        Ok(())
    }
}

/// A label in the margin, and a text beside it, its lines broken where they are too long.
pub(super) fn labelled(label: &str, text: &str, style: Style, output: &mut Output) -> Result<(), Failure> {
    for (place, line) in broken(text).iter().enumerate() {
        let margin = margin(if place == 0 { label } else { "" }, output);
        output.line(format_args!("{margin} {}", output.paint(style, line)))?;
    }
    Ok(())
}

/// A record beside its label, broken between its parts.
fn recorded(label: &str, line: &[u8], output: &mut Output) -> Result<(), Failure> {
    let mut shown = margin(label, output);
    let mut width = 0;
    // The day is known to who runs the demo.
    for part in record::parts(line, output).into_iter().skip(1) {
        if width > 0 && width + 1 + part.width > WIDTH {
            output.line(&shown)?;
            shown = margin("", output);
            shown.push_str(INDENT);
            width = INDENT.len();
        }
        shown.push(' ');
        shown.push_str(&part.text);
        width += 1 + part.width;
    }
    output.line(shown)?;
    Ok(())
}

fn margin(label: &str, output: &Output) -> String {
    marked(label, Style::Faint, output)
}

fn marked(label: &str, style: Style, output: &Output) -> String {
    if label.is_empty() {
        return " ".repeat(MARGIN);
    }
    output.paint(style, &format!("{label:>MARGIN$}"))
}

fn scrubbed_lines(text: &str) -> String {
    text.lines().map(scrubbed).collect::<Vec<_>>().join("\n")
}

/// The text's lines, broken between words where there are any.
fn broken(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let cut = text.char_indices().nth(TEXT_CHARS_MAX).and_then(|(place, _)| text.get(..place));
    let shown = cut.map_or_else(|| text.to_owned(), |cut| format!("{cut} ... ({} bytes)", text.len()));
    for line in shown.lines() {
        let mut rest = line;
        while let Some((limit, _)) = rest.char_indices().nth(WIDTH) {
            let head = rest.get(..limit).unwrap_or(rest);
            let at = head.rfind([' ', ',']).map_or(limit, |space| space + 1);
            lines.push(rest.get(..at).unwrap_or(rest).trim_end().to_owned());
            rest = rest.get(at..).unwrap_or_default();
        }
        lines.push(rest.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{WIDTH, broken};

    #[test]
    fn long_lines_are_broken_and_long_texts_cut() {
        let words = "word ".repeat(50);
        assert!(broken(&words).iter().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(broken(&words).join(" ").split_whitespace().count(), 50);
        assert_eq!(broken(&"é".repeat(WIDTH + 1)), ["é".repeat(WIDTH), "é".to_owned()]);
        assert!(broken(&"x".repeat(5_000)).concat().ends_with("... (5000 bytes)"));
    }
}
