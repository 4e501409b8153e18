//! Everybody does anything at any time: clients, shims, the server, the network.
//!
//! After each step the agent's own invariants hold and it holds no more than its caps; in the end a drain leaves
//! nothing behind. A failure is printed with its seed.

use super::*;
use crate::limits::*;
use crate::random::Random;
use crate::wire::frame::ListName;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const SEEDS: u64 = 150;
const STEPS: usize = 250;
const OWN: StreamId = StreamId(1);

struct Chaos {
    rig: Rig,
    random: Random,
    /// What each client still has to say.
    scripts: BTreeMap<ConnId, Vec<u8>>,
    streams: Vec<u64>,
}

#[test]
#[expect(clippy::print_stderr, reason = "the seed of a failure")]
fn nothing_that_anybody_does_breaks_the_agent() {
    for seed in 0..SEEDS {
        let run = catch_unwind(AssertUnwindSafe(|| Chaos::new(seed).run()));
        if let Err(panic) = run {
            eprintln!("CHAOS_SEED {seed}");
            resume_unwind(panic);
        }
    }
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let rig = if seed.is_multiple_of(4) { Rig::down() } else { Rig::up() };
        Self { rig, random: Random::new(bytes), scripts: BTreeMap::new(), streams: Vec::new() }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            self.step();
            self.check();
        }
        self.rig.handle(Input::Drain);
        self.rig.pass(DRAIN_TIMEOUT + READER_TIMEOUT);
        assert!(self.rig.drained, "{:#?}", self.rig.agent);
        assert!(self.rig.clients.values().all(|client| client.closed.is_some()));
        assert_eq!((self.rig.agent.conns.len(), self.rig.agent.hub.timers.len()), (0, 0));
        assert_eq!(self.rig.agent.hub.described_bytes, 0);
    }

    fn check(&mut self) {
        self.rig.agent.check_invariants();
        let clients = self.rig.agent.conns.len();
        let one = usize::try_from(CREDIT_MAX).unwrap() + PIPELINE_BYTES_MAX + 2 * EVENT_BYTES_MAX;
        let cap = clients * one + LINK_RETAINED_MAX + LINK_UNSENT_HIGH;
        assert!(self.rig.agent.held_bytes() <= cap);
        for seen in self.rig.take_seen() {
            match seen {
                Seen::Request(stream, ..) | Seen::Run(stream, _) => self.streams.push(stream),
                Seen::Reset(stream, _) => self.streams.retain(|other| *other != stream),
                _ => {}
            }
        }
        if self.rig.server.is_none() {
            self.streams.clear();
        }
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).unwrap()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        let index = self.below(from.len());
        from.get(index).copied()
    }

    fn step(&mut self) {
        match self.below(100) {
            0..10 => self.come(),
            10..45 => self.talk(),
            45..50 => self.go(),
            50..58 => self.read_differently(),
            58..84 => self.serve(),
            84..88 => self.rig.server_reads = !self.rig.server_reads,
            88..91 => self.part(),
            91..99 => {
                let micros = self.random.below(2_000_000);
                self.rig.pass(Duration::from_micros(micros));
            }
            _ => {
                let seconds = self.random.below(40);
                self.rig.pass(Duration::from_secs(seconds));
            }
        }
        self.rig.pump();
    }

    fn open_client(&mut self) -> Option<ConnId> {
        let open: Vec<ConnId> =
            self.rig.clients.iter().filter(|(_, c)| c.closed.is_none()).map(|(conn, _)| *conn).collect();
        self.pick(&open)
    }

    fn come(&mut self) {
        let listener = self.pick(&[HTTP, HTTP, HTTP, SHIM]).unwrap();
        let conn = self.rig.connect(listener);
        self.scripts.insert(conn, Vec::new());
        self.rig.client(conn).gulp = self.pick(&[1000, 50_000, usize::MAX]).unwrap();
        if listener == SHIM {
            let script = self.shim_script();
            self.scripts.insert(conn, script);
        }
    }

    fn talk(&mut self) {
        let Some(conn) = self.open_client() else { return };
        if self.rig.client(conn).is_paused {
            return;
        }
        let mut script = self.scripts.remove(&conn).unwrap();
        if script.is_empty() {
            script = self.http_script();
        }
        let count = self.pick(&[1, 7, 100, usize::MAX, usize::MAX]).unwrap().min(script.len());
        let rest = script.split_off(count);
        self.scripts.insert(conn, rest);
        self.rig.send(conn, &script);
    }

    fn http_script(&mut self) -> Vec<u8> {
        let host = "Host: localhost:8080\r\n";
        let text = match self.below(14) {
            0..4 => call("7"),
            4 => call("8") + &call("9") + EVENTS,
            5 | 6 => EVENTS.to_owned(),
            7 => format!("POST /x HTTP/1.1\r\n{host}Content-Length: 70000\r\n\r\n{}", "b".repeat(70_000)),
            8 => {
                format!("POST /x HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            }
            9 => format!("GET /x HTTP/1.0\r\n{host}\r\n"),
            10 => format!("GET /health HTTP/1.1\r\n{host}\r\n").repeat(30),
            11 => format!("POST /x HTTP/1.1\r\n{host}Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc"),
            12 => format!("HEAD /x HTTP/1.1\r\n{host}\r\n"),
            _ => "what is this\r\n\r\n".to_owned(),
        };
        text.into_bytes()
    }

    fn shim_script(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let list = |go| StreamFrame::List { list: ListName::Argv, go, bytes: b"a\0" };
        StreamFrame::Run { terminal: false, tool: b"op" }.write(OWN, &mut bytes);
        list(false).write(OWN, &mut bytes);
        list(true).write(OWN, &mut bytes);
        for _ in 0..self.below(20) {
            let frame = match self.below(12) {
                0..9 => StreamFrame::Signal { number: 2 },
                9 => StreamFrame::Window { rows: 1, columns: 2 },
                10 => StreamFrame::Credit { bytes: 0 },
                _ => StreamFrame::Data { channel: Channel::Main, end: false, more: false, bytes: b"input" },
            };
            frame.write(OWN, &mut bytes);
        }
        bytes
    }

    fn go(&mut self) {
        let Some(conn) = self.open_client() else { return };
        if self.below(2) == 0 {
            self.rig.client(conn).closed = Some(Closing::Reset);
            self.rig.handle(Input::Lost { conn, loss: Loss::Reset });
        } else {
            // No byte comes after it.
            self.rig.client(conn).is_paused |= self.rig.agent.conns.contains_key(&conn);
            self.rig.agent.handle(self.rig.now, Input::Eof { source: Source::Conn(conn) });
        }
    }

    fn read_differently(&mut self) {
        if let Some(conn) = self.open_client() {
            let client = self.rig.client(conn);
            client.reads = !client.reads;
        }
    }

    fn serve(&mut self) {
        let streams = self.streams.clone();
        let Some(stream) = self.pick(&streams) else { return };
        if self.rig.server.is_none() {
            return;
        }
        let id = StreamId(stream);
        let sizes = [0, 1, 9, 2_000, 40_000, 300_000];
        let bytes = vec![b'x'; self.pick(&sizes).unwrap()];
        let (end, more) = (self.below(4) == 0, self.below(4) == 0);
        match self.below(20) {
            0..6 => {
                let status = self.pick(&[200, 200, 200, 204, 404, 99]).unwrap();
                let kinds =
                    [ResponseBody::Events, ResponseBody::Stream, ResponseBody::Whole, ResponseBody::None];
                let kind = self.pick(&kinds).unwrap();
                let length = bytes.len().to_string();
                let fields =
                    if kind == ResponseBody::Whole { vec![("Content-Length", &*length)] } else { vec![] };
                self.rig.respond(stream, status, kind, &fields);
                if kind == ResponseBody::Whole {
                    self.rig.server().send_data(id, Channel::Main, &bytes, true, false);
                }
            }
            6..13 => self.rig.server().send_data(id, Channel::Main, &bytes, end, more),
            13..16 => self.rig.server().send_data(id, Channel::Stdout, &bytes, end, false),
            16 => self.rig.server().grant_initial(id),
            17 => self.rig.reset(stream, Fault::NotStarted, "no"),
            18 => self.rig.server().send(id, &StreamFrame::Exit { value: 0, signaled: false, core: false }),
            _ => self.rig.server().send(id, &StreamFrame::Unknown { kind: 0x70 }),
        }
    }

    fn part(&mut self) {
        match (self.rig.link, self.rig.server.is_some()) {
            (Some(_), true) => self.rig.server_goes(),
            (Some(_), false) if self.below(3) == 0 => self.rig.refuse_dial(),
            (Some(_), false) => self.rig.server_comes(),
            (None, _) => {}
        }
    }
}
