//! The conversation with the agent: what was said, what is still to be said, how it ended. No system call.
//!
//! The run is stream 1 of the connection. Standard input goes out only as far as the other side has granted credit,
//! since bytes that the tool will never take shall stay where they are; output is granted again once it was written.

use crate::end::End;
use crate::invocation::Invocation;
use carapace_proto::buffer::Buffer;
use carapace_proto::ids::StreamId;
use carapace_proto::limits::FRAME_BYTES_MAX;
use carapace_proto::wire::frame::{
    Channel, Frame, FrameReader, ListName, PAYLOAD_BYTES_MAX, StreamFrame, push_item,
};
use nix::sys::signal::Signal;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const SIGPIPE: u8 = Signal::SIGPIPE as u8;
const OWN: StreamId = StreamId(1);
/// Credit for output is given back in portions of this size: a fraction of what the other side may have under way.
const CREDIT_PORTION: u32 = 4 * 1024;

/// One of the two streams that a tool writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Stderr,
    Stdout,
}

#[derive(Debug)]
pub(crate) struct Run {
    reader: FrameReader,
    /// Frames for the agent.
    unsent: Buffer,
    stdout: Buffer,
    stderr: Buffer,
    /// Output that was written and not yet granted again.
    owed: u32,
    /// Standard input that may be sent.
    allowance: usize,
    is_input_over: bool,
    end: Option<End>,
}

impl Run {
    /// Asks for a tool to be run.
    pub(crate) fn new(
        invocation: &Invocation,
        environment: impl Iterator<Item = (OsString, OsString)>,
        directory: &Path,
    ) -> Self {
        let mut unsent = Buffer::new();
        let tool = invocation.tool.as_bytes();
        unsent.push_with(|out| StreamFrame::Run { terminal: false, tool }.write(OWN, out));
        let mut list = Vec::new();
        for arg in &invocation.args {
            push_item(&mut list, arg.as_bytes());
        }
        push_list(&mut unsent, ListName::Argv, &list, false);
        list.clear();
        for (name, value) in environment {
            push_variable(&mut list, &name, &value);
        }
        push_list(&mut unsent, ListName::Env, &list, false);
        list.clear();
        push_item(&mut list, directory.as_os_str().as_bytes());
        push_list(&mut unsent, ListName::Cwd, &list, true);
        Self {
            reader: FrameReader::new(),
            unsent,
            stdout: Buffer::new(),
            stderr: Buffer::new(),
            owed: 0,
            allowance: 0,
            is_input_over: false,
            end: None,
        }
    }

    // ---- the agent ----

    pub(crate) fn unsent(&self) -> &[u8] {
        self.unsent.bytes()
    }

    pub(crate) fn sent(&mut self, count: usize) {
        self.unsent.consume(count);
    }

