//! The deployment guide, command by command.

use std::process::Command;

use serde_json::{Value, json};

use crate::kit::{LONG, Setup, Site, debug, run, wait_until};

fn send(recipient: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": "1", "method": "send", "params": { "recipientNumber": recipient, "message": "x" } })
}

/// guide: `curl -X POST http://127.0.0.1:8080/api/v1/rpc -H "Content-Type: application/json" -d
/// '{"jsonrpc":"2.0","id":"1","method":"version","params":{}}'` "Should return version info"
#[test]
fn curl_gets_the_version() {
    let site = Setup::guide().start();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-X", "POST", &site.url("/api/v1/rpc"), "-H", "Content-Type: application/json"]);
    curl.args(["-d", r#"{"jsonrpc":"2.0","id":"1","method":"version","params":{}}"#]);
    let ended = run(&mut curl);
    assert_eq!((ended.code(), ended.err().as_str()), (Some(0), ""));
    let answer: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(answer, json!({ "jsonrpc": "2.0", "id": "1", "result": { "version": "0.14.4" } }));
}

/// guide: `curl http://127.0.0.1:8080/health` "Should return: {"status":"ok","connections":1}"
#[test]
fn curl_gets_the_agent_s_health() {
    let site = Setup::guide().start();
    let ended = run(Command::new("curl").args(["-sS", &site.url("/health")]));
    assert!(ended.out().starts_with(r#"{"status":"ok","connections":1"#), "{}", ended.out());
    let health = site.get("/health");
    assert_eq!((health.status, health.field("content-type")), (200, Some("application/json")));
    assert_eq!(health.json()["status"], "ok");
}

/// guide: `allow_patterns: "+1*"  # Allow all US numbers`
#[test]
fn an_allowed_recipient_is_sent_to() {
    let site = Setup::guide().start();
    let request = send("+12025550123");
    let answer = site.call(request.to_string());
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")));
    assert_eq!(answer.json()["id"], "1");
    assert_eq!(answer.json()["result"]["results"][0]["recipientAddress"]["number"], "+12025550123");
    let calls = site.upstream.requests_to("/api/v1/rpc");
    assert_eq!(calls.iter().map(|call| call.json().unwrap()).collect::<Vec<_>>(), [request]);
}

fn is_denied(site: &Site, request: &Value) {
    let answer = site.call(request.to_string());
    assert_eq!((answer.status, answer.code()), (200, -32001), "{request}");
    assert_eq!(answer.json()["id"], "1");
    let calls = site.upstream.requests_to("/api/v1/rpc");
    assert!(calls.is_empty(), "{request} went on as {calls:?}");
}

/// guide: `deny_patterns: "+15551234567"  # Block spam numbers`
#[test]
fn a_denied_recipient_is_not_sent_to() {
    let site = Setup::guide().start();
    is_denied(&site, &send("+15551234567"));
    is_denied(&site, &send("+442071838750"));
}

/// guide: `jsonrpc_deny_methods: deleteEverything, removeAccount`; "Use strong policy rules (deny by default)"
#[test]
fn a_denied_method_and_an_unknown_one_are_not_called() {
    let site = Setup::guide().start();
    for method in ["removeAccount", "deleteEverything", "listGroups", "Send"] {
        is_denied(&site, &json!({ "jsonrpc": "2.0", "id": "1", "method": method, "params": {} }));
    }
}

/// guide: `rate_limit: max_requests: 100, window_secs: 60`; "rate limited | 200 with `Retry-After` | -32002"
#[test]
fn the_hundred_and_first_call_of_a_minute_is_limited() {
    let site = Setup::guide().start();
    let version = r#"{"jsonrpc":"2.0","id":7,"method":"version"}"#;
    let mut connection = site.connect();
    for _ in 0..100 {
        connection.call(version);
        assert_eq!(connection.answer().json()["result"]["version"], "0.14.4");
    }
    connection.call(version);
    let answer = connection.answer();
    assert_eq!((answer.status, answer.code()), (200, -32002));
    assert_eq!(answer.json()["id"], 7);
    let secs: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&secs), "{secs}");
    assert_eq!(site.upstream.requests().len(), 100);
    let records = site.wait_for_records(201);
    assert_eq!(records.last().unwrap()["policy_result"], "rate_limited");
}

/// guide: "All requests logged to /var/log/carapace/audit.log: timestamp, request_id, tool, action_type, policy_result,
/// method, phone_number"
#[test]
fn the_audit_log_has_what_the_guide_shows() {
    let site = Setup::guide().start();
    site.call(send("+12025550123").to_string());
    let records = site.wait_for_records(2);
    let decision = &records[0];
    let shown = [
        ("tool", json!("signal-cli")),
        ("action_type", json!("http")),
        ("policy_result", json!("allow")),
        ("method", json!("send")),
        ("phone_number", json!("+12025550123")),
    ];
    for (name, value) in shown {
        assert_eq!(decision[name], value, "{decision}");
    }
    let timestamp = decision["timestamp"].as_str().unwrap();
    assert!(timestamp.len() == 27 && timestamp.ends_with('Z'), "{timestamp}");
    assert!(decision["request_id"].is_string());
    // "Audit logs don't contain sensitive data by default"
    assert!(!records.iter().any(|record| record.to_string().contains("message")), "{records:?}");
}

/// guide: `carapace-debug policy /etc/carapace/policy.yaml '{ "tool": ... }'` "Expected: shows allow/deny decision and why"
#[test]
fn debug_policy_decides_as_the_server_would() {
    let site = Setup::guide().prepare();
    let file = site.policy_file();
    let file = file.to_str().unwrap();
    let denied = debug(&[
        "policy",
        file,
        "{\n  \"tool\": \"signal-cli\",\n  \"method\": \"send\",\n  \"params\": {\"recipientNumber\": \"+15551234567\"}\n}",
    ]);
    assert_eq!((denied.code(), denied.err().as_str()), (Some(1), ""));
    assert!(
        denied.out().to_lowercase().contains("den") && denied.out().contains("deny_patterns"),
        "{}",
        denied.out()
    );
    let allowed = debug(&[
        "policy",
        file,
        r#"{"tool":"signal-cli","method":"send","params":{"recipientNumber":"+12025550123"}}"#,
    ]);
    assert_eq!((allowed.code(), allowed.err().as_str()), (Some(0), ""));
    assert!(allowed.out().to_lowercase().contains("allow"), "{}", allowed.out());
}

/// guide: `carapace-debug audit`, `--tool signal-cli`, `--result deny`, `--since 5m`, `--limit 10`
#[test]
fn debug_audit_chooses_records() {
    let site = Setup::guide().start();
    site.call(send("+12025550123").to_string());
    site.call(send("+15551234567").to_string());
    site.wait_for_records(3);
    let log = site.audit_log();
    let shown = |args: &[&str]| {
        let base = ["audit", "--format", "json", "--file", log.to_str().unwrap()];
        let ended = debug(&[&base[..], args].concat());
        assert_eq!((ended.code(), ended.err().as_str()), (Some(0), ""), "{args:?}");
        let lines: Vec<Value> = ended.out().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines
    };
    let all = shown(&[]);
    assert_eq!(all, site.records());
    assert_eq!(shown(&["--tool", "signal-cli"]), all);
    assert_eq!(shown(&["--tool", "op"]), Vec::<Value>::new());
    let denied = shown(&["--result", "deny"]);
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0]["phone_number"], "+15551234567");
    assert_eq!(shown(&["--since", "5m"]), all);
    assert_eq!(shown(&["--until", "5m"]), Vec::<Value>::new());
    assert_eq!(shown(&["--limit", "1"]), all[2..]);
    assert_eq!(shown(&["--action", "http", "--result", "allow"]).len(), 1);
}

/// guide: `carapace-debug health` "Server is healthy"; "Monitor Active Connections"
#[test]
fn health_counts_the_agent() {
    let mut site = Setup::guide().start();
    let port = site.server_port();
    let first_line =
        || debug(&["health", "--port", &port]).out().lines().next().unwrap_or_default().to_owned();
    assert_eq!(first_line(), "Server is healthy, 2 connections");
    site.kill_agent();
    wait_until("the agent is not counted any more", LONG, || {
        first_line() == "Server is healthy, 1 connection"
    });
}

/// guide: "Edit policy ... Verify changes took effect", by SIGHUP here
#[test]
fn a_new_policy_is_in_force_for_the_next_call() {
    let mut site = Setup::guide().start();
    is_denied(&site, &send("+15551234567"));
    site.write_policy(&crate::kit::GUIDE.replace("+15551234567", "+15559999999"));
    site.server().signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    wait_until("the new policy", LONG, || {
        site.call(send("+15551234567").to_string()).json()["result"].is_object()
    });
    assert_eq!(site.call(send("+15559999999").to_string()).code(), -32001);
}
