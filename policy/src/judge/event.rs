//! Judging what comes back: events of a stream, and the answers to calls that return such events.

use super::filter::passes;
use super::http::Request;
use crate::json::{Id, Kind, Scan, Value, unescape};
use crate::profile::JSON_RPC;
use crate::tool::{Filter, HttpTool};
use crate::verdict::Rule;

/// What becomes of an event.
#[derive(Clone, Debug)]
#[must_use]
pub enum EventVerdict {
    /// It never reaches the client; the rule is for the operator.
    Drop(Rule),
    /// It goes on.
    Pass,
}

/// What becomes of the answer to a JSON-RPC call.
#[derive(Clone, Debug)]
#[must_use]
pub enum AnswerVerdict {
    /// Some of it was taken out.
    Changed {
        /// What the client gets instead.
        body: Vec<u8>,
        /// How many events were taken out.
        dropped: usize,
        /// One of the rules that did, for the operator.
        rule: Rule,
    },
    /// It is not JSON and cannot be judged: the client gets an error.
    Refuse,
    /// It goes on unchanged.
    Same,
}

/// The calls of a request whose answers are judged, with every id in the request: an answer that carries an id of no
/// filtered call passes.
#[derive(Clone, Debug)]
pub(super) struct AnswerFilter {
    /// Each call's id, and its method where that is filtered.
    calls: Vec<(Id, Option<String>)>,
}

impl AnswerFilter {
    /// `None` where no call's answer is judged.
    pub(super) fn new<'a>(http: &HttpTool, calls: impl Iterator<Item = (&'a Id, &'a str)>) -> Option<Self> {
        if http.event_filters.is_empty() {
            return None;
        }
        let is_filtered = |method: &str| http.event_filters.contains_key(method).then(|| method.to_owned());
        let calls: Vec<_> = calls.map(|(id, method)| (id.clone(), is_filtered(method))).collect();
        calls.iter().any(|(_, method)| method.is_some()).then_some(Self { calls })
    }

    /// The methods whose filters apply to an answer with this id. One that matches no call could be the answer to any.
    fn methods(&self, id: Option<Value<'_>>) -> Vec<&str> {
        let is_it = |call: &Id| id.is_some_and(|id| may_be_same(call, id));
        let is_known = self.calls.iter().any(|(call, _)| is_it(call));
        let calls = self.calls.iter().filter(|(call, _)| !is_known || is_it(call));
        calls.filter_map(|(_, method)| method.as_deref()).collect()
    }
}

/// Whether an upstream that was given the first id may have written the second: it may spell a number or a string in
/// another way.
fn may_be_same(call: &Id, answer: Value<'_>) -> bool {
    let Id::Raw(bytes) = call else { return false };
    let call = Value::new(bytes);
    if call.bytes() == answer.bytes() {
        return true;
    }
    let number =
        |value: Value<'_>| std::str::from_utf8(value.bytes()).ok().and_then(|text| text.parse::<f64>().ok());
    match (call.kind(), answer.kind()) {
        (Kind::Number, Kind::Number) => number(call) == number(answer),
        (Kind::String, Kind::String) => call.as_str() == answer.as_str(),
        (_, _) => false,
    }
}

impl Request {
    /// Whether events of its answer must be judged one by one.
    #[must_use]
    pub fn judges_events(&self) -> bool {
        self.http().is_some_and(|http| !http.event_filters.is_empty())
    }

    /// Judges one event: its name (`message` where the stream gives none) and its data. Where the policy has event
    /// filters, an event that none of them names is dropped, and so is one whose data is not JSON.
    pub fn judge_event(&self, name: &str, data: &[u8]) -> EventVerdict {
        let Some(http) = self.http().filter(|http| !http.event_filters.is_empty()) else {
            return EventVerdict::Pass;
        };
        let missing =
            |what: &str| EventVerdict::Drop(Rule::new(format!("{}: event_filters: {what}", self.tool()), 0));
        if Scan::whole(data).is_err() {
            return missing("not JSON");
        }
        let mut root = Value::new(data);
        let mut filters = http.event_filters.get(name);
        if filters.is_none()
            && let Some((method, params)) = notification(root)
        {
            filters = http.event_filters.get(method.as_str());
            root = params;
        }
        match filters {
            None => missing("no filter for this event"),
            Some(filters) => match passes(http.rpc.profile.unwrap_or(&JSON_RPC), filters, root) {
                Ok(()) => EventVerdict::Pass,
                Err(rule) => EventVerdict::Drop(rule),
            },
        }
    }

