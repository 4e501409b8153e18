//! What clients ask: calls that are allowed, calls that are not, and bytes that are no calls.

use crate::env::{Env, HttpDoor};
use crate::ledger::{Element, Lane, Tag, What};
use crate::pattern;
use crate::rules::BODY_MAX;

/// A request to be sent, whichever way.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) tag: Tag,
    pub(crate) door: HttpDoor,
    pub(crate) method: &'static str,
    pub(crate) target: String,
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) body: Option<Body>,
}

/// A request's body.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    /// Whether its length is said beforehand.
    pub(crate) says_length: bool,
    pub(crate) is_pattern: bool,
}

impl Request {
    pub(crate) const fn tool(&self) -> &'static str {
        match self.door {
            HttpDoor::Files => "files",
            HttpDoor::Signal => "signal-cli",
        }
    }
}

/// A run to be asked for.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) tag: Tag,
    pub(crate) tool: String,
    pub(crate) argv: Vec<String>,
    pub(crate) stdin: u64,
}

/// Chooses a request for somebody who speaks for the tool at `door`; for any when there is none.
pub(crate) fn request(env: &mut Env, door: Option<HttpDoor>) -> Request {
    let tag = env.ledger.next_tag();
    let door = door.unwrap_or(if env.chance.is(500) { HttpDoor::Files } else { HttpDoor::Signal });
    let is_bad = env.chance.is(env.climate.bad_calls);
    let (request, what) = match door {
        HttpDoor::Signal => rpc(env, tag, is_bad),
        HttpDoor::Files => file(env, tag, is_bad),
    };
    let must_succeed = env.must_succeed();
    env.say(|| format!("{tag:?}: {} {} {what:.200?}", request.method, request.target));
    env.ledger.open(tag, env.now, what, must_succeed);
    request
}

/// Chooses a tool run.
pub(crate) fn run(env: &mut Env) -> Run {
    let tag = env.ledger.next_tag();
    let word = format!("t{}", tag.0);
    let is_bad = env.chance.is(env.climate.bad_calls);
    let (tool, argv): (&str, Vec<&str>) = if is_bad {
        match env.chance.below(4) {
            0 => ("op", vec!["item", "delete", &word]),
            1 => ("op", vec!["item", "get", "--reveal", &word]),
            2 => ("nothing", vec![&word]),
            _ => ("op", vec!["item", "get", &word, "more"]),
        }
    } else {
        match env.chance.below(4) {
            0 => ("mute", vec![&word]),
            1 if !env.is_calm => ("op", vec!["item", "list", "--all", &word]),
            _ => ("op", vec!["item", "get", &word]),
        }
    };
    let argv: Vec<String> = argv.into_iter().map(str::to_owned).collect();
    let most = *env.chance.pick(&[0, 0, 100, 100, 20_000, 120_000]).unwrap_or(&0);
    let stdin = if tool == "mute" { 0 } else { env.chance.within(0, most) };
    let what = What::Run { tool: tool.to_owned(), argv: argv.clone(), stdin };
    let must_succeed = env.must_succeed();
    env.say(|| format!("{tag:?}: {what:?}"));
    env.ledger.open(tag, env.now, what, must_succeed);
    Run { tag, tool: tool.to_owned(), argv, stdin }
}

fn file(env: &mut Env, tag: Tag, is_bad: bool) -> (Request, What) {
    let plain = |method, target: String| Request {
        tag,
        door: HttpDoor::Files,
        method,
        target,
        fields: vec![("Authorization", "Bearer mine".to_owned()), ("Cookie", "a=b".to_owned())],
        body: None,
    };
    if is_bad {
        let (method, folder) = match env.chance.below(4) {
            0 => ("DELETE", "get"),
            1 => ("GET", "put"),
            2 => ("GET", "secret"),
            _ => ("GET", "get/more"),
        };
        return (plain(method, format!("/{folder}/{}", tag.0)), What::Wrong);
    }
    match env.chance.below(4) {
        0 | 1 => (plain("GET", format!("/get/{}?q=1", tag.0)), What::Get),
        2 => {
            let mut request = plain("GET", format!("/stream/{}", tag.0));
            if env.chance.is(700) {
                request.fields.push(("Accept", "text/event-stream".to_owned()));
            }
            (request, What::Events)
        }
        _ => {
            let most = *env.chance.pick(&[1, 1_000, 1_000, 30_000, 150_000]).unwrap_or(&1);
            let length = env.chance.size(1, most);
            let bytes = pattern::bytes(tag, Lane::Up.number(), 0, length);
            let mut request = plain("POST", format!("/put/{}", tag.0));
            let says_length = env.chance.is(500);
            request.fields.push(("Content-Type", "application/octet-stream".to_owned()));
            request.body = Some(Body { bytes, says_length, is_pattern: true });
            (request, What::Put { length: length as u64 })
        }
    }
}

