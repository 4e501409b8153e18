//! Judging the head of an HTTP exchange.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::event::AnswerFilter;
use super::target::{
    has_query, is_plain, is_plain_json, is_plain_path, literal_path, matches_path, percent_decoded,
};
use super::{injected, redactable, take_rate};
use crate::caller::Caller;
use crate::content::{JsonSieve, Sieve};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::secret::Secret;
use crate::tool::{Endpoint, EndpointKind, HttpTool, Injected, Tool, Upstream};
use crate::verdict::{Denial, DenialKind, Judged, Notes, Rule, Trace, shown};

/// Headers of a caller that any upstream may see.
const HEADERS_PASSED: [&str; 4] = ["accept", "accept-language", "content-type", "last-event-id"];

/// An exchange before its body: what is judged first.
#[derive(Clone, Copy, Debug)]
pub struct HttpHead<'a> {
    /// The method, in upper case as on the wire.
    pub method: &'a str,
    /// Path and query, in origin form.
    pub target: &'a str,
    /// The `Content-Type`.
    pub content_type: Option<&'a str>,
    /// The `Content-Encoding`.
    pub content_encoding: Option<&'a str>,
}

/// What is to be done with an exchange whose head has arrived.
#[derive(Debug)]
#[must_use]
pub enum HttpVerdict {
    /// Collect the whole body, of at most [`BodyGate::max_body_bytes`], then [`Policy::judge_body`].
    Body(BodyGate),
    /// It may be carried out.
    Pass(Box<Judged<Request>>),
    /// Answer without asking the upstream.
    Refuse(Box<Refusal>),
    /// Collect the whole body, of at most [`RpcGate::max_body_bytes`], then [`Policy::judge_rpc`].
    Rpc(RpcGate),
}

/// A refused exchange.
#[derive(Debug)]
pub struct Refusal {
    /// The HTTP status for an endpoint that is not JSON-RPC: 403, 404, 405, 415, 429 or 503.
    pub status: u16,
    /// The value of `Allow` that belongs to 405.
    pub allow: Option<String>,
    /// Whether it is a JSON-RPC endpoint, whose clients read an error object.
    pub is_rpc: bool,
    /// Why.
    pub denial: Denial,
}

/// The way through a JSON-RPC endpoint, open until the body has been judged.
#[derive(Clone, Debug)]
pub struct RpcGate {
    pub(super) tool: Arc<Tool>,
    pub(super) target: String,
}

impl RpcGate {
    /// The longest body, in bytes.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        self.tool.http().map_or(0, HttpTool::max_body_bytes)
    }

    /// The tool's name.
    #[must_use]
    pub fn tool(&self) -> &str {
        self.tool.name()
    }
}

/// The way through an endpoint whose body content filters must see whole.
#[derive(Clone, Debug)]
pub struct BodyGate(Box<BodyWork>);

#[derive(Clone, Debug)]
struct BodyWork {
    request: Request,
    notes: Notes,
    sieve: JsonSieve,
    /// How much of the body has been looked at.
    fed: usize,
}

impl BodyGate {
    /// The longest body, in bytes.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        self.0.request.tool.http().map_or(0, HttpTool::max_body_bytes)
    }

    /// The tool's name.
    #[must_use]
    pub fn tool(&self) -> &str {
        self.0.request.tool.name()
    }

    /// Looks at what has arrived since the last call; `body` is everything so far. Feeding the body as it comes spreads
    /// the work; [`Policy::judge_body`] looks at what was not fed.
    ///
    /// # Errors
    /// The refusal, as soon as it is certain.
    pub fn feed(&mut self, body: &[u8]) -> Result<(), Box<Refusal>> {
        let work = &mut *self.0;
        let fresh = body.get(work.fed..).unwrap_or_default();
        work.fed = body.len();
        work.sieve.push(fresh).map_err(|found| {
            let denial = found.denial(work.request.tool.name()).with_notes(work.notes.clone());
            refusal(403, None, false, *denial)
        })
    }
}

