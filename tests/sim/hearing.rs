//! What a client hears in answer to a call, whichever way it came, held against what is known of the call.

use crate::check::Check;
use crate::env::Env;
use crate::ledger::{Element, Lane, Tag, Verdict, What, request_key};
use crate::pattern::EventReader;
use carapace_proto::machine::ExitStatus;
use carapace_proto::wire::frame::Fault;
use serde_json::Value;

/// What an answer's body is.
#[derive(Debug)]
enum Body {
    Events(EventReader),
    Pattern,
    Text(Vec<u8>),
}

/// One answer to a request, as it comes.
#[derive(Debug)]
pub(crate) struct Hearing {
    tag: Tag,
    status: u16,
    body: Body,
}

impl Hearing {
    pub(crate) fn new(
        env: &mut Env,
        tag: Tag,
        status: u16,
        content_type: &str,
        fields: &[(String, String)],
    ) -> Self {
        let body = match content_type.split(';').next().unwrap_or_default() {
            "application/octet-stream" => Body::Pattern,
            "text/event-stream" => Body::Events(EventReader::default()),
            _ => Body::Text(Vec::new()),
        };
        let has = |name: &str| fields.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
        if has("set-cookie") || has("keep-alive") {
            env.fail(Check::Policy, format!("{tag:?}: a field of the upstream's connection comes through"));
        }
        Self { tag, status, body }
    }

    pub(crate) fn data(&mut self, env: &mut Env, bytes: &[u8]) {
        match &mut self.body {
            Body::Events(reader) => {
                for event in reader.feed(bytes) {
                    let verdict = env.ledger.event(self.tag, &event);
                    env.check(verdict);
                }
            }
            Body::Pattern => {
                let verdict = env.ledger.received(self.tag, Lane::Down, bytes);
                env.check(verdict);
            }
            Body::Text(text) => text.extend_from_slice(bytes),
        }
    }

    /// Events travel whole: this must hold wherever they are handed over.
    pub(crate) fn check_whole(&self, env: &mut Env) {
        if let Body::Events(reader) = &self.body
            && reader.is_mid_event()
        {
            env.fail(Check::Streams, format!("{:?}: half an event", self.tag));
        }
    }

    /// The answer is complete.
    pub(crate) fn end(self, env: &mut Env) {
        let (tag, status) = (self.tag, self.status);
        env.ledger.count(match status {
            200..=299 => "http: 2xx",
            400..=499 => "http: 4xx",
            502 => "http: 502",
            503 => "http: 503",
            504 => "http: 504",
            _ => "http: another status",
        });
        env.say(|| format!("{tag:?} is answered with {status}"));
        self.check_whole(env);
        let verdict = env.ledger.answered(tag);
        env.check(verdict);
        let verdict = self.judge(env);
        env.check(verdict);
    }

    fn judge(self, env: &mut Env) -> Verdict {
        let (tag, status) = (self.tag, self.status);
        let Some(call) = env.ledger.call(tag) else { return Ok(()) };
        let (what, must_succeed, is_source_done) =
            (call.what.clone(), call.must_succeed, call.is_source_done);
        let said = match &self.body {
            Body::Text(text) => crate::http::shown(text),
            Body::Events(_) | Body::Pattern => String::new(),
        };
        let unexpected =
            || Err((Check::Answered, format!("{tag:?} ({what:?}) is answered with {status} {said}")));
        match (&what, self.body) {
            (What::Malformed, _) => Ok(()),
            (What::Rpc { elements, is_batch }, Body::Text(text)) => {
                judge_rpc(env, tag, status, elements, *is_batch, &text)
            }
            (What::Get, Body::Pattern) if status == 200 => env.ledger.complete(tag, Lane::Down),
            (What::Events, Body::Events(_)) if status == 200 => {
                let is_short = call_is_short(env, tag);
                if must_succeed && (is_short || !is_source_done) {
                    return Err((
                        Check::Streams,
                        format!("{tag:?}: events are missing, and nothing was cut"),
                    ));
                }
                Ok(())
            }
            (What::Put { .. }, Body::Text(_)) if status == 200 => Ok(()),
            (What::Wrong, Body::Text(_)) if matches!(status, 403..=405) => {
                env.ledger.told_refused(tag, &said)
            }
            (_, Body::Text(_)) if status == 503 => env.ledger.told_not_started(tag, &said),
            (_, Body::Text(_)) if matches!(status, 502 | 504) => {
                if must_succeed {
                    unexpected()
                } else {
                    Ok(())
                }
            }
            // A client that is slow with its body, or with its head.
            (_, Body::Text(_)) if status == 408 && !must_succeed => Ok(()),
            _ => unexpected(),
        }
    }
}