fn rpc(env: &mut Env, tag: Tag, is_bad: bool) -> (Request, What) {
    let mut request = Request {
        tag,
        door: HttpDoor::Signal,
        method: "POST",
        target: "/api/v1/rpc".to_owned(),
        fields: vec![("Content-Type", "application/json".to_owned())],
        body: None,
    };
    if is_bad && env.chance.is(400) {
        let (bytes, what) = match env.chance.below(5) {
            0 => (b"{".to_vec(), What::Malformed),
            1 => (b"[]".to_vec(), What::Malformed),
            2 => (vec![b' '; BODY_MAX + 1], What::Malformed),
            3 => {
                (br#"{"jsonrpc":"2.0","id":1,"method":"send","method":"version"}"#.to_vec(), What::Malformed)
            }
            _ => {
                "/api/v1/other".clone_into(&mut request.target);
                (b"{}".to_vec(), What::Wrong)
            }
        };
        request.body = Some(Body { bytes, says_length: env.chance.is(700), is_pattern: false });
        return (request, what);
    }
    let is_batch = env.chance.is(250);
    let count = if is_batch { env.chance.within(1, 4) } else { 1 };
    let elements: Vec<Element> = (0..count).map(|place| element(env, tag, place, is_bad)).collect();
    let bytes = spell(env, &elements, is_batch);
    request.body = Some(Body { bytes, says_length: env.chance.is(800), is_pattern: false });
    (request, What::Rpc { elements, is_batch })
}

fn element(env: &mut Env, tag: Tag, place: u64, is_bad: bool) -> Element {
    let id = match env.chance.below(12) {
        0 => None,
        1 => Some((tag.0 * 10 + place).to_string()),
        _ => Some(format!("\"c{}-{place}\"", tag.0)),
    };
    if is_bad && env.chance.is(300) {
        return Element { method: "removeAccount", recipient: None, id };
    }
    if !env.is_calm && env.chance.is(150) {
        let method = *env.chance.pick(&["version", "receive", "listGroups"]).unwrap_or(&"version");
        return Element { method, recipient: None, id };
    }
    let area = match env.chance.below(4) {
        0 if is_bad => "+1999",
        1 if is_bad => "+44",
        2 if !env.is_calm => "+13",
        _ => "+12",
    };
    Element { method: "send", recipient: Some(format!("{area}{:06}{place}", tag.0)), id }
}

/// The body as a client writes it, who may like white space.
fn spell(env: &mut Env, elements: &[Element], is_batch: bool) -> Vec<u8> {
    let pad = match env.chance.below(12) {
        0 => 12_000,
        1 => 3_000,
        _ => 20,
    };
    let space = if env.chance.is(200) { " \n\t" } else { "" };
    let calls: Vec<String> = elements
        .iter()
        .map(|element| {
            let mut members =
                vec!["\"jsonrpc\":\"2.0\"".to_owned(), format!("\"method\":{space}\"{}\"", element.method)];
            if let Some(id) = &element.id {
                members.push(format!("\"id\":{id}"));
            }
            if let Some(to) = &element.recipient {
                let to = if env.chance.is(300) { format!("[\"{to}\"]") } else { format!("\"{to}\"") };
                let text = "m".repeat(pad);
                members.push(format!("\"params\":{{\"recipient\":{to},{space}\"message\":\"{text}\"}}"));
            }
            env.chance.shuffle(&mut members);
            format!("{space}{{{}}}{space}", members.join(&format!("{space},")))
        })
        .collect();
    let text = if is_batch { format!("[{}]", calls.join(",")) } else { calls.concat() };
    text.into_bytes()
}
