//! The program as its users run it: what it prints where, and with which exit code it ends.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use carapace_debug::rig::Folder;

const POLICY: &str = r#"tools:
  signal-cli:
    type: http
    upstream: "http://127.0.0.1:18080"
    jsonrpc_allow_methods: [send, version]
    jsonrpc_param_filters:
      send: { field: recipientNumber, allow_patterns: ["+1*"], deny_patterns: ["+15551234567"] }
"#;

const LOG: &str = r#"{"timestamp":"2026-02-15T10:00:00.000001Z","event":"decision","request_id":"a-1","tool":"signal-cli","action_type":"http","policy_result":"allow","client":"vm-1","method":"version"}
{"timestamp":"2026-02-15T10:00:00.000002Z","event":"outcome","request_id":"a-1","tool":"signal-cli","action_type":"http","status":200,"duration_us":1500}
{"timestamp":"2026-02-15T11:00:00.000003Z","event":"decision","request_id":"a-2","tool":"op","action_type":"cli","policy_result":"deny","client":"vm-2","argv":["item","delete"]}
"#;

fn debug(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carapace-debug"));
    command.args(args).env_remove("CARAPACE_AUDIT_LOG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    ended(&debug(args).output().expect("runs"))
}

fn ended(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn file(folder: &Folder, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).expect("a file");
    path
}

#[test]
fn wrong_command_lines_end_with_64() {
    for args in [
        &[][..],
        &["nope"],
        &["audit", "--since", "yesterday"],
        &["health", "--port", "x"],
        &["demo", "--upstream", "x"],
    ] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (Some(64), ""), "{args:?}");
        assert!(!stderr.is_empty());
    }
    assert_eq!(run(&["--version"]).0, Some(0));
    assert_eq!(run(&["demo", "--help"]).0, Some(0));
}

#[test]
fn audit_chooses_records() {
    let folder = Folder::create("carapace-debug-test").expect("a folder");
    let log = file(&folder, "audit.log", &format!("{LOG}{{\"torn"));
    let log = log.to_str().expect("text");
    let lines: Vec<&str> = LOG.lines().collect();
    let chosen = |args: &[&str]| {
        let (code, stdout, stderr) = run(&[&["audit", "--format", "json", "--file", log], args].concat());
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        lines.iter().map(|line| stdout.contains(line)).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&[]), [true, true, true]);
    assert_eq!(chosen(&["--tool", "signal-cli"]), [true, true, false]);
    assert_eq!(chosen(&["--result", "deny"]), [false, false, true]);
    assert_eq!(chosen(&["--action", "cli", "--client", "vm-2"]), [false, false, true]);
    assert_eq!(chosen(&["--limit", "2"]), [false, true, true]);
    assert_eq!(chosen(&["--tool", "signal-cli", "--limit", "1"]), [false, true, false]);
    assert_eq!(chosen(&["--since", "2026-02-15T10:30:00Z"]), [false, false, true]);
    assert_eq!(chosen(&["--until", "2026-02-15T10:30:00Z"]), [true, true, false]);
    assert_eq!(chosen(&["--since", "5m"]), [false, false, false]);
    let by_environment = debug(&["audit"]).env("CARAPACE_AUDIT_LOG", log).output().expect("runs");
    let (code, stdout, _) = ended(&by_environment);
    assert_eq!((code, stdout.lines().count()), (Some(0), 3));
    assert!(stdout.contains("deny   op item delete"), "{stdout}");
    assert_eq!(run(&["audit", "--file", "/nowhere/audit.log"]).0, Some(69));
}

#[test]
fn a_followed_log_is_followed_over_its_rotation() {
    let folder = Folder::create("carapace-debug-test").expect("a folder");
    let log = file(&folder, "audit.log", LOG);
    let record = |number: usize| format!("{{\"tool\":\"t\",\"number\":{number}}}\n");
    let append = |text: &str| {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(&log).expect("opens");
        file.write_all(text.as_bytes()).expect("written");
    };
    let mut command = debug(&["audit", "--follow", "--tool", "t", "--format", "json", "--file"]);
    let mut child = command.arg(&log).stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("goes on").expect("text");
    append(&record(1));
    assert_eq!(next(), record(1).trim());
    // Written just before the rotation, and after it.
    append(&record(2));
    fs::rename(&log, folder.join("audit.log.1")).expect("renamed");
    append(&record(3));
    assert_eq!((next().as_str(), next().as_str()), (record(2).trim(), record(3).trim()));
    // Half a record is none.
    append("{\"tool\":\"t\",");
    append("\"number\":4}\n");
    assert_eq!(next(), record(4).trim());
    child.kill().expect("killed");
    child.wait().expect("ends");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let folder = Folder::create("carapace-debug-test").expect("a folder");
    let log = file(&folder, "audit.log", &LOG.repeat(5_000));
    let mut command = debug(&["audit", "--file"]);
    let mut child = command.arg(log).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    drop(child.stdout.take());
    let (code, _, stderr) = ended(&child.wait_with_output().expect("ends"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn policy_decides_as_the_guide_shows() {
    let folder = Folder::create("carapace-debug-test").expect("a folder");
    let policy = file(&folder, "policy.yaml", POLICY);
    let policy = policy.to_str().expect("text");
    let denied = r#"{
  "tool": "signal-cli",
  "method": "send",
  "params": {"recipientNumber": "+15551234567"}
}"#;
    let (code, stdout, _) = run(&["policy", policy, denied]);
    assert_eq!(code, Some(1));
    assert!(
        stdout.starts_with("deny signal-cli send\n") && stdout.contains("deny_patterns[0] (line 7)"),
        "{stdout}"
    );
    let request = file(&folder, "request.json", r#"{"tool":"signal-cli","method":"version"}"#);
    let (code, stdout, _) = run(&["--format", "json", "policy", policy, request.to_str().expect("text")]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains(r#""policy_result":"allow""#), "{stdout}");
    let mut piped =
        debug(&["policy", policy, "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    piped.stdin.take().expect("piped").write_all(denied.as_bytes()).expect("written");
    assert_eq!(piped.wait_with_output().expect("ends").status.code(), Some(1));
    assert_eq!(run(&["policy", policy, r#"{"tool":"signal-cli"}"#]).0, Some(64));
    assert_eq!(run(&["policy", "/nowhere/policy.yaml", denied]).0, Some(78));
    let broken = file(&folder, "broken.yaml", "tools:\n  x: {type: smtp}\n");
    let (code, _, stderr) = run(&["policy", broken.to_str().expect("text"), denied]);
    assert_eq!(code, Some(78));
    assert!(stderr.contains("broken.yaml:2:"), "{stderr}");
}

#[test]
fn health_of_nobody_is_69() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
    let (code, stdout, stderr) = run(&["health", "--port", &port.to_string()]);
    assert_eq!((code, stdout.as_str()), (Some(69), ""));
    assert!(stderr.contains("refused"), "{stderr}");
}
