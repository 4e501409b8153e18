//! The two policies that the server is given in turn, and what each allows, said a second time and by other means.

use crate::sabotage::Bug;
use carapace_policy::Policy;
use std::sync::Arc;

/// Which policy a call was judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Law {
    /// The first.
    Lax,
    /// What is in force after every other reload.
    Strict,
}

/// The value that the server adds to requests for `files`, and nobody else knows.
pub(crate) const SECRET_HEADER: &str = "Bearer files-secret-value";
/// The variable that every `op` has.
pub(crate) const SECRET_VARIABLE: (&str, &str) = ("OP_TOKEN", "op-secret-value");
/// The uid of the daemons' account.
pub(crate) const OWN_UID: u32 = 1000;
/// An account that neither policy serves.
pub(crate) const STRANGER_UID: u32 = 4242;
/// What a JSON-RPC body may have.
pub(crate) const BODY_MAX: usize = 64 * 1024;
/// What a JSON-RPC answer may have.
pub(crate) const ANSWER_MAX: usize = 256 * 1024;
/// What one event may have.
pub(crate) const EVENT_MAX: usize = 64 * 1024;
/// What `op` may print.
pub(crate) const OUTPUT_MAX: u64 = 1024 * 1024;
/// How many `op` run at once.
pub(crate) const OP_RUNS_MAX: usize = 3;

const TEXT: &str = r#"
tools:
  signal-cli:
    type: http
    upstream: "http://127.0.0.1:18080"
    jsonrpc_allow_methods: [send, version, METHODS]
    jsonrpc_deny_methods: [removeAccount]
    jsonrpc_param_filters:
      send: { field: recipient, allow_patterns: ["RECIPIENTS"], deny_patterns: ["+1999*"] }
    max_body_bytes: BODY_MAX
    max_response_bytes: ANSWER_MAX
    max_event_bytes: EVENT_MAX
    timeout_secs: 5
  files:
    type: http
    upstream: "http://files.test:8000/base"
    http_allow: ["GET /get/*", "POST /put/*", "GET /stream/*"]
    headers_inject: { Authorization: "Bearer files-secret-value" }
    max_event_bytes: EVENT_MAX
    event_idle_secs: 20
    timeout_secs: 5
  op:
    type: cli
    binary: /usr/bin/op
    argv_allow_patterns: [RUNS]
    argv_deny_patterns: ["--reveal"]
    env_allow: [LANG]
    env_inject: { OP_TOKEN: "op-secret-value" }
    stdin: true
    redact_output: false
    max_concurrent: RUNS_MAX
    max_output_bytes: OUTPUT_MAX
    kill_grace_secs: 1
    timeout_secs: 5
  mute:
    type: cli
    binary: /usr/bin/mute
    argv_allow_patterns: ["*"]
    kill_grace_secs: 1
    timeout_secs: 5
clients:
  - { uid: 1000, tools: ["*"] }
"#;

impl Law {
    /// The policy as the server gets it.
    pub(crate) fn policy(self) -> Policy {
        parse(&self.text())
    }

    /// A policy that is not one of the two, though the server calls it so.
    fn too_wide(like: &Policy) -> Arc<Policy> {
        let law = if like.version() == Self::Lax.policy().version() { Self::Lax } else { Self::Strict };
        let text = law.text();
        Arc::new(parse(&text.replace("+1999*", "+1888*").replace("item get *", "item * *")))
    }

    fn text(self) -> String {
        let (methods, recipients, runs) = match self {
            Self::Lax => ("receive", "+1*", r#""item get *", "item list **""#),
            Self::Strict => ("listGroups", "+12*", r#""item get *""#),
        };
        TEXT.replace("METHODS", methods)
            .replace("RECIPIENTS", recipients)
            .replace("RUNS_MAX", &OP_RUNS_MAX.to_string())
            .replace("RUNS", runs)
            .replace("BODY_MAX", &BODY_MAX.to_string())
            .replace("ANSWER_MAX", &ANSWER_MAX.to_string())
            .replace("EVENT_MAX", &EVENT_MAX.to_string())
            .replace("OUTPUT_MAX", &OUTPUT_MAX.to_string())
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Lax => Self::Strict,
            Self::Strict => Self::Lax,
        }
    }

    /// Whether a JSON-RPC call may be made.
    pub(crate) fn allows_rpc(self, method: &str, recipient: Option<&str>) -> bool {
        match method {
            "version" => recipient.is_none(),
            "receive" => self == Self::Lax,
            "listGroups" => self == Self::Strict,
            "send" => recipient.is_some_and(|to| {
                let area = if self == Self::Lax { "+1" } else { "+12" };
                to.starts_with(area) && !to.starts_with("+1999")
            }),
            _ => false,
        }
    }

    /// Whether `files` may be asked this.
    pub(crate) fn allows_file(self, method: &str, path: &str) -> bool {
        let is_name = |name: &str| !name.is_empty() && !name.contains('/');
        match method {
            "GET" => {
                ["/get/", "/stream/"].iter().any(|folder| path.strip_prefix(folder).is_some_and(is_name))
            }
            "POST" => path.strip_prefix("/put/").is_some_and(is_name),
            _ => false,
        }
    }

    /// Whether a tool may run with these arguments.
    pub(crate) fn allows_run(self, tool: &str, argv: &[&str]) -> bool {
        match (tool, argv) {
            ("mute", _) => argv.len() == 1,
            ("op", argv) if argv.contains(&"--reveal") => false,
            ("op", ["item", "get", _]) => true,
            ("op", ["item", "list", ..]) => self == Self::Lax,
            _ => false,
        }
    }
}

fn parse(text: &str) -> Policy {
    Policy::parse("sim.yaml", text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// What the server is given: the policy, or with a planted bug one that allows more.
pub(crate) fn enforced(bug: Option<Bug>, lawful: Option<Arc<Policy>>) -> Arc<Policy> {
    let lawful = lawful.unwrap_or_else(|| Arc::new(Policy::deny_all()));
    if bug == Some(Bug::OpenPolicy) { Law::too_wide(&lawful) } else { lawful }
}
