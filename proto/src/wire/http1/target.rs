//! Request targets and hosts (RFC 9112, section 3.2): the one spelling that is accepted.

use core::net::{Ipv4Addr, Ipv6Addr};

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// A byte that no target holds: control, space, backslash, above ASCII, or the `#` of a fragment.
    Byte,
    /// `.` or `..` as a segment, percent-encoded or with a path parameter behind it.
    DotSegment,
    /// An empty segment (`//`).
    EmptySegment,
    /// A slash, backslash or control byte percent-encoded in the path, or `%` without two digits.
    Encoding,
    /// Neither origin form nor absolute form: authority form, asterisk form, or another scheme.
    Form,
    /// Absolute form to a host that is not this port's.
    OtherHost,
}

impl TargetError {
    /// The status a server answers with.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Byte | Self::DotSegment | Self::EmptySegment | Self::Encoding | Self::Form => 400,
            Self::OtherHost => 421,
        }
    }
}

impl std::fmt::Display for TargetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Byte => "the target contains a character that no target may contain",
            Self::DotSegment => "the path contains a dot segment",
            Self::EmptySegment => "the path contains an empty segment",
            Self::Encoding => "the target contains a percent-encoding that is not accepted",
            Self::Form => "the target is not a path",
            Self::OtherHost => "the target names another host",
        })
    }
}

impl std::error::Error for TargetError {}

/// Judges a request target and reduces it to origin form (path and query).
///
/// Whatever another parser might read as another path is refused and not normalised: the path that the policy
/// judges is, byte for byte, the path that the upstream gets. `is_own_host` is asked about the authority of an
/// absolute form (RFC 9112, section 3.2.2).
pub fn parse_target(target: &str, is_own_host: impl Fn(&str) -> bool) -> Result<&str, TargetError> {
    // One pass without a branch, so that it is vectorised.
    let is_good = |byte| matches!(byte, 0x21..=0x7e) & (byte != b'\\') & (byte != b'#');
    if !target.bytes().fold(true, |good, byte| good & is_good(byte)) {
        return Err(TargetError::Byte);
    }
    let origin = if target.starts_with('/') { target } else { reduce_absolute(target, is_own_host)? };
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    check_path(path)?;
    check_encoding(query, |_| true)?;
    Ok(origin)
}

fn reduce_absolute(target: &str, is_own_host: impl Fn(&str) -> bool) -> Result<&str, TargetError> {
    const SCHEME: &str = "http://";
    let (scheme, rest) = target.split_at_checked(SCHEME.len()).ok_or(TargetError::Form)?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err(TargetError::Form);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at_checked(end).ok_or(TargetError::Form)?;
    if !is_own_host(authority) {
        return Err(TargetError::OtherHost);
    }
    match origin.as_bytes().first() {
        None => Ok("/"),
        Some(b'/') => Ok(origin),
        // `http://host?query` would have to be rewritten.
        Some(_) => Err(TargetError::Form),
    }
}

fn check_path(path: &str) -> Result<(), TargetError> {
    let segments = path.strip_prefix('/').ok_or(TargetError::Form)?;
    let mut rest = segments.split('/').peekable();
    while let Some(segment) = rest.next() {
        // A slash at the very end leaves an empty last segment, which is a path of its own.
        if segment.is_empty() && rest.peek().is_some() {
            return Err(TargetError::EmptySegment);
        }
        if is_dot_segment(segment) {
            return Err(TargetError::DotSegment);
        }
    }
    check_encoding(path, |byte| !matches!(byte, b'/' | b'\\' | 0..=0x1f | 0x7f))
}

/// `.` and `..` (RFC 3986, section 3.3), also as `%2e`, also as `..;x`, which some servers take for `..`.
fn is_dot_segment(segment: &str) -> bool {
    if !segment.starts_with(['.', '%']) {
        return false;
    }
    let name = segment.split(';').next().unwrap_or_default();
    let mut rest = name.as_bytes();
    let mut dots = 0;
    loop {
        rest = match rest {
            [] => return matches!(dots, 1 | 2),
            [b'.', after @ ..] | [b'%', b'2', b'e' | b'E', after @ ..] => after,
            _ => return false,
        };
        dots += 1;
    }
}

/// Every `%` has two digits behind it, and what they stand for is accepted.
fn check_encoding(text: &str, accepts: impl Fn(u8) -> bool) -> Result<(), TargetError> {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return Ok(());
    }
    text.split('%').skip(1).try_for_each(|after| {
        let digits = after.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if accepts(byte) => Ok(()),
            Some(_) | None => Err(TargetError::Encoding),
        }
    })
}

/// Whether a Host field (or the authority of an absolute form) names this listener: a loopback name or one of
/// `allowed`, with the listener's port. The caller puts the listening address among `allowed`.
///
/// A web page that has its own name resolve to this machine (DNS rebinding) still sends its own name, which is
/// how it is told from a local client. An entry of `allowed` that carries a port is compared whole.
#[must_use]
pub fn host_is_allowed(host: &str, port: u16, allowed: &[String]) -> bool {
    if allowed.iter().any(|entry| split_port(entry).1.is_some() && entry.eq_ignore_ascii_case(host)) {
        return true;
    }
    let (name, given) = split_port(host);
    let is_port = match given {
        // Port 80 is the one that is left out (RFC 9110, section 4.2.1).
        None => port == 80,
        Some(digits) => {
            digits.len() <= 5
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && digits.parse() == Ok(port)
        }
    };
    is_port && (is_loopback_name(name) || allowed.iter().any(|entry| entry.eq_ignore_ascii_case(name)))
}

/// Splits `name:port`; the colons of an IPv6 address stand in brackets.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    }
}

fn is_loopback_name(name: &str) -> bool {
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}
