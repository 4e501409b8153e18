//! The life of an HTTP call: its head is judged, its body gathered and judged where it is JSON-RPC, the decision
//! recorded, and then the answer given or the upstream asked.

use super::answer::{Answer, Data, INTERNAL, UNAVAILABLE, error_object, rule_word};
use super::call::{ActionType, Call, Collecting, Gate, PassedBody, State, Then, Untaken};
use super::record::{Subject, Verdict};
use super::{Server, Timer, rpc};
use crate::ids::CallId;
use crate::limits::{BODY_BYTES_PER_SECOND, BODY_TIMEOUT, CREDIT_INITIAL, READER_TIMEOUT};
use crate::time::{Duration, Instant};
use crate::wire::frame::{Channel, Fault, Items, ResponseBody, StreamFrame, push_item};
use carapace_policy::{BodyGate, HttpHead, HttpVerdict, Refusal, RpcGate, RpcJudged, RpcVerdict};

/// The fields of a request that judging needs to see.
#[derive(Debug, Default)]
struct Seen<'a> {
    content_type: Option<&'a str>,
    content_encoding: Option<&'a str>,
    content_length: Option<u64>,
    /// One of them is there twice, or is no text, or no number: it could be read in two ways.
    is_ambiguous: bool,
}

impl<'a> Seen<'a> {
    fn of(items: Items<'a>) -> Self {
        let mut seen = Self::default();
        for (name, value) in pairs(items) {
            let value = core::str::from_utf8(value).ok();
            let had = if name.eq_ignore_ascii_case("content-type") {
                seen.is_ambiguous |= value.is_none();
                core::mem::replace(&mut seen.content_type, value).is_some()
            } else if name.eq_ignore_ascii_case("content-encoding") {
                seen.is_ambiguous |= value.is_none();
                core::mem::replace(&mut seen.content_encoding, value).is_some()
            } else if name.eq_ignore_ascii_case("content-length") {
                let length = value.and_then(|value| value.parse().ok());
                seen.is_ambiguous |= length.is_none();
                core::mem::replace(&mut seen.content_length, length).is_some()
            } else {
                false
            };
            seen.is_ambiguous |= had;
        }
        seen
    }
}

/// Names and values of fields; one whose name is not text is none.
pub(super) fn pairs(mut items: Items<'_>) -> impl Iterator<Item = (&str, &[u8])> {
    core::iter::from_fn(move || Some((items.next()?, items.next()?)))
        .filter_map(|(name, value)| Some((core::str::from_utf8(name).ok()?, value)))
}

impl Server {
    pub(super) fn judge_request(
        &mut self,
        now: Instant,
        id: CallId,
        method: &str,
        target: &str,
        fields: Items<'_>,
        body: bool,
    ) {
        if self.is_draining() {
            return self.send_answer(now, id, &self.not_started(id, "the server is stopping"));
        }
        let Some(call) = self.calls.get(&id) else { return };
        let seen = Seen::of(fields);
        if seen.is_ambiguous {
            let said = "the request's type, coding or length can be read in two ways";
            let answer = self.rpc_error(id, 400, -32600, said, DenialWord::Request);
            return self.send_answer(now, id, &answer);
        }
        let head = HttpHead {
            method,
            target,
            content_type: seen.content_type,
            content_encoding: seen.content_encoding,
        };
        let policy = call.policy.clone();
        let verdict =
            policy.judge_http(&call.about.tool, &call.caller, &mut self.rate_limits, now.as_micros(), &head);
        match verdict {
            HttpVerdict::Rpc(gate) => {
                let max_bytes = gate.max_body_bytes();
                self.gather(now, id, (Gate::Rpc(gate), max_bytes), &seen, fields, body);
            }
            HttpVerdict::Body(gate) => {
                let max_bytes = gate.max_body_bytes();
                self.gather(now, id, (Gate::Body(gate), max_bytes), &seen, fields, body);
            }
            HttpVerdict::Pass(judged) => {
                let subject = Subject { method, element: None };
                let body = PassedBody {
                    follows: body && judged.action.wants_body(),
                    length: seen.content_length,
                    ..PassedBody::default()
                };
                let then = Then::Pass { request: judged.action, fields: fields.0.to_vec(), body };
                self.decide(now, id, &[(subject, Verdict::Allowed(&judged.notes))], then);
            }
            HttpVerdict::Refuse(refusal) => {
                self.refuse(now, id, method, &refusal);
            }
        }
    }

    fn refuse(&mut self, now: Instant, id: CallId, method: &str, refusal: &Refusal) {
        let answer = self.refusal(id, refusal);
        let subject = Subject { method, element: None };
        self.decide(now, id, &[(subject, Verdict::Denied(&refusal.denial))], Then::Answer(answer));
    }

