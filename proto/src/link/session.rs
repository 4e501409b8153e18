//! One side of a session.

use super::flow::Flow;
use crate::buffer::Buffer;
use crate::ids::StreamId;
use crate::limits::{
    ACK_BYTES, ACK_DELAY, CREDIT_INITIAL, KEEPALIVE_ANSWER, KEEPALIVE_IDLE, LINK_RETAINED_LIMIT,
    LINK_RETAINED_MAX, LINK_UNSENT_HIGH, LINK_UNSENT_LOW, SESSION_CREDIT_MAX,
};
use crate::time::Instant;
use crate::wire::frame::{Channel, Frame, PREFIX_BYTES, StreamFrame};
use crate::wire::message::{Message, MessageError};
use core::fmt;
use std::collections::{BTreeMap, VecDeque};

/// Streams, credit, counting, acknowledgement and keepalive of one side.
#[derive(Debug)]
pub struct Session {
    /// Frames from the oldest that is not acknowledged; `sent` bytes of them are written.
    wire: Buffer,
    sent: usize,
    /// Bytes written since the session began.
    written: u64,
    announced: bool,
    /// Counted frames put on the wire, and acknowledged by the peer, since the session began.
    queued: u64,
    acknowledged: u64,
    /// Counted frames received, and the number last acknowledged.
    received: u64,
    reported: u64,
    received_bytes: u64,
    ack_due: Option<Instant>,
    heard: Instant,
    pinged: Option<Instant>,
    flows: BTreeMap<StreamId, Flow>,
    /// Streams whose data waits for room on the link, next in turn first.
    line: VecDeque<StreamId>,
    epoch: u64,
    extra_windows: u64,
    unclogged: VecDeque<StreamId>,
}

/// What a frame was for.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// For the session alone; it has been dealt with.
    Done,
    /// A message that is not about the session.
    Message(Message<'a>),
    /// A frame of a stream. Data has been paid for; whoever hands it on says [`Session::consumed`]. Credit has been
    /// taken into account, and is shown for those who relay it.
    Stream(StreamId, StreamFrame<'a>),
}

/// What a peer did wrong. The link is of no further use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misbehavior {
    /// It acknowledged frames that were not sent.
    AckTooHigh,
    /// It sent payload without credit.
    NoCredit(StreamId),
    /// It takes or acknowledges nothing, and goes on asking.
    NeverAcknowledges,
    /// It sent a message that is none.
    BadMessage(String),
}

impl fmt::Display for Misbehavior {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AckTooHigh => f.write_str("acknowledged more than was sent"),
            Self::NoCredit(stream) => write!(f, "sent more than its credit on {stream}"),
            Self::NeverAcknowledges => f.write_str("acknowledges nothing of what it is sent"),
            Self::BadMessage(error) => write!(f, "sent an invalid message: {error}"),
        }
    }
}

impl Session {
    /// A new session, whose connection stands.
    pub const fn new(now: Instant) -> Self {
        Self {
            wire: Buffer::keeping(LINK_UNSENT_LOW),
            sent: 0,
            written: 0,
            announced: false,
            queued: 0,
            acknowledged: 0,
            received: 0,
            reported: 0,
            received_bytes: 0,
            ack_due: None,
            heard: now,
            pinged: None,
            flows: BTreeMap::new(),
            line: VecDeque::new(),
            epoch: 0,
            extra_windows: 0,
            unclogged: VecDeque::new(),
        }
    }

    // ---- what arrives ----

    /// Bytes arrived, of whatever frames: the peer lives.
    pub const fn heard(&mut self, now: Instant, bytes: usize) {
        self.heard = now;
        self.pinged = None;
        self.received_bytes += bytes as u64;
    }

