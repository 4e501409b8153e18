//! A shim's connection: one run, relayed to the server frame by frame.
//!
//! A shim speaks the link's frames without a session, on stream 1 alone. What it wants is collected until it is
//! described completely; then its frames pass through, and only the accounts of credit are kept here.

use super::Timer;
use super::hub::{Hub, StreamKind};
use super::uplink::Outlook;
use crate::ids::{ConnId, StreamId};
use crate::limits::{FRAME_BYTES_MAX, RUN_LISTS_BYTES_MAX, RUN_TIMEOUT, RUNS_BYTES_MAX};
use crate::machine::Closing;
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::timers::Alarm;
use crate::wire::frame::{Channel, Fault, Frame, FrameReader, StreamFrame};

/// The one stream of a shim's connection.
const OWN: StreamId = StreamId(1);

#[derive(Debug)]
pub(super) struct ShimConn {
    id: ConnId,
    state: State,
    reader: FrameReader,
    outbox: Outbox,
    alarm: Alarm,
    since: Instant,
    is_paused: bool,
    has_ended: bool,
}

#[derive(Debug)]
enum State {
    Closed,
    /// `frames`: the run and its lists, as the server is to get them.
    Describing {
        frames: Vec<u8>,
    },
    /// Everything was said; the connection ends when it is written.
    Ending,
    Running(Run),
    /// Described, and there is no link for it yet.
    Waiting {
        frames: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Run {
    stream: StreamId,
    /// Where in the session's bytes it begins.
    position: u64,
    /// Standard input that the server has asked for and the shim has not sent.
    allowance: u64,
    /// Output that the shim was given and has not handed on.
    delivered: u64,
    is_clogged: bool,
}

/// What a shim did that none does.
type Misstep = &'static str;

/// Why nothing is taken on any more.
pub(super) const STOPPING: &str = "not started: the agent is stopping";

impl ShimConn {
    pub(super) fn new(now: Instant, id: ConnId) -> Self {
        Self {
            id,
            state: State::Describing { frames: Vec::new() },
            reader: FrameReader::new(),
            outbox: Outbox::default(),
            alarm: Alarm::default(),
            since: now,
            is_paused: false,
            has_ended: false,
        }
    }

    // ---- what the shim does ----

    pub(super) fn handle_bytes(&mut self, now: Instant, hub: &mut Hub, bytes: &[u8]) {
        if matches!(self.state, State::Ending | State::Closed) {
            return;
        }
        let mut reader = core::mem::take(&mut self.reader);
        let mut input = bytes;
        loop {
            let step = match reader.next(&mut input, FRAME_BYTES_MAX) {
                Ok(Some(Frame::Stream(OWN, frame))) => self.handle_own_frame(now, hub, frame),
                Ok(Some(Frame::Stream(..))) => Err("a frame of a stream that is not its own"),
                Ok(Some(Frame::Json(_))) => Err("a message where none is expected"),
                Ok(None) => break,
                Err(error) => {
                    log::debug!("{}: {error}", self.id);
                    Err("something that is no frame")
                }
            };
            if let Err(misstep) = step {
                log::warn!("{}: the shim sent {misstep}", self.id);
                self.fail(hub, Fault::Misbehaved, misstep);
            }
            if matches!(self.state, State::Ending | State::Closed) {
                break;
            }
        }
        if !matches!(self.state, State::Ending | State::Closed) {
            self.reader = reader;
        }
        self.settle(hub);
    }

    fn handle_own_frame(
        &mut self,
        now: Instant,
        hub: &mut Hub,
        frame: StreamFrame<'_>,
    ) -> Result<(), Misstep> {
        match &mut self.state {
            State::Describing { frames } => {
                let before = frames.len();
                let is_done = describe(frames, &frame)?;
                hub.described_bytes += frames.len() - before;
                if frames.len() > RUN_LISTS_BYTES_MAX + FRAME_BYTES_MAX {
                    return Err("more arguments and environment than any program takes");
                }
                if is_done {
                    self.start(now, hub);
                } else if hub.described_bytes > RUNS_BYTES_MAX {
                    self.fail(hub, Fault::NotStarted, "not started: too many runs begin at once");
                }
                Ok(())
            }
            State::Waiting { frames } => match frame {
                StreamFrame::Signal { .. } | StreamFrame::Window { .. } => {
                    let before = frames.len();
                    frame.write(OWN, frames);
                    hub.described_bytes += frames.len() - before;
                    if frames.len() > RUN_LISTS_BYTES_MAX + 2 * FRAME_BYTES_MAX {
                        return Err("more signals than anybody sends");
                    }
                    Ok(())
                }
                StreamFrame::Unknown { .. } => Ok(()),
                StreamFrame::Credit { .. }
                | StreamFrame::Data { .. }
                | StreamFrame::Exit { .. }
                | StreamFrame::Failed { .. }
                | StreamFrame::List { .. }
                | StreamFrame::Request { .. }
                | StreamFrame::Reset { .. }
                | StreamFrame::Response { .. }
                | StreamFrame::Run { .. } => Err("something that nobody asked for yet"),
            },
            State::Running(run) => run.relay(hub, frame),
            State::Closed | State::Ending => Ok(()),
        }
    }

    pub(super) fn handle_sent(&mut self, hub: &mut Hub, count: usize) {
        self.outbox.sent(count);
        self.settle(hub);
    }

    /// The shim is gone: nothing but its death makes it close its side.
    pub(super) fn handle_eof(&mut self, hub: &mut Hub) {
        self.has_ended = true;
        if !matches!(self.state, State::Ending) {
            self.leave(hub, Closing::Orderly);
        }
        self.settle(hub);
    }

    pub(super) fn handle_lost(&mut self, hub: &mut Hub) {
        self.cancel(hub);
        self.forget(hub);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, hub: &mut Hub) {
        if self.alarm.fires(&mut hub.timers, Timer::Client(self.id), now) {
            self.fail(hub, Fault::Misbehaved, "no request came in time");
            self.settle(hub);
        }
    }

    // ---- what the server and the link do ----

    /// Takes in a frame of this connection's stream.
    pub(super) fn handle_frame(&mut self, hub: &mut Hub, frame: StreamFrame<'_>) {
        let State::Running(run) = &mut self.state else { return };
        match frame {
            StreamFrame::Data { channel: Channel::Stdout | Channel::Stderr, bytes, .. } => {
                run.delivered += bytes.len() as u64;
                self.outbox.push_with(|out| frame.write(OWN, out));
            }
            StreamFrame::Credit { bytes } => {
                run.allowance = run.allowance.saturating_add(u64::from(bytes));
                self.outbox.push_with(|out| frame.write(OWN, out));
            }
            StreamFrame::Exit { .. } | StreamFrame::Failed { .. } => {
                hub.close_stream(run.stream);
                self.outbox.push_with(|out| frame.write(OWN, out));
                self.state = State::Ending;
            }
            StreamFrame::Reset { fault, text } => {
                hub.close_stream(run.stream);
                self.outbox.push_with(|out| StreamFrame::Failed { fault, text }.write(OWN, out));
                self.state = State::Ending;
            }
            StreamFrame::Unknown { .. } => {}
            StreamFrame::Data { channel: Channel::Main, .. }
            | StreamFrame::List { .. }
            | StreamFrame::Request { .. }
            | StreamFrame::Response { .. }
            | StreamFrame::Run { .. }
            | StreamFrame::Signal { .. }
            | StreamFrame::Window { .. } => {
                log::warn!("{}: the server sent a frame that has no place in a run", run.stream);
                hub.reset(run.stream, Fault::Misbehaved, "a frame that has no place in a run");
                self.end(Fault::OutcomeUnknown, "the server broke the protocol; the outcome is unknown");
            }
        }
        self.settle(hub);
    }

    /// The session is gone. What was written of it may have reached the server.
    pub(super) fn handle_link_lost(&mut self, hub: &mut Hub, written: u64) {
        let State::Running(run) = self.state else { return };
        if written > run.position {
            self.end(Fault::OutcomeUnknown, "the link to the server was lost; the outcome is unknown");
        } else {
            self.end(Fault::NotStarted, &format!("not started: {}", hub.uplink.why()));
        }
        self.settle(hub);
    }

    /// The link stands, or nobody waits for it any longer.
    pub(super) fn handle_outlook(&mut self, now: Instant, hub: &mut Hub) {
        if matches!(self.state, State::Waiting { .. }) {
            self.start(now, hub);
            self.settle(hub);
        }
    }

    pub(super) fn handle_unclogged(&mut self, hub: &mut Hub) {
        if let State::Running(run) = &mut self.state {
            run.is_clogged = false;
            self.settle(hub);
        }
    }

    /// Nothing new is to begin: also not what somebody is still describing.
    pub(super) fn handle_drain(&mut self, now: Instant, hub: &mut Hub) {
        match self.state {
            State::Describing { .. } => self.turn_away(hub, STOPPING),
            State::Waiting { .. } => self.handle_outlook(now, hub),
            State::Closed | State::Ending | State::Running(_) => {}
        }
    }

    /// The time for a drain is over.
    pub(super) fn abort(&mut self, hub: &mut Hub) {
        self.leave(hub, Closing::Orderly);
    }

    /// Nothing is taken on.
    pub(super) fn turn_away(&mut self, hub: &mut Hub, why: &str) {
        self.fail(hub, Fault::NotStarted, why);
        self.settle(hub);
    }

    // ---- inside ----

    /// Hands a described run to the server, if there is one.
    fn start(&mut self, now: Instant, hub: &mut Hub) {
        let frames = match core::mem::replace(&mut self.state, State::Ending) {
            State::Describing { frames } | State::Waiting { frames } => frames,
            other @ (State::Closed | State::Ending | State::Running(_)) => {
                self.state = other;
                return;
            }
        };
        let outlook = hub.outlook(now);
        if outlook == Outlook::Soon {
            hub.waiting.insert(self.id);
            self.state = State::Waiting { frames };
            return;
        }
        hub.waiting.remove(&self.id);
        hub.described_bytes -= frames.len();
        if outlook == Outlook::Down {
            let text = format!("not started: {}", hub.why_down());
            return self.end(Fault::NotStarted, &text);
        }
        let Some((stream, session)) = hub.open(self.id, StreamKind::Run) else { return };
        let position = session.next_position();
        let (mut reader, mut input) = (FrameReader::new(), &frames[..]);
        while let Ok(Some(Frame::Stream(_, frame))) = reader.next(&mut input, FRAME_BYTES_MAX) {
            session.send(stream, &frame);
        }
        log::debug!("{stream} is a run of {}", self.id);
        self.state = State::Running(Run { stream, position, allowance: 0, delivered: 0, is_clogged: false });
    }

    /// Ends the run, whatever has become of it, by the agent's doing.
    fn fail(&mut self, hub: &mut Hub, fault: Fault, text: &str) {
        self.cancel(hub);
        self.end(fault, text);
    }

    fn end(&mut self, fault: Fault, text: &str) {
        let frame = StreamFrame::Failed { fault, text: text.as_bytes() };
        self.outbox.push_with(|out| frame.write(OWN, out));
        self.state = State::Ending;
    }

    /// Gives back what the state holds of the hub; the caller goes to another one.
    fn cancel(&mut self, hub: &mut Hub) {
        match &mut self.state {
            State::Describing { frames } | State::Waiting { frames } => {
                hub.described_bytes -= frames.len();
                frames.clear();
                hub.waiting.remove(&self.id);
            }
            State::Running(run) => {
                log::debug!("{} cancelled: {} is gone", run.stream, self.id);
                hub.reset(run.stream, Fault::Cancelled, "");
            }
            State::Closed | State::Ending => {}
        }
    }

    fn leave(&mut self, hub: &mut Hub, how: Closing) {
        self.cancel(hub);
        hub.close(self.id, how);
        self.forget(hub);
    }

    fn forget(&mut self, hub: &mut Hub) {
        self.alarm.remove(&mut hub.timers, Timer::Client(self.id));
        self.state = State::Closed;
        self.outbox = Outbox::default();
    }

    pub(super) fn settle(&mut self, hub: &mut Hub) {
        if matches!(self.state, State::Ending) && (self.outbox.is_empty() || self.has_ended) {
            self.leave(hub, Closing::Orderly);
        }
        match &self.state {
            State::Closed => return,
            State::Describing { .. } => {
                self.alarm.set(&mut hub.timers, Timer::Client(self.id), self.since + RUN_TIMEOUT);
            }
            // A shim that was stopped by job control reads nothing for hours, and is to go on then.
            State::Ending | State::Running(_) | State::Waiting { .. } => self.alarm.clear(),
        }
        hub.announce(self.id, &mut self.outbox);
        let is_clogged = matches!(self.state, State::Running(Run { is_clogged: true, .. }));
        hub.read_when(self.id, !is_clogged, &mut self.is_paused);
    }

    // ---- getters ----

    pub(super) fn unsent(&self) -> &[u8] {
        self.outbox.unsent()
    }

    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    pub(super) const fn stream(&self) -> Option<StreamId> {
        match self.state {
            State::Running(run) => Some(run.stream),
            State::Closed | State::Describing { .. } | State::Ending | State::Waiting { .. } => None,
        }
    }

    pub(super) const fn described_bytes(&self) -> usize {
        match &self.state {
            State::Describing { frames } | State::Waiting { frames } => frames.len(),
            State::Closed | State::Ending | State::Running(_) => 0,
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.outbox.len() + self.described_bytes()
    }

    pub(super) fn check_invariants(&self, hub: &Hub) {
        assert!(!self.is_closed(), "{} is closed and still there", self.id);
        let is_waiting = matches!(self.state, State::Waiting { .. });
        assert_eq!(is_waiting, hub.waiting.contains(&self.id), "{}: {:?}", self.id, self.state);
        assert!(!matches!(self.state, State::Ending) || !self.outbox.is_empty(), "{} ended", self.id);
    }
}

impl Run {
    /// Passes a frame of the shim on to the server.
    fn relay(&mut self, hub: &mut Hub, frame: StreamFrame<'_>) -> Result<(), Misstep> {
        let Some(session) = hub.uplink.session() else { return Ok(()) };
        match frame {
            StreamFrame::Data { channel: Channel::Main, end, bytes, .. } => {
                let left = self.allowance.checked_sub(bytes.len() as u64);
                self.allowance = left.ok_or("more of its input than was asked for")?;
                session.send_data(self.stream, Channel::Main, bytes, end, false);
                self.is_clogged = session.is_clogged(self.stream);
                Ok(())
            }
            StreamFrame::Credit { bytes } => {
                let left = self.delivered.checked_sub(u64::from(bytes));
                self.delivered = left.ok_or("credit for output that it was not given")?;
                session.consumed(self.stream, usize::try_from(bytes).unwrap_or(usize::MAX));
                Ok(())
            }
            StreamFrame::Signal { .. } => {
                session.send_now(self.stream, &frame);
                Ok(())
            }
            StreamFrame::Window { .. } => {
                session.send(self.stream, &frame);
                Ok(())
            }
            StreamFrame::Unknown { .. } => Ok(()),
            StreamFrame::Data { .. }
            | StreamFrame::Exit { .. }
            | StreamFrame::Failed { .. }
            | StreamFrame::List { .. }
            | StreamFrame::Request { .. }
            | StreamFrame::Reset { .. }
            | StreamFrame::Response { .. }
            | StreamFrame::Run { .. } => Err("a frame that has no place in a run"),
        }
    }
}

/// Adds a frame of the description; says whether it was the last.
fn describe(frames: &mut Vec<u8>, frame: &StreamFrame<'_>) -> Result<bool, Misstep> {
    let is_first = frames.is_empty();
    let is_done = match frame {
        StreamFrame::Run { tool, .. } if is_first && !tool.is_empty() && !tool.contains(&0) => false,
        StreamFrame::List { go, .. } if !is_first => *go,
        StreamFrame::Unknown { .. } => return Ok(false),
        StreamFrame::Credit { .. }
        | StreamFrame::Data { .. }
        | StreamFrame::Exit { .. }
        | StreamFrame::Failed { .. }
        | StreamFrame::List { .. }
        | StreamFrame::Request { .. }
        | StreamFrame::Reset { .. }
        | StreamFrame::Response { .. }
        | StreamFrame::Run { .. }
        | StreamFrame::Signal { .. }
        | StreamFrame::Window { .. } => return Err("something other than what it wants to run"),
    };
    frame.write(OWN, frames);
    Ok(is_done)
}
