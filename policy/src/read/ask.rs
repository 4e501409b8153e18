//! Asking a policy what it would do: `tests:` in the file, and `carapace-debug policy FILE REQUEST`. The answer comes from
//! the code that judges real calls.

use std::borrow::Cow;
use std::fmt;

use super::fields::{Reader, nearest};
use super::tables::{ASKER, REQUEST, TEST, Table};
use super::yaml::{Node, Yaml};
use crate::caller::{Caller, Peer};
use crate::json::{self, Kind, Scan, Value};
use crate::judge::{Circumstances, EventVerdict, ExecRequest, HttpHead, HttpVerdict, RpcVerdict};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::verdict::{Denial, DenialKind, Notes, Param, Rule, Step, Trace};

/// What would become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It would be carried out.
    Allow,
    /// A content filter would stop it.
    Block,
    /// It would be refused.
    Deny,
}

impl Outcome {
    /// `allow`, `block` or `deny`, as `expect:` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
            Self::Deny => "deny",
        }
    }
}

/// What would become of a request, and why: for the operator, not for the caller.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What would become of it.
    pub outcome: Outcome,
    /// What the caller would hear; `None` when it is allowed.
    pub said: Option<String>,
    /// The rule that decided, where one did.
    pub rule: Option<Rule>,
    /// Why it is refused; `None` when it is allowed.
    pub reason: Option<String>,
    /// The judged values that the audit record would hold.
    pub params: Vec<Param>,
    /// Content filters that only warn and would have.
    pub warnings: Vec<Rule>,
    /// Exactly what would be carried out, as name and text: `body`, `argv`, `target`. Injected secrets are not shown.
    pub action: Vec<(&'static str, String)>,
    /// Every rule that was tried, in order.
    pub steps: Vec<Step>,
}

impl fmt::Display for Explained {
    /// The outcome and why, one thing a line. The steps are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.outcome.as_str())?;
        if let Some(rule) = &self.rule {
            write!(f, "\nrule: {rule}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, "\nreason: {reason}")?;
        }
        if let Some(said) = &self.said {
            write!(f, "\nthe caller hears: {said}")?;
        }
        for (name, text) in &self.action {
            write!(f, "\n{name}: {text}")?;
        }
        for rule in &self.warnings {
            write!(f, "\nwarning: {rule}")?;
        }
        Ok(())
    }
}

impl Policy {
    /// What would become of a request, given as JSON:
    /// `{"tool": T, "method": M, "params": {...}}` for a JSON-RPC call, `{"tool": T, "argv": [...]}` for a program (with
    /// `env`, `cwd`, `tty`, `stdin`), `{"tool": T, "method": "GET", "path": "/path"}` for any other exchange (with
    /// `body`), or `{"tool": T, "event": E, "data": ...}` for what comes back on an event stream; each with an optional
    /// `client`.
    ///
    /// Rate limits count from zero, and secrets count as found.
    ///
    /// # Errors
    /// What is wrong with the request as such, in one sentence.
    pub fn explain(&self, request: &str) -> Result<Explained, String> {
        let scan = Scan::whole(request.as_bytes()).map_err(|error| format!("the request is {error}"))?;
        debug_assert_eq!(scan.position(), request.len());
        let ask = Ask::read(Value::new(request.as_bytes()), &REQUEST)?;
        self.ask(&ask)
    }

