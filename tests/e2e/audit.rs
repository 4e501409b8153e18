//! The audit log: what is in it, when, and what happens when nothing can be.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use carapace_debug::upstream::Fault;
use serde_json::Value;

use crate::kit::{LONG, Running, Setup, Site, policy_with_tools, run, skip, wait_until};

const VERSION: &str = r#"{"jsonrpc":"2.0","id":"v","method":"version"}"#;

fn setup() -> Setup {
    let keys = "argv_allow_patterns: ['-c *']\nstdin: true";
    Setup::policy(policy_with_tools(&[("sh", "/bin/sh", keys)]))
}

fn script(site: &Site, text: &str) -> Command {
    let mut command = site.tool("sh");
    command.arg("-c").arg(text);
    command
}

/// docs/audit.md: "written **before** its effect"
#[test]
fn a_decision_is_in_the_log_before_its_effect() {
    for sync in ["interval", "turn", "never"] {
        let site = setup().server_env("CARAPACE_AUDIT_SYNC", sync).start();
        site.upstream.set_fault(Some(Fault::Stall));
        let mut connection = site.connect();
        connection.call(VERSION);
        assert!(site.upstream.wait_for_requests(1, LONG));
        let records = site.records();
        assert_eq!(records.len(), 1, "{sync}: {records:?}");
        assert_eq!(
            (&records[0]["event"], &records[0]["policy_result"]),
            (&"decision".into(), &"allow".into())
        );
        drop(connection);
        assert_eq!(site.wait_for_records(2)[1]["event"], "outcome");

        // A tool finds its own record.
        let text = format!("tail -n 1 '{}'", site.audit_log().display());
        let seen: Value = serde_json::from_str(&run(&mut script(&site, &text)).out()).unwrap();
        assert_eq!((&seen["event"], &seen["tool"]), (&"decision".into(), &"sh".into()), "{sync}");
    }
}

