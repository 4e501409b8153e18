//! A scripted HTTP client of the agent: it asks, waits or does not, reads or does not, and leaves as it likes.

use crate::check::Check;
use crate::env::{Entity, Env, HttpDoor};
use crate::hearing::Hearing;
use crate::http::{Kind, Part, Reader};
use crate::ledger::{Lane, Tag};
use crate::net::{End, Got, Wrote};
use crate::plan;
use carapace_proto::machine::Closing;
use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Client {
    id: u64,
    end: End,
    door: HttpDoor,
    reader: Reader,
    /// Requests that were begun and not answered, the oldest first.
    asked: VecDeque<Tag>,
    hearing: Option<Hearing>,
    is_interim: bool,
    out: Vec<u8>,
    calls_left: u64,
    pipelines: bool,
    is_rude: bool,
    is_http10: bool,
    deaf_until: u64,
    pub(crate) is_over: bool,
}

impl Client {
    pub(crate) fn new(env: &mut Env, id: u64, end: End, door: HttpDoor) -> Self {
        let is_rude = env.chance.is(env.climate.rude_clients);
        let is_http10 = !env.is_calm && env.chance.is(50);
        Self {
            id,
            end,
            door,
            reader: Reader::new(Kind::Response),
            asked: VecDeque::new(),
            hearing: None,
            is_interim: false,
            out: Vec::new(),
            calls_left: if is_http10 { 1 } else { env.chance.within(1, if env.is_calm { 2 } else { 6 }) },
            pipelines: env.chance.is(150),
            is_rude,
            is_http10,
            deaf_until: 0,
            is_over: false,
        }
    }

    pub(crate) fn run(&mut self, env: &mut Env) {
        self.hear(env);
        if self.is_over {
            return;
        }
        let most = if self.pipelines { 3 } else { 1 };
        if self.calls_left > 0 && self.asked.len() < most && env.chance.is(700) {
            self.calls_left -= 1;
            self.ask(env);
        }
        self.flush(env);
        self.misbehave(env);
        if self.is_over {
            return;
        }
        if self.calls_left == 0 && self.asked.is_empty() && self.out.is_empty() {
            return self.leave(env, Closing::Orderly);
        }
        if self.calls_left > 0 || self.is_rude {
            let micros = *env.chance.pick(&[2_000, 20_000, 200_000]).unwrap_or(&200);
            let micros = env.chance.within(50, micros);
            env.alarm_in(Entity::Actor(self.id), micros);
        }
    }

    // ---- asking ----

    fn ask(&mut self, env: &mut Env) {
        let request = plan::request(env, Some(self.door));
        self.asked.push_back(request.tag);
        let (port, version) = match (self.door, self.is_http10) {
            (HttpDoor::Files, _) => (8081, "1.1"),
            (HttpDoor::Signal, true) => (8080, "1.0"),
            (HttpDoor::Signal, false) => (8080, "1.1"),
        };
        let mut head =
            format!("{} {} HTTP/{version}\r\nHost: 127.0.0.1:{port}\r\n", request.method, request.target);
        for (name, value) in &request.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let Some(body) = request.body else {
            head.push_str("\r\n");
            self.out.extend_from_slice(head.as_bytes());
            return;
        };
        if env.chance.is(100) {
            head.push_str("Expect: 100-continue\r\n");
        }
        let says_length = body.says_length || version == "1.0";
        if says_length {
            head.push_str(&format!("Content-Length: {}\r\n\r\n", body.bytes.len()));
        } else {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
        }
        self.out.extend_from_slice(head.as_bytes());
        if says_length {
            self.out.extend_from_slice(&body.bytes);
        } else {
            let size = env.chance.size(1, 20_000);
            for chunk in body.bytes.chunks(size) {
                self.out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                self.out.extend_from_slice(chunk);
                self.out.extend_from_slice(b"\r\n");
            }
            self.out.extend_from_slice(b"0\r\n\r\n");
        }
        if body.is_pattern {
            // What is on its way counts as sent: it may arrive from now on.
            env.ledger.sent(request.tag, Lane::Up, body.bytes.len());
        }
    }

