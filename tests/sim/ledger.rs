//! What everybody asked, did, sent and heard, on both sides of the product: the account that must balance.

use crate::check::Check;
use crate::rules::Law;
use carapace_proto::machine::ExitStatus;
use carapace_proto::time::Instant;
use std::collections::{BTreeMap, BTreeSet};

/// One call of a scripted client; it is in whatever the call carries, so that everybody who sees it knows whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tag(pub(crate) u64);

/// What a check found, to be handed to the world.
pub(crate) type Verdict = Result<(), (Check, String)>;

/// What a call asks for.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A download, of as many bytes as the upstream likes.
    Get,
    /// An event stream.
    Events,
    /// Bytes that are no call: whatever is answered will do.
    Malformed,
    /// An upload.
    Put { length: u64 },
    /// JSON-RPC.
    Rpc { elements: Vec<Element>, is_batch: bool },
    /// A tool run.
    Run { tool: String, argv: Vec<String>, stdin: u64 },
    /// An endpoint that may not be used, or does not exist.
    Wrong,
}

/// One JSON-RPC call of a body.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub(crate) method: &'static str,
    pub(crate) recipient: Option<String>,
    /// JSON text; none for a notification.
    pub(crate) id: Option<String>,
}

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    Answered,
    /// Its connection is gone, or the client left.
    Gone,
}

/// Which sequence of a call's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// A request's body, or a tool's standard input.
    Up,
    Stdout,
    Stderr,
    /// A response's body.
    Down,
}

impl Lane {
    pub(crate) const fn number(self) -> u64 {
        match self {
            Self::Up => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Down => 3,
        }
    }
}

/// One sequence of bytes: how much was put in at one end, and came out at the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) asked: Instant,
    pub(crate) what: What,
    pub(crate) state: State,
    /// A client who was told so will call again, or not: it had better be true.
    pub(crate) was_told_not_started: bool,
    pub(crate) must_succeed: bool,
    pub(crate) effects: u64,
    flows: [Flow; 4],
    pub(crate) events_sent: u64,
    pub(crate) events_received: u64,
    /// The upstream has ended this event stream in order.
    pub(crate) is_source_done: bool,
    /// How the process of this run ended.
    pub(crate) ended: Option<ExitStatus>,
}

impl Call {
    pub(crate) fn flow(&mut self, lane: Lane) -> &mut Flow {
        let place = usize::try_from(lane.number()).unwrap_or(0);
        &mut self.flows[place]
    }
}

/// What the log says of one request.
#[derive(Debug, Default)]
struct Entry {
    allowed: bool,
    outcomes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) calls: BTreeMap<Tag, Call>,
    last: u64,
    /// Which call an effect with this key belongs to.
    owners: BTreeMap<String, Tag>,
    /// Accepted records that allow, by key: the law of each.
    allowed: BTreeMap<String, Vec<Law>>,
    effects: BTreeMap<String, u64>,
    entries: BTreeMap<String, Entry>,
    laws: BTreeMap<String, Law>,
    /// Request ids of servers that were killed begin so.
    dead: BTreeSet<String>,
    current: String,
    pub(crate) records: u64,
    /// When the log last could not be written.
    pub(crate) was_disk_bad: bool,
    /// Laws that have been in force so far.
    pub(crate) laws_seen: BTreeSet<Law>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// Names the effect of a tool run.
pub(crate) fn run_key(tool: &str, argv: &[String]) -> String {
    format!("{tool} run {}", argv.join("\u{1f}"))
}

/// Names the effect of a request, or of one element of a body.
pub(crate) fn request_key(tool: &str, method: &str, path: &str, recipient: &str) -> String {
    format!("{tool} {method} {path} {recipient}")
}