    fn ask(&self, ask: &Ask<'_>) -> Result<Explained, String> {
        let mut policy = self.clone();
        policy.vault.fill();
        let caller = match &ask.client {
            None => Caller::operator(),
            Some(peer) => match policy.admit(peer) {
                Ok(caller) => caller,
                Err(denial) => return Ok(refused(&denial, Vec::new())),
            },
        };
        let mut trace = Trace::on();
        let mut limits = Limits::new();
        let circumstances =
            Circumstances { caller: &caller, limits: &mut limits, now_us: 0, trace: &mut trace };
        let is_cli = policy.tool(&ask.tool).is_some_and(|tool| tool.cli().is_some());
        let answer = match (ask.method.as_ref(), ask.path.as_ref(), &ask.argv, ask.event.as_ref()) {
            (Some(method), None, None, None) => policy.ask_rpc(ask, method, circumstances),
            (Some(method), Some(path), None, None) => policy.ask_http(ask, method, path, circumstances),
            (None, None, Some(argv), None) => policy.ask_exec(ask, argv, circumstances),
            (None, None, None, None) if is_cli => policy.ask_exec(ask, &[], circumstances),
            (None, None, None, Some(event)) => policy.ask_event(ask, event, &caller),
            (_, _, _, _) => {
                return Err(
                    "a request has exactly one of `method`, `method` with `path`, `argv`, `event`".to_owned()
                );
            }
        };
        let steps = trace.into_steps();
        Ok(match answer {
            Ok((notes, action)) => Explained {
                outcome: Outcome::Allow,
                said: None,
                rule: notes.rule,
                reason: None,
                params: notes.params,
                warnings: notes.warnings,
                action,
                steps,
            },
            Err(denial) => refused(&denial, steps),
        })
    }

    fn ask_rpc(&self, ask: &Ask<'_>, method: &str, mut circumstances: Circumstances<'_>) -> Answer {
        let gate = self.rpc_gate(&ask.tool, circumstances.caller)?;
        let mut body = br#"{"jsonrpc":"2.0","id":1,"method":"#.to_vec();
        json::escape(&mut body, method);
        if let Some(params) = ask.params {
            body.extend_from_slice(br#","params":"#);
            body.extend_from_slice(params.bytes());
        }
        body.push(b'}');
        whole_answer(self.judge_rpc_traced(&gate, &body, &mut circumstances))
    }

    fn ask_exec(&self, ask: &Ask<'_>, argv: &[Cow<'_, str>], circumstances: Circumstances<'_>) -> Answer {
        let argv: Vec<&[u8]> = argv.iter().map(|arg| arg.as_bytes()).collect();
        let env: Vec<(&[u8], &[u8])> =
            ask.env.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        let cwd = ask.cwd.as_ref().map(|cwd| cwd.as_bytes());
        let request = ExecRequest { tool: &ask.tool, argv: &argv, env: &env, cwd, tty: ask.tty };
        let Circumstances { caller, limits, now_us, trace } = circumstances;
        let judged = self.judge_exec_traced(caller, limits, now_us, &request, trace)?;
        let exec = judged.action;
        let mut notes = judged.notes;
        if let (Some(stdin), Some(mut sieve)) = (&ask.stdin, exec.stdin_sieve()) {
            sieve
                .push(stdin.as_bytes())
                .map_err(|found| found.denial(exec.tool()).with_notes(notes.clone()))?;
            notes.warnings.extend_from_slice(sieve.warnings());
        }
        let shown = crate::redact::redacted(&argv, exec.redactions());
        let sent: Vec<_> = exec.env().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
        let action = vec![
            ("binary", exec.binary().to_owned()),
            ("argv", format!("{shown:?}")),
            ("env", sent.join(" ")),
        ];
        Ok((notes, action))
    }

    fn ask_http(
        &self,
        ask: &Ask<'_>,
        method: &str,
        target: &str,
        mut circumstances: Circumstances<'_>,
    ) -> Answer {
        let head =
            HttpHead { method, target, content_type: Some("application/json"), content_encoding: None };
        let Circumstances { caller, limits, now_us, trace } = &mut circumstances;
        let body = ask.body.as_deref().unwrap_or_default();
        let verdict = self
            .judge_head(&ask.tool, caller, limits, *now_us, &head, trace)
            .unwrap_or_else(HttpVerdict::Refuse);
        let judged = match verdict {
            HttpVerdict::Pass(judged) => *judged,
            HttpVerdict::Body(gate) => self
                .judge_body(gate, caller, limits, *now_us, body.as_bytes().to_vec())
                .map_err(|refusal| Box::new(refusal.denial))?,
            HttpVerdict::Rpc(gate) => {
                return whole_answer(self.judge_rpc_traced(&gate, body.as_bytes(), &mut circumstances));
            }
            HttpVerdict::Refuse(refusal) => return Err(Box::new(refusal.denial)),
        };
        Ok((judged.notes, vec![("target", judged.action.target().to_owned())]))
    }

