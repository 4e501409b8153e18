//! Judging a JSON-RPC body in steps, none of which holds up everybody else.

use std::fmt;

use super::event::AnswerFilter;
use super::filter::{Subject, trace_all};
use super::http::{Request, RpcGate};
use super::rpc::{Element, RpcJudged, RpcVerdict};
use super::take_rate;
use crate::caller::Caller;
use crate::content::{ContentMatch, JsonSieve};
use crate::json::{self, Call, Calls, Id, JsonError, Scan};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::tool::{HttpTool, RpcRules};
use crate::verdict::{Denial, DenialKind, Notes, Rule, Trace, shown};

/// How much of a body one step checks: half a millisecond, if it is all punctuation.
const SCAN_STEP_BYTES: usize = 128 * 1024;

/// How many calls one step judges.
const CALLS_STEP: usize = 64;

/// How often one step tries a pattern on a value: about a millisecond.
const TRIALS_STEP: usize = 100_000;

/// Over how much text one step runs expressions: they do some 25 bytes a microsecond.
const CONTENT_STEP_BYTES: usize = 16 * 1024;

/// How much one step copies: the memory is new, and costs more than the copying.
const COPY_STEP_BYTES: usize = 1024 * 1024;

/// What a judgement depends on beside the call.
pub(crate) struct Circumstances<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) limits: &'a mut Limits,
    pub(crate) now_us: u64,
    pub(crate) trace: &'a mut Trace,
}

/// The judging of one body in steps. Feed the body as it arrives, then step until there is a verdict.
pub struct RpcWork {
    gate: RpcGate,
    scan: Scan,
    state: State,
    elements: Vec<Element>,
    rebuilt: Vec<u8>,
}

enum State {
    /// The strict pass is under way.
    Scanning,
    /// The calls before this place have been judged, the one at it has come so far.
    Judging { batch: bool, at: usize, phase: Phase },
}

/// How far the judging of one call has come.
#[derive(Default)]
enum Phase {
    #[default]
    Rules,
    /// Its rules allow it; content filters are looking at it.
    Content { sieve: Box<JsonSieve>, looked_at: usize, notes: Notes },
    /// It is allowed and being copied.
    Copy { copied: usize, notes: Notes },
}

/// What a step has done.
#[derive(Debug, Default)]
struct Spent {
    calls: usize,
    trials: usize,
    content_bytes: usize,
    copied_bytes: usize,
}

impl Spent {
    fn is_enough(&self) -> bool {
        self.calls >= CALLS_STEP
            || self.trials >= TRIALS_STEP
            || self.content_bytes >= CONTENT_STEP_BYTES
            || self.copied_bytes >= COPY_STEP_BYTES
    }
}

impl RpcGate {
    /// Begins to judge a body in steps.
    #[must_use]
    pub fn begin(self) -> RpcWork {
        RpcWork {
            gate: self,
            scan: Scan::new(),
            state: State::Scanning,
            elements: Vec::new(),
            rebuilt: Vec::new(),
        }
    }
}

impl fmt::Debug for RpcWork {
    /// Nothing of the body.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RpcWork({})", self.gate.tool())
    }
}

