//! The real shim as a process of its own, against an agent that a test plays.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::wildcard_enum_match_arm, reason = "what a test does not expect, it refuses")]

use carapace_proto::ids::StreamId;
use carapace_proto::limits::FRAME_BYTES_MAX;
use carapace_proto::wire::frame::{Channel, Fault, Frame, FrameReader, ListName, StreamFrame};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const SHIM: &str = env!("CARGO_BIN_EXE_carapace-shim");
const OWN: StreamId = StreamId(1);

/// A folder with the agent's socket and the shim under the name of a tool.
struct Rig {
    folder: PathBuf,
    listener: UnixListener,
}

impl Rig {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("carapace-shim-{}-{number}", id()));
        fs::create_dir_all(&folder).unwrap();
        symlink(SHIM, folder.join("op")).unwrap();
        let listener = UnixListener::bind(folder.join("agent.sock")).unwrap();
        Self { folder, listener }
    }

    fn tool(&self) -> Command {
        self.configured(Command::new(self.folder.join("op")))
    }

    /// The tool, started by a shell that has done something before.
    fn tool_after(&self, script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{script}; exec {}", self.folder.join("op").display()));
        self.configured(shell)
    }

    fn configured(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("CARAPACE_AGENT_SOCKET", self.folder.join("agent.sock"))
            .env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Takes the shim's connection and reads what it wants to run.
    fn accept(&self) -> Agent {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut agent =
            Agent { stream, reader: FrameReader::new(), held: Vec::new(), lists: [const { Vec::new() }; 3] };
        loop {
            match agent.hear() {
                Heard::List(list, bytes, go) => {
                    agent.lists[list].extend_from_slice(&bytes);
                    if go {
                        return agent;
                    }
                }
                heard => assert_eq!(heard, Heard::Run(b"op".to_vec())),
            }
        }
    }

    /// Runs the tool with an agent that says `frames` and no more.
    fn run(&self, frames: &[StreamFrame<'_>]) -> Output {
        let child = self.tool().spawn().unwrap();
        let mut agent = self.accept();
        for frame in frames {
            agent.say(frame);
        }
        child.wait_with_output().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

struct Agent {
    stream: UnixStream,
    reader: FrameReader,
    held: Vec<u8>,
    /// Arguments, environment, directory.
    lists: [Vec<u8>; 3],
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Credit(u32),
    Data(Vec<u8>, bool),
    End,
    List(usize, Vec<u8>, bool),
    Run(Vec<u8>),
    Signal(u8),
}

impl Agent {
    fn say(&mut self, frame: &StreamFrame<'_>) {
        let mut bytes = Vec::new();
        frame.write(OWN, &mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame of the shim's.
    fn hear(&mut self) -> Heard {
        loop {
            let held = std::mem::take(&mut self.held);
            let mut input = &held[..];
            let heard = match self.reader.next(&mut input, FRAME_BYTES_MAX).unwrap() {
                Some(Frame::Stream(OWN, frame)) => Some(understood(&frame)),
                Some(other) => panic!("a shim does not say {other:?}"),
                None => None,
            };
            self.held = input.to_vec();
            if let Some(heard) = heard {
                return heard;
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer).unwrap() {
                0 => return Heard::End,
                count => self.held.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

fn understood(frame: &StreamFrame<'_>) -> Heard {
    match *frame {
        StreamFrame::Credit { bytes } => Heard::Credit(bytes),
        StreamFrame::Data { bytes, end, .. } => Heard::Data(bytes.to_vec(), end),
        StreamFrame::List { list, go, bytes } => {
            let index = match list {
                ListName::Argv => 0,
                ListName::Env => 1,
                ListName::Cwd => 2,
            };
            Heard::List(index, bytes.to_vec(), go)
        }
        StreamFrame::Run { terminal: false, tool } => Heard::Run(tool.to_vec()),
        StreamFrame::Signal { number } => Heard::Signal(number),
        other => panic!("a shim does not say {other:?}"),
    }
}

const fn stdout(bytes: &[u8]) -> StreamFrame<'_> {
    StreamFrame::Data { channel: Channel::Stdout, end: false, more: false, bytes }
}

const fn stderr(bytes: &[u8]) -> StreamFrame<'_> {
    StreamFrame::Data { channel: Channel::Stderr, end: false, more: false, bytes }
}

const fn exited(value: u8) -> StreamFrame<'static> {
    StreamFrame::Exit { value, signaled: false, core: false }
}

const fn killed(value: u8) -> StreamFrame<'static> {
    StreamFrame::Exit { value, signaled: true, core: true }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn output_and_exit_code_are_the_tools() {
    let rig = Rig::new();
    let output = rig.run(&[stdout(b"out\0\xff"), stderr(b"err\n"), stdout(b"more"), exited(42)]);
    assert_eq!(output.stdout, b"out\0\xffmore");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code(), Some(42));
}

#[test]
fn a_tool_killed_by_a_signal_kills_its_shim_by_the_same() {
    for number in [1, 2, 3, 6, 9, 10, 11, 13, 15] {
        let rig = Rig::new();
        let output = rig.run(&[stdout(b"before"), killed(number)]);
        assert_eq!(output.status.signal(), Some(number.into()), "{number}");
        assert!(!output.status.core_dumped(), "{number}");
        assert_eq!(output.stdout, b"before");
    }
    // One that does not kill, as far as this side knows.
    let output = Rig::new().run(&[killed(17)]);
    assert_eq!(output.status.code(), Some(128 + 17));
}

#[test]
fn arguments_environment_and_directory_arrive_byte_for_byte() {
    let rig = Rig::new();
    let long = "x".repeat(100_000);
    let mut child = rig
        .tool()
        .args(["", "a\nb", &long])
        .arg(OsStr::from_bytes(b"\xff\xfe"))
        .env("EMPTY", "")
        .env("BYTES", OsStr::from_bytes(b"=\xff\n"))
        .current_dir("/usr")
        .spawn()
        .unwrap();
    let mut agent = rig.accept();
    let [argv, env, cwd] = &agent.lists;
    assert_eq!(*argv, [b"\0a\nb\0", long.as_bytes(), b"\0\xff\xfe\0"].concat());
    assert_eq!(cwd, b"/usr\0");
    let env: Vec<&[u8]> = env.split(|byte| *byte == 0).collect();
    assert!(env.contains(&&b"EMPTY="[..]) && env.contains(&&b"BYTES==\xff\n"[..]), "{env:?}");
    agent.say(&exited(0));
    assert!(child.wait().unwrap().success());
}

#[test]
fn input_that_nobody_asked_for_is_left_alone() {
    let rig = Rig::new();
    let path = rig.folder.join("input");
    fs::write(&path, b"for the next program").unwrap();
    let mut input = fs::File::open(&path).unwrap();
    let child = rig.tool().stdin(input.try_clone().unwrap()).spawn().unwrap();
    rig.accept().say(&exited(0));
    assert!(child.wait_with_output().unwrap().status.success());
    let mut left = String::new();
    input.read_to_string(&mut left).unwrap();
    assert_eq!(left, "for the next program");
}

#[test]
fn input_goes_out_as_it_is_granted_and_its_end_is_seen() {
    let rig = Rig::new();
    let mut child = rig.tool().stdin(Stdio::piped()).spawn().unwrap();
    let mut agent = rig.accept();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"0123456789").unwrap();
    agent.say(&StreamFrame::Credit { bytes: 4 });
    assert_eq!(agent.hear(), Heard::Data(b"0123".to_vec(), false));
    agent.say(&StreamFrame::Credit { bytes: 100 });
    assert_eq!(agent.hear(), Heard::Data(b"456789".to_vec(), false));
    drop(input);
    assert_eq!(agent.hear(), Heard::Data(Vec::new(), true));
    agent.say(&exited(0));
    assert!(child.wait().unwrap().success());
}

#[test]
fn closed_standard_streams_are_no_trouble() {
    let rig = Rig::new();
    let child = rig.tool_after("exec <&-").spawn().unwrap();
    let mut agent = rig.accept();
    agent.say(&StreamFrame::Credit { bytes: 100 });
    assert_eq!(agent.hear(), Heard::Data(Vec::new(), true));
    agent.say(&stdout(b"still here"));
    agent.say(&exited(3));
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"still here"[..]));
    let child = rig.tool_after("exec >&- 2>&-").spawn().unwrap();
    let mut agent = rig.accept();
    agent.say(&stdout(b"into the void"));
    agent.say(&stderr(b"this too"));
    agent.say(&exited(4));
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(4));
}

#[test]
fn carapaces_own_failures_have_their_codes_and_one_line() {
    for (fault, code) in [(Fault::Denied, 126), (Fault::UnknownTool, 127), (Fault::OutcomeUnknown, 125)] {
        let output =
            Rig::new().run(&[stdout(b"some"), StreamFrame::Failed { fault, text: b"for a \x1b reason" }]);
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(output.stdout, b"some");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "carapace: for a ? reason\n");
    }
    let rig = Rig::new();
    let child = rig.tool().spawn().unwrap();
    drop(rig.accept());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(output.stderr, b"carapace: the agent went away; the outcome is unknown\n");
    let output = rig.tool().env("CARAPACE_AGENT_SOCKET", "/nowhere/at/all").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(output.stderr, b"carapace: the agent cannot be reached (/nowhere/at/all: not there)\n");
    let output = rig.tool().env("_CARAPACE_JOB", "7").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(output.stderr.starts_with(b"carapace: op: "));
}

