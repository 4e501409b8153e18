//! The policy of the deployment guide works as written.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may fail loudly"
)]

use carapace_policy::*;

const GUIDE: &str = r#"tools:
  signal-cli:
    type: http
    upstream: "http://127.0.0.1:18080"
    jsonrpc_allow_methods:
      - send
      - receive
      - listMessages
      - version
    jsonrpc_deny_methods:
      - deleteEverything
      - removeAccount
    jsonrpc_param_filters:
      send:
        field: "recipientNumber"
        allow_patterns:
          - "+1*"  # Allow all US numbers
        deny_patterns:
          - "+15551234567"  # Block spam numbers (customize)
    rate_limit:
      max_requests: 100
      window_secs: 60
    timeout_secs: 30
    audit:
      enabled: true
      log_body: false
"#;

fn policy() -> Policy {
    Policy::parse("policy.yaml", GUIDE).unwrap_or_else(|problems| panic!("{problems}"))
}

fn caller(policy: &Policy) -> Caller {
    policy.admit(&Peer { uid: Some(1000), own_uid: 1000, ..Peer::default() }).unwrap()
}

fn judge(body: &str) -> RpcVerdict {
    let policy = policy();
    let caller = caller(&policy);
    let mut limits = Limits::new();
    let head = HttpHead {
        method: "POST",
        target: "/api/v1/rpc",
        content_type: Some("application/json"),
        content_encoding: None,
    };
    let HttpVerdict::Rpc(gate) = policy.judge_http("signal-cli", &caller, &mut limits, 0, &head) else {
        panic!("not a way to JSON-RPC");
    };
    policy.judge_rpc(&gate, &caller, &mut limits, 0, body.as_bytes())
}

fn judged(body: &str) -> RpcJudged {
    match judge(body) {
        RpcVerdict::Judged(judged) => *judged,
        RpcVerdict::Malformed { said, .. } => panic!("{said}"),
    }
}

#[test]
fn loads_without_warnings() {
    let policy = policy();
    assert!(policy.warnings().is_empty(), "{:?}", policy.warnings());
    let tool = policy.tool("signal-cli").unwrap();
    let ToolKind::Http(http) = tool.kind() else { panic!("not http") };
    assert_eq!(http.upstream().port, 18080);
    assert_eq!(http.event_idle().unwrap().as_secs(), 45);
    assert_eq!(tool.timeout().as_secs(), 30);
    assert_eq!(policy.version().len(), 16);
}

