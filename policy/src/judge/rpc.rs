//! Judging a JSON-RPC body.

use super::filter::Subject;
use super::http::{Request, RpcGate};
use super::take_rate;
use crate::caller::Caller;
use crate::json::{self, Call, Calls, Id, Scan};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::tool::{HttpTool, RpcRules};
use crate::verdict::{Denial, DenialKind, Notes, Rule, Trace, shown};

/// What became of a body.
#[derive(Debug)]
#[must_use]
pub enum RpcVerdict {
    /// It was understood; each call was judged by itself.
    Judged(Box<RpcJudged>),
    /// It is no request; the answer has the id `null`.
    Malformed {
        /// -32700 for what is no JSON, -32600 for JSON that is no request or could be read in two ways.
        code: i32,
        /// One sentence for the caller.
        said: String,
    },
}

/// A judged body.
#[derive(Debug)]
pub struct RpcJudged {
    /// Whether it is an array, also of one call: the answer is one then, too.
    pub batch: bool,
    /// The calls in order.
    pub elements: Vec<Element>,
    /// What the upstream gets, rebuilt from the allowed calls; `None` when none is allowed.
    pub request: Option<Request>,
}

/// One judged call.
#[derive(Debug)]
pub struct Element {
    /// Its id. What is no well-formed call has the id `null`.
    pub id: Id,
    /// Its method; empty for what is no well-formed call.
    pub method: String,
    /// Allowed, or why not.
    pub verdict: Result<Notes, Box<Denial>>,
}

impl Policy {
    /// Judges a complete JSON-RPC body, and rebuilds what is allowed of it.
    pub fn judge_rpc(
        &self,
        gate: &RpcGate,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        body: &[u8],
    ) -> RpcVerdict {
        match Scan::whole(body) {
            Ok(scan) => self.judge_scanned(gate, caller, limits, now_us, body, &scan, &mut Trace::off()),
            Err(error) => RpcVerdict::Malformed { code: error.code(), said: json::refusal(error) },
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a judgement depends on, each named once")]
    pub(crate) fn judge_scanned(
        &self,
        gate: &RpcGate,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        body: &[u8],
        scan: &Scan,
        trace: &mut Trace,
    ) -> RpcVerdict {
        let calls = match Calls::read(body, scan) {
            Ok(calls) => calls,
            Err(what) => {
                return RpcVerdict::Malformed { code: -32600, said: format!("Request refused: {what}") };
            }
        };
        let mut elements = Vec::new();
        let mut rebuilt = Vec::with_capacity(body.len() + 64);
        for call in calls.iter() {
            let element = match &call {
                Ok(call) => Element {
                    id: call.id(),
                    method: call.method.to_string(),
                    verdict: self.judge_call(gate, caller, limits, now_us, call, trace),
                },
                Err(what) => Element {
                    id: Id::Raw(b"null".to_vec()),
                    method: String::new(),
                    verdict: Err(malformed(gate, what)),
                },
            };
            if let (Ok(call), Ok(_)) = (&call, &element.verdict) {
                if calls.batch {
                    rebuilt.push(if rebuilt.is_empty() { b'[' } else { b',' });
                }
                call.rebuild(&mut rebuilt);
            }
            elements.push(element);
        }
        if !calls.batch
            && let [Element { verdict: Err(denial), .. }] = elements.as_slice()
            && denial.kind == DenialKind::Malformed
        {
            return RpcVerdict::Malformed { code: -32600, said: denial.said.clone() };
        }
        let request = self.rebuilt_request(gate, calls.batch, rebuilt, &mut elements);
        RpcVerdict::Judged(Box::new(RpcJudged { batch: calls.batch, elements, request }))
    }

    /// The request of the allowed calls; where it cannot be made, they are all refused.
    fn rebuilt_request(
        &self,
        gate: &RpcGate,
        batch: bool,
        mut body: Vec<u8>,
        elements: &mut [Element],
    ) -> Option<Request> {
        if body.is_empty() {
            return None;
        }
        if batch {
            body.push(b']');
        }
        match self.rpc_request(gate, body) {
            Ok(request) => Some(request),
            Err(denial) => {
                for element in elements.iter_mut().filter(|element| element.verdict.is_ok()) {
                    element.verdict = Err(denial.clone());
                }
                None
            }
        }
    }

    fn judge_call(
        &self,
        gate: &RpcGate,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        call: &Call<'_>,
        trace: &mut Trace,
    ) -> Result<Notes, Box<Denial>> {
        let mut notes = Notes::default();
        let mut judge = |notes: &mut Notes| {
            let rules = gate.tool.http().map(|http: &HttpTool| &http.rpc);
            let Some(rules) = rules else { return Err(malformed(gate, "it has no methods")) };
            let by_method = judge_method(gate, rules, &call.method, trace)?;
            let by_params = Subject::new(&gate.tool, rules, call).judge(notes, trace)?;
            take_rate(&gate.tool, caller, limits, now_us)?;
            Ok(by_params.unwrap_or(by_method))
        };
        match judge(&mut notes) {
            Ok(rule) => Ok(Notes { rule: Some(rule), ..notes }),
            Err(denial) => {
                notes.rule = Some(denial.rule.clone());
                Err(denial.with_notes(notes))
            }
        }
    }
}

fn malformed(gate: &RpcGate, what: &str) -> Box<Denial> {
    let rule = Rule::new(format!("{}: JSON-RPC", gate.tool.name), 0);
    Denial::new(DenialKind::Malformed, format!("Request refused: {what}"), rule, what)
}

fn judge_method(
    gate: &RpcGate,
    rules: &RpcRules,
    method: &str,
    trace: &mut Trace,
) -> Result<Rule, Box<Denial>> {
    let tool = &gate.tool;
    let deny = |rule: Rule, reason: &str| {
        let said = format!("{}: method `{}` is not allowed", tool.name, shown(method));
        Denial::new(DenialKind::Denied, said, rule, reason)
    };
    for pattern in &rules.deny {
        let is_hit = pattern.glob.matches(method.as_bytes());
        trace.tried(&pattern.rule, || if is_hit { "denies" } else { "does not match" }.to_owned());
        if is_hit {
            return Err(deny(pattern.rule.clone(), "a deny pattern matches the method"));
        }
    }
    for pattern in &rules.allow {
        let is_hit = pattern.glob.matches(method.as_bytes());
        trace.tried(&pattern.rule, || if is_hit { "allows" } else { "does not match" }.to_owned());
        if is_hit {
            return Ok(pattern.rule.clone());
        }
    }
    let rule = Rule::new(format!("{}: jsonrpc_allow_methods", tool.name), tool.place.at().line);
    Err(deny(rule, "no allow pattern matches the method"))
}
