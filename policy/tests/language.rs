//! The rest of the language: commands, events, content, paths, headers, tests in the file.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail loudly")]

use carapace_policy::*;

fn load(text: &str) -> Policy {
    let mut policy = Policy::parse("p", text).unwrap_or_else(|problems| panic!("{problems}"));
    let ids: Vec<_> = policy.secrets().iter().map(SecretSource::id).collect();
    for id in ids {
        policy.provide(id, Secret::new(b"provided-secret\n")).unwrap();
    }
    policy
}

fn errors(text: &str) -> String {
    Policy::parse("p", text).map(|_| String::new()).unwrap_or_else(|problems| problems.to_string())
}

fn agent(policy: &Policy) -> Caller {
    policy.admit(&Peer { agent: Some("vm".to_owned()), ..Peer::default() }).unwrap()
}

fn outcome(policy: &Policy, request: &str) -> &'static str {
    policy.explain(request).unwrap_or_else(|what| panic!("{request}: {what}")).outcome.as_str()
}

fn pass(policy: &Policy, tool: &str, method: &str, target: &str) -> Result<Request, (u16, Option<String>)> {
    let head = HttpHead { method, target, content_type: None, content_encoding: None };
    match policy.judge_http(tool, &agent(policy), &mut Limits::new(), 0, &head) {
        HttpVerdict::Pass(judged) => Ok(judged.action),
        HttpVerdict::Refuse(refusal) => Err((refusal.status, refusal.allow)),
        HttpVerdict::Body(_) | HttpVerdict::Rpc(_) => Err((0, None)),
    }
}

const GH: &str = r#"
tools:
  gh:
    type: cli
    binary: /usr/bin/gh
    argv_allow_patterns: ["--version"]
    argv_deny_patterns: ["--web"]
    commands:
      pr list:
        flags:
          "-s, --state": [open, closed]
          "-L, --limit": "[0-9]*"
          "-w, --web": true
          --repo: { values: ["me/*"], required: true }
          --color: { values: [always, never], optional: true }
        args: ["*"]
        args_min: 0
      "": { flags: { --help: true } }
"#;

