//! JSON-RPC over HTTP: the answers that are ours, and those of an upstream with ours among them.

use super::answer::{Answer, Data, error_object, retry_after_ms, rule_word};
use carapace_policy::json::Id;
use carapace_policy::{Denial, DenialKind, Element, RpcJudged};

/// What an element that is denied is answered with.
pub(super) fn denied(out: &mut Vec<u8>, id: &[u8], tool: &str, request_id: &str, denial: &Denial) {
    let data =
        Data { tool, rule: rule_word(denial.kind), request_id, retry_after_ms: retry_after_ms(denial.kind) };
    error_object(out, id, denial.kind.code(), &denial.said, Some(data));
}

/// The answer when nothing of a body is allowed.
pub(super) fn all_denied(judged: &RpcJudged, tool: &str, request_id: &str) -> Answer {
    let mut body = Vec::new();
    if judged.batch {
        body.push(b'[');
        push_denied(&mut body, judged, tool, request_id);
        body.push(b']');
    } else {
        push_denied(&mut body, judged, tool, request_id);
    }
    let wait = judged.elements.iter().filter_map(|element| element.verdict.as_ref().err());
    let answer = Answer::json(200, body);
    match wait.filter_map(|denial| retry_after_ms(denial.kind)).max() {
        Some(millis) => answer.retry_after(millis),
        None => answer,
    }
}

/// The answer when the upstream gave none, or none that is valid: one error for each element.
pub(super) fn all_failed(judged: &RpcJudged, status: u16, code: i32, said: &str, data: Data<'_>) -> Answer {
    let mut body = Vec::new();
    let mut sep = Separator::new(judged.batch);
    for element in &judged.elements {
        match &element.verdict {
            // An element that is denied is denied, whatever became of the others; nobody waits for a notification.
            Err(denial) => {
                sep.next(&mut body);
                denied(&mut body, id_or_null(element), data.tool, data.request_id, denial);
            }
            Ok(_) if judged.batch && matches!(element.id, Id::Absent) => {}
            Ok(_) => {
                sep.next(&mut body);
                error_object(&mut body, id_or_null(element), code, said, Some(data));
            }
        }
    }
    sep.end(&mut body);
    Answer::json(status, body)
}

/// The answer when nothing may be done, whatever the policy says: the same error for each element that waits for one.
pub(super) fn all_refused(judged: &RpcJudged, code: i32, said: &str, data: Data<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    let mut sep = Separator::new(judged.batch);
    for element in &judged.elements {
        if !judged.batch || !matches!(element.id, Id::Absent) {
            sep.next(&mut body);
            error_object(&mut body, id_or_null(element), code, said, Some(data));
        }
    }
    sep.end(&mut body);
    body
}

/// An upstream's answer to the allowed elements of a batch, with the errors of the denied ones added; `None` when it
/// is not one that could be added to.
pub(super) fn merged(judged: &RpcJudged, upstream: &[u8], tool: &str, request_id: &str) -> Option<Vec<u8>> {
    let upstream = upstream.trim_ascii();
    let inner = match upstream {
        [] => &[][..],
        [b'[', inner @ .., b']'] => inner.trim_ascii(),
        [b'{', .., b'}'] => upstream,
        _ => return None,
    };
    let mut body = Vec::with_capacity(upstream.len() + 256);
    body.push(b'[');
    body.extend_from_slice(inner);
    let before = body.len();
    if !inner.is_empty() {
        body.push(b',');
    }
    let begun = body.len();
    push_denied(&mut body, judged, tool, request_id);
    if body.len() == begun {
        body.truncate(before);
    }
    body.push(b']');
    Some(body)
}

/// Whether some of a batch was denied, so that the upstream's answer is not the whole answer.
pub(super) fn is_partly_denied(judged: &RpcJudged) -> bool {
    judged.batch && judged.elements.iter().any(|element| element.verdict.is_err())
}

fn push_denied(out: &mut Vec<u8>, judged: &RpcJudged, tool: &str, request_id: &str) {
    let mut is_first = true;
    for element in &judged.elements {
        if let Err(denial) = &element.verdict {
            if !core::mem::take(&mut is_first) {
                out.push(b',');
            }
            denied(out, id_or_null(element), tool, request_id, denial);
        }
    }
}

fn id_or_null(element: &Element) -> &[u8] {
    match &element.id {
        Id::Absent => b"null",
        Id::Raw(id) => id,
    }
}

/// A malformed request belongs to no element.
pub(super) fn malformed(code: i32, said: &str, tool: &str, request_id: &str) -> Answer {
    let mut body = Vec::new();
    let data = Data { tool, rule: rule_word(DenialKind::Malformed), request_id, retry_after_ms: None };
    error_object(&mut body, b"null", code, said, Some(data));
    Answer::json(200, body)
}

/// Commas and brackets of a batch; nothing for a single answer.
struct Separator {
    is_batch: bool,
    count: usize,
}

impl Separator {
    const fn new(is_batch: bool) -> Self {
        Self { is_batch, count: 0 }
    }

    fn next(&mut self, out: &mut Vec<u8>) {
        if self.is_batch {
            out.push(if self.count == 0 { b'[' } else { b',' });
        }
        self.count += 1;
    }

    fn end(&self, out: &mut Vec<u8>) {
        match (self.is_batch, self.count) {
            (true, 0) => out.extend_from_slice(b"[]"),
            (true, _) => out.push(b']'),
            (false, _) => {}
        }
    }
}
