//! Everything that the demo needs running, and what its steps do with it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use carapace_debug::rig::{Binaries, Daemon, Folder, Pair};
use carapace_debug::upstream::{self, Event, Options, Upstream};

use super::step::labelled;
use crate::audit;
use crate::failure::Failure;
use crate::output::{Format, Output, Style, complain};

/// How long a record may take to appear in the log.
const RECORDED_WITHIN: Duration = Duration::from_secs(2);
/// How long the log must stay as it is before it counts as complete.
const SETTLED_AFTER: Duration = Duration::from_millis(40);
/// How long the link may take to stand.
const LINKED_WITHIN: Duration = Duration::from_secs(5);

/// The tools that the policy allows to be run on the host.
const TOOLS: [(&str, &str); 2] = [("uname", r#"["-s", "-sr", "-a"]"#), ("wc", r#"["-l", "-c", "-lc"]"#)];

/// What a client got for a call.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) elapsed: Duration,
}

/// The running demo.
#[derive(Debug)]
pub(super) struct Stage {
    pair: Pair,
    /// The built-in upstream; `None`: a real one.
    stand_in: Option<Upstream>,
    upstream_url: String,
    policy: String,
    client: ureq::Agent,
    /// How far the audit log has been shown.
    shown: u64,
    // Last: removed when everything in it has been stopped.
    folder: Folder,
}

impl Stage {
    pub(super) fn set_up(upstream: Option<&str>, output: &mut Output) -> Result<Self, Failure> {
        output.flush()?;
        let binaries = Binaries::find(|command| complain(format_args!("building: {command}")))
            .map_err(|missing| Failure::Unavailable(missing.to_string()))?;
        let folder = Folder::create("carapace-demo")?;
        let stand_in = match upstream {
            Some(_) => None,
            None => Some(Upstream::start(Options::default())?),
        };
        let upstream_url =
            stand_in.as_ref().map_or_else(|| upstream.unwrap_or_default().to_owned(), Upstream::url);
        let policy = policy(&upstream_url)?;
        let pair = Pair::start(&binaries, folder.path(), &policy)
            .map_err(|error| Failure::Unavailable(error.to_string()))?;
        for (tool, _) in TOOLS {
            pair.shim(tool)?;
        }
        // Proxies of the environment are not for the loopback.
        let client = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let client = client.timeout_global(Some(Duration::from_secs(30))).build().into();
        let stage = Self { pair, stand_in, upstream_url, policy, client, shown: 0, folder };
        stage.wait_for_link()?;
        Ok(stage)
    }

    fn wait_for_link(&self) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            let health = self.client.get(self.url("/health")).call();
            match health {
                Ok(response) if response.status() == 200 => return Ok(()),
                _ if start.elapsed() < LINKED_WITHIN => std::thread::sleep(Duration::from_millis(10)),
                Ok(_) | Err(_) => {
                    let log = self.pair.agent().log().join("\n    ");
                    return Err(Failure::Unavailable(format!(
                        "the agent has no link to the server:\n    {log}"
                    )));
                }
            }
        }
    }

    /// Says what runs, and by which policy.
    pub(super) fn introduce(&self, output: &mut Output) -> Result<(), Failure> {
        if output.format() == Format::Json {
            return Ok(());
        }
        let daemon = |daemon: &Daemon| format!("{}  (process {})", daemon.addr(), daemon.pid());
        let kind = if self.stand_in.is_some() {
            "a stand-in for signal-cli"
        } else {
            "yours; nothing is sent through it"
        };
        output.line(output.paint(Style::Strong, "Carapace on this machine"))?;
        labelled("upstream", &format!("{}  ({kind})", self.upstream_url), Style::Plain, output)?;
        labelled("server", &daemon(self.pair.server()), Style::Plain, output)?;
        labelled("agent", &daemon(self.pair.agent()), Style::Plain, output)?;
        labelled("folder", &self.folder.path().display().to_string(), Style::Plain, output)?;
        labelled("policy", &self.policy, Style::Plain, output)?;
        output.flush()?;
        Ok(())
    }

    /// Says how to reach what was left running.
    pub(super) fn explain(&self, output: &mut Output) -> Result<(), Failure> {
        let (variable, socket) = self.pair.shim_env();
        let shim = self.tool_path("uname");
        let own = std::env::current_exe()?;
        let call = r#"'{"jsonrpc":"2.0","id":"1","method":"version"}'"#;
        output.line("")?;
        output.line(
            output
                .paint(Style::Strong, "Everything is left running. Ctrl-C stops it and removes the folder."),
        )?;
        let texts = [
            (
                "calls",
                format!("curl -s -H 'Content-Type: application/json' -d {call} {}", self.url("/api/v1/rpc")),
            ),
            ("events", format!("curl -sN {}", self.url("/api/v1/events"))),
            ("health", format!("curl -s {}", self.url("/health"))),
            ("a tool", format!("{variable}={} {} -a", socket.display(), shim.display())),
            ("audit", format!("{} audit --follow --file {}", own.display(), self.pair.audit_log().display())),
            ("policy", self.folder.join("policy.yaml").display().to_string()),
            ("server", self.pair.server_launch().to_string()),
            ("agent", self.pair.agent_launch().to_string()),
        ];
        for (label, text) in texts {
            // Not broken: these are to be copied.
            output.line(format_args!("{} {text}", output.paint(Style::Faint, &format!("{label:>10}"))))?;
        }
        Ok(())
    }

    /// The built-in upstream, when that is what runs.
    pub(super) fn stand_in(&self) -> Option<&Upstream> {
        self.stand_in.as_ref()
    }

    /// The calls that have reached the upstream since this was last asked; `None` where that cannot be seen.
    pub(super) fn upstream_calls(&self) -> Option<Vec<upstream::Request>> {
        let stand_in = self.stand_in.as_ref()?;
        let requests = stand_in.requests_to("/api/v1/rpc");
        stand_in.clear_requests();
        Some(requests)
    }

    pub(super) fn emit(&self, event: &Event) {
        if let Some(stand_in) = &self.stand_in {
            stand_in.emit(event);
        }
    }

    /// A URL at the agent.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.pair.agent().addr())
    }

    pub(super) fn client(&self) -> &ureq::Agent {
        &self.client
    }

    /// Calls, as OpenClaw does.
    pub(super) fn call(&self, body: &str) -> Result<Answer, Failure> {
        let url = self.url("/api/v1/rpc");
        let failed = |error| Failure::Unavailable(format!("no answer from {url}: {error}"));
        let start = Instant::now();
        let mut response =
            self.client.post(&url).content_type("application/json").send(body).map_err(failed)?;
        let body = response.body_mut().read_to_string().map_err(failed)?;
        Ok(Answer { status: response.status().as_u16(), body, elapsed: start.elapsed() })
    }

    /// A tool through its shim.
    pub(super) fn tool(&self, tool: &str, args: &[&str]) -> Command {
        let (variable, socket) = self.pair.shim_env();
        let mut command = Command::new(self.tool_path(tool));
        command.args(args).env(variable, socket);
        command
    }

    fn tool_path(&self, tool: &str) -> PathBuf {
        self.folder.join("bin").join(tool)
    }

    /// The audit log's lines since this was last asked: at least `count`, when they come in time.
    pub(super) fn records(&mut self, count: usize) -> Result<Vec<Vec<u8>>, Failure> {
        let mut file = File::open(self.pair.audit_log())?;
        let start = Instant::now();
        let mut grown = start;
        let mut records = Vec::new();
        while start.elapsed() < RECORDED_WITHIN && (records.len() < count || grown.elapsed() < SETTLED_AFTER)
        {
            let end = audit::whole_lines(&mut file, self.shown, |line| records.push(line.to_vec()))?;
            if end > self.shown {
                grown = Instant::now();
            }
            self.shown = end;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(records)
    }

    /// A sentence about the daemon that has ended by itself, if one has.
    pub(super) fn who_ended(&mut self) -> io::Result<Option<String>> {
        Ok(self.pair.ended()?.map(|(name, status)| format!("{name} has ended: {status}")))
    }
}

/// The guide's policy with two tools, for this upstream.
fn policy(upstream: &str) -> Result<String, Failure> {
    let mut text = format!(
        r#"tools:
  signal-cli:
    type: http
    upstream: "{upstream}"
    jsonrpc_allow_methods: [send, receive, listMessages, version]
    jsonrpc_deny_methods: [deleteEverything, removeAccount]
    jsonrpc_param_filters:
      send:
        field: "recipientNumber"
        allow_patterns: ["+1555*"]
        deny_patterns: ["+15551234567"]
        audit_as: phone_number
"#
    );
    for (tool, argv) in TOOLS {
        let binary = on_path(tool).ok_or_else(|| Failure::Unavailable(format!("no {tool} in the PATH")))?;
        text.push_str(&format!(
            "  {tool}:\n    type: cli\n    binary: {}\n    argv_allow_patterns: {argv}\n    stdin: true\n",
            binary.display()
        ));
    }
    Ok(text)
}

/// The native program of this name.
pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|file| is_file(file))
}

fn is_file(path: &Path) -> bool {
    path.is_file()
}
