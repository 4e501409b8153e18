//! Paths, queries and media types: what is written plainly, and what it matches.

use crate::tool::{Endpoint, Segment};

/// Printable ASCII without the characters that no target may hold.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| {
        matches!(b, b'!'..=b'~')
            && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | b'#')
    })
}

/// Whether every reader of the path sees the same segments. Nothing is normalised: what is odd is refused.
pub(super) fn is_plain_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        if segment.is_empty() && !is_last || matches!(segment, "." | "..") || !has_plain_escapes(segment) {
            return false;
        }
    }
    is_plain(path)
}

/// Refuses escapes for slashes, backslashes and controls, for letters, digits and others that need none (another
/// spelling would be another segment for a pattern and the same for the upstream), a `;` (path parameters), and what is
/// no escape.
pub(super) fn has_plain_escapes(segment: &str) -> bool {
    if segment.contains(';') {
        return false;
    }
    let mut parts = segment.split('%');
    parts.next();
    parts.all(|part| {
        let code = part.get(..2).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let is_odd = |code: u8| {
            code.is_ascii_alphanumeric()
                || matches!(code, b'.' | b'-' | b'_' | b'/' | b'\\' | b'%' | b';' | 0..=0x1f | 0x7f)
        };
        code.is_some_and(|code| !is_odd(code))
    })
}

pub(super) fn matches_path(pattern: &[Segment], path: &str) -> bool {
    let mut segments = path.split('/').skip(1);
    for part in pattern {
        match part {
            Segment::Rest => return segments.next().is_some(),
            Segment::One(glob) => match segments.next() {
                Some(segment) if !segment.is_empty() && glob.matches(segment.as_bytes()) => {}
                Some(segment) if segment.is_empty() && glob.as_literal() == Some(b"") => {}
                Some(_) | None => return false,
            },
        }
    }
    segments.next().is_none()
}

pub(super) fn has_query(endpoint: &Endpoint, query: Option<&str>) -> bool {
    let Some(names) = endpoint.query else { return true };
    let Some(query) = query else { return true };
    query.split('&').filter(|pair| !pair.is_empty()).all(|pair| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        names.contains(&name)
    })
}

pub(super) fn literal_path(endpoint: &Endpoint) -> Option<String> {
    let mut path = String::new();
    for segment in &endpoint.path {
        let Segment::One(glob) = segment else { return None };
        path.push('/');
        path.push_str(std::str::from_utf8(glob.as_literal()?).ok()?);
    }
    Some(path)
}

pub(super) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) => {
                out.push(code);
                out.extend_from_slice(part.as_bytes().get(2..).unwrap_or_default());
            }
            None => out.extend_from_slice(part.as_bytes()),
        }
    }
    out
}

/// `application/json`, beside it at most `charset=utf-8`.
pub(super) fn is_plain_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let is_utf8 = |part: &str| {
        part.split_once('=').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    };
    is_json && parts.all(is_utf8)
}