    /// Whether the answer must be judged before it goes on.
    #[must_use]
    pub fn judges_answer(&self) -> bool {
        self.answer_filter().is_some()
    }

    /// Judges the whole answer to a JSON-RPC request: events that the filters refuse are taken out of results. Any other
    /// byte stays as it is.
    pub fn judge_answer(&self, body: &[u8]) -> AnswerVerdict {
        let (Some(filter), Some(http)) = (self.answer_filter(), self.http()) else {
            return AnswerVerdict::Same;
        };
        if body.trim_ascii().is_empty() {
            return AnswerVerdict::Same;
        }
        if Scan::whole(body).is_err() {
            return AnswerVerdict::Refuse;
        }
        let root = Value::new(body);
        let mut edit = Edit { text: body, done: 0, out: Vec::new(), dropped: 0, rule: None };
        match root.kind() {
            Kind::Object => edit.answer(http, filter, root),
            Kind::Array => root.elements().for_each(|answer| edit.answer(http, filter, answer)),
            Kind::Boolean | Kind::Null | Kind::Number | Kind::String => return AnswerVerdict::Refuse,
        }
        match edit.rule.take() {
            None => AnswerVerdict::Same,
            Some(rule) => {
                let dropped = edit.dropped;
                AnswerVerdict::Changed { body: edit.finish(), dropped, rule }
            }
        }
    }
}

/// The method and the parameters of a JSON-RPC notification.
fn notification(root: Value<'_>) -> Option<(String, Value<'_>)> {
    let member = |name: &str| root.members().find(|(key, _)| unescape(key).as_deref() == Some(name));
    let (_, method) = member("method")?;
    let (_, params) = member("params")?;
    member("jsonrpc")?;
    Some((method.as_str()?.into_owned(), params))
}

/// Copies a text while leaving parts of it out.
struct Edit<'a> {
    text: &'a [u8],
    /// How much of the text has been dealt with.
    done: usize,
    out: Vec<u8>,
    dropped: usize,
    rule: Option<Rule>,
}

impl<'a> Edit<'a> {
    fn answer(&mut self, http: &HttpTool, filter: &AnswerFilter, answer: Value<'a>) {
        let member = |name: &str| answer.members().find(|(key, _)| unescape(key).as_deref() == Some(name));
        let id = member("id").map(|(_, id)| id);
        let Some((_, result)) = member("result") else { return };
        let filters: Vec<&Filter> = filter
            .methods(id)
            .into_iter()
            .filter_map(|method| http.event_filters.get(method))
            .flatten()
            .collect();
        if filters.is_empty() || result.kind() == Kind::Null {
            return;
        }
        let profile = http.rpc.profile.unwrap_or(&JSON_RPC);
        let judge = |event: Value<'_>| passes(profile, filters.iter().copied(), event);
        if result.kind() != Kind::Array {
            if let Err(rule) = judge(result) {
                self.replace(result, b"null");
                self.drop(rule);
            }
            return;
        }
        let mut kept = vec![b'['];
        let before = self.dropped;
        for event in result.elements() {
            match judge(event) {
                Ok(()) => {
                    if kept.len() > 1 {
                        kept.push(b',');
                    }
                    kept.extend_from_slice(event.bytes());
                }
                Err(rule) => self.drop(rule),
            }
        }
        kept.push(b']');
        if self.dropped > before {
            self.replace(result, &kept);
        }
    }

    fn drop(&mut self, rule: Rule) {
        self.dropped += 1;
        self.rule.get_or_insert(rule);
    }

    fn replace(&mut self, value: Value<'a>, by: &[u8]) {
        let start = value.bytes().as_ptr().addr().wrapping_sub(self.text.as_ptr().addr());
        self.out.extend_from_slice(self.text.get(self.done..start).unwrap_or_default());
        self.out.extend_from_slice(by);
        self.done = start.saturating_add(value.bytes().len());
    }

    fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(self.text.get(self.done..).unwrap_or_default());
        self.out
    }
}
