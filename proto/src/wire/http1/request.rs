//! Request heads, as a server reads them (RFC 9112, section 3).

use std::mem::MaybeUninit;

use super::fields::list_members;
use super::scan::Kind;
use super::{Fields, HeadError, HeadLimits, HeadScanner, Version, media_type_is};

/// How the body of a request is delimited (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFraming {
    /// Neither Content-Length nor Transfer-Encoding.
    None,
    /// So many bytes, possibly none.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// A request's head, borrowed from the bytes that it was read from.
#[derive(Clone, Debug)]
pub struct RequestHead<'a> {
    /// How many of the bytes were the head; the body begins there.
    pub consumed: usize,
    /// The method, as written: it is case-sensitive.
    pub method: &'a str,
    /// The target, as written: visible ASCII. [`super::parse_target`] judges it.
    pub target: &'a str,
    /// The version.
    pub version: Version,
    /// All field lines.
    pub fields: Fields<'a>,
    /// How the body is delimited.
    pub framing: RequestFraming,
    /// Whether another request may follow on this connection. HTTP/1.0 closes.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends its body.
    pub expect_continue: bool,
    /// Host, which only HTTP/1.0 may leave out.
    pub host: Option<&'a str>,
    /// Origin: there is one when a web page is the sender.
    pub origin: Option<&'a str>,
    /// Content-Type.
    pub content_type: Option<&'a str>,
    /// Content-Encoding.
    pub content_encoding: Option<&'a str>,
}

impl<'a> RequestHead<'a> {
    /// The value of the first field line named `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.fields.field(name)
    }

    /// Whether the client asked for an event stream by `Accept` (a range like `*/*` is no such request).
    #[must_use]
    pub fn accepts_event_stream(&self) -> bool {
        self.fields.iter().filter(|field| field.is("accept")).flat_map(|field| list_members(field.value)).any(
            |member| std::str::from_utf8(member).is_ok_and(|range| media_type_is(range, "text/event-stream")),
        )
    }
}

/// Reads a request's head from all bytes received so far and not consumed. `None`: more is needed.
///
/// Looks from the beginning each time; a connection that reads in small pieces keeps a [`HeadScanner`] and
/// uses [`parse_request_from`].
pub fn parse_request<'a>(bytes: &'a [u8], limits: &HeadLimits) -> Result<Option<RequestHead<'a>>, HeadError> {
    parse_request_from(&mut HeadScanner::new(), bytes, limits)
}

/// [`parse_request`], going on where the last call with the same head stopped.
pub fn parse_request_from<'a>(
    scanner: &mut HeadScanner,
    bytes: &'a [u8],
    limits: &HeadLimits,
) -> Result<Option<RequestHead<'a>>, HeadError> {
    let Some(extent) = scanner.scan(Kind::Request, bytes, limits)? else { return Ok(None) };
    let head = bytes.get(extent.start..extent.end).unwrap_or_default();
    let mut slots = [const { MaybeUninit::uninit() }; HeadLimits::FIELDS_CEILING];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut slots)? {
        httparse::Status::Complete(len) if len == head.len() => {}
        // The scanner and httparse disagree about where the head ends: there are two readings.
        httparse::Status::Complete(_) | httparse::Status::Partial => return Err(HeadError::FieldSyntax),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::StartLine);
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let (mut known, mut asked) = (Known::default(), Asked::default());
    for header in parsed.headers.iter() {
        known.note(header.name, header.value)?;
        asked.note(header.name, header.value)?;
    }
    if version == Version::Http11 && asked.host.is_none() {
        return Err(HeadError::NoHost);
    }
    let framing = known.framing(version)?;
    let has_body = match framing {
        RequestFraming::None | RequestFraming::Length(0) => false,
        RequestFraming::Length(_) | RequestFraming::Chunked => true,
    };
    Ok(Some(RequestHead {
        consumed: extent.end,
        method,
        target,
        version,
        framing,
        keep_alive: version == Version::Http11 && !known.connection.close,
        expect_continue: version == Version::Http11 && asked.expect_continue && has_body,
        host: asked.host,
        origin: asked.origin,
        content_type: known.content_type,
        content_encoding: asked.content_encoding,
        fields: Fields::new(parsed.headers),
    }))
}

