//! What the measurements share: a folder, the programs, and how long each takes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use carapace_debug::rig::{Binaries, Folder, Pair};

use crate::load::{self, Until};
use crate::nginx::Hops;
use crate::process::{cpu_seconds, wait_until};

/// How the measurements are to be taken.
#[derive(Debug, Clone)]
pub(crate) struct Bench {
    /// Where Carapace's programs are; `None`: only the others are measured.
    pub(crate) binaries: Option<Binaries>,
    /// Whether nginx is there to be compared with.
    pub(crate) has_nginx: bool,
    /// Whether strace is there to count with.
    pub(crate) has_strace: bool,
    /// How long one figure is measured in one round.
    pub(crate) time: Duration,
    /// Rounds; the median counts.
    pub(crate) rounds: usize,
}

/// Something to be measured: where to connect to, and whose CPU counts.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    pub(crate) pids: Vec<u32>,
}

/// Carapace, two nginx hops, and nothing, before the same upstream.
#[derive(Debug)]
pub(crate) struct Rivals {
    pub(crate) ours: Option<Target>,
    pub(crate) theirs: Option<Target>,
    pub(crate) direct: Target,
    // Kept running, and stopped before their folder goes.
    _pair: Option<Pair>,
    _hops: Option<Hops>,
    pub(crate) folder: Folder,
}

impl Rivals {
    pub(crate) fn start(bench: &Bench, folder: Folder, upstream: SocketAddr) -> io::Result<Self> {
        let pair =
            bench.binaries.as_ref().map(|binaries| start_pair(binaries, &folder, upstream)).transpose()?;
        let hops = bench.has_nginx.then(|| Hops::start(folder.path(), "hop", upstream)).transpose()?;
        let ours = pair.as_ref().map(|pair| Target {
            addr: pair.agent().addr(),
            pids: vec![pair.agent().pid(), pair.server().pid()],
        });
        let theirs = hops.as_ref().map(|hops| Target { addr: hops.addr(), pids: hops.pids().to_vec() });
        let direct = Target { addr: upstream, pids: Vec::new() };
        Ok(Self { ours, theirs, direct, _pair: pair, _hops: hops, folder })
    }
}

/// Starts a server and an agent, and waits until a call goes through.
pub(crate) fn start_pair(binaries: &Binaries, folder: &Folder, upstream: SocketAddr) -> io::Result<Pair> {
    let pair = Pair::start(binaries, folder.path(), &policy(upstream)).map_err(io::Error::other)?;
    let mut last = Ok(());
    let is_up = wait_until(Duration::from_secs(10), || {
        last = load::run(pair.agent().addr(), 1, Until::Calls(1)).map(|_| ());
        last.is_ok()
    });
    if is_up { Ok(pair) } else { last.map(|()| pair) }
}

/// As a deployment has one: a method list, filters on parameters, and some tools. Without a rate limit.
fn policy(upstream: SocketAddr) -> String {
    let mut text = format!(
        r#"tools:
  signal-cli:
    type: http
    upstream: "http://{upstream}"
    jsonrpc_allow_methods: [send, receive, listMessages, version]
    jsonrpc_deny_methods: [deleteEverything, removeAccount]
    jsonrpc_param_filters:
      send: {{ field: recipient, allow_patterns: ["+1*"], deny_patterns: ["+15551234567"] }}
"#
    );
    for tool in ["cat", "head", "sh", "true"] {
        text.push_str(&format!(
            "  \"{tool}\":
    type: cli
    binary: /bin/{tool}
    argv_allow_patterns: [\"*\"]
    stdin: true
    timeout_secs: 300
    max_output_bytes: 100000000000
"
        ));
    }
    text
}

/// CPU microseconds a thing that these processes use while `body` does as many things as it says; with what it returns.
pub(crate) fn cpu_us_each<T>(
    target: &Target,
    body: impl FnOnce() -> io::Result<T>,
    count: impl FnOnce(&T) -> f64,
) -> io::Result<(T, Option<f64>)> {
    let before = cpu_seconds(&target.pids)?;
    let done = body()?;
    let used = cpu_seconds(&target.pids)? - before;
    let each = (!target.pids.is_empty()).then(|| used * 1e6 / count(&done));
    Ok((done, each))
}
