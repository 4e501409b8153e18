//! Links: who is at the other end, and the frames that come and go.

use super::call::{About, ActionType, Call, Description, State, Untaken};
use super::{Server, Timer};
use crate::ids::{CallId, ConnId, StreamId};
use crate::limits::{
    FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, LINKS_MAX, NAME_BYTES_MAX,
    RUN_TIMEOUT, STREAMS_MAX, TARGET_BYTES_MAX,
};
use crate::link::{Event, Session};
use crate::machine::{Output, PeerAddr, Sink};
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::timers::Alarm;
use crate::wire::frame::{Channel, Fault, Frame, FrameReader, Items, StreamFrame};
use crate::wire::message::{HealthReport, Hello, Message, Nonce, Role, VERSION, Welcome};
use carapace_policy::{Caller, Peer};
use log::{debug, info, warn};
use std::collections::BTreeMap;

/// One connection of an agent, a probe, or somebody who has not said yet.
#[derive(Debug)]
pub(super) struct Link {
    /// None for somebody who is not served.
    caller: Option<Caller>,
    reader: FrameReader,
    /// Handshake frames, which belong to no session.
    greeting: Outbox,
    stage: Stage,
    alarm: Alarm,
    pub(super) streams: BTreeMap<StreamId, CallId>,
    last_stream: StreamId,
}

#[derive(Debug)]
enum Stage {
    /// It has been given this nonce, and must answer.
    Greeted { nonce: String },
    /// It is served.
    Up { role: Role, session: Box<Session> },
    /// It has been refused, and is closed once it has been told.
    Refused,
}

impl Link {
    pub(super) fn unsent(&self) -> &[u8] {
        match (&self.stage, self.greeting.unsent()) {
            (Stage::Up { session, .. }, []) => session.unsent(),
            (_, greeting) => greeting,
        }
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.unsent().is_empty()
    }

    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.stage {
            Stage::Up { session, .. } => Some(session),
            Stage::Greeted { .. } | Stage::Refused => None,
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.greeting.len()
            + match &self.stage {
                Stage::Up { session, .. } => session.held_bytes(),
                Stage::Greeted { .. } | Stage::Refused => 0,
            }
    }

    const fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Up { .. })
    }
}

impl Server {
    /// Somebody connected: whoever the kernel says it is gets a nonce, or is told that it is not served.
    pub(super) fn handle_peer(&mut self, now: Instant, conn: ConnId, addr: &PeerAddr) {
        let peer = self.peer(addr);
        let nonce = format!("{:032x}", self.random.bits());
        let (caller, stage, first) = match self.policy.admit(&peer) {
            Ok(caller) => {
                let first = Message::Nonce(Nonce { nonce: nonce.as_str().into(), version: VERSION });
                (Some(caller), Stage::Greeted { nonce: nonce.clone() }, first)
            }
            Err(denial) => {
                warn!("{conn} from {addr:?} refused: {}", denial.reason);
                (None, Stage::Refused, Message::Refused { reason: denial.said.into() })
            }
        };
        let mut greeting = Outbox::default();
        greeting.push_with(|out| first.write(out));
        let mut alarm = Alarm::default();
        alarm.set(&mut self.timers, Timer::Link(conn), now + HANDSHAKE_TIMEOUT);
        let link = Link {
            caller,
            reader: FrameReader::new(),
            greeting,
            stage,
            alarm,
            streams: BTreeMap::new(),
            last_stream: StreamId(0),
        };
        self.links.insert(conn, link);
        self.announce(conn);
        self.make_room_for_strangers();
    }

    fn peer(&self, addr: &PeerAddr) -> Peer {
        let (uid, gid, is_local) = match *addr {
            PeerAddr::Tcp { addr, uid } => (uid, None, addr.ip().to_canonical().is_loopback()),
            PeerAddr::Unix { uid, gid, .. } => (Some(uid), Some(gid), true),
        };
        Peer {
            agent: None,
            uid,
            gid,
            groups: Vec::new(),
            user: None,
            insecure: self.config.insecure && !is_local,
            own_uid: self.config.own_uid,
        }
    }