    // ---- hearing ----

    fn hear(&mut self, env: &mut Env) {
        if env.now.as_micros() < self.deaf_until && !env.is_calm {
            return;
        }
        loop {
            let most = env.chance.size(1, 60_000);
            match env.read(self.end, most) {
                Got::Bytes(bytes) => match self.reader.feed(&bytes) {
                    Ok(parts) => parts.into_iter().for_each(|part| self.part(env, part)),
                    Err(error) => {
                        env.fail(Check::Answered, format!("client {} hears no HTTP: {error}", self.id))
                    }
                },
                Got::Eof => {
                    if let Ok(parts) = self.reader.finish() {
                        parts.into_iter().for_each(|part| self.part(env, part));
                    }
                    return self.leave(env, Closing::Orderly);
                }
                Got::Reset => return self.leave(env, Closing::Orderly),
                Got::Nothing => return,
            }
            if self.is_over {
                return;
            }
        }
    }

    fn part(&mut self, env: &mut Env, part: Part) {
        match part {
            Part::Head(head) => {
                let status = head.status();
                self.is_interim = status < 200;
                if self.is_interim {
                    return;
                }
                let Some(tag) = self.asked.front().copied() else {
                    return env.fail(
                        Check::Answered,
                        format!("client {} hears {status} and asked nothing", self.id),
                    );
                };
                let content_type = head.field("content-type").unwrap_or_default().to_owned();
                self.hearing = Some(Hearing::new(env, tag, status, &content_type, &head.fields));
            }
            Part::Body(bytes) => {
                if let Some(hearing) = &mut self.hearing {
                    hearing.data(env, &bytes);
                }
            }
            Part::End if core::mem::take(&mut self.is_interim) => {}
            Part::End => {
                if let Some(hearing) = self.hearing.take() {
                    self.asked.pop_front();
                    hearing.end(env);
                    env.wake_in(Entity::Actor(self.id), 20);
                }
            }
        }
    }

    // ---- the connection ----

    fn flush(&mut self, env: &mut Env) {
        while !self.out.is_empty() && !self.is_over {
            match env.write(self.end, &self.out) {
                Wrote::Count(0) => return,
                Wrote::Count(count) => drop(self.out.drain(..count)),
                // What has arrived may be an answer that says why; it was read before.
                Wrote::Broken => self.leave(env, Closing::Orderly),
            }
        }
    }

    fn misbehave(&mut self, env: &mut Env) {
        if !self.is_rude || env.is_calm || self.is_over {
            return;
        }
        match env.chance.below(100) {
            0..=2 => self.leave(env, Closing::Orderly),
            3 => self.leave(env, Closing::Reset),
            4 => {
                env.say(|| format!("client {} half-closes", self.id));
                self.calls_left = 0;
                self.out.clear();
                env.shutdown(self.end);
            }
            5..=7 => {
                let micros = *env.chance.pick(&[10_000, 1_000_000, 40_000_000]).unwrap_or(&10_000);
                env.say(|| format!("client {} reads nothing for {micros} us", self.id));
                self.deaf_until = env.now.as_micros() + micros;
                env.wake_in(Entity::Actor(self.id), micros);
            }
            _ => {}
        }
    }

    fn leave(&mut self, env: &mut Env, how: Closing) {
        if core::mem::replace(&mut self.is_over, true) {
            return;
        }
        env.say(|| format!("client {} leaves", self.id));
        env.close(self.end, how);
        for tag in &self.asked {
            env.ledger.gone(*tag);
            // A call that was refused by closing instead of an answer: it may not be so when all is well.
            if env.is_calm && env.ledger.call(*tag).is_some_and(|call| call.must_succeed) {
                env.fail(Check::Answered, format!("{tag:?} loses its connection, and all is well"));
            }
        }
    }
}
