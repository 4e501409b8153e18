//! The tools of a policy, compiled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::commands::Command;
use crate::glob::Glob;
use crate::limits::RateLimit;
use crate::patterns::{Pattern, Patterns};
use crate::problem::Problem;
use crate::profile::{Format, Profile};
use crate::secret::{Secret, SecretId};
use crate::verdict::Rule;
use crate::words::{AllowWords, DenyWords};

/// One tool.
#[derive(Debug)]
pub struct Tool {
    pub(crate) name: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) audit: AuditRules,
    pub(crate) timeout: Duration,
    pub(crate) max_concurrent: usize,
    pub(crate) rate_limit: Option<(RateLimit, Rule)>,
    pub(crate) redact_output: bool,
    pub(crate) place: Problem,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Cli(Box<CliTool>),
    Http(Box<HttpTool>),
}

/// The kinds of tool.
#[derive(Clone, Copy, Debug)]
pub enum ToolKind<'a> {
    /// A program on the host.
    Cli(&'a CliTool),
    /// An upstream.
    Http(&'a HttpTool),
}

impl Tool {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> ToolKind<'_> {
        match &self.kind {
            Kind::Cli(cli) => ToolKind::Cli(cli),
            Kind::Http(http) => ToolKind::Http(http),
        }
    }

    /// What the audit log holds of its calls.
    #[must_use]
    pub fn audit(&self) -> &AuditRules {
        &self.audit
    }

    /// How long a call may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How many calls may run at once.
    #[must_use]
    pub fn max_concurrent(&self) -> usize {
        self.max_concurrent
    }

    /// Whether its secrets are removed from what it prints or answers.
    #[must_use]
    pub fn redacts_output(&self) -> bool {
        self.redact_output
    }

    pub(crate) fn http(&self) -> Option<&HttpTool> {
        match &self.kind {
            Kind::Http(http) => Some(http),
            Kind::Cli(_) => None,
        }
    }

    pub(crate) fn cli(&self) -> Option<&CliTool> {
        match &self.kind {
            Kind::Cli(cli) => Some(cli),
            Kind::Http(_) => None,
        }
    }
}

/// What the audit log holds of a tool's calls.
#[derive(Clone, Debug)]
pub struct AuditRules {
    /// Whether decisions and outcomes are recorded.
    pub enabled: bool,
    /// Whether the arguments of a program are.
    pub log_argv: bool,
    /// Whether the body of a request is.
    pub log_body: bool,
    pub(crate) redact: Vec<crate::redact::ArgRedaction>,
}

/// An upstream and what may be asked of it.
#[derive(Debug)]
pub struct HttpTool {
    pub(crate) upstream: Upstream,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) rpc: RpcRules,
    /// By the name of the event.
    pub(crate) event_filters: BTreeMap<String, Vec<Filter>>,
    pub(crate) headers_inject: Vec<(Arc<str>, SecretId)>,
    /// In lower case.
    pub(crate) headers_allow: Vec<String>,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_response_bytes: usize,
    pub(crate) max_event_bytes: usize,
    pub(crate) event_idle: Option<Duration>,
}

impl HttpTool {
    /// Where requests go.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The longest body of a request, in bytes.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        self.max_body_bytes
    }

    /// The longest answer to a JSON-RPC call, in bytes.
    #[must_use]
    pub fn max_response_bytes(&self) -> usize {
        self.max_response_bytes
    }

    /// The longest event, in bytes.
    #[must_use]
    pub fn max_event_bytes(&self) -> usize {
        self.max_event_bytes
    }

    /// How long an event stream may be silent before it is taken for dead.
    #[must_use]
    pub fn event_idle(&self) -> Option<Duration> {
        self.event_idle
    }

    /// The JSON-RPC methods that the policy allows by name. What it allows by a wider pattern is not listed: patterns
    /// are not for callers.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        let is_denied = |name: &[u8]| self.rpc.deny.find(name).is_some();
        let names = self.rpc.allow.iter().filter_map(|pattern| pattern.glob.as_literal());
        names.filter(move |name| !is_denied(name)).filter_map(|name| std::str::from_utf8(name).ok())
    }
}

