//! The policy agrees with a deliberately stupid model of itself, and cannot be talked round.
//!
//! The model knows no spans, no traces and no shortcuts: it works on parsed trees, tries every pattern by trial and error,
//! and is written from `docs/policy.md` rather than from the code.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail loudly"
)]

use carapace_policy::*;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value};

// ---------------------------------------------------------------------------------------------- the model

/// `*` and `?` only, by trying everything.
fn glob(pattern: &[u8], value: &[u8]) -> bool {
    match (pattern.split_first(), value.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=value.len()).any(|n| glob(rest, &value[n..])),
        (Some((b'?', rest)), Some((_, after))) => glob(rest, after),
        (Some((a, rest)), Some((b, after))) if a == b => glob(rest, after),
        _ => false,
    }
}

fn matches_any(patterns: &[String], value: &str) -> bool {
    patterns.iter().any(|pattern| glob(pattern.as_bytes(), value.as_bytes()))
}

#[derive(Clone, Debug)]
struct Filter {
    field: String,
    allow: Vec<String>,
    deny: Vec<String>,
    required: bool,
}

#[derive(Clone, Debug)]
struct Rules {
    is_signal: bool,
    allow: Vec<String>,
    deny: Vec<String>,
    filters: Vec<Filter>,
    params: Option<Vec<String>>,
}

fn quoted(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", "))
}

impl Rules {
    /// The rules as a policy file. Filters and parameter lists are those of `send`.
    fn file(&self) -> String {
        let mut file = format!(
            "tools:\n  t:\n    type: http\n    api: {}\n    upstream: http://127.0.0.1:1\n    jsonrpc_allow_methods: {}\n    jsonrpc_deny_methods: {}\n",
            if self.is_signal { "signal-cli" } else { "jsonrpc" },
            quoted(&self.allow),
            quoted(&self.deny),
        );
        if !self.filters.is_empty() {
            file.push_str("    jsonrpc_param_filters:\n      send:\n");
            for filter in &self.filters {
                file.push_str(&format!(
                    "        - {{ field: {}, allow_patterns: {}, deny_patterns: {}, required: {} }}\n",
                    filter.field,
                    quoted(&filter.allow),
                    quoted(&filter.deny),
                    filter.required
                ));
            }
        }
        if let Some(params) = &self.params {
            file.push_str(&format!("    jsonrpc_allow_params: {{ send: {} }}\n", quoted(params)));
        }
        file
    }

    fn fold(&self, name: &str) -> String {
        let mut folded = name.to_ascii_lowercase().replace(['-', '_'], "");
        if folded.len() > 1 && folded.ends_with('s') {
            folded.pop();
        }
        if self.is_signal && folded == "recipientnumber" { "recipient".to_owned() } else { folded }
    }

    fn allows(&self, method: &str, params: &Value) -> bool {
        if matches_any(&self.deny, method) || !matches_any(&self.allow, method) {
            return false;
        }
        let is_send = method == "send";
        let empty = Map::new();
        let members = match params {
            Value::Null => &empty,
            Value::Object(members) => members,
            Value::Array(list) if list.is_empty() => &empty,
            Value::Array(_) => {
                return !self.is_signal && !(is_send && (!self.filters.is_empty() || self.params.is_some()));
            }
            _ => return false,
        };
        if self.is_signal
            && !members.iter().all(|(name, value)| self.fold(name) != "attachment" || is_data(value))
        {
            return false;
        }
        if !is_send {
            return true;
        }
        if let Some(names) = &self.params
            && !members.keys().all(|name| names.contains(name))
        {
            return false;
        }
        self.allows_destinations(members) && self.filters.iter().all(|filter| self.passes(filter, members))
    }

    fn is_destination(&self, folded: &str) -> bool {
        self.is_signal && ["recipient", "groupid", "username", "notetoself"].contains(&folded)
    }

    fn is_filtered(&self, folded: &str) -> bool {
        self.filters.iter().any(|filter| self.fold(&filter.field) == folded)
    }