    /// Takes in one frame.
    ///
    /// # Errors
    ///
    /// [`Misbehavior`] of the peer.
    pub fn handle<'a>(&mut self, now: Instant, frame: Frame<'a>) -> Result<Event<'a>, Misbehavior> {
        if self.wire.len() > LINK_RETAINED_LIMIT {
            return Err(Misbehavior::NeverAcknowledges);
        }
        match frame {
            Frame::Json(json) => self.handle_message(now, json),
            Frame::Stream(stream, frame) => {
                self.count(now);
                match frame {
                    StreamFrame::Credit { bytes } => {
                        if let Some(flow) = self.flows.get_mut(&stream) {
                            flow.credited(bytes);
                            self.pump(stream);
                        }
                        Ok(Event::Stream(stream, frame))
                    }
                    StreamFrame::Data { bytes, .. } => match self.flows.get_mut(&stream) {
                        Some(flow) => {
                            let paid = flow.received(bytes.len());
                            paid.then_some(Event::Stream(stream, frame)).ok_or(Misbehavior::NoCredit(stream))
                        }
                        // The stream ended here while this was under way.
                        None => Ok(Event::Done),
                    },
                    StreamFrame::Unknown { .. } => Ok(Event::Done),
                    StreamFrame::List { .. }
                    | StreamFrame::Signal { .. }
                    | StreamFrame::Window { .. }
                    | StreamFrame::Exit { .. }
                    | StreamFrame::Failed { .. }
                    | StreamFrame::Run { .. }
                    | StreamFrame::Reset { .. }
                    | StreamFrame::Request { .. }
                    | StreamFrame::Response { .. } => Ok(Event::Stream(stream, frame)),
                }
            }
        }
    }

    fn handle_message<'a>(&mut self, now: Instant, json: &'a [u8]) -> Result<Event<'a>, Misbehavior> {
        match Message::parse(json) {
            Ok(Message::Ack { received }) => self.handle_ack(received).map(|()| Event::Done),
            Ok(Message::Ping {}) => {
                self.push_message(&Message::Pong {});
                Ok(Event::Done)
            }
            Ok(Message::Pong {}) => Ok(Event::Done),
            Ok(message) => {
                self.count(now);
                Ok(Event::Message(message))
            }
            Err(MessageError::UnknownType(name)) => {
                self.count(now);
                let reason = format!("unknown message type {name:?}").into();
                self.send_message(&Message::Error { reason });
                Ok(Event::Done)
            }
            Err(MessageError::Invalid(error)) => Err(Misbehavior::BadMessage(error)),
        }
    }

    fn count(&mut self, now: Instant) {
        self.received += 1;
        if self.received_bytes >= ACK_BYTES {
            self.acknowledge();
        } else if self.ack_due.is_none() {
            self.ack_due = Some(now + ACK_DELAY);
        }
    }

    fn acknowledge(&mut self) {
        self.ack_due = None;
        self.received_bytes = 0;
        if self.reported != self.received {
            self.reported = self.received;
            self.push_message(&Message::Ack { received: self.received });
        }
    }

    fn handle_ack(&mut self, received: u64) -> Result<(), Misbehavior> {
        while self.acknowledged < received {
            let counts = self.drop_oldest().ok_or(Misbehavior::AckTooHigh)?;
            self.acknowledged += u64::from(counts);
        }
        self.drop_uncounted();
        self.refill();
        Ok(())
    }

    /// Drops what is left when everything that counts was acknowledged: acknowledgements and signs of life, which
    /// nobody will acknowledge.
    fn drop_uncounted(&mut self) {
        if self.unsent_bytes() == 0 && self.queued == self.acknowledged {
            self.wire.clear();
            self.sent = 0;
        }
    }

    /// Drops the oldest frame, which must be written whole; says whether it counts.
    fn drop_oldest(&mut self) -> Option<bool> {
        let bytes = self.wire.bytes();
        let (prefix, body) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
        let end = PREFIX_BYTES.checked_add(usize::try_from(u32::from_be_bytes(*prefix)).ok()?)?;
        if end > self.sent {
            return None;
        }
        let counts = ![&b"{\"ack\""[..], b"{\"ping\"", b"{\"pong\""].iter().any(|tag| body.starts_with(tag));
        self.wire.consume(end);
        self.sent -= end;
        Some(counts)
    }

    // ---- what leaves ----

    /// Bytes to be written to the connection.
    pub fn unsent(&self) -> &[u8] {
        self.wire.bytes().get(self.sent..).unwrap_or_default()
    }

    /// A prefix of [`Session::unsent`] was written.
    pub fn sent(&mut self, count: usize) {
        let before = self.unsent_bytes();
        self.sent = (self.sent + count).min(self.wire.len());
        let unsent = self.unsent_bytes();
        self.written += (before - unsent) as u64;
        self.announced &= unsent > 0;
        if unsent < LINK_UNSENT_LOW && before >= LINK_UNSENT_LOW {
            self.epoch += 1;
        }
        self.drop_uncounted();
        self.refill();
    }

    /// Where in the session's bytes the next frame will begin: it has left this side as soon as
    /// [`Session::written_bytes`] is more.
    pub const fn next_position(&self) -> u64 {
        self.written + self.unsent_bytes() as u64
    }

    /// How many bytes were written since the session began.
    pub const fn written_bytes(&self) -> u64 {
        self.written
    }

    /// Whether the driver must be told (once) that there is something to write.
    pub fn wants_announcing(&mut self) -> bool {
        let wants = !self.announced && self.unsent_bytes() > 0;
        self.announced |= wants;
        wants
    }

    /// Sends a message.
    pub fn send_message(&mut self, message: &Message<'_>) {
        self.queued += 1;
        self.push_message(message);
    }

    fn push_message(&mut self, message: &Message<'_>) {
        self.wire.push_with(|out| message.write(out));
    }

    /// Sends a frame of a stream other than data; it does not overtake data of the same stream.
    pub fn send(&mut self, stream: StreamId, frame: &StreamFrame<'_>) {
        match self.flows.get_mut(&stream) {
            Some(flow) if !flow.is_clear() => flow.queue_frame(stream, frame),
            Some(_) | None => self.send_now(stream, frame),
        }
    }

    /// Sends a frame of a stream before any data that waits: signals, resets.
    pub fn send_now(&mut self, stream: StreamId, frame: &StreamFrame<'_>) {
        self.queued += 1;
        self.wire.push_with(|out| frame.write(stream, out));
    }

    /// Sends payload. What there is no credit or no room for waits; see [`Session::is_clogged`].
    pub fn send_data(&mut self, stream: StreamId, channel: Channel, bytes: &[u8], end: bool, more: bool) {
        let is_congested = self.is_congested(0);
        let Some(flow) = self.flows.get_mut(&stream) else { return };
        let room = if flow.is_clear() { flow.room(bytes.len(), is_congested, self.epoch) } else { 0 };
        let goes_straight = flow.is_clear() && (room > 0 || bytes.is_empty());
        let (head, rest) = bytes.split_at(room);
        if goes_straight {
            let is_last = rest.is_empty();
            self.queued += self
                .wire
                .push_with(|out| flow.write(stream, channel, head, end && is_last, more || !is_last, out));
            if is_last {
                return;
            }
        }
        flow.queue_data(channel, end, more, rest);
        if flow.wants_room() && !flow.is_in_line {
            flow.is_in_line = true;
            self.line.push_back(stream);
        }
    }

    /// Whether data of a stream waits, so that whatever feeds it must pause until [`Session::poll_unclogged`].
    pub fn is_clogged(&self, stream: StreamId) -> bool {
        self.flows.get(&stream).is_some_and(|flow| !flow.is_clear())
    }

    /// Bytes of a stream that wait for credit or room.
    pub fn queued_bytes(&self, stream: StreamId) -> usize {
        self.flows.get(&stream).map_or(0, Flow::queued_bytes)
    }

    /// The next stream whose data no longer waits.
    pub fn poll_unclogged(&mut self) -> Option<StreamId> {
        self.unclogged.pop_front()
    }

    // ---- streams ----

    /// A stream begins, with the initial credit in both directions.
    pub fn open(&mut self, stream: StreamId) {
        self.flows.insert(stream, Flow::new(CREDIT_INITIAL, CREDIT_INITIAL));
    }

    /// A run begins on the side that asks for it: nothing of its standard input may be sent before the first grant,
    /// since a tool that takes none must leave the caller's unread.
    pub fn open_run(&mut self, stream: StreamId) {
        self.flows.insert(stream, Flow::new(0, CREDIT_INITIAL));
    }

    /// The same on the side that carries it out; [`Session::grant_initial`] lets the input come.
    pub fn accept_run(&mut self, stream: StreamId) {
        self.flows.insert(stream, Flow::new(CREDIT_INITIAL, 0));
    }

    /// Grants the initial credit that [`Session::accept_run`] held back.
    pub fn grant_initial(&mut self, stream: StreamId) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.grant(CREDIT_INITIAL);
            self.send_now(stream, &StreamFrame::Credit { bytes: CREDIT_INITIAL });
        }
    }

    /// A stream is over in both directions. What waits for it is dropped.
    pub fn close(&mut self, stream: StreamId) {
        if let Some(flow) = self.flows.remove(&stream) {
            self.extra_windows = self.extra_windows.saturating_sub(u64::from(flow.extra_window()));
        }
    }

    /// Whether a stream is open.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.flows.contains_key(&stream)
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.flows.len()
    }

    /// Payload of a stream was handed on, so that the peer may send more.
    pub fn consumed(&mut self, stream: StreamId, bytes: usize) {
        let Some(flow) = self.flows.get_mut(&stream) else { return };
        let before = flow.extra_window();
        let extra = self.extra_windows;
        let grant = flow.consumed(bytes, |more| extra + u64::from(more) <= SESSION_CREDIT_MAX);
        self.extra_windows += u64::from(flow.extra_window() - before);
        if let Some(bytes) = grant {
            self.send_now(stream, &StreamFrame::Credit { bytes });
        }
    }

    // ---- time ----

    /// When [`Session::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let alive = self.pinged.map_or(self.heard + KEEPALIVE_IDLE, |at| at + KEEPALIVE_ANSWER);
        self.ack_due.map_or(alive, |ack| ack.min(alive))
    }

    /// Acknowledges and asks for signs of life. False: the peer gave none, the connection is dead.
    #[must_use]
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.ack_due.is_some_and(|due| due <= now) {
            self.acknowledge();
        }
        match self.pinged {
            Some(at) => at + KEEPALIVE_ANSWER > now,
            None => {
                if self.heard + KEEPALIVE_IDLE <= now {
                    self.pinged = Some(now);
                    self.push_message(&Message::Ping {});
                }
                true
            }
        }
    }

    /// Counted frames received since the session began.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Bytes kept until the peer acknowledges them, unsent ones included.
    pub const fn retained_bytes(&self) -> usize {
        self.wire.len()
    }

    /// Everything this session holds for its streams and its connection.
    pub fn held_bytes(&self) -> usize {
        self.wire.len() + self.flows.values().map(Flow::queued_bytes).sum::<usize>()
    }

    const fn unsent_bytes(&self) -> usize {
        self.wire.len() - self.sent
    }

    const fn is_congested(&self, added: usize) -> bool {
        self.unsent_bytes() + added > LINK_UNSENT_HIGH || self.wire.len() + added > LINK_RETAINED_MAX
    }

    /// Writes what a stream has waiting, as far as credit and room go.
    fn pump(&mut self, stream: StreamId) {
        let (unsent, retained, epoch) = (self.unsent_bytes(), self.wire.len(), self.epoch);
        let Some(flow) = self.flows.get_mut(&stream) else { return };
        if flow.is_clear() {
            return;
        }
        let is_congested = |added| unsent + added > LINK_UNSENT_HIGH || retained + added > LINK_RETAINED_MAX;
        self.queued += self.wire.push_with(|out| flow.write_queue(stream, is_congested, epoch, out));
        if flow.is_clear() {
            self.unclogged.push_back(stream);
        } else if flow.wants_room() && !flow.is_in_line {
            flow.is_in_line = true;
            self.line.push_back(stream);
        }
    }

    /// Gives the streams in line their turn, once each, while there is room.
    fn refill(&mut self) {
        for _ in 0..self.line.len() {
            if self.unsent_bytes() >= LINK_UNSENT_LOW || self.wire.len() > LINK_RETAINED_MAX {
                return;
            }
            let Some(stream) = self.line.pop_front() else { return };
            if let Some(flow) = self.flows.get_mut(&stream) {
                flow.is_in_line = false;
                self.pump(stream);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CREDIT_MAX, FRAME_BYTES_MAX};
    use crate::wire::frame::FrameReader;

    const A: StreamId = StreamId(1);
    const B: StreamId = StreamId(2);

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    struct Pair {
        left: Session,
        right: Session,
        arrived: BTreeMap<StreamId, Vec<u8>>,
        ended: usize,
    }

    impl Pair {
        fn new() -> Self {
            let mut pair = Self {
                left: Session::new(at(0)),
                right: Session::new(at(0)),
                arrived: BTreeMap::new(),
                ended: 0,
            };
            for stream in [A, B] {
                pair.left.open(stream);
                pair.right.open(stream);
            }
            pair
        }

        /// Carries bytes left to right; the right side hands payload on when `drains`.
        fn rightwards(&mut self, now: Instant, drains: bool) {
            let bytes = self.left.unsent().to_vec();
            self.left.sent(bytes.len());
            self.right.heard(now, bytes.len());
            let (mut reader, mut input) = (FrameReader::new(), &bytes[..]);
            while let Some(frame) = reader.next(&mut input, FRAME_BYTES_MAX).unwrap() {
                if let Event::Stream(stream, StreamFrame::Data { bytes, end, .. }) =
                    self.right.handle(now, frame).unwrap()
                {
                    self.arrived.entry(stream).or_default().extend_from_slice(bytes);
                    self.ended += usize::from(end);
                    if drains {
                        self.right.consumed(stream, bytes.len());
                    }
                }
            }
        }

        fn leftwards(&mut self, now: Instant) {
            let bytes = self.right.unsent().to_vec();
            self.right.sent(bytes.len());
            self.left.heard(now, bytes.len());
            let (mut reader, mut input) = (FrameReader::new(), &bytes[..]);
            while let Some(frame) = reader.next(&mut input, FRAME_BYTES_MAX).unwrap() {
                self.left.handle(now, frame).unwrap();
            }
        }
    }

    #[test]
    fn a_stream_that_is_not_drained_stops_at_its_credit_and_goes_on_with_it() {
        let mut pair = Pair::new();
        let payload: Vec<u8> = (0..200_000u32).map(|i| i.to_le_bytes()[0]).collect();
        pair.left.send_data(A, Channel::Main, &payload, true, false);
        assert!(pair.left.is_clogged(A));
        pair.rightwards(at(1), false);
        assert_eq!(pair.arrived[&A].len(), usize::try_from(CREDIT_INITIAL).unwrap());
        pair.right.consumed(A, 16_384);
        for round in 2..50 {
            pair.leftwards(at(round));
            pair.rightwards(at(round), true);
        }
        assert_eq!(pair.arrived[&A], payload);
        assert_eq!(pair.ended, 1);
        assert_eq!(pair.left.poll_unclogged(), Some(A));
        assert_eq!(pair.left.queued_bytes(A), 0);
    }

    #[test]
    fn a_small_send_overtakes_a_bulk_one() {
        let mut pair = Pair::new();
        pair.left.handle(at(0), Frame::Stream(A, StreamFrame::Credit { bytes: 8 << 20 })).unwrap();
        pair.left.send_data(A, Channel::Main, &vec![1; LINK_UNSENT_HIGH + 1], false, false);
        pair.left.send_data(A, Channel::Main, &vec![1; 1 << 20], true, false);
        let before = pair.left.unsent().len();
        pair.left.send_data(B, Channel::Main, b"quick", true, false);
        assert!(pair.left.unsent().len() > before);
        assert!(!pair.left.is_clogged(B));
        assert!(pair.left.is_clogged(A));
    }

    #[test]
    fn windows_grow_for_a_stream_that_drains_and_never_beyond_the_cap() {
        let mut session = Session::new(at(0));
        session.open(A);
        let mut under_way = u64::from(CREDIT_INITIAL);
        for _ in 0..200 {
            let chunk = under_way.min(16_384);
            let bytes = vec![0; usize::try_from(chunk).unwrap()];
            let data = StreamFrame::Data { channel: Channel::Main, end: false, more: false, bytes: &bytes };
            session.handle(at(0), Frame::Stream(A, data)).unwrap();
            let before = session.flows[&A].extra_window();
            session.consumed(A, bytes.len());
            under_way += u64::from(session.flows[&A].extra_window() - before);
        }
        assert_eq!(session.flows[&A].extra_window(), CREDIT_MAX - CREDIT_INITIAL);
        session.close(A);
        assert_eq!(session.extra_windows, 0);
    }

    #[test]
    fn payload_without_credit_and_acknowledgements_of_nothing_are_misbehavior() {
        let mut session = Session::new(at(0));
        session.open(A);
        let bytes = vec![0; 16_385];
        let data = StreamFrame::Data { channel: Channel::Main, end: false, more: false, bytes: &bytes };
        assert_eq!(session.handle(at(0), Frame::Stream(A, data)), Err(Misbehavior::NoCredit(A)));
        session.send_now(A, &StreamFrame::Signal { number: 2 });
        let ack = Frame::Json(br#"{"ack":{"received":1}}"#);
        assert_eq!(session.handle(at(0), ack), Err(Misbehavior::AckTooHigh));
        session.sent(session.unsent().len());
        assert_eq!(session.handle(at(0), ack), Ok(Event::Done));
        assert_eq!(session.retained_bytes(), 0);
    }

    #[test]
    fn frames_are_acknowledged_after_a_while_and_then_forgotten() {
        let mut pair = Pair::new();
        pair.left.send_data(A, Channel::Main, b"one", false, false);
        pair.left.send_data(A, Channel::Main, b"two", true, false);
        pair.rightwards(at(5), true);
        assert!(pair.left.retained_bytes() > 0);
        assert!(pair.right.unsent().is_empty());
        assert_eq!(pair.right.poll_timeout(), at(25));
        assert!(pair.right.handle_timeout(at(25)));
        pair.leftwards(at(26));
        assert_eq!(pair.left.retained_bytes(), 0);
        assert_eq!(pair.right.retained_bytes(), 0);
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_given_up() {
        let mut session = Session::new(at(0));
        assert_eq!(session.poll_timeout(), at(15_000));
        assert!(session.handle_timeout(at(15_000)));
        assert!(session.unsent().ends_with(b"{\"ping\":{}}"));
        assert_eq!(session.poll_timeout(), at(25_000));
        assert!(!session.handle_timeout(at(25_000)));
        session.heard(at(25_001), 1);
        assert!(session.handle_timeout(at(25_001)));
    }

    #[test]
    fn a_run_sends_no_input_before_it_is_granted() {
        let mut pair = Pair::new();
        let run = StreamId(3);
        pair.left.open_run(run);
        pair.right.accept_run(run);
        pair.left.send_data(run, Channel::Main, b"typed", true, false);
        assert!(pair.left.unsent().is_empty() && pair.left.is_clogged(run));
        pair.right.grant_initial(run);
        pair.leftwards(at(1));
        pair.rightwards(at(1), true);
        assert_eq!((pair.arrived[&run].as_slice(), pair.ended), (&b"typed"[..], 1));
    }

    #[test]
    fn an_unknown_message_is_answered_with_an_error() {
        let mut session = Session::new(at(0));
        let message = Frame::Json(br#"{"beam":{}}"#);
        assert_eq!(session.handle(at(0), message), Ok(Event::Done));
        assert!(String::from_utf8_lossy(session.unsent()).contains("unknown message type"));
    }
}
