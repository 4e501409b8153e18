//! `carapace-debug policy`: what the server would decide, by the server's own code.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use carapace_policy::{
    Caller, Denial, ExecRequest, HttpHead, HttpVerdict, Limits, Notes, Peer, Policy, RpcVerdict, Secret,
    ToolKind,
};
use nix::unistd::{getgid, getuid};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Format, Output, Style, complain, scrubbed};

/// Say what a policy decides about a request, and why. Nothing is carried out; no server is needed. Exits with 0 when the
/// request is allowed, and with 1 when it is denied.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The policy file.
    file: PathBuf,
    /// The request as JSON, a file with it, or `-` for standard input. One of
    /// {"tool", "method", "params"}, {"tool", "argv"} (and "cwd", "env", "tty"), {"tool", "method", "path"};
    /// "client" says whose it is: {"agent"} or {"uid", "gid", "user", "groups"}.
    request: String,
}

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    tool: String,
    method: Option<String>,
    params: Option<Box<RawValue>>,
    path: Option<String>,
    argv: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    #[serde(default)]
    tty: bool,
    client: Option<Client>,
}

/// Who asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    agent: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    user: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
}

/// What was decided.
#[derive(Debug, Default)]
struct Decision {
    result: &'static str,
    /// What would be carried out.
    action: Option<String>,
    /// What the caller would be told.
    said: Option<String>,
    rule: Option<String>,
    reason: Option<String>,
    recorded: Vec<(String, String)>,
    warnings: Vec<String>,
}

impl Decision {
    fn allowed(action: String, notes: &Notes) -> Self {
        Self { result: "allow", action: Some(action), ..Self::noted(notes) }
    }

    fn denied(denial: &Denial) -> Self {
        Self {
            result: denial.kind.as_str(),
            said: Some(denial.said.clone()),
            rule: Some(denial.rule.to_string()),
            reason: Some(denial.reason.clone()),
            ..Self::noted(&denial.notes)
        }
    }

    fn malformed(said: String) -> Self {
        Self {
            result: "deny",
            said: Some(said),
            reason: Some("it is not well-formed".to_owned()),
            ..Self::default()
        }
    }

    fn noted(notes: &Notes) -> Self {
        let params = notes.params().iter().map(|param| (param.name().to_owned(), param.values().join(", ")));
        let argv = notes.argv().map(|argv| ("argv".to_owned(), json!(argv).to_string()));
        Self {
            rule: notes.rule().map(ToString::to_string),
            recorded: params.chain(argv).collect(),
            warnings: notes.warnings().iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }

    fn is_allowed(&self) -> bool {
        self.result == "allow"
    }
}

/// Prints the decision; whether the request is allowed.
pub(crate) fn run(args: &Args, output: &mut Output) -> Result<bool, Failure> {
    let policy = load(args)?;
    let text = request(&args.request)?;
    let asked: Asked = serde_json::from_str(&text)
        .map_err(|error| Failure::Usage(format!("the request makes no sense: {error}")))?;
    let decision = match policy.admit(&peer(asked.client.as_ref())) {
        Ok(caller) => judge(&policy, &caller, &asked)?,
        Err(denial) => Decision::denied(&denial),
    };
    match output.format() {
        Format::Json => output.json(&machine_readable(&decision, &policy))?,
        Format::Text => print(&decision, &asked, output)?,
    }
    Ok(decision.is_allowed())
}

fn load(args: &Args) -> Result<Policy, Failure> {
    let name = args.file.display().to_string();
    let text = fs::read_to_string(&args.file)
        .map_err(|error| Failure::Configuration(format!("cannot read {name}: {error}")))?;
    let mut policy =
        Policy::parse(&name, &text).map_err(|problems| Failure::Configuration(problems.to_string()))?;
    for warning in policy.warnings() {
        complain(format_args!("warning: {warning}"));
    }
    // A decision does not depend on what a secret is, only on that there is one; the real ones are the server's affair.
    let ids: Vec<_> = policy.secrets().iter().map(carapace_policy::SecretSource::id).collect();
    for id in ids {
        policy
            .provide(id, Secret::new(b"placeholder"))
            .map_err(|problem| Failure::Configuration(problem.to_string()))?;
    }
    Ok(policy)
}

fn request(given: &str) -> Result<String, Failure> {
    let unread = |error: io::Error| Failure::Usage(format!("cannot read the request from {given}: {error}"));
    if given == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(unread)?;
        return Ok(text);
    }
    if given.trim_start().starts_with(['{', '[']) {
        return Ok(given.to_owned());
    }
    fs::read_to_string(given).map_err(unread)
}

