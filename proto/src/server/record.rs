//! The audit log's lines: one JSON object each.

use super::Server;
use super::call::Call;
use super::journal::Of;
use crate::ids::CallId;
use crate::time::Instant;
use carapace_policy::{Denial, Notes, Rule, json};

/// A line being written: members in the order in which they are given.
struct Line<'a> {
    out: &'a mut Vec<u8>,
}

impl Line<'_> {
    fn key(&mut self, name: &str) {
        self.out.push(b',');
        json::escape(self.out, name);
        self.out.push(b':');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.key(name);
        json::escape(self.out, value);
    }

    /// Only when there is something to say.
    fn text_if(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text(name, value);
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        number(self.out, value);
    }

    fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

fn number(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0u8; 20];
    let (mut rest, mut start) = (value, digits.len());
    loop {
        start -= 1;
        if let Some(slot) = digits.get_mut(start) {
            *slot = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        }
        rest /= 10;
        if rest == 0 || start == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}

/// What a decision was about, where it is narrower than the call: an element of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) method: &'a str,
    pub(super) element: Option<usize>,
}

/// What was decided.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    /// It may be carried out.
    Allowed(&'a Notes),
    /// It may not.
    Denied(&'a Denial),
    /// It is nothing that could be judged; the sentence says why.
    Malformed(&'a str),
}

impl<'a> From<&'a Result<Notes, Box<Denial>>> for Verdict<'a> {
    fn from(verdict: &'a Result<Notes, Box<Denial>>) -> Self {
        match verdict {
            Ok(notes) => Self::Allowed(notes),
            Err(denial) => Self::Denied(denial),
        }
    }
}

impl<'a> Verdict<'a> {
    fn result(&self) -> &'static str {
        match self {
            Self::Allowed(_) => "allow",
            Self::Denied(denial) => denial.kind.as_str(),
            Self::Malformed(_) => "deny",
        }
    }

    const fn notes(&self) -> Option<&'a Notes> {
        match self {
            Self::Allowed(notes) => Some(notes),
            Self::Denied(denial) => Some(&denial.notes),
            Self::Malformed(_) => None,
        }
    }

    fn rule(&self) -> Option<&'a Rule> {
        match self {
            Self::Allowed(notes) => notes.rule(),
            Self::Denied(denial) => Some(&denial.rule),
            Self::Malformed(_) => None,
        }
    }

    fn reason(&self) -> &'a str {
        match self {
            Self::Allowed(_) => "",
            Self::Denied(denial) => &denial.reason,
            Self::Malformed(said) => said,
        }
    }
}

/// How an effect ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    /// An upstream answered with this status.
    Status(u16),
    /// A tool exited.
    Exit(u8),
    /// A tool died by a signal.
    Signal(u8),
    /// It did not come to an end of its own.
    Failed(&'a str),
}

impl Server {
    /// Records a decision. `waits`: the call goes on once it is in the log.
    pub(super) fn record_decision(
        &mut self,
        now: Instant,
        id: CallId,
        subject: Subject<'_>,
        verdict: Verdict<'_>,
        waits: bool,
    ) {
        let wall = self.wall(now);
        let prefix = self.id_prefix.as_str();
        let Some(call) = self.calls.get(&id) else { return };
        if !matches!(verdict, Verdict::Allowed(_)) {
            self.counters.denied += 1;
        }
        let of = if waits { Of::Decision(id) } else { Of::Part };
        self.journal.add(of, |out| {
            let mut line = begin(out, wall, "decision", prefix, id, call);
            line.text("policy_result", verdict.result());
            if let Some(rule) = verdict.rule() {
                line.text("rule", rule.text());
                if rule.line() > 0 {
                    line.number("rule_line", u64::from(rule.line()));
                }
            }
            line.text_if("reason", verdict.reason());
            line.text("client", call.caller.name());
            line.text_if("method", subject.method);
            line.text_if("path", &call.about.path);
            if let Some(element) = subject.element {
                line.number("element", element as u64);
            }
            if let Some(notes) = verdict.notes() {
                write_notes(&mut line, notes);
            }
            line.text("policy_version", call.policy.version());
            line.end();
        });
    }

    /// Records how an effect ended, if one was allowed to begin and its end was not recorded yet.
    pub(super) fn record_outcome(&mut self, now: Instant, id: CallId, outcome: Outcome<'_>) {
        let wall = self.wall(now);
        let prefix = self.id_prefix.as_str();
        let Some(call) = self.calls.get_mut(&id) else { return };
        if !core::mem::replace(&mut call.about.owes_outcome, false) || !call.about.is_audited {
            return;
        }
        let call = &*call;
        self.journal.add(Of::Outcome, |out| {
            let mut line = begin(out, wall, "outcome", prefix, id, call);
            match outcome {
                Outcome::Status(status) => line.number("status", u64::from(status)),
                Outcome::Exit(code) => line.number("exit_code", u64::from(code)),
                Outcome::Signal(signal) => line.number("signal", u64::from(signal)),
                Outcome::Failed(error) => line.text("error", error),
            }
            line.number("bytes_in", call.about.bytes_in);
            line.number("bytes_out", call.about.bytes_out);
            if call.about.events_dropped > 0 {
                line.number("events_dropped", call.about.events_dropped);
            }
            let micros = u64::try_from(now.since(call.begun).as_micros()).unwrap_or(u64::MAX);
            line.number("duration_us", micros);
            line.end();
        });
    }
}

fn begin<'a>(
    out: &'a mut Vec<u8>,
    wall: crate::time::Wall,
    event: &str,
    prefix: &str,
    id: CallId,
    call: &Call,
) -> Line<'a> {
    out.extend_from_slice(b"{\"timestamp\":\"");
    wall.write_rfc3339(out);
    out.extend_from_slice(b"\",\"event\":\"");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\",\"request_id\":\"");
    out.extend_from_slice(prefix.as_bytes());
    out.push(b'-');
    number(out, id.0);
    out.push(b'"');
    let mut line = Line { out };
    line.text("tool", &call.about.tool);
    line.text("action_type", call.about.action.as_str());
    line
}

fn write_notes(line: &mut Line<'_>, notes: &Notes) {
    if let Some(argv) = notes.argv() {
        line.key("argv");
        line.out.push(b'[');
        for (place, argument) in argv.iter().enumerate() {
            if place > 0 {
                line.out.push(b',');
            }
            json::escape(line.out, argument);
        }
        line.out.push(b']');
    }
    for param in notes.params() {
        line.key(param.name());
        param.write_json(line.out);
    }
    for warning in notes.warnings() {
        line.text("warning", warning.text());
    }
}