impl Ledger {
    pub(crate) fn next_tag(&mut self) -> Tag {
        self.last += 1;
        Tag(self.last)
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn know_law(&mut self, version: &str, law: Law) {
        self.laws.insert(version.to_owned(), law);
    }

    /// A call is about to be made.
    pub(crate) fn open(&mut self, tag: Tag, asked: Instant, what: What, must_succeed: bool) {
        for key in keys(tag, &what) {
            self.owners.insert(key, tag);
        }
        let call = Call {
            asked,
            what,
            state: State::Open,
            was_told_not_started: false,
            must_succeed,
            effects: 0,
            flows: [Flow::default(); 4],
            events_sent: 0,
            events_received: 0,
            is_source_done: false,
            ended: None,
        };
        self.calls.insert(tag, call);
    }

    pub(crate) fn call(&mut self, tag: Tag) -> Option<&mut Call> {
        self.calls.get_mut(&tag)
    }

    /// The client does not wait any more, or cannot.
    pub(crate) fn gone(&mut self, tag: Tag) {
        if let Some(call) = self.calls.get_mut(&tag)
            && call.state == State::Open
        {
            call.state = State::Gone;
            self.count("gone");
        }
    }

    /// The last byte of an answer has come.
    pub(crate) fn answered(&mut self, tag: Tag) -> Verdict {
        let Some(call) = self.calls.get_mut(&tag) else { return Ok(()) };
        if call.state == State::Answered {
            return Err((Check::Answered, format!("{tag:?} was answered twice")));
        }
        call.state = State::Answered;
        self.count("answered");
        Ok(())
    }

    /// How often the effect of this name has begun.
    pub(crate) fn effects_of(&self, key: &str) -> u64 {
        self.effects.get(key).copied().unwrap_or(0)
    }

    /// A client was told that it may not; so nothing has begun, nor will.
    pub(crate) fn told_refused(&mut self, tag: Tag, said: &str) -> Verdict {
        let Some(call) = self.calls.get_mut(&tag) else { return Ok(()) };
        call.was_told_not_started = true;
        if call.effects > 0 {
            return Err((Check::Honest, format!("{tag:?} was refused with {said:?}, and it was started")));
        }
        if call.must_succeed {
            return Err((Check::Answered, format!("{tag:?} was refused, and is allowed: {said}")));
        }
        Ok(())
    }

    /// A client was told that nothing was started.
    pub(crate) fn told_not_started(&mut self, tag: Tag, said: &str) -> Verdict {
        let Some(call) = self.calls.get_mut(&tag) else { return Ok(()) };
        call.was_told_not_started = true;
        self.count("not started");
        let Some(call) = self.calls.get(&tag) else { return Ok(()) };
        if call.must_succeed {
            return Err((Check::Recovery, format!("{tag:?} was refused, and all is well: {said}")));
        }
        if call.effects > 0 {
            return Err((Check::Honest, format!("{tag:?} was told {said:?}, and it was started")));
        }
        Ok(())
    }

    /// An effect begins: the first byte of a request goes to an upstream, or a process starts.
    pub(crate) fn effect(&mut self, key: &str, is_lawful: impl Fn(Law) -> bool) -> Verdict {
        self.count("effects");
        let count = self.effects.entry(key.to_owned()).or_default();
        *count += 1;
        let laws = self.allowed.get(key).map_or(&[][..], Vec::as_slice);
        if !is_lawful(Law::Lax) && !is_lawful(Law::Strict) {
            return Err((Check::Policy, format!("{key:?} is allowed by no policy")));
        }
        if *count > laws.len() as u64 {
            return Err((
                Check::Recorded,
                format!("{key:?} begins, effect {count} with {} records", laws.len()),
            ));
        }
        if !laws.iter().any(|law| is_lawful(*law)) {
            return Err((Check::Policy, format!("{key:?} is recorded as allowed by {laws:?}, which do not")));
        }
        let Some(tag) = self.owners.get(key) else { return Ok(()) };
        if *count > 1 {
            return Err((Check::Honest, format!("{key:?} of {tag:?} begins a second time")));
        }
        if let Some(call) = self.calls.get_mut(tag) {
            call.effects += 1;
            if call.was_told_not_started {
                return Err((
                    Check::Honest,
                    format!("{key:?} of {tag:?} begins, and its client was told it will not"),
                ));
            }
        }
        Ok(())
    }

    // ---- the log ----

    /// A server starts, with a log of its own.
    pub(crate) fn server_starts(&mut self) {
        self.current.clear();
    }

    /// The server ends. If it was killed, what it owes to the log it will owe for ever.
    pub(crate) fn server_ends(&mut self, in_order: bool) {
        let prefix = core::mem::take(&mut self.current);
        if !prefix.is_empty() && !in_order {
            self.dead.insert(prefix);
        }
    }

    /// Whole lines are in the log, for good.
    pub(crate) fn accepted(&mut self, lines: &[u8]) -> Verdict {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.accept(line)?;
        }
        Ok(())
    }

    fn accept(&mut self, line: &[u8]) -> Verdict {
        self.records += 1;
        let bad = |why: &str| Err((Check::Audit, format!("{why}: {}", crate::http::shown(line))));
        let Ok(record) = serde_json::from_slice::<serde_json::Value>(line) else { return bad("no JSON") };
        if line.last() != Some(&b'\n') {
            return bad("half a line");
        }
        let text = |name: &str| record.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        let id = text("request_id").to_owned();
        let Some((prefix, _)) = id.split_once('-') else { return bad("no request id") };
        if self.current.is_empty() {
            prefix.clone_into(&mut self.current);
        }
        if self.current != prefix {
            return bad("a request id of another server");
        }
        let entry = self.entries.entry(id.clone()).or_default();
        match text("event") {
            "decision" if entry.outcomes > 0 => return bad("a decision after its outcome"),
            "decision" => {
                if text("policy_result") == "allow" {
                    entry.allowed = true;
                    let Some(law) = self.laws.get(text("policy_version")) else {
                        return bad("an unknown policy");
                    };
                    self.allowed.entry(record_key(&record)).or_default().push(*law);
                }
            }
            "outcome" if !entry.allowed => return bad("an outcome of nothing that was allowed"),
            "outcome" if entry.outcomes > 0 => return bad("a second outcome"),
            "outcome" => entry.outcomes += 1,
            _ => return bad("an unknown event"),
        }
        Ok(())
    }