fn call_is_short(env: &mut Env, tag: Tag) -> bool {
    env.ledger.call(tag).is_some_and(|call| call.events_received < call.events_sent)
}

// ---- JSON-RPC ----

fn judge_rpc(
    env: &mut Env,
    tag: Tag,
    status: u16,
    elements: &[Element],
    is_batch: bool,
    text: &[u8],
) -> Verdict {
    let bad = |why: &str| {
        let text = crate::http::shown(text);
        Err((Check::Answered, format!("{tag:?}: {why}: {status} {text} to {elements:?}")))
    };
    let waiting: Vec<&Element> = elements.iter().filter(|element| element.id.is_some()).collect();
    if text.is_empty() {
        let is_fine = waiting.is_empty() && matches!(status, 200..=204);
        return if is_fine { Ok(()) } else { bad("nothing is answered") };
    }
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return bad("no JSON") };
    let answers = match value {
        Value::Array(answers) if is_batch => answers,
        Value::Array(_) => return bad("an array"),
        answer => vec![answer],
    };
    let mut seen = vec![0; waiting.len()];
    let mut is_for_all = false;
    for answer in &answers {
        let id = answer["id"].to_string();
        let place = waiting.iter().position(|element| element.id.as_ref() == Some(&id));
        let code = answer["error"]["code"].as_i64();
        match (place, code) {
            (Some(place), None) => {
                seen[place] += 1;
                judge_result(env, tag, waiting[place], answer)?;
            }
            (place, Some(code)) => {
                match place {
                    Some(place) => seen[place] += 1,
                    None if id == "null" => is_for_all = true,
                    None => return bad("an error for somebody else"),
                }
                let element = place.and_then(|place| waiting.get(place).copied());
                judge_error(env, tag, status, code, element, elements, text)?;
            }
            (None, None) => return bad("a result for somebody else"),
        }
    }
    // An error of the call as a whole stands for all; so does one for a batch of notifications.
    let is_each_once = seen.iter().all(|count| *count == 1);
    if is_each_once || is_for_all && seen.iter().all(|count| *count <= 1) {
        Ok(())
    } else {
        bad("not each once")
    }
}

fn judge_result(env: &Env, tag: Tag, element: &Element, answer: &Value) -> Verdict {
    let to = match &answer["result"]["to"] {
        Value::Array(list) => list.first().and_then(Value::as_str),
        one => one.as_str(),
    };
    if answer["result"]["of"] != element.method || to != element.recipient.as_deref() {
        return Err((Check::Answered, format!("{tag:?} gets the answer to another call: {answer:.200}")));
    }
    let is_allowed = |law: &crate::rules::Law| law.allows_rpc(element.method, element.recipient.as_deref());
    if !env.ledger.laws_seen.iter().any(is_allowed) {
        return Err((Check::Policy, format!("{tag:?}: {element:?} has a result")));
    }
    Ok(())
}