#[test]
fn judges_recipients() {
    for (params, is_allowed) in [
        (r#"{"recipientNumber":"+12025550123"}"#, true),
        (r#"{"recipientNumber":"+15551234567"}"#, false),
        (r#"{"recipient":["+12025550123"],"message":"x"}"#, true),
        (r#"{"recipient":["+12025550123","+15551234567"]}"#, false),
        (r#"{"recipients":["+12025550123"],"Recipient":"+15551234567"}"#, false),
        (r#"{"recipient":["+442071838750"]}"#, false),
        (r#"{"recipient":["+1 202 555 0123"]}"#, false),
        (r#"{"recipient":[]}"#, false),
        (r#"{"recipient":null}"#, false),
        (r#"{"recipient":[["+12025550123"]]}"#, false),
        (r#"{"recipient":12025550123}"#, false),
        (r#"{"recipient":["+12025550123"],"groupId":"AAAA"}"#, false),
        (r#"{"recipient":["+12025550123"],"group-ids":["AAAA"]}"#, false),
        (r#"{"recipient":["+12025550123"],"username":["a.01"]}"#, false),
        (r#"{"recipient":["+12025550123"],"noteToSelf":true}"#, false),
        (r#"{"recipient":["+12025550123"],"noteToSelf":false}"#, true),
        (r#"{"groupId":"AAAA"}"#, false),
        (r#"{"message":"x"}"#, false),
        (r#"{"recipient":["+12025550123"],"attachments":["/etc/shadow"]}"#, false),
        (r#"{"recipient":["+12025550123"],"attachment":"data:text/plain;base64,QQ=="}"#, true),
        (r#"{"\u0072ecipient":["\u002b15551234567"]}"#, false),
        (r#"["+12025550123"]"#, false),
        ("null", false),
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":"1","method":"send","params":{params}}}"#);
        let judged = judged(&body);
        let verdict = &judged.elements[0].verdict;
        assert_eq!(verdict.is_ok(), is_allowed, "{params}: {verdict:?}");
        assert_eq!(judged.request.is_some(), is_allowed);
        if let Err(denial) = verdict {
            assert!(
                !denial.said.contains("+1") && !denial.said.to_lowercase().contains("quote"),
                "{}",
                denial.said
            );
        }
    }
}

#[test]
fn records_the_number_and_the_rule() {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"send","params":{"recipientNumber":"+12025550123"}}"#;
    let judged = judged(body);
    let notes = judged.elements[0].verdict.as_ref().unwrap();
    assert_eq!(notes.params()[0].name(), "phone_number");
    assert_eq!(notes.params()[0].values(), ["+12025550123"]);
    let rule = notes.rule().unwrap();
    assert_eq!(rule.text(), "signal-cli: jsonrpc_param_filters.send.allow_patterns[0]");
    assert_eq!(rule.line(), 17);
}

#[test]
fn judges_methods() {
    for (method, is_allowed) in [
        ("version", true),
        ("receive", true),
        ("deleteEverything", false),
        ("removeAccount", false),
        ("Send", false),
        ("", false),
    ] {
        let judged = judged(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#));
        assert_eq!(judged.elements[0].verdict.is_ok(), is_allowed, "{method}");
    }
}

#[test]
fn rebuilds_what_it_judged() {
    let body = r#" { "id" : 1e3, "x": {"jsonrpc": "1.0"}, "params" : { "recipient" : [ "+12025550123" ], "big": 1152921504606846976 },
        "method" : "s\u0065nd", "jsonrpc" : "2.0" } "#;
    let request = judged(body).request.unwrap();
    let expected = r#"{"jsonrpc":"2.0","id":1e3,"method":"send","params":{ "recipient" : [ "+12025550123" ], "big": 1152921504606846976 }}"#;
    assert_eq!(std::str::from_utf8(request.body().unwrap()).unwrap(), expected);
    assert_eq!((request.method(), request.target()), ("POST", "/api/v1/rpc"));
    assert!(request.passes_header("content-type") && !request.passes_header("Authorization"));
}

#[test]
fn judges_each_call_of_a_batch() {
    let judged = judged(
        r#"[{"jsonrpc":"2.0","id":null,"method":"version"},{"jsonrpc":"2.0","id":2,"method":"removeAccount"},
            {"jsonrpc":"2.0","method":"version","params":null},7]"#,
    );
    assert!(judged.batch);
    let allowed: Vec<_> = judged.elements.iter().map(|element| element.verdict.is_ok()).collect();
    assert_eq!(allowed, [true, false, true, false]);
    assert_eq!(judged.elements[0].id, json::Id::Raw(b"null".to_vec()));
    assert_eq!(judged.elements[2].id, json::Id::Absent);
    let body = judged.request.unwrap().take_body().unwrap();
    let expected = r#"[{"jsonrpc":"2.0","id":null,"method":"version"},{"jsonrpc":"2.0","method":"version"}]"#;
    assert_eq!(std::str::from_utf8(&body).unwrap(), expected);
}

#[test]
fn refuses_what_is_no_request() {
    for (body, wanted) in [
        ("", -32700),
        ("{", -32700),
        ("\u{feff}{}", -32700),
        (r#"{"jsonrpc":"2.0","method":"version"} x"#, -32700),
        (r#"{"jsonrpc":"2.0","method":"version","method":"send"}"#, -32600),
        (r#"{"jsonrpc":"2.0","method":"version","params":{"a":{"b":1,"\u0062":2}}}"#, -32600),
        (r#"{"jsonrpc":"1.0","method":"version"}"#, -32600),
        (r#"{"jsonrpc":"2.0","method":7}"#, -32600),
        (r#"{"jsonrpc":"2.0","method":"version","params":"x"}"#, -32600),
        ("[]", -32600),
        ("7", -32600),
    ] {
        match judge(body) {
            RpcVerdict::Malformed { code, .. } => assert_eq!(code, wanted, "{body}"),
            RpcVerdict::Judged(_) => panic!("{body} was judged"),
        }
    }
}

#[test]
fn knows_three_endpoints() {
    let policy = policy();
    let caller = caller(&policy);
    let mut limits = Limits::new();
    let mut judge = |method, target, content_type| {
        let head = HttpHead { method, target, content_type, content_encoding: None };
        match policy.judge_http("signal-cli", &caller, &mut limits, 0, &head) {
            HttpVerdict::Rpc(_) => 1,
            HttpVerdict::Pass(judged) => 200 + u16::from(judged.action.is_stream()),
            HttpVerdict::Body(_) => 2,
            HttpVerdict::Refuse(refusal) => refusal.status,
        }
    };
    let json = Some("application/json; charset=utf-8");
    assert_eq!(judge("POST", "/api/v1/rpc", json), 1);
    assert_eq!(judge("POST", "/api/v1/rpc", Some("application/json; charset=utf-16")), 415);
    assert_eq!(judge("POST", "/api/v1/rpc", Some("text/plain")), 415);
    assert_eq!(judge("POST", "/api/v1/rpc", None), 415);
    assert_eq!(judge("POST", "/api/v1/rpc?x=1", json), 403);
    assert_eq!(judge("GET", "/api/v1/rpc", None), 405);
    assert_eq!(judge("GET", "/api/v1/events", None), 201);
    assert_eq!(judge("GET", "/api/v1/events?account=%2B12025550123", None), 201);
    assert_eq!(judge("GET", "/api/v1/check", None), 200);
    assert_eq!(judge("POST", "/api/v1/check", None), 405);
    for target in [
        "/",
        "/api/v1/about",
        "/api/v1/rpc/",
        "/api//v1/rpc",
        "/api/v1/../v1/rpc",
        "/api/v1/%72pc",
        "/api%2fv1/rpc",
        "x",
        "",
    ] {
        assert_eq!(judge("POST", target, json), 404, "{target}");
    }
}

#[test]
fn limits_the_rate() {
    let policy = policy();
    let caller = caller(&policy);
    let mut limits = Limits::new();
    let gate = policy.rpc_gate("signal-cli", &caller).unwrap();
    let mut call = |method: &str, now: u64| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
        match policy.judge_rpc(&gate, &caller, &mut limits, now, body.as_bytes()) {
            RpcVerdict::Judged(judged) => judged.elements[0].verdict.as_ref().err().map(|denial| denial.kind),
            RpcVerdict::Malformed { said, .. } => panic!("{said}"),
        }
    };
    for _ in 0..500 {
        assert_eq!(call("removeAccount", 0), Some(DenialKind::Denied));
    }
    for i in 0..100 {
        assert_eq!(call("version", i), None);
    }
    assert_eq!(call("version", 30_000_000), Some(DenialKind::RateLimited { retry_after_ms: 30_000 }));
    assert_eq!(call("version", 60_000_000), None);
}

#[test]
fn serves_only_who_may_be_served() {
    let policy = policy();
    let peer = Peer { uid: Some(1001), own_uid: 1000, ..Peer::default() };
    assert!(policy.admit(&peer).is_err());
    assert!(policy.admit(&Peer { uid: Some(0), ..peer.clone() }).is_ok());
    assert!(policy.admit(&Peer { groups: vec!["carapace-clients".to_owned()], ..peer.clone() }).is_ok());
    assert!(policy.admit(&Peer { agent: Some("vm".to_owned()), ..Peer::default() }).is_ok());
    assert!(policy.admit(&Peer::default()).is_err());
}
