//! The untrusted side: an HTTP front that looks like the upstream, a front for shims, one link to the server.
//!
//! | file | what |
//! |---|---|
//! | `mod` | the machine: which input is whose |
//! | `hub` | what all connections share: streams, timers, outputs, the date |
//! | `uplink` | the link: dialled, greeted, lost, dialled again |
//! | `http` | one client's connection: what it waits for, how it ends |
//! | `request`, `response`, `exchange` | the two halves of an HTTP exchange, and what they share |
//! | `shims` | one shim's connection: a run, relayed |
//! | `answer` | what the agent itself says to an HTTP client |
//!
//! The way of a call: [`Input::Bytes`] of a client, `HttpConn::advance_head` admits it and `hand_over` opens a stream;
//! `advance_body` sends the body on. The answer: [`Input::Bytes`] of the link, [`Session::handle`] pays for it,
//! `HttpConn::handle_frame` writes head and body to the client's outbox, [`Input::Sent`] gives the credit back.
//!
//! [`Session::handle`]: crate::link::Session::handle

mod answer;
mod exchange;
mod http;
mod hub;
mod request;
mod response;
mod shims;
mod uplink;

#[cfg(test)]
mod tests;

use self::http::HttpConn;
use self::hub::{Hub, Listener};
use self::shims::ShimConn;
use self::uplink::{Greeted, Uplink, Why};
use crate::ids::{ConnId, ListenerId, StreamId};
use crate::limits::{DRAIN_TIMEOUT, HTTP_CONNS_MAX, SHIM_CONNS_MAX, TURNED_AWAY_MAX};
use crate::link::Event;
use crate::machine::{Address, Closing, Input, Machine, Output, PeerAddr, Sink, Source};
use crate::time::Instant;
use crate::wire::frame::{Frame, StreamFrame};
use crate::wire::message::Message;
use std::collections::BTreeMap;

/// What an agent has to know.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where the server is.
    pub server: Address,
    /// What the driver listens on; [`ListenerId`] is an index into it.
    pub listeners: Vec<AgentListener>,
    /// Host names, with or without a port, that a request's `Host` may name beside the loopback ones and the listening
    /// address; and what its `Origin` may name.
    pub allowed_hosts: Vec<String>,
    /// The uid that the agent runs as, for its log.
    pub own_uid: u32,
    /// The most HTTP connections; never more than [`HTTP_CONNS_MAX`].
    pub http_conns_max: usize,
    /// From the kernel, or from whoever wants to see the same again.
    pub seed: [u8; 32],
    /// Name and version, for the server's log.
    pub software: String,
}

/// One of an agent's listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentListener {
    /// HTTP clients.
    Http {
        /// The tool that requests here mean.
        tool: String,
        /// The port.
        port: u16,
        /// The listening address, as a `Host` would name it.
        addr: String,
    },
    /// Shims, on a Unix socket.
    Shim,
}

/// Why the agent wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A client's connection: a head, a body or a reader is too slow, or it was idle for too long.
    Client(ConnId),
    /// A drain has taken long enough.
    Drain,
    /// The server has not answered a dial, or has not greeted.
    Handshake,
    /// Calls have waited for the link long enough.
    Outage,
    /// The link is to be dialled again.
    Redial,
    /// The session has to acknowledge, or to ask for a sign of life.
    Session,
}

/// The agent: see the [module](self).
#[derive(Debug)]
pub struct Agent {
    hub: Hub,
    conns: BTreeMap<ConnId, Conn>,
    http_conns: usize,
    shim_conns: usize,
    http_conns_max: usize,
    drain: Drain,
}

#[derive(Debug)]
enum Conn {
    Http(Box<HttpConn>),
    Shim(Box<ShimConn>),
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    Done,
    NotAsked,
    Until(Instant),
}

impl Machine for Agent {
    type Timer = Timer;

    fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Accepted { conn, listener, peer } => self.handle_accepted(now, conn, listener, &peer),
            Input::Connected { conn } if self.is_link(conn) => self.hub.uplink.handle_connected(now),
            Input::DialFailed { conn, error } if self.is_link(conn) => {
                self.lose_link(now, Why::Dial(error), None);
            }
            Input::Bytes { source: Source::Conn(conn), bytes } if self.is_link(conn) => {
                self.handle_link_bytes(now, conn, bytes);
            }
            Input::Sent { sink: Sink::Conn(conn), count } if self.is_link(conn) => {
                self.hub.uplink.handle_sent(count);
                self.resume_unclogged(now);
            }
            Input::Eof { source: Source::Conn(conn) } if self.is_link(conn) => {
                self.lose_link(now, Why::Closed, Some(conn));
            }
            Input::Lost { conn, .. } if self.is_link(conn) => self.lose_link(now, Why::Broken, None),
            Input::Bytes { source: Source::Conn(conn), bytes } => {
                self.with(conn, |hub, conn| match conn {
                    Conn::Http(http) => http.handle_bytes(now, hub, bytes),
                    Conn::Shim(shim) => shim.handle_bytes(now, hub, bytes),
                });
            }
            Input::Sent { sink: Sink::Conn(conn), count } => {
                self.with(conn, |hub, conn| match conn {
                    Conn::Http(http) => http.handle_sent(now, hub, count),
                    Conn::Shim(shim) => shim.handle_sent(hub, count),
                });
            }
            Input::Eof { source: Source::Conn(conn) } => {
                self.with(conn, |hub, conn| match conn {
                    Conn::Http(http) => http.handle_eof(now, hub),
                    Conn::Shim(shim) => shim.handle_eof(hub),
                });
            }
            Input::Lost { conn, .. } => {
                self.with(conn, |hub, conn| match conn {
                    Conn::Http(http) => http.handle_lost(hub),
                    Conn::Shim(shim) => shim.handle_lost(hub),
                });
            }
            Input::Drain => self.handle_drain(now),
            Input::Wall { wall } => self.hub.set_wall(now, wall),
            // Late news of a link that was given up; and what no agent asks for.
            Input::Connected { .. }
            | Input::DialFailed { .. }
            | Input::Bytes { source: Source::Stdout(_) | Source::Stderr(_), .. }
            | Input::Sent { sink: Sink::Audit | Sink::Stdin(_), .. }
            | Input::Eof { source: Source::Stdout(_) | Source::Stderr(_) }
            | Input::StdinLost { .. }
            | Input::Recorded { .. }
            | Input::RecordFailed { .. }
            | Input::Started { .. }
            | Input::StartFailed { .. }
            | Input::Exited { .. }
            | Input::Reload { .. } => {}
        }
        self.finish_turn(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.hub.timers.pop_due(now) {
            if let Timer::Client(conn) = timer {
                self.with(conn, |hub, conn| match conn {
                    Conn::Http(http) => http.handle_timeout(now, hub),
                    Conn::Shim(shim) => shim.handle_timeout(now, hub),
                });
            }
        }
        self.handle_link_timeout(now);
        if self.outage_at().is_some_and(|at| at <= now) {
            self.wake_waiting(now);
        }
        if let Drain::Until(end) = self.drain
            && end <= now
        {
            log::warn!("drain took too long: {} connections cut", self.conns.len());
            self.for_each(|hub, conn| match conn {
                Conn::Http(http) => http.abort(hub),
                Conn::Shim(shim) => shim.abort(hub),
            });
            self.end_drain(now);
        }
        self.finish_turn(now);
        debug_assert!(self.poll_timeout().is_none_or(|(at, _)| at > now), "{:?}", self.poll_timeout());
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.hub.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        if self.drain == Drain::Done {
            return None;
        }
        let drain = match self.drain {
            Drain::Until(end) => Some((end, Timer::Drain)),
            Drain::Done | Drain::NotAsked => None,
        };
        let link = Some(self.hub.uplink.poll_timeout());
        let outage = self.outage_at().map(|at| (at, Timer::Outage));
        [self.hub.timers.next(), link, outage, drain].into_iter().flatten().min()
    }

    fn unsent(&self, sink: Sink) -> &[u8] {
        match sink {
            Sink::Conn(conn) if self.is_link(conn) => self.hub.uplink.unsent(),
            Sink::Conn(conn) => match self.conns.get(&conn) {
                Some(Conn::Http(http)) => http.outbox.unsent(),
                Some(Conn::Shim(shim)) => shim.unsent(),
                None => &[],
            },
            Sink::Audit | Sink::Stdin(_) => &[],
        }
    }
}

impl Agent {
    /// An agent that dials at once.
    pub fn new(now: Instant, config: AgentConfig) -> Self {
        let listeners =
            config.listeners.into_iter().map(|l| Listener::new(l, &config.allowed_hosts)).collect();
        let uplink = Uplink::new(now, config.server, config.software, config.seed);
        let mut agent = Self {
            hub: Hub::new(now, listeners, uplink),
            conns: BTreeMap::new(),
            http_conns: 0,
            shim_conns: 0,
            http_conns_max: config.http_conns_max.clamp(1, HTTP_CONNS_MAX),
            drain: Drain::NotAsked,
        };
        log::debug!("agent of uid {}: {} listeners", config.own_uid, agent.hub.listeners.len());
        agent.dial(now);
        agent
    }

