//! JSON-RPC envelopes in an accepted text.

use std::borrow::Cow;

use super::scan::{Entry, JsonError, Scan};
use super::value::{Kind, Value, unescape};

/// The most calls in one batch: a hundred times what clients send, and its answers still fit in memory.
pub(crate) const BATCH_MAX: usize = 1024;

/// The longest id and the longest method, in bytes: both come back in answers and records, one for each call.
const NAME_BYTES_MAX: usize = 1024;

/// The `id` of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// There is none: a notification, which gets no answer.
    Absent,
    /// Its bytes exactly as sent: a string, a number in any spelling, or `null`, which is an id like any other.
    Raw(Vec<u8>),
}

/// The ids of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcIds {
    /// Whether the body is an array.
    pub batch: bool,
    /// One for each call, in order. What is no proper call has the id `null`.
    pub ids: Vec<Id>,
}

/// The ids of the calls in `body`, for replies that say why none was carried out. `None` when the body is not JSON, or
/// is neither an object nor an array of at most 1,024 elements.
#[must_use]
pub fn rpc_ids(body: &[u8]) -> Option<RpcIds> {
    let scan = Scan::whole(body).ok()?;
    let calls = Calls::read(body, &scan).ok()?;
    let null = || Id::Raw(b"null".to_vec());
    let ids = calls.iter().map(|call| call.map_or_else(|_| null(), |call| call.id())).collect();
    Some(RpcIds { batch: calls.batch, ids })
}

/// The calls of an accepted body, not yet looked at one by one.
pub(crate) struct Calls<'a> {
    pub(crate) batch: bool,
    text: &'a [u8],
    entries: &'a [Entry],
}

/// One well-formed call.
pub(crate) struct Call<'a> {
    id: Option<&'a [u8]>,
    pub(crate) method: Cow<'a, str>,
    /// `None` when absent or `null`.
    pub(crate) params: Option<Value<'a>>,
    text: &'a [u8],
    /// The members of `params`, where it is an object.
    members: &'a [Entry],
}

impl<'a> Calls<'a> {
    /// # Errors
    /// A sentence's end for the caller: what the body is instead of a request.
    pub(crate) fn read(text: &'a [u8], scan: &'a Scan) -> Result<Self, &'static str> {
        let entries = scan.entries();
        let Some((root, entries)) = entries.split_first() else { return Err("the body is empty") };
        match Value::new(root.value(text)).kind() {
            Kind::Object => Ok(Self { batch: false, text, entries: scan.entries() }),
            Kind::Array if entries.is_empty() => Err("the batch is empty"),
            Kind::Array => {
                let count = entries.iter().filter(|entry| entry.depth == 1).count();
                if count > BATCH_MAX {
                    return Err("the batch has more than 1024 elements");
                }
                Ok(Self { batch: true, text, entries })
            }
            Kind::Boolean | Kind::Null | Kind::Number | Kind::String => Err("the body is not a request"),
        }
    }

    /// The calls of a body that [`read`](Self::read) has found good before.
    pub(crate) fn again(text: &'a [u8], scan: &'a Scan, batch: bool) -> Self {
        let entries = scan.entries();
        Self { batch, text, entries: if batch { entries.get(1..).unwrap_or_default() } else { entries } }
    }

    /// Each call, or what is wrong with it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Call<'a>, &'static str>> {
        let mut at = 0;
        std::iter::from_fn(move || self.next(&mut at))
    }

    /// The call at a place that begins as 0 and is moved on.
    pub(crate) fn next(&self, at: &mut usize) -> Option<Result<Call<'a>, &'static str>> {
        let (root, after) = self.entries.get(*at..)?.split_first()?;
        let len = after.iter().position(|entry| entry.depth <= root.depth).unwrap_or(after.len());
        *at += len + 1;
        Some(Call::read(self.text, root, after.get(..len).unwrap_or_default()))
    }
}

impl<'a> Call<'a> {
    fn read(text: &'a [u8], root: &Entry, inside: &'a [Entry]) -> Result<Self, &'static str> {
        if Value::new(root.value(text)).kind() != Kind::Object {
            return Err("a call must be an object");
        }
        let (mut id, mut method, mut params, mut version, mut members) = (None, None, None, None, &[][..]);
        for (i, entry) in inside.iter().enumerate() {
            if entry.depth != root.depth + 1 {
                continue;
            }
            let value = Value::new(entry.value(text));
            match entry.key(text).and_then(unescape).as_deref() {
                Some("jsonrpc") => version = value.as_str(),
                Some("id") => id = Some(value),
                Some("method") => method = value.as_str(),
                Some("params") => {
                    params = Some(value);
                    members = members_of(inside.get(i..).unwrap_or_default(), value);
                }
                // Any other member means nothing in JSON-RPC, and the rebuilt request leaves it out.
                Some(_) | None => {}
            }
        }
        if version.as_deref() != Some("2.0") {
            return Err("`jsonrpc` must be \"2.0\"");
        }
        let method = method.ok_or("`method` must be a string")?;
        if id.is_some_and(|id| !matches!(id.kind(), Kind::Null | Kind::Number | Kind::String)) {
            return Err("`id` must be a string, a number or null");
        }
        if id.is_some_and(|id| id.bytes().len() > NAME_BYTES_MAX) || method.len() > NAME_BYTES_MAX {
            return Err("`id` and `method` must be short");
        }
        let params = params.filter(|params| params.kind() != Kind::Null);
        if params.is_some_and(|params| !matches!(params.kind(), Kind::Object | Kind::Array)) {
            return Err("`params` must be an object or an array");
        }
        Ok(Self { id: id.map(Value::bytes), method, params, text, members })
    }

    /// The bytes of the id; empty for a notification.
    pub(crate) fn id_bytes(&self) -> &'a [u8] {
        self.id.unwrap_or_default()
    }

    pub(crate) fn id(&self) -> Id {
        self.id.map_or(Id::Absent, |bytes| Id::Raw(bytes.to_vec()))
    }

    /// The members of `params` with their keys unescaped; nothing where it is an array or absent.
    pub(crate) fn members(&self) -> impl Iterator<Item = (Cow<'a, str>, Value<'a>)> {
        let text = self.text;
        self.members
            .iter()
            .filter_map(move |entry| Some((unescape(entry.key(text)?)?, Value::new(entry.value(text)))))
    }

    /// Appends the request that means what was judged and nothing else, up to the bytes of `params`, which must follow,
    /// and a `}`.
    pub(crate) fn rebuild_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"jsonrpc":"2.0","#);
        if let Some(id) = self.id {
            out.extend_from_slice(br#""id":"#);
            out.extend_from_slice(id);
            out.push(b',');
        }
        out.extend_from_slice(br#""method":"#);
        super::escape(out, &self.method);
        if self.params.is_some() {
            out.extend_from_slice(br#","params":"#);
        }
    }

    /// The bytes of `params`; empty where they are absent.
    pub(crate) fn params_bytes(&self) -> &'a [u8] {
        self.params.map(Value::bytes).unwrap_or_default()
    }
}

