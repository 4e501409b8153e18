//! Upstreams: they answer, slowly or at once, in every framing there is, or not at all, or with nonsense.

use crate::check::Check;
use crate::env::{Entity, Env};
use crate::http::{Head, Kind, Part, Reader};
use crate::ledger::{Lane, Tag};
use crate::net::{End, Got, Wrote};
use crate::pattern::{self, Spelling};
use carapace_proto::machine::Closing;
use std::collections::VecDeque;

/// What an upstream does next with its connection.
#[derive(Debug)]
enum Act {
    Bytes(Vec<u8>),
    /// Bytes of a download, to be accounted for.
    Pattern {
        tag: Tag,
        left: u64,
        is_chunked: bool,
    },
    Close(Closing),
    /// The next event of a stream; so many more follow.
    Event {
        tag: Tag,
        left: u64,
        is_chunked: bool,
        spelling: Spelling,
    },
    /// The end of an event stream.
    EndEvents {
        tag: Tag,
        is_chunked: bool,
    },
    Wait(u64),
    /// A new request may be answered.
    Ready,
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) id: u64,
    end: End,
    tool: &'static str,
    reader: Reader,
    request: Option<(Head, Vec<u8>)>,
    /// Whose upload is arriving.
    upload: Option<Tag>,
    acts: VecDeque<Act>,
    out: Vec<u8>,
    is_waiting: bool,
    pub(crate) is_over: bool,
}

impl Upstream {
    pub(crate) fn new(env: &mut Env, id: u64, end: End, tool: &'static str) -> Self {
        let mut acts = VecDeque::new();
        if env.chance.is(env.climate.rude_upstreams / 8) {
            acts.push_back(Act::Close(Closing::Orderly));
        }
        let reader = Reader::new(Kind::Request);
        env.wake(Entity::Actor(id), env.now);
        Self {
            id,
            end,
            tool,
            reader,
            request: None,
            upload: None,
            acts,
            out: Vec::new(),
            is_waiting: false,
            is_over: false,
        }
    }

    pub(crate) fn run(&mut self, env: &mut Env) {
        loop {
            let most = env.chance.size(1, 60_000);
            match env.read(self.end, most) {
                Got::Bytes(bytes) => match self.reader.feed(&bytes) {
                    Ok(parts) => parts.into_iter().for_each(|part| self.part(env, part)),
                    Err(error) => env.fail(Check::Policy, format!("{} gets no request: {error}", self.tool)),
                },
                Got::Eof | Got::Reset => return self.close(env, Closing::Orderly),
                Got::Nothing => break,
            }
        }
        self.act(env);
    }

    fn part(&mut self, env: &mut Env, part: Part) {
        match part {
            Part::Head(head) => {
                self.upload =
                    (head.word(0) == "POST" && self.tool == "files").then(|| tag_of(&head)).flatten();
                let answers_early = self.upload.is_some() && env.chance.is(env.climate.rude_upstreams / 3);
                self.request = Some((head, Vec::new()));
                if answers_early {
                    self.answer(env);
                }
            }
            Part::Body(bytes) => match (self.upload, &mut self.request) {
                (Some(tag), _) => {
                    let verdict = env.ledger.received(tag, Lane::Up, &bytes);
                    env.check(verdict);
                }
                (None, Some((_, body))) => body.extend_from_slice(&bytes),
                (None, None) => {}
            },
            Part::End => {
                if let Some(tag) = self.upload.take() {
                    let verdict = env.ledger.whole_upload(tag);
                    env.check(verdict);
                }
                self.answer(env);
            }
        }
    }

    // ---- answering ----

