//! The agent's connection to the server: dialled, greeted, lost, dialled again.

use super::Timer;
use crate::ids::{ConnId, StreamId};
use crate::limits::{
    FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT, OUTAGE_WAIT, REDIAL_AWAY_MAX,
    REDIAL_EAGER, REDIAL_MAX, REDIAL_MIN,
};
use crate::link::{Misbehavior, Session};
use crate::machine::{Address, DialError};
use crate::outbox::Outbox;
use crate::random::Random;
use crate::time::{Duration, Instant};
use crate::wire::frame::{FrameError, FrameReader};
use crate::wire::message::{Hello, Message, Nonce, Role, VERSION};
use core::fmt;

/// After a loss, the link is dialled eagerly for so long, whether or not somebody waits.
const EAGER_FOR: Duration = Duration::from_secs(10);
/// A session that lived this long was a good one: its loss is followed by a dial at once.
const GOOD_SESSION: Duration = Duration::from_secs(1);

/// The link as the agent has it.
#[derive(Debug)]
pub(super) struct Uplink {
    server: Address,
    software: String,
    random: Random,
    state: State,
    reader: FrameReader,
    dials: u64,
    pause: Duration,
    down_since: Instant,
    why: Why,
}

#[derive(Debug)]
enum State {
    Dialing { conn: ConnId, since: Instant },
    Greeting { conn: ConnId, since: Instant, outbox: Outbox, has_greeted: bool },
    Resting { until: Instant },
    Up(Box<Up>),
}

/// A link that stands. The session is apart from the connection, which it is to outlive one day.
#[derive(Debug)]
struct Up {
    conn: ConnId,
    since: Instant,
    session: Session,
    last_stream: u64,
}

/// What a new call can expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// The link has been down for so long that nobody waits for it.
    Down,
    /// The link is down and may be back in a moment.
    Soon,
    /// The link stands.
    Up,
}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    BadFrame(FrameError),
    BadGreeting,
    Broken,
    Closed,
    Dial(DialError),
    Misbehaved(Misbehavior),
    NotYet,
    Refused(String),
    Silent,
    Stopped,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadFrame(error) => write!(f, "the server broke the protocol: {error}"),
            Self::BadGreeting => f.write_str("what answers at the server's address is no Carapace server"),
            Self::Broken => f.write_str("the connection to the server broke"),
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Dial(DialError::NoSuchHost) => f.write_str("the server's name cannot be resolved"),
            Self::Dial(DialError::Refused) => f.write_str("nobody listens at the server's address"),
            Self::Dial(DialError::Unreachable) => f.write_str("the server cannot be reached"),
            Self::Misbehaved(misbehavior) => write!(f, "the server broke the protocol: it {misbehavior}"),
            Self::NotYet => f.write_str("the server has not been reached yet"),
            Self::Refused(reason) => write!(f, "the server refused this agent: {reason}"),
            Self::Silent => f.write_str("the server does not answer"),
            Self::Stopped => f.write_str("the agent is stopping"),
        }
    }
}

impl Why {
    /// Whether somebody is there who does not want this agent: asking again soon would not help.
    const fn is_rejection(&self) -> bool {
        match self {
            Self::BadFrame(_) | Self::BadGreeting | Self::Misbehaved(_) | Self::Refused(_) => true,
            Self::Broken | Self::Closed | Self::Dial(_) | Self::NotYet | Self::Silent | Self::Stopped => {
                false
            }
        }
    }
}

/// What a message of the server during the handshake leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeted {
    /// There is something to write.
    Answered,
    /// The link stands.
    Welcome,
}

impl Uplink {
    pub(super) fn new(now: Instant, server: Address, software: String, seed: [u8; 32]) -> Self {
        Self {
            server,
            software,
            random: Random::new(seed),
            state: State::Resting { until: now },
            reader: FrameReader::new(),
            dials: 0,
            pause: REDIAL_MIN,
            down_since: now,
            why: Why::NotYet,
        }
    }

