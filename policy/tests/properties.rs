//! Properties of the parts: globs, words, JSON, content; each against something simpler.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail loudly")]

use carapace_policy::glob::Glob;
use carapace_policy::json::{self, JsonError, Scan};
use carapace_policy::*;
use proptest::prelude::*;
use proptest::sample::select;

/// A glob as the regular expression that means the same.
fn as_regex(pattern: &str) -> Option<String> {
    let mut regex = String::from("(?s)^(?:");
    let mut depth = 0;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '{' => {
                depth += 1;
                regex.push_str("(?:");
            }
            '}' => {
                depth -= 1;
                regex.push(')');
            }
            ',' if depth > 0 => regex.push('|'),
            '[' => {
                regex.push('[');
                let mut class = chars.by_ref().take_while(|&c| c != ']').collect::<String>();
                if let Some(rest) = class.strip_prefix('!') {
                    class = format!("^{rest}");
                }
                regex.push_str(&class);
                regex.push(']');
            }
            '\\' => regex.push_str(&regex_lite::escape(&chars.next()?.to_string())),
            other => regex.push_str(&regex_lite::escape(&other.to_string())),
        }
    }
    Some(regex + ")$")
}

fn pattern() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a",
        "b",
        "é",
        "+",
        ".",
        "*",
        "**",
        "?",
        "[ab]",
        "[!a]",
        "[a-c]",
        "{a,b}",
        "{ab,{b*,?},}",
        "\\*",
        "\\{",
        ",",
    ]);
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(select(vec!["a", "b", "c", "é", "+", ".", "*", "{", ",", "\n"]), 0..8)
        .prop_map(|parts| parts.concat())
}

/// An allow pattern, tried in every way there is.
fn allows(words: &[&str], argv: &[String]) -> bool {
    match (words.split_first(), argv.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => (0..=argv.len()).any(|n| allows(rest, &argv[n..])),
        (Some((word, rest)), Some((arg, after))) => {
            Glob::new(word).unwrap().matches(arg.as_bytes()) && allows(rest, after)
        }
        _ => false,
    }
}

/// A deny pattern without flags: its words in this order, anything between them.
fn denies(words: &[&str], argv: &[String]) -> bool {
    match (words.split_first(), argv.split_first()) {
        (None, _) => true,
        (Some((&("*" | "**"), rest)), _) => denies(rest, argv),
        (Some(_), None) => false,
        (Some((word, rest)), Some((arg, after))) => {
            denies(words, after) || Glob::new(word).unwrap().matches(arg.as_bytes()) && denies(rest, after)
        }
    }
}

fn words() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(select(vec!["get", "item", "*", "**", "g*", "del", "?et"]), 1..4)
}

fn argv() -> impl Strategy<Value = Vec<String>> {
    let arg = select(vec!["get", "item", "del", "get x", "", "set", "g", "--x", "-v", "--get=item"]);
    prop::collection::vec(arg.prop_map(str::to_owned), 0..5)
}

fn runs(allow: &[String], deny: &[String], argv: &[String]) -> bool {
    let quoted = |all: &[String]| all.iter().map(|p| format!("\"{p}\"")).collect::<Vec<_>>().join(", ");
    let file = format!(
        "tools: {{ t: {{ type: cli, binary: /bin/t, argv_allow_patterns: [{}], argv_deny_patterns: [{}] }} }}",
        quoted(allow),
        quoted(deny)
    );
    let policy = Policy::parse("p", &file).unwrap_or_else(|problems| panic!("{problems}"));
    let caller = policy.admit(&Peer { agent: Some("vm".to_owned()), ..Peer::default() }).unwrap();
    let argv: Vec<&[u8]> = argv.iter().map(|arg| arg.as_bytes()).collect();
    let request = ExecRequest { tool: "t", argv: &argv, env: &[], cwd: None, tty: false };
    policy.judge_exec(&caller, &mut Limits::new(), 0, &request).is_ok()
}

