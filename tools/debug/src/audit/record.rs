//! A record of the audit log: enough of it to choose by, and all of it to print.

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::output::{Output, Style, scrubbed};

/// The fields that records are chosen by, unparsed: most records of a large file are passed over.
#[derive(Deserialize)]
struct Chosen<'a> {
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    tool: Option<&'a RawValue>,
    #[serde(borrow)]
    action_type: Option<&'a RawValue>,
    #[serde(borrow)]
    policy_result: Option<&'a RawValue>,
    #[serde(borrow)]
    client: Option<&'a RawValue>,
}

/// Which records are wanted.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) tool: Option<String>,
    pub(super) result: Option<String>,
    pub(super) action: Option<String>,
    pub(super) client: Option<String>,
    pub(super) since: Option<SystemTime>,
    pub(super) until: Option<SystemTime>,
}

/// What a filter says of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// Not wanted, and older than anything wanted.
    Older,
    /// Not wanted, and newer than anything wanted.
    Newer,
    /// Not wanted.
    Other,
    /// Wanted.
    Wanted,
}

impl Filter {
    pub(super) fn judge(&self, line: &[u8]) -> Match {
        let Ok(line) = std::str::from_utf8(line) else { return Match::Other };
        let texts = [&self.tool, &self.result, &self.action, &self.client];
        // Cheaper to look for than to parse; but only parsing says that a record is older than all that are wanted.
        let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let is_absent = |text: &String| is_plain(text) && !line.contains(text.as_str());
        if self.since.is_none() && texts.into_iter().flatten().any(is_absent) {
            return Match::Other;
        }
        let Ok(chosen) = serde_json::from_str::<Chosen<'_>>(line) else { return Match::Other };
        if self.since.is_some() || self.until.is_some() {
            let Some(time) = chosen.timestamp.and_then(time) else { return Match::Other };
            if self.since.is_some_and(|since| time < since) {
                return Match::Older;
            }
            if self.until.is_some_and(|until| time > until) {
                return Match::Newer;
            }
        }
        let fits = |wanted: &Option<String>, raw: Option<&RawValue>, fits: fn(&RawValue, &str) -> bool| {
            wanted.as_ref().is_none_or(|wanted| raw.is_some_and(|raw| fits(raw, wanted)))
        };
        let is_wanted = fits(&self.tool, chosen.tool, is)
            && fits(&self.result, chosen.policy_result, is)
            && fits(&self.action, chosen.action_type, is)
            && fits(&self.client, chosen.client, is_client);
        if is_wanted { Match::Wanted } else { Match::Other }
    }
}

/// Whether a value is this text.
fn is(raw: &RawValue, wanted: &str) -> bool {
    serde_json::from_str::<Value>(raw.get()).is_ok_and(|value| plain(&value) == wanted)
}

/// Whether a client is the one meant, by its whole name or one part of it: `claw(1000)`, `claw`, `1000`.
fn is_client(raw: &RawValue, wanted: &str) -> bool {
    let Ok(name) = serde_json::from_str::<String>(raw.get()) else { return false };
    name == wanted || name.split(['(', ')', ' ']).any(|part| part == wanted && part != "uid")
}

fn time(raw: &RawValue) -> Option<SystemTime> {
    let text: String = serde_json::from_str(raw.get()).ok()?;
    humantime::parse_rfc3339(&text).ok()
}

/// When a line's record was written; `None` when it is none.
pub(super) fn time_of(line: &[u8]) -> Option<SystemTime> {
    serde_json::from_slice::<Chosen<'_>>(line).ok()?.timestamp.and_then(time)
}

/// A value as text: a string without its quotes, everything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A part of a record as people read it.
pub(crate) struct Part {
    /// As it is printed, coloured where there are colours.
    pub(crate) text: String,
    /// How many characters of it are seen.
    pub(crate) width: usize,
}

/// A record as one line for people.
pub(crate) fn rendered(line: &[u8], output: &Output) -> String {
    parts(line, output).into_iter().map(|part| part.text).collect::<Vec<_>>().join(" ")
}

/// A record for people, in parts: day, time, verdict, what it is about, and whatever else stands in it.
pub(crate) fn parts(line: &[u8], output: &Output) -> Vec<Part> {
    let styled = |style, text: String| Part { width: text.chars().count(), text: output.paint(style, &text) };
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(line) else {
        let text = String::from_utf8_lossy(line);
        return vec![styled(Style::Odd, format!("not a record: {}", scrubbed(text.trim_end())))];
    };
    let mut record = Fields { fields };
    let time = record.text("timestamp").unwrap_or_default();
    let (day, clock) = time.trim_end_matches('Z').split_once('T').unwrap_or_default();
    let (style, verdict) = verdict(&mut record);
    let head = [
        styled(Style::Faint, day.to_owned()),
        styled(Style::Faint, clock.to_owned()),
        styled(style, verdict),
    ];
    let rule_line = record.number("rule_line").map(|line| format!(" (line {line})")).unwrap_or_default();
    let about = [
        record.text("tool"),
        record.text("method"),
        record.text("path"),
        record.take("argv").map(|argv| words(&argv)),
        record.text("reason").map(|reason| format!("\"{reason}\"")),
        record.number("duration_us").map(duration),
        record.number("bytes_in").map(|bytes| format!("{bytes} B in")),
        record.number("bytes_out").map(|bytes| format!("{bytes} B out")),
        record.text("rule").map(|rule| format!("rule={rule}{rule_line}")),
    ];
    let rest = record.fields.iter().filter(|(name, value)| !value.is_null() && !is_bookkeeping(name));
    let rest = rest.map(|(name, value)| format!("{name}={}", scrubbed(&plain(value))));
    let plainly = about.into_iter().flatten().chain(rest).map(|text| styled(Style::Plain, text));
    head.into_iter().chain(plainly).collect()
}

