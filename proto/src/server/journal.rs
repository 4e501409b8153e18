//! Records on their way to the audit log, and the decisions that wait until they are in it.

use crate::ids::{CallId, RecordId};
use crate::limits::{OUTCOMES_WAITING_MAX, RECORD_RETRY};
use crate::time::Instant;
use crate::timers::{Alarm, Timers};
use std::collections::VecDeque;

use super::Timer;

/// Memory for lines that is kept between turns: what a busy turn writes.
const LINES_KEPT: usize = 64 * 1024;

/// What waits for the log, in order.
#[derive(Debug)]
pub(super) struct Journal {
    /// The lines of all entries that were not written.
    lines: Vec<u8>,
    /// Entries that were not yet said to be durable; the first `written` of them are out of `lines`.
    entries: VecDeque<Entry>,
    written: usize,
    last: RecordId,
    /// Through which record the driver was asked to append, and how many bytes of `lines` that is.
    offered: Option<(RecordId, usize)>,
    is_failing: bool,
    alarm: Alarm,
}

#[derive(Debug)]
struct Entry {
    record: RecordId,
    of: Of,
    bytes: usize,
}

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A decision on a part of a call, which another record of the same call lets go on.
    Part,
    /// The last decision on a call: it goes on once this is recorded.
    Decision(CallId),
    /// What has happened.
    Outcome,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            lines: Vec::new(),
            entries: VecDeque::new(),
            written: 0,
            last: RecordId(0),
            offered: None,
            is_failing: false,
            alarm: Alarm::default(),
        }
    }

    /// Adds a line that `write` appends, newline included.
    pub(super) fn add(&mut self, of: Of, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.lines.len();
        write(&mut self.lines);
        self.last = RecordId(self.last.0 + 1);
        self.entries.push_back(Entry { record: self.last, of, bytes: self.lines.len() - before });
    }

    /// Whether so many outcomes wait that nothing new may be decided.
    pub(super) fn is_full(&self) -> bool {
        self.is_failing && self.entries.len() >= OUTCOMES_WAITING_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) const fn held_bytes(&self) -> usize {
        self.lines.len()
    }

    /// The next record through which the driver is to append, if it is time to ask.
    pub(super) fn poll(&mut self) -> Option<RecordId> {
        let has_decision = || self.entries.iter().skip(self.written).any(|entry| entry.of != Of::Outcome);
        if self.offered.is_some() || self.lines.is_empty() {
            return None;
        }
        if self.is_failing && self.alarm.due().is_some() && !has_decision() {
            return None;
        }
        self.offered = Some((self.last, self.lines.len()));
        Some(self.last)
    }

    pub(super) fn unsent(&self) -> &[u8] {
        let end = self.offered.map_or(0, |(_, bytes)| bytes);
        self.lines.get(..end).unwrap_or_default()
    }

    /// What was offered has been appended.
    pub(super) fn sent(&mut self, count: usize) {
        let Some((through, bytes)) = self.offered else { return };
        debug_assert_eq!(count, bytes, "the log is appended to in one write");
        self.lines.drain(..bytes.min(self.lines.len()));
        self.lines.shrink_to(LINES_KEPT);
        self.offered = None;
        self.written = self.entries.iter().take_while(|entry| entry.record <= through).count();
    }

    /// Records are durable; says which calls may go on.
    pub(super) fn recorded(
        &mut self,
        timers: &mut Timers<Timer>,
        through: RecordId,
        mut go_on: impl FnMut(CallId),
    ) {
        self.is_failing = false;
        self.alarm.remove(timers, Timer::Record);
        while self.entries.front().is_some_and(|entry| entry.record <= through) {
            let Some(entry) = self.entries.pop_front() else { return };
            self.written = self.written.saturating_sub(1);
            if let Of::Decision(call) = entry.of {
                go_on(call);
            }
        }
    }

    /// Records could not be written. Decisions among them are dropped, and `refuse` hears of their calls; outcomes
    /// wait, for they tell of what has happened.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        timers: &mut Timers<Timer>,
        through: RecordId,
        mut refuse: impl FnMut(CallId),
    ) {
        self.offered = None;
        self.is_failing = true;
        self.written = 0;
        let lines = core::mem::take(&mut self.lines);
        let entries = core::mem::take(&mut self.entries);
        // Entries that were written, and failed to become durable, have no bytes in `lines` any more.
        let held: usize = entries.iter().map(|entry| entry.bytes).sum();
        let mut skip = held.saturating_sub(lines.len());
        let mut rest = lines.as_slice();
        for entry in entries {
            let line = if skip >= entry.bytes {
                skip -= entry.bytes;
                &[][..]
            } else {
                let (line, tail) = rest.split_at(entry.bytes.min(rest.len()));
                rest = tail;
                line
            };
            match entry.of {
                Of::Decision(call) if entry.record <= through => refuse(call),
                // Nothing of a call that is refused may read as if it had been allowed.
                Of::Part if entry.record <= through => {}
                Of::Decision(_) | Of::Part | Of::Outcome => {
                    if !line.is_empty() {
                        self.lines.extend_from_slice(line);
                        self.entries.push_back(entry);
                    }
                }
            }
        }
        if self.entries.is_empty() {
            // Whatever comes next will be a try of its own.
            self.alarm.remove(timers, Timer::Record);
        } else {
            self.alarm.set(timers, Timer::Record, now + RECORD_RETRY);
        }
    }

    /// It is time to try again.
    pub(super) fn handle_timeout(&mut self, timers: &mut Timers<Timer>, now: Instant) {
        self.alarm.fires(timers, Timer::Record, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> impl FnOnce(&mut Vec<u8>) + '_ {
        move |out| out.extend_from_slice(text.as_bytes())
    }

    #[test]
    fn decisions_go_on_only_when_recorded_and_in_order() {
        let (mut journal, mut timers) = (Journal::new(), Timers::new());
        journal.add(Of::Decision(CallId(1)), line("a\n"));
        journal.add(Of::Outcome, line("b\n"));
        journal.add(Of::Decision(CallId(2)), line("c\n"));
        let through = journal.poll().unwrap();
        assert_eq!(journal.poll(), None);
        journal.add(Of::Decision(CallId(3)), line("d\n"));
        assert_eq!(journal.unsent(), b"a\nb\nc\n");
        journal.sent(6);
        let mut gone_on = Vec::new();
        journal.recorded(&mut timers, through, |call| gone_on.push(call.0));
        assert_eq!(gone_on, [1, 2]);
        assert!(journal.poll().is_some());
        assert_eq!(journal.unsent(), b"d\n");
    }

    #[test]
    fn a_failed_append_of_decisions_alone_leaves_nothing_behind() {
        let (mut journal, mut timers) = (Journal::new(), Timers::new());
        journal.add(Of::Decision(CallId(1)), line("decision\n"));
        let through = journal.poll().unwrap();
        journal.failed(Instant::ORIGIN, &mut timers, through, |_| {});
        assert!(journal.is_empty());
        assert_eq!(timers.len(), 0);
        journal.add(Of::Outcome, line("outcome\n"));
        assert!(journal.poll().is_some());
    }

    #[test]
    fn a_failed_append_refuses_decisions_and_keeps_outcomes() {
        let (mut journal, mut timers) = (Journal::new(), Timers::new());
        journal.add(Of::Outcome, line("outcome\n"));
        journal.add(Of::Part, line("element\n"));
        journal.add(Of::Decision(CallId(1)), line("decision\n"));
        let through = journal.poll().unwrap();
        let mut refused = Vec::new();
        journal.failed(Instant::ORIGIN, &mut timers, through, |call| refused.push(call.0));
        assert_eq!(refused, [1]);
        assert_eq!(journal.poll(), None, "waits for its time");
        journal.add(Of::Decision(CallId(2)), line("next\n"));
        assert!(journal.poll().is_some(), "a decision does not wait");
        assert_eq!(journal.unsent(), b"outcome\nnext\n");
        journal.sent(13);
        journal.recorded(&mut timers, RecordId(9), |_| {});
        assert!(journal.is_empty());
        assert_eq!(timers.len(), 0);
    }
}
