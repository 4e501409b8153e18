//! The daemons as processes: what they say, how they end, and what they leave.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that is surprised fails"
)]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

const POLICY: &str = "tools:\n  echo: { type: cli, binary: /bin/echo, argv_allow_patterns: [\"**\"] }\n";

/// A folder with a policy.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        site.write_policy(POLICY);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_policy(&self, text: &str) {
        fs::write(self.path("policy.yaml"), text).unwrap();
        fs::set_permissions(self.path("policy.yaml"), Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_carapace-server"));
        command.arg("--policy").arg(self.path("policy.yaml"));
        command.arg("--audit-log").arg(self.path("audit.log"));
        command.args(["--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }
}

/// A daemon that listens. Dropped, it is killed.
struct Daemon {
    child: Child,
    log: Receiver<String>,
    addr: SocketAddr,
}

impl Daemon {
    fn start(site: &Site) -> Self {
        Self::of(&mut site.command())
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut server = Self { child, log, addr: ([0, 0, 0, 0], 0).into() };
        let line = server.wait_for("listening on ");
        let (_, addr) = line.split_once("listening on ").unwrap();
        server.addr = addr.split(' ').next().unwrap().parse().unwrap();
        server
    }

    fn wait_for(&mut self, wanted: &str) -> String {
        loop {
            let line = self.log.recv_timeout(Duration::from_secs(20));
            let line = line.unwrap_or_else(|error| panic!("it does not say {wanted:?}: {error}"));
            if line.contains(wanted) {
                return line;
            }
        }
    }

    /// A number out of what the kernel says of the process.
    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_server_says_where_it_listens_and_makes_its_log_at_the_start() {
    let site = Site::new();
    let server = Daemon::start(&site);
    assert!(server.addr.port() != 0 && server.addr.ip().is_loopback());
    TcpStream::connect(server.addr).unwrap();
    assert_eq!(fs::metadata(site.path("audit.log")).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn it_ends_by_itself_when_asked_to() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let site = Site::new();
        let mut server = Daemon::start(&site);
        server.signal(signal);
        server.wait_for("drained; ending");
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        assert!(TcpStream::connect(server.addr).is_err());
    }
}

/// `nohup` and a shell's `&` ignore signals for us.
#[test]
fn it_ends_also_where_signals_were_ignored() {
    let site = Site::new();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' HUP INT TERM; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_carapace-server")]);
    command.args(site.command().get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = Daemon::of(&mut command);
    server.signal(Signal::SIGINT);
    server.wait_for("drained; ending");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reload_takes_a_good_policy_and_keeps_the_old_one_against_a_bad_one() {
    let site = Site::new();
    let mut server = Daemon::start(&site);
    site.write_policy("tools:\n  echo: { typ: cli }\n");
    server.signal(Signal::SIGHUP);
    server.wait_for("the old one stays in force");
    server.wait_for("policy.yaml:2:");
    site.write_policy(&format!(
        "{POLICY}  other: {{ type: cli, binary: /bin/true, argv_allow_patterns: [\"**\"] }}\n"
    ));
    server.signal(Signal::SIGHUP);
    server.wait_for("is in force");
}

#[test]
fn a_log_that_was_rotated_is_opened_anew() {
    let site = Site::new();
    let mut server = Daemon::start(&site);
    fs::rename(site.path("audit.log"), site.path("audit.log.1")).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for("opened anew");
    assert!(site.path("audit.log").exists());
}

#[test]
fn logs_are_text_or_json() {
    let site = Site::new();
    let mut server = Daemon::of(site.command().env("CARAPACE_LOG_JSON", "true"));
    server.signal(Signal::SIGTERM);
    let line = server.wait_for("drained");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["level"], &value["message"]), (&"info".into(), &"drained; ending".into()));
}

#[test]
fn what_is_wrong_has_an_exit_status() {
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let server = Daemon::start(&site);
    for (args, code, text) in [
        (vec!["--no-such-flag"], 64, "'--no-such-flag'"),
        (vec!["--listen", "0.0.0.0:0"], 64, "--insecure"),
        (vec!["--policy", "/nonexistent"], 78, "/nonexistent: No such file"),
        (vec!["--audit-log", "/nonexistent/audit.log"], 78, "audit log /nonexistent/audit.log: "),
        (vec![], 69, "audit.log: another process writes it"),
        (vec!["--audit-log", "/dev/null", "--listen", &taken], 69, "cannot listen on 127.0.0.1:"),
    ] {
        let args: Vec<_> = args.into_iter().collect();
        // A flag may be given once; the last word is the test's.
        let base = site.command();
        let mut command = Command::new(base.get_program());
        for pair in base.get_args().collect::<Vec<_>>().chunks(2) {
            if !args.iter().any(|arg| *arg == pair[0]) {
                command.args(pair);
            }
        }
        let output = command.args(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("carapace-server: "), "{args:?}: {}", stderr(&output));
    }
    drop(server);
}

#[test]
fn a_policy_that_does_not_parse_is_shown_with_its_place() {
    let site = Site::new();
    site.write_policy(
        "tools:\n  echo:\n    type: cli\n    binary: echo\n    argv_allow_patterns: [\"**\"]\n",
    );
    for args in [vec![], vec!["--check"]] {
        let output = site.run(&args);
        assert_eq!(output.status.code(), Some(78));
        assert!(stderr(&output).contains("policy.yaml:4:"), "{}", stderr(&output));
        assert!(stderr(&output).contains("4 |     binary: echo\n"), "{}", stderr(&output));
    }
    assert!(!site.path("audit.log").exists(), "nothing was started");
}

#[test]
fn a_check_starts_nothing() {
    let site = Site::new();
    let output = site.run(&["--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("policy.yaml: fine\n"));
    assert!(!site.path("audit.log").exists());
}

#[test]
fn the_configuration_is_printed_with_its_origins() {
    let site = Site::new();
    let output = site.command().arg("--print-config").env("CARAPACE_LOG_LEVEL", "debug").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("listen"), ["127.0.0.1:0", "--listen"]);
    assert_eq!(line("log-level"), ["debug", "CARAPACE_LOG_LEVEL"]);
    assert_eq!(line("audit-sync"), ["interval", "default"]);
}

#[test]
fn help_and_version_go_to_stdout() {
    let site = Site::new();
    let help = site.run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("CARAPACE_POLICY_FILE"));
    let version = site.run(&["--version"]);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("carapace-server "));
}

#[test]
fn garbage_costs_a_connection_and_nothing_else() {
    let site = Site::new();
    let server = Daemon::start(&site);
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 100_000], &[0; 9]] {
        let mut stream = TcpStream::connect(server.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    server.signal(Signal::SIGTERM);
    let mut server = server;
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    server.wait_for("drained");
}

#[test]
fn an_idle_server_is_small_and_has_one_thread() {
    let site = Site::new();
    let server = Daemon::start(&site);
    assert_eq!(server.status("Threads:"), 1);
    // Most of it is the program's own pages; this build is not optimised, and still the figure says something.
    assert!(server.status("RssAnon:") < 1024, "{} KiB", server.status("RssAnon:"));
}

fn agent(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carapace-agent"));
    command.env("CARAPACE_HTTP_PORT", "0").env("CARAPACE_SERVER_PORT", "9");
    command.env("HOME", dir).env_remove("XDG_RUNTIME_DIR");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn an_agent_says_where_it_listens_for_each_tool_and_for_shims() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let mut command = agent(dir.path());
    command.env("CARAPACE_CLI_SOCKET", &socket);
    command.args(["--http-tools", "signal-cli=127.0.0.1:0,github=[::1]:0"]);
    let mut agent = Daemon::of(&mut command);
    assert!(agent.wait_for("listening on [::1]:").ends_with(" for github"));
    agent.wait_for(&format!("listening on {} for shims", socket.display()));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn an_agents_socket_that_was_asked_for_must_work() {
    let dir = tempfile::tempdir().unwrap();
    let occupied = dir.path().join("agent.sock");
    fs::write(&occupied, "precious").unwrap();
    for path in [occupied.to_str().unwrap(), "/nonexistent/agent.sock"] {
        let output = agent(dir.path()).env("CARAPACE_CLI_SOCKET", path).output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("cannot listen on {path}: ")), "{}", stderr(&output));
    }
    assert_eq!(fs::read_to_string(&occupied).unwrap(), "precious");
}

#[test]
fn a_port_of_an_agent_that_is_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let output = agent(dir.path()).env("CARAPACE_HTTP_PORT", addr.port().to_string()).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let expected = format!("carapace-agent: cannot listen on {addr}: ");
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
}

#[test]
fn an_idle_agent_is_small_and_has_one_thread() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = agent(dir.path());
    command.env("CARAPACE_CLI_SOCKET", dir.path().join("agent.sock"));
    let agent = Daemon::of(&mut command);
    assert_eq!(agent.status("Threads:"), 1);
    assert!(agent.status("RssAnon:") < 1024, "{} KiB", agent.status("RssAnon:"));
}
