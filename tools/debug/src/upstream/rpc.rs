//! Calls, as signal-cli understands them: more than the standard allows, on purpose.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize as _;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Shared;

/// A JSON object whose values keep their bytes. Of a duplicate key the last counts, as in signal-cli.
type Fields = BTreeMap<String, Box<RawValue>>;

/// The answer to a request's body, `None` when there is nothing to answer.
pub(super) fn answer(body: &[u8], shared: &Shared, padding: usize) -> Option<String> {
    let text = decoded(body);
    // The first value only: what follows it is not looked at.
    let mut values = serde_json::Deserializer::from_str(&text);
    let value = match Box::<RawValue>::deserialize(&mut values) {
        Ok(value) => value,
        Err(error) => return Some(failure(-32700, &error.to_string(), "null")),
    };
    if let Ok(elements) = serde_json::from_str::<Vec<Box<RawValue>>>(value.get()) {
        return batch(&elements, shared, padding);
    }
    let (delay, answer) = single(&value, shared, padding);
    thread::sleep(delay);
    answer
}

/// All at once: the answers stand in the order in which the calls complete.
fn batch(elements: &[Box<RawValue>], shared: &Shared, padding: usize) -> Option<String> {
    if elements.is_empty() {
        return Some(failure(-32600, "invalid request", "null"));
    }
    let mut answers: Vec<_> = elements.iter().map(|element| single(element, shared, padding)).collect();
    answers.sort_by_key(|(delay, _)| *delay);
    thread::sleep(answers.last().map_or(Duration::ZERO, |(delay, _)| *delay));
    let answers: Vec<String> = answers.into_iter().filter_map(|(_, answer)| answer).collect();
    (!answers.is_empty()).then(|| format!("[{}]", answers.join(",")))
}

/// How long a call takes, and what is answered.
fn single(request: &RawValue, shared: &Shared, padding: usize) -> (Duration, Option<String>) {
    let Ok(fields) = serde_json::from_str::<Fields>(request.get()) else {
        return (Duration::ZERO, Some(failure(-32600, "unexpected type", "null")));
    };
    let id = fields.get("id").map(|id| id.get());
    if fields.contains_key("result") || fields.contains_key("error") {
        return (Duration::ZERO, None);
    }
    let text = |name: &str| fields.get(name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    if text("jsonrpc").as_deref() != Some("2.0") {
        let error = failure(-32600, "only jsonrpc version 2.0 is supported", id.unwrap_or("null"));
        return (Duration::ZERO, Some(error));
    }
    let Some(method) = text("method") else {
        return (Duration::ZERO, Some(failure(-32600, "method field must be set", id.unwrap_or("null"))));
    };
    let params =
        fields.get("params").and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or(Value::Null);
    let delay = shared.state().delays.get(&method).copied().unwrap_or_default();
    let outcome = call(&method, &params, shared);
    // A call without an id takes effect, and is not answered.
    let answer = id.map(|id| match outcome {
        Ok(result) => success(&result, id, padding),
        Err((code, message)) => failure(code, &message, id),
    });
    (delay, answer)
}

fn call(method: &str, params: &Value, shared: &Shared) -> Result<Value, (i64, String)> {
    if let Some(account) = params.get("account").and_then(Value::as_str)
        && !shared.options.accounts.iter().any(|known| known == account)
    {
        return Err((-32602, "Specified account does not exist".to_owned()));
    }
    if let Some(result) = shared.state().results.get(method) {
        return Ok(result.clone());
    }
    match method {
        "version" => Ok(json!({ "version": "0.14.4" })),
        "send" => send(params),
        "receive" | "listAccounts" | "listContacts" | "listGroups" | "listIdentities" | "listMessages" => {
            Ok(json!([]))
        }
        "sendReaction" | "sendReceipt" => Ok(json!({ "timestamp": now_ms(), "results": [] })),
        "deleteEverything" | "removeAccount" | "sendTyping" | "updateContact" => Ok(json!({})),
        "getAttachment" => Ok(json!({ "data": "aGVsbG8=" })),
        _ => Err((-32601, "Method not implemented".to_owned())),
    }
}

/// Sends to the union of all destinations named, under any of their spellings, one value or a list.
fn send(params: &Value) -> Result<Value, (i64, String)> {
    const SPELLINGS: [&str; 6] =
        ["recipient", "recipients", "recipientNumber", "username", "usernames", "noteToSelf"];
    const GROUPS: [&str; 4] = ["group-id", "groupId", "group-ids", "groupIds"];
    let values = |names: &[&str]| -> Vec<String> {
        let named = names.iter().filter_map(|name| params.get(*name));
        let each =
            named.flat_map(|value| value.as_array().map_or_else(|| vec![value], |all| all.iter().collect()));
        each.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect()
    };
    let people = values(&SPELLINGS).into_iter().map(|who| (json!({ "number": who }), Value::Null));
    let groups = values(&GROUPS).into_iter().map(|group| (Value::Null, json!(group)));
    let results: Vec<Value> = people
        .chain(groups)
        .map(|(who, group)| json!({ "recipientAddress": who, "groupId": group, "type": "SUCCESS" }))
        .collect();
    if results.is_empty() {
        return Err((-32602, "No recipients given".to_owned()));
    }
    Ok(json!({ "timestamp": now_ms(), "results": results }))
}

fn success(result: &Value, id: &str, padding: usize) -> String {
    if padding == 0 {
        return format!(r#"{{"jsonrpc":"2.0","result":{result},"id":{id}}}"#);
    }
    let filler = "x".repeat(padding);
    format!(r#"{{"jsonrpc":"2.0","result":{{"padding":"{filler}"}},"id":{id}}}"#)
}

fn failure(code: i64, message: &str, id: &str) -> String {
    let message = Value::from(message);
    format!(r#"{{"jsonrpc":"2.0","error":{{"code":{code},"message":{message},"data":null}},"id":{id}}}"#)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The text of a body in any encoding that signal-cli's parser detects: UTF-8 and UTF-16, with or without a mark.
fn decoded(body: &[u8]) -> String {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.as_chunks().0.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16_lossy(&units)
    };
    match body {
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0, first, ..] if *first != 0 => utf16(body, u16::from_be_bytes),
        [first, 0, ..] if *first != 0 => utf16(body, u16::from_le_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(body).into_owned(),
    }
}
