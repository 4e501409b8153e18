//! Message bodies (RFC 9112, sections 6 and 7.1): which of the bytes received are content.

use super::{RequestFraming, ResponseFraming, is_tchar, is_value_byte};

/// Sixteen hexadecimal digits are all that a u64 holds.
const SIZE_DIGITS_MAX: u32 = 16;
/// No extension is in use (RFC 9112, section 7.1.1, has a recipient ignore unknown ones).
const EXTENSION_BYTES_MAX: u32 = 256;
/// Trailers are read over; this bounds how long.
const TRAILER_BYTES_MAX: u32 = 8 * 1024;

/// Reads one body from the bytes that follow its head.
///
/// It holds no bytes: each step says how many were used up and lends those of them that are content.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
}

/// One step of [`BodyDecoder::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// How many of the bytes given are used up, framing included.
    pub consumed: usize,
    /// The content among them.
    pub data: &'a [u8],
    /// Whether the body has ended; what follows in the input is the next message.
    pub done: bool,
}

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// A chunk size that is missing, too long, or not hexadecimal.
    ChunkSize,
    /// A chunk extension with a control byte, or too long.
    Extension,
    /// Chunk data that are not followed by CRLF, or a line that ends in something else.
    LineEnd,
    /// The chunks together pass 2^64 bytes.
    Overflow,
    /// A trailer that is no field line, or trailers that are too long.
    Trailer,
    /// The connection ended within the body.
    Truncated,
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ChunkSize => "a chunk size is not 1 to 16 hexadecimal digits",
            Self::Extension => "a chunk extension is not valid",
            Self::LineEnd => "a line of the chunked coding does not end in CRLF",
            Self::Overflow => "the chunks add up to more than can be counted",
            Self::Trailer => "a trailer field is not valid",
            Self::Truncated => "the connection ended within the body",
        })
    }
}

impl std::error::Error for BodyError {}

#[derive(Clone, Debug)]
enum State {
    Chunked { chunk: Chunk, total: u64 },
    Done,
    Length(u64),
    UntilClose,
}

/// Where in the chunked coding the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Chunk {
    Size { value: u64, digits: u32 },
    Extension { size: u64, len: u32 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart { seen: u32 },
    TrailerName { seen: u32 },
    TrailerValue { seen: u32 },
    TrailerLf { seen: u32 },
    LastLf,
}

const NEXT_CHUNK: Chunk = Chunk::Size { value: 0, digits: 0 };

impl BodyDecoder {
    /// A body of chunks (RFC 9112, section 7.1).
    #[must_use]
    pub const fn chunked() -> Self {
        Self { state: State::Chunked { chunk: NEXT_CHUNK, total: 0 } }
    }

    /// A body of so many bytes.
    #[must_use]
    pub const fn length(bytes: u64) -> Self {
        Self { state: if bytes == 0 { State::Done } else { State::Length(bytes) } }
    }

    /// A body that ends with its connection.
    #[must_use]
    pub const fn until_close() -> Self {
        Self { state: State::UntilClose }
    }

    /// Whether the body has ended.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// How many bytes of content are announced and not read: the rest of the length, or of this chunk.
    #[must_use]
    pub const fn announced(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Chunked { chunk: Chunk::Data { left }, .. } => left,
            State::Chunked { .. } | State::Done | State::UntilClose => 0,
        }
    }

    /// Reads on until the first run of content has ended, the input is used up, or the body is done.
    ///
    /// The caller calls again with the rest while it `consumed` something and is not `done`; all input is used
    /// up then. After an error the connection is of no further use.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Decoded<'a>, BodyError> {
        match &mut self.state {
            State::Done => Ok(Decoded { consumed: 0, data: &[], done: true }),
            State::UntilClose => Ok(Decoded { consumed: input.len(), data: input, done: false }),
            State::Length(left) => {
                let data = take(input, *left);
                *left -= data.len() as u64;
                let done = *left == 0;
                if done {
                    self.state = State::Done;
                }
                Ok(Decoded { consumed: data.len(), data, done })
            }
            State::Chunked { chunk, total } => {
                let decoded = decode_chunked(chunk, total, input)?;
                if decoded.done {
                    self.state = State::Done;
                }
                Ok(decoded)
            }
        }
    }

    /// The connection has ended: fails unless the body may end so.
    pub const fn finish(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            State::Length(_) | State::Chunked { .. } => Err(BodyError::Truncated),
        }
    }
}

impl From<RequestFraming> for BodyDecoder {
    fn from(framing: RequestFraming) -> Self {
        match framing {
            RequestFraming::None => Self::length(0),
            RequestFraming::Length(bytes) => Self::length(bytes),
            RequestFraming::Chunked => Self::chunked(),
        }
    }
}

