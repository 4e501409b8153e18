//! What a policy file may not be, and what is said about it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may fail loudly"
)]

use carapace_policy::Policy;

fn problems(text: &str) -> String {
    match Policy::parse("p.yaml", text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(problems) => problems.to_string(),
    }
}

const HEAD: &str =
    "tools:\n  t:\n    type: http\n    upstream: http://127.0.0.1:1\n    jsonrpc_allow_methods: [send]\n";

#[test]
fn points_at_the_mistake() {
    for (tail, wanted) in [
        (
            "    jsonrpc_alow_methods: [x]\n",
            "p.yaml:6:5: unknown key `jsonrpc_alow_methods`: did you mean `jsonrpc_allow_methods`?",
        ),
        ("    jsonrpc_deny_methods: ['[']\n", "p.yaml:6:28: pattern `[` has a `[` that is not closed"),
        ("    timeout_secs: '5'\n", "p.yaml:6:19: expected a whole number, found text"),
        ("    timeout_secs: -5\n", "p.yaml:6:19: expected a whole number"),
        ("    timeout_secs: 0\n", "p.yaml:6:19: 0 is not between 1 and 604800"),
        (
            "    jsonrpc_deny_methods: [15]\n",
            "p.yaml:6:28: expected text, found a number: write it in quotes",
        ),
        (
            "    jsonrpc_param_filters: { receive: { field: a } }\n",
            "p.yaml:6:30: method `receive` is not allowed",
        ),
        ("    jsonrpc_allow_params: { receive: [a] }\n", "p.yaml:6:29: method `receive` is not allowed"),
        (
            "    jsonrpc_param_filters: { send: { allow_patterns: ['*'] } }\n",
            "p.yaml:6:36: a filter needs `field`",
        ),
        ("    binary: /bin/ls\n", "`binary` belongs to tools of type cli"),
        ("    audit: { enabled: yes }\n", "p.yaml:6:23: expected true or false, found text"),
        ("    upstream: http://127.0.0.1:2\n", "p.yaml:6:5: "),
        ("  t:\n    type: http\n", "p.yaml:6:3: "),
        ("    audit: &a { enabled: true }\n", "p.yaml:6:"),
        ("    audit: !x { enabled: true }\n", "p.yaml:6:"),
        ("    <<: { timeout_secs: 1 }\n", "p.yaml:6:"),
        ("    audit: [\n", "p.yaml:"),
    ] {
        let shown = problems(&format!("{HEAD}{tail}"));
        println!("{shown}\n");
        assert!(shown.contains(wanted), "wanted {wanted}, got:\n{shown}");
        assert!(shown.contains('^'), "no caret:\n{shown}");
    }
}

#[test]
fn names_all_mistakes_of_meaning() {
    let shown = problems(&format!("{HEAD}    a: 1\n    b: 2\n    jsonrpc_deny_methods: ['{{']\n"));
    assert!(
        shown.contains("p.yaml:6:5:") && shown.contains("p.yaml:7:5:") && shown.contains("p.yaml:8:28:"),
        "{shown}"
    );
}

#[test]
fn quotes_no_secret() {
    for tail in [
        "    headers_inject: { A: 123456789 }\n",
        "    headers_inject:\n      A: \"hunter-123456789\\x01\"\n",
        "    headers_inject:\n      A: \"123456789\n",
        "    headers_inject:\n      A: { literal: \"\\x01123456789\" }\n",
        "    headers_inject:\n      A: 123456789\n      A: 123456789\n",
        "    headers_inject:\n      A: *123456789\n",
        "    headers_inject:\n      A: !123456789 x\n",
        "    headers_inject:\n      ? 123456789\n",
    ] {
        let shown = problems(&format!("{HEAD}{tail}"));
        println!("{shown}\n");
        assert!(!shown.contains("123456789"), "{shown}");
    }
}

#[test]
fn an_empty_file_denies_everything() {
    let policy = Policy::parse("p", "").unwrap();
    assert_eq!((policy.tools().count(), policy.warnings().len()), (0, 1));
}