#[test]
fn what_fails_before_the_run_is_told_even_when_the_rest_cannot_be_sent() {
    let rig = Rig::new();
    let child = rig.tool().arg("x".repeat(120_000)).args(vec!["y".repeat(100_000); 12]).spawn().unwrap();
    let (mut stream, _) = rig.listener.accept().unwrap();
    let mut bytes = Vec::new();
    StreamFrame::Failed { fault: Fault::NotStarted, text: b"too much" }.write(OWN, &mut bytes);
    stream.write_all(&bytes).unwrap();
    drop(stream);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stderr, b"carapace: too much\n");
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn signals_reach_the_tool_each_time() {
    let rig = Rig::new();
    let child = rig.tool().spawn().unwrap();
    let mut agent = rig.accept();
    // Its first words are said once signals are caught.
    for sent in
        [Signal::SIGINT, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM]
    {
        signal(&child, sent);
        assert_eq!(agent.hear(), Heard::Signal(u8::try_from(sent as i32).unwrap()));
    }
    agent.say(&exited(130));
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}

#[test]
fn a_signal_that_was_ignored_from_the_start_stays_ignored() {
    let rig = Rig::new();
    let child = rig.tool_after("trap '' HUP").spawn().unwrap();
    let mut agent = rig.accept();
    signal(&child, Signal::SIGHUP);
    signal(&child, Signal::SIGTERM);
    assert_eq!(agent.hear(), Heard::Signal(15));
    agent.say(&killed(15));
    assert_eq!(child.wait_with_output().unwrap().status.signal(), Some(15));
}