/// Exactly what may be sent to an upstream. Only the policy makes one.
#[derive(Clone)]
pub struct Request {
    tool: Arc<Tool>,
    method: String,
    target: String,
    kind: EndpointKind,
    body: Option<Vec<u8>>,
    headers: Injected,
    secrets: Vec<Secret>,
    answer_filter: Option<AnswerFilter>,
}

impl Request {
    /// The tool's name.
    #[must_use]
    pub fn tool(&self) -> &str {
        self.tool.name()
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Path and query as the upstream gets them, the upstream's base path included.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Where it goes; `None` never happens for a request that the policy made.
    #[must_use]
    pub fn upstream(&self) -> Option<&Upstream> {
        self.tool.http().map(HttpTool::upstream)
    }

    /// How long the exchange may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.tool.timeout
    }

    /// How many exchanges with the tool there may be at once.
    #[must_use]
    pub fn max_concurrent(&self) -> usize {
        self.tool.max_concurrent
    }

    /// Whether the answer is known beforehand to be an event stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.kind == EndpointKind::Stream
    }

    /// Whether it carries JSON-RPC calls, whose answer is read whole before it is passed on.
    #[must_use]
    pub fn is_rpc(&self) -> bool {
        self.kind == EndpointKind::Rpc
    }

    /// Whether the caller's body is streamed to the upstream as it comes.
    #[must_use]
    pub fn wants_body(&self) -> bool {
        self.body.is_none() && !matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS")
    }

    /// The body that was judged and is sent instead of the caller's.
    #[must_use]
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }

    /// Takes the judged body out, so that it can be sent without a copy.
    pub fn take_body(&mut self) -> Option<Vec<u8>> {
        self.body.take()
    }

    /// The headers that the policy adds. They win over the caller's of the same name.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.headers.iter().map(|(name, value)| (&**name, value))
    }

    /// Whether the upstream may see the caller's header of this name, in any case.
    #[must_use]
    pub fn passes_header(&self, name: &str) -> bool {
        let is = |other: &str| other.eq_ignore_ascii_case(name);
        let allowed = self.tool.http().map(|http| http.headers_allow.as_slice()).unwrap_or_default();
        !self.headers.iter().any(|(injected, _)| is(injected))
            && (HEADERS_PASSED.iter().any(|passed| is(passed)) || allowed.iter().any(|passed| is(passed)))
    }

    /// Values to remove from the answer, longest first.
    #[must_use]
    pub fn secrets_to_redact(&self) -> &[Secret] {
        &self.secrets
    }

    pub(super) fn http(&self) -> Option<&HttpTool> {
        self.tool.http()
    }

    pub(super) fn answer_filter(&self) -> Option<&AnswerFilter> {
        self.answer_filter.as_ref()
    }

    pub(super) fn set_answer_filter(&mut self, filter: Option<AnswerFilter>) {
        self.answer_filter = filter;
    }
}

impl fmt::Debug for Request {
    /// Nothing of the body, the query or a header's value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "Request({} {path} of {})", self.method, self.tool.name)
    }
}

impl Policy {
    /// Judges the head of an exchange with the named tool, before any of its body.
    pub fn judge_http(
        &self,
        tool: &str,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        head: &HttpHead<'_>,
    ) -> HttpVerdict {
        match self.judge_head(tool, caller, limits, now_us, head, &mut Trace::off()) {
            Ok(verdict) => verdict,
            Err(refusal) => HttpVerdict::Refuse(refusal),
        }
    }