impl RpcWork {
    /// The longest body, in bytes.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        self.gate.max_body_bytes()
    }

    /// The tool's name.
    #[must_use]
    pub fn tool(&self) -> &str {
        self.gate.tool()
    }

    /// Checks what has arrived since the last call; `body` is everything so far.
    ///
    /// # Errors
    /// The verdict, as soon as the body cannot become acceptable.
    pub fn feed(&mut self, body: &[u8]) -> Result<(), RpcVerdict> {
        self.scan.advance(body).map_err(unacceptable)
    }

    /// Goes on for at most about two milliseconds; `body` is the whole body, the same in every call. `None`: call again.
    pub fn step(
        &mut self,
        policy: &Policy,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        body: &[u8],
    ) -> Option<RpcVerdict> {
        let mut trace = Trace::off();
        self.step_traced(policy, body, &mut Circumstances { caller, limits, now_us, trace: &mut trace })
    }

    pub(crate) fn step_traced(
        &mut self,
        policy: &Policy,
        body: &[u8],
        circumstances: &mut Circumstances<'_>,
    ) -> Option<RpcVerdict> {
        if let State::Scanning = self.state {
            match self.scan_step(body) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(verdict) => return Some(verdict),
            }
        }
        self.judge_step(policy, body, circumstances)
    }

    /// Goes on with the strict pass; true at its end.
    fn scan_step(&mut self, body: &[u8]) -> Result<bool, RpcVerdict> {
        let until = self.scan.position() + SCAN_STEP_BYTES;
        if until < body.len() {
            self.scan.advance(body.get(..until).unwrap_or_default()).map_err(unacceptable)?;
            return Ok(false);
        }
        self.scan.finish(body).map_err(unacceptable)?;
        let calls = Calls::read(body, &self.scan).map_err(no_request)?;
        self.state = State::Judging { batch: calls.batch, at: 0, phase: Phase::Rules };
        self.rebuilt.reserve(body.len() + 64);
        Ok(true)
    }

    fn judge_step(
        &mut self,
        policy: &Policy,
        body: &[u8],
        circumstances: &mut Circumstances<'_>,
    ) -> Option<RpcVerdict> {
        let State::Judging { batch, at, phase } = &mut self.state else { return None };
        let calls = Calls::again(body, &self.scan, *batch);
        let mut spent = Spent::default();
        while !spent.is_enough() {
            let place = *at;
            let Some(call) = calls.next(at) else { return Some(self.verdict(policy)) };
            spent.calls += 1;
            let element = match call {
                Ok(call) => {
                    let (gate, rebuilt, batch) = (&self.gate, &mut self.rebuilt, *batch);
                    let mut task = Task { policy, gate, call: &call, batch, rebuilt, spent: &mut spent };
                    let Some(verdict) = task.go_on(phase, circumstances) else {
                        *at = place;
                        return None;
                    };
                    Element { id: call.id(), method: call.method.to_string(), verdict }
                }
                Err(what) => {
                    let verdict = Err(malformed(&self.gate, what));
                    Element { id: Id::Raw(b"null".to_vec()), method: String::new(), verdict }
                }
            };
            self.elements.push(element);
        }
        None
    }

    fn verdict(&mut self, policy: &Policy) -> RpcVerdict {
        let State::Judging { batch, .. } = self.state else { return no_request("it was not read") };
        let mut elements = std::mem::take(&mut self.elements);
        if !batch
            && let [Element { verdict: Err(denial), .. }] = elements.as_slice()
            && denial.kind == DenialKind::Malformed
        {
            return RpcVerdict::Malformed { code: -32600, said: denial.said.clone() };
        }
        let request = self.request(policy, batch, &mut elements);
        RpcVerdict::Judged(Box::new(RpcJudged { batch, elements, request }))
    }

    /// The request of the allowed calls; where it cannot be made, they are all refused.
    fn request(&mut self, policy: &Policy, batch: bool, elements: &mut [Element]) -> Option<Request> {
        let mut body = std::mem::take(&mut self.rebuilt);
        if body.is_empty() {
            return None;
        }
        if batch {
            body.push(b']');
        }
        match policy.rpc_request(&self.gate, body) {
            Ok(mut request) => {
                let allowed = elements.iter().filter(|element| element.verdict.is_ok());
                let calls = allowed.map(|element| (&element.id, element.method.as_str()));
                let filter = self.gate.tool.http().and_then(|http| AnswerFilter::new(http, calls));
                request.set_answer_filter(filter);
                Some(request)
            }
            Err(denial) => {
                for element in elements.iter_mut().filter(|element| element.verdict.is_ok()) {
                    element.verdict = Err(denial.clone());
                }
                None
            }
        }
    }
}

/// The judging of one call, and the copying of what is allowed.
struct Task<'a> {
    policy: &'a Policy,
    gate: &'a RpcGate,
    call: &'a Call<'a>,
    batch: bool,
    rebuilt: &'a mut Vec<u8>,
    spent: &'a mut Spent,
}