    fn refusal(&self, id: CallId, refusal: &Refusal) -> Answer {
        let (denial, request_id) = (&refusal.denial, self.request_id(id));
        let tool = self.calls.get(&id).map_or("", |call| &*call.about.tool);
        let mut answer = if refusal.is_rpc {
            let mut body = Vec::new();
            rpc::denied(&mut body, b"null", tool, &request_id, denial);
            Answer::json(refusal.status, body)
        } else {
            Answer::text(refusal.status, &denial.said)
        };
        if let Some(allow) = &refusal.allow {
            answer.fields.push(("allow", allow.clone()));
        }
        match super::answer::retry_after_ms(denial.kind) {
            Some(millis) => answer.retry_after(millis),
            None => answer,
        }
    }

    // ---- bodies that are judged ----

    fn gather(
        &mut self,
        now: Instant,
        id: CallId,
        (gate, max_bytes): (Gate, usize),
        seen: &Seen<'_>,
        fields: Items<'_>,
        body: bool,
    ) {
        let length = if body { seen.content_length.unwrap_or(0) } else { 0 };
        if length > max_bytes as u64 {
            return self.refuse_body(now, id, max_bytes);
        }
        if length > self.body_room && length > u64::from(CREDIT_INITIAL) {
            return self.send_answer(now, id, &self.not_started(id, "too many large requests at once"));
        }
        let reserved = length.min(self.body_room);
        self.body_room -= reserved;
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.state = State::Collecting(Collecting {
            gate,
            max_bytes,
            body: Vec::new(),
            reserved,
            fields: fields.0.to_vec(),
        });
        if body {
            call.alarm.set(&mut self.timers, Timer::Call(id), now + BODY_TIMEOUT);
        } else {
            self.judge_body(now, id);
        }
    }

    /// A body, or the description of a run, did not arrive in time.
    pub(super) fn give_up_request(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get(&id) else { return };
        match call.about.action {
            ActionType::Cli => {
                self.fail_run(now, id, Fault::NotStarted, "not started: the run was not described")
            }
            ActionType::Http => {
                let said = "the request's body did not arrive in time";
                let answer = self.rpc_error(id, 408, -32600, said, DenialWord::Request);
                self.send_answer(now, id, &answer);
            }
        }
    }

    fn refuse_body(&mut self, now: Instant, id: CallId, max_bytes: usize) {
        let said = format!("the request is larger than {max_bytes} bytes");
        let mut answer = self.rpc_error(id, 413, -32600, &said, DenialWord::Request);
        answer.fields.push(("connection", "close".to_owned()));
        self.send_answer(now, id, &answer);
    }