    /// Whether nothing is asked of this agent and it holds nothing for anybody.
    pub fn is_idle(&self) -> bool {
        let is_idle = |conn: &Conn| match conn {
            Conn::Http(http) => http.idle_since().is_some(),
            Conn::Shim(_) => false,
        };
        self.hub.streams.is_empty() && self.held_bytes() == 0 && self.conns.values().all(is_idle)
    }

    /// Payload and frames held for connections and the link.
    pub fn held_bytes(&self) -> usize {
        let held = |conn: &Conn| match conn {
            Conn::Http(http) => http.held_bytes(),
            Conn::Shim(shim) => shim.held_bytes(),
        };
        self.conns.values().map(held).sum::<usize>() + self.hub.uplink.held_bytes()
    }

    /// Panics when something does not fit together: for tests, and for debug builds after every input.
    pub fn check_invariants(&self) {
        let (mut http_conns, mut described) = (0, 0);
        for (id, conn) in &self.conns {
            let stream = match conn {
                Conn::Http(http) => {
                    http_conns += 1;
                    http.check_invariants(&self.hub);
                    http.stream()
                }
                Conn::Shim(shim) => {
                    described += shim.described_bytes();
                    shim.check_invariants(&self.hub);
                    shim.stream()
                }
            };
            if let Some(stream) = stream {
                assert_eq!(self.hub.streams.get(&stream), Some(id), "{stream} is not that of {id}");
            }
        }
        assert_eq!(described, self.hub.described_bytes, "described bytes");
        assert_eq!(http_conns, self.http_conns, "HTTP connections");
        assert_eq!(self.conns.len(), self.http_conns + self.shim_conns, "connections");
        let with_stream = self.conns.values().filter(|conn| conn.stream().is_some()).count();
        assert_eq!(with_stream, self.hub.streams.len(), "streams without a connection");
        let session_streams = self.hub.uplink.session_ref().map_or(0, |session| session.streams());
        assert_eq!(session_streams, self.hub.streams.len(), "streams in the session");
        assert!(self.hub.timers.len() <= self.conns.len(), "timers of nobody");
        assert!(self.hub.waiting.iter().all(|id| self.conns.contains_key(id)), "nobody waits for the link");
    }

    /// Breaks the accounts as a leak would, for a test of [`Agent::check_invariants`].
    #[cfg(feature = "sabotage")]
    pub const fn sabotage(&mut self) {
        self.hub.described_bytes += 1;
    }

    fn is_link(&self, conn: ConnId) -> bool {
        self.hub.uplink.conn() == Some(conn)
    }

    /// Does something with a connection, which is forgotten if that closes it.
    fn with(&mut self, id: ConnId, act: impl FnOnce(&mut Hub, &mut Conn)) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        act(&mut self.hub, conn);
        if conn.is_closed() {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ConnId) {
        match self.conns.remove(&id) {
            Some(Conn::Http(_)) => self.http_conns -= 1,
            Some(Conn::Shim(_)) => self.shim_conns -= 1,
            None => {}
        }
    }

    fn for_each(&mut self, mut act: impl FnMut(&mut Hub, &mut Conn)) {
        for conn in self.conns.values_mut() {
            act(&mut self.hub, conn);
        }
        self.conns.retain(|_, conn| !conn.is_closed());
        self.http_conns = self.conns.values().filter(|conn| matches!(conn, Conn::Http(_))).count();
        self.shim_conns = self.conns.len() - self.http_conns;
    }

    // ---- clients ----

    fn handle_accepted(&mut self, now: Instant, id: ConnId, listener: ListenerId, peer: &PeerAddr) {
        debug_assert!(!self.conns.contains_key(&id), "{id} accepted twice");
        match self.hub.listeners.get(usize::from(listener.0)) {
            Some(Listener::Http(_)) => self.accept_http(now, id, listener),
            Some(Listener::Shim) => {
                log::debug!("{id}: a shim, {peer:?}");
                self.accept_shim(now, id);
            }
            None => {
                debug_assert!(false, "{id} accepted by {listener:?}, which there is not");
                self.hub.close(id, Closing::Orderly);
            }
        }
    }