/// Where an http tool's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// How it is reached.
    pub scheme: Scheme,
    /// A name or an address; the socket's path for [`Scheme::Unix`].
    pub host: String,
    /// The TCP port; 0 for [`Scheme::Unix`].
    pub port: u16,
    /// What stands before every path; empty or beginning with `/`, never ending with one.
    pub base_path: String,
    /// The value of the `Host` header.
    pub host_header: String,
    /// A file of certificates to trust instead of the system's, for [`Scheme::Https`].
    pub ca_file: Option<String>,
}

/// How an upstream is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix socket.
    Unix,
}

/// A method and a path that may be asked for.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) method: String,
    pub(crate) path: Vec<Segment>,
    pub(crate) kind: EndpointKind,
    /// The names its query may hold; `None`: any query.
    pub(crate) query: Option<&'static [&'static str]>,
    pub(crate) rule: Rule,
}

/// What an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointKind {
    /// A plain exchange.
    Plain,
    /// It takes JSON-RPC bodies.
    Rpc,
    /// It answers with an event stream.
    Stream,
}

/// One segment of a path pattern.
#[derive(Debug)]
pub(crate) enum Segment {
    One(Glob),
    /// `**`: all that follows.
    Rest,
}

/// The rules for JSON-RPC bodies.
#[derive(Debug, Default)]
pub(crate) struct RpcRules {
    pub(crate) profile: Option<&'static Profile>,
    pub(crate) allow: Patterns,
    pub(crate) deny: Patterns,
    pub(crate) methods: BTreeMap<String, MethodRules>,
    pub(crate) attachment_paths: Vec<String>,
}

/// The rules for one method's parameters.
#[derive(Debug, Default)]
pub(crate) struct MethodRules {
    pub(crate) filters: Vec<Filter>,
    pub(crate) allow_params: Option<(Vec<String>, Rule)>,
}

/// Rules for the values of one field.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Spellings of one thing; all that are present are judged.
    pub(crate) fields: Vec<FieldPath>,
    /// How the caller hears of the field: the first one as the file spells it.
    pub(crate) label: String,
    pub(crate) allow: Patterns,
    pub(crate) deny: Patterns,
    pub(crate) is_required: bool,
    pub(crate) audit_as: Option<Arc<str>>,
    pub(crate) format: Option<Format>,
    /// What the caller hears that a refused value is not: `recipient`, `value`.
    pub(crate) noun: &'static str,
    pub(crate) rule: Rule,
}

/// A dotted path, each part folded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FieldPath(pub(crate) Vec<String>);

impl Filter {
    /// Whether the filter judges the top-level parameter with this folded name.
    pub(crate) fn covers(&self, folded: &str) -> bool {
        self.fields.iter().any(|path| matches!(path.0.as_slice(), [only] if only == folded))
    }
}

/// A program and how it may be run.
#[derive(Debug)]
pub struct CliTool {
    pub(crate) binary: String,
    pub(crate) allow: Vec<Pattern<AllowWords>>,
    pub(crate) deny: Vec<Pattern<DenyWords>>,
    pub(crate) commands: Vec<Command>,
    pub(crate) env_allow: Vec<Glob>,
    pub(crate) env_inject: Vec<(Arc<str>, SecretId)>,
    pub(crate) cwd: String,
    pub(crate) cwd_allowed: Option<Vec<String>>,
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
    pub(crate) kill_grace: Duration,
    pub(crate) max_output_bytes: u64,
    pub(crate) limits: Rlimits,
    pub(crate) run_as: Option<String>,
}

impl CliTool {
    /// The absolute path of the program.
    #[must_use]
    pub fn binary(&self) -> &str {
        &self.binary
    }

    /// Whether the program may read the caller's standard input.
    #[must_use]
    pub fn stdin(&self) -> bool {
        self.stdin
    }

    /// Whether the program may be given a terminal.
    #[must_use]
    pub fn tty(&self) -> bool {
        self.tty
    }
}

/// Resource limits of a child; what is `None` is left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rlimits {
    /// Seconds of processor time.
    pub cpu_secs: Option<u64>,
    /// Bytes of address space.
    pub memory_bytes: Option<u64>,
    /// Open descriptors.
    pub open_files: Option<u64>,
    /// Processes of the account.
    pub processes: Option<u64>,
}

/// A header or variable with the secret that it gets.
pub(crate) type Injected = Vec<(Arc<str>, Secret)>;
