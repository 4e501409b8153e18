//! Frames: what the link, and a shim with its agent, are made of.
//!
//! A frame is a `u32` in network order, the length of the body, and the body. A body that begins with `{` is a JSON
//! message; any other first byte names one of the binary frames below. Numbers are in network order, lists are items
//! that each end with a NUL.
//!
//! ```text
//! every binary frame   kind u8, flags u8, stream u64, then by kind:
//! 0x01 data            bytes                     flags: channel (bits 0-1), end 0x04, more 0x08
//! 0x02 list            items                     flags: which list (bits 0-1), go 0x04
//! 0x03 credit          bytes u32
//! 0x04 signal          number u8
//! 0x05 window          rows u16, columns u16
//! 0x06 exit            code or signal u8         flags: signalled 0x01, core dumped 0x02
//! 0x07 failed          code u8, text             the run ended by Carapace's doing, not the tool's
//! 0x08 run             tool                      flags: terminal 0x01
//! 0x09 reset           code u8, text             the stream ends here, in both directions
//! 0x0a request         items: tool, method, target, then name and value of each field; flags: body follows 0x01
//! 0x0b response        status u16, then items: name and value of each field
//!                                                flags: body (bits 0-1): none, whole, stream, events
//! ```

use crate::ids::StreamId;
use crate::limits::FRAME_BYTES_MAX;
use core::fmt;

/// Bytes in front of a body: its length.
pub const PREFIX_BYTES: usize = 4;
/// Bytes in front of a binary frame's payload, behind the prefix.
pub const HEADER_BYTES: usize = 10;
/// The largest payload of one binary frame.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;

const DATA: u8 = 0x01;
const LIST: u8 = 0x02;
const CREDIT: u8 = 0x03;
const SIGNAL: u8 = 0x04;
const WINDOW: u8 = 0x05;
const EXIT: u8 = 0x06;
const FAILED: u8 = 0x07;
const RUN: u8 = 0x08;
const RESET: u8 = 0x09;
const REQUEST: u8 = 0x0a;
const RESPONSE: u8 = 0x0b;

const DATA_END: u8 = 0x04;
const DATA_MORE: u8 = 0x08;
const LIST_GO: u8 = 0x04;
const EXIT_SIGNALED: u8 = 0x01;
const EXIT_CORE: u8 = 0x02;
const RUN_TERMINAL: u8 = 0x01;
const REQUEST_BODY: u8 = 0x01;

/// Which of a stream's byte sequences a data frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// The body of a request or response; a tool's standard input.
    Main,
    /// A tool's standard output.
    Stdout,
    /// A tool's standard error.
    Stderr,
}

/// Which of a run's lists a list frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListName {
    /// Arguments, without the program's own name.
    Argv,
    /// `NAME=value` of each variable offered.
    Env,
    /// One item: the caller's working directory.
    Cwd,
}

/// What kind of body follows a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// None.
    None,
    /// All of it is at hand; the fields tell its length.
    Whole,
    /// Data as it comes.
    Stream,
    /// Server-sent events in canonical form: each unit (see `more`) is whole events or comments.
    Events,
}

/// Why a stream was reset, or a run failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller went away, or asked for it.
    Cancelled,
    /// Denied by the policy.
    Denied,
    /// There is no such tool.
    UnknownTool,
    /// Nothing was started, and trying again later may help.
    NotStarted,
    /// Something was started, and how it ended is not known.
    OutcomeUnknown,
    /// It took longer than the policy gives it.
    TimedOut,
    /// Ended because it wrote more than the policy lets it.
    TooMuchOutput,
    /// The upstream's answer was not valid, or was cut short.
    BadUpstream,
    /// The other side of the stream broke the protocol.
    Misbehaved,
    /// Anything else.
    Failed,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::Cancelled,
        Self::Denied,
        Self::UnknownTool,
        Self::NotStarted,
        Self::OutcomeUnknown,
        Self::TimedOut,
        Self::TooMuchOutput,
        Self::BadUpstream,
        Self::Misbehaved,
        Self::Failed,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Cancelled => 0,
            Self::Denied => 1,
            Self::UnknownTool => 2,
            Self::NotStarted => 3,
            Self::OutcomeUnknown => 4,
            Self::TimedOut => 5,
            Self::TooMuchOutput => 6,
            Self::BadUpstream => 7,
            Self::Misbehaved => 8,
            Self::Failed => 9,
        }
    }

    /// Newer peers may know codes that have no name here.
    fn from_code(code: u8) -> Self {
        Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Failed)
    }

    /// The status with which a shim exits: 126 denied, 127 unknown tool, 125 anything else.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Denied => 126,
            Self::UnknownTool => 127,
            Self::Cancelled
            | Self::NotStarted
            | Self::OutcomeUnknown
            | Self::TimedOut
            | Self::TooMuchOutput
            | Self::BadUpstream
            | Self::Misbehaved
            | Self::Failed => 125,
        }
    }
}