    /// Once everything has ended: what began and was not seen to end.
    pub(crate) fn owed_outcomes(&self) -> Vec<&str> {
        let is_dead = |id: &str| self.dead.iter().any(|prefix| id.starts_with(prefix.as_str()));
        let owed = |(id, entry): &(&String, &Entry)| entry.allowed && entry.outcomes == 0 && !is_dead(id);
        self.entries.iter().filter(owed).map(|(id, _)| id.as_str()).collect()
    }

    // ---- bytes ----

    /// A source put out bytes.
    pub(crate) fn sent(&mut self, tag: Tag, lane: Lane, count: usize) {
        if let Some(call) = self.calls.get_mut(&tag) {
            call.flow(lane).sent += count as u64;
        }
    }

    /// A sink took in bytes: they must be the next ones that the source put out.
    pub(crate) fn received(&mut self, tag: Tag, lane: Lane, bytes: &[u8]) -> Verdict {
        let Some(call) = self.calls.get_mut(&tag) else {
            return Err((Check::Streams, format!("bytes for {tag:?}, which never was")));
        };
        let flow = call.flow(lane);
        if !crate::pattern::are_bytes(tag, lane.number(), flow.received, bytes) {
            let (from, to) = (flow.received, flow.received + bytes.len() as u64);
            return Err((Check::Streams, format!("{tag:?} {lane:?}: bytes {from} to {to} are others")));
        }
        flow.received += bytes.len() as u64;
        if flow.received > flow.sent {
            let (received, sent) = (flow.received, flow.sent);
            return Err((Check::Streams, format!("{tag:?} {lane:?}: {received} bytes came of {sent}")));
        }
        Ok(())
    }

    /// A sink was told that this is all.
    pub(crate) fn complete(&mut self, tag: Tag, lane: Lane) -> Verdict {
        let Some(call) = self.calls.get_mut(&tag) else { return Ok(()) };
        let Flow { sent, received } = *call.flow(lane);
        if sent != received {
            return Err((
                Check::Streams,
                format!("{tag:?} {lane:?} ends in order with {received} of {sent} bytes"),
            ));
        }
        Ok(())
    }

    /// An upload is complete, as its upstream sees it.
    pub(crate) fn whole_upload(&mut self, tag: Tag) -> Verdict {
        let Some(call) = self.calls.get_mut(&tag) else { return Ok(()) };
        let What::Put { length } = call.what else { return Ok(()) };
        let received = call.flow(Lane::Up).received;
        if received != length {
            return Err((Check::Streams, format!("{tag:?}: the upload ends at byte {received} of {length}")));
        }
        Ok(())
    }

    /// A tool was told that its input ends here.
    pub(crate) fn whole_input(&mut self, tag: Tag) -> Verdict {
        let Some(call) = self.calls.get_mut(&tag) else { return Ok(()) };
        let What::Run { stdin, .. } = call.what else { return Ok(()) };
        let received = call.flow(Lane::Up).received;
        if received != stdin {
            return Err((Check::Streams, format!("{tag:?}: its input ends at byte {received} of {stdin}")));
        }
        Ok(())
    }

    /// An event arrived: it must be the next one.
    pub(crate) fn event(&mut self, tag: Tag, event: &crate::pattern::Event) -> Verdict {
        self.count("events");
        let Some(call) = self.calls.get_mut(&tag) else { return Ok(()) };
        let n = call.events_received;
        call.events_received += 1;
        if n >= call.events_sent {
            return Err((Check::Streams, format!("{tag:?}: event {n} came, {} were sent", call.events_sent)));
        }
        if *event != crate::pattern::event(tag, n) {
            return Err((
                Check::Streams,
                format!("{tag:?}: event {n} is another: {:.200}", format!("{event:?}")),
            ));
        }
        Ok(())
    }
}

/// The effects that a call may have, each by its name.
fn keys(tag: Tag, what: &What) -> Vec<String> {
    match what {
        What::Get => vec![request_key("files", "GET", &format!("/get/{}", tag.0), "")],
        What::Events => vec![request_key("files", "GET", &format!("/stream/{}", tag.0), "")],
        What::Put { .. } => vec![request_key("files", "POST", &format!("/put/{}", tag.0), "")],
        What::Rpc { elements, .. } => elements
            .iter()
            .filter_map(|element| {
                let recipient = element.recipient.as_deref()?;
                Some(request_key("signal-cli", element.method, "/api/v1/rpc", recipient))
            })
            .collect(),
        What::Run { tool, argv, .. } => vec![run_key(tool, argv)],
        What::Malformed | What::Wrong => Vec::new(),
    }
}

/// The name of the effect that a record allows.
fn record_key(record: &serde_json::Value) -> String {
    let text = |name: &str| record.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    if text("action_type") == "cli" {
        let argv = record.get("argv").and_then(serde_json::Value::as_array);
        let argv: Vec<String> =
            argv.into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect();
        run_key(text("tool"), &argv)
    } else {
        request_key(text("tool"), text("method"), text("path"), text("phone_number"))
    }
}