impl From<ResponseFraming> for BodyDecoder {
    fn from(framing: ResponseFraming) -> Self {
        match framing {
            ResponseFraming::None => Self::length(0),
            ResponseFraming::Length(bytes) => Self::length(bytes),
            ResponseFraming::Chunked => Self::chunked(),
            ResponseFraming::UntilClose => Self::until_close(),
        }
    }
}

fn take(input: &[u8], left: u64) -> &[u8] {
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    input.get(..len).unwrap_or_default()
}

fn decode_chunked<'a>(chunk: &mut Chunk, total: &mut u64, input: &'a [u8]) -> Result<Decoded<'a>, BodyError> {
    let mut rest = input;
    loop {
        if let Chunk::Data { left } = *chunk {
            let data = take(rest, left);
            let left = left - data.len() as u64;
            *chunk = if left == 0 { Chunk::DataCr } else { Chunk::Data { left } };
            let consumed = input.len() - rest.len() + data.len();
            return Ok(Decoded { consumed, data, done: false });
        }
        let Some((byte, after)) = rest.split_first() else {
            return Ok(Decoded { consumed: input.len(), data: &[], done: false });
        };
        rest = after;
        match chunk.next(*byte)? {
            Some(next) => {
                if let Chunk::Data { left } = next {
                    *total = total.checked_add(left).ok_or(BodyError::Overflow)?;
                }
                *chunk = next;
            }
            None => return Ok(Decoded { consumed: input.len() - rest.len(), data: &[], done: true }),
        }
    }
}

impl Chunk {
    /// The state after one byte of framing, `None` when that was the last of the body.
    fn next(self, byte: u8) -> Result<Option<Self>, BodyError> {
        let next = match self {
            Self::Size { value, digits } => match (hex_digit(byte), byte) {
                (Some(_), _) if digits == SIZE_DIGITS_MAX => return Err(BodyError::ChunkSize),
                (Some(digit), _) => Self::Size { value: value << 4 | digit, digits: digits + 1 },
                (None, b'\r') if digits > 0 => Self::SizeLf { size: value },
                (None, b';') if digits > 0 => Self::Extension { size: value, len: 0 },
                (None, _) => return Err(BodyError::ChunkSize),
            },
            Self::Extension { size, len } => match byte {
                b'\r' => Self::SizeLf { size },
                b'\t' | 0x20..=0x7e if len < EXTENSION_BYTES_MAX => Self::Extension { size, len: len + 1 },
                _ => return Err(BodyError::Extension),
            },
            Self::SizeLf { size } => match (byte, size) {
                (b'\n', 0) => Self::TrailerStart { seen: 0 },
                (b'\n', left) => Self::Data { left },
                (_, _) => return Err(BodyError::LineEnd),
            },
            Self::DataCr if byte == b'\r' => Self::DataLf,
            Self::DataLf if byte == b'\n' => NEXT_CHUNK,
            Self::LastLf if byte == b'\n' => return Ok(None),
            // Content is taken in runs before a byte comes here.
            Self::Data { .. } | Self::DataCr | Self::DataLf | Self::LastLf => return Err(BodyError::LineEnd),
            Self::TrailerStart { seen }
            | Self::TrailerName { seen }
            | Self::TrailerValue { seen }
            | Self::TrailerLf { seen } => return self.next_in_trailer(byte, seen).map(Some),
        };
        Ok(Some(next))
    }

    fn next_in_trailer(self, byte: u8, seen: u32) -> Result<Self, BodyError> {
        if seen >= TRAILER_BYTES_MAX {
            return Err(BodyError::Trailer);
        }
        let seen = seen + 1;
        match (self, byte) {
            (Self::TrailerStart { .. }, b'\r') => Ok(Self::LastLf),
            (Self::TrailerName { .. }, b':') => Ok(Self::TrailerValue { seen }),
            (Self::TrailerStart { .. } | Self::TrailerName { .. }, _) if is_tchar(byte) => {
                Ok(Self::TrailerName { seen })
            }
            (Self::TrailerValue { .. }, b'\r') => Ok(Self::TrailerLf { seen }),
            (Self::TrailerValue { .. }, _) if is_value_byte(byte) => Ok(Self::TrailerValue { seen }),
            (Self::TrailerLf { .. }, b'\n') => Ok(Self::TrailerStart { seen }),
            (Self::TrailerLf { .. }, _) => Err(BodyError::LineEnd),
            (_, _) => Err(BodyError::Trailer),
        }
    }
}

fn hex_digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}