/// One frame, borrowed from the bytes it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A JSON message, not yet parsed.
    Json(&'a [u8]),
    /// A frame of a stream.
    Stream(StreamId, StreamFrame<'a>),
}

/// A binary frame: always of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFrame<'a> {
    /// Payload bytes, paid for with credit.
    Data {
        /// Which sequence they belong to.
        channel: Channel,
        /// Whether the sequence ends with them.
        end: bool,
        /// Whether the next data frame of the sequence continues the same unit: half an event must not be passed on.
        more: bool,
        /// The bytes; may be empty when `end` is set.
        bytes: &'a [u8],
    },
    /// A part of a run's list, which may be cut between any two bytes.
    List {
        /// Which list.
        list: ListName,
        /// Whether the run is described completely now.
        go: bool,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// So many more payload bytes may be sent.
    Credit {
        /// How many.
        bytes: u32,
    },
    /// Deliver a signal to the tool.
    Signal {
        /// Its number.
        number: u8,
    },
    /// The terminal has this size.
    Window {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// The tool ended, and all its output has been sent.
    Exit {
        /// Exit code, or the number of the signal.
        value: u8,
        /// Whether it died by a signal.
        signaled: bool,
        /// Whether it dumped core.
        core: bool,
    },
    /// The run ended by Carapace's doing.
    Failed {
        /// Why.
        fault: Fault,
        /// One sentence for the person at the shim.
        text: &'a [u8],
    },
    /// Opens a stream: run a tool. Its lists follow.
    Run {
        /// Whether a terminal is asked for.
        terminal: bool,
        /// The tool's name.
        tool: &'a [u8],
    },
    /// The stream ends here, in both directions.
    Reset {
        /// Why.
        fault: Fault,
        /// One sentence.
        text: &'a [u8],
    },
    /// Opens a stream: an HTTP request.
    Request {
        /// Whether a body follows as data.
        body: bool,
        /// Tool, method, target, then name and value of each field.
        items: Items<'a>,
    },
    /// The answer to a request.
    Response {
        /// Status code.
        status: u16,
        /// What follows.
        body: ResponseBody,
        /// Name and value of each field.
        items: Items<'a>,
    },
    /// A kind that this version does not know: counted, and otherwise ignored.
    Unknown {
        /// The kind.
        kind: u8,
    },
}

/// A NUL-separated list; iterates over its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Items<'a>(pub &'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = memchr::memchr(0, self.0).unwrap_or(self.0.len());
        let (item, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..).unwrap_or_default();
        Some(item)
    }
}

/// Appends one item of a list. An item that holds a NUL would be two and must not be written.
pub fn push_item(list: &mut Vec<u8>, item: &[u8]) {
    debug_assert!(!item.contains(&0), "a list item with a NUL in it");
    list.extend_from_slice(item);
    list.push(0);
}

/// Why bytes are not frames. The connection they came from is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A frame announces more than it may have.
    TooLong {
        /// The length announced.
        announced: u32,
        /// The most that would do.
        max: usize,
    },
    /// A frame has no body, or not all of the parts that its kind has.
    Short,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { announced, max } => {
                write!(f, "a frame announces {announced} bytes, at most {max} are allowed")
            }
            Self::Short => f.write_str("a frame is shorter than its kind"),
        }
    }
}

impl core::error::Error for FrameError {}