fn judge_error(
    env: &mut Env,
    tag: Tag,
    status: u16,
    code: i64,
    element: Option<&Element>,
    elements: &[Element],
    text: &[u8],
) -> Verdict {
    let said = crate::http::shown(text);
    env.ledger.count(match code {
        -32001 => "rpc: denied",
        -32603 => "rpc: log unavailable",
        _ => "rpc: another error",
    });
    let must_succeed = env.ledger.call(tag).is_some_and(|call| call.must_succeed);
    let effects = |env: &Env, element: &Element| {
        element.recipient.as_deref().map_or(0, |to| {
            env.ledger.effects_of(&request_key("signal-cli", element.method, "/api/v1/rpc", to))
        })
    };
    match code {
        -32001 => {
            let is_denied = |element: &Element| {
                let laws = &env.ledger.laws_seen;
                laws.iter().any(|law| !law.allows_rpc(element.method, element.recipient.as_deref()))
            };
            let concerned = element.map_or(elements, core::slice::from_ref);
            if !concerned.iter().any(is_denied) {
                return Err((Check::Answered, format!("{tag:?} is denied, and is allowed: {said}")));
            }
            if element.is_some_and(|element| effects(env, element) > 0) {
                return Err((Check::Honest, format!("{tag:?}: an element is denied, and begun: {said}")));
            }
            Ok(())
        }
        -32004 if status == 503 => env.ledger.told_not_started(tag, &said),
        -32603 if !env.ledger.was_disk_bad => {
            Err((Check::Answered, format!("{tag:?}: the log is unavailable, and the disk is fine")))
        }
        -32603 => env.ledger.told_not_started(tag, &said),
        -5 => Ok(()),
        -32004 | -32005 if matches!(status, 502 | 504) && !must_succeed => Ok(()),
        _ => Err((Check::Answered, format!("{tag:?} is answered with {status}, {code}: {said}"))),
    }
}

// ---- runs ----

/// What a shim hears of its run.
#[derive(Debug)]
pub(crate) struct RunHearing {
    pub(crate) tag: Tag,
}

impl RunHearing {
    pub(crate) fn printed(&self, env: &mut Env, lane: Lane, bytes: &[u8]) {
        let verdict = env.ledger.received(self.tag, lane, bytes);
        env.check(verdict);
    }

    pub(crate) fn exited(&self, env: &mut Env, value: u8, signaled: bool) {
        let tag = self.tag;
        env.ledger.count(if signaled { "deaths" } else { "exits" });
        env.say(|| format!("{tag:?} hears the exit {value}, by signal: {signaled}"));
        let verdict = env.ledger.answered(tag);
        env.check(verdict);
        for lane in [Lane::Stdout, Lane::Stderr] {
            let verdict = env.ledger.complete(tag, lane);
            env.check(verdict);
        }
        let Some(call) = env.ledger.call(tag) else { return };
        let is_so = match call.ended {
            Some(ExitStatus::Exited(code)) => !signaled && code == value,
            Some(ExitStatus::Signaled { signal, .. }) => signaled && signal == value,
            None => false,
        };
        if !is_so {
            let ended = call.ended;
            env.fail(
                Check::Answered,
                format!("{tag:?} hears {value}, by signal: {signaled}; it was {ended:?}"),
            );
        }
    }

    pub(crate) fn failed(&self, env: &mut Env, fault: Fault, text: &[u8]) {
        let (tag, said) = (self.tag, crate::http::shown(text));
        env.ledger.count(match fault {
            Fault::Cancelled => "run: cancelled",
            Fault::Denied => "run: denied",
            Fault::UnknownTool => "run: unknown tool",
            Fault::NotStarted => "run: not started",
            Fault::OutcomeUnknown => "run: outcome unknown",
            Fault::TimedOut => "run: timed out",
            Fault::TooMuchOutput => "run: too much output",
            Fault::BadUpstream | Fault::Misbehaved | Fault::Failed => "run: failed",
        });
        env.say(|| format!("{tag:?} hears {fault:?}: {said}"));
        let verdict = env.ledger.answered(tag);
        env.check(verdict);
        let Some(call) = env.ledger.call(tag) else { return };
        let What::Run { tool, argv, .. } = call.what.clone() else { return };
        let must_succeed = call.must_succeed;
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let verdict = match fault {
            Fault::Denied | Fault::UnknownTool => {
                if env.ledger.laws_seen.iter().all(|law| law.allows_run(&tool, &words)) {
                    env.fail(Check::Answered, format!("{tag:?} is denied, and is allowed: {said}"));
                }
                env.ledger.told_refused(tag, &said)
            }
            Fault::NotStarted if said.contains("no room") => Ok(()),
            Fault::NotStarted if said.contains("too many runs") && must_succeed => Ok(()),
            Fault::NotStarted => env.ledger.told_not_started(tag, &said),
            fault if must_succeed => Err((Check::Answered, format!("{tag:?} fails with {fault:?}: {said}"))),
            _ => Ok(()),
        };
        env.check(verdict);
    }
}