#[test]
fn a_killed_shim_is_gone_for_the_agent() {
    let rig = Rig::new();
    let mut child = rig.tool().spawn().unwrap();
    let mut agent = rig.accept();
    child.kill().unwrap();
    assert_eq!(agent.hear(), Heard::End);
    child.wait().unwrap();
}

#[test]
fn a_reader_that_is_gone_ends_the_run_by_sigpipe() {
    let rig = Rig::new();
    let mut child = rig.tool().spawn().unwrap();
    let mut agent = rig.accept();
    drop(child.stdout.take());
    agent.say(&stdout(b"for nobody"));
    assert_eq!(agent.hear(), Heard::End);
    assert_eq!(child.wait().unwrap().signal(), Some(13));
}

#[test]
fn much_output_arrives_whole_and_its_credit_comes_back() {
    for file in [false, true] {
        let rig = Rig::new();
        let path = rig.folder.join("output");
        let mut tool = rig.tool();
        if file {
            tool.stdout(fs::File::create(&path).unwrap());
        }
        let child = tool.spawn().unwrap();
        let agent = rig.accept();
        let sender = std::thread::spawn(move || send_all(agent, 20_000_000));
        let output = child.wait_with_output().unwrap();
        let bytes = if file { fs::read(&path).unwrap() } else { output.stdout };
        assert!(output.status.success());
        assert_eq!(bytes.len(), 20_000_000);
        assert!(bytes == pattern(20_000_000), "bytes differ");
        sender.join().unwrap();
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + i / 256).to_le_bytes()[0]).collect()
}