    /// Bytes of a call's body, or of a tool's standard input.
    pub(super) fn handle_body(&mut self, now: Instant, id: CallId, bytes: &[u8], end: bool) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.about.bytes_in += bytes.len() as u64;
        match &mut call.state {
            State::Collecting(collecting) => {
                let total = (collecting.body.len() + bytes.len()) as u64;
                if total > collecting.max_bytes as u64 {
                    let max_bytes = collecting.max_bytes;
                    return self.refuse_body(now, id, max_bytes);
                }
                let more = total.saturating_sub(collecting.reserved);
                if more > self.body_room && total > u64::from(CREDIT_INITIAL) {
                    let answer = self.not_started(id, "too many large requests at once");
                    return self.send_answer(now, id, &answer);
                }
                let more = more.min(self.body_room);
                self.body_room -= more;
                collecting.reserved += more;
                let patience = BODY_TIMEOUT + Duration::from_secs(total / BODY_BYTES_PER_SECOND);
                call.alarm.set(&mut self.timers, Timer::Call(id), call.begun + patience);
                collecting.body.extend_from_slice(bytes);
                if end {
                    self.judge_body(now, id);
                } else {
                    self.consumed(id, bytes.len());
                }
            }
            State::Recording(then) => match &mut **then {
                Then::Pass { body, .. } => {
                    body.early.extend_from_slice(bytes);
                    body.ended |= end;
                }
                Then::Run(_) => call.has_no_input |= end,
                Then::Answer(_) | Then::Fail(..) | Then::Rpc { .. } => {}
            },
            State::Fetching(_) => self.upload(now, id, bytes, end),
            State::Running(_) => self.feed(now, id, bytes, end),
            // Nobody has granted any input yet: only its end can come.
            State::Describing(_) | State::Queued(_) => call.has_no_input |= end,
            State::Finishing => {}
        }
    }

    fn judge_body(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let State::Collecting(collecting) = core::mem::replace(&mut call.state, State::Finishing) else {
            return;
        };
        self.body_room += collecting.reserved;
        call.alarm.clear();
        let Collecting { gate, body, fields, .. } = collecting;
        match gate {
            Gate::Body(gate) => self.judge_plain_body(now, id, gate, body, fields),
            Gate::Rpc(gate) => self.judge_rpc_body(now, id, &gate, &body, fields),
        }
    }

    fn judge_plain_body(&mut self, now: Instant, id: CallId, gate: BodyGate, body: Vec<u8>, fields: Vec<u8>) {
        let Some(call) = self.calls.get(&id) else { return };
        let (policy, method) = (call.policy.clone(), call.about.method.clone());
        let verdict = policy.judge_body(gate, &call.caller, &mut self.rate_limits, now.as_micros(), body);
        match verdict {
            Ok(judged) => {
                let subject = Subject { method: &method, element: None };
                let then = Then::Pass { request: judged.action, fields, body: PassedBody::default() };
                self.decide(now, id, &[(subject, Verdict::Allowed(&judged.notes))], then);
            }
            Err(refusal) => self.refuse(now, id, &method, &refusal),
        }
    }

    fn judge_rpc_body(&mut self, now: Instant, id: CallId, gate: &RpcGate, body: &[u8], fields: Vec<u8>) {
        let Some(call) = self.calls.get(&id) else { return };
        let policy = call.policy.clone();
        let verdict = policy.judge_rpc(gate, &call.caller, &mut self.rate_limits, now.as_micros(), body);
        let tool = call.about.tool.clone();
        let request_id = self.request_id(id);
        match verdict {
            RpcVerdict::Malformed { code, said } => {
                let answer = rpc::malformed(code, &said, &tool, &request_id);
                let subject = Subject { method: "", element: None };
                self.decide(now, id, &[(subject, Verdict::Malformed(&said))], Then::Answer(answer));
            }
            RpcVerdict::Judged(judged) => {
                let subjects: Vec<_> = judged
                    .elements
                    .iter()
                    .enumerate()
                    .map(|(place, element)| {
                        let element_place = judged.batch.then_some(place);
                        let subject = Subject { method: &element.method, element: element_place };
                        (subject, Verdict::from(&element.verdict))
                    })
                    .collect();
                self.record_all(now, id, &subjects);
                self.await_record(now, id, Then::Rpc { judged: *judged, fields });
            }
        }
    }

    // ---- decisions ----

    /// Records decisions; the call goes on with `then` once they are in the log.
    pub(super) fn decide(
        &mut self,
        now: Instant,
        id: CallId,
        verdicts: &[(Subject<'_>, Verdict<'_>)],
        then: Then,
    ) {
        self.record_all(now, id, verdicts);
        self.await_record(now, id, then);
    }

    fn record_all(&mut self, now: Instant, id: CallId, verdicts: &[(Subject<'_>, Verdict<'_>)]) {
        let is_audited = self.calls.get(&id).is_some_and(|call| call.about.is_audited);
        if !is_audited || self.journal.is_full() {
            return;
        }
        let last = verdicts.len().saturating_sub(1);
        for (place, (subject, verdict)) in verdicts.iter().enumerate() {
            self.record_decision(now, id, *subject, *verdict, place == last);
        }
    }

    fn await_record(&mut self, now: Instant, id: CallId, then: Then) {
        let is_full = self.journal.is_full();
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.state = State::Recording(Box::new(then));
        if !call.about.is_audited {
            self.carry_out(now, id);
        } else if is_full {
            self.refuse_unrecorded(now, id);
        }
    }

    /// The decision is in the log: now the effect may begin.
    pub(super) fn carry_out(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let State::Recording(then) = core::mem::replace(&mut call.state, State::Finishing) else { return };
        if !call.is_attached {
            return self.carry_out_for_nobody(now, id, &then);
        }
        match *then {
            Then::Answer(answer) => self.send_answer(now, id, &answer),
            Then::Fail(fault, said) => self.fail_run(now, id, fault, &said),
            Then::Rpc { judged, fields } if judged.request.is_some() => {
                self.fetch_rpc(now, id, judged, &fields);
            }
            Then::Rpc { judged, .. } => self.deny_rpc(now, id, &judged),
            Then::Pass { request, fields, body } => self.fetch_passed(now, id, request, &fields, body),
            Then::Run(exec) => self.queue_run(now, id, exec),
        }
    }

    /// The client left while the decision was being recorded: an allowed effect does not begin, and that is recorded.
    fn carry_out_for_nobody(&mut self, now: Instant, id: CallId, then: &Then) {
        let was_allowed = match then {
            Then::Answer(_) | Then::Fail(..) => false,
            Then::Rpc { judged, .. } => judged.request.is_some(),
            Then::Pass { .. } | Then::Run(_) => true,
        };
        if let Some(call) = self.calls.get_mut(&id) {
            call.about.owes_outcome = was_allowed;
        }
        self.record_outcome(now, id, super::record::Outcome::Failed("not started: the client left"));
        self.drop_call(id);
    }

    /// Nothing of a body is allowed.
    fn deny_rpc(&mut self, now: Instant, id: CallId, judged: &RpcJudged) {
        let Some(call) = self.calls.get(&id) else { return };
        let answer = rpc::all_denied(judged, &call.about.tool, &self.request_id(id));
        self.send_answer(now, id, &answer);
    }

    /// The decision cannot be recorded: nothing happens.
    pub(super) fn refuse_unrecorded(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let state = core::mem::replace(&mut call.state, State::Finishing);
        let said = "the audit log is unavailable, nothing was done";
        match call.about.action {
            ActionType::Cli => self.fail_run(now, id, Fault::NotStarted, said),
            ActionType::Http => {
                let mut answer = self.rpc_error(id, 503, INTERNAL, said, DenialWord::Audit).retry_after(1000);
                if let State::Recording(then) = state
                    && let Then::Rpc { judged, .. } = *then
                {
                    let request_id = self.request_id(id);
                    let data = self.error_data(id, DenialWord::Audit, &request_id);
                    answer.body = rpc::all_refused(&judged, INTERNAL, said, data);
                }
                self.send_answer(now, id, &answer);
            }
        }
    }

    // ---- answers ----

    /// A JSON-RPC error that belongs to the call as a whole.
    pub(super) fn rpc_error(
        &self,
        id: CallId,
        status: u16,
        code: i32,
        said: &str,
        word: DenialWord,
    ) -> Answer {
        let request_id = self.request_id(id);
        let data = self.error_data(id, word, &request_id);
        let mut body = Vec::new();
        error_object(&mut body, b"null", code, said, Some(data));
        Answer::json(status, body)
    }

    fn error_data<'a>(&'a self, id: CallId, word: DenialWord, request_id: &'a str) -> Data<'a> {
        let tool = self.calls.get(&id).map_or("", |call| &*call.about.tool);
        Data { tool, rule: word.as_str(), request_id, retry_after_ms: None }
    }

    pub(super) fn not_started(&self, id: CallId, said: &str) -> Answer {
        let said = format!("not started: {said}");
        self.rpc_error(id, 503, UNAVAILABLE, &said, DenialWord::Unavailable).retry_after(1000)
    }

    /// Gives an answer of ours, and ends the call's stream.
    pub(super) fn send_answer(&mut self, now: Instant, id: CallId, answer: &Answer) {
        let mut items = Vec::new();
        for (name, value) in &answer.fields {
            push_item(&mut items, name.as_bytes());
            push_item(&mut items, value.as_bytes());
        }
        self.respond_whole(now, id, answer.status, items, &answer.body);
    }

    /// Sends a whole answer, and ends the call's stream.
    pub(super) fn respond_whole(
        &mut self,
        now: Instant,
        id: CallId,
        status: u16,
        mut items: Vec<u8>,
        bytes: &[u8],
    ) {
        push_item(&mut items, b"content-length");
        push_item(&mut items, bytes.len().to_string().as_bytes());
        let body = if bytes.is_empty() { ResponseBody::None } else { ResponseBody::Whole };
        self.send_frame(id, &StreamFrame::Response { status, body, items: Items(&items) });
        if !bytes.is_empty() {
            self.send_body(id, bytes, true);
        }
        self.finish(now, id);
    }

    /// Sends a part of an answer's body; says whether its source must pause.
    pub(super) fn send_body(&mut self, id: CallId, bytes: &[u8], end: bool) -> bool {
        if let Some(call) = self.calls.get_mut(&id) {
            call.about.bytes_out += bytes.len() as u64;
        }
        self.send_data(id, Channel::Main, bytes, end)
    }

    // ---- the end ----

    /// Everything has been said. The call ends once the client has room for it.
    pub(super) fn finish(&mut self, now: Instant, id: CallId) {
        let waiting = self.stream(id).map_or(0, |(session, stream)| {
            if session.is_clogged(stream) { session.queued_bytes(stream).max(1) } else { 0 }
        });
        if waiting == 0 {
            return self.drop_call(id);
        }
        let reserved = self.calls.get(&id).map_or(0, |call| call.reserved().1);
        self.set_state(id, State::Finishing);
        if let Some(call) = self.calls.get_mut(&id) {
            self.answer_room -= reserved;
            call.untaken = Untaken { reserved, bytes: waiting };
            call.alarm.set(&mut self.timers, Timer::Call(id), now + READER_TIMEOUT);
        }
    }

    /// Looks whether a client has taken more of the end of its answer; if not, it never will.
    pub(super) fn look_at_reader(&mut self, now: Instant, id: CallId) {
        let waiting = self.stream(id).map_or(0, |(session, stream)| session.queued_bytes(stream));
        let Some(call) = self.calls.get_mut(&id) else { return };
        if waiting < call.untaken.bytes {
            call.untaken.bytes = waiting;
            return call.alarm.set(&mut self.timers, Timer::Call(id), now + READER_TIMEOUT);
        }
        self.reset_stream(id, Fault::Cancelled, "the client does not read");
        self.drop_call(id);
    }

    /// The call is over, and whatever it held is free.
    pub(super) fn drop_call(&mut self, id: CallId) {
        self.detach(id);
        self.set_state(id, State::Finishing);
        if let Some(mut call) = self.calls.remove(&id) {
            call.alarm.remove(&mut self.timers, Timer::Call(id));
        }
    }

    /// Puts a call into another state; room that the old one took becomes free.
    pub(super) fn set_state(&mut self, id: CallId, state: State) {
        if let Some(call) = self.calls.get_mut(&id) {
            let (bodies, answers) = call.reserved();
            self.body_room += bodies;
            self.answer_room += answers;
            call.untaken.reserved = 0;
            call.state = state;
        }
    }

    /// The data of a call's stream, which waited, went.
    pub(super) fn handle_unclogged(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get(&id) else { return };
        match &call.state {
            State::Finishing => self.drop_call(id),
            State::Fetching(fetching) => {
                let conn = fetching.conn;
                self.resume_fetch(conn);
            }
            State::Running(_) => self.resume_job(now, id),
            State::Describing(_) | State::Collecting(_) | State::Recording(_) | State::Queued(_) => {}
        }
    }

    /// The client does not want the answer any more, or cannot get it.
    pub(super) fn cancel(&mut self, now: Instant, id: CallId, why: &str) {
        self.detach(id);
        let Some(call) = self.calls.get(&id) else { return };
        match &call.state {
            // It goes on when the log has answered: then it finds nobody, and does not begin.
            State::Recording(_) => {}
            State::Fetching(fetching) => {
                let conn = fetching.conn;
                self.abandon_fetch(conn);
                self.record_outcome(now, id, super::record::Outcome::Failed(why));
                self.drop_call(id);
            }
            State::Queued(_) => {
                self.leave_queue(id);
                self.record_outcome(now, id, super::record::Outcome::Failed("not started: the client left"));
                self.drop_call(id);
            }
            State::Running(_) => self.end_job_of_nobody(now, id),
            State::Describing(_) | State::Collecting(_) | State::Finishing => self.drop_call(id),
        }
    }
}