    fn accept_http(&mut self, now: Instant, id: ConnId, listener: ListenerId) {
        let refusal = if self.hub.is_draining {
            Some(http::STOPPING)
        } else if self.http_conns < self.http_conns_max || self.evict_longest_idle() {
            None
        } else {
            Some("too many connections")
        };
        if self.http_conns >= self.http_conns_max + TURNED_AWAY_MAX {
            return self.hub.close(id, Closing::Orderly);
        }
        let mut http = HttpConn::new(now, id, listener);
        match refusal {
            Some(why) => http.turn_away(now, &mut self.hub, why),
            None => http.settle(now, &mut self.hub),
        }
        self.http_conns += 1;
        self.conns.insert(id, Conn::Http(Box::new(http)));
        if self.hub.idle.len() > 2 * self.conns.len() + 64 {
            let conns = &self.conns;
            self.hub.idle.retain(|conn| conns.contains_key(&conn));
        }
    }

    /// Closes the HTTP connection that has been idle for longest; false when none is idle.
    fn evict_longest_idle(&mut self) -> bool {
        while let Some((since, id)) = self.hub.idle.pop() {
            let Some(Conn::Http(http)) = self.conns.get_mut(&id) else { continue };
            match http.idle_since() {
                Some(actual) if actual == since => {
                    log::debug!("{id} gives way: idle for longest");
                    http.give_way(&mut self.hub);
                    self.forget(id);
                    return true;
                }
                Some(actual) => self.hub.idle.push(actual, id),
                None => http.left_idle_line(),
            }
        }
        false
    }

    fn accept_shim(&mut self, now: Instant, id: ConnId) {
        if self.shim_conns >= SHIM_CONNS_MAX + TURNED_AWAY_MAX {
            return self.hub.close(id, Closing::Orderly);
        }
        let mut shim = ShimConn::new(now, id);
        if self.hub.is_draining {
            shim.turn_away(&mut self.hub, shims::STOPPING);
        } else if self.shim_conns >= SHIM_CONNS_MAX {
            shim.turn_away(&mut self.hub, "not started: too many tools run at once");
        } else {
            shim.settle(&mut self.hub);
        }
        self.shim_conns += 1;
        self.conns.insert(id, Conn::Shim(Box::new(shim)));
    }

    // ---- the link ----

    fn dial(&mut self, now: Instant) {
        let (conn, to) = self.hub.uplink.dial(now);
        log::debug!("{conn}: dialling {to:?}");
        self.hub.outputs.push_back(Output::Dial { conn, to });
    }