    /// The oldest of too many that have not said who they are gives way: never the newest, which may be the agent.
    fn make_room_for_strangers(&mut self) {
        let strangers = || self.links.iter().filter(|(_, link)| !link.is_up());
        let is_refused = |link: &Link| matches!(link.stage, Stage::Refused);
        let oldest = strangers().find(|(_, link)| is_refused(link)).or_else(|| strangers().next());
        if strangers().count() > HANDSHAKES_MAX
            && let Some((oldest, _)) = oldest
        {
            let oldest = *oldest;
            debug!("{oldest} gives way to newer ones before it said who it is");
            self.close_link(oldest);
        }
    }

    pub(super) fn handle_link_bytes(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let mut reader = core::mem::take(&mut link.reader);
        if let Some(session) = link.session() {
            session.heard(now, bytes.len());
        }
        let mut input = bytes;
        loop {
            let Some(link) = self.links.get(&conn) else { return };
            let max = if link.is_up() { FRAME_BYTES_MAX } else { HANDSHAKE_FRAME_BYTES_MAX };
            match reader.next(&mut input, max) {
                Ok(Some(frame)) => self.handle_frame(now, conn, frame),
                Ok(None) => break,
                Err(error) => return self.part(now, conn, &error.to_string()),
            }
        }
        if let Some(link) = self.links.get_mut(&conn) {
            link.reader = reader;
        }
        self.after_session_work(now, conn);
    }

