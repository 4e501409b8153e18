//! HTTP/1.1 messages (RFC 9112) as pure functions over slices: heads in, bodies in, heads out.
//!
//! Both daemons stand between two parties that may each try to make them read a message differently from its
//! neighbour, so whatever has more than one reading is refused, never repaired. What was received is not kept:
//! the caller owns its input buffer, hands over what it has, and is told how much of it is used up.

mod body;
mod date;
mod fields;
mod request;
mod response;
mod scan;
mod target;
mod write;

pub use body::{BodyDecoder, BodyError, Decoded};
pub use date::HttpDate;
pub use fields::{Field, Fields, is_hop_by_hop, is_json, media_type_is, passes_response};
pub use request::{RequestFraming, RequestHead, parse_request, parse_request_from};
pub use response::{ResponseFraming, ResponseHead, parse_response, parse_response_from};
pub use scan::HeadScanner;
pub use target::{TargetError, host_is_allowed, parse_target};
pub use write::{
    Answer, CONTINUE, Framing, LAST_CHUNK, ResponseMeta, WriteError, reason, write_answer, write_chunk,
    write_chunk_header, write_request_head, write_response_head,
};

/// How large a head may become before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// The whole head, from the first byte of its start line to the empty line.
    pub head_bytes_max: usize,
    /// Field lines; never more than [`HeadLimits::FIELDS_CEILING`], whatever is set here.
    pub fields_max: usize,
    /// The request target alone (RFC 9112, section 3, recommends at least 8,000).
    pub target_bytes_max: usize,
}

impl HeadLimits {
    /// The most field lines that the parser has room for.
    pub const FIELDS_CEILING: usize = 128;
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { head_bytes_max: 64 * 1024, fields_max: 100, target_bytes_max: 8 * 1024 }
    }
}

/// The protocol version of a start line (RFC 9112, section 2.3). No other is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunks, no keep-alive here.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// A CR or LF that is not half of a CRLF (RFC 9112, section 2.2).
    BareLineBreak,
    /// A Connection, Content-Type, Host, ... whose value cannot be what its field means.
    BadValue(&'static str),
    /// Content-Length beside Transfer-Encoding (RFC 9112, section 6.3, rule 3).
    ConflictingFraming,
    /// A NUL (RFC 9110, section 5.5).
    ControlByte,
    /// Content-Lengths that are not the same digits.
    DifferingLengths,
    /// A field that may come once came again.
    Duplicate(&'static str),
    /// Expect with anything but `100-continue` (RFC 9110, section 10.1.1).
    Expectation,
    /// A field name or value outside its grammar, white space before a colon among it (RFC 9112, section 5.1).
    FieldSyntax,
    /// A field line continued on the next one (RFC 9112, section 5.2).
    Folded,
    /// The head passes `head_bytes_max`.
    HeadTooLarge {
        /// The limit.
        max: usize,
    },
    /// A Content-Length that is not a plain number below 2^64.
    MalformedLength,
    /// The method passes what any method needs.
    MethodTooLong,
    /// An HTTP/1.1 request without Host (RFC 9112, section 3.2).
    NoHost,
    /// The start line is not one of HTTP/1: garbage, HTTP/0.9, or TLS.
    StartLine,
    /// A status outside 100 to 599, or a 101 to a request that asked for no upgrade.
    Status,
    /// The request target passes `target_bytes_max`.
    TargetTooLong {
        /// The limit.
        max: usize,
    },
    /// More field lines than `fields_max`.
    TooManyFields {
        /// The limit.
        max: usize,
    },
    /// A transfer coding other than a single `chunked` (RFC 9112, section 6.1).
    TransferCoding,
    /// Another version, the preface of HTTP/2 among it (RFC 9113, section 3.4).
    Version,
}

impl HeadError {
    /// The status a server answers with before it closes.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::BareLineBreak
            | Self::BadValue(_)
            | Self::ConflictingFraming
            | Self::ControlByte
            | Self::DifferingLengths
            | Self::Duplicate(_)
            | Self::FieldSyntax
            | Self::Folded
            | Self::MalformedLength
            | Self::NoHost
            | Self::StartLine
            | Self::Status => 400,
            Self::TargetTooLong { .. } => 414,
            Self::Expectation => 417,
            Self::HeadTooLarge { .. } | Self::TooManyFields { .. } => 431,
            Self::MethodTooLong | Self::TransferCoding => 501,
            Self::Version => 505,
        }
    }
}

impl std::fmt::Display for HeadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BareLineBreak => f.write_str("a line of the head ends in something other than CRLF"),
            Self::BadValue(name) => write!(f, "the value of {name} is not valid"),
            Self::ConflictingFraming => f.write_str("both Content-Length and Transfer-Encoding are given"),
            Self::ControlByte => f.write_str("the head contains a NUL"),
            Self::DifferingLengths => f.write_str("Content-Length is given twice and differs"),
            Self::Duplicate(name) => write!(f, "{name} is given more than once"),
            Self::Expectation => f.write_str("the expectation is not 100-continue"),
            Self::FieldSyntax => f.write_str("a field line is not valid"),
            Self::Folded => f.write_str("a field is folded over several lines"),
            Self::HeadTooLarge { max } => write!(f, "the head is larger than {max} bytes"),
            Self::MalformedLength => f.write_str("Content-Length is not a number"),
            Self::MethodTooLong => f.write_str("the method is too long"),
            Self::NoHost => f.write_str("the Host field is missing"),
            Self::StartLine => f.write_str("the first line is not one of HTTP/1.1"),
            Self::Status => f.write_str("the status code is not one that can be passed on"),
            Self::TargetTooLong { max } => write!(f, "the target is longer than {max} bytes"),
            Self::TooManyFields { max } => write!(f, "the head has more than {max} fields"),
            Self::TransferCoding => f.write_str("the transfer coding is not a single chunked"),
            Self::Version => f.write_str("the version is neither HTTP/1.1 nor HTTP/1.0"),
        }
    }
}

impl std::error::Error for HeadError {}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::HeaderName | httparse::Error::HeaderValue => Self::FieldSyntax,
            httparse::Error::NewLine => Self::BareLineBreak,
            httparse::Error::Status | httparse::Error::Token => Self::StartLine,
            httparse::Error::TooManyHeaders => Self::TooManyFields { max: HeadLimits::FIELDS_CEILING },
            httparse::Error::Version => Self::Version,
        }
    }
}

/// `tchar` of RFC 9110, section 5.6.2: what methods and field names are made of.
const fn is_tchar(byte: u8) -> bool {
    matches!(byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+'
        | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// A byte that a field value may hold (RFC 9110, section 5.5): visible, space, tab, or above ASCII.
const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | 0x20..=0x7e | 0x80..=0xff)
}
