//! Heads, chunks and small answers, appended to the buffer that they leave from.

use super::{is_tchar, is_value_byte};

/// `100 Continue` (RFC 9110, section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The end of a chunked body, without trailers (RFC 9112, section 7.1).
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How the body that follows a written head is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body and no framing field: 1xx, 204, 304, a request without content.
    None,
    /// Content-Length.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// Nothing; the body ends with the connection, which `Connection: close` announces.
    UntilClose,
}

/// Why a head was not written. The buffer is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// A framing or connection field among those given: the writer sets these itself.
    Reserved,
    /// Something that would end its line, or that is empty.
    Syntax,
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reserved => "a framing field is not the caller's to write",
            Self::Syntax => "a part of the head would break it",
        })
    }
}

impl std::error::Error for WriteError {}

/// What a response's head says besides its fields.
#[derive(Clone, Copy, Debug)]
pub struct ResponseMeta<'a> {
    /// The status.
    pub status: u16,
    /// The Date field, as [`super::HttpDate`] writes it; none when the fields already hold one.
    pub date: Option<&'a str>,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether the connection stays open after the body.
    pub keep_alive: bool,
}

/// Appends a request's head: start line, Host, the fields given, framing.
pub fn write_request_head<'f>(
    out: &mut Vec<u8>,
    method: &str,
    target: &str,
    host: &str,
    fields: impl IntoIterator<Item = (&'f str, &'f [u8])>,
    framing: Framing,
) -> Result<(), WriteError> {
    whole(out, |out| {
        if method.is_empty() || !method.bytes().all(is_tchar) {
            return Err(WriteError::Syntax);
        }
        if target.is_empty() || !all(target.as_bytes(), |byte| matches!(byte, 0x21..=0x7e)) {
            return Err(WriteError::Syntax);
        }
        out.extend_from_slice(method.as_bytes());
        out.push(b' ');
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        if host.is_empty() || !all(host.as_bytes(), |byte| matches!(byte, 0x21..=0x7e)) {
            return Err(WriteError::Syntax);
        }
        out.extend_from_slice(host.as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in fields {
            if name.eq_ignore_ascii_case("host") {
                return Err(WriteError::Reserved);
            }
            write_field(out, name, value)?;
        }
        write_framing(out, framing);
        out.extend_from_slice(b"\r\n");
        Ok(())
    })
}

/// Appends a response's head: status line, Date, the fields given, framing, Connection where it closes.
pub fn write_response_head<'f>(
    out: &mut Vec<u8>,
    meta: &ResponseMeta<'_>,
    fields: impl IntoIterator<Item = (&'f str, &'f [u8])>,
) -> Result<(), WriteError> {
    whole(out, |out| {
        write_status_line(out, meta.status)?;
        if let Some(date) = meta.date {
            if !all(date.as_bytes(), is_value_byte) {
                return Err(WriteError::Syntax);
            }
            out.extend_from_slice(b"Date: ");
            out.extend_from_slice(date.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        for (name, value) in fields {
            write_field(out, name, value)?;
        }
        // RFC 9112, sections 6.1 and 6.2: these must not announce a body.
        if !matches!(meta.status, 100..=199 | 204) {
            write_framing(out, meta.framing);
        }
        if !meta.keep_alive || meta.framing == Framing::UntilClose {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    })
}

/// A whole answer that the gateway itself gives.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// The Date field.
    pub date: Option<&'a str>,
    /// Content-Type, where there is a body.
    pub content_type: Option<&'a str>,
    /// Further fields: Allow, Retry-After.
    pub fields: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
    /// Whether this answers HEAD: the length is told, the body is not sent (RFC 9110, section 9.3.2).
    pub is_head: bool,
    /// Whether the connection stays open.
    pub keep_alive: bool,
}

/// Appends a whole answer.
pub fn write_answer(out: &mut Vec<u8>, answer: &Answer<'_>) -> Result<(), WriteError> {
    let has_length = !matches!(answer.status, 100..=199 | 204 | 304);
    debug_assert!(has_length || answer.body.is_empty(), "{} has no body", answer.status);
    let framing = if has_length { Framing::Length(answer.body.len() as u64) } else { Framing::None };
    let meta =
        ResponseMeta { status: answer.status, date: answer.date, framing, keep_alive: answer.keep_alive };
    let content_type = answer.content_type.map(|value| ("Content-Type", value.as_bytes()));
    let extra = answer.fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    write_response_head(out, &meta, content_type.into_iter().chain(extra))?;
    if has_length && !answer.is_head {
        out.extend_from_slice(answer.body);
    }
    Ok(())
}

/// Appends the line before a chunk's data (RFC 9112, section 7.1); CRLF follows the data. An empty chunk would
/// end the body: nothing is written for it.
pub fn write_chunk_header(out: &mut Vec<u8>, bytes: usize) {
    debug_assert!(bytes > 0, "an empty chunk ends the body");
    let mut digits = [0_u8; 16];
    let mut rest = bytes;
    let mut len = 0;
    for slot in digits.iter_mut().rev() {
        let digit = u8::try_from(rest & 15).unwrap_or_default();
        *slot = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        rest >>= 4;
        len += 1;
        if rest == 0 {
            break;
        }
    }
    if bytes > 0 {
        out.extend_from_slice(digits.get(digits.len() - len..).unwrap_or_default());
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends one chunk, data and all; nothing for empty data.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        write_chunk_header(out, data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// The reason phrase registered for a status (RFC 9110, section 15); none for one that is not.
#[must_use]
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Writes all or nothing. What cannot be written is our own fault: everything was validated when it came in.
fn whole(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let before = out.len();
    let result = write(out);
    if result.is_err() {
        out.truncate(before);
    }
    result
}

fn write_status_line(out: &mut Vec<u8>, status: u16) -> Result<(), WriteError> {
    // By far the most frequent.
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return Ok(());
    }
    if !(100..=599).contains(&status) {
        return Err(WriteError::Syntax);
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, status.into());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) -> Result<(), WriteError> {
    if name.is_empty() || !name.bytes().all(is_tchar) || !all(value, is_value_byte) {
        return Err(WriteError::Syntax);
    }
    let is = |reserved: &str| name.eq_ignore_ascii_case(reserved);
    match name.len() {
        10 if is("connection") => return Err(WriteError::Reserved),
        14 if is("content-length") => return Err(WriteError::Reserved),
        17 if is("transfer-encoding") => return Err(WriteError::Reserved),
        _ => {}
    }
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn write_framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(bytes) => {
            out.extend_from_slice(b"Content-Length: ");
            write_decimal(out, bytes);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

fn write_decimal(out: &mut Vec<u8>, value: u64) {
    let mut digits = [b'0'; 20];
    let mut rest = value;
    let mut len = 0;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        len += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - len..).unwrap_or_default());
}

/// Whether a predicate holds for each byte, without leaving early, so that it is vectorised.
fn all(bytes: &[u8], holds: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |ok, byte| ok & holds(*byte))
}