    fn answer(&mut self, env: &mut Env) {
        let Some((head, body)) = self.request.take() else { return };
        let is_rude = env.chance.is(env.climate.rude_upstreams);
        let slow = if env.is_calm { 3_000 } else { *env.chance.pick(&[200, 5_000, 400_000]).unwrap_or(&200) };
        self.acts.push_back(Act::Wait(env.chance.within(10, slow)));
        if is_rude && env.chance.is(400) {
            return self.misbehave(env);
        }
        if env.chance.is(100) {
            self.acts.push_back(Act::Bytes(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".to_vec()));
        }
        let path = head.word(1).split('?').next().unwrap_or_default();
        if self.tool == "signal-cli" && path == "/api/v1/rpc" {
            self.answer_rpc(env, &body, is_rude);
        } else if path.contains("/stream/") {
            self.answer_events(env, &head, is_rude);
        } else if path.contains("/get/") {
            self.answer_download(env, &head, is_rude);
        } else {
            self.push_whole(env, 200, "text/plain", b"done\n");
        }
        // A request that crosses the end of its connection cannot be told from one that was lost.
        let is_last = !env.is_calm && env.chance.is(if is_rude { 400 } else { 50 });
        if is_last {
            self.acts.push_back(Act::Wait(env.chance.within(10, 50_000)));
            self.acts.push_back(Act::Close(if env.chance.is(800) {
                Closing::Orderly
            } else {
                Closing::Reset
            }));
        } else {
            self.acts.push_back(Act::Ready);
        }
    }

    fn misbehave(&mut self, env: &mut Env) {
        let bytes: Vec<u8> = match env.chance.below(8) {
            0 => env.chance.bytes(200),
            1 => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_vec(),
            2 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel".to_vec(),
            3 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello".to_vec(),
            4 => b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort".to_vec(),
            5 => b"HTTP/1.1 2".to_vec(),
            6 => [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 70_000]].concat(),
            _ => Vec::new(),
        };
        self.acts.push_back(Act::Bytes(bytes));
        let ends = env.chance.below(3);
        if ends > 0 {
            self.acts.push_back(Act::Wait(env.chance.within(10, 20_000)));
            self.acts.push_back(Act::Close(if ends == 1 { Closing::Orderly } else { Closing::Reset }));
        } else {
            // It stalls, until somebody loses patience.
            self.acts.push_back(Act::Wait(60_000_000));
        }
    }

    fn answer_rpc(&mut self, env: &mut Env, body: &[u8], is_rude: bool) {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else { return };
        let is_batch = value.is_array();
        let calls = if let serde_json::Value::Array(calls) = value { calls } else { vec![value] };
        let pad = match env.chance.below(10) {
            0 => 30_000,
            1 if is_rude => crate::rules::ANSWER_MAX,
            _ => env.chance.size(0, 200),
        };
        let mut answers = Vec::new();
        for call in calls.iter().filter(|call| call.get("id").is_some()) {
            let result = serde_json::json!({ "of": call["method"], "to": call["params"]["recipient"], "pad": "x".repeat(pad) });
            let error = serde_json::json!({ "code": -5, "message": "the upstream's own" });
            answers.push(if env.chance.is(100) && !env.is_calm {
                serde_json::json!({ "jsonrpc": "2.0", "id": call["id"], "error": error })
            } else {
                serde_json::json!({ "jsonrpc": "2.0", "id": call["id"], "result": result })
            });
        }
        if answers.is_empty() {
            let (status, body): (u16, &[u8]) = if env.chance.is(500) { (201, b"") } else { (204, b"") };
            return self.push_whole(env, status, "application/json", body);
        }
        env.chance.shuffle(&mut answers);
        let answer =
            if is_batch { serde_json::Value::Array(answers) } else { answers.pop().unwrap_or_default() };
        self.push_whole(env, 200, "application/json", answer.to_string().as_bytes());
    }

    /// A complete answer, framed in one of the ways there are.
    fn push_whole(&mut self, env: &mut Env, status: u16, content_type: &str, body: &[u8]) {
        let head = format!(
            "HTTP/1.1 {status} Whatever\r\nContent-Type: {content_type}\r\nSet-Cookie: a=b\r\nKeep-Alive: timeout=5\r\n"
        );
        let framing = if status == 204 { 3 } else { env.chance.below(3) };
        let mut bytes = head.into_bytes();
        match framing {
            0 => {
                bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                let size = env.chance.size(1, 4_000);
                for chunk in body.chunks(size) {
                    bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
            1 if env.chance.is(200) => {
                bytes.extend_from_slice(b"Connection: close\r\n\r\n");
                bytes.extend_from_slice(body);
                self.acts.push_back(Act::Bytes(core::mem::take(&mut bytes)));
                self.acts.push_back(Act::Close(Closing::Orderly));
            }
            3 => bytes.extend_from_slice(b"\r\n"),
            _ => {
                bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend_from_slice(body);
            }
        }
        self.acts.push_back(Act::Bytes(bytes));
    }

    fn answer_download(&mut self, env: &mut Env, head: &Head, is_rude: bool) {
        let Some(tag) = tag_of(head) else { return };
        let most = *env.chance.pick(&[0, 100, 100, 5_000, 5_000, 150_000]).unwrap_or(&100);
        let length = env.chance.within(0, most);
        let is_chunked = env.chance.is(500);
        let framing = if is_chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {length}")
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{framing}\r\n\r\n");
        self.acts.push_back(Act::Bytes(head.into_bytes()));
        let is_cut = is_rude && length > 0 && env.chance.is(500);
        let left = if is_cut { env.chance.within(0, length - 1) } else { length };
        self.acts.push_back(Act::Pattern { tag, left, is_chunked });
        if is_cut {
            let ends = env.chance.is(700);
            self.acts.push_back(if ends { Act::Close(Closing::Orderly) } else { Act::Wait(60_000_000) });
        } else if is_chunked {
            self.acts.push_back(Act::Bytes(b"0\r\n\r\n".to_vec()));
        }
    }

    fn answer_events(&mut self, env: &mut Env, head: &Head, is_rude: bool) {
        let Some(tag) = tag_of(head) else { return };
        if !env.is_calm && env.chance.is(300) {
            self.acts.push_back(Act::Wait(env.chance.within(500_000, 3_000_000)));
        }
        let is_chunked = env.chance.is(700);
        let framing = if is_chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=utf-8\r\n{framing}\r\n");
        self.acts.push_back(Act::Bytes(head.into_bytes()));
        if env.chance.is(300) {
            self.acts.push_back(Act::Bytes(chunk("\u{feff}".as_bytes(), is_chunked)));
        }
        let spelling = Spelling {
            line_end: env.chance.pick(&["\n", "\r\n", "\r"]).copied().unwrap_or("\n"),
            space: if env.chance.is(500) { " " } else { "" },
            has_extras: env.chance.is(300),
        };
        let left = env.chance.within(0, if env.is_calm { 6 } else { 30 });
        self.acts.push_back(Act::Event { tag, left, is_chunked, spelling });
        if is_rude {
            let begun = pattern::spell(&pattern::event(tag, 1_000), spelling);
            let cut = env.chance.size(0, begun.len() - spelling.line_end.len() - 1);
            let begun = begun.get(..cut).unwrap_or_default();
            let long = vec![b'y'; crate::rules::EVENT_MAX + 100];
            let ending = match env.chance.below(3) {
                0 => chunk(begun, is_chunked),
                1 => chunk(&[b"data: ".to_vec(), long].concat(), is_chunked),
                _ => b"zz\r\nno chunk".to_vec(),
            };
            // What follows can never become an event: the stream ends with the last one before it.
            self.acts.push_back(Act::Bytes(if is_chunked { ending } else { begun.to_vec() }));
            self.acts.push_back(Act::Wait(env.chance.within(10, 3_000_000)));
            self.acts.push_back(Act::Close(if env.chance.is(700) {
                Closing::Orderly
            } else {
                Closing::Reset
            }));
        } else {
            self.acts.push_back(Act::EndEvents { tag, is_chunked });
        }
    }

    // ---- acting ----

    fn act(&mut self, env: &mut Env) {
        while !self.is_over {
            if !self.out.is_empty() {
                match env.write(self.end, &self.out) {
                    Wrote::Count(count) => drop(self.out.drain(..count)),
                    Wrote::Broken => return self.close(env, Closing::Orderly),
                }
                if !self.out.is_empty() {
                    return;
                }
            }
            let Some(act) = self.acts.pop_front() else { return };
            match act {
                Act::Bytes(bytes) => self.out = bytes,
                Act::Close(how) => return self.close(env, how),
                Act::Wait(micros) => {
                    if core::mem::replace(&mut self.is_waiting, true) {
                        // Woken by something else; the time is not over.
                        if env.now.as_micros() < micros {
                            self.acts.push_front(Act::Wait(micros));
                            return;
                        }
                        self.is_waiting = false;
                    } else {
                        let until = env.now.as_micros() + micros;
                        self.acts.push_front(Act::Wait(until));
                        return env.wake_in(Entity::Actor(self.id), micros);
                    }
                }
                Act::Pattern { tag, left, is_chunked } => self.act_pattern(env, tag, left, is_chunked),
                Act::Event { tag, left, is_chunked, spelling } => {
                    self.act_event(env, tag, left, is_chunked, spelling);
                }
                Act::EndEvents { tag, is_chunked } => {
                    if let Some(call) = env.ledger.call(tag) {
                        call.is_source_done = true;
                    }
                    if is_chunked {
                        self.out = b"0\r\n\r\n".to_vec();
                    } else {
                        return self.close(env, Closing::Orderly);
                    }
                }
                Act::Ready => {}
            }
        }
    }

    fn act_pattern(&mut self, env: &mut Env, tag: Tag, left: u64, is_chunked: bool) {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(30_000);
        if most == 0 {
            return;
        }
        let count = env.chance.size(1, most);
        let from = env.ledger.call(tag).map_or(0, |call| call.flow(Lane::Down).sent);
        let bytes = pattern::bytes(tag, Lane::Down.number(), from, count);
        env.ledger.sent(tag, Lane::Down, count);
        self.out = chunk(&bytes, is_chunked);
        self.acts.push_front(Act::Pattern { tag, left: left - count as u64, is_chunked });
    }

    fn act_event(&mut self, env: &mut Env, tag: Tag, left: u64, is_chunked: bool, spelling: Spelling) {
        if left == 0 || env.is_calm && env.chance.is(300) {
            return;
        }
        let n = env.ledger.call(tag).map_or(0, |call| {
            call.events_sent += 1;
            call.events_sent - 1
        });
        let mut bytes = pattern::spell(&pattern::event(tag, n), spelling);
        if env.chance.is(200) {
            bytes = [format!(": keep-alive{}", spelling.line_end.repeat(2)).into_bytes(), bytes].concat();
        }
        self.out = chunk(&bytes, is_chunked);
        let micros = *env.chance.pick(&[10, 100, 20_000, 1_500_000]).unwrap_or(&10);
        let micros = env.chance.within(1, micros);
        self.acts.push_front(Act::Event { tag, left: left - 1, is_chunked, spelling });
        self.acts.push_front(Act::Wait(micros));
    }

    fn close(&mut self, env: &mut Env, how: Closing) {
        if !core::mem::replace(&mut self.is_over, true) {
            env.close(self.end, how);
        }
    }
}

fn chunk(bytes: &[u8], is_chunked: bool) -> Vec<u8> {
    if !is_chunked || bytes.is_empty() {
        return bytes.to_vec();
    }
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// The number at the end of the path.
fn tag_of(head: &Head) -> Option<Tag> {
    let path = head.word(1).split('?').next()?;
    path.rsplit('/').next()?.parse().ok().map(Tag)
}
