//! One HTTP exchange: a request on its way to the server, a response on its way back.

use crate::ids::StreamId;
use crate::limits::REQUEST_KEPT_BYTES_MAX;
use crate::time::Instant;
use crate::wire::http1::{BodyDecoder, LAST_CHUNK, write_chunk};

/// What the chunked coding adds to a chunk.
const CHUNK_FRAMING_MAX: usize = 20;

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) leg: Leg,
    pub(super) request: Request,
    pub(super) response: Response,
    /// The request's body as long as it is short, for the id that an error must carry.
    pub(super) kept: Kept,
    /// When the request's head was whole.
    pub(super) since: Instant,
    pub(super) is_head: bool,
    pub(super) is_http10: bool,
    pub(super) keep_alive: bool,
    /// Whether the client asked for an event stream by `Accept`.
    pub(super) wants_events: bool,
    /// Payload of the response that was taken in and not yet granted again.
    pub(super) owed: usize,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    /// The agent, once it has read enough of the request to name its id: there is no link.
    Doomed,
    /// The server, on this stream. Its first frame begins at `position` of the session's bytes.
    Open { stream: StreamId, position: u64 },
    /// Nobody any more: the stream is over.
    Over,
}

/// How much of the request's body is still to come.
#[derive(Debug)]
pub(super) enum Request {
    /// Nobody wants it: it is read and dropped, so much at most.
    Discarded {
        left: u64,
    },
    Done,
    Reading(Reading),
}

#[derive(Debug)]
pub(super) struct Reading {
    pub(super) decoder: BodyDecoder,
    pub(super) received: u64,
    /// When it began; the time that the body could not be handed on is left out.
    pub(super) begun: Instant,
    /// Since when it cannot be handed on.
    pub(super) clogged: Option<Instant>,
}

/// How much of the response has reached the client's outbox.
#[derive(Debug)]
pub(super) enum Response {
    Awaited,
    /// The head of an event stream was sent before the server's answer.
    Early {
        end: BodyEnd,
    },
    Body {
        end: BodyEnd,
        events: Option<Vec<u8>>,
    },
}

/// How the client finds the end of a response's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    Chunk,
    Close,
    /// After so many bytes.
    Length(u64),
    /// There is none, whatever the server sends.
    NoBody,
}

/// More bytes than the head announced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl BodyEnd {
    /// Appends a part of the body.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Overrun> {
        match self {
            _ if bytes.is_empty() => {}
            Self::Chunk => {
                out.reserve(bytes.len() + CHUNK_FRAMING_MAX);
                write_chunk(out, bytes);
            }
            Self::Close => out.extend_from_slice(bytes),
            Self::Length(left) => {
                *left = left.checked_sub(bytes.len() as u64).ok_or(Overrun)?;
                out.extend_from_slice(bytes);
            }
            Self::NoBody => {}
        }
        Ok(())
    }

    /// Appends what ends the body; false when it is not complete and can only be cut.
    #[must_use]
    pub(super) fn finish(self, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Chunk => {
                out.extend_from_slice(LAST_CHUNK);
                true
            }
            Self::Close | Self::NoBody | Self::Length(0) => true,
            Self::Length(_) => false,
        }
    }
}

/// The beginning of a request's body.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    is_too_long: bool,
}

impl Kept {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.is_too_long {
            return;
        }
        if self.bytes.len() + bytes.len() > REQUEST_KEPT_BYTES_MAX {
            *self = Self { bytes: Vec::new(), is_too_long: true };
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The body, when it is whole; nothing otherwise.
    pub(super) fn body(&self, request: &Request) -> &[u8] {
        match request {
            Request::Done => &self.bytes,
            Request::Discarded { .. } | Request::Reading(_) => &[],
        }
    }

    pub(super) const fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    pub(super) const fn held_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl Exchange {
    pub(super) const fn stream(&self) -> Option<StreamId> {
        match self.leg {
            Leg::Open { stream, .. } => Some(stream),
            Leg::Doomed | Leg::Over => None,
        }
    }

    /// Whether the client sees an event stream, or asked for one and has no answer yet.
    pub(super) const fn is_events(&self) -> bool {
        match &self.response {
            Response::Awaited => self.wants_events,
            Response::Early { .. } => true,
            Response::Body { events, .. } => events.is_some(),
        }
    }

    pub(super) const fn is_request_done(&self) -> bool {
        matches!(self.request, Request::Done)
    }

    pub(super) fn held_bytes(&self) -> usize {
        let gathered = match &self.response {
            Response::Body { events: Some(unit), .. } => unit.len(),
            Response::Awaited | Response::Early { .. } | Response::Body { .. } => 0,
        };
        self.kept.held_bytes() + gathered
    }
}