    /// Takes in bytes of the agent's.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        let mut reader = std::mem::take(&mut self.reader);
        let mut input = bytes;
        while self.end.is_none() {
            match reader.next(&mut input, FRAME_BYTES_MAX) {
                Ok(Some(Frame::Stream(OWN, frame))) => self.handle_frame(frame),
                // What a newer agent may have to say about itself.
                Ok(Some(Frame::Json(_) | Frame::Stream(..))) => {}
                Ok(None) => break,
                Err(error) => self.fail(format!("the agent does not speak like one: {error}")),
            }
        }
        self.reader = reader;
    }

    fn handle_frame(&mut self, frame: StreamFrame<'_>) {
        match frame {
            StreamFrame::Data { channel: Channel::Stdout, bytes, .. } => self.stdout.push(bytes),
            StreamFrame::Data { channel: Channel::Stderr, bytes, .. } => self.stderr.push(bytes),
            StreamFrame::Credit { bytes } => {
                self.allowance = self.allowance.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
            }
            StreamFrame::Exit { value, signaled: true, .. } => self.end = Some(End::Signal(value)),
            StreamFrame::Exit { value, signaled: false, .. } => self.end = Some(End::Exit(value)),
            StreamFrame::Failed { fault, text } | StreamFrame::Reset { fault, text } => {
                let text = String::from_utf8_lossy(text).into_owned();
                self.end = Some(End::Failed { code: fault.exit_code(), text });
            }
            StreamFrame::Unknown { .. } => {}
            StreamFrame::Data { channel: Channel::Main, .. }
            | StreamFrame::List { .. }
            | StreamFrame::Request { .. }
            | StreamFrame::Response { .. }
            | StreamFrame::Run { .. }
            | StreamFrame::Signal { .. }
            | StreamFrame::Window { .. } => self.fail("the agent does not speak like one".to_owned()),
        }
    }

    /// The agent is gone, and said nothing of an end.
    pub(crate) fn handle_agent_lost(&mut self) {
        if self.end.is_none() {
            self.fail("the agent went away; the outcome is unknown".to_owned());
        }
    }

    fn fail(&mut self, text: String) {
        self.end = Some(End::failed(text));
    }

    // ---- the tool's input, and signals ----

    /// How much of standard input may be read now.
    pub(crate) fn input_room(&self) -> usize {
        let is_wanted = !self.is_input_over && self.end.is_none() && self.unsent.len() < PAYLOAD_BYTES_MAX;
        if is_wanted { self.allowance.min(PAYLOAD_BYTES_MAX) } else { 0 }
    }

    /// Standard input was read; nothing means that it ended.
    pub(crate) fn handle_input(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.input_room(), "more input than was asked for");
        self.allowance = self.allowance.saturating_sub(bytes.len());
        self.is_input_over = bytes.is_empty();
        let (end, more) = (self.is_input_over, false);
        let frame = StreamFrame::Data { channel: Channel::Main, end, more, bytes };
        self.unsent.push_with(|out| frame.write(OWN, out));
    }

    pub(crate) fn handle_signal(&mut self, number: u8) {
        if self.end.is_some() {
            // The tool has ended; only its output keeps this process.
            return self.die(number);
        }
        self.unsent.push_with(|out| StreamFrame::Signal { number }.write(OWN, out));
    }

    // ---- the tool's output ----

    /// What is to be written.
    pub(crate) fn output(&self, output: Output) -> &[u8] {
        match output {
            Output::Stderr => self.stderr.bytes(),
            Output::Stdout => self.stdout.bytes(),
        }
    }

    pub(crate) fn written(&mut self, output: Output, count: usize) {
        match output {
            Output::Stderr => self.stderr.consume(count),
            Output::Stdout => self.stdout.consume(count),
        }
        self.owed = self.owed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if self.owed >= CREDIT_PORTION && self.end.is_none() {
            let bytes = std::mem::take(&mut self.owed);
            self.unsent.push_with(|out| StreamFrame::Credit { bytes }.write(OWN, out));
        }
    }

    /// Whoever was to read the output is gone, as a tool would notice by writing to it.
    pub(crate) fn handle_broken_pipe(&mut self) {
        self.die(SIGPIPE);
    }

    fn die(&mut self, signal: u8) {
        self.end = Some(End::Signal(signal));
        self.stdout.clear();
        self.stderr.clear();
    }

    /// An output cannot be written for another reason: its bytes are lost, as they are to a tool that does not look.
    pub(crate) fn drop_output(&mut self, output: Output) {
        let count = self.output(output).len();
        self.written(output, count);
    }

    // ---- the end ----

    /// Whether the agent has nothing more to say, or nobody wants to hear it.
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// How it ended, once everything was written.
    pub(crate) fn take_end(&mut self) -> Option<End> {
        if self.stdout.is_empty() && self.stderr.is_empty() { self.end.take() } else { None }
    }
}

fn push_variable(list: &mut Vec<u8>, name: &OsStr, value: &OsStr) {
    list.extend_from_slice(name.as_bytes());
    list.push(b'=');
    push_item(list, value.as_bytes());
}