    fn allows_destinations(&self, members: &Map<String, Value>) -> bool {
        if !self.filters.iter().any(|filter| self.is_destination(&self.fold(&filter.field))) {
            return true;
        }
        members.iter().filter(|(_, value)| is_present(value)).all(|(name, value)| {
            let folded = self.fold(name);
            !self.is_destination(&folded)
                || self.is_filtered(&folded)
                || self.params.as_ref().is_some_and(|names| names.contains(name))
                || folded == "notetoself" && *value == Value::Bool(false)
        })
    }

    fn passes(&self, filter: &Filter, members: &Map<String, Value>) -> bool {
        let field = self.fold(&filter.field);
        let mut texts = Vec::new();
        for (_, value) in members.iter().filter(|(name, _)| self.fold(name) == field) {
            match value {
                Value::Null => {}
                Value::String(text) => texts.push(text.clone()),
                Value::Array(list) if list.iter().all(Value::is_string) => {
                    texts.extend(list.iter().map(|text| text.as_str().unwrap().to_owned()));
                }
                _ => return false,
            }
        }
        if texts.is_empty() {
            return !filter.required || self.is_destination(&field) && self.has_judged_destination(members);
        }
        texts.iter().all(|text| {
            let is_denied = matches_any(&filter.deny, text)
                || ["recipient", "username"].contains(&field.as_str())
                    && self.is_signal
                    && matches_any(&filter.deny, &text.to_ascii_lowercase());
            !is_denied && matches_any(&filter.allow, text) && (!self.is_signal || has_format(&field, text))
        })
    }

    fn has_judged_destination(&self, members: &Map<String, Value>) -> bool {
        members.iter().any(|(name, value)| {
            let folded = self.fold(name);
            is_present(value)
                && self.is_destination(&folded)
                && folded != "notetoself"
                && self.is_filtered(&folded)
        })
    }
}

fn is_present(value: &Value) -> bool {
    !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty())
}

fn is_data(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.starts_with("data:"),
        Value::Array(list) => {
            list.iter().all(|text| text.as_str().is_some_and(|text| text.starts_with("data:")))
        }
        _ => false,
    }
}

fn has_format(folded: &str, text: &str) -> bool {
    let number = regex_lite::Regex::new(r"^\+[1-9][0-9]{1,14}$").unwrap();
    let username = regex_lite::Regex::new(r"^(u:)?[a-zA-Z_][a-zA-Z0-9_]{2,31}\.[0-9]{2,9}$").unwrap();
    match folded {
        "recipient" => number.is_match(text) || username.is_match(text),
        "username" => username.is_match(text),
        "groupid" => text == "QQ==" || text == "AAAA",
        "notetoself" => false,
        _ => true,
    }
}

// ------------------------------------------------------------------------------------------- what is tried

fn method() -> impl Strategy<Value = String> {
    select(vec!["send", "sendTyping", "version", "receive", "removeAccount", "", "Send"])
        .prop_map(str::to_owned)
}

fn method_patterns() -> impl Strategy<Value = Vec<String>> {
    let pattern = select(vec!["send", "send*", "*", "version", "re?eive", "remove*", "*e", "nothing"]);
    prop::collection::vec(pattern.prop_map(str::to_owned), 0..4)
}

const TEXTS: [&str; 14] = [
    "+1",
    "+12",
    "+12025550123",
    "+15551234567",
    "+442071838750",
    "+1 202",
    "alice.01",
    "Alice.01",
    "u:bob.22",
    "QQ==",
    "QR==",
    "AAAA",
    "",
    "x",
];

fn value_patterns() -> impl Strategy<Value = Vec<String>> {
    let pattern =
        select(vec!["+1*", "*", "+15551234567", "*.01", "alice.*", "?Q==", "A*", "+44*", "QQ==", "nothing"]);
    prop::collection::vec(pattern.prop_map(str::to_owned), 0..4)
}

