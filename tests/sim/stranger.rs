//! Strangers: garbage on every listener, frames that announce 4 GiB, hellos that answer nothing, silence.

use crate::check::Check;
use crate::env::{Door, Entity, Env};
use crate::net::{End, Got, Wrote};
use carapace_proto::ids::StreamId;
use carapace_proto::machine::Closing;
use carapace_proto::time::{Duration, Instant};
use carapace_proto::wire::frame::{FrameReader, StreamFrame, write_json};
use carapace_proto::wire::message::{Hello, Message, Role, VERSION};

/// Longer than any of the product's patience with somebody who says nothing: a head, a hello, a run.
const PATIENCE: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(crate) struct Stranger {
    id: u64,
    end: End,
    door: Door,
    out: Vec<u8>,
    /// Whether it answers the server's nonce, truly or not, and what it says then.
    hello: Option<Lie>,
    came: Instant,
    /// It is to be parted with, sooner or later; whoever behaves may stay.
    pub(crate) must_go: bool,
    pub(crate) is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Served, and then it breaks the protocol.
    ThenGarbage,
    ThenNoCredit,
    ThenAckTooHigh,
    ThenSameStream,
    /// A probe that opens a stream.
    ProbeOpens,
    WrongNonce,
    WrongVersion,
}

const LIES: [Lie; 7] = [
    Lie::ThenGarbage,
    Lie::ThenNoCredit,
    Lie::ThenAckTooHigh,
    Lie::ThenSameStream,
    Lie::ProbeOpens,
    Lie::WrongNonce,
    Lie::WrongVersion,
];

impl Stranger {
    pub(crate) fn new(env: &mut Env, id: u64, end: End, door: Door) -> Self {
        let hello = (door == Door::Link && env.chance.is(600))
            .then(|| *env.chance.pick(&LIES).unwrap_or(&Lie::WrongNonce));
        let out = if hello.is_some() { Vec::new() } else { garbage(env, door) };
        env.say(|| format!("stranger {id} at {door:?}: {hello:?} {}", crate::http::shown(&out)));
        env.wake(Entity::Actor(id), env.now);
        env.wake(Entity::Actor(id), env.now + PATIENCE + Duration::from_secs(1));
        Self { id, end, door, out, hello, came: env.now, must_go: true, is_over: false }
    }

    pub(crate) fn run(&mut self, env: &mut Env) {
        loop {
            match env.read(self.end, 10_000) {
                Got::Bytes(bytes) => self.hear(env, &bytes),
                Got::Eof | Got::Reset => return self.leave(env),
                Got::Nothing => break,
            }
        }
        while !self.out.is_empty() {
            match env.write(self.end, &self.out) {
                Wrote::Count(0) => break,
                Wrote::Count(count) => drop(self.out.drain(..count)),
                Wrote::Broken => return self.leave(env),
            }
        }
        let is_silent = env.wire(self.end).is_none_or(|wire| wire.is_black_hole);
        let was_stalled = env.next_arrival(self.end).is_some();
        if self.must_go && env.now > self.came + PATIENCE && !is_silent && !was_stalled && self.out.is_empty()
        {
            env.fail(Check::Strangers, format!("stranger {} is still at {:?}", self.id, self.door));
        }
    }

    fn hear(&mut self, env: &mut Env, bytes: &[u8]) {
        let Some(lie) = self.hello.take() else { return };
        let (mut reader, mut input) = (FrameReader::new(), bytes);
        let Ok(Some(carapace_proto::wire::frame::Frame::Json(json))) = reader.next(&mut input, 4096) else {
            // In pieces; it is not worth waiting for.
            self.out = garbage(env, self.door);
            return;
        };
        let Ok(Message::Nonce(nonce)) = Message::parse(json) else { return };
        let hello = Hello {
            nonce: if lie == Lie::WrongNonce { "00".into() } else { nonce.nonce },
            version: if lie == Lie::WrongVersion { 77 } else { VERSION },
            role: if lie == Lie::ProbeOpens { Role::Probe } else { Role::Agent },
            software: "stranger".into(),
            resume: None,
        };
        Message::Hello(hello).write(&mut self.out);
        let one = StreamId(1);
        match lie {
            Lie::ThenGarbage => self.out.extend_from_slice(&env.chance.bytes(300)),
            Lie::ThenNoCredit => {
                StreamFrame::Run { terminal: false, tool: b"op" }.write(one, &mut self.out);
                let bytes = [7; 100];
                let channel = carapace_proto::wire::frame::Channel::Main;
                StreamFrame::Data { channel, end: false, more: false, bytes: &bytes }
                    .write(one, &mut self.out);
            }
            Lie::ThenAckTooHigh => write_json(br#"{"ack":{"received":99}}"#, &mut self.out),
            Lie::ThenSameStream => {
                for _ in 0..2 {
                    StreamFrame::Run { terminal: false, tool: b"op" }.write(StreamId(5), &mut self.out);
                }
                StreamFrame::Run { terminal: false, tool: b"op" }.write(StreamId(4), &mut self.out);
            }
            Lie::ProbeOpens => StreamFrame::Run { terminal: false, tool: b"op" }.write(one, &mut self.out),
            Lie::WrongNonce | Lie::WrongVersion => {}
        }
    }

    fn leave(&mut self, env: &mut Env) {
        if !core::mem::replace(&mut self.is_over, true) {
            env.close(self.end, Closing::Orderly);
        }
    }
}

fn garbage(env: &mut Env, door: Door) -> Vec<u8> {
    match (env.chance.below(8), door) {
        (0, _) => Vec::new(),
        (1, _) => env.chance.bytes(3_000),
        (2, _) => vec![0xff; 4],
        (3, _) => vec![0; 64],
        (4, Door::Http(_)) => [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 90_000]].concat(),
        (5, Door::Http(_)) => {
            b"POST /api/v1/rpc HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_vec()
        }
        (6, Door::Http(_)) => b"GET /api/v1/check HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec(),
        (7, Door::Http(_)) => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        (4, _) => {
            let mut out = Vec::new();
            write_json(br#"{"nonsense":{}}"#, &mut out);
            out
        }
        (5, _) => 65_000u32.to_be_bytes().to_vec(),
        (_, Door::Shim) => {
            let mut out = Vec::new();
            StreamFrame::Exit { value: 0, signaled: false, core: false }.write(StreamId(1), &mut out);
            out
        }
        (_, _) => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    }
}
