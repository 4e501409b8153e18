//! A scripted shim: one run over the agent's socket, with the frames that a shim speaks.

use crate::check::Check;
use crate::env::{Entity, Env};
use crate::hearing::RunHearing;
use crate::ledger::Lane;
use crate::net::{End, Got, Wrote};
use crate::pattern;
use crate::plan::{self, Run};
use carapace_proto::ids::StreamId;
use carapace_proto::limits::FRAME_BYTES_MAX;
use carapace_proto::machine::Closing;
use carapace_proto::wire::frame::{Channel, Frame, FrameReader, ListName, StreamFrame, push_item};

const OWN: StreamId = StreamId(1);

#[derive(Debug)]
pub(crate) struct Shim {
    id: u64,
    end: End,
    run: Run,
    reader: FrameReader,
    out: Vec<u8>,
    allowance: u64,
    sent: u64,
    has_ended_input: bool,
    /// Output that was taken and not paid for again.
    owed: u32,
    has_ended: bool,
    is_rude: bool,
    deaf_until: u64,
    pub(crate) is_over: bool,
}

impl Shim {
    pub(crate) fn new(env: &mut Env, id: u64, end: End) -> Self {
        let run = plan::run(env);
        let mut out = Vec::new();
        StreamFrame::Run { terminal: false, tool: run.tool.as_bytes() }.write(OWN, &mut out);
        let mut argv = Vec::new();
        run.argv.iter().for_each(|word| push_item(&mut argv, word.as_bytes()));
        StreamFrame::List { list: ListName::Argv, go: false, bytes: &argv }.write(OWN, &mut out);
        let variables = b"LANG=C\0PATH=/evil\0";
        StreamFrame::List { list: ListName::Env, go: false, bytes: variables }.write(OWN, &mut out);
        StreamFrame::List { list: ListName::Cwd, go: true, bytes: b"/home/me\0" }.write(OWN, &mut out);
        let is_rude = env.chance.is(env.climate.rude_clients);
        Self {
            id,
            end,
            run,
            reader: FrameReader::new(),
            out,
            allowance: 0,
            sent: 0,
            has_ended_input: false,
            owed: 0,
            has_ended: false,
            is_rude,
            deaf_until: 0,
            is_over: false,
        }
    }

    pub(crate) fn run(&mut self, env: &mut Env) {
        self.hear(env);
        if self.is_over {
            return;
        }
        self.feed(env);
        if self.owed > 0 && (!self.is_rude || env.is_calm || env.chance.is(200)) {
            StreamFrame::Credit { bytes: core::mem::take(&mut self.owed) }.write(OWN, &mut self.out);
        }
        self.misbehave(env);
        self.flush(env);
        if self.is_rude && !self.is_over {
            let micros = env.chance.within(100, 60_000);
            env.alarm_in(Entity::Actor(self.id), micros);
        }
    }

    fn hear(&mut self, env: &mut Env) {
        if env.now.as_micros() < self.deaf_until && !env.is_calm {
            return;
        }
        while !self.is_over {
            let most = env.chance.size(1, 100_000);
            match env.read(self.end, most) {
                Got::Bytes(bytes) => self.take(env, &bytes),
                Got::Eof | Got::Reset => return self.leave(env, Closing::Orderly),
                Got::Nothing => return,
            }
        }
    }

    fn take(&mut self, env: &mut Env, bytes: &[u8]) {
        let mut reader = core::mem::take(&mut self.reader);
        let mut input = bytes;
        loop {
            match reader.next(&mut input, FRAME_BYTES_MAX) {
                Ok(Some(Frame::Stream(OWN, frame))) => self.frame(env, frame),
                Ok(None) => break,
                other => {
                    env.fail(Check::Contract, format!("shim {} hears {other:.100?}", self.id));
                    break;
                }
            }
        }
        self.reader = reader;
    }

    fn frame(&mut self, env: &mut Env, frame: StreamFrame<'_>) {
        let hearing = RunHearing { tag: self.run.tag };
        if self.has_ended {
            return env
                .fail(Check::Answered, format!("{:?} hears {frame:.100?} after its end", self.run.tag));
        }
        match frame {
            StreamFrame::Data { channel, bytes, .. } => {
                let lane = if channel == Channel::Stderr { Lane::Stderr } else { Lane::Stdout };
                hearing.printed(env, lane, bytes);
                self.owed += u32::try_from(bytes.len()).unwrap_or(0);
            }
            StreamFrame::Credit { bytes } => self.allowance += u64::from(bytes),
            StreamFrame::Exit { value, signaled, .. } => {
                self.has_ended = true;
                hearing.exited(env, value, signaled);
            }
            StreamFrame::Failed { fault, text } => {
                self.has_ended = true;
                hearing.failed(env, fault, text);
            }
            frame => env.fail(Check::Contract, format!("{:?} hears {frame:.100?}", self.run.tag)),
        }
    }

    /// Sends standard input, as much as was asked for.
    fn feed(&mut self, env: &mut Env) {
        if self.has_ended_input || self.has_ended || self.allowance == 0 {
            return;
        }
        let left = self.run.stdin - self.sent;
        let most = left.min(self.allowance).min(40_000);
        let count = env.chance.size(0, usize::try_from(most).unwrap_or(0));
        let is_last = count as u64 == left;
        let bytes = pattern::bytes(self.run.tag, Lane::Up.number(), self.sent, count);
        if count > 0 || is_last {
            StreamFrame::Data { channel: Channel::Main, end: is_last, more: false, bytes: &bytes }
                .write(OWN, &mut self.out);
        }
        env.ledger.sent(self.run.tag, Lane::Up, count);
        self.sent += count as u64;
        self.allowance -= count as u64;
        self.has_ended_input = is_last;
        if !is_last && self.allowance > 0 {
            env.alarm_in(Entity::Actor(self.id), 300);
        }
    }

    fn flush(&mut self, env: &mut Env) {
        while !self.out.is_empty() && !self.is_over {
            match env.write(self.end, &self.out) {
                Wrote::Count(0) => return,
                Wrote::Count(count) => drop(self.out.drain(..count)),
                Wrote::Broken => {
                    // The last word may have come before.
                    self.hear(env);
                    self.leave(env, Closing::Orderly);
                }
            }
        }
    }

    fn misbehave(&mut self, env: &mut Env) {
        if !self.is_rude || env.is_calm {
            return;
        }
        match env.chance.below(60) {
            0 => self.leave(env, Closing::Orderly),
            1 => {
                let micros = env.chance.within(1_000, 6_000_000);
                self.deaf_until = env.now.as_micros() + micros;
                env.wake_in(Entity::Actor(self.id), micros);
            }
            2..=4 if self.allowance > 0 || self.sent > 0 => {
                let number = *env.chance.pick(&[1, 2, 15, 18, 20]).unwrap_or(&2);
                StreamFrame::Signal { number }.write(OWN, &mut self.out);
            }
            _ => {}
        }
    }

    fn leave(&mut self, env: &mut Env, how: Closing) {
        if core::mem::replace(&mut self.is_over, true) {
            return;
        }
        env.close(self.end, how);
        let tag = self.run.tag;
        let must_succeed = env.ledger.call(tag).is_some_and(|call| call.must_succeed);
        if env.is_calm && must_succeed && !self.has_ended {
            env.fail(Check::Answered, format!("{tag:?} loses its connection, and all is well"));
        }
        env.ledger.gone(tag);
    }
}