const FIELDS: [&str; 13] = [
    "recipient",
    "recipients",
    "Recipient",
    "recipientNumber",
    "recipient_number",
    "groupId",
    "group-ids",
    "username",
    "noteToSelf",
    "message",
    "attachments",
    "attachment",
    "other",
];

fn filter() -> impl Strategy<Value = Filter> {
    let field = select(vec!["recipient", "recipientNumber", "groupId", "username", "message", "others"]);
    (field, value_patterns(), value_patterns(), any::<bool>())
        .prop_map(|(field, allow, deny, required)| Filter { field: field.to_owned(), allow, deny, required })
}

fn rules() -> impl Strategy<Value = Rules> {
    let names = prop::collection::vec(select(FIELDS.to_vec()).prop_map(str::to_owned), 0..8);
    (
        any::<bool>(),
        method_patterns(),
        method_patterns(),
        prop::collection::vec(filter(), 0..3),
        prop::option::of(names),
    )
        .prop_map(|(is_signal, mut allow, mut deny, filters, params)| {
            if !filters.is_empty() || params.is_some() {
                // A filter for a method that is not allowed is an error of the file.
                allow.push("send".to_owned());
                deny.retain(|pattern| !glob(pattern.as_bytes(), b"send"));
            }
            Rules { is_signal, allow, deny, filters, params }
        })
}

fn value() -> impl Strategy<Value = Value> {
    let text = select(TEXTS.to_vec()).prop_map(|text| Value::String(text.to_owned())).boxed();
    let data = Just(Value::String("data:,x".to_owned()));
    prop_oneof![
        6 => text.clone(),
        4 => prop::collection::vec(text.clone(), 0..4).prop_map(Value::Array),
        1 => data.clone(),
        1 => data.prop_map(|data| Value::Array(vec![data])),
        1 => Just(Value::Null),
        1 => Just(Value::Bool(false)),
        1 => Just(Value::Bool(true)),
        1 => Just(serde_json::json!([["+12"]])),
        1 => Just(serde_json::json!([null])),
        1 => Just(serde_json::json!({"recipient": "+12"})),
        1 => Just(serde_json::json!(7)),
    ]
}

fn params() -> impl Strategy<Value = Value> {
    let members = prop::collection::vec((select(FIELDS.to_vec()), value()), 0..5);
    prop_oneof![
        12 => members.prop_map(|members| {
            Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
        }),
        1 => Just(Value::Null),
        1 => Just(serde_json::json!([])),
        1 => Just(serde_json::json!(["+12"])),
    ]
}

fn load(rules: &Rules) -> Policy {
    Policy::parse("p", &rules.file()).unwrap_or_else(|problems| panic!("{problems}\n{}", rules.file()))
}

fn caller(policy: &Policy) -> Caller {
    policy.admit(&Peer { agent: Some("vm".to_owned()), ..Peer::default() }).unwrap()
}

fn judge(policy: &Policy, body: &str) -> RpcVerdict {
    let gate = policy.rpc_gate("t", &caller(policy)).unwrap();
    policy.judge_rpc(&gate, &caller(policy), &mut Limits::new(), 0, body.as_bytes())
}

/// A verdict with the body it allows.
fn shown(verdict: &RpcVerdict) -> String {
    let body = match verdict {
        RpcVerdict::Judged(judged) => judged.request.as_ref().and_then(Request::body),
        RpcVerdict::Malformed { .. } => None,
    };
    format!("{verdict:?} {}", String::from_utf8_lossy(body.unwrap_or_default()))
}

fn is_allowed(policy: &Policy, method: &str, params: &Value) -> bool {
    let body = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    match judge(policy, &body) {
        RpcVerdict::Judged(judged) => judged.request.is_some(),
        RpcVerdict::Malformed { said, .. } => panic!("{said}: {body}"),
    }
}

// -------------------------------------------------------------------------------------------- the adversary