/// docs/audit.md: "when it was allowed, an `outcome`, with the same `request_id`"; "What was refused has no
/// outcome: nothing happened."
#[test]
fn every_call_has_its_records() {
    let site = setup().start();
    site.call(VERSION);
    site.call(r#"{"jsonrpc":"2.0","id":1,"method":"removeAccount"}"#);
    site.call("{");
    site.call(r#"[{"jsonrpc":"2.0","id":1,"method":"version"},{"jsonrpc":"2.0","id":2,"method":"x"}]"#);
    site.get("/api/v1/check");
    site.get("/api/v1/about");
    drop(site.events("/api/v1/events"));
    run(&mut script(&site, "exit 3"));
    run(site.tool("sh").arg("nonsense"));
    run(&mut site.tool("unknown"));
    let count = |records: &[Value]| records.iter().filter(|record| record["event"] == "outcome").count();
    wait_until("all outcomes", LONG, || count(&site.records()) == 5);
    let records = site.records();
    let mut calls: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for record in &records {
        assert!(record["timestamp"].is_string() && record["tool"].is_string(), "{record}");
        calls.entry(record["request_id"].as_str().unwrap().to_owned()).or_default().push(record);
    }
    assert_eq!(calls.len(), 10, "{records:#?}");
    for records in calls.values() {
        let is_outcome: Vec<_> = records.iter().map(|record| record["event"] == "outcome").collect();
        let is_allowed = records.iter().any(|record| record["policy_result"] == "allow");
        let decisions = is_outcome.iter().filter(|is_outcome| !**is_outcome).count();
        assert_eq!(is_outcome.len() - decisions, usize::from(is_allowed), "{records:#?}");
        assert!(is_outcome.is_sorted(), "an outcome before its decision: {records:#?}");
        for record in records.iter().take(decisions) {
            assert_eq!(
                record["client"],
                "uid 0".replace('0', &nix::unistd::getuid().to_string()),
                "{record}"
            );
            assert_eq!(record["policy_version"].as_str().map(str::len), Some(16), "{record}");
            assert!(record["policy_result"] == "allow" || record["reason"].is_string(), "{record}");
        }
        if is_allowed {
            let outcome = records.last().unwrap();
            assert!(outcome["duration_us"].is_u64() && outcome["bytes_out"].is_u64(), "{outcome}");
        }
    }
    assert!(records.windows(2).all(|pair| pair[0]["timestamp"].as_str() <= pair[1]["timestamp"].as_str()));
}

/// docs/audit.md: "the part before the dash changes with each start of the server"
#[test]
fn request_ids_are_never_used_twice() {
    let mut site = setup().start();
    site.call(VERSION);
    site.wait_for_records(2);
    site.kill_server();
    site.start_server();
    wait_until("calls work again", LONG, || site.call(VERSION).status == 200);
    let records = site.wait_for_records(4);
    assert_ne!(records[0]["request_id"], records[2]["request_id"]);
}

/// `audit: { enabled: false }` is for one tool.
#[test]
fn a_tool_that_is_not_audited_leaves_no_record() {
    let keys = "argv_allow_patterns: ['']\naudit: { enabled: false }";
    let site = Setup::policy(policy_with_tools(&[("ok", "/bin/true", keys)])).start();
    assert_eq!(run(&mut site.tool("ok")).code(), Some(0));
    site.call(VERSION);
    let records = site.wait_for_records(2);
    assert!(records.iter().all(|record| record["tool"] == "signal-cli"), "{records:?}");
}

/// docs/audit.md: "JSON lines": what a caller writes cannot end one or begin another.
#[test]
fn a_record_is_one_line_whatever_is_in_it() {
    let site = setup().start();
    let forged = "x\n{\"event\":\"outcome\"}\r\n\u{1b}[2J\u{2028}\"\\";
    run(site.tool("sh").args(["-c", forged]));
    let method = serde_json::to_string(forged).unwrap();
    site.call(format!(r#"{{"jsonrpc":"2.0","id":1,"method":{method}}}"#));
    let mut connection = site.connect();
    connection.send(format!("GET /api/v1/check?x=%0a HTTP/1.1\r\nHost: {}\r\n\r\n", connection.host()));
    connection.answer();
    let records = site.wait_for_records(3);
    assert!(records.iter().all(|record| record["request_id"].is_string()), "{records:?}");
    assert!(records.iter().any(|record| record["argv"][1] == forged), "{records:?}");
    let text = fs::read_to_string(site.audit_log()).unwrap();
    assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
}

/// Limits what the server may write to any file, as a full disk would; `None` makes room again.
fn limit_files(site: &Site, bytes: Option<u64>) -> bool {
    let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &site.server_pid().to_string(), &format!("--fsize={limit}:")]);
    match prlimit.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(error) => {
            skip(&format!("prlimit: {error}"));
            false
        }
    }
}

/// docs/audit.md: "calls are refused with -32603 (`audit log unavailable`; 125 from a shim) until it can"; "A
/// short write is taken back, so that the file holds whole lines only."
#[test]
fn a_full_disk_refuses_calls_until_there_is_room() {
    let mut site = setup().start();
    site.call(VERSION);
    site.wait_for_records(2);
    let size = fs::metadata(site.audit_log()).unwrap().len();
    // Half a record would fit.
    if !limit_files(&site, Some(size + 100)) {
        return;
    }
    for _ in 0..3 {
        let answer = site.call(VERSION);
        assert_eq!((answer.code(), answer.json()["id"].clone()), (-32603, "v".into()), "{answer:?}");
        assert!(answer.text().contains("audit log"), "{}", answer.text());
        // Not even whether it would be allowed is told without a record.
        let batch =
            site.call(format!(r#"[{VERSION},{{"jsonrpc":"2.0","id":2,"method":"removeAccount"}}]"#)).json();
        let answers = batch.as_array().unwrap().iter();
        let told: Vec<_> =
            answers.map(|answer| (answer["id"].clone(), answer["error"]["code"].clone())).collect();
        assert_eq!(told, [("v".into(), (-32603).into()), (2.into(), (-32603).into())]);
        let ended = run(&mut script(&site, "echo x"));
        assert_eq!((ended.code(), ended.out().as_str()), (Some(125), ""), "{}", ended.err());
        assert!(ended.err().starts_with("carapace:") && ended.err().contains("audit log"), "{}", ended.err());
    }
    assert_eq!(site.upstream.requests().len(), 1);
    assert_eq!(site.records().len(), 2);
    assert!(site.server().log().iter().any(|line| line.contains("cannot be written")));
    assert!(limit_files(&site, None));
    wait_until("calls go through", Duration::from_secs(3), || site.call(VERSION).status == 200);
    let before = site.records().len();
    assert_eq!(run(&mut script(&site, "echo x")).out(), "x\n");
    site.wait_for_records(before + 2);
}

/// docs/audit.md: "Outcomes of what has already happened wait in memory"; "and are written first when there
/// is room"
#[test]
fn an_outcome_waits_for_room() {
    let site = setup().start();
    let mut running = Running::start(&mut script(&site, "read -r line; exit 5"));
    site.wait_for_records(1);
    let size = fs::metadata(site.audit_log()).unwrap().len();
    if !limit_files(&site, Some(size)) {
        return;
    }
    running.feed(b"\n");
    let ended = running.end();
    assert_eq!(ended.code(), Some(5), "what has happened is told: {}", ended.err());
    assert_eq!(site.records().len(), 1);
    assert!(limit_files(&site, None));
    let records = site.wait_for_records(2);
    assert_eq!((&records[1]["event"], &records[1]["exit_code"]), (&"outcome".into(), &5.into()));
    assert_eq!(records[0]["request_id"], records[1]["request_id"]);
}

/// guide: "Follow mode (tail new entries)"
#[test]
fn a_followed_log_shows_records_as_they_come() {
    let site = setup().start();
    let mut follow = Command::new(crate::kit::binaries().path("carapace-debug"));
    follow.args(["audit", "--follow", "--format", "json"]).env("CARAPACE_AUDIT_LOG", site.audit_log());
    let running = Running::start(&mut follow);
    site.call(VERSION);
    running.wait_for_output("\"outcome\"");
    running.signal(nix::sys::signal::Signal::SIGINT);
}
