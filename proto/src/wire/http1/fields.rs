//! Field lines (RFC 9110, section 5), and what is known about single fields.

/// One field line: its name as written, its value without the white space around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, to be compared without case.
    pub name: &'a str,
    /// The value: no control byte but tab; bytes above ASCII are possible.
    pub value: &'a [u8],
}

impl Field<'_> {
    /// Whether this is the field `name`.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// What clients in daily use send fits without an allocation.
const INLINE: usize = 16;

/// The field lines of one head, in their order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    inline: [Field<'a>; INLINE],
    len: usize,
    /// All of them, when they are more than `INLINE`.
    spill: Vec<Field<'a>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(parsed: &[httparse::Header<'a>]) -> Self {
        const NONE: Field<'static> = Field { name: "", value: &[] };
        let mut fields = Self { inline: [NONE; INLINE], len: parsed.len(), spill: Vec::new() };
        if parsed.len() > INLINE {
            fields.spill = parsed.iter().map(|h| Field { name: h.name, value: h.value }).collect();
        } else {
            for (slot, header) in fields.inline.iter_mut().zip(parsed) {
                *slot = Field { name: header.name, value: header.value };
            }
        }
        fields
    }

    /// All lines.
    #[must_use]
    pub fn as_slice(&self) -> &[Field<'a>] {
        if self.spill.is_empty() { self.inline.get(..self.len).unwrap_or_default() } else { &self.spill }
    }

    /// All lines, one after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, Field<'a>> {
        self.as_slice().iter()
    }

    /// The value of the first line named `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.iter().find(|field| field.is(name)).map(|field| field.value)
    }
}

impl<'f, 'a> IntoIterator for &'f Fields<'a> {
    type Item = &'f Field<'a>;
    type IntoIter = std::slice::Iter<'f, Field<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The members of a comma-separated list (RFC 9110, section 5.6.1), empty ones left out.
pub(super) fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Whether a field belongs to one connection and is never passed on (RFC 9110, section 7.6.1): the known ones,
/// and those that a Connection field of the same message names.
#[must_use]
pub fn is_hop_by_hop(name: &str, fields: &Fields<'_>) -> bool {
    const KNOWN: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name))
        || fields
            .iter()
            .filter(|field| field.is("connection"))
            .flat_map(|field| list_members(field.value))
            .any(|member| member.eq_ignore_ascii_case(name.as_bytes()))
}

/// Whether a field of an upstream's answer may reach the client: not a cookie, and not framing, which the
/// writer sets itself.
#[must_use]
pub fn passes_response(name: &str) -> bool {
    !["set-cookie", "set-cookie2", "content-length"].iter().any(|dropped| dropped.eq_ignore_ascii_case(name))
}

/// Whether a Content-Type names `essence` (`type/subtype`), whatever its parameters (RFC 9110, section 8.3.1).
#[must_use]
pub fn media_type_is(content_type: &str, essence: &str) -> bool {
    let named = content_type.split(';').next().unwrap_or_default();
    trim_ows(named).eq_ignore_ascii_case(essence)
}

/// Whether a Content-Type is `application/json` with nothing but `charset=utf-8` beside it.
///
/// Another charset would make the upstream read other text than the policy did.
#[must_use]
pub fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(trim_ows);
    parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
        && parts.all(|parameter| {
            parameter.is_empty()
                || parameter.eq_ignore_ascii_case("charset=utf-8")
                || parameter.eq_ignore_ascii_case("charset=\"utf-8\"")
        })
}

fn trim_ows(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}