impl Task<'_> {
    /// Goes through the phases; `None` when the step is over before they are.
    fn go_on(
        &mut self,
        phase: &mut Phase,
        circumstances: &mut Circumstances<'_>,
    ) -> Option<Result<Notes, Box<Denial>>> {
        loop {
            let next = match std::mem::take(phase) {
                Phase::Rules => match self.by_rules(circumstances.trace) {
                    Ok(notes) if self.policy.content.is_empty() => self.by_rate(notes, circumstances),
                    Ok(notes) => self.begin_content(notes),
                    Err(denial) => Err(denial),
                },
                Phase::Content { mut sieve, mut looked_at, notes } => {
                    match self.look(&mut sieve, &mut looked_at) {
                        Ok(true) => {
                            let warnings = sieve.take_warnings();
                            self.by_rate(Notes { warnings, ..notes }, circumstances)
                        }
                        Ok(false) => {
                            *phase = Phase::Content { sieve, looked_at, notes };
                            return None;
                        }
                        Err(denial) => Err(with_rule(denial, notes)),
                    }
                }
                Phase::Copy { mut copied, notes } => {
                    if self.copy(&mut copied) {
                        return Some(Ok(notes));
                    }
                    *phase = Phase::Copy { copied, notes };
                    return None;
                }
            };
            match next {
                Ok(next) => *phase = next,
                Err(denial) => return Some(Err(denial)),
            }
        }
    }

    fn by_rules(&mut self, trace: &mut Trace) -> Result<Notes, Box<Denial>> {
        let mut notes = Notes::default();
        let mut judge = |notes: &mut Notes| {
            let rules = self.gate.tool.http().map(|http: &HttpTool| &http.rpc);
            let Some(rules) = rules else { return Err(malformed(self.gate, "it has no methods")) };
            let by_method = judge_method(self.gate, rules, &self.call.method, trace)?;
            let subject = Subject::new(&self.gate.tool, rules, self.call);
            let by_params = subject.judge(notes, trace, &mut self.spent.trials)?;
            Ok(by_params.unwrap_or(by_method))
        };
        match judge(&mut notes) {
            Ok(rule) => Ok(Notes { rule: Some(rule), ..notes }),
            Err(denial) => Err(with_rule(denial, notes)),
        }
    }

    /// Begins to look at the content, with what goes out beside the parameters; both are short.
    fn begin_content(&self, notes: Notes) -> Result<Phase, Box<Denial>> {
        let mut sieve = Box::new(JsonSieve::new(&self.policy.content));
        for part in [self.call.id_bytes(), b"\n", self.call.method.as_bytes(), b"\n"] {
            if let Err(found) = sieve.push(part) {
                return Err(with_rule(self.blocked(found), notes));
            }
        }
        Ok(Phase::Content { sieve, looked_at: 0, notes })
    }

    /// Looks at the parameters; true at their end.
    fn look(&mut self, sieve: &mut JsonSieve, looked_at: &mut usize) -> Result<bool, Box<Denial>> {
        let params = self.call.params_bytes();
        while let Some(rest) = params.get(*looked_at..).filter(|rest| !rest.is_empty()) {
            if self.spent.content_bytes >= CONTENT_STEP_BYTES {
                return Ok(false);
            }
            let piece = rest.get(..8 * 1024).unwrap_or(rest);
            let before = sieve.work_bytes();
            sieve.push(piece).map_err(|found| self.blocked(found))?;
            self.spent.content_bytes += sieve.work_bytes() - before;
            *looked_at += piece.len();
        }
        Ok(true)
    }

    fn blocked(&self, found: ContentMatch) -> Box<Denial> {
        found.denial(&format!("{}: `{}` was not carried out", self.gate.tool.name, shown(&self.call.method)))
    }

    /// Counts the call, and begins to copy it.
    fn by_rate(&mut self, notes: Notes, circumstances: &mut Circumstances<'_>) -> Result<Phase, Box<Denial>> {
        let Circumstances { caller, limits, now_us, .. } = circumstances;
        if let Err(denial) = take_rate(&self.gate.tool, caller, limits, *now_us) {
            return Err(with_rule(denial, notes));
        }
        if self.batch {
            self.rebuilt.push(if self.rebuilt.is_empty() { b'[' } else { b',' });
        }
        self.call.rebuild_head(self.rebuilt);
        Ok(Phase::Copy { copied: 0, notes })
    }

    /// Copies the parameters; true at the end of the call.
    fn copy(&mut self, copied: &mut usize) -> bool {
        let params = self.call.params_bytes();
        let rest = params.get(*copied..).unwrap_or_default();
        let room = COPY_STEP_BYTES.saturating_sub(self.spent.copied_bytes);
        let piece = rest.get(..room).unwrap_or(rest);
        self.rebuilt.extend_from_slice(piece);
        self.spent.copied_bytes += piece.len();
        *copied += piece.len();
        if *copied < params.len() {
            return false;
        }
        self.rebuilt.push(b'}');
        true
    }
}

/// A refusal with what is known about the call; the rule that refused stands in its record.
fn with_rule(denial: Box<Denial>, notes: Notes) -> Box<Denial> {
    let rule = Some(denial.rule.clone());
    denial.with_notes(Notes { rule, ..notes })
}

fn unacceptable(error: JsonError) -> RpcVerdict {
    RpcVerdict::Malformed { code: error.code(), said: json::refusal(error) }
}

fn no_request(what: &'static str) -> RpcVerdict {
    RpcVerdict::Malformed { code: -32600, said: format!("Request refused: {what}") }
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
    trace_all(&rules.deny, method, false, trace);
    if let Some(pattern) = rules.deny.find(method.as_bytes()) {
        return Err(deny(pattern.rule.clone(), "a deny pattern matches the method"));
    }
    trace_all(&rules.allow, method, false, trace);
    if let Some(pattern) = rules.allow.find(method.as_bytes()) {
        return Ok(pattern.rule.clone());
    }
    let rule = Rule::new(format!("{}: jsonrpc_allow_methods", tool.name), tool.place.at().line);
    Err(deny(rule, "no allow pattern matches the method"))
}