    /// The way to a tool's JSON-RPC methods for a caller who comes without HTTP (the gateway).
    ///
    /// # Errors
    /// When there is no such tool for this caller, or it does not speak JSON-RPC.
    pub fn rpc_gate(&self, tool: &str, caller: &Caller) -> Result<RpcGate, Box<Denial>> {
        let tool = self.tool_for(tool, caller)?;
        let endpoints = tool.http().map(|http| http.endpoints.as_slice()).unwrap_or_default();
        let path =
            endpoints.iter().filter(|endpoint| endpoint.kind == EndpointKind::Rpc).find_map(literal_path);
        let (Some(http), Some(path)) = (tool.http(), path) else {
            let rule = Rule::new(format!("{}: type", tool.name), tool.place.at().line);
            let said = format!("{} has no methods", tool.name);
            return Err(Denial::new(DenialKind::Denied, said, rule, "it has no JSON-RPC endpoint"));
        };
        Ok(RpcGate { tool: tool.clone(), target: format!("{}{path}", http.upstream.base_path) })
    }

    pub(crate) fn judge_head(
        &self,
        tool: &str,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        head: &HttpHead<'_>,
        trace: &mut Trace,
    ) -> Result<HttpVerdict, Box<Refusal>> {
        let plain = |status: u16| move |denial: Box<Denial>| refusal(status, None, false, *denial);
        let tool = self.tool_for(tool, caller).map_err(plain(404))?;
        let Some(http) = tool.http() else {
            let said = format!("{} does not speak HTTP", tool.name);
            let rule = Rule::new(format!("{}: type", tool.name), tool.place.at().line);
            return Err(plain(404)(Denial::new(DenialKind::Denied, said, rule, "it is a cli tool")));
        };
        let endpoint = find_endpoint(tool, http, head, trace)?;
        let target = format!("{}{}", http.upstream.base_path, head.target);
        if endpoint.kind == EndpointKind::Rpc {
            check_media_type(tool, head)?;
            return Ok(HttpVerdict::Rpc(RpcGate { tool: tool.clone(), target }));
        }
        let request = self.request(tool, head.method, target, endpoint.kind).map_err(plain(503))?;
        let mut notes = Notes { rule: Some(endpoint.rule.clone()), ..Notes::default() };
        if !self.content.is_empty() {
            notes.warnings = self.judge_target(tool, head.target).map_err(plain(403))?;
            if request.wants_body() {
                let sieve = JsonSieve::new(&self.content);
                let work = BodyWork { request, notes, sieve, fed: 0 };
                return Ok(HttpVerdict::Body(BodyGate(Box::new(work))));
            }
        }
        take_rate(tool, caller, limits, now_us).map_err(plain(429))?;
        Ok(HttpVerdict::Pass(Box::new(Judged { action: request, notes })))
    }

    /// Looks at a target with and without its percent signs undone.
    fn judge_target(&self, tool: &Tool, target: &str) -> Result<Vec<Rule>, Box<Denial>> {
        let mut sieve = Sieve::new(&self.content);
        let look = |sieve: &mut Sieve| {
            sieve.push(target.as_bytes())?;
            sieve.push(b"\n")?;
            sieve.push(&percent_decoded(target))
        };
        look(&mut sieve).map_err(|found| found.denial(tool.name()))?;
        Ok(sieve.take_warnings())
    }

    /// Judges the whole body of an exchange that is not JSON-RPC.
    ///
    /// # Errors
    /// The refusal.
    pub fn judge_body(
        &self,
        gate: BodyGate,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        body: Vec<u8>,
    ) -> Result<Judged<Request>, Box<Refusal>> {
        let mut gate = gate;
        gate.feed(&body)?;
        let BodyWork { mut request, mut notes, mut sieve, .. } = *gate.0;
        notes.warnings.extend(sieve.take_warnings());
        take_rate(&request.tool, caller, limits, now_us)
            .map_err(|denial| refusal(429, None, false, *denial.with_notes(notes.clone())))?;
        request.body = Some(body);
        Ok(Judged { action: request, notes })
    }

    /// A request for the tool's event stream that goes nowhere: for questions about events.
    #[cfg(feature = "file")]
    pub(crate) fn event_request(&self, tool: &str, caller: &Caller) -> Result<Request, Box<Denial>> {
        self.request(self.tool_for(tool, caller)?, "GET", String::new(), EndpointKind::Stream)
    }

