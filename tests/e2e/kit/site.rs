//! A site: an upstream, a server and an agent in a folder of their own, on ports of their own.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use carapace_debug::rig::{Binaries, Daemon, Folder, Launch};
use carapace_debug::upstream::{Options, Upstream};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::http::{Answer, Connection};
use super::sse::EventStream;
use super::{GUIDE, LONG, free_addr, wait_for};

/// The programs, built once: `-p carapace-tests` alone builds none of them.
pub(crate) fn binaries() -> &'static Binaries {
    static BUILT: OnceLock<Result<Binaries, String>> = OnceLock::new();
    let built =
        BUILT.get_or_init(|| Binaries::build(Path::new(env!("CARGO"))).map_err(|error| error.to_string()));
    built.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

/// What a site is to be like.
pub(crate) struct Setup {
    policy: String,
    upstream: Options,
    upstream_url: Option<String>,
    server_env: Vec<(&'static str, OsString)>,
    server_args: Vec<&'static str>,
    tools: Vec<&'static str>,
    agent_hard_limit: Option<u64>,
}

impl Setup {
    /// With this policy, in which `{upstream}` is the upstream's URL.
    pub(crate) fn policy(policy: impl Into<String>) -> Self {
        Self {
            policy: policy.into(),
            upstream: Options::default(),
            upstream_url: None,
            server_env: Vec::new(),
            server_args: Vec::new(),
            tools: Vec::new(),
            agent_hard_limit: None,
        }
    }

    /// With the deployment guide's policy.
    pub(crate) fn guide() -> Self {
        Self::policy(GUIDE)
    }

    pub(crate) fn upstream(mut self, options: Options) -> Self {
        self.upstream = options;
        self
    }

    /// With another upstream than the stand-in.
    pub(crate) fn upstream_url(mut self, url: impl Into<String>) -> Self {
        self.upstream_url = Some(url.into());
        self
    }

    pub(crate) fn server_env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.server_env.push((name, value.into()));
        self
    }

    pub(crate) fn server_arg(mut self, arg: &'static str) -> Self {
        self.server_args.push(arg);
        self
    }

    /// With a port of the agent's for each of these tools, the first of which the site's own calls go to.
    pub(crate) fn tools(mut self, tools: &[&'static str]) -> Self {
        self.tools = tools.to_vec();
        self
    }

    /// With an agent that may have no more than so many descriptors.
    pub(crate) fn agent_descriptors(mut self, limit: u64) -> Self {
        self.agent_hard_limit = Some(limit);
        self
    }

    /// Everything but daemons.
    pub(crate) fn prepare(self) -> Site {
        let folder = Folder::create("carapace-e2e").unwrap();
        let upstream = Upstream::start(self.upstream.clone()).unwrap();
        let site = Site {
            agent: None,
            server: None,
            agent_addr: free_addr(),
            server_addr: free_addr(),
            upstream_url: self.upstream_url.clone().unwrap_or_else(|| upstream.url()),
            upstream,
            folder,
            setup: self,
        };
        site.write_policy(&site.setup.policy);
        fs::create_dir(site.folder.join("bin")).unwrap();
        site
    }

    /// The server, and no agent.
    pub(crate) fn start_server(self) -> Site {
        let mut site = self.prepare();
        site.start_server();
        site
    }

    /// Both daemons.
    pub(crate) fn start(self) -> Site {
        let mut site = self.start_server();
        site.start_agent();
        site
    }
}

/// What is there. Dropped, its daemons are killed and its folder is removed.
pub(crate) struct Site {
    agent: Option<Daemon>,
    server: Option<Daemon>,
    /// Where they are, or were and shall be again.
    agent_addr: SocketAddr,
    server_addr: SocketAddr,
    upstream_url: String,
    pub(crate) upstream: Upstream,
    pub(crate) folder: Folder,
    setup: Setup,
}

impl Site {
    // ---- files ----

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn policy_file(&self) -> PathBuf {
        self.path("policy.yaml")
    }

    pub(crate) fn audit_log(&self) -> PathBuf {
        self.path("audit.log")
    }

    /// Replaces the policy file, as an editor does.
    pub(crate) fn write_policy(&self, policy: &str) {
        let new = self.path("policy.yaml.new");
        fs::write(&new, policy.replace("{upstream}", &self.upstream_url)).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
        fs::rename(&new, self.policy_file()).unwrap();
    }

    /// A new file that may be run.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        path
    }

    /// Puts another upstream into the policy file.
    pub(crate) fn set_upstream_url(&mut self, url: String) {
        self.upstream_url = url;
        self.write_policy(&self.setup.policy);
    }

    // ---- daemons ----

    pub(crate) fn server_launch(&self) -> Launch {
        let mut launch = Launch::new(binaries().path("carapace-server"))
            .arg("--listen")
            .arg(self.server_addr.to_string())
            .env("CARAPACE_POLICY_FILE", self.policy_file())
            .env("CARAPACE_AUDIT_LOG", self.audit_log())
            .env("CARAPACE_GATEWAY_SOCKET", self.path("gateway.sock"));
        for (name, value) in &self.setup.server_env {
            launch = launch.env(name, value);
        }
        self.setup.server_args.iter().fold(launch, |launch, arg| launch.arg(arg))
    }

