//! How long decisions take: `cargo run --release -p carapace-policy --example decide`
//!
//! Prints the median of many rounds, in microseconds per decision (the goal: 20 us with 1,000 rules), and then the longest
//! single step while bodies of 16 MiB are judged (the goal: 2 ms).
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program that measures needs a clock"
)]
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::fmt::Write as _;
use std::time::Instant;

use carapace_policy::{Caller, ExecRequest, Limits, Peer, Policy, RpcVerdict, json};

const GUIDE: &str = "
tools:
  signal-cli:
    type: http
    upstream: http://127.0.0.1:18080
    jsonrpc_allow_methods: [send, receive, listMessages, version]
    jsonrpc_deny_methods: [deleteEverything, removeAccount]
    jsonrpc_param_filters:
      send: { field: recipientNumber, allow_patterns: ['+1*'], deny_patterns: ['+15551234567'] }
";

const CALL: &str = r#"{"jsonrpc":"2.0","id":"7c0f4a31-5a0e-4d5e-9a45-0d7c9be0a6a1","method":"send","params":{"account":"+12025550100","recipient":["+12025550123"],"message":"Your build of main has finished: 412 tests passed, 0 failed. The artifacts are in the usual place, and the report is attached below."}}"#;

fn main() {
    let guide = load(GUIDE);
    row("the guide's policy, one call of 278 bytes", || rpc(&guide, CALL));
    let batch = format!("[{}]", [CALL; 10].join(","));
    row("the same, a batch of ten", || rpc(&guide, &batch));
    row("the strict pass alone", || json::Scan::whole(CALL.as_bytes()).is_ok());

    let rules = 1000;
    row("1,000 method patterns, the last one matches", {
        let policy = load(&methods(rules));
        move || rpc(&policy, CALL)
    });
    row("1,000 recipient prefixes and 1,000 denied numbers, none matches", {
        let policy = load(&recipients(rules));
        move || !rpc(&policy, CALL)
    });
    row("the same, the last prefix matches", {
        let policy = load(&recipients(rules).replace("+1999*", "+1202*"));
        move || rpc(&policy, CALL)
    });
    row("1,000 patterns of the shape *x*, none matches", {
        let policy = load(&recipients(rules).replace("'+1", "'*1"));
        move || !rpc(&policy, CALL)
    });
    let argv: [&[u8]; 5] = [b"item", b"get", b"my key", b"--vault", b"Agents"];
    row("1,000 argv patterns and 1,000 deny patterns, none matches", {
        let policy = load(&arguments(rules));
        move || !exec(&policy, &argv)
    });
    row("a strict command among 1,000", {
        let policy = load(&commands(rules));
        move || exec(&policy, &argv)
    });
    let text = recipients(rules);
    row("reading a file of 2,000 rules", || Policy::parse("bench", &text).is_ok());
    steps();
}