    pub(super) fn request(
        &self,
        tool: &Arc<Tool>,
        method: &str,
        target: String,
        kind: EndpointKind,
    ) -> Result<Request, Box<Denial>> {
        let names = tool.http().map(|http| http.headers_inject.as_slice()).unwrap_or_default();
        Ok(Request {
            method: method.to_owned(),
            target,
            kind,
            body: None,
            headers: injected(tool, &self.vault, names)?,
            secrets: redactable(tool, &self.vault, names),
            answer_filter: None,
            tool: tool.clone(),
        })
    }

    pub(super) fn rpc_request(&self, gate: &RpcGate, body: Vec<u8>) -> Result<Request, Box<Denial>> {
        let mut request = self.request(&gate.tool, "POST", gate.target.clone(), EndpointKind::Rpc)?;
        request.body = Some(body);
        Ok(request)
    }
}

fn refusal(status: u16, allow: Option<String>, is_rpc: bool, denial: Denial) -> Box<Refusal> {
    Box::new(Refusal { status, allow, is_rpc, denial })
}

fn find_endpoint<'a>(
    tool: &Tool,
    http: &'a HttpTool,
    head: &HttpHead<'_>,
    trace: &mut Trace,
) -> Result<&'a Endpoint, Box<Refusal>> {
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (head.target, None),
    };
    let missing = || Rule::new(format!("{}: no endpoint", tool.name), tool.place.at().line);
    let deny = |said: String, rule: Rule, reason: &str| *Denial::new(DenialKind::Denied, said, rule, reason);
    if !is_plain_path(path) || query.is_some_and(|query| !is_plain(query)) {
        let said = format!("{}: this path is not written plainly", tool.name);
        return Err(refusal(
            404,
            None,
            false,
            deny(said, missing(), "dot segments, escapes or odd characters"),
        ));
    }
    let mut methods = BTreeSet::new();
    let mut is_rpc = false;
    for endpoint in &http.endpoints {
        let is_path = matches_path(&endpoint.path, path);
        let is_it = is_path && endpoint.method == head.method;
        trace.tried(&endpoint.rule, || if is_it { "matches" } else { "does not match" }.to_owned());
        if is_it && has_query(endpoint, query) {
            return Ok(endpoint);
        }
        if is_it {
            let said = format!("{}: this query is not allowed", tool.name);
            let denial = deny(said, endpoint.rule.clone(), "a name in the query is not allowed");
            return Err(refusal(403, None, endpoint.kind == EndpointKind::Rpc, denial));
        }
        if is_path {
            methods.insert(endpoint.method.as_str());
            is_rpc |= endpoint.kind == EndpointKind::Rpc;
        }
    }
    if methods.is_empty() {
        let (status, said) =
            if http.rpc.profile.is_some() { (404, "no such path") } else { (403, "not allowed") };
        let said = format!("{}: {said}", tool.name);
        return Err(refusal(status, None, false, deny(said, missing(), "no endpoint has this path")));
    }
    let allow = methods.into_iter().collect::<Vec<_>>().join(", ");
    let said = format!("{}: method {} is not allowed here", tool.name, shown(head.method));
    let denial = deny(said, missing(), "the path is known, the method is not allowed");
    Err(refusal(405, Some(allow), is_rpc, denial))
}

/// A body is judged only where nobody can read it in another way.
fn check_media_type(tool: &Tool, head: &HttpHead<'_>) -> Result<(), Box<Refusal>> {
    let is_json = head.content_type.is_some_and(is_plain_json);
    let is_bare = head.content_encoding.is_none_or(|coding| coding.trim().eq_ignore_ascii_case("identity"));
    if is_json && is_bare {
        return Ok(());
    }
    let what =
        if is_json { "the body must not be compressed" } else { "the Content-Type must be application/json" };
    let rule = Rule::new(format!("{}: content type", tool.name), 0);
    let denial = Denial::new(DenialKind::Malformed, format!("{}: {what}", tool.name), rule, what);
    Err(refusal(415, None, true, *denial))
}