    fn handle_link_bytes(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let mut reader = self.hub.uplink.take_reader();
        if let Some(session) = self.hub.uplink.session() {
            session.heard(now, bytes.len());
        }
        let mut input = bytes;
        let end = loop {
            match reader.next(&mut input, self.hub.uplink.frame_bytes_max()) {
                Ok(Some(frame)) => {
                    if let Err(why) = self.handle_link_frame(now, frame) {
                        break Some(why);
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(Why::BadFrame(error)),
            }
        };
        match end {
            Some(why) => self.lose_link(now, why, Some(conn)),
            None => {
                self.hub.uplink.put_reader(reader);
                self.resume_unclogged(now);
            }
        }
    }

    fn handle_link_frame(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), Why> {
        let Some(session) = self.hub.uplink.session() else {
            let Frame::Json(json) = frame else { return Err(Why::BadGreeting) };
            if self.hub.uplink.handle_greeting(now, json)? == Greeted::Welcome {
                log::info!("link up");
                self.wake_waiting(now);
            }
            return Ok(());
        };
        match session.handle(now, frame).map_err(Why::Misbehaved)? {
            Event::Done => Ok(()),
            Event::Message(message) => handle_message(&message),
            Event::Stream(stream, frame) => {
                self.handle_stream_frame(now, stream, frame);
                Ok(())
            }
        }
    }

    fn handle_stream_frame(&mut self, now: Instant, stream: StreamId, frame: StreamFrame<'_>) {
        // One that ended here while the frame was under way is of no interest.
        if let Some(conn) = self.hub.streams.get(&stream).copied() {
            self.with(conn, |hub, conn| match conn {
                Conn::Http(http) => http.handle_frame(now, hub, stream, frame),
                Conn::Shim(shim) => shim.handle_frame(hub, frame),
            });
        }
    }

    /// Resumes whoever was paused because the link could not take more.
    fn resume_unclogged(&mut self, now: Instant) {
        while let Some(stream) = self.hub.uplink.session().and_then(|session| session.poll_unclogged()) {
            if let Some(conn) = self.hub.streams.get(&stream).copied() {
                self.with(conn, |hub, conn| match conn {
                    Conn::Http(http) => http.handle_unclogged(now, hub),
                    Conn::Shim(shim) => shim.handle_unclogged(hub),
                });
            }
        }
    }

    /// Lets the calls that wait for the link go on, or fail.
    fn wake_waiting(&mut self, now: Instant) {
        for conn in core::mem::take(&mut self.hub.waiting) {
            self.with(conn, |hub, conn| match conn {
                Conn::Http(http) => http.handle_outlook(now, hub),
                Conn::Shim(shim) => shim.handle_outlook(now, hub),
            });
        }
    }

    /// The link is gone; `open` is its connection where that is still to be closed.
    fn lose_link(&mut self, now: Instant, why: Why, open: Option<ConnId>) {
        if let Some(conn) = open {
            self.hub.close(conn, Closing::Orderly);
        }
        let somebody_waits = !self.hub.waiting.is_empty();
        if let Some(session) = self.hub.uplink.lose(now, why, somebody_waits) {
            let written = session.written_bytes();
            for conn in core::mem::take(&mut self.hub.streams).into_values() {
                self.with(conn, |hub, conn| match conn {
                    Conn::Http(http) => http.handle_link_lost(now, hub, written),
                    Conn::Shim(shim) => shim.handle_link_lost(hub, written),
                });
            }
        }
        if self.drain != Drain::Done && self.hub.uplink.poll_timeout().0 <= now {
            self.dial(now);
        }
    }

    fn handle_link_timeout(&mut self, now: Instant) {
        let (at, timer) = self.hub.uplink.poll_timeout();
        if at > now || self.drain == Drain::Done {
            return;
        }
        match timer {
            Timer::Redial => self.dial(now),
            Timer::Handshake => self.lose_link(now, Why::Silent, self.hub.uplink.conn()),
            Timer::Session => {
                let conn = self.hub.uplink.conn();
                if !self.hub.uplink.session().is_some_and(|session| session.handle_timeout(now)) {
                    self.lose_link(now, Why::Silent, conn);
                }
            }
            Timer::Client(_) | Timer::Drain | Timer::Outage => {}
        }
    }

    /// When calls that wait for the link are answered.
    fn outage_at(&self) -> Option<Instant> {
        (!self.hub.waiting.is_empty()).then(|| self.hub.uplink.outage_at())
    }

    // ---- the end of a turn, the end of everything ----

    fn handle_drain(&mut self, now: Instant) {
        if self.drain == Drain::NotAsked {
            log::info!("draining: {} streams", self.hub.streams.len());
            self.drain = Drain::Until(now + DRAIN_TIMEOUT);
            self.hub.is_draining = true;
            self.for_each(|hub, conn| match conn {
                Conn::Http(http) => http.handle_drain(now, hub),
                Conn::Shim(shim) => shim.handle_drain(now, hub),
            });
        }
    }

    fn end_drain(&mut self, now: Instant) {
        if let Some(conn) = self.hub.uplink.conn() {
            self.hub.close(conn, Closing::Orderly);
            self.hub.uplink.lose(now, Why::Stopped, false);
        }
        self.drain = Drain::Done;
        self.hub.outputs.push_back(Output::Drained);
    }

    fn finish_turn(&mut self, now: Instant) {
        if let Some(conn) = self.hub.uplink.wants_announcing() {
            self.hub.outputs.push_back(Output::Write(Sink::Conn(conn)));
        }
        if let Drain::Until(_) = self.drain
            && self.conns.is_empty()
            && self.hub.uplink.unsent().is_empty()
        {
            self.end_drain(now);
        }
        if cfg!(debug_assertions) && self.conns.len() <= 64 {
            self.check_invariants();
        }
    }
}

impl Conn {
    const fn is_closed(&self) -> bool {
        match self {
            Self::Http(http) => http.is_closed(),
            Self::Shim(shim) => shim.is_closed(),
        }
    }

    const fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Http(http) => http.stream(),
            Self::Shim(shim) => shim.stream(),
        }
    }
}

/// Takes in a message of the server that is not about the session.
fn handle_message(message: &Message<'_>) -> Result<(), Why> {
    match message {
        Message::Error { reason } => log::warn!("the server did not understand: {reason}"),
        Message::Refused { reason } => return Err(Why::Refused(reason.chars().take(200).collect())),
        Message::Ack { .. }
        | Message::Health {}
        | Message::HealthReport(_)
        | Message::Hello(_)
        | Message::Nonce(_)
        | Message::Ping {}
        | Message::Pong {}
        | Message::Welcome(_) => log::debug!("the server said what has no place in a session"),
    }
    Ok(())
}