/// Whoever runs this, as if that account's were the daemon, unless the request says otherwise.
fn peer(client: Option<&Client>) -> Peer {
    let own_uid = getuid().as_raw();
    let Some(client) = client else {
        return Peer { uid: Some(own_uid), gid: Some(getgid().as_raw()), own_uid, ..Peer::default() };
    };
    Peer {
        agent: client.agent.clone(),
        uid: client.uid,
        gid: client.gid,
        groups: client.groups.clone(),
        user: client.user.clone(),
        own_uid,
        ..Peer::default()
    }
}

fn judge(policy: &Policy, caller: &Caller, asked: &Asked) -> Result<Decision, Failure> {
    let is_cli = policy.tool(&asked.tool).is_some_and(|tool| matches!(tool.kind(), ToolKind::Cli(_)));
    match (&asked.argv, &asked.method, &asked.path) {
        (Some(argv), None, None) => Ok(judge_exec(policy, caller, asked, argv)),
        (None, None, None) if is_cli => Ok(judge_exec(policy, caller, asked, &[])),
        (None, Some(method), None) => Ok(judge_call(policy, caller, asked, method)),
        (None, Some(method), Some(path)) => Ok(judge_exchange(policy, caller, asked, method, path)),
        _ => Err(Failure::Usage(
            "a request has either `argv`, or `method` and `params`, or `method` and `path`".to_owned(),
        )),
    }
}

fn judge_exec(policy: &Policy, caller: &Caller, asked: &Asked, argv: &[String]) -> Decision {
    let argv: Vec<&[u8]> = argv.iter().map(String::as_bytes).collect();
    let env: Vec<_> = asked.env.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    let request = ExecRequest {
        tool: &asked.tool,
        argv: &argv,
        env: &env,
        cwd: asked.cwd.as_deref().map(str::as_bytes),
        tty: asked.tty,
    };
    match policy.judge_exec(caller, &mut Limits::new(), 0, &request) {
        Ok(judged) => {
            let words = judged.action.argv().iter().map(|word| String::from_utf8_lossy(word).into_owned());
            let argv = json!(words.collect::<Vec<_>>());
            Decision::allowed(format!("{} as {argv}", judged.action.binary()), &judged.notes)
        }
        Err(denial) => Decision::denied(&denial),
    }
}

