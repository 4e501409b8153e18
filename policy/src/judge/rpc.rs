//! Judging a JSON-RPC body.

use super::event::AnswerFilter;
use super::filter::{Subject, trace_all};
use super::http::{Request, RpcGate};
use super::take_rate;
use crate::caller::Caller;
use crate::content::{ContentMatch, JsonSieve};
use crate::json::{self, Call, Calls, Id, JsonError, Scan, Value};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::tool::{HttpTool, RpcRules};
use crate::verdict::{Denial, DenialKind, Notes, Rule, Trace, shown};

/// How much of a body one step checks: about a quarter of a millisecond.
const SCAN_STEP_BYTES: usize = 256 * 1024;

/// How many calls one step judges at most.
const CALLS_STEP: usize = 64;

/// How much text one step runs expressions over: about a millisecond.
const CONTENT_STEP_BYTES: usize = 24 * 1024;

/// How many times one step tries a pattern on a value: about a millisecond.
const TRIALS_STEP: usize = 100_000;

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

/// What a judgement depends on beside the call.
pub(crate) struct Circumstances<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) limits: &'a mut Limits,
    pub(crate) now_us: u64,
    pub(crate) trace: &'a mut Trace,
}

/// The judging of one body in steps, none of which takes long. Feed the body as it arrives, then step until there is a
/// verdict.
#[derive(Debug)]
pub struct RpcWork {
    gate: RpcGate,
    scan: Scan,
    state: State,
    elements: Vec<Element>,
    rebuilt: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// The strict pass is under way.
    Scanning,
    /// The calls before this place have been judged.
    Judging { batch: bool, at: usize, content: Option<Box<Content>> },
}

