//! What all connections of an agent share: the link with its streams, timers, outputs, the date.

use super::uplink::{Outlook, Uplink, Why};
use super::{AgentListener, Timer};
use crate::ids::{ConnId, ListenerId, StreamId};
use crate::link::Session;
use crate::machine::{Closing, Output, Sink, Source};
use crate::outbox::Outbox;
use crate::time::{Instant, Wall};
use crate::timers::Timers;
use crate::wire::frame::{Fault, StreamFrame};
use crate::wire::http1::HttpDate;
use carapace_policy::json::escape;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) listeners: Vec<Listener>,
    pub(super) uplink: Uplink,
    /// Whose each open stream is.
    pub(super) streams: BTreeMap<StreamId, ConnId>,
    pub(super) timers: Timers<Timer>,
    pub(super) outputs: VecDeque<Output>,
    /// Connections with a call that waits for the link.
    pub(super) waiting: BTreeSet<ConnId>,
    pub(super) idle: IdleLine,
    /// Where lists of items are put together.
    pub(super) scratch: Vec<u8>,
    /// What all shims together have described and not handed to the server.
    pub(super) described_bytes: usize,
    pub(super) started: Instant,
    pub(super) is_draining: bool,
    clock: Clock,
}

/// What a listener's connections are for.
#[derive(Debug)]
pub(super) enum Listener {
    Http(HttpListener),
    Shim,
}

#[derive(Debug)]
pub(super) struct HttpListener {
    /// The one tool that requests here may mean.
    pub(super) tool: String,
    pub(super) port: u16,
    /// Host names other than the loopback ones; the listening address is among them.
    pub(super) hosts: Vec<String>,
    /// What an `Origin` may name: the configured hosts alone.
    pub(super) origins: Vec<String>,
}

impl Listener {
    pub(super) fn new(listener: AgentListener, allowed_hosts: &[String]) -> Self {
        match listener {
            AgentListener::Http { tool, port, addr } => {
                let mut hosts = allowed_hosts.to_vec();
                hosts.push(addr);
                Self::Http(HttpListener { tool, port, hosts, origins: allowed_hosts.to_vec() })
            }
            AgentListener::Shim => Self::Shim,
        }
    }
}

impl Hub {
    pub(super) fn new(now: Instant, listeners: Vec<Listener>, uplink: Uplink) -> Self {
        Self {
            listeners,
            uplink,
            streams: BTreeMap::new(),
            timers: Timers::new(),
            outputs: VecDeque::new(),
            waiting: BTreeSet::new(),
            idle: IdleLine::default(),
            scratch: Vec::new(),
            described_bytes: 0,
            started: now,
            is_draining: false,
            clock: Clock::default(),
        }
    }

    pub(super) fn http_listener(&self, id: ListenerId) -> Option<&HttpListener> {
        match self.listeners.get(usize::from(id.0)) {
            Some(Listener::Http(listener)) => Some(listener),
            Some(Listener::Shim) | None => None,
        }
    }

    // ---- the state of things ----

    /// What a new call can expect.
    pub(super) fn outlook(&self, now: Instant) -> Outlook {
        if self.is_draining { Outlook::Down } else { self.uplink.outlook(now) }
    }

    /// Why a new call cannot be carried out.
    pub(super) fn why_down(&self) -> Why {
        if self.is_draining { Why::Stopped } else { self.uplink.why().clone() }
    }