/// What the Connection fields of a message ask for (RFC 9112, section 9.3).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
}

/// The fields that decide where a message ends and what it is, in requests and responses.
#[derive(Default)]
pub(super) struct Known<'a> {
    length: Option<&'a [u8]>,
    transfer_codings: usize,
    is_chunked: bool,
    pub(super) connection: Connection,
    pub(super) content_type: Option<&'a str>,
}

impl<'a> Known<'a> {
    pub(super) fn note(&mut self, name: &str, value: &'a [u8]) -> Result<(), HeadError> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        // By length first: most fields are none of these.
        match name.len() {
            10 if is("connection") => {
                for member in list_members(value) {
                    self.connection.close |= member.eq_ignore_ascii_case(b"close");
                    self.connection.keep_alive |= member.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            12 if is("content-type") => once(&mut self.content_type, value, "Content-Type")?,
            14 if is("content-length") => match self.length {
                Some(earlier) if earlier != value => return Err(HeadError::DifferingLengths),
                Some(_) | None => self.length = Some(value),
            },
            17 if is("transfer-encoding") => {
                self.transfer_codings += 1;
                self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            _ => {}
        }
        Ok(())
    }

    /// The rules of RFC 9112, section 6.3, without the leniency.
    pub(super) fn framing(&self, version: Version) -> Result<RequestFraming, HeadError> {
        match (self.transfer_codings, self.length) {
            (0, None) => Ok(RequestFraming::None),
            (0, Some(digits)) => Ok(RequestFraming::Length(parse_length(digits)?)),
            (_, Some(_)) => Err(HeadError::ConflictingFraming),
            (1, None) if self.is_chunked && version == Version::Http11 => Ok(RequestFraming::Chunked),
            (_, None) => Err(HeadError::TransferCoding),
        }
    }
}

/// The fields that admission depends on, in requests alone.
#[derive(Default)]
struct Asked<'a> {
    host: Option<&'a str>,
    origin: Option<&'a str>,
    content_encoding: Option<&'a str>,
    expect_continue: bool,
}

impl<'a> Asked<'a> {
    fn note(&mut self, name: &str, value: &'a [u8]) -> Result<(), HeadError> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => {
                once(&mut self.host, value, "Host")?;
                if !self.host.is_some_and(is_host_syntax) {
                    return Err(HeadError::BadValue("Host"));
                }
            }
            6 if is("origin") => once(&mut self.origin, value, "Origin")?,
            6 if is("expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::Expectation);
                }
                self.expect_continue = true;
            }
            16 if is("content-encoding") => once(&mut self.content_encoding, value, "Content-Encoding")?,
            _ => {}
        }
        Ok(())
    }
}

fn once<'a>(slot: &mut Option<&'a str>, value: &'a [u8], name: &'static str) -> Result<(), HeadError> {
    if slot.is_some() {
        return Err(HeadError::Duplicate(name));
    }
    let text = std::str::from_utf8(value).ok().filter(|text| text.is_ascii());
    *slot = Some(text.ok_or(HeadError::BadValue(name))?);
    Ok(())
}

/// `1*DIGIT` that fits (RFC 9110, section 8.6); no sign, no list, no white space.
fn parse_length(digits: &[u8]) -> Result<u64, HeadError> {
    if digits.is_empty() || digits.len() > 20 {
        return Err(HeadError::MalformedLength);
    }
    digits.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9).ok_or(HeadError::MalformedLength)?;
        value.checked_mul(10).and_then(|v| v.checked_add(digit.into())).ok_or(HeadError::MalformedLength)
    })
}

/// The characters of `uri-host [ ":" port ]` (RFC 9110, section 7.2). No user, no path, no list.
fn is_host_syntax(host: &str) -> bool {
    !host.is_empty()
        && host.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']')
        })
}
