//! Where a head ends, found without looking at any byte twice however the head dribbles in.

use super::{HeadError, HeadLimits, is_tchar};

/// Longer than any registered method (RFC 9110, section 16.1; the longest is UPDATEREDIRECTREF).
const METHOD_BYTES_MAX: usize = 32;
/// ` HTTP/1.1`, two spaces in all and the CRLF.
const REQUEST_LINE_REST: usize = 12;

/// Which start line is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
}

/// How far a head that is still arriving has been looked at.
///
/// A connection keeps one and passes it with the same bytes and more until the head is complete; it is then
/// ready for the next head. Line ends, NULs, folding, limits and the start line are checked as they arrive, so
/// that garbage is refused with its first bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    checked: usize,
    line_start: usize,
    lines: usize,
}

/// A complete head: where it begins (after an empty line that was skipped) and where it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl HeadScanner {
    /// Starts at the first byte of a head.
    #[must_use]
    pub const fn new() -> Self {
        Self { checked: 0, line_start: 0, lines: 0 }
    }

    /// Looks on. `None` means that all of `bytes` is acceptable so far and more is needed.
    pub(super) fn scan(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<Extent>, HeadError> {
        // RFC 9112, section 2.2: a client that ends its body with one CRLF too many is not refused for it.
        let start = if kind == Kind::Request && bytes.starts_with(b"\r\n") { 2 } else { 0 };
        if self.lines == 0 {
            if kind == Kind::Request && bytes == b"\r" {
                return Ok(None);
            }
            self.checked = self.checked.max(start);
            self.line_start = start;
            check_first_bytes(kind, bytes.get(start..).unwrap_or_default())?;
        }
        let head_max = limits.head_bytes_max.saturating_add(start);
        loop {
            // A line is judged by what stands within the limits only, so that the verdict does not depend on
            // how much happened to arrive at once.
            let line_max = match (kind, self.lines) {
                (Kind::Request, 0) => {
                    let line_max =
                        limits.target_bytes_max.saturating_add(METHOD_BYTES_MAX + REQUEST_LINE_REST);
                    head_max.min(start.saturating_add(line_max))
                }
                (Kind::Request | Kind::Response, _) => head_max,
            };
            let window = bytes.get(..line_max.min(bytes.len())).unwrap_or_default();
            let Some(line_end) = self.find_line_end(window)? else {
                if bytes.len() <= line_max {
                    return Ok(None);
                }
                return Err(if line_max < head_max {
                    HeadError::TargetTooLong { max: limits.target_bytes_max }
                } else {
                    HeadError::HeadTooLarge { max: limits.head_bytes_max }
                });
            };
            let line = window.get(self.line_start..line_end).unwrap_or_default();
            if line.is_empty() {
                if self.lines == 0 {
                    return Err(HeadError::StartLine);
                }
                *self = Self::new();
                return Ok(Some(Extent { start, end: line_end + 2 }));
            }
            self.check_line(kind, line, limits)?;
            self.lines += 1;
            self.line_start = line_end + 2;
            self.checked = self.line_start;
        }
    }

    /// The position of the next CRLF, or `None` when the window has none yet.
    fn find_line_end(&mut self, window: &[u8]) -> Result<Option<usize>, HeadError> {
        let rest = window.get(self.checked..).unwrap_or_default();
        let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) else {
            self.checked = window.len();
            return Ok(None);
        };
        let found = self.checked + at;
        match (window.get(found), window.get(found + 1)) {
            (Some(b'\r'), Some(b'\n')) => Ok(Some(found)),
            (Some(b'\r'), None) => {
                self.checked = found;
                Ok(None)
            }
            (Some(0), _) => Err(HeadError::ControlByte),
            (_, _) => Err(HeadError::BareLineBreak),
        }
    }

    fn check_line(&self, kind: Kind, line: &[u8], limits: &HeadLimits) -> Result<(), HeadError> {
        if self.lines == 0 {
            return match kind {
                Kind::Request => check_request_line(line, limits),
                Kind::Response => Ok(()),
            };
        }
        if self.lines > limits.fields_max.min(HeadLimits::FIELDS_CEILING) {
            return Err(HeadError::TooManyFields { max: limits.fields_max });
        }
        match line.first() {
            Some(b' ' | b'\t') => Err(HeadError::Folded),
            Some(_) | None => Ok(()),
        }
    }
}

/// Refuses what cannot become a start line, however it goes on.
fn check_first_bytes(kind: Kind, bytes: &[u8]) -> Result<(), HeadError> {
    match kind {
        Kind::Request => {
            let method = bytes.iter().take(METHOD_BYTES_MAX + 1).take_while(|byte| is_tchar(**byte)).count();
            match bytes.get(method) {
                _ if method > METHOD_BYTES_MAX => Err(HeadError::MethodTooLong),
                Some(b' ') if method > 0 => Ok(()),
                Some(_) => Err(HeadError::StartLine),
                None => Ok(()),
            }
        }
        Kind::Response => {
            const STARTS: &[u8] = b"HTTP/1.";
            let common = STARTS.len().min(bytes.len());
            if bytes.get(..common) == STARTS.get(..common) {
                Ok(())
            } else if bytes.starts_with(b"HTTP/") {
                Err(HeadError::Version)
            } else {
                Err(HeadError::StartLine)
            }
        }
    }
}

/// `method SP request-target SP HTTP-version` (RFC 9112, section 3), with single spaces.
fn check_request_line(line: &[u8], limits: &HeadLimits) -> Result<(), HeadError> {
    let space = memchr::memchr(b' ', line).ok_or(HeadError::StartLine)?;
    let rest = line.get(space + 1..).unwrap_or_default();
    let target = memchr::memchr(b' ', rest).ok_or(HeadError::StartLine)?;
    if target == 0 {
        return Err(HeadError::StartLine);
    }
    if target > limits.target_bytes_max {
        return Err(HeadError::TargetTooLong { max: limits.target_bytes_max });
    }
    // One pass without a branch, so that it is vectorised.
    let bad = rest.iter().take(target).fold(false, |bad, byte| bad | !matches!(byte, 0x21..=0x7e));
    if bad {
        return Err(HeadError::StartLine);
    }
    match rest.get(target + 1..) {
        Some(b"HTTP/1.1" | b"HTTP/1.0") => Ok(()),
        Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']) => Err(HeadError::Version),
        Some(_) | None => Err(HeadError::StartLine),
    }
}
