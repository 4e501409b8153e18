//! JSON-RPC over HTTP: what is judged, what goes on, what comes back.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kit::{Setup, Site, noise, policy_with_tools, timed};

fn setup() -> Setup {
    Setup::policy(policy_with_tools(&[]))
}

fn bodies(site: &Site) -> Vec<String> {
    let calls = site.upstream.requests_to("/api/v1/rpc");
    calls.into_iter().map(|call| String::from_utf8(call.body).unwrap()).collect()
}

/// docs/protocol.md: "denied by policy | 200 | -32001, with `data: {tool, rule, request_id}`"; docs/http.md:
/// "never a pattern, a policy key, a path of the host or an address"
#[test]
fn a_denial_says_which_tool_and_which_record_and_no_rule() {
    let site = setup().start();
    let answer =
        site.call(r#"{"jsonrpc":"2.0","id":"x","method":"send","params":{"recipient":["+15551234567"]}}"#);
    assert_eq!((answer.status, answer.code()), (200, -32001));
    let error = &answer.json()["error"];
    let records = site.wait_for_records(1);
    assert_eq!(error["data"]["tool"], "signal-cli");
    assert_eq!(error["data"]["request_id"], records[0]["request_id"]);
    assert!(error["data"]["rule"].is_string());
    // "The VM hears ... never a pattern, a policy key, a path of the host, an upstream's address"
    let said = answer.text();
    for secret in
        ["+1", "_patterns", "jsonrpc_", "yaml", site.folder.path().to_str().unwrap(), &site.upstream.url()]
    {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
    // OpenClaw sends again without the quote when it reads so.
    assert!(!said.to_lowercase().contains("quote"), "{said}");
    assert!(records[0]["rule"].as_str().unwrap().contains("deny_patterns[0]"), "{}", records[0]);
}

/// docs/protocol.md: "not JSON; not a request | 200 | -32700; -32600, `id` null"
#[test]
fn what_is_no_call_is_answered_as_the_standard_says() {
    let site = setup().start();
    let cases: [(&[u8], i64); 17] = [
        (b"", -32700),
        (b"{", -32700),
        (b"nonsense", -32700),
        (b"\xff\xfe{\0}\0", -32700),
        (b"\xef\xbb\xbf{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"}", -32700),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"} {}", -32700),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\",\"x\":\"\xc3\x28\"}", -32700),
        (b"7", -32600),
        (b"[]", -32600),
        (b"{}", -32600),
        (br#"{"id":1,"method":"version"}"#, -32600),
        (br#"{"jsonrpc":"1.0","id":1,"method":"version"}"#, -32600),
        (br#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600),
        (br#"{"jsonrpc":"2.0","id":1}"#, -32600),
        (br#"{"jsonrpc":"2.0","id":{},"method":"version"}"#, -32600),
        (br#"{"jsonrpc":"2.0","id":1,"method":"version","method":"version"}"#, -32600),
        (br#"{"jsonrpc":"2.0","id":1,"method":"version","params":"x"}"#, -32600),
    ];
    for (body, code) in cases {
        let answer = site.call(body);
        let shown = String::from_utf8_lossy(body);
        assert_eq!((answer.status, answer.code()), (200, code), "{shown}: {}", answer.text());
        assert_eq!(answer.json()["id"], Value::Null, "{shown}");
    }
    assert_eq!(bodies(&site), Vec::<String>::new());
}

/// docs/http.md: "duplicate keys, trailing data, other encodings and nesting deeper than 64 are refused"
#[test]
fn what_can_be_read_in_two_ways_is_not_passed_on() {
    let site = setup().start();
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for params in [
        deep.as_str(),
        r#"{"recipient":["+12025550123"],"recipient":["+15551234567"]}"#,
        r#"{"recipient":["+12025550123"],"\u0072ecipient":["+15551234567"]}"#,
        r#"{"recipient":["+12025550123"],"x":[{"a":1,"a":2}]}"#,
    ] {
        let answer = site.call(format!(r#"{{"jsonrpc":"2.0","id":1,"method":"send","params":{params}}}"#));
        assert!(answer.json()["error"].is_object(), "{params}: {}", answer.text());
    }
    assert_eq!(bodies(&site), Vec::<String>::new());
}

/// docs/http.md: "A notification that is allowed gets the upstream's status, one that is denied an error with
/// `id` null."
#[test]
fn notifications() {
    let site = setup().start();
    let answer = site.call(r#"{"jsonrpc":"2.0","method":"removeAccount"}"#);
    assert_eq!((answer.status, answer.code(), &answer.json()["id"]), (200, -32001, &Value::Null));
    let answer = site.call(r#"{"jsonrpc":"2.0","method":"version"}"#);
    assert_eq!((answer.status, answer.body.as_slice()), (201, &b""[..]));
    assert_eq!(bodies(&site).len(), 1);
}

/// docs/http.md: "In a batch each element is judged by itself: the allowed go on, the denied get their error,
/// and the answers come back as one array."
#[test]
fn a_batch_with_one_denied() {
    let site = setup().start();
    let send = |id: &str, to: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"send","params":{{"recipient":["{to}"]}}}}"#)
    };
    let (first, second) = (send("\"a\"", "+12025550123"), send("2", "+15551234567"));
    let third = r#"{"jsonrpc":"2.0","id":null,"method":"version"}"#;
    let answer = site.call(format!("[{first},{second},{third}]"));
    assert_eq!(answer.status, 200);
    let answers = answer.json();
    let by_id = |id: Value| {
        let mut found = answers.as_array().unwrap().iter().filter(|answer| answer["id"] == id);
        let answer = found.next().unwrap_or_else(|| panic!("no {id}: {answers}"));
        assert!(found.next().is_none(), "{id} twice: {answers}");
        answer
    };
    assert_eq!(answers.as_array().unwrap().len(), 3);
    assert!(by_id(json!("a"))["result"].is_object() && by_id(Value::Null)["result"].is_object(), "{answers}");
    assert_eq!(by_id(json!(2))["error"]["code"], -32001);
    let sent: Value = serde_json::from_str(&bodies(&site).concat()).unwrap();
    assert_eq!(sent, serde_json::from_str::<Value>(&format!("[{first},{third}]")).unwrap());
    let records = site.wait_for_records(4);
    let decisions: Vec<_> = records.iter().filter(|record| record["event"] == "decision").collect();
    let results: Vec<_> = decisions.iter().map(|record| record["policy_result"].as_str().unwrap()).collect();
    assert_eq!(results, ["allow", "deny", "allow"]);
    assert_eq!(decisions.iter().map(|record| record["element"].clone()).collect::<Vec<_>>(), [0, 1, 2]);
}

/// docs/http.md: "the denied get their error"
#[test]
fn a_batch_of_denied_goes_nowhere() {
    let site = setup().start();
    let answer = site.call(
        r#"[{"jsonrpc":"2.0","id":1,"method":"x"},{"jsonrpc":"2.0","method":"y"},{"jsonrpc":"2.0","id":2,"method":"z"}]"#,
    );
    assert_eq!(answer.status, 200);
    let codes: Vec<_> =
        answer.json().as_array().unwrap().iter().map(|answer| answer["error"]["code"].clone()).collect();
    assert!(codes.len() >= 2 && codes.iter().all(|code| *code == -32001), "{codes:?}");
    assert_eq!(bodies(&site), Vec::<String>::new());
}

/// docs/http.md: "Ids and params keep their exact bytes"
#[test]
fn ids_and_params_reach_the_upstream_byte_for_byte() {
    let site = setup().start();
    for id in [
        "1e3",
        "1152921504606846976",
        "-0",
        "1.0",
        r#""\u0041\/é""#,
        "null",
        "123456789012345678901234567890",
    ] {
        let params = r#"{"recipient": [ "+1202555\u0030123" ], "x":1e3,"y":1152921504606846976,"z":[1.50,-0.0E+2,"\ud83d\ude00\/"]}"#;
        site.upstream.clear_requests();
        let answer =
            site.call(format!(r#"{{ "params" : {params}, "id":{id},"method":"send" ,"jsonrpc":"2.0"}}"#));
        let sent = bodies(&site).concat();
        assert!(sent.contains(&format!(r#""id":{id}"#)) && sent.contains(params), "{sent}");
        assert!(answer.text().contains(&format!(r#""id":{id}"#)), "{}", answer.text());
    }
}

/// docs/http.md: "what was not judged does not go on"
#[test]
fn what_was_not_judged_does_not_go_on() {
    let site = setup().start();
    site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version","params":{},"extra":"\u0000","Method":"removeAccount"}"#);
    for sent in bodies(&site) {
        assert!(!sent.contains("extra") && !sent.contains("removeAccount"), "{sent}");
    }
}

/// docs/http.md: "the same id may be in flight many times"
#[test]
fn the_same_id_may_be_in_flight_many_times() {
    let site = setup().start();
    site.upstream.set_delay("version", Duration::from_millis(200));
    let (answers, took) = timed(|| {
        thread::scope(|scope| {
            let calls: Vec<_> = (0..20)
                .map(|n| {
                    let site = &site;
                    scope.spawn(move || {
                        let to = format!("+1202555{n:04}");
                        let send = format!(
                            r#"{{"jsonrpc":"2.0","id":1,"method":"send","params":{{"recipient":["{to}"]}}}}"#
                        );
                        let batch = format!(r#"[{send},{{"jsonrpc":"2.0","id":1,"method":"version"}}]"#);
                        (to, site.call(batch))
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect::<Vec<_>>()
        })
    });
    for (to, answer) in answers {
        assert!(answer.text().contains(&to) && answer.text().contains("0.14.4"), "{to}: {}", answer.text());
    }
    assert!(took < Duration::from_millis(200 * 10), "one after the other: {took:?}");
}

/// Bodies with attachments in them are as good as small ones.
#[test]
fn large_calls_and_large_answers() {
    let site = setup().start();
    let attachment: String = noise(3_000_000, 1).iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let params = format!(
        r#"{{"recipient":["+12025550123"],"message":"x","attachments":["data:image/png;base64,{attachment}"]}}"#
    );
    let answer = site.call(format!(r#"{{"jsonrpc":"2.0","id":1,"method":"send","params":{params}}}"#));
    assert!(answer.json()["result"].is_object(), "{}", answer.text());
    assert!(bodies(&site).concat().contains(&params));
    let padding = noise(5_000_000, 2).iter().map(|byte| char::from(b'a' + byte % 26)).collect::<String>();
    site.upstream.set_result("version", json!(padding));
    let answer = site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
    assert_eq!(answer.json()["result"], Value::String(padding));
}

/// docs/http.md: "The upstream sees the server's request and not the caller's"
#[test]
fn the_upstream_sees_the_server_s_request_and_not_the_caller_s() {
    let site = setup().start();
    let mut connection = site.connect();
    let lines = "Authorization: Bearer x\r\nCookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=x\r\n\
                 Connection: x-hop\r\nX-Hop: 1\r\nAccept: application/json\r\nAccept-Language: de\r\n\
                 X-Http-Method-Override: DELETE\r\nTE: trailers\r\nUpgrade: websocket\r\n";
    connection.post("/api/v1/rpc", lines, r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
    assert_eq!(connection.answer().status, 200);
    let requests = site.upstream.requests();
    assert_eq!(requests.len(), 1);
    let request = &requests[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/api/v1/rpc"));
    assert_eq!(request.header("host"), Some(site.upstream.addr().to_string().as_str()));
    assert_eq!(request.header("content-length"), Some(request.body.len().to_string().as_str()));
    assert_eq!(request.header("accept"), Some("application/json"));
    let known =
        ["accept", "accept-language", "connection", "content-length", "content-type", "host", "user-agent"];
    for (name, value) in &request.headers {
        assert!(known.contains(&name.to_ascii_lowercase().as_str()), "{name}: {value}");
    }
}

/// docs/policy.md: "**What it does not allow is denied**: an unknown tool"
#[test]
fn a_tool_that_the_policy_does_not_know_is_denied() {
    let site = Setup::policy("tools: {}\n").start();
    let answer = site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
    assert!((400..500).contains(&answer.status), "{answer:?}");
    let records = site.wait_for_records(1);
    assert_eq!((&records[0]["policy_result"], &records[0]["tool"]), (&json!("deny"), &json!("signal-cli")));
    assert!(site.upstream.requests().is_empty());
}

/// docs/policy.md: "`block` refuses the call, or ends the job whose input it is; `warn` only records that it
/// matched."; docs/protocol.md: "content blocked | 200 | -32003"
#[test]
fn content_that_is_blocked_goes_nowhere() {
    let filters = "content_filters:\n  - { pattern: '(?i)password\\s*[:=]', action: block }\n  \
                   - { pattern: confidential, action: warn }\n";
    let site = Setup::policy(policy_with_tools(&[]) + filters).start();
    let send = |message: &str| {
        let params = format!(r#"{{"recipient":["+12025550123"],"message":"{message}"}}"#);
        site.call(format!(r#"{{"jsonrpc":"2.0","id":3,"method":"send","params":{params}}}"#))
    };
    for message in ["my Password: x", r"my pass\u0077ord\u003a x"] {
        let answer = send(message);
        assert_eq!(
            (answer.status, answer.code(), &answer.json()["id"]),
            (200, -32003, &json!(3)),
            "{message}"
        );
    }
    assert!(site.upstream.requests().is_empty());
    assert!(send("it is confidential").json()["result"].is_object());
    let records = site.wait_for_records(4);
    assert_eq!(records[0]["policy_result"], "blocked");
    assert!(records[2]["warning"].is_string(), "{}", records[2]);
    assert!(!format!("{records:?}").contains("my Password"), "{records:?}");
}