/// The longest step of judging large bodies of several shapes.
fn steps() {
    const SIZE: usize = 16 * 1024 * 1024;
    let call = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"send","params":{params}}}"#);
    let filled = |unit: &str| unit.repeat(SIZE / unit.len() - 16);
    let plain = format!("{GUIDE}\n").replace("['+1*']", "['*']").replace("recipientNumber", "other");
    let plain = plain.replace("deny_patterns: ['+15551234567'] }", "required: false }");
    let filtered =
        format!("{plain}content_filters: [{{ pattern: '[0-9]{{4}}-[a-z]{{4}}', action: block }}]\n");
    let members: Vec<_> = (0..4000).map(|i| format!("\"key{i}\":0")).collect();
    let object = format!("{{{}}}", members.join(","));
    let texts: [(&str, String); 6] = [
        ("one long text", call(&format!(r#"{{"a":"{}"}}"#, filled("some text ")))),
        ("one long text of escapes", call(&format!(r#"{{"a":"{}"}}"#, filled("\\u00e9")))),
        ("a list of numbers", call(&format!(r#"{{"a":[{}0]}}"#, filled("1,")))),
        ("a list of small objects", call(&format!(r#"{{"a":[{}0]}}"#, filled(r#"{"b":1},"#)))),
        (
            "a list of objects with 4,000 members",
            call(&format!(r#"{{"a":[{}0]}}"#, filled(&format!("{object},")))),
        ),
        ("a batch of 1,000 calls", {
            let one = call(&format!(r#"{{"a":"{}"}}"#, "x".repeat(16_000)));
            format!("[{}]", vec![one; 1000].join(","))
        }),
    ];
    for (name, body) in &texts {
        println!("{:10.2} us  longest step: {name}", longest_step(&load(&plain), body.as_bytes()));
    }
    for (name, body) in &texts {
        let name = format!("{name}, with a content filter");
        println!("{:10.2} us  longest step: {name}", longest_step(&load(&filtered), body.as_bytes()));
    }
}

/// In microseconds. Every run takes the same steps; of each step the quickest run counts, because another program's turn
/// on the processor is no part of it.
fn longest_step(policy: &Policy, body: &[u8]) -> f64 {
    let mut quickest: Vec<f64> = Vec::new();
    for _ in 0..7 {
        for (i, took) in run_in_steps(policy, body).into_iter().enumerate() {
            match quickest.get_mut(i) {
                Some(best) => *best = best.min(took),
                None => quickest.push(took),
            }
        }
    }
    quickest.into_iter().fold(0.0, f64::max)
}

fn run_in_steps(policy: &Policy, body: &[u8]) -> Vec<f64> {
    let mut steps = Vec::new();
    let Some(caller) = caller(policy) else { return steps };
    let Ok(gate) = policy.rpc_gate("signal-cli", &caller) else { return steps };
    let mut work = gate.begin();
    let mut limits = Limits::new();
    loop {
        let start = Instant::now();
        let verdict = work.step(policy, &caller, &mut limits, 0, body);
        steps.push(start.elapsed().as_secs_f64() * 1e6);
        if let Some(verdict) = verdict {
            assert!(matches!(verdict, RpcVerdict::Judged(_)), "{verdict:?}");
            return steps;
        }
    }
}

/// Measures in rounds of about two milliseconds, and prints the median.
fn row(name: &str, mut decide: impl FnMut() -> bool) {
    let start = Instant::now();
    assert!(decide(), "{name}: not the decision that was to be measured");
    let once = start.elapsed().as_nanos().max(1);
    let count = u32::try_from(2_000_000 / once).unwrap_or(1).clamp(1, 20_000);
    let mut rounds: Vec<f64> = (0..200)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..count {
                std::hint::black_box(decide());
            }
            start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let median = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
    println!("{median:10.2} us  {name}");
}

fn load(text: &str) -> Policy {
    match Policy::parse("bench", text) {
        Ok(policy) => policy,
        Err(problems) => {
            println!("{problems}");
            Policy::deny_all()
        }
    }
}

fn caller(policy: &Policy) -> Option<Caller> {
    policy.admit(&Peer { agent: Some("vm".to_owned()), ..Peer::default() }).ok()
}

fn rpc(policy: &Policy, body: &str) -> bool {
    let Some(caller) = caller(policy) else { return false };
    let Ok(gate) = policy.rpc_gate("signal-cli", &caller) else { return false };
    match policy.judge_rpc(&gate, &caller, &mut Limits::new(), 0, body.as_bytes()) {
        RpcVerdict::Judged(judged) => judged.request.is_some(),
        RpcVerdict::Malformed { .. } => false,
    }
}

fn exec(policy: &Policy, argv: &[&[u8]]) -> bool {
    let Some(caller) = caller(policy) else { return false };
    let request = ExecRequest { tool: "op", argv, env: &[], cwd: None, tty: false };
    policy.judge_exec(&caller, &mut Limits::new(), 0, &request).is_ok()
}

fn listed(count: usize, one: impl Fn(usize) -> String) -> String {
    let all: Vec<_> = (0..count).map(|i| format!("'{}'", one(i))).collect();
    format!("[{}]", all.join(", "))
}

fn methods(count: usize) -> String {
    let patterns = listed(count - 1, |i| format!("method{i}*")).replace(']', ", 'se*']");
    format!(
        "tools:\n  signal-cli: {{ type: http, upstream: http://127.0.0.1:1, jsonrpc_allow_methods: {patterns} }}\n"
    )
}

fn recipients(count: usize) -> String {
    format!(
        "tools:\n  signal-cli:\n    type: http\n    upstream: http://127.0.0.1:1\n    jsonrpc_allow_methods: [send]\n    jsonrpc_param_filters:\n      send:\n        field: recipient\n        allow_patterns: {}\n        deny_patterns: {}\n",
        listed(count, |i| format!("+1{}*", 300 + i * 700 / (count - 1).max(1)).replace("+11000*", "+1999*")),
        listed(count, |i| format!("+1202555{:04}", 9000 + i)),
    )
}

fn arguments(count: usize) -> String {
    format!(
        "tools:\n  op:\n    type: cli\n    binary: /usr/bin/op\n    argv_allow_patterns: {}\n    argv_deny_patterns: {}\n",
        listed(count, |i| format!("item get * --vault V{i}")),
        listed(count, |i| format!("item delete{i} --force{i}")),
    )
}

fn commands(count: usize) -> String {
    let mut text = "tools:\n  op:\n    type: cli\n    binary: /usr/bin/op\n    commands:\n".to_owned();
    for i in 1..count {
        // Writing to a String does not fail.
        let _ = writeln!(text, "      item c{i}: {{ flags: {{ --vault: Agents }}, args: ['*'] }}");
    }
    text + "      item get: { flags: { --vault: Agents }, args: ['*'] }\n"
}