fn judge_call(policy: &Policy, caller: &Caller, asked: &Asked, method: &str) -> Decision {
    let gate = match policy.rpc_gate(&asked.tool, caller) {
        Ok(gate) => gate,
        Err(denial) => return Decision::denied(&denial),
    };
    // The parameters' own bytes: the server, too, judges what was sent, and not what a parser made of it.
    let params = asked.params.as_ref().map(|params| format!(r#","params":{}"#, params.get()));
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":"1","method":{}{}}}"#,
        Value::from(method),
        params.unwrap_or_default()
    );
    match policy.judge_rpc(&gate, caller, &mut Limits::new(), 0, body.as_bytes()) {
        RpcVerdict::Malformed { said, .. } => Decision::malformed(said),
        RpcVerdict::Judged(judged) => match judged.elements.first().map(|element| &element.verdict) {
            Some(Ok(notes)) => {
                let sent = judged.request.as_ref().and_then(|request| request.body()).unwrap_or_default();
                Decision::allowed(String::from_utf8_lossy(sent).into_owned(), notes)
            }
            Some(Err(denial)) => Decision::denied(denial),
            None => Decision::malformed("there is no call in it".to_owned()),
        },
    }
}

fn judge_exchange(policy: &Policy, caller: &Caller, asked: &Asked, method: &str, path: &str) -> Decision {
    let head =
        HttpHead { method, target: path, content_type: Some("application/json"), content_encoding: None };
    match policy.judge_http(&asked.tool, caller, &mut Limits::new(), 0, &head) {
        HttpVerdict::Pass(judged) => {
            let action = format!("{} {}", judged.action.method(), judged.action.target());
            Decision::allowed(action, &judged.notes)
        }
        HttpVerdict::Body(_) => {
            Decision::allowed(format!("{method} {path}, once its body is judged"), &Notes::default())
        }
        HttpVerdict::Rpc(_) => Decision::allowed(
            format!("{method} {path}, once the calls in its body are judged"),
            &Notes::default(),
        ),
        HttpVerdict::Refuse(refusal) => Decision::denied(&refusal.denial),
    }
}

fn machine_readable(decision: &Decision, policy: &Policy) -> Value {
    let recorded: serde_json::Map<_, _> =
        decision.recorded.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    json!({
        "policy_result": decision.result, "rule": decision.rule, "reason": decision.reason, "said": decision.said,
        "action": decision.action, "recorded": recorded, "warnings": decision.warnings,
        "policy_version": policy.version(),
    })
}

fn print(decision: &Decision, asked: &Asked, output: &mut Output) -> Result<(), Failure> {
    let style = if decision.is_allowed() { Style::Good } else { Style::Bad };
    let verdict = output.paint(style, decision.result);
    let method = asked.method.as_ref().map(|method| format!(" {}", scrubbed(method)));
    output.line(format_args!("{verdict} {}{}", scrubbed(&asked.tool), method.unwrap_or_default()))?;
    let rows = [
        ("because", &decision.reason),
        ("rule", &decision.rule),
        ("is told", &decision.said),
        ("is done", &decision.action),
    ];
    let rows = rows.into_iter().filter_map(|(label, text)| Some((label, text.clone()?)));
    let recorded = decision.recorded.iter().map(|(name, value)| ("recorded", format!("{name}: {value}")));
    let warnings = decision.warnings.iter().map(|warning| ("warning", warning.clone()));
    for (label, text) in rows.chain(recorded).chain(warnings) {
        let label = output.paint(Style::Faint, &format!("{label:>10}"));
        output.line(format_args!("{label}  {}", scrubbed(&text)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use carapace_policy::Policy;

    use super::{Asked, judge, peer};

    const POLICY: &str = r#"tools:
  signal-cli:
    type: http
    upstream: "http://127.0.0.1:18080"
    jsonrpc_allow_methods: [send, version]
    jsonrpc_param_filters:
      send: { field: recipientNumber, allow_patterns: ["+1*"], deny_patterns: ["+15551234567"], audit_as: phone_number }
  date:
    type: cli
    binary: /bin/date
    argv_allow_patterns: ["-u", ""]
"#;

    fn decide(request: &str) -> super::Decision {
        let policy = Policy::parse("policy.yaml", POLICY).expect("a policy");
        let asked: Asked = serde_json::from_str(request).expect("a request");
        let caller = policy.admit(&peer(asked.client.as_ref())).expect("served");
        judge(&policy, &caller, &asked).expect("a decision")
    }

    #[test]
    fn calls_are_decided() {
        let denied =
            decide(r#"{"tool":"signal-cli","method":"send","params":{"recipientNumber":"+15551234567"}}"#);
        assert_eq!(denied.result, "deny");
        assert!(denied.rule.expect("a rule").contains("deny_patterns"));
        let allowed =
            decide(r#"{"tool":"signal-cli","method":"send","params":{"recipientNumber":"+15550100"}}"#);
        assert_eq!(allowed.result, "allow");
        assert_eq!(allowed.recorded, [("phone_number".to_owned(), "+15550100".to_owned())]);
        assert!(allowed.action.expect("a request").contains("+15550100"));
        assert_eq!(decide(r#"{"tool":"signal-cli","method":"removeAccount"}"#).result, "deny");
        let doubled = r#"{"tool":"signal-cli","method":"send","params":{"recipientNumber":"+1","recipientNumber":"+1"}}"#;
        assert_eq!(decide(doubled).result, "deny", "a duplicate key can be read in two ways");
        assert_eq!(decide(r#"{"tool":"nope","method":"send"}"#).result, "deny");
    }

    #[test]
    fn exchanges_are_decided() {
        assert!(decide(r#"{"tool":"signal-cli","method":"GET","path":"/api/v1/events"}"#).is_allowed());
        assert!(!decide(r#"{"tool":"signal-cli","method":"GET","path":"/api/v1/about"}"#).is_allowed());
    }

    #[test]
    fn command_lines_are_decided() {
        assert!(decide(r#"{"tool":"date","argv":["-u"]}"#).is_allowed());
        assert!(!decide(r#"{"tool":"date","argv":["--set","2000-01-01"]}"#).is_allowed());
        assert!(decide(r#"{"tool":"date","client":{"agent":"vm-1"}}"#).is_allowed(), "without arguments");
    }
}
