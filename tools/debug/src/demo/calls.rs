//! The steps that call the upstream's API.

use serde_json::{Value, json};

use super::stage::{Answer, Stage};
use super::step::Step;
use crate::failure::Failure;

/// A number that the policy's filter allows, and one that it names to be denied.
const ALLOWED: &str = "+15550100002";
const DENIED: &str = "+15551234567";

fn call(id: &str, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"{method}","params":{params}}}"#)
}

fn send(id: &str, recipient: &str) -> String {
    call(id, "send", &format!(r#"{{"recipient":["{recipient}"],"message":"Hello from the VM"}}"#))
}

/// A request as the upstream reads it.
fn read(request: &str) -> Value {
    serde_json::from_str(request).unwrap_or_default()
}

/// Makes a call, shows it with its answer and its records, and gives back both answers: text and JSON.
fn perform(
    stage: &mut Stage,
    step: &mut Step,
    request: &str,
    records: usize,
) -> Result<(Answer, Value), Failure> {
    let answer = stage.call(request)?;
    step.show("request", format!("POST {}\n{request}", stage.url("/api/v1/rpc")));
    let elapsed = answer.elapsed.as_secs_f64() * 1_000.0;
    step.show("answer", format!("{} after {elapsed:.1} ms\n{}", answer.status, answer.body));
    step.records(stage.records(records)?);
    let parsed = serde_json::from_str(&answer.body).unwrap_or_default();
    Ok((answer, parsed))
}

/// Checks that nothing of this step has reached the upstream.
fn check_untouched(stage: &Stage, step: &mut Step) {
    if let Some(requests) = stage.upstream_calls() {
        step.check_eq("nothing of it reached the upstream", requests.len(), 0);
    }
}

fn check_denied(step: &mut Step, status: u16, error: &Value) {
    step.check_eq("the status is 200, as JSON-RPC clients read it", status, 200);
    step.check_eq("the answer is -32001, denied by policy", error.get("code"), Some(&json!(-32001)));
}

pub(super) fn allowed(stage: &mut Stage) -> Result<Step, Failure> {
    let is_real = stage.stand_in().is_none();
    let (about, request) = if is_real {
        ("The VM asks for the daemon's version.", call("1", "version", "{}"))
    } else {
        ("The VM sends a message to a number that the policy allows.", send("1", ALLOWED))
    };
    let mut step = Step::new("An allowed call", about);
    let (answer, parsed) = perform(stage, &mut step, &request, 2)?;
    step.check_eq("the status is 200", answer.status, 200);
    step.check("the upstream's result came back", parsed.get("result").is_some(), || answer.body.clone());
    step.check_eq("the id came back", parsed.get("id"), Some(&json!("1")));
    if let Some(requests) = stage.upstream_calls() {
        let bodies: Vec<_> = requests.iter().filter_map(|received| received.json()).collect();
        step.check_eq("the upstream got it once, as it was judged", bodies, vec![read(&request)]);
    }
    let records = step.parsed_records();
    let events: Vec<_> = records.iter().filter_map(|record| record.get("event")).collect();
    step.check("the decision was recorded, then the outcome", events == ["decision", "outcome"], || {
        format!("{events:?}")
    });
    step.check_eq("the record says allow", step.count_records("policy_result", "allow"), 1);
    if !is_real {
        let number = records.iter().find_map(|record| record.get("phone_number"));
        let is_named = number.is_some_and(|number| number.to_string().contains(ALLOWED));
        step.check("the record names the number", is_named, || format!("{number:?}"));
    }
    Ok(step)
}

pub(super) fn denied_recipient(stage: &mut Stage) -> Result<Step, Failure> {
    let mut step = Step::new("A denied recipient", "The same to a number that the policy denies.");
    let (answer, parsed) = perform(stage, &mut step, &send("2", DENIED), 1)?;
    check_denied(&mut step, answer.status, parsed.get("error").unwrap_or(&Value::Null));
    step.check("the answer tells no pattern of the policy", !answer.body.contains("+1555*"), || {
        answer.body.clone()
    });
    check_untouched(stage, &mut step);
    step.check_eq("the record says deny", step.count_records("policy_result", "deny"), 1);
    Ok(step)
}

pub(super) fn denied_method(stage: &mut Stage) -> Result<Step, Failure> {
    let mut step = Step::new("A denied method", "The VM tries to remove the account.");
    let (answer, parsed) = perform(stage, &mut step, &call("3", "removeAccount", "{}"), 1)?;
    check_denied(&mut step, answer.status, parsed.get("error").unwrap_or(&Value::Null));
    check_untouched(stage, &mut step);
    step.check_eq("the record says deny", step.count_records("policy_result", "deny"), 1);
    Ok(step)
}

pub(super) fn batch(stage: &mut Stage) -> Result<Step, Failure> {
    let about =
        "Three calls in one request. Each is judged by itself: the second is denied, the others go on.";
    let mut step = Step::new("A batch with one denied element", about);
    let allowed = [call("4a", "version", "{}"), call("4c", "version", "{}")];
    let [first, last] = &allowed;
    let request = format!("[{first},{},{last}]", send("4b", DENIED));
    let (answer, parsed) = perform(stage, &mut step, &request, 4)?;
    step.check_eq("the status is 200", answer.status, 200);
    let answers = parsed.as_array().cloned().unwrap_or_default();
    step.check_eq("one array with three answers came back", answers.len(), 3);
    let by_id = |id: &str| answers.iter().find(|answer| answer.get("id") == Some(&json!(id)));
    let has_result = |id| by_id(id).is_some_and(|answer| answer.get("result").is_some());
    step.check("the first and the last have results", has_result("4a") && has_result("4c"), || {
        answer.body.clone()
    });
    let code = by_id("4b").and_then(|answer| answer.pointer("/error/code"));
    step.check_eq("the second is -32001, denied by policy", code, Some(&json!(-32001)));
    if let Some(requests) = stage.upstream_calls() {
        // As one array or one by one: signal-cli takes both alike.
        let bodies = requests.iter().filter_map(|received| received.json());
        let elements = bodies.flat_map(|body| body.as_array().cloned().unwrap_or_else(|| vec![body]));
        step.check_eq(
            "the upstream got the allowed two",
            elements.collect::<Vec<_>>(),
            allowed.map(|call| read(&call)).to_vec(),
        );
    }
    step.check_eq("the log has two allowed", step.count_records("policy_result", "allow"), 2);
    step.check_eq("the log has one denied", step.count_records("policy_result", "deny"), 1);
    Ok(step)
}