/// The entries of the members of the value whose own entry comes first.
fn members_of<'a>(entries: &'a [Entry], value: Value<'_>) -> &'a [Entry] {
    let Some((own, after)) = entries.split_first() else { return &[] };
    if value.kind() != Kind::Object {
        return &[];
    }
    let len = after.iter().position(|entry| entry.depth <= own.depth).unwrap_or(after.len());
    after.get(..len).unwrap_or_default()
}

/// Text for a body that the strict pass refused.
pub(crate) fn refusal(error: JsonError) -> String {
    if error.code() == -32700 { format!("Parse error: {error}") } else { format!("Request refused: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Shown = Result<(Id, String, Vec<String>), &'static str>;

    fn read(body: &str) -> Vec<Shown> {
        let scan = Scan::whole(body.as_bytes()).unwrap();
        let calls = Calls::read(body.as_bytes(), &scan).unwrap();
        let show = |call: Call<'_>| {
            let members = call
                .members()
                .map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(value.bytes())));
            (call.id(), call.method.to_string(), members.collect())
        };
        calls.iter().map(|call| call.map(show)).collect()
    }

    #[test]
    fn finds_calls_and_their_members() {
        let call = r#"{"params":{"a":[1,{"x":2}],"b":{"c":3}},"jsonrpc":"2.0","id":1e3,"method":"s\u0065nd","x":{"params":1}}"#;
        let members = vec![r#"a=[1,{"x":2}]"#.to_owned(), r#"b={"c":3}"#.to_owned()];
        let expected = Ok((Id::Raw(b"1e3".to_vec()), "send".to_owned(), members));
        assert_eq!(read(call), std::slice::from_ref(&expected));
        let batch = format!("[{call}, 7, {{\"jsonrpc\":\"2.0\",\"method\":\"n\",\"params\":null}},{call}]");
        let note = Ok((Id::Absent, "n".to_owned(), Vec::new()));
        assert_eq!(read(&batch), [expected.clone(), Err("a call must be an object"), note, expected]);
    }

    #[test]
    fn refuses_what_is_no_request() {
        for body in [
            r#"{}"#,
            r#"{"jsonrpc":"1.0","method":"a"}"#,
            r#"{"jsonrpc":2.0,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","method":1}"#,
            r#"{"jsonrpc":"2.0","method":"\ud800"}"#,
            r#"{"jsonrpc":"2.0","method":"a","id":[]}"#,
            r#"{"jsonrpc":"2.0","method":"a","id":true}"#,
            r#"{"jsonrpc":"2.0","method":"a","params":"x"}"#,
            &format!(r#"{{"jsonrpc":"2.0","method":"{}"}}"#, "a".repeat(1025)),
            &format!(r#"{{"jsonrpc":"2.0","method":"a","id":"{}"}}"#, "a".repeat(1025)),
        ] {
            assert!(read(body)[0].is_err(), "{body}");
        }
        for body in ["[]", "1", "\"x\"", "null"] {
            let scan = Scan::whole(body.as_bytes()).unwrap();
            assert!(Calls::read(body.as_bytes(), &scan).is_err(), "{body}");
        }
    }

    #[test]
    fn ids_keep_their_bytes() {
        let ids = rpc_ids(
            br#"[{"jsonrpc":"2.0","method":"a","id":1152921504606846976},{"jsonrpc":"2.0","method":"a"},3]"#,
        );
        let raw = |text: &str| Id::Raw(text.as_bytes().to_vec());
        let expected = RpcIds { batch: true, ids: vec![raw("1152921504606846976"), Id::Absent, raw("null")] };
        assert_eq!(ids, Some(expected));
        assert_eq!(rpc_ids(b"{"), None);
        let null = rpc_ids(br#"{"jsonrpc":"2.0","method":"a","id":null}"#).unwrap();
        assert_eq!(null, RpcIds { batch: false, ids: vec![raw("null")] });
    }
}