#[test]
fn commands_are_a_grammar() {
    let policy = load(GH);
    for (argv, expected) in [
        (r#"["pr","list","--repo","me/x"]"#, "allow"),
        (r#"["pr","list","--repo=me/x","-sopen","x"]"#, "allow"),
        (r#"["pr","list","--repo","you/x"]"#, "deny"),
        (r#"["pr","list"]"#, "deny"),
        (r#"["pr","list","--repo=me/x","--web"]"#, "deny"),
        (r#"["pr","list","--repo=me/x","-w"]"#, "allow"),
        (r#"["pr","list","--repo=me/x","--unknown"]"#, "deny"),
        (r#"["pr","list","--repo=me/x","--","--unknown"]"#, "allow"),
        (r#"["pr","merge","--repo=me/x"]"#, "deny"),
        (r#"["--help"]"#, "allow"),
        (r#"["--version"]"#, "allow"),
        (r#"["--version","x"]"#, "deny"),
        (r#"["pr list"]"#, "deny"),
    ] {
        assert_eq!(outcome(&policy, &format!(r#"{{"tool":"gh","argv":{argv}}}"#)), expected, "{argv}");
    }
    let explained = policy.explain(r#"{"tool":"gh","argv":["pr","list","--repo","me/x","-x"]}"#).unwrap();
    assert_eq!(explained.said.unwrap(), "gh: flag `-x` is not allowed");
    assert_eq!(explained.rule.unwrap().text(), "gh: commands.pr list");
    assert!(explained.steps.iter().any(|step| step.rule.text() == "gh: argv_deny_patterns[0]"));
}

#[test]
fn commands_that_make_no_sense_are_errors() {
    for (body, wanted) in [
        ("{ ls: { flags: { color: true } } }", "is no flag"),
        ("{ ls: { flags: { '-a, --a': true, '-b, --a': true } } }", "repeats a flag"),
        ("{ ls: { flags: { -a: false } } }", "expected `true`"),
        ("{ ls: { flags: { -a: 5 } } }", "expected `true`"),
        ("{ ls: { flags: { -a: { optional: true } } } }", "needs `values`"),
        ("{ ls: { args: ['**', x] } }", "only at the end"),
        ("{ ls: { args: [x], args_min: 2 } }", "more than there are"),
        ("{ ls: { arg: [x] } }", "did you mean `args`?"),
        ("{ -a b: {} }", "words, not flags"),
        ("{ a  b: {}, a b: {} }", "twice"),
    ] {
        let text = format!("tools: {{ t: {{ type: cli, binary: /bin/t, commands: {body} }} }}");
        assert!(errors(&text).contains(wanted), "{body}: {}", errors(&text));
    }
}

const WEB: &str = r#"
tools:
  github:
    type: http
    upstream: "https://api.example:8443/v3/"
    http_allow: ["GET /repos/*/pulls", "GET /user", "POST /user", "GET /raw/**", "DELETE /a*b/[0-9]"]
    headers_inject: { Authorization: { file: /etc/carapace/github.token, prefix: "Bearer " }, X-Api: "literal-value" }
    headers_allow: [X-Request-Id, accept]
  daemon: { type: http, upstream: "unix:/run/d.sock", http_allow: ["GET /"] }
"#;

#[test]
fn paths_match_segment_by_segment() {
    let policy = load(WEB);
    for (method, target, expected) in [
        ("GET", "/repos/x/pulls", 200),
        ("GET", "/repos/x/pulls?state=open", 200),
        ("GET", "/repos/x/y/pulls", 403),
        ("GET", "/repos//pulls", 404),
        ("GET", "/repos/x/pulls/", 403),
        ("GET", "/repos/%2e%2e/pulls", 404),
        ("GET", "/repos/a%2fb/pulls", 404),
        ("GET", "/repos/a%20b/pulls", 200),
        ("GET", "/repos/%6de/pulls", 404),
        ("GET", "/repos/a%zz/pulls", 404),
        ("GET", "/repos/a;b/pulls", 404),
        ("GET", "/repos/../pulls", 404),
        ("GET", "/repos/é/pulls", 404),
        ("GET", "/repos/x/pulls#f", 404),
        ("GET", "/repos/x\\y/pulls", 404),
        ("GET", "/USER", 403),
        ("POST", "/user", 200),
        ("PUT", "/user", 405),
        ("get", "/user", 405),
        ("GET", "/raw", 403),
        ("GET", "/raw/a/b/c", 200),
        ("GET", "/raw/", 200),
        ("DELETE", "/axb/7", 200),
        ("DELETE", "/axb/77", 403),
        ("GET", "*", 404),
        ("GET", "http://x/user", 404),
    ] {
        let status = pass(&policy, "github", method, target).map_or_else(|(status, _)| status, |_| 200);
        assert_eq!(status, expected, "{method} {target}");
    }
    assert_eq!(pass(&policy, "github", "PUT", "/user").unwrap_err().1.unwrap(), "GET, POST");
    assert!(pass(&policy, "daemon", "GET", "/").is_ok());
}

#[test]
fn requests_carry_injected_headers() {
    let policy = load(WEB);
    let request = pass(&policy, "github", "POST", "/user").unwrap();
    let headers: Vec<_> =
        request.headers().map(|(name, value)| (name.to_owned(), value.expose().to_vec())).collect();
    assert_eq!(headers[0], ("Authorization".to_owned(), b"Bearer provided-secret".to_vec()));
    assert_eq!(headers[1], ("X-Api".to_owned(), b"literal-value".to_vec()));
    assert!(request.passes_header("x-request-id") && request.passes_header("ACCEPT"));
    assert!(!request.passes_header("x-api") && !request.passes_header("cookie"));
    assert!(request.wants_body());
    assert_eq!(format!("{request:?}"), "Request(POST /v3/user of github)");
    assert_eq!(request.target(), "/v3/user");
    let upstream = request.upstream().unwrap();
    assert_eq!(
        (upstream.scheme, upstream.port, upstream.host_header.as_str()),
        (Scheme::Https, 8443, "api.example:8443")
    );
    assert_eq!(request.secrets_to_redact()[0].expose(), b"provided-secret");
    let unready = Policy::parse("p", WEB).unwrap();
    assert_eq!(pass(&unready, "github", "GET", "/user").unwrap_err().0, 503);
}

#[test]
fn upstreams_are_checked() {
    for (url, is_good) in [
        ("http://localhost", true),
        ("http://[::1]:80/x", true),
        ("https://a.b/c/d", true),
        ("unix:/run/x.sock", true),
        ("unix:run", false),
        ("http://", false),
        ("http://a:0", false),
        ("http://a:99999", false),
        ("http://u:p@a", false),
        ("ftp://a", false),
        ("http://a/b?c", false),
        ("http://a/../b", false),
        ("http://a b", false),
        ("http://[::1", false),
    ] {
        let text = format!("tools: {{ t: {{ type: http, upstream: \"{url}\", http_allow: ['GET /'] }} }}");
        assert_eq!(errors(&text).is_empty(), is_good, "{url}: {}", errors(&text));
        assert!(
            !errors(&text).contains("u:p") || url != "http://u:p@a" || errors(&text).contains("user name")
        );
    }
}

const EVENTS: &str = r#"
tools:
  signal-cli:
    type: http
    upstream: "http://127.0.0.1:1"
    jsonrpc_allow_methods: [receive, version]
    event_filters:
      receive: { field: envelope.sourceNumber, allow_patterns: ["+1*"], deny_patterns: ["+1666*"] }
"#;

#[test]
fn events_are_filtered() {
    let policy = load(EVENTS);
    let request = pass(&policy, "signal-cli", "GET", "/api/v1/events").unwrap();
    assert!(request.is_stream() && request.judges_events() && !request.judges_answer());
    for (name, data, is_passed) in [
        ("receive", r#"{"envelope":{"sourceNumber":"+12025550123"}}"#, true),
        ("receive", r#"{"envelope":{"source_number":"\u002b12025550123"}}"#, true),
        ("receive", r#"{"envelope":{"sourceNumber":"+442025550123"}}"#, false),
        ("receive", r#"{"envelope":{"sourceNumber":"+16665550123"}}"#, false),
        ("receive", r#"{"envelope":{"sourceNumber":"+12025550123","SourceNumber":"+44"}}"#, false),
        ("receive", r#"{"envelope":[{"sourceNumber":"+12025550123"},{"sourceNumber":"+44"}]}"#, false),
        ("receive", r#"{"envelope":{}}"#, false),
        ("receive", r#"{"envelope":{"sourceNumber":null}}"#, false),
        ("receive", r#"{"envelope":{"sourceNumber":7}}"#, false),
        ("receive", "not json", false),
        ("receive", r#"{"envelope":{"sourceNumber":"+1"},"envelope":{"sourceNumber":"+44"}}"#, false),
        (
            "message",
            r#"{"jsonrpc":"2.0","method":"receive","params":{"envelope":{"sourceNumber":"+12"}}}"#,
            true,
        ),
        (
            "message",
            r#"{"jsonrpc":"2.0","method":"receive","params":{"envelope":{"sourceNumber":"+44"}}}"#,
            false,
        ),
        ("message", r#"{"envelope":{"sourceNumber":"+12"}}"#, false),
        ("other", r#"{"envelope":{"sourceNumber":"+12"}}"#, false),
    ] {
        let verdict = request.judge_event(name, data.as_bytes());
        assert_eq!(matches!(verdict, EventVerdict::Pass), is_passed, "{name} {data}: {verdict:?}");
    }
    assert!(errors(&EVENTS.replace("receive: {", "other: {")).contains("method `other` is not allowed"));
}

fn rpc(policy: &Policy, body: &str) -> Request {
    let gate = policy.rpc_gate("signal-cli", &agent(policy)).unwrap();
    match policy.judge_rpc(&gate, &agent(policy), &mut Limits::new(), 0, body.as_bytes()) {
        RpcVerdict::Judged(judged) => judged.request.unwrap(),
        RpcVerdict::Malformed { said, .. } => panic!("{said}"),
    }
}

#[test]
fn answers_are_filtered() {
    let policy = load(EVENTS);
    let one = rpc(&policy, r#"{"jsonrpc":"2.0","id":1,"method":"receive"}"#);
    assert!(one.judges_answer());
    let good = r#"{"envelope":{"sourceNumber":"+12025550123"}}"#;
    let bad = r#"{"envelope":{"sourceNumber":"+44"}}"#;
    let judge = |request: &Request, answer: &str| match request.judge_answer(answer.as_bytes()) {
        AnswerVerdict::Same => "same".to_owned(),
        AnswerVerdict::Refuse => "refuse".to_owned(),
        AnswerVerdict::Changed { body, dropped, .. } => {
            format!("{dropped} {}", String::from_utf8(body).unwrap())
        }
    };
    for (answer, expected) in [
        (format!(r#"{{"id":1, "result":[{good}]}}"#), "same".to_owned()),
        (
            format!(r#"{{"id":1, "result":[{good}, {bad} ,{good}] , "x":2}}"#),
            format!(r#"1 {{"id":1, "result":[{good},{good}] , "x":2}}"#),
        ),
        (format!(r#"{{"id":1,"result":[{bad},7]}}"#), r#"2 {"id":1,"result":[]}"#.to_owned()),
        (format!(r#"{{"id":1,"result":{bad}}}"#), r#"1 {"id":1,"result":null}"#.to_owned()),
        (r#"{"id":1,"error":{"code":1}}"#.to_owned(), "same".to_owned()),
        (r#"{"id":1,"result":null}"#.to_owned(), "same".to_owned()),
        ("<html>".to_owned(), "refuse".to_owned()),
        (String::new(), "same".to_owned()),
        (format!(r#"{{"id":99,"result":{bad}}}"#), r#"1 {"id":99,"result":null}"#.to_owned()),
    ] {
        assert_eq!(judge(&one, &answer), expected, "{answer}");
    }
    let version = r#"{"version":"1"}"#;
    let batch = rpc(
        &policy,
        r#"[{"jsonrpc":"2.0","id":1.0,"method":"version"},{"jsonrpc":"2.0","id":1e1,"method":"receive"}]"#,
    );
    let answer = format!(r#"[{{"id":10,"result":[{bad}]}},{{"id":1,"result":{version}}}]"#);
    assert_eq!(
        judge(&batch, &answer),
        format!(r#"1 [{{"id":10,"result":[]}},{{"id":1,"result":{version}}}]"#)
    );
    // An id that could be either call's is both's.
    let batch = rpc(
        &policy,
        r#"[{"jsonrpc":"2.0","id":1.0,"method":"version"},{"jsonrpc":"2.0","id":1,"method":"receive"}]"#,
    );
    assert_eq!(
        judge(&batch, &format!(r#"[{{"id":1.0,"result":{bad}}}]"#)),
        r#"1 [{"id":1.0,"result":null}]"#
    );
    let other = rpc(&policy, r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
    assert!(!other.judges_answer() && judge(&other, "anything") == "same");
}

const CONTENT: &str = r#"
tools:
  signal-cli: { type: http, upstream: "http://127.0.0.1:1", jsonrpc_allow_methods: ["*"] }
  web: { type: http, upstream: "http://127.0.0.1:1", http_allow: ["POST /p", "GET /**"] }
  tee: { type: cli, binary: /usr/bin/tee, argv_allow_patterns: ["**"], stdin: true }
content_filters:
  - { pattern: '(?i)password\s*[:=]', action: block }
  - { pattern: 'token', action: warn }
"#;

#[test]
fn content_is_blocked_wherever_it_goes_out() {
    let policy = load(CONTENT);
    for (request, expected) in [
        (r#"{"tool":"signal-cli","method":"send","params":{"message":"my Password: x"}}"#, "block"),
        (r#"{"tool":"signal-cli","method":"send","params":{"message":"my p\u0061ssword\u003a x"}}"#, "block"),
        (r#"{"tool":"signal-cli","method":"send","params":{"message":"my pass word"}}"#, "allow"),
        (r#"{"tool":"signal-cli","method":"send","params":{"x":["password ="]}}"#, "block"),
        (r#"{"tool":"tee","argv":["a","password","=b"]}"#, "block"),
        (r#"{"tool":"tee","argv":["a"]}"#, "allow"),
        (r#"{"tool":"tee","argv":["a"],"stdin":"PASSWORD=1"}"#, "block"),
        (r#"{"tool":"web","method":"POST","path":"/p","body":"password = 1"}"#, "block"),
        (r#"{"tool":"web","method":"POST","path":"/p","body":"nothing"}"#, "allow"),
        (r#"{"tool":"web","method":"GET","path":"/x?password%3d1"}"#, "block"),
    ] {
        assert_eq!(outcome(&policy, request), expected, "{request}");
    }
    let warned = policy
        .explain(r#"{"tool":"signal-cli","method":"send","params":{"message":"a t\u006fken"}}"#)
        .unwrap();
    assert_eq!(warned.warnings[0].text(), "content_filters[1]");
}

#[test]
fn a_large_body_is_judged_in_steps() {
    let policy = load(CONTENT);
    let caller = agent(&policy);
    let filler = "x ".repeat(600_000);
    for (text, is_blocked) in [("passWORD :", true), ("pass", false)] {
        let body = format!(
            r#"[{{"jsonrpc":"2.0","id":1,"method":"a","params":{{"m":"{filler}{text}"}}}},{{"jsonrpc":"2.0","id":2,"method":"b"}}]"#
        );
        let mut work = policy.rpc_gate("signal-cli", &caller).unwrap().begin();
        for end in (0..body.len()).step_by(100_000) {
            work.feed(&body.as_bytes()[..end]).unwrap();
        }
        let mut limits = Limits::new();
        let mut steps = 1;
        let verdict = loop {
            match work.step(&policy, &caller, &mut limits, 0, body.as_bytes()) {
                Some(verdict) => break verdict,
                None => steps += 1,
            }
        };
        let RpcVerdict::Judged(judged) = verdict else { panic!("malformed") };
        let kinds: Vec<_> =
            judged.elements.iter().map(|e| e.verdict.as_ref().err().map(|d| d.kind)).collect();
        assert_eq!(kinds, [is_blocked.then_some(DenialKind::Blocked), None]);
        assert!(steps > 2, "in {steps} steps");
    }
}

#[test]
fn tests_in_the_file_are_run() {
    let base = "tools: { id: { type: cli, binary: /usr/bin/id, argv_allow_patterns: ['-u'] } }\ntests:\n";
    let with = |test: &str| errors(&format!("{base}  - {test}\n"));
    assert_eq!(with("{ tool: id, argv: ['-u'], expect: allow }"), "");
    assert_eq!(with("{ tool: id, argv: ['-g'], expect: deny }"), "");
    assert_eq!(with("{ tool: id, expect: deny }"), "");
    for (test, wanted) in [
        (
            "{ tool: id, argv: ['-g'], expect: allow }",
            "p:3:5: the test failed: expected allow, got deny by id: no rule",
        ),
        ("{ tool: id, argv: ['-u'], expect: deny }", "got allow by id: argv_allow_patterns[0] (line 1)"),
        ("{ tool: id, argv: ['-u'] }", "needs `expect`"),
        ("{ tool: id, argv: ['-u'], expect: maybe }", "one of allow, deny, block"),
        ("{ tool: id, argv: ['-u'], method: x, expect: deny }", "exactly one of"),
        ("{ tool: id, arg: ['-u'], expect: deny }", "did you mean `argv`?"),
        ("{ argv: ['-u'], expect: deny }", "needs a `tool`"),
        ("7", "a request is an object"),
    ] {
        assert!(with(test).contains(wanted), "{test}: {}", with(test));
    }
}

#[test]
fn lints_name_what_is_perhaps_not_meant() {
    let policy = load(
        r#"
tools:
  signal-cli:
    type: http
    upstream: "http://10.0.0.1:1"
    jsonrpc_allow_methods: ["send*"]
    jsonrpc_deny_methods: [removeAccount]
    jsonrpc_param_filters: { send: { field: recipient, allow_patterns: ["^+1.*"] } }
    headers_inject: { X: "secret-value" }
  sh: { type: cli, binary: /bin/sh, argv_allow_patterns: ["*", "get *"], env_allow: ["*", PATH] }
"#,
    );
    let lints: Vec<_> = policy.lints().iter().map(|lint| lint.message().to_owned()).collect();
    for wanted in [
        "unencrypted",
        "nothing that this denies",
        "groupId, username, noteToSelf",
        "is a glob",
        "`sendReaction` may go",
        "`sh` runs whatever",
        "any arguments",
        "matches a flag",
        "any variable",
        "with `PATH`",
    ] {
        assert!(lints.iter().any(|lint| lint.contains(wanted)), "{wanted} is not in {lints:#?}");
    }
    assert!(policy.warnings().is_empty());
}

#[test]
fn explains_what_it_tried() {
    let policy = load(EVENTS);
    let explained = policy.explain(r#"{"tool":"signal-cli","method":"removeAccount"}"#).unwrap();
    assert_eq!(explained.outcome, Outcome::Deny);
    assert_eq!(explained.steps.len(), 2);
    assert!(policy.explain("{").is_err() && policy.explain("[]").is_err());
    assert!(policy.explain(r#"{"tool":"x","tool":"y"}"#).is_err());
    let unknown = policy.explain(r#"{"tool":"nope","method":"x"}"#).unwrap();
    assert_eq!(unknown.rule.unwrap().text(), "tools");
}

#[test]
fn clients_are_asked_for() {
    let policy = load(
        "tools: { id: { type: cli, binary: /usr/bin/id, argv_allow_patterns: ['*'] } }\nclients:\n  - { group: staff, tools: [id] }\n  - { uid: 7, tools: [] }\n",
    );
    for (client, expected) in [
        (r#"{"groups":["x","staff"]}"#, "allow"),
        (r#"{"group":"staff"}"#, "allow"),
        (r#"{"uid":7}"#, "deny"),
        (r#"{"uid":0}"#, "deny"),
        (r#"{"agent":"vm"}"#, "deny"),
    ] {
        assert_eq!(outcome(&policy, &format!(r#"{{"tool":"id","client":{client}}}"#)), expected, "{client}");
    }
    assert!(errors("clients: [{ agent: a, uid: 1, tools: [] }]").contains("exactly one"));
    assert!(errors("clients: [{ agent: a, tools: [nope] }]").contains("no tool `nope`"));
    assert!(errors("clients: [{ agent: a }]").contains("needs `tools`"));
}