    /// Status and body of an answer to `GET /health`.
    pub(super) fn health(&self, now: Instant, listener: ListenerId) -> (u16, Vec<u8>) {
        let is_up = self.uplink.session_ref().is_some();
        let (status, word) = match (is_up, self.is_draining) {
            (true, false) => (200, "ok"),
            (true, true) => (503, "draining"),
            (false, _) => (503, "unavailable"),
        };
        let mut json = format!(r#"{{"status":"{word}","connections":{}"#, u8::from(is_up)).into_bytes();
        let text = |json: &mut Vec<u8>, name: &str, value: &str| {
            json.extend_from_slice(format!(r#","{name}":"#).as_bytes());
            escape(json, value);
        };
        if !is_up {
            text(&mut json, "reason", &self.uplink.why().to_string());
        }
        text(&mut json, "version", env!("CARGO_PKG_VERSION"));
        if let Some(listener) = self.http_listener(listener) {
            text(&mut json, "tool", &listener.tool);
        }
        let uptime = now.since(self.started).as_secs();
        json.extend_from_slice(
            format!(r#","uptime_secs":{uptime},"streams":{}}}"#, self.streams.len()).as_bytes(),
        );
        (status, json)
    }

    // ---- streams ----

    /// Opens a stream for `conn`; `None` while the link is down.
    pub(super) fn open(&mut self, conn: ConnId, kind: StreamKind) -> Option<(StreamId, &mut Session)> {
        let (stream, session) = self.uplink.next_stream()?;
        match kind {
            StreamKind::Exchange => session.open(stream),
            StreamKind::Run => session.open_run(stream),
        }
        self.streams.insert(stream, conn);
        Some((stream, session))
    }

    /// A stream is over for both sides.
    pub(super) fn close_stream(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        if let Some(session) = self.uplink.session() {
            session.close(stream);
        }
    }

    /// Ends a stream that is not over.
    pub(super) fn reset(&mut self, stream: StreamId, fault: Fault, text: &str) {
        if let Some(session) = self.uplink.session() {
            session.send_now(stream, &StreamFrame::Reset { fault, text: text.as_bytes() });
        }
        self.close_stream(stream);
    }

    /// Payload was handed on.
    pub(super) fn consumed(&mut self, stream: StreamId, bytes: usize) {
        if bytes > 0
            && let Some(session) = self.uplink.session()
        {
            session.consumed(stream, bytes);
        }
    }

    // ---- outputs ----

    /// Tells the driver of bytes in `outbox`, if it has not been told; says whether it was.
    pub(super) fn announce(&mut self, conn: ConnId, outbox: &mut Outbox) -> bool {
        let wants = outbox.wants_announcing();
        if wants {
            self.outputs.push_back(Output::Write(Sink::Conn(conn)));
        }
        wants
    }

    /// Pauses or resumes a connection so that it is read exactly when it is wanted.
    pub(super) fn read_when(&mut self, conn: ConnId, wanted: bool, is_paused: &mut bool) {
        if wanted == *is_paused {
            *is_paused = !wanted;
            let source = Source::Conn(conn);
            self.outputs.push_back(if wanted { Output::Resume(source) } else { Output::Pause(source) });
        }
    }

    pub(super) fn close(&mut self, conn: ConnId, how: Closing) {
        self.outputs.push_back(Output::Close { conn, how });
    }

    // ---- time ----

    pub(super) fn set_wall(&mut self, now: Instant, wall: Wall) {
        self.clock = Clock { set: Some((now, wall)), date: None };
    }

    /// The `Date` field for `now`; none while the driver has not told the time.
    pub(super) fn date(&mut self, now: Instant) -> Option<HttpDate> {
        let (at, wall) = self.clock.set?;
        let micros = u64::try_from(now.since(at).as_micros()).unwrap_or(u64::MAX);
        let second = wall.unix_micros().saturating_add(micros) / 1_000_000;
        match self.clock.date {
            Some((cached, date)) if cached == second => Some(date),
            Some(_) | None => {
                let date = HttpDate::from_unix(second);
                self.clock.date = Some((second, date));
                Some(date)
            }
        }
    }
}

/// What a stream is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// An HTTP exchange.
    Exchange,
    /// A tool's run.
    Run,
}

/// The wall clock as last told, and the date that was last made of it.
#[derive(Debug, Default)]
struct Clock {
    set: Option<(Instant, Wall)>,
    date: Option<(u64, HttpDate)>,
}

/// Connections in the order in which they fell idle, good for finding the longest idle one.
///
/// A connection has at most one place, with a time that is never later than the true one, and is put right only when
/// somebody looks: an ordinary call costs nothing.
#[derive(Debug, Default)]
pub(super) struct IdleLine {
    places: BinaryHeap<Reverse<(Instant, ConnId)>>,
}

impl IdleLine {
    pub(super) fn push(&mut self, since: Instant, conn: ConnId) {
        self.places.push(Reverse((since, conn)));
    }

    pub(super) fn pop(&mut self) -> Option<(Instant, ConnId)> {
        self.places.pop().map(|Reverse(place)| place)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Drops the places of connections that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(ConnId) -> bool) {
        self.places.retain(|Reverse((_, conn))| is_there(*conn));
    }
}