    fn handle_frame(&mut self, now: Instant, conn: ConnId, frame: Frame<'_>) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        match &mut link.stage {
            Stage::Greeted { nonce } => {
                let nonce = core::mem::take(nonce);
                self.handle_hello(now, conn, &nonce, frame);
            }
            Stage::Refused => {}
            Stage::Up { session, .. } => match session.handle(now, frame) {
                Ok(Event::Done) => {}
                Ok(Event::Message(message)) => self.handle_message(now, conn, &message),
                Ok(Event::Stream(stream, frame)) => self.handle_stream_frame(now, conn, stream, frame),
                Err(misbehavior) => self.part(now, conn, &misbehavior.to_string()),
            },
        }
    }

    fn handle_hello(&mut self, now: Instant, conn: ConnId, nonce: &str, frame: Frame<'_>) {
        let hello = match frame {
            Frame::Json(json) => Message::parse(json).ok(),
            Frame::Stream(..) => None,
        };
        let Some(Message::Hello(hello)) = hello else {
            return self.refuse_link(conn, "the first message must be a hello");
        };
        let Hello { nonce: said, version, role, software, .. } = hello;
        if said != nonce {
            return self.refuse_link(conn, "the hello answers another nonce");
        }
        if version != VERSION {
            return self.refuse_link(conn, &format!("this server speaks version {VERSION} of the protocol"));
        }
        if self.links.values().filter(|link| link.is_up()).count() >= LINKS_MAX {
            return self.refuse_link(conn, "this server has as many links as it takes");
        }
        let session = format!("{:032x}", self.random.bits());
        let Some(link) = self.links.get_mut(&conn) else { return };
        let caller = link.caller.as_ref().map_or("nobody", Caller::name);
        info!("{conn} is {role:?} of {caller} with {}", shown(&software));
        let welcome = Message::Welcome(Welcome { session: session.into(), resumed: false, received: 0 });
        link.greeting.push_with(|out| welcome.write(out));
        link.stage = Stage::Up { role, session: Box::new(Session::new(now)) };
    }

    fn refuse_link(&mut self, conn: ConnId, reason: &str) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        warn!("{conn} refused: {reason}");
        let refused = Message::Refused { reason: reason.into() };
        link.greeting.push_with(|out| refused.write(out));
        link.stage = Stage::Refused;
        self.announce(conn);
    }

    fn handle_message(&mut self, now: Instant, conn: ConnId, message: &Message<'_>) {
        match message {
            Message::Health {} => self.report_health(now, conn),
            Message::Error { reason } => warn!("{conn} says: {}", shown(reason)),
            Message::Ack { .. }
            | Message::HealthReport(_)
            | Message::Hello(_)
            | Message::Nonce(_)
            | Message::Ping {}
            | Message::Pong {}
            | Message::Refused { .. }
            | Message::Welcome(_) => debug!("{conn} sent a message that only servers send"),
        }
    }

    fn report_health(&mut self, now: Instant, conn: ConnId) {
        let report = HealthReport {
            status: if self.is_draining() { "draining" } else { "ok" }.into(),
            connections: self.links.values().filter(|link| link.is_up()).count() as u64,
            version: self.config.version.as_str().into(),
            uptime_secs: now.since(self.started).as_secs(),
            policy: self.policy.version().into(),
            calls: self.counters.calls,
            denied: self.counters.denied,
            running: self.calls.len() as u64,
        };
        if let Some(session) = self.links.get_mut(&conn).and_then(Link::session) {
            session.send_message(&Message::HealthReport(report));
        }
    }

    fn handle_stream_frame(&mut self, now: Instant, conn: ConnId, stream: StreamId, frame: StreamFrame<'_>) {
        let call = self.links.get(&conn).and_then(|link| link.streams.get(&stream)).copied();
        match (frame, call) {
            (StreamFrame::Request { body, items }, None) => self.open_request(now, conn, stream, body, items),
            (StreamFrame::Run { terminal, tool }, None) => self.open_run(now, conn, stream, terminal, tool),
            (StreamFrame::Data { channel: Channel::Main, end, bytes, .. }, Some(call)) => {
                self.handle_body(now, call, bytes, end);
            }
            (StreamFrame::List { list, go, bytes }, Some(call)) => {
                self.handle_list(now, call, list, go, bytes);
            }
            (StreamFrame::Signal { number }, Some(call)) => self.handle_signal(call, number),
            (StreamFrame::Reset { .. }, Some(call)) => self.cancel(now, call, "cancelled by the client"),
            // Frames for a stream that has ended cross its end on the wire; a terminal's size means nothing without one.
            (
                StreamFrame::Data { .. }
                | StreamFrame::List { .. }
                | StreamFrame::Credit { .. }
                | StreamFrame::Signal { .. }
                | StreamFrame::Window { .. }
                | StreamFrame::Exit { .. }
                | StreamFrame::Failed { .. }
                | StreamFrame::Run { .. }
                | StreamFrame::Reset { .. }
                | StreamFrame::Request { .. }
                | StreamFrame::Response { .. }
                | StreamFrame::Unknown { .. },
                _,
            ) => {}
        }
    }

    fn open_request(&mut self, now: Instant, conn: ConnId, stream: StreamId, body: bool, items: Items<'_>) {
        let mut items = items;
        let texts = [items.next(), items.next(), items.next()].map(|item| item.map(core::str::from_utf8));
        let [Some(Ok(tool)), Some(Ok(method)), Some(Ok(target))] = texts else {
            return self.part(now, conn, "sent a request without tool, method or target");
        };
        if tool.len() > NAME_BYTES_MAX || method.len() > NAME_BYTES_MAX || target.len() > TARGET_BYTES_MAX {
            return self.part(now, conn, "sent a request with a tool, a method or a target that is too long");
        }
        let path = target.split('?').next().unwrap_or_default();
        let about = About {
            tool: tool.into(),
            action: ActionType::Http,
            method: method.to_owned(),
            path: path.to_owned(),
            bytes_in: 0,
            bytes_out: 0,
            events_dropped: 0,
            owes_outcome: false,
            is_audited: self.policy.tool(tool).is_none_or(|tool| tool.audit().enabled),
        };
        if let Some(call) = self.open_call(now, conn, stream, about) {
            self.judge_request(now, call, method, target, items, body);
        }
    }

    fn open_run(&mut self, now: Instant, conn: ConnId, stream: StreamId, terminal: bool, tool: &[u8]) {
        if tool.len() > NAME_BYTES_MAX {
            return self.part(now, conn, "asked for a tool with a name that is too long");
        }
        let tool = String::from_utf8_lossy(tool);
        let about = About {
            tool: (*tool).into(),
            action: ActionType::Cli,
            method: String::new(),
            path: String::new(),
            bytes_in: 0,
            bytes_out: 0,
            events_dropped: 0,
            owes_outcome: false,
            is_audited: self.policy.tool(&tool).is_none_or(|tool| tool.audit().enabled),
        };
        if let Some(id) = self.open_call(now, conn, stream, about)
            && let Some(call) = self.calls.get_mut(&id)
        {
            call.state = State::Describing(Box::new(Description { terminal, ..Description::default() }));
            call.alarm.set(&mut self.timers, Timer::Call(id), now + RUN_TIMEOUT);
        }
    }

    fn open_call(&mut self, now: Instant, conn: ConnId, stream: StreamId, about: About) -> Option<CallId> {
        let link = self.links.get_mut(&conn)?;
        if stream <= link.last_stream {
            self.part(now, conn, "used a stream id twice");
            return None;
        }
        link.last_stream = stream;
        let is_run = about.action == ActionType::Cli;
        let (Some(caller), Stage::Up { role: Role::Agent, session }) = (link.caller.clone(), &mut link.stage)
        else {
            self.part(now, conn, "is no agent and opens a stream");
            return None;
        };
        if session.streams() >= STREAMS_MAX {
            session.send_now(stream, &reset(Fault::NotStarted, "too many streams are open"));
            return None;
        }
        if is_run {
            session.accept_run(stream)
        } else {
            session.open(stream)
        }
        self.last_call += 1;
        let id = CallId(self.last_call);
        link.streams.insert(stream, id);
        let call = Call {
            link: conn,
            stream,
            caller,
            policy: self.policy.clone(),
            about,
            begun: now,
            state: State::Finishing,
            alarm: Alarm::default(),
            is_attached: true,
            untaken: Untaken::default(),
            has_no_input: false,
        };
        self.calls.insert(id, call);
        self.counters.calls += 1;
        Some(id)
    }

    // ---- to the peer ----

    /// The session of a call's link, while its stream is open.
    pub(super) fn stream(&mut self, id: CallId) -> Option<(&mut Session, StreamId)> {
        let call = self.calls.get(&id)?;
        let (conn, stream) = (call.link, call.stream);
        if !call.is_attached {
            return None;
        }
        self.links.get_mut(&conn).and_then(Link::session).map(|session| (session, stream))
    }

    /// Sends payload of a call; says whether it must wait, and its source therefore pause.
    pub(super) fn send_data(&mut self, id: CallId, channel: Channel, bytes: &[u8], end: bool) -> bool {
        let Some(conn) = self.calls.get(&id).map(|call| call.link) else { return false };
        let Some((session, stream)) = self.stream(id) else { return false };
        session.send_data(stream, channel, bytes, end, false);
        let is_clogged = session.is_clogged(stream);
        self.announce(conn);
        is_clogged
    }

    pub(super) fn send_frame(&mut self, id: CallId, frame: &StreamFrame<'_>) {
        let Some(conn) = self.calls.get(&id).map(|call| call.link) else { return };
        if let Some((session, stream)) = self.stream(id) {
            session.send(stream, frame);
            self.announce(conn);
        }
    }

    /// Payload of a call was handed on.
    pub(super) fn consumed(&mut self, id: CallId, bytes: usize) {
        let Some(conn) = self.calls.get(&id).map(|call| call.link) else { return };
        if let Some((session, stream)) = self.stream(id) {
            session.consumed(stream, bytes);
            self.announce(conn);
        }
    }

    /// Ends a call's stream at once, in both directions.
    pub(super) fn reset_stream(&mut self, id: CallId, fault: Fault, text: &str) {
        let Some(conn) = self.calls.get(&id).map(|call| call.link) else { return };
        if let Some((session, stream)) = self.stream(id) {
            session.send_now(stream, &reset(fault, text));
            self.announce(conn);
        }
        self.detach(id);
    }

    /// The stream of a call is over; the call may go on without it.
    pub(super) fn detach(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        if !core::mem::replace(&mut call.is_attached, false) {
            return;
        }
        let (conn, stream) = (call.link, call.stream);
        if let Some(link) = self.links.get_mut(&conn) {
            link.streams.remove(&stream);
            if let Some(session) = link.session() {
                session.close(stream);
            }
        }
    }

    /// Tells the driver that a link has bytes to write, if it does not know.
    fn announce(&mut self, conn: ConnId) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let greeting = link.greeting.wants_announcing();
        let session = link.session().is_some_and(Session::wants_announcing);
        if greeting || session {
            self.outputs.push_back(Output::Write(Sink::Conn(conn)));
        }
    }

    pub(super) fn handle_link_sent(&mut self, now: Instant, conn: ConnId, count: usize) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        if link.greeting.is_empty() {
            if let Some(session) = link.session() {
                session.sent(count);
            }
        } else {
            link.greeting.sent(count);
            if link.greeting.is_empty() && matches!(link.stage, Stage::Refused) {
                return self.close_link(conn);
            }
        }
        self.after_session_work(now, conn);
    }

    /// Whatever waited and no longer does goes on; the driver hears of new bytes; the wake-up is set.
    fn after_session_work(&mut self, now: Instant, conn: ConnId) {
        loop {
            let Some(link) = self.links.get_mut(&conn) else { return };
            let Some(session) = link.session() else { break };
            let Some(stream) = session.poll_unclogged() else { break };
            if let Some(call) = link.streams.get(&stream).copied() {
                self.handle_unclogged(now, call);
            }
        }
        self.announce(conn);
        let Some(link) = self.links.get_mut(&conn) else { return };
        if let Stage::Up { session, .. } = &link.stage {
            link.alarm.set(&mut self.timers, Timer::Link(conn), session.poll_timeout());
        }
    }

    pub(super) fn handle_link_timeout(&mut self, now: Instant, conn: ConnId) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        if !link.alarm.fires(&mut self.timers, Timer::Link(conn), now) {
            return;
        }
        match &mut link.stage {
            Stage::Greeted { .. } | Stage::Refused => self.part(now, conn, "did not say who it is in time"),
            Stage::Up { session, .. } => {
                if session.handle_timeout(now) {
                    self.after_session_work(now, conn);
                } else {
                    self.part(now, conn, "gave no sign of life");
                }
            }
        }
    }

    // ---- the end ----

    /// A peer broke the protocol, or is dead.
    pub(super) fn part(&mut self, now: Instant, conn: ConnId, reason: &str) {
        warn!("{conn} is closed: it {reason}");
        self.close_conn(conn);
        self.forget_link(now, conn);
    }

    /// The connection of a link is gone, or will be.
    pub(super) fn handle_link_end(&mut self, now: Instant, conn: ConnId, reason: &str) {
        info!("{conn} ended: {reason}");
        self.close_conn(conn);
        self.forget_link(now, conn);
    }

    fn forget_link(&mut self, now: Instant, conn: ConnId) {
        let Some(mut link) = self.links.remove(&conn) else { return };
        link.alarm.remove(&mut self.timers, Timer::Link(conn));
        for call in link.streams.into_values() {
            if let Some(call) = self.calls.get_mut(&call) {
                call.is_attached = false;
            }
            self.cancel(now, call, "the link was lost");
        }
    }

    /// Closes a link that carries no calls.
    pub(super) fn close_link(&mut self, conn: ConnId) {
        if let Some(mut link) = self.links.remove(&conn) {
            link.alarm.remove(&mut self.timers, Timer::Link(conn));
            self.close_conn(conn);
            for call in link.streams.into_values() {
                if let Some(call) = self.calls.get_mut(&call) {
                    call.is_attached = false;
                }
            }
        }
    }

    /// After a reload: whoever the new policy does not serve is parted with.
    pub(super) fn part_with_unadmitted(&mut self, now: Instant) {
        let policy = self.policy.clone();
        let gone: Vec<ConnId> = self
            .links
            .iter()
            .filter(|(_, link)| link.caller.as_ref().is_some_and(|caller| !policy.still_admits(caller)))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in gone {
            self.part(now, conn, "is not served any more");
        }
    }
}

const fn reset(fault: Fault, text: &str) -> StreamFrame<'_> {
    StreamFrame::Reset { fault, text: text.as_bytes() }
}

/// A peer's words, fit for one line of a log.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}