    pub(crate) fn agent_launch(&self) -> Launch {
        let agent = binaries().path("carapace-agent");
        let launch = match self.setup.agent_hard_limit {
            None => Launch::new(agent),
            Some(limit) => {
                Launch::new("/usr/bin/prlimit").arg(format!("--nofile={limit}:{limit}")).arg(agent)
            }
        };
        let launch = launch
            .env("CARAPACE_SERVER_HOST", self.server_addr.ip().to_string())
            .env("CARAPACE_SERVER_PORT", self.server_addr.port().to_string())
            .env("CARAPACE_CLI_SOCKET", self.path("agent.sock"));
        if self.setup.tools.is_empty() {
            return launch
                .env("CARAPACE_HTTP_LISTEN_ADDR", self.agent_addr.ip().to_string())
                .env("CARAPACE_HTTP_PORT", self.agent_addr.port().to_string());
        }
        let tools: Vec<_> = self.setup.tools.iter().map(|tool| format!("{tool}=127.0.0.1:0")).collect();
        launch.env("CARAPACE_HTTP_TOOLS", tools.join(","))
    }

    /// Starts the server, where it was before if it was.
    pub(crate) fn start_server(&mut self) {
        let server = Daemon::start(&self.server_launch(), 0).unwrap_or_else(|error| panic!("{error}"));
        self.server_addr = server.addr();
        self.server = Some(server);
    }

    /// Starts the agent, where it was before if it was, and waits for its link if there is a server.
    pub(crate) fn start_agent(&mut self) {
        let sockets = self.setup.tools.len().max(1);
        let agent = Daemon::start(&self.agent_launch(), sockets).unwrap_or_else(|error| panic!("{error}"));
        self.agent_addr = agent.addr();
        self.agent = Some(agent);
        if self.server.is_some() {
            wait_for("the agent's link", LONG, || (self.get("/health").status == 200).then_some(()));
        }
    }

    pub(crate) fn server(&mut self) -> &mut Daemon {
        self.server.as_mut().unwrap()
    }

    pub(crate) fn agent(&mut self) -> &mut Daemon {
        self.agent.as_mut().unwrap()
    }

    pub(crate) fn server_pid(&self) -> u32 {
        self.server.as_ref().unwrap().pid()
    }

    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().pid()
    }

    pub(crate) fn kill_server(&mut self) {
        kill(self.server.take());
    }

    pub(crate) fn kill_agent(&mut self) {
        kill(self.agent.take());
    }

    /// Puts the server elsewhere.
    pub(crate) fn set_server_addr(&mut self, addr: SocketAddr) {
        self.server_addr = addr;
    }

    pub(crate) fn server_addr(&self) -> SocketAddr {
        self.server_addr
    }

    pub(crate) fn server_port(&self) -> String {
        self.server_addr.port().to_string()
    }

    pub(crate) fn agent_addr(&self) -> SocketAddr {
        self.agent_addr
    }

    /// Where the agent speaks for a tool.
    pub(crate) fn addr_of(&self, tool: &str) -> SocketAddr {
        let log = self.agent.as_ref().unwrap().log();
        let addr = log.iter().find_map(|line| {
            let (addr, rest) = line.split_once("listening on ")?.1.split_once(" for ")?;
            (rest == tool).then(|| addr.parse().unwrap())
        });
        addr.unwrap_or_else(|| panic!("nobody listens for {tool}: {log:?}"))
    }

    // ---- the VM's side ----

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.agent_addr)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.agent_addr)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        let mut connection = self.connect();
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.agent_addr));
        connection.answer()
    }

    /// Calls, as OpenClaw does.
    pub(crate) fn call(&self, body: impl AsRef<[u8]>) -> Answer {
        let mut connection = self.connect();
        connection.call(body);
        connection.answer()
    }

    /// Opens an event stream.
    pub(crate) fn events(&self, path: &str) -> EventStream {
        let mut connection = self.connect();
        connection.send(format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n",
            self.agent_addr
        ));
        EventStream::begin(connection)
    }

    /// A tool through the shim, by a symlink in a folder of its own.
    pub(crate) fn tool(&self, name: &str) -> Command {
        let link = self.path("bin").join(name);
        if !link.exists() {
            // Another test thread of this site may be quicker.
            let _ = symlink(binaries().path("carapace-shim"), &link);
        }
        let mut command = Command::new(link);
        command.env("CARAPACE_AGENT_SOCKET", self.path("agent.sock"));
        command
    }

    // ---- the audit log ----

    /// The records so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.audit_log()).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "half a record: {text:?}");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    /// The records, once there are so many; no more must come of what has been done.
    pub(crate) fn wait_for_records(&self, count: usize) -> Vec<Value> {
        wait_for("audit records", LONG, || Some(self.records()).filter(|records| records.len() >= count))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // At once: those that are to end well are ended by their tests.
        self.kill_agent();
        self.kill_server();
    }
}

fn kill(daemon: Option<Daemon>) {
    if let Some(mut daemon) = daemon {
        let _ = daemon.signal(Signal::SIGKILL);
        let _ = daemon.wait(LONG);
    }
}
