//! Looks at what the server writes to an upstream, as it is written: there a request's effect begins.

use crate::check::Check;
use crate::env::Env;
use crate::http::{Head, Kind, Reader, peek_request};
use crate::ledger::{Verdict, request_key};
use crate::rules::{BODY_MAX, SECRET_HEADER};

/// One upstream connection's requests.
#[derive(Debug)]
pub(crate) struct Tap {
    tool: &'static str,
    reader: Reader,
    /// The request that comes next has been judged, and nothing of it could be written yet.
    is_judged: bool,
}

impl Tap {
    pub(crate) const fn new(tool: &'static str) -> Self {
        Self { tool, reader: Reader::new(Kind::Request), is_judged: false }
    }

    /// Before bytes are written: if a request begins with them, it must be one that may.
    pub(crate) fn look(&mut self, env: &mut Env, unsent: &[u8]) {
        if !self.reader.is_between() || core::mem::replace(&mut self.is_judged, true) {
            return;
        }
        match peek_request(unsent) {
            Ok(Some((head, body))) => judge(env, self.tool, &head, &body),
            Ok(None) => env.fail(Check::Policy, format!("{}: a request without a whole head", self.tool)),
            Err(error) => {
                env.fail(Check::Policy, format!("{}: what is sent is no request: {error}", self.tool))
            }
        }
    }

    /// These bytes have been written.
    pub(crate) fn written(&mut self, env: &mut Env, bytes: &[u8]) {
        self.is_judged &= bytes.is_empty();
        if let Err(error) = self.reader.feed(bytes) {
            env.fail(Check::Policy, format!("{}: what was sent is no request: {error}", self.tool));
        }
    }
}

fn judge(env: &mut Env, tool: &'static str, head: &Head, body: &[u8]) {
    env.say(|| format!("{tool} is asked {:?} {}", head.start, crate::http::shown(body)));
    let verdict = judge_head(tool, head);
    env.check(verdict);
    let (method, target) = (head.word(0), head.word(1));
    let path = target.split('?').next().unwrap_or_default();
    if tool == "files" {
        let Some(path) = path.strip_prefix("/base") else {
            return env.fail(Check::Policy, format!("files is asked for {target:?}"));
        };
        let key = request_key(tool, method, path, "");
        let verdict = env.ledger.effect(&key, |law| law.allows_file(method, path));
        return env.check(verdict);
    }
    match (method, path) {
        ("POST", "/api/v1/rpc") => judge_body(env, body),
        ("GET", "/api/v1/events" | "/api/v1/check") => {
            let verdict = env.ledger.effect(&request_key(tool, method, path, ""), |_| true);
            env.check(verdict);
        }
        _ => env.fail(Check::Policy, format!("signal-cli is asked {:?}", head.start)),
    }
}

/// Only the fields that may be there, with the values that the server gives them.
fn judge_head(tool: &str, head: &Head) -> Verdict {
    let host = if tool == "files" { "files.test:8000" } else { "127.0.0.1:18080" };
    let secret = head.field("authorization");
    if head.field("host") != Some(host) {
        return Err((Check::Policy, format!("{tool}: Host is {:?}", head.field("host"))));
    }
    if secret != (tool == "files").then_some(SECRET_HEADER) {
        return Err((Check::Policy, format!("{tool}: Authorization is {secret:?}")));
    }
    for (place, (name, _)) in head.fields.iter().enumerate() {
        let name = name.to_ascii_lowercase();
        let is_known = matches!(
            name.as_str(),
            "host"
                | "accept"
                | "content-type"
                | "last-event-id"
                | "accept-language"
                | "authorization"
                | "content-length"
                | "transfer-encoding"
                | "connection"
        );
        let is_again = head.fields.iter().take(place).any(|(other, _)| other.eq_ignore_ascii_case(&name));
        if !is_known || is_again {
            return Err((Check::Policy, format!("{tool}: the field {name:?}")));
        }
    }
    Ok(())
}

/// Each call of a body must be whole, plain, and one that may be made.
fn judge_body(env: &mut Env, body: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
        return env.fail(Check::Policy, format!("signal-cli gets no JSON: {}", crate::http::shown(body)));
    };
    let calls = match value {
        serde_json::Value::Array(calls) if !calls.is_empty() => calls,
        call => vec![call],
    };
    if body.len() > BODY_MAX {
        env.fail(Check::Policy, format!("signal-cli gets {} bytes", body.len()));
    }
    for call in &calls {
        let Some(members) = call.as_object() else {
            return env.fail(Check::Policy, format!("signal-cli gets {call}"));
        };
        if members.keys().any(|key| !matches!(key.as_str(), "jsonrpc" | "id" | "method" | "params")) {
            return env.fail(Check::Policy, format!("signal-cli gets {call}"));
        }
        let method = call["method"].as_str().unwrap_or_default();
        let recipient = match &call["params"]["recipient"] {
            serde_json::Value::Array(list) if list.len() == 1 => list[0].as_str(),
            one => one.as_str(),
        };
        let key = request_key("signal-cli", method, "/api/v1/rpc", recipient.unwrap_or_default());
        let verdict = env.ledger.effect(&key, |law| law.allows_rpc(method, recipient));
        env.check(verdict);
    }
}