impl<'a> Frame<'a> {
    /// Reads a frame's body.
    ///
    /// # Errors
    ///
    /// [`FrameError::Short`] when parts are missing.
    pub fn parse(body: &'a [u8]) -> Result<Self, FrameError> {
        if body.first() == Some(&b'{') {
            return Ok(Self::Json(body));
        }
        let (header, payload) = body.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Short)?;
        let [kind, flags, stream @ ..] = *header;
        let stream = StreamId(u64::from_be_bytes(stream));
        Ok(Self::Stream(stream, StreamFrame::parse(kind, flags, payload)?))
    }
}

impl<'a> StreamFrame<'a> {
    fn parse(kind: u8, flags: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let set = |bit: u8| flags & bit != 0;
        Ok(match kind {
            DATA => Self::Data {
                channel: match flags & 0x03 {
                    1 => Channel::Stdout,
                    2 => Channel::Stderr,
                    _ => Channel::Main,
                },
                end: set(DATA_END),
                more: set(DATA_MORE),
                bytes: payload,
            },
            LIST => Self::List {
                list: match flags & 0x03 {
                    1 => ListName::Env,
                    2 => ListName::Cwd,
                    _ => ListName::Argv,
                },
                go: set(LIST_GO),
                bytes: payload,
            },
            CREDIT => Self::Credit { bytes: u32::from_be_bytes(array(payload)?) },
            SIGNAL => Self::Signal { number: u8::from_be_bytes(array(payload)?) },
            WINDOW => {
                let [a, b, c, d] = array(payload)?;
                Self::Window { rows: u16::from_be_bytes([a, b]), columns: u16::from_be_bytes([c, d]) }
            }
            EXIT => Self::Exit {
                value: u8::from_be_bytes(array(payload)?),
                signaled: set(EXIT_SIGNALED),
                core: set(EXIT_CORE),
            },
            FAILED | RESET => {
                let (code, text) = payload.split_first().ok_or(FrameError::Short)?;
                let fault = Fault::from_code(*code);
                if kind == FAILED { Self::Failed { fault, text } } else { Self::Reset { fault, text } }
            }
            RUN => Self::Run { terminal: set(RUN_TERMINAL), tool: payload },
            REQUEST => Self::Request { body: set(REQUEST_BODY), items: Items(payload) },
            RESPONSE => {
                let (status, items) = payload.split_first_chunk::<2>().ok_or(FrameError::Short)?;
                let body = match flags & 0x03 {
                    1 => ResponseBody::Whole,
                    2 => ResponseBody::Stream,
                    3 => ResponseBody::Events,
                    _ => ResponseBody::None,
                };
                Self::Response { status: u16::from_be_bytes(*status), body, items: Items(items) }
            }
            kind => Self::Unknown { kind },
        })
    }

    /// Appends the frame to `out`. A payload beyond [`PAYLOAD_BYTES_MAX`] is our own mistake; readers refuse it.
    pub fn write(&self, stream: StreamId, out: &mut Vec<u8>) {
        match *self {
            Self::Data { channel, end, more, bytes } => {
                let channel = match channel {
                    Channel::Main => 0,
                    Channel::Stdout => 1,
                    Channel::Stderr => 2,
                };
                let flags = channel | flag(end, DATA_END) | flag(more, DATA_MORE);
                binary(out, DATA, flags, stream, &[bytes]);
            }
            Self::List { list, go, bytes } => {
                let list = match list {
                    ListName::Argv => 0,
                    ListName::Env => 1,
                    ListName::Cwd => 2,
                };
                binary(out, LIST, list | flag(go, LIST_GO), stream, &[bytes]);
            }
            Self::Credit { bytes } => binary(out, CREDIT, 0, stream, &[&bytes.to_be_bytes()]),
            Self::Signal { number } => binary(out, SIGNAL, 0, stream, &[&[number]]),
            Self::Window { rows, columns } => {
                binary(out, WINDOW, 0, stream, &[&rows.to_be_bytes(), &columns.to_be_bytes()]);
            }
            Self::Exit { value, signaled, core } => {
                let flags = flag(signaled, EXIT_SIGNALED) | flag(core, EXIT_CORE);
                binary(out, EXIT, flags, stream, &[&[value]]);
            }
            Self::Failed { fault, text } => binary(out, FAILED, 0, stream, &[&[fault.code()], text]),
            Self::Run { terminal, tool } => binary(out, RUN, flag(terminal, RUN_TERMINAL), stream, &[tool]),
            Self::Reset { fault, text } => binary(out, RESET, 0, stream, &[&[fault.code()], text]),
            Self::Request { body, items } => {
                binary(out, REQUEST, flag(body, REQUEST_BODY), stream, &[items.0]);
            }
            Self::Response { status, body, items } => {
                let flags = match body {
                    ResponseBody::None => 0,
                    ResponseBody::Whole => 1,
                    ResponseBody::Stream => 2,
                    ResponseBody::Events => 3,
                };
                binary(out, RESPONSE, flags, stream, &[&status.to_be_bytes(), items.0]);
            }
            Self::Unknown { kind } => binary(out, kind, 0, stream, &[]),
        }
    }
}