/// A call that its rules allow, while content filters look at it.
#[derive(Debug)]
struct Content {
    sieve: JsonSieve,
    looked_at: usize,
    notes: Notes,
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
        match &mut self.state {
            State::Scanning => match self.scan_step(body) {
                Ok(true) => self.judge_step(policy, body, circumstances),
                Ok(false) => None,
                Err(verdict) => Some(verdict),
            },
            State::Judging { .. } => self.judge_step(policy, body, circumstances),
        }
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
        self.state = State::Judging { batch: calls.batch, at: 0, content: None };
        self.rebuilt.reserve(body.len() + 64);
        Ok(true)
    }

    fn judge_step(
        &mut self,
        policy: &Policy,
        body: &[u8],
        circumstances: &mut Circumstances<'_>,
    ) -> Option<RpcVerdict> {
        let State::Judging { batch, at, content } = &mut self.state else { return None };
        let calls = Calls::again(body, &self.scan, *batch);
        let (mut trials, mut content_bytes) = (0, 0);
        for _ in 0..CALLS_STEP {
            let place = *at;
            let Some(call) = calls.next(at) else {
                return Some(self.verdict(policy));
            };
            let call = match call {
                Ok(call) => call,
                Err(what) => {
                    let denial = malformed(&self.gate, what);
                    self.elements.push(Element {
                        id: Id::Raw(b"null".to_vec()),
                        method: String::new(),
                        verdict: Err(denial),
                    });
                    continue;
                }
            };
            let mut judging = Judging { policy, gate: &self.gate, call: &call, trials: &mut trials };
            let Some(verdict) = judging.go_on(content, circumstances, &mut content_bytes) else {
                *at = place;
                return None;
            };
            if verdict.is_ok() {
                if calls.batch {
                    self.rebuilt.push(if self.rebuilt.is_empty() { b'[' } else { b',' });
                }
                call.rebuild(&mut self.rebuilt);
            }
            self.elements.push(Element { id: call.id(), method: call.method.to_string(), verdict });
            if trials > TRIALS_STEP || content_bytes > CONTENT_STEP_BYTES {
                return None;
            }
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

impl Policy {
    /// Judges a complete JSON-RPC body in one go, and rebuilds what is allowed of it. For bodies of up to a few hundred
    /// kilobytes; larger ones are better judged in steps ([`RpcGate::begin`]).
    pub fn judge_rpc(
        &self,
        gate: &RpcGate,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        body: &[u8],
    ) -> RpcVerdict {
        self.judge_rpc_traced(
            gate,
            body,
            &mut Circumstances { caller, limits, now_us, trace: &mut Trace::off() },
        )
    }

    pub(crate) fn judge_rpc_traced(
        &self,
        gate: &RpcGate,
        body: &[u8],
        circumstances: &mut Circumstances<'_>,
    ) -> RpcVerdict {
        let mut work = gate.clone().begin();
        loop {
            if let Some(verdict) = work.step_traced(self, body, circumstances) {
                return verdict;
            }
        }
    }
}

/// The judging of one call.
struct Judging<'a> {
    policy: &'a Policy,
    gate: &'a RpcGate,
    call: &'a Call<'a>,
    /// How many times a pattern has been tried on a value in this step.
    trials: &'a mut usize,
}

impl Judging<'_> {
    /// Judges, or goes on looking at the content; `None` when that is not done yet.
    fn go_on(
        &mut self,
        content: &mut Option<Box<Content>>,
        circumstances: &mut Circumstances<'_>,
        content_bytes: &mut usize,
    ) -> Option<Result<Notes, Box<Denial>>> {
        let mut begun = match content.take() {
            Some(begun) => begun,
            None => {
                let notes = match self.by_rules(circumstances.trace) {
                    Ok(notes) => notes,
                    Err(denial) => return Some(Err(denial)),
                };
                if self.policy.content.is_empty() {
                    return Some(self.by_rate(notes, circumstances));
                }
                Box::new(Content { sieve: JsonSieve::new(&self.policy.content), looked_at: 0, notes })
            }
        };
        let result = if begun.looked_at == 0 { self.by_names(&mut begun) } else { Ok(()) };
        match result.and_then(|()| self.by_content(&mut begun, content_bytes)) {
            Ok(true) => {
                begun.notes.warnings = begun.sieve.take_warnings();
                Some(self.by_rate(begun.notes, circumstances))
            }
            Ok(false) => {
                *content = Some(begun);
                None
            }
            Err(denial) => Some(Err(denial.with_notes(begun.notes))),
        }
    }

    fn by_rules(&mut self, trace: &mut Trace) -> Result<Notes, Box<Denial>> {
        let mut notes = Notes::default();
        let mut judge = |notes: &mut Notes| {
            let rules = self.gate.tool.http().map(|http: &HttpTool| &http.rpc);
            let Some(rules) = rules else { return Err(malformed(self.gate, "it has no methods")) };
            let by_method = judge_method(self.gate, rules, &self.call.method, trace)?;
            let subject = Subject::new(&self.gate.tool, rules, self.call);
            let by_params = subject.judge(notes, trace, self.trials)?;
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

    /// Looks at what goes out beside the parameters; both are short.
    fn by_names(&self, content: &mut Content) -> Result<(), Box<Denial>> {
        let (id, method) = (self.call.id_bytes(), self.call.method.as_bytes());
        for part in [id, b"\n", method, b"\n"] {
            content.sieve.push(part).map_err(|found| self.blocked(found))?;
        }
        Ok(())
    }

    fn blocked(&self, found: ContentMatch) -> Box<Denial> {
        found.denial(&format!("{}: `{}` was not carried out", self.gate.tool.name, shown(&self.call.method)))
    }

    /// Looks at the next piece of the parameters; true at their end.
    fn by_content(&self, content: &mut Content, work_bytes: &mut usize) -> Result<bool, Box<Denial>> {
        let params = self.call.params.map(Value::bytes).unwrap_or_default();
        while let Some(rest) = params.get(content.looked_at..).filter(|rest| !rest.is_empty()) {
            if *work_bytes > CONTENT_STEP_BYTES {
                return Ok(false);
            }
            let piece = rest.get(..8 * 1024).unwrap_or(rest);
            let before = content.sieve.work_bytes();
            content.sieve.push(piece).map_err(|found| self.blocked(found))?;
            *work_bytes += content.sieve.work_bytes() - before;
            content.looked_at += piece.len();
        }
        Ok(true)
    }

    fn by_rate(&self, notes: Notes, circumstances: &mut Circumstances<'_>) -> Result<Notes, Box<Denial>> {
        match take_rate(&self.gate.tool, circumstances.caller, circumstances.limits, circumstances.now_us) {
            Ok(()) => Ok(notes),
            Err(denial) => {
                let rule = denial.rule.clone();
                Err(denial.with_notes(Notes { rule: Some(rule), ..notes }))
            }
        }
    }
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