impl Call {
    /// Bytes held for the call outside its stream.
    pub(super) fn held_bytes(&self) -> usize {
        match &self.state {
            State::Describing(description) => {
                description.argv.len() + description.env.len() + description.cwd.len()
            }
            State::Collecting(collecting) => collecting.body.len() + collecting.fields.len(),
            State::Recording(then) => match &**then {
                Then::Pass { body, fields, .. } => body.early.len() + fields.len(),
                Then::Answer(answer) => answer.body.len(),
                Then::Rpc { fields, .. } => fields.len(),
                Then::Fail(..) | Then::Run(_) => 0,
            },
            State::Running(job) => job.held_bytes(),
            State::Queued(_) | State::Fetching(_) | State::Finishing => 0,
        }
    }

    /// Room taken from what all bodies, and all answers, have in common.
    pub(super) const fn reserved(&self) -> (u64, u64) {
        match &self.state {
            State::Collecting(collecting) => (collecting.reserved, 0),
            State::Fetching(fetching) => (0, fetching.reserved),
            State::Describing(description) => (description.reserved, 0),
            State::Finishing => (0, self.untaken.reserved),
            State::Recording(_) | State::Queued(_) | State::Running(_) => (0, 0),
        }
    }
}

/// The kind of refusal, in the word that `data.rule` carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum DenialWord {
    Audit,
    Request,
    Timeout,
    Unavailable,
}

impl DenialWord {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Request => rule_word(carapace_policy::DenialKind::Malformed),
            Self::Timeout => "timeout",
            Self::Unavailable => rule_word(carapace_policy::DenialKind::Unavailable),
        }
    }
}