fn binary(out: &mut Vec<u8>, kind: u8, flags: u8, stream: StreamId, payload: &[&[u8]]) {
    let bytes: usize = payload.iter().map(|part| part.len()).sum();
    debug_assert!(bytes <= PAYLOAD_BYTES_MAX, "a frame of {bytes} bytes");
    out.reserve(PREFIX_BYTES + HEADER_BYTES + bytes);
    out.extend_from_slice(&length(HEADER_BYTES + bytes));
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.0.to_be_bytes());
    for part in payload {
        out.extend_from_slice(part);
    }
}

/// Appends a JSON message, which begins with `{`, as a frame.
pub fn write_json(json: &[u8], out: &mut Vec<u8>) {
    debug_assert!(json.first() == Some(&b'{') && json.len() <= FRAME_BYTES_MAX);
    out.extend_from_slice(&length(json.len()));
    out.extend_from_slice(json);
}

const fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn length(bytes: usize) -> [u8; PREFIX_BYTES] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

fn array<const N: usize>(payload: &[u8]) -> Result<[u8; N], FrameError> {
    payload.try_into().map_err(|_| FrameError::Short)
}

/// Finds frames in bytes that come in any pieces. Keeps at most one frame that is not yet whole.
#[derive(Debug, Default)]
pub struct FrameReader {
    partial: Vec<u8>,
    /// Whether `partial` was handed out whole and is to be dropped.
    spent: bool,
}

impl FrameReader {
    /// A reader at the beginning of a frame.
    pub const fn new() -> Self {
        Self { partial: Vec::new(), spent: false }
    }

    /// Takes the next whole frame from the front of `input`; `None` when it holds none, and then all of it was taken.
    ///
    /// `max` is the most that a body may have; it can be smaller before a peer has said who it is.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; nothing that follows can be read.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
        max: usize,
    ) -> Result<Option<Frame<'a>>, FrameError> {
        if self.spent {
            *self = Self::new();
        }
        if self.partial.is_empty() {
            if let Some((body, rest)) = whole(input, max)? {
                *input = rest;
                return Frame::parse(body).map(Some);
            }
            self.partial.extend_from_slice(input);
            *input = &[];
            return Ok(None);
        }
        self.fill(input, PREFIX_BYTES);
        let Some(prefix) = self.partial.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let bytes = body_length(*prefix, max)?;
        self.fill(input, PREFIX_BYTES + bytes);
        if self.partial.len() < PREFIX_BYTES + bytes {
            return Ok(None);
        }
        self.spent = true;
        Frame::parse(self.partial.get(PREFIX_BYTES..).unwrap_or_default()).map(Some)
    }

    /// Whether a frame has begun that is not whole.
    pub const fn is_mid_frame(&self) -> bool {
        !self.spent && !self.partial.is_empty()
    }

    fn fill(&mut self, input: &mut &[u8], want: usize) {
        let missing = want.saturating_sub(self.partial.len()).min(input.len());
        if let Some((head, rest)) = input.split_at_checked(missing) {
            self.partial.extend_from_slice(head);
            *input = rest;
        }
    }
}

/// A frame's body, and what follows it.
type Whole<'i> = (&'i [u8], &'i [u8]);

/// The first whole body in `input`.
fn whole(input: &[u8], max: usize) -> Result<Option<Whole<'_>>, FrameError> {
    let Some((prefix, rest)) = input.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let bytes = body_length(*prefix, max)?;
    Ok(rest.split_at_checked(bytes))
}