/// Appends a list, cut where frames end.
fn push_list(unsent: &mut Buffer, list: ListName, bytes: &[u8], go: bool) {
    let mut rest = bytes;
    loop {
        let (head, tail) = rest.split_at(rest.len().min(PAYLOAD_BYTES_MAX));
        let is_last = tail.is_empty();
        let frame = StreamFrame::List { list, go: go && is_last, bytes: head };
        unsent.push_with(|out| frame.write(OWN, out));
        rest = tail;
        if is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carapace_proto::wire::frame::Fault;

    fn run() -> Run {
        let invocation = Invocation { tool: "op".into(), args: vec!["a\nb".into(), "".into()] };
        Run::new(&invocation, [("A".into(), "b=c".into())].into_iter(), Path::new("/tmp"))
    }

    fn said(run: &mut Run) -> Vec<String> {
        let bytes = run.unsent().to_vec();
        run.sent(bytes.len());
        let (mut reader, mut input, mut said) = (FrameReader::new(), &bytes[..], Vec::new());
        while let Some(frame) = reader.next(&mut input, FRAME_BYTES_MAX).unwrap() {
            let Frame::Stream(OWN, frame) = frame else { panic!("{frame:?}") };
            said.push(match frame {
                StreamFrame::List { list, go, bytes } => {
                    format!("{list:?} {go} {}", String::from_utf8_lossy(bytes))
                }
                StreamFrame::Data { end, bytes, .. } => format!("data {end} {}", bytes.len()),
                StreamFrame::Credit { bytes } => format!("credit {bytes}"),
                StreamFrame::Run { tool, .. } => format!("run {}", String::from_utf8_lossy(tool)),
                StreamFrame::Signal { number } => format!("signal {number}"),
                StreamFrame::Exit { .. }
                | StreamFrame::Failed { .. }
                | StreamFrame::Request { .. }
                | StreamFrame::Reset { .. }
                | StreamFrame::Response { .. }
                | StreamFrame::Unknown { .. }
                | StreamFrame::Window { .. } => panic!("a shim does not say {frame:?}"),
            });
        }
        said
    }

    fn hear(run: &mut Run, frame: &StreamFrame<'_>) {
        let mut bytes = Vec::new();
        frame.write(OWN, &mut bytes);
        for piece in bytes.chunks(3) {
            run.handle_bytes(piece);
        }
    }

    #[test]
    fn the_first_words_describe_the_run() {
        let mut run = run();
        let expected = ["run op", "Argv false a\nb\0\0", "Env false A=b=c\0", "Cwd true /tmp\0"];
        assert_eq!(said(&mut run), expected);
    }

    #[test]
    fn long_lists_are_cut() {
        let invocation = Invocation { tool: "op".into(), args: vec!["x".repeat(150_000).into()] };
        let mut run = Run::new(&invocation, std::iter::empty(), Path::new("/"));
        let said = said(&mut run);
        assert_eq!(said.iter().filter(|s| s.starts_with("Argv")).count(), 3);
        assert_eq!(said.iter().filter(|s| s.contains("true")).count(), 1);
    }

    #[test]
    fn input_is_read_only_on_credit() {
        let mut run = run();
        said(&mut run);
        assert_eq!(run.input_room(), 0);
        hear(&mut run, &StreamFrame::Credit { bytes: 10 });
        assert_eq!(run.input_room(), 10);
        run.handle_input(b"1234567890");
        assert_eq!((run.input_room(), said(&mut run)), (0, vec!["data false 10".to_owned()]));
        hear(&mut run, &StreamFrame::Credit { bytes: 1_000_000 });
        run.handle_input(b"");
        assert_eq!((run.input_room(), said(&mut run)), (0, vec!["data true 0".to_owned()]));
    }

    #[test]
    fn output_is_granted_again_once_it_was_written() {
        let mut run = run();
        said(&mut run);
        let (end, more, bytes) = (false, false, &[7; 5000][..]);
        hear(&mut run, &StreamFrame::Data { channel: Channel::Stdout, end, more, bytes });
        assert_eq!(run.output(Output::Stdout).len(), 5000);
        run.written(Output::Stdout, 4000);
        assert!(said(&mut run).is_empty());
        run.written(Output::Stdout, 1000);
        assert_eq!(said(&mut run), ["credit 5000"]);
    }

    #[test]
    fn the_end_waits_for_the_output() {
        let mut run = run();
        let (end, more, bytes) = (true, false, &b"late"[..]);
        hear(&mut run, &StreamFrame::Data { channel: Channel::Stderr, end, more, bytes });
        hear(&mut run, &StreamFrame::Exit { value: 3, signaled: false, core: false });
        assert!(run.is_over());
        assert_eq!(run.take_end(), None);
        run.written(Output::Stderr, 4);
        assert_eq!(run.take_end(), Some(End::Exit(3)));
    }

    #[test]
    fn failures_have_their_exit_codes() {
        for (fault, code) in [(Fault::Denied, 126), (Fault::UnknownTool, 127), (Fault::TimedOut, 125)] {
            let mut run = run();
            hear(&mut run, &StreamFrame::Failed { fault, text: b"because" });
            assert_eq!(run.take_end(), Some(End::Failed { code, text: "because".into() }));
        }
        let mut lost = run();
        lost.handle_agent_lost();
        assert!(matches!(lost.take_end(), Some(End::Failed { code: 125, .. })));
        let mut garbage = run();
        garbage.handle_bytes(&[0xff; 4]);
        assert!(matches!(garbage.take_end(), Some(End::Failed { code: 125, .. })));
    }
}
