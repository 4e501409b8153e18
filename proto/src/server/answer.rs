//! What a client is told when the answer is ours and not the upstream's: the table of `docs/protocol.md`.

use carapace_policy::{DenialKind, json};

/// The tool cannot be used: not started.
pub(super) const UNAVAILABLE: i32 = -32004;
/// It took too long, or was lost: what became of it is not known.
pub(super) const OUTCOME_UNKNOWN: i32 = -32005;
/// An error inside: the audit log.
pub(super) const INTERNAL: i32 = -32603;

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// A JSON-RPC answer.
    pub(super) fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, fields: vec![("content-type", "application/json".to_owned())], body }
    }

    /// A sentence for people, for tools that do not speak JSON-RPC.
    pub(super) fn text(status: u16, said: &str) -> Self {
        let body = format!("{said}\n").into_bytes();
        Self { status, fields: vec![("content-type", "text/plain; charset=utf-8".to_owned())], body }
    }

    /// Says when to come back, in whole seconds rounded up.
    pub(super) fn retry_after(mut self, millis: u64) -> Self {
        self.fields.push(("retry-after", millis.div_ceil(1000).max(1).to_string()));
        self
    }
}

/// Appends one JSON-RPC error object. `id` is JSON text.
pub(super) fn error_object(out: &mut Vec<u8>, id: &[u8], code: i32, said: &str, data: Option<Data<'_>>) {
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    out.extend_from_slice(id);
    out.extend_from_slice(b",\"error\":{\"code\":");
    out.extend_from_slice(code.to_string().as_bytes());
    out.extend_from_slice(b",\"message\":");
    json::escape(out, said);
    if let Some(data) = data {
        out.extend_from_slice(b",\"data\":{\"tool\":");
        json::escape(out, data.tool);
        out.extend_from_slice(b",\"rule\":");
        json::escape(out, data.rule);
        out.extend_from_slice(b",\"request_id\":");
        json::escape(out, data.request_id);
        if let Some(millis) = data.retry_after_ms {
            out.extend_from_slice(b",\"retry_after_ms\":");
            out.extend_from_slice(millis.to_string().as_bytes());
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"}}");
}

/// The `data` of an error: what an operator needs to find the record, and nothing of the rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data<'a> {
    pub(super) tool: &'a str,
    pub(super) rule: &'a str,
    pub(super) request_id: &'a str,
    pub(super) retry_after_ms: Option<u64>,
}

/// The kind of rule that refused, in a word.
pub(super) const fn rule_word(kind: DenialKind) -> &'static str {
    match kind {
        DenialKind::Blocked => "content",
        DenialKind::Denied => "policy",
        DenialKind::Malformed => "request",
        DenialKind::RateLimited { .. } => "rate_limit",
        DenialKind::Unavailable => "unavailable",
        DenialKind::UnknownTool => "tool",
    }
}

/// When a caller that was limited may come again.
pub(super) const fn retry_after_ms(kind: DenialKind) -> Option<u64> {
    match kind {
        DenialKind::RateLimited { retry_after_ms } => Some(retry_after_ms),
        DenialKind::Blocked
        | DenialKind::Denied
        | DenialKind::Malformed
        | DenialKind::Unavailable
        | DenialKind::UnknownTool => None,
    }
}