/// Reads JSON as the most careless parsers would: the first or the last of two equal keys counts, and whatever follows
/// the value is ignored, as are byte-order marks and control characters in strings.
struct Careless<'a> {
    rest: &'a [u8],
    last_counts: bool,
}

impl Careless<'_> {
    fn read(text: &[u8], last_counts: bool) -> Option<Value> {
        let rest = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        Careless { rest, last_counts }.value()
    }

    fn blank(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' | 0, rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn value(&mut self) -> Option<Value> {
        self.blank();
        let (first, rest) = self.rest.split_first()?;
        match first {
            b'{' => {
                self.rest = rest;
                let mut members = Map::new();
                loop {
                    self.blank();
                    if let [b'}', rest @ ..] = self.rest {
                        self.rest = rest;
                        return Some(Value::Object(members));
                    }
                    let Value::String(key) = self.value()? else { return None };
                    let value = self.value()?;
                    if self.last_counts || !members.contains_key(&key) {
                        members.insert(key, value);
                    }
                }
            }
            b'[' => {
                self.rest = rest;
                let mut list = Vec::new();
                loop {
                    self.blank();
                    if let [b']', rest @ ..] = self.rest {
                        self.rest = rest;
                        return Some(Value::Array(list));
                    }
                    list.push(self.value()?);
                }
            }
            b'"' => {
                let mut end = 1;
                while self.rest.get(end)? != &b'"' {
                    end += if self.rest[end] == b'\\' { 2 } else { 1 };
                }
                let text =
                    String::from_utf8_lossy(self.rest.get(..=end)?).replace(|c: char| c.is_control(), "");
                self.rest = &self.rest[end + 1..];
                serde_json::from_str(&text).ok()
            }
            _ => {
                let is_end = |b: &u8| b" \t\n\r,:]}\0".contains(b);
                let end = self.rest.iter().position(is_end).unwrap_or(self.rest.len());
                let text = self.rest[..end].to_vec();
                self.rest = &self.rest[end..];
                serde_json::from_slice(&text).ok()
            }
        }
    }
}

/// A key or text with some of its letters escaped.
fn spelled(text: &str, mask: u8) -> String {
    let mut out = String::from("\"");
    for (i, c) in text.chars().enumerate() {
        if mask >> (i % 8) & 1 == 1 && c.is_ascii() {
            out.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            out.push(c);
        }
    }
    out.push('"');
    out
}

/// A body that may be anything from good to treacherous: equal keys, odd spelling, things before and behind.
fn body() -> impl Strategy<Value = String> {
    let param = (
        select(vec!["recipient", "recipients", "groupId", "message"]),
        value(),
        prop_oneof![3 => Just(0), 1 => any::<u8>()],
    );
    let params = prop::collection::vec(param, 0..4)
        .prop_map(|members| {
            let members: Vec<_> = members
                .iter()
                .map(|(name, value, mask)| format!("{} : {value}", spelled(name, *mask)))
                .collect();
            format!("{{{}}}", members.join(" ,"))
        })
        .boxed();
    let member = prop_oneof![
        3 => (method(), any::<u8>()).prop_map(|(method, mask)| format!("\"method\": {}", spelled(&method, mask))),
        3 => params.clone().prop_map(|params| format!("\"params\": {params}")),
        1 => params.prop_map(|params| format!("\"p\\u0061rams\": {params}")),
        1 => Just("\"id\": 1e3".to_owned()),
        1 => Just("\"id\": \"\\u0031\"".to_owned()),
        1 => Just("\"extra\": {\"method\": \"send\"}".to_owned()),
        1 => Just("\"Method\": \"removeAccount\"".to_owned()),
        1 => Just("\"jsonrpc\": \"1.0\"".to_owned()),
    ];
    let call = prop::collection::vec(member, 1..5)
        .prop_map(|members| format!("{{\"jsonrpc\": \"2.0\", {}}}", members.join(", ")))
        .boxed();
    let around =
        prop_oneof![8 => Just(""), 1 => Just("\u{feff}"), 1 => Just(" \n"), 1 => Just("\0"), 1 => Just("{}")];
    let one = prop_oneof![4 => call.clone(), 1 => prop::collection::vec(call, 0..3).prop_map(|all| format!("[{}]", all.join(",")))];
    (around.clone(), one, around).prop_map(|(before, body, after)| format!("{before}{body}{after}"))
}