/// Text that is JSON, or nearly.
fn almost_json() -> impl Strategy<Value = String> {
    let token = select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"b\"",
        "\"\\u0061\"",
        "\"é\"",
        "\"\\ud83d\\ude00\"",
        "\"\\x\"",
        "1",
        "-0",
        "01",
        "1.5e-3",
        "1.",
        "true",
        "null",
        "nul",
        " ",
        "\n",
        "\"",
        "\\",
        "{\"a\":1}",
        "[1,2]",
        "{\"a\":{\"b\":[]}}",
        "\u{feff}",
    ]);
    prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn globs_match_as_regular_expressions_do(pattern in pattern(), text in text()) {
        let Some(regex) = as_regex(&pattern) else { return Ok(()) };
        let regex = regex_lite::Regex::new(&regex).unwrap();
        let glob = Glob::new(&pattern).unwrap();
        prop_assert_eq!(glob.matches(text.as_bytes()), regex.is_match(&text), "{} {}", pattern, text);
    }

    #[test]
    fn no_pattern_and_no_value_is_too_odd(pattern in "\\PC{0,12}", value in prop::collection::vec(any::<u8>(), 0..20)) {
        if let Ok(glob) = Glob::new(&pattern) {
            prop_assert!(!glob.matches(&value) || glob.matches_ignoring_case(&value));
        }
    }

    #[test]
    fn a_literal_matches_itself_only(text in text(), other in text()) {
        let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
        prop_assert_eq!(Glob::new(&escaped).unwrap().matches(other.as_bytes()), text == other);
    }

    #[test]
    fn words_match_argument_by_argument(words in words(), argv in argv()) {
        let expected = words == ["*"] || allows(&words, &argv);
        prop_assert_eq!(runs(&[words.join(" ")], &[], &argv), expected, "{:?} {:?}", words, argv);
    }

    #[test]
    fn deny_words_are_a_subsequence(words in words(), argv in argv()) {
        // `--get=item` also offers its value.
        let offered: Vec<String> = argv.iter().flat_map(|arg| match arg.strip_prefix("--get=") {
            Some(value) => vec![arg.clone(), value.to_owned()],
            None => vec![arg.clone()],
        }).collect();
        prop_assert_eq!(!runs(&["**".to_owned()], &[words.join(" ")], &argv), denies(&words, &offered), "{:?} {:?}", words, argv);
    }

    #[test]
    fn a_deny_pattern_never_allows_more(allow in words(), deny in words(), more in words(), argv in argv()) {
        let (allow, deny, more) = ([allow.join(" ")], deny.join(" "), more.join(" "));
        let before = runs(&allow, std::slice::from_ref(&deny), &argv);
        let after = runs(&allow, &[deny, more], &argv);
        prop_assert!(before || !after);
    }

    #[test]
    fn accepts_what_is_json_and_cannot_be_misread(text in almost_json()) {
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        match Scan::whole(text.as_bytes()) {
            Ok(_) => prop_assert!(is_json, "accepted {}", text),
            Err(JsonError::Duplicate(_)) => {}
            Err(error) => prop_assert!(!is_json, "{}: {}", error, text),
        }
    }

    #[test]
    fn survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize) {
        let whole = Scan::whole(&bytes).map(|_| ());
        let mut scan = Scan::new();
        let parts = scan.advance(&bytes[..cut.min(bytes.len())]).and_then(|()| scan.finish(&bytes));
        prop_assert_eq!(parts, whole);
        let _ = json::rpc_ids(&bytes);
        let value = json::Value::new(&bytes);
        let _ = (value.members().count(), value.elements().count(), value.as_str());
    }

    #[test]
    fn what_is_escaped_reads_back(text in any::<String>()) {
        let mut out = Vec::new();
        json::escape(&mut out, &text);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
        prop_assert!(Scan::whole(&out).is_ok());
        let value = json::Value::new(&out).as_str();
        prop_assert_eq!(value.as_deref(), Some(text.as_str()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A file that is nearly a policy gives a policy or problems that can be shown.
    #[test]
    fn no_file_is_too_odd(at in 0..2000_usize, junk in select(vec!["", "\"", "{", "]", ":", "- ", "\n", "\t", "&a ", "*a", "!x ", "<<: ", "'", "0x1", "é", "\0", "|\n"])) {
        const FILE: &str = include_str!("../../examples/signal-cli.yaml");
        let at = FILE.floor_char_boundary(at.min(FILE.len()));
        let text = format!("{}{junk}{}", &FILE[..at], &FILE[FILE.ceil_char_boundary((at + 1).min(FILE.len()))..]);
        if let Err(problems) = Policy::parse("p", &text) {
            prop_assert!(problems.iter().count() > 0 && !problems.to_string().is_empty());
        }
    }
}