fn body_length(prefix: [u8; PREFIX_BYTES], max: usize) -> Result<usize, FrameError> {
    let announced = u32::from_be_bytes(prefix);
    match usize::try_from(announced) {
        Ok(0) => Err(FrameError::Short),
        Ok(bytes) if bytes <= max => Ok(bytes),
        _ => Err(FrameError::TooLong { announced, max }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(0x0102_0304_0506_0708);

    fn examples() -> Vec<StreamFrame<'static>> {
        vec![
            StreamFrame::Data { channel: Channel::Stderr, end: true, more: false, bytes: b"" },
            StreamFrame::Data { channel: Channel::Main, end: false, more: true, bytes: b"{\0\xff" },
            StreamFrame::List { list: ListName::Env, go: true, bytes: b"A=1\0B=\0" },
            StreamFrame::Credit { bytes: 65_536 },
            StreamFrame::Signal { number: 15 },
            StreamFrame::Window { rows: 24, columns: 80 },
            StreamFrame::Exit { value: 11, signaled: true, core: true },
            StreamFrame::Failed { fault: Fault::TimedOut, text: b"too slow" },
            StreamFrame::Run { terminal: true, tool: b"op" },
            StreamFrame::Reset { fault: Fault::Cancelled, text: b"" },
            StreamFrame::Request { body: true, items: Items(b"t\0GET\0/\0Accept\0\0") },
            StreamFrame::Response { status: 200, body: ResponseBody::Events, items: Items(b"") },
            StreamFrame::Unknown { kind: 0x55 },
        ]
    }

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in examples() {
            frame.write(STREAM, &mut bytes);
        }
        write_json(b"{\"ping\":{}}", &mut bytes);
        bytes
    }

    fn read_in_pieces(bytes: &[u8], piece: usize) -> usize {
        let mut reader = FrameReader::new();
        let mut expected = examples().into_iter();
        let mut seen = 0;
        for mut input in bytes.chunks(piece) {
            while let Some(frame) = reader.next(&mut input, FRAME_BYTES_MAX).unwrap() {
                match expected.next() {
                    Some(want) => assert_eq!(frame, Frame::Stream(STREAM, want)),
                    None => assert_eq!(frame, Frame::Json(b"{\"ping\":{}}")),
                }
                seen += 1;
            }
        }
        assert!(!reader.is_mid_frame());
        seen
    }

    #[test]
    fn frames_survive_any_cut() {
        let bytes = written();
        for piece in (1..40).chain([bytes.len()]) {
            assert_eq!(read_in_pieces(&bytes, piece), examples().len() + 1, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_a_byte_of_it_arrives() {
        let mut reader = FrameReader::new();
        let mut input: &[u8] = &[0xff, 0xff, 0xff, 0xff];
        assert_eq!(
            reader.next(&mut input, FRAME_BYTES_MAX),
            Err(FrameError::TooLong { announced: u32::MAX, max: FRAME_BYTES_MAX })
        );
        let mut reader = FrameReader::new();
        let mut input: &[u8] = &[0, 0, 0x20, 0];
        assert!(reader.next(&mut input, 4096).is_err());
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut reader = FrameReader::new();
        let mut input: &[u8] = &65_536u32.to_be_bytes();
        assert_eq!(reader.next(&mut input, FRAME_BYTES_MAX), Ok(None));
        assert!(reader.partial.capacity() < 64);
    }

    #[test]
    fn frames_with_parts_missing_are_refused() {
        for body in
            [&[][..], &[DATA], &[CREDIT, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[EXIT, 0, 0, 0, 0, 0, 0, 0, 0, 1]]
        {
            assert_eq!(Frame::parse(body), Err(FrameError::Short), "{body:?}");
        }
        let mut reader = FrameReader::new();
        assert_eq!(reader.next(&mut &[0, 0, 0, 0][..], 10), Err(FrameError::Short));
    }

    #[test]
    fn items_keep_empty_ones_apart_from_none() {
        assert_eq!(Items(b"").count(), 0);
        assert_eq!(Items(b"\0").collect::<Vec<_>>(), [b""]);
        assert_eq!(Items(b"a\0\0b\0").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
    }
}