    // ---- getters ----

    /// The connection, whatever its state.
    pub(super) fn conn(&self) -> Option<ConnId> {
        match &self.state {
            State::Dialing { conn, .. } | State::Greeting { conn, .. } => Some(*conn),
            State::Resting { .. } => None,
            State::Up(up) => Some(up.conn),
        }
    }

    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.state {
            State::Up(up) => Some(&mut up.session),
            State::Dialing { .. } | State::Greeting { .. } | State::Resting { .. } => None,
        }
    }

    pub(super) fn session_ref(&self) -> Option<&Session> {
        match &self.state {
            State::Up(up) => Some(&up.session),
            State::Dialing { .. } | State::Greeting { .. } | State::Resting { .. } => None,
        }
    }

    pub(super) fn why(&self) -> &Why {
        &self.why
    }

    pub(super) fn outlook(&self, now: Instant) -> Outlook {
        match self.state {
            State::Up(_) => Outlook::Up,
            State::Dialing { .. } | State::Greeting { .. } | State::Resting { .. } => {
                if now < self.outage_at() { Outlook::Soon } else { Outlook::Down }
            }
        }
    }

    /// When nobody waits any longer for a link that is down.
    pub(super) fn outage_at(&self) -> Instant {
        self.down_since + OUTAGE_WAIT
    }

    pub(super) fn unsent(&self) -> &[u8] {
        match &self.state {
            State::Greeting { outbox, .. } => outbox.unsent(),
            State::Up(up) => up.session.unsent(),
            State::Dialing { .. } | State::Resting { .. } => &[],
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.session_ref().map_or(0, Session::held_bytes)
    }

    /// The most that the next frame may have.
    pub(super) const fn frame_bytes_max(&self) -> usize {
        match self.state {
            State::Up(_) => FRAME_BYTES_MAX,
            State::Dialing { .. } | State::Greeting { .. } | State::Resting { .. } => {
                HANDSHAKE_FRAME_BYTES_MAX
            }
        }
    }

    /// When [`super::Agent`] must look after the link, and what for.
    pub(super) fn poll_timeout(&self) -> (Instant, Timer) {
        match &self.state {
            State::Dialing { since, .. } | State::Greeting { since, .. } => {
                (*since + HANDSHAKE_TIMEOUT, Timer::Handshake)
            }
            State::Resting { until } => (*until, Timer::Redial),
            State::Up(up) => (up.session.poll_timeout(), Timer::Session),
        }
    }

    // ---- the frame reader, lent out while frames are handled ----

    pub(super) fn take_reader(&mut self) -> FrameReader {
        core::mem::take(&mut self.reader)
    }

    pub(super) fn put_reader(&mut self, reader: FrameReader) {
        self.reader = reader;
    }

    // ---- what happens to it ----

    /// Begins a dial.
    pub(super) fn dial(&mut self, now: Instant) -> (ConnId, Address) {
        debug_assert!(self.conn().is_none(), "a second link");
        let conn = ConnId::dialed(self.dials);
        self.dials += 1;
        self.state = State::Dialing { conn, since: now };
        (conn, self.server.clone())
    }

    pub(super) fn handle_connected(&mut self, now: Instant) {
        if let State::Dialing { conn, .. } = self.state {
            self.reader = FrameReader::new();
            self.state = State::Greeting { conn, since: now, outbox: Outbox::default(), has_greeted: false };
        }
    }

    /// Bytes were written; says whether more of them wait that the driver has to be told of.
    pub(super) fn handle_sent(&mut self, count: usize) {
        match &mut self.state {
            State::Greeting { outbox, .. } => outbox.sent(count),
            State::Up(up) => up.session.sent(count),
            State::Dialing { .. } | State::Resting { .. } => {}
        }
    }

    /// Whether the driver must be told that there is something to write, and for which connection.
    pub(super) fn wants_announcing(&mut self) -> Option<ConnId> {
        match &mut self.state {
            State::Greeting { conn, outbox, .. } => outbox.wants_announcing().then_some(*conn),
            State::Up(up) => up.session.wants_announcing().then_some(up.conn),
            State::Dialing { .. } | State::Resting { .. } => None,
        }
    }

    /// Takes in a message of the handshake.
    pub(super) fn handle_greeting(&mut self, now: Instant, json: &[u8]) -> Result<Greeted, Why> {
        let State::Greeting { conn, outbox, has_greeted, .. } = &mut self.state else {
            return Err(Why::BadGreeting);
        };
        match Message::parse(json).map_err(|_| Why::BadGreeting)? {
            Message::Nonce(Nonce { nonce, version }) if !*has_greeted && version > 0 => {
                *has_greeted = true;
                let software = self.software.as_str().into();
                let version = version.min(VERSION);
                let hello = Hello { nonce, version, role: Role::Agent, software, resume: None };
                outbox.push_with(|out| Message::Hello(hello).write(out));
                Ok(Greeted::Answered)
            }
            Message::Welcome(_) if *has_greeted && outbox.is_empty() => {
                self.why = Why::NotYet;
                let up = Up { conn: *conn, since: now, session: Session::new(now), last_stream: 0 };
                self.state = State::Up(Box::new(up));
                Ok(Greeted::Welcome)
            }
            Message::Refused { reason } => Err(Why::Refused(reason.chars().take(200).collect())),
            Message::Ack { .. }
            | Message::Error { .. }
            | Message::Health {}
            | Message::HealthReport(_)
            | Message::Hello(_)
            | Message::Nonce(_)
            | Message::Ping {}
            | Message::Pong {}
            | Message::Welcome(_) => Err(Why::BadGreeting),
        }
    }

    /// A new stream's number and the session that it is in.
    pub(super) fn next_stream(&mut self) -> Option<(StreamId, &mut Session)> {
        let State::Up(up) = &mut self.state else { return None };
        up.last_stream += 1;
        Some((StreamId(up.last_stream), &mut up.session))
    }

    /// The link is gone, or never came to be. Returns the session that goes with it.
    ///
    /// The first dial after a good session is made at once; then the pauses double, shorter while somebody waits.
    pub(super) fn lose(&mut self, now: Instant, why: Why, somebody_waits: bool) -> Option<Session> {
        let is_news = why != self.why;
        log::log!(if is_news { log::Level::Info } else { log::Level::Debug }, "link down: {why}");
        let up = match core::mem::replace(&mut self.state, State::Resting { until: now }) {
            State::Up(up) => Some(up),
            State::Dialing { .. } | State::Greeting { .. } | State::Resting { .. } => None,
        };
        self.reader = FrameReader::new();
        let was_good = up.as_ref().is_some_and(|up| now.since(up.since) >= GOOD_SESSION);
        if up.is_some() {
            self.down_since = now;
        }
        if was_good {
            self.pause = REDIAL_MIN;
        } else {
            let is_eager = somebody_waits || now < self.down_since + EAGER_FOR;
            let cap = match (why.is_rejection(), is_eager) {
                (true, _) => REDIAL_MAX,
                (false, true) => REDIAL_EAGER,
                (false, false) => REDIAL_AWAY_MAX,
            };
            let pause = self.jittered(self.pause.min(cap));
            self.pause = (self.pause * 2).min(REDIAL_MAX);
            self.state = State::Resting { until: now + pause };
        }
        self.why = why;
        up.map(|up| up.session)
    }

    /// Between half of a pause and all of it: agents that lost the same server do not come back as one.
    fn jittered(&mut self, pause: Duration) -> Duration {
        let half = pause / 2;
        half + Duration::from_micros(self.random.below(u64::try_from(half.as_micros()).unwrap_or(0) + 1))
    }
}