// ------------------------------------------------------------------------------------------ the properties

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    /// The policy decides as the model does.
    #[test]
    fn decides_as_the_model(rules in rules(), calls in prop::collection::vec((method(), params()), 1..12)) {
        let policy = load(&rules);
        for (method, params) in calls {
            let (found, expected) = (is_allowed(&policy, &method, &params), rules.allows(&method, &params));
            prop_assert_eq!(found, expected, "{} {} under\n{}", method, params, rules.file());
        }
    }

    /// One more deny rule never allows more.
    #[test]
    fn a_deny_rule_never_allows_more(
        rules in rules(),
        more in value_patterns(),
        more_methods in method_patterns(),
        calls in prop::collection::vec((method(), params()), 1..12),
    ) {
        let before = load(&rules);
        let mut stricter = rules.clone();
        let is_send_free = stricter.filters.is_empty() && stricter.params.is_none();
        stricter.deny.extend(more_methods.into_iter().filter(|p| is_send_free || !glob(p.as_bytes(), b"send")));
        for filter in &mut stricter.filters {
            filter.deny.extend(more.iter().cloned());
        }
        let after = load(&stricter);
        for (method, params) in calls {
            if is_allowed(&after, &method, &params) {
                prop_assert!(is_allowed(&before, &method, &params), "{} {}", method, params);
            }
        }
    }

    /// Whatever a careless parser reads in a rebuilt request is what the model allows.
    #[test]
    fn the_rebuilt_request_is_what_was_judged(rules in rules(), body in body()) {
        let policy = load(&rules);
        let RpcVerdict::Judged(judged) = judge(&policy, &body) else { return Ok(()) };
        let Some(request) = judged.request else { return Ok(()) };
        let rebuilt = request.body().unwrap();
        let strict: Value = serde_json::from_slice(rebuilt).unwrap();
        for last_counts in [true, false] {
            let careless = Careless::read(rebuilt, last_counts).unwrap();
            prop_assert_eq!(&careless, &strict, "{}", String::from_utf8_lossy(rebuilt));
        }
        let calls = match strict {
            Value::Array(calls) => calls,
            call => vec![call],
        };
        let allowed: Vec<_> = judged.elements.iter().filter(|element| element.verdict.is_ok()).collect();
        prop_assert_eq!(calls.len(), allowed.len());
        for (call, element) in calls.iter().zip(allowed) {
            prop_assert_eq!(call["method"].as_str().unwrap(), element.method.as_str());
            prop_assert!(rules.allows(&element.method, &call["params"]), "{} under\n{}", call, rules.file());
            let known = ["jsonrpc", "id", "method", "params"];
            prop_assert!(call.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())));
        }
    }

    /// The same body gives the same verdict however it is cut.
    #[test]
    fn the_verdict_does_not_depend_on_the_cuts(rules in rules(), body in body(), cuts in prop::collection::vec(0..200_usize, 0..6)) {
        let policy = load(&rules);
        let whole = shown(&judge(&policy, &body));
        let mut work = policy.rpc_gate("t", &caller(&policy)).unwrap().begin();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
        cuts.sort_unstable();
        let mut early = None;
        for cut in cuts {
            if let Err(verdict) = work.feed(&body.as_bytes()[..cut]) {
                early = Some(verdict);
                break;
            }
        }
        let mut limits = Limits::new();
        let verdict = match early {
            Some(verdict) => verdict,
            None => loop {
                if let Some(verdict) = work.step(&policy, &caller(&policy), &mut limits, 0, body.as_bytes()) {
                    break verdict;
                }
            },
        };
        prop_assert_eq!(shown(&verdict), whole);
    }
}