/// Sends a lot, with no more than 16 KiB under way, in pieces that fit nothing.
fn send_all(mut agent: Agent, bytes: usize) {
    let bytes = pattern(bytes);
    let (mut rest, mut credit) = (&bytes[..], 16_384);
    while !rest.is_empty() {
        while credit == 0 {
            let Heard::Credit(more) = agent.hear() else { panic!("not credit") };
            credit += usize::try_from(more).unwrap();
        }
        assert!(credit <= 16_384, "granted more than was taken");
        let (head, tail) = rest.split_at(credit.min(rest.len()).min(9_999));
        agent.say(&stdout(head));
        credit -= head.len();
        rest = tail;
    }
    agent.say(&exited(0));
}

#[test]
fn a_blocked_output_stops_neither_the_other_nor_signals_and_is_shared_as_it_was() {
    let rig = Rig::new();
    let mut child = rig.tool().spawn().unwrap();
    let mut agent = rig.accept();
    let big = vec![b'x'; 300_000];
    for piece in big.chunks(50_000) {
        agent.say(&stdout(piece));
    }
    agent.say(&stderr(b"heard"));
    let mut heard = [0; 5];
    child.stderr.as_mut().unwrap().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"heard");
    signal(&child, Signal::SIGINT);
    while agent.hear() != Heard::Signal(2) {}
    let flags = fcntl(child.stdout.as_ref().unwrap(), FcntlArg::F_GETFL).unwrap();
    assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
    agent.say(&exited(0));
    assert_eq!(child.wait_with_output().unwrap().stdout.len(), big.len());
}

#[test]
fn a_shim_that_only_has_output_left_can_be_ended() {
    let rig = Rig::new();
    let mut child = rig.tool().spawn().unwrap();
    let mut agent = rig.accept();
    for _ in 0..6 {
        agent.say(&stdout(&[b'x'; 50_000]));
    }
    agent.say(&exited(0));
    // One that comes before the shim knows of the end is still the tool's.
    let status = loop {
        signal(&child, Signal::SIGTERM);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::yield_now();
    };
    assert_eq!(status.signal(), Some(15));
}

#[test]
fn under_its_own_name_it_speaks_for_itself() {
    let rig = Rig::new();
    let own = |args: &[&str]| rig.configured(Command::new(Path::new(SHIM))).args(args).output().unwrap();
    let version = own(&["--version"]);
    assert!(version.stdout.starts_with(b"carapace-shim 0.") && version.status.success());
    assert!(own(&["--help"]).stdout.starts_with(b"Runs a tool"));
    let usage = own(&[]);
    assert_eq!(usage.status.code(), Some(125));
    assert!(usage.stdout.is_empty() && usage.stderr.starts_with(b"carapace: usage: "));
}
