//! The server's own life: health, signals, reloading.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::kit::{Connection, LONG, Setup, binaries, debug, policy_with_tools, run, skip, wait_until};

/// guide: "carapace-debug health --port 8765 # Should show: Server is healthy, 1 connection"
#[test]
fn health_is_what_the_guide_shows() {
    let site = Setup::guide().start_server();
    let health = debug(&["health", "--port", &site.server_port()]);
    assert_eq!((health.code(), health.err().as_str()), (Some(0), ""));
    assert_eq!(health.out().lines().next(), Some("Server is healthy, 1 connection"));

    let health = debug(&["--format", "json", "health", "--port", &site.server_port()]);
    let health: serde_json::Value = serde_json::from_slice(&health.stdout).unwrap();
    assert_eq!((&health["status"], &health["connections"]), (&"ok".into(), &1.into()));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
}

/// guide: "Agent can't reach server ... Verify server is listening"
#[test]
fn health_without_a_server_fails() {
    let mut site = Setup::guide().start_server();
    site.kill_server();
    let health = debug(&["health", "--port", &site.server_port()]);
    assert_eq!((health.code(), health.out().as_str()), (Some(69), ""));
    assert!(health.err().contains(&site.server_port()), "{}", health.err());
}

/// docs/deploy.md: "it serves root, its own account, and the uids that `clients:` names"
#[test]
fn another_account_is_served_only_when_the_policy_names_it() {
    const NOBODY: &str = "65534";
    let mut site = Setup::guide().start_server();
    // Where the folder of the build is closed to others, they need a copy.
    let copy = std::env::temp_dir().join(format!("carapace-e2e-debug-{}", std::process::id()));
    fs::copy(binaries().path("carapace-debug"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&copy);
        command
    };
    let can = Command::new("setpriv").args(["--reuid", NOBODY, "--clear-groups", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        fs::remove_file(&copy).unwrap();
        return skip("cannot become another account");
    }
    let port = site.server_port();
    let health = || run(as_nobody().args(["health", "--port", &port]));
    let refused = health();
    site.write_policy(&format!(
        "{}clients:\n  - {{ uid: {NOBODY}, tools: [signal-cli] }}\n",
        crate::kit::GUIDE
    ));
    site.server().signal(Signal::SIGHUP).unwrap();
    wait_until("the account is served", LONG, || health().code() == Some(0));
    fs::remove_file(&copy).unwrap();
    assert_eq!(refused.code(), Some(69));
    assert!(refused.err().contains("refused"), "{}", refused.err());
}

fn policy_version(port: &str) -> String {
    let health = debug(&["--format", "json", "health", "--port", port]);
    let health: serde_json::Value = serde_json::from_slice(&health.stdout).unwrap();
    health["policy_version"].as_str().unwrap().to_owned()
}

/// docs/deploy.md: "SIGHUP reads the policy again and reopens the audit log; a policy with a mistake is
/// logged, and the one in force stays."
#[test]
fn a_reload_puts_the_new_policy_in_force_and_never_a_broken_one() {
    let mut site = Setup::guide().start_server();
    let port = site.server_port();
    let first = policy_version(&port);

    site.write_policy("tools: {}\n");
    site.server().signal(Signal::SIGHUP).unwrap();
    wait_until("the new policy", LONG, || policy_version(&port) != first);
    let second = policy_version(&port);

    site.write_policy("tools:\n  x: {}\n");
    let broken = format!("{}:2:", site.policy_file().display());
    site.server().signal(Signal::SIGHUP).unwrap();
    assert!(site.server().wait_for_log(&broken, LONG), "{:?}", site.server().log());
    assert_eq!(policy_version(&port), second);
}

/// docs/deploy.md: "SIGHUP reads the policy again and reopens the audit log"
#[test]
fn a_log_that_was_moved_away_is_made_anew() {
    let mut site = Setup::guide().start_server();
    fs::rename(site.audit_log(), site.path("audit.log.1")).unwrap();
    site.server().signal(Signal::SIGHUP).unwrap();
    wait_until("a new audit log", LONG, || site.audit_log().exists());
    assert_eq!(fs::metadata(site.audit_log()).unwrap().permissions().mode() & 0o7777, 0o640);
}

/// docs/deploy.md: "reopens the audit log": no record is lost, and none doubled.
#[test]
fn calls_go_on_while_the_log_is_rotated() {
    let mut site = Setup::policy(policy_with_tools(&[])).start();
    let addr = site.agent_addr();
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    let calls = thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    let mut connection = Connection::open(addr);
                    let mut calls = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        connection.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
                        assert_eq!(connection.answer().status, 200);
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        for number in 0..5 {
            wait_until("records", LONG, || fs::metadata(site.audit_log()).unwrap().len() > 2000);
            fs::rename(site.audit_log(), site.path(&format!("audit.log.{number}"))).unwrap();
            site.server().signal(Signal::SIGHUP).unwrap();
            wait_until("a new file", LONG, || site.audit_log().exists());
        }
        is_over.store(true, Ordering::Relaxed);
        callers.into_iter().map(|caller| caller.join().unwrap()).sum::<usize>()
    });
    let records = || {
        let rotated = (0..5).map(|number| site.path(&format!("audit.log.{number}")));
        let files = rotated.chain([site.audit_log()]);
        let lines = files.flat_map(|file| {
            fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        });
        lines.map(|line| serde_json::from_str(&line).unwrap()).collect::<Vec<serde_json::Value>>()
    };
    wait_until("every record", LONG, || records().len() >= 2 * calls);
    let mut ids: Vec<_> =
        records().iter().map(|record| format!("{}{}", record["request_id"], record["event"])).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), records().len()), (2 * calls, 2 * calls));
}

/// docs/deploy.md: "SIGHUP reads the policy again": what was called within the window counts under the new
/// one, too.
#[test]
fn a_reload_does_not_forget_what_was_called() {
    let policy = policy_with_tools(&[]) + "    rate_limit: { max_requests: 2, window_secs: 60 }\n";
    let mut site = Setup::policy(policy).start();
    let version = r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#;
    assert_eq!(
        [site.call(version).json()["result"].is_object(), site.call(version).json()["result"].is_object()],
        [true; 2]
    );
    let first = policy_version(&site.server_port());
    let text = fs::read_to_string(site.policy_file()).unwrap();
    site.write_policy(&format!("{text}    timeout_secs: 29\n"));
    site.server().signal(Signal::SIGHUP).unwrap();
    wait_until("the new policy", LONG, || policy_version(&site.server_port()) != first);
    assert_eq!(site.call(version).code(), -32002);
}

/// docs/deploy.md: "SIGTERM and SIGINT drain"; "Exit codes: 0"
#[test]
fn a_server_with_nothing_to_do_ends_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut site = Setup::guide().start_server();
        site.server().signal(signal).unwrap();
        let ended = site.server().wait(LONG).unwrap().expect("it ends");
        assert_eq!(ended.code(), Some(0), "{:?}", site.server().log());
    }
}
