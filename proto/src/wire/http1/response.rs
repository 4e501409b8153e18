//! Response heads, as a client of upstreams reads them (RFC 9112, section 4).

use std::mem::MaybeUninit;

use super::fields::list_members;
use super::request::Known;
use super::scan::Kind;
use super::{
    Field, Fields, HeadError, HeadLimits, HeadScanner, RequestFraming, Version, is_hop_by_hop, media_type_is,
    passes_response,
};

/// How the body of a response is delimited (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// No body can follow: an answer to HEAD, a 1xx, 204 or 304.
    None,
    /// So many bytes, possibly none.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All until the connection is closed: whether it is whole cannot be told.
    UntilClose,
}

/// A response's head, borrowed from the bytes that it was read from.
#[derive(Clone, Debug)]
pub struct ResponseHead<'a> {
    /// How many of the bytes were the head; the body begins there.
    pub consumed: usize,
    /// The status, 100 to 599.
    pub status: u16,
    /// The version.
    pub version: Version,
    /// All field lines.
    pub fields: Fields<'a>,
    /// How the body is delimited.
    pub framing: ResponseFraming,
    /// Content-Length as given, also where no body follows (HEAD, 304).
    pub length: Option<u64>,
    /// Whether the connection may be used again after the body.
    pub keep_alive: bool,
    /// Content-Type.
    pub content_type: Option<&'a str>,
}

impl<'a> ResponseHead<'a> {
    /// The value of the first field line named `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.fields.field(name)
    }

    /// Whether this is an interim answer (1xx), after which the real one follows.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Whether the body is an event stream (WHATWG HTML, section 9.2.5): by its type alone, whatever the path.
    ///
    /// One that [is encoded](Self::is_encoded) is a body like any other, because its events cannot be seen; whoever
    /// has to filter them must refuse it.
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        self.content_type.is_some_and(|value| media_type_is(value, "text/event-stream")) && !self.is_encoded()
    }

    /// Whether the body is compressed, or otherwise encoded (RFC 9110, section 8.4).
    #[must_use]
    pub fn is_encoded(&self) -> bool {
        self.fields
            .iter()
            .filter(|field| field.is("content-encoding"))
            .flat_map(|field| list_members(field.value))
            .any(|coding| !coding.eq_ignore_ascii_case(b"identity"))
    }

    /// The field lines that may be passed on: not hop-by-hop, no cookies, no framing.
    pub fn passed_fields(&self) -> impl Iterator<Item = &Field<'a>> {
        self.fields
            .iter()
            .filter(|field| passes_response(field.name) && !is_hop_by_hop(field.name, &self.fields))
    }
}

/// Reads a response's head from all bytes received so far and not consumed, given the method of its request.
/// `None`: more is needed. An error means that this is not valid HTTP, for which a gateway answers 502.
pub fn parse_response<'a>(
    bytes: &'a [u8],
    request_method: &str,
    limits: &HeadLimits,
) -> Result<Option<ResponseHead<'a>>, HeadError> {
    parse_response_from(&mut HeadScanner::new(), bytes, request_method, limits)
}

/// [`parse_response`], going on where the last call with the same head stopped.
pub fn parse_response_from<'a>(
    scanner: &mut HeadScanner,
    bytes: &'a [u8],
    request_method: &str,
    limits: &HeadLimits,
) -> Result<Option<ResponseHead<'a>>, HeadError> {
    let Some(extent) = scanner.scan(Kind::Response, bytes, limits)? else { return Ok(None) };
    let head = bytes.get(extent.start..extent.end).unwrap_or_default();
    let mut slots = [const { MaybeUninit::uninit() }; HeadLimits::FIELDS_CEILING];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, head, &mut slots)? {
        httparse::Status::Complete(len) if len == head.len() => {}
        httparse::Status::Complete(_) | httparse::Status::Partial => return Err(HeadError::FieldSyntax),
    }
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::StartLine);
    };
    // 101: no upgrade was asked for, so what follows would not be HTTP (RFC 9110, section 15.2.2).
    if !(100..=599).contains(&status) || status == 101 {
        return Err(HeadError::Status);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let mut known = Known::default();
    for header in parsed.headers.iter() {
        known.note(header.name, header.value)?;
    }
    let declared = known.framing(version)?;
    let is_empty = matches!(declared, RequestFraming::None | RequestFraming::Length(0));
    // An interim answer with a body would have that body read as the answer (RFC 9110, section 8.6).
    if status < 200 && !is_empty {
        return Err(HeadError::ConflictingFraming);
    }
    let framing = match declared {
        RequestFraming::None | RequestFraming::Length(_) | RequestFraming::Chunked
            if request_method == "HEAD" || matches!(status, 100..=199 | 204 | 304) =>
        {
            ResponseFraming::None
        }
        RequestFraming::None => ResponseFraming::UntilClose,
        RequestFraming::Length(bytes) => ResponseFraming::Length(bytes),
        RequestFraming::Chunked => ResponseFraming::Chunked,
    };
    let length = match declared {
        RequestFraming::Length(bytes) => Some(bytes),
        RequestFraming::None | RequestFraming::Chunked => None,
    };
    let persists = match version {
        Version::Http10 => known.connection.keep_alive && !known.connection.close,
        Version::Http11 => !known.connection.close,
    };
    Ok(Some(ResponseHead {
        consumed: extent.end,
        status,
        version,
        framing,
        length,
        // After a 204 that announces a body, one may well follow: the next answer could not be told from it.
        keep_alive: persists && framing != ResponseFraming::UntilClose && (status != 204 || is_empty),
        content_type: known.content_type,
        fields: Fields::new(parsed.headers),
    }))
}
