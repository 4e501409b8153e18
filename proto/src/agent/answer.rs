//! What the agent itself says to an HTTP client: refusals, failures, its own health.

use crate::wire::frame::Fault;
use crate::wire::http1::{Answer, HttpDate, write_answer};
use carapace_policy::json::{Id, RpcIds, escape, rpc_ids};
use std::borrow::Cow;

/// Why a request gets no answer of the server's, as its client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: u16,
    /// The code of the JSON-RPC error.
    pub(super) code: i32,
    pub(super) text: Cow<'static, str>,
}

impl Failure {
    /// Nothing was started; trying again is safe and may help.
    pub(super) fn not_started(why: &dyn core::fmt::Display) -> Self {
        Self { status: 503, code: -32004, text: format!("not started: {why}").into() }
    }

    /// The call may have begun, and nobody will hear how it ends.
    pub(super) const fn outcome_unknown(text: &'static str) -> Self {
        Self { status: 504, code: -32005, text: Cow::Borrowed(text) }
    }

    /// The server ended the stream.
    pub(super) fn of(fault: Fault, text: &[u8]) -> Self {
        let (status, code, default) = match fault {
            Fault::NotStarted => (503, -32004, "not started"),
            Fault::OutcomeUnknown => (504, -32005, "the outcome is unknown"),
            Fault::TimedOut => (504, -32005, "timed out; the outcome is unknown"),
            Fault::BadUpstream => (502, -32004, "the upstream's answer could not be used"),
            Fault::TooMuchOutput => (502, -32004, "the answer is larger than the policy allows"),
            Fault::Cancelled => (502, -32004, "cancelled by the server"),
            Fault::Misbehaved => (502, -32004, "the link's protocol was broken"),
            Fault::Denied | Fault::Failed | Fault::UnknownTool => (502, -32004, "failed on the server"),
        };
        let text = match core::str::from_utf8(text) {
            Ok("") | Err(_) => Cow::Borrowed(default),
            Ok(text) => Cow::Owned(text.to_owned()),
        };
        Self { status, code, text }
    }
}

/// Why a request is refused before the server hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) text: Cow<'static, str>,
    pub(super) field: Option<(&'static str, &'static str)>,
}

impl Refusal {
    pub(super) fn new(status: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into(), field: None }
    }

    pub(super) const fn with_field(mut self, name: &'static str, value: &'static str) -> Self {
        self.field = Some((name, value));
        self
    }
}

/// How an answer of the agent's own is to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) date: Option<HttpDate>,
    pub(super) is_head: bool,
    pub(super) keep_alive: bool,
}

/// Appends the answer to a request that failed; `body` is what was kept of the request's.
pub(super) fn write_failure(out: &mut Vec<u8>, failure: &Failure, body: &[u8], manner: Manner) {
    let retry: &[(&str, &str)] = if failure.status == 503 { &[("Retry-After", "1")] } else { &[] };
    let json = rpc_errors(failure, body);
    write(out, failure.status, retry, "application/json", &json, manner);
}

/// Appends a refusal in plain words.
pub(super) fn write_refusal(out: &mut Vec<u8>, refusal: &Refusal, manner: Manner) {
    let body = format!("{}\n", refusal.text);
    let fields = refusal.field.as_slice();
    write(out, refusal.status, fields, "text/plain; charset=utf-8", body.as_bytes(), manner);
}

/// Appends a JSON answer.
pub(super) fn write_json(out: &mut Vec<u8>, status: u16, json: &[u8], manner: Manner) {
    write(out, status, &[("Cache-Control", "no-store")], "application/json", json, manner);
}

fn write(
    out: &mut Vec<u8>,
    status: u16,
    fields: &[(&str, &str)],
    content_type: &str,
    body: &[u8],
    manner: Manner,
) {
    let answer = Answer {
        status,
        date: manner.date.as_ref().map(HttpDate::as_str),
        content_type: Some(content_type),
        fields,
        body,
        is_head: manner.is_head,
        keep_alive: manner.keep_alive,
    };
    let written = write_answer(out, &answer);
    debug_assert!(written.is_ok(), "an answer of our own cannot be written: {written:?}");
}

/// An error for each call in `body` that has an id; one for nobody where no id can be told.
fn rpc_errors(failure: &Failure, body: &[u8]) -> Vec<u8> {
    let ids = rpc_ids(body).unwrap_or(RpcIds { batch: false, ids: Vec::new() });
    let mut named = ids.ids.iter().filter_map(|id| match id {
        Id::Absent => None,
        Id::Raw(bytes) => Some(bytes.as_slice()),
    });
    let mut json = Vec::new();
    let first = named.next();
    if !ids.batch || first.is_none() {
        rpc_error(&mut json, failure, first.unwrap_or(b"null"));
        return json;
    }
    json.push(b'[');
    for (index, id) in first.into_iter().chain(named).enumerate() {
        if index > 0 {
            json.push(b',');
        }
        rpc_error(&mut json, failure, id);
    }
    json.push(b']');
    json
}

fn rpc_error(out: &mut Vec<u8>, failure: &Failure, id: &[u8]) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","error":{"code":"#);
    out.extend_from_slice(failure.code.to_string().as_bytes());
    out.extend_from_slice(br#","message":"#);
    escape(out, &failure.text);
    out.extend_from_slice(br#"},"id":"#);
    out.extend_from_slice(id);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &[u8]) -> String {
        let failure = Failure { status: 503, code: -32004, text: "not \"started\"".into() };
        String::from_utf8(rpc_errors(&failure, body)).unwrap()
    }

    #[test]
    fn an_error_carries_the_id_of_its_call() {
        let error = r#""error":{"code":-32004,"message":"not \"started\""}"#;
        let one = json(br#"{"jsonrpc":"2.0","method":"send","id":1e3}"#);
        assert_eq!(one, format!(r#"{{"jsonrpc":"2.0",{error},"id":1e3}}"#));
        let nobody = format!(r#"{{"jsonrpc":"2.0",{error},"id":null}}"#);
        for body in [&b""[..], b"{", br#"{"jsonrpc":"2.0","method":"send"}"#, b"\xff", b"7"] {
            assert_eq!(json(body), nobody, "{body:?}");
        }
    }

    #[test]
    fn a_batch_gets_an_error_for_each_call_that_expects_an_answer() {
        let call = |id: &str| format!(r#"{{"jsonrpc":"2.0","method":"m"{id}}}"#);
        let body = format!("[{},{},{}]", call(r#","id":"a""#), call(""), call(r#","id":2"#));
        let answer = json(body.as_bytes());
        assert!(answer.starts_with('[') && answer.ends_with(']'), "{answer}");
        assert!(answer.contains(r#""id":"a"}"#) && answer.contains(r#""id":2}"#), "{answer}");
        assert_eq!(answer.matches("jsonrpc").count(), 2);
    }
}