/// The fields of a record that have not been shown yet.
struct Fields {
    fields: Map<String, Value>,
}

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.take(name).map(|value| scrubbed(&plain(&value)))
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        self.take(name).and_then(|value| value.as_u64())
    }
}

/// What was decided, or how it ended.
fn verdict(record: &mut Fields) -> (Style, String) {
    // Which of the two it is shows already.
    record.take("event");
    if let Some(result) = record.text("policy_result") {
        let style = match result.as_str() {
            "allow" => Style::Good,
            "deny" | "blocked" => Style::Bad,
            _ => Style::Odd,
        };
        return (style, format!("{result:<6}"));
    }
    let ends = [("status", "status"), ("exit_code", "exit"), ("signal", "signal"), ("error", "error:")];
    let end = ends.into_iter().find_map(|(name, shown)| Some(format!("{shown} {}", record.text(name)?)));
    (Style::Plain, format!("done   {}", end.unwrap_or_default()).trim_end().to_owned())
}

fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

/// Fields for machines: `--format json` has them.
fn is_bookkeeping(name: &str) -> bool {
    matches!(name, "action_type" | "hash" | "policy_version" | "prev" | "prev_hash" | "seq")
}

/// Arguments so that a reader can tell them apart.
fn words(argv: &Value) -> String {
    let Some(words) = argv.as_array() else { return scrubbed(&plain(argv)) };
    let quoted = words.iter().map(|word| {
        let word = scrubbed(&plain(word));
        let is_plain =
            !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"\\$`".contains(c));
        if is_plain { word } else { format!("'{}'", word.replace('\'', r"'\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{Filter, Match, rendered};
    use crate::output::{Format, Output};

    const RECORD: &[u8] =
        br#"{"timestamp":"2026-02-15T10:11:12.123456Z","tool":"signal-cli","action_type":"http",
        "policy_result":"deny","client":"claw(1000)"}"#;

    #[test]
    fn records_read_as_sentences() {
        let output = Output::new(Format::Text);
        let denied = br#"{"timestamp":"2026-02-15T10:11:12.123456Z","event":"decision","request_id":"a-1","tool":"op",
            "action_type":"cli","policy_result":"deny","reason":"no\u001b","rule":"r","rule_line":3,"argv":["a b","c"],"policy_version":"x"}"#;
        let shown =
            "2026-02-15 10:11:12.123456 deny   op 'a b' c \"no\\u{1b}\" rule=r (line 3) request_id=a-1";
        assert_eq!(rendered(denied, &output), shown);
        let done = br#"{"timestamp":"","event":"outcome","tool":"op","exit_code":3,"duration_us":1250,"bytes_in":1}"#;
        assert_eq!(rendered(done, &output), "  done   exit 3 op 1.2 ms 1 B in");
        assert_eq!(rendered(b"x\n", &output), "not a record: x");
    }

    #[test]
    fn filters_choose() {
        let at = |text: &str| humantime::parse_rfc3339(text).ok();
        let tool = |tool: &str| Filter { tool: Some(tool.into()), ..Filter::default() };
        let client = |client: &str| Filter { client: Some(client.into()), ..Filter::default() };
        assert_eq!(Filter::default().judge(RECORD), Match::Wanted);
        assert_eq!(Filter::default().judge(b"torn"), Match::Other);
        assert_eq!(tool("signal-cli").judge(RECORD), Match::Wanted);
        assert_eq!(tool("signal").judge(RECORD), Match::Other);
        assert_eq!(tool("op").judge(RECORD), Match::Other);
        assert_eq!(client("1000").judge(RECORD), Match::Wanted);
        assert_eq!(client("claw").judge(RECORD), Match::Wanted);
        assert_eq!(client("claw(1000)").judge(RECORD), Match::Wanted);
        assert_eq!(client("100").judge(RECORD), Match::Other);
        let since = Filter { since: at("2026-02-15T10:11:13Z"), ..tool("op") };
        assert_eq!(since.judge(RECORD), Match::Older);
        let until = Filter { until: at("2026-02-15T10:11:12Z"), ..Filter::default() };
        assert_eq!(until.judge(RECORD), Match::Newer);
    }
}