    fn ask_event(&self, ask: &Ask<'_>, event: &str, caller: &Caller) -> Answer {
        let request = self.event_request(&ask.tool, caller)?;
        let data = ask.data.map_or(&b"null"[..], Value::bytes);
        match request.judge_event(event, data) {
            EventVerdict::Pass => Ok((Notes::default(), Vec::new())),
            EventVerdict::Drop(rule) => {
                let said = "nothing: the event never reaches the client";
                Err(Denial::new(DenialKind::Denied, said, rule, "an event filter drops it"))
            }
        }
    }
}

type Answer = Result<(Notes, Vec<(&'static str, String)>), Box<Denial>>;

fn refused(denial: &Denial, steps: Vec<Step>) -> Explained {
    let is_block = denial.kind == DenialKind::Blocked;
    Explained {
        outcome: if is_block { Outcome::Block } else { Outcome::Deny },
        said: Some(denial.said.clone()),
        rule: Some(denial.rule.clone()),
        reason: Some(denial.reason.clone()),
        params: denial.notes.params.clone(),
        warnings: denial.notes.warnings.clone(),
        action: Vec::new(),
        steps,
    }
}

/// One answer for a whole body: the first refusal, if there is one.
fn whole_answer(verdict: RpcVerdict) -> Answer {
    match verdict {
        RpcVerdict::Malformed { said, .. } => {
            Err(Denial::new(DenialKind::Malformed, said.clone(), Rule::new("JSON-RPC", 0), said))
        }
        RpcVerdict::Judged(judged) => {
            let mut notes = Notes::default();
            for element in judged.elements {
                notes = element.verdict?;
            }
            let body = judged.request.as_ref().and_then(|request| request.body());
            let shown = body.map(|body| String::from_utf8_lossy(body).into_owned());
            Ok((notes, shown.map(|body| ("body", body)).into_iter().collect()))
        }
    }
}

type Env<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// A question, read from JSON.
#[derive(Default)]
struct Ask<'a> {
    tool: String,
    client: Option<Peer>,
    method: Option<Cow<'a, str>>,
    params: Option<Value<'a>>,
    argv: Option<Vec<Cow<'a, str>>>,
    env: Env<'a>,
    cwd: Option<Cow<'a, str>>,
    tty: bool,
    stdin: Option<Cow<'a, str>>,
    path: Option<Cow<'a, str>>,
    body: Option<Cow<'a, str>>,
    event: Option<Cow<'a, str>>,
    data: Option<Value<'a>>,
    expect: Option<Cow<'a, str>>,
}

impl<'a> Ask<'a> {
    fn read(request: Value<'a>, table: &'static Table) -> Result<Self, String> {
        if request.kind() != Kind::Object {
            return Err("a request is an object".to_owned());
        }
        let mut ask = Self::default();
        for (key, value) in request.members() {
            let key = json::unescape(key).unwrap_or_default();
            if table.key(&key).is_none() {
                return Err(format!("unknown key `{key}`{}", nearest(table, &key)));
            }
            let text = || value.as_str().ok_or_else(|| format!("`{key}` is text"));
            match key.as_ref() {
                "tool" => ask.tool = text()?.into_owned(),
                "client" => ask.client = Some(peer(value)?),
                "method" => ask.method = Some(text()?),
                "params" => ask.params = Some(value),
                "argv" => ask.argv = Some(texts(value).ok_or("`argv` is a list of texts")?),
                "env" => ask.env = env(value)?,
                "cwd" => ask.cwd = Some(text()?),
                "tty" => ask.tty = value.bytes() == b"true",
                "stdin" => ask.stdin = Some(text()?),
                "path" => ask.path = Some(text()?),
                "body" => ask.body = Some(text()?),
                "event" => ask.event = Some(text()?),
                "data" => ask.data = Some(value),
                // The table has no other key.
                _ => ask.expect = Some(text()?),
            }
        }
        if ask.tool.is_empty() {
            return Err("a request needs a `tool`".to_owned());
        }
        Ok(ask)
    }
}

fn texts(value: Value<'_>) -> Option<Vec<Cow<'_, str>>> {
    if value.kind() != Kind::Array {
        return None;
    }
    value.elements().map(Value::as_str).collect()
}

fn env(value: Value<'_>) -> Result<Env<'_>, String> {
    let pair =
        |(name, value): (_, Value<'_>)| Some((json::unescape(name)?, value.as_str()?.into_owned().into()));
    value.members().map(pair).collect::<Option<_>>().ok_or_else(|| "`env` maps names to texts".to_owned())
}

fn peer(value: Value<'_>) -> Result<Peer, String> {
    // A question is not asked by the daemon's own account unless it says so.
    let mut peer = Peer { own_uid: u32::MAX, ..Peer::default() };
    for (key, value) in value.members() {
        let key = json::unescape(key).unwrap_or_default();
        if ASKER.key(&key).is_none() {
            return Err(format!("unknown key `{key}` in `client`{}", nearest(&ASKER, &key)));
        }
        let text = value.as_str().map(Cow::into_owned);
        let id = std::str::from_utf8(value.bytes()).ok().and_then(|digits| digits.parse().ok());
        let is_good = match key.as_ref() {
            "agent" => std::mem::replace(&mut peer.agent, text).is_none() && peer.agent.is_some(),
            "user" => std::mem::replace(&mut peer.user, text).is_none() && peer.user.is_some(),
            "uid" => std::mem::replace(&mut peer.uid, id).is_none() && peer.uid.is_some(),
            "gid" => std::mem::replace(&mut peer.gid, id).is_none() && peer.gid.is_some(),
            "group" => {
                peer.groups.extend(text);
                !peer.groups.is_empty()
            }
            // The table has no other key.
            _ => {
                let groups = texts(value).unwrap_or_default();
                peer.groups.extend(groups.into_iter().map(Cow::into_owned));
                value.kind() == Kind::Array
            }
        };
        if !is_good {
            return Err(format!("`{key}` of `client` cannot be this"));
        }
    }
    Ok(peer)
}

/// Runs the tests of a file; each that fails is an error of the file.
pub(super) fn run_tests(reader: &Reader<'_>, policy: &Policy, tests: Vec<Node>) {
    for node in tests {
        let at = node.at;
        let mut text = Vec::new();
        write_json(&mut text, &node);
        if let Err(what) = run_test(policy, &text) {
            reader.error(at, what);
        }
    }
}

fn run_test(policy: &Policy, text: &[u8]) -> Result<(), String> {
    Scan::whole(text).map_err(|error| format!("the test is {error}"))?;
    let ask = Ask::read(Value::new(text), &TEST)?;
    let Some(expected) = ask.expect.as_deref() else { return Err("a test needs `expect`".to_owned()) };
    let expected = [Outcome::Allow, Outcome::Block, Outcome::Deny]
        .into_iter()
        .find(|outcome| outcome.as_str() == expected)
        .ok_or("`expect` is one of allow, deny, block")?;
    let found = policy.ask(&ask)?;
    if found.outcome == expected {
        return Ok(());
    }
    let rule = found.rule.map_or_else(|| "no rule".to_owned(), |rule| rule.to_string());
    let reason = found.reason.map_or_else(String::new, |reason| format!(": {reason}"));
    Err(format!(
        "the test failed: expected {}, got {} by {rule}{reason}",
        expected.as_str(),
        found.outcome.as_str()
    ))
}

/// A tree as JSON, which a request is.
fn write_json(out: &mut Vec<u8>, node: &Node) {
    match &node.value {
        Yaml::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Yaml::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Yaml::Null => out.extend_from_slice(b"null"),
        Yaml::Odd(number) => out.extend_from_slice(number.as_bytes()),
        Yaml::Text(text) => json::escape(out, text),
        Yaml::List(list) => {
            out.push(b'[');
            for (i, node) in list.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_json(out, node);
            }
            out.push(b']');
        }
        Yaml::Map(members) => {
            out.push(b'{');
            for (i, (key, node)) in members.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                json::escape(out, &key.text);
                out.push(b':');
                write_json(out, node);
            }
            out.push(b'}');
        }
    }
}
