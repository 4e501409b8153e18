//! The loop with real sockets and a real log, under a machine of a few lines.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that is surprised fails"
)]

mod echo;

use carapace_io_mio::audit::{Audit, AuditSync};
use carapace_io_mio::clock::Clock;
use carapace_io_mio::listen::{Listener, Owner};
use carapace_io_mio::turn::{End, Loop, Parts};
use carapace_proto::ids::{ListenerId, RecordId};
use carapace_proto::machine::{Address, DialError, Loss, PeerAddr};
use echo::{Echo, HIGH, Heard};
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A loop on a thread of its own. Dropped, it is ended.
struct Rig {
    echo: SocketAddr,
    relay: SocketAddr,
    commands: SocketAddr,
    socket: PathBuf,
    heard: Receiver<Heard>,
    thread: Option<JoinHandle<End>>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::start(tcp("127.0.0.1", 9), None)
    }

    fn relaying_to(address: Address) -> Self {
        Self::start(address, None)
    }

    fn recording_to(path: &Path, sync: AuditSync) -> Self {
        Self::start(tcp("127.0.0.1", 9), Some(Audit::open(path, sync).unwrap()))
    }

    fn start(relay_to: Address, audit: Option<Audit>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("commands.sock");
        let listen = || Listener::tcp("127.0.0.1:0".parse().unwrap(), Owner::Ask).unwrap();
        let listeners = vec![listen(), listen(), listen(), Listener::unix(&socket, 0o600).unwrap()];
        let addr = |listener: usize| listeners[listener].tcp_addr().unwrap();
        let (echo, relay, commands) = (addr(0), addr(1), addr(2));
        let (sender, heard) = mpsc::channel();
        let clock = Clock::start();
        let now = clock.now();
        let parts = Parts { listeners, audit, ..Parts::default() };
        let driver = Loop::new(Echo::new(relay_to, sender), clock, now, parts).unwrap();
        let thread = thread::spawn(|| driver.run().unwrap());
        Self { echo, relay, commands, socket, heard, thread: Some(thread), _dir: dir }
    }

    fn command(&self, command: &str) -> TcpStream {
        let mut stream = connect(self.commands);
        stream.write_all(command.as_bytes()).unwrap();
        stream
    }

    /// The next thing heard that is not of the everyday kind.
    fn next(&self) -> Heard {
        loop {
            match self.heard.recv_timeout(Duration::from_secs(20)).unwrap() {
                Heard::Accepted(..) | Heard::Paused | Heard::Resumed | Heard::Wall(_) => {}
                heard => return heard,
            }
        }
    }

    fn wait_for(&self, wanted: &Heard) {
        while self.heard.recv_timeout(Duration::from_secs(20)).unwrap() != *wanted {}
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _quit = self.command("quit");
            let end = self.thread.take().unwrap().join().unwrap();
            assert_eq!(end, End::Drained);
        }
    }
}

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp { host: host.to_owned(), port }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).unwrap();
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, message);
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

/// Bytes of which no two stretches are alike.
fn pattern(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    for (i, page) in (0u32..).zip(bytes.chunks_mut(256)) {
        page[..4].copy_from_slice(&i.to_be_bytes());
    }
    bytes
}

/// Writes until nobody takes any more.
fn fill(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    let result = loop {
        match stream.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    stream.set_nonblocking(false).unwrap();
    assert_eq!(result.kind(), ErrorKind::WouldBlock);
    written
}

/// Writes until the machine has paused its source and the kernel takes no more either.
fn fill_until_paused(rig: &Rig, stream: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut sent = 0;
    loop {
        sent += fill(stream, &bytes[sent..]);
        let mut heard = std::iter::from_fn(|| rig.heard.recv_timeout(Duration::from_millis(10)).ok());
        if heard.any(|heard| heard == Heard::Paused) {
            return sent + fill(stream, &bytes[sent..]);
        }
    }
}

#[test]
fn a_reader_that_does_not_read_pauses_its_source_and_gets_every_byte() {
    let rig = Rig::new();
    let mut stream = connect(rig.echo);
    let bytes = pattern(32 * 1024 * 1024);
    // The machine asserts that it never holds more than its mark and a turn's share.
    let sent = fill_until_paused(&rig, &mut stream, &bytes);
    assert!(sent > HIGH);
    let mut rest = stream.try_clone().unwrap();
    let expected = bytes.clone();
    let writer = thread::spawn(move || {
        rest.write_all(&bytes[sent..]).unwrap();
        rest.shutdown(Shutdown::Write).unwrap();
    });
    assert!(read_all(&mut stream) == expected);
    writer.join().unwrap();
}

/// All bytes and the end of them are there before the pause ends: no edge will tell.
#[test]
fn a_paused_source_is_read_again_without_an_edge() {
    let rig = Rig::new();
    let mut stream = connect(rig.echo);
    let bytes = pattern(32 * 1024 * 1024);
    let sent = fill_until_paused(&rig, &mut stream, &bytes);
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(read_all(&mut stream) == bytes[..sent]);
}

/// Unix sockets tell of room in another way than TCP.
#[test]
fn a_unix_socket_that_was_full_is_written_to_again() {
    let rig = Rig::new();
    let mut stream = UnixStream::connect(&rig.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for round in 1..=3 {
        let bytes = pattern(8 * 1024 * 1024 * round);
        let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
        let writing = thread::spawn(move || writer.write_all(&sent).unwrap());
        rig.wait_for(&Heard::Paused);
        let mut echoed = vec![0; bytes.len()];
        stream.read_exact(&mut echoed).unwrap();
        assert!(echoed == bytes);
        writing.join().unwrap();
    }
}

#[test]
fn a_byte_at_a_time_arrives() {
    let rig = Rig::new();
    let mut stream = connect(rig.echo);
    for byte in 0..=255 {
        round_trip(&mut stream, &[byte]);
    }
}

#[test]
fn a_thousand_connections_are_served_side_by_side() {
    carapace_io_mio::child::raise_open_files().unwrap();
    let rig = Rig::new();
    let mut streams: Vec<_> = (0..1000).map(|_| connect(rig.echo)).collect();
    for round in 0..3 {
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(format!("{round}:{i:5}").as_bytes()).unwrap();
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, format!("{round}:{i:5}").as_bytes());
        }
    }
}

#[test]
fn one_that_floods_does_not_starve_the_others() {
    let rig = Rig::new();
    let mut flood = connect(rig.echo);
    let mut answers = flood.try_clone().unwrap();
    let flooding = thread::spawn(move || while flood.write_all(&[7; 65536]).is_ok() {});
    let draining = thread::spawn(move || while answers.read(&mut [0; 65536]).is_ok_and(|count| count > 0) {});
    let mut stream = connect(rig.echo);
    for i in 0..200u32 {
        round_trip(&mut stream, &i.to_be_bytes());
    }
    drop(rig);
    flooding.join().unwrap();
    draining.join().unwrap();
}

#[test]
fn the_owner_of_a_peer_on_this_machine_is_known() {
    let rig = Rig::new();
    let stream = connect(rig.echo);
    let uid = nix::unistd::getuid().as_raw();
    let peer = PeerAddr::Tcp { addr: stream.local_addr().unwrap(), uid: Some(uid) };
    rig.wait_for(&Heard::Accepted(ListenerId(0), peer));
    let _unix = UnixStream::connect(&rig.socket).unwrap();
    let gid = nix::unistd::getgid().as_raw();
    let pid = i32::try_from(std::process::id()).unwrap();
    rig.wait_for(&Heard::Accepted(ListenerId(3), PeerAddr::Unix { uid, gid, pid }));
}

#[test]
fn a_reset_is_told_whether_its_source_is_read_or_paused() {
    let rig = Rig::new();
    let reset = |stream: TcpStream| {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
    };
    let mut stream = connect(rig.echo);
    round_trip(&mut stream, b"hello");
    reset(stream);
    assert_eq!(rig.next(), Heard::Lost(Loss::Reset));
    let mut stream = connect(rig.echo);
    fill_until_paused(&rig, &mut stream, &pattern(32 * 1024 * 1024));
    reset(stream);
    assert_eq!(rig.next(), Heard::Lost(Loss::Reset));
}

#[test]
fn a_connection_is_closed_in_the_way_the_machine_says() {
    let rig = Rig::new();
    let mut stream = rig.command("close");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let mut stream = rig.command("reset");
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_relay_connects_by_address_by_name_and_by_path() {
    let upstream = Rig::new();
    let port = upstream.echo.port();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upstream.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let unix = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    // Where `localhost` is ::1 first, nobody listens there, and the next address is tried.
    for to in [tcp("127.0.0.1", port), tcp("localhost", port), Address::Unix(path)] {
        let rig = Rig::relaying_to(to);
        round_trip(&mut connect(rig.relay), b"hello");
    }
    unix.join().unwrap();
}

#[test]
fn a_relay_carries_everything_in_both_directions() {
    let upstream = Rig::new();
    let rig = Rig::relaying_to(tcp("127.0.0.1", upstream.echo.port()));
    let mut stream = connect(rig.relay);
    let bytes = pattern(16 * 1024 * 1024);
    let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(read_all(&mut stream) == bytes);
    writing.join().unwrap();
}

#[test]
fn a_dial_that_fails_says_why() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = [tcp("127.0.0.1", free), tcp("localhost", free), Address::Unix("/nonexistent/sock".into())];
    let unknown = [tcp("no-such-host.invalid", 1)];
    let expected = refused.map(|to| (to, DialError::Refused)).into_iter();
    for (to, error) in expected.chain(unknown.map(|to| (to, DialError::NoSuchHost))) {
        let rig = Rig::relaying_to(to);
        let mut stream = connect(rig.relay);
        assert_eq!(rig.next(), Heard::DialFailed(error));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}

/// The upstream answers and closes while it is being sent to: its answer must not be lost to the reset.
#[test]
fn what_arrived_before_a_reset_is_still_read() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::relaying_to(tcp("127.0.0.1", upstream.local_addr().unwrap().port()));
    let mut stream = connect(rig.relay);
    stream.write_all(&pattern(1024)).unwrap();
    let (mut peer, _) = upstream.accept().unwrap();
    peer.read_exact(&mut [0; 4]).unwrap();
    peer.write_all(b"too large").unwrap();
    drop(peer);
    assert_eq!(rig.next(), Heard::Lost(Loss::Reset));
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"too large");
}

#[test]
fn wall_time_is_the_first_thing_told() {
    let rig = Rig::new();
    assert!(
        matches!(rig.heard.recv().unwrap(), Heard::Wall(wall) if wall.unix_micros() > 1_700_000_000_000_000)
    );
}

fn answer(mut stream: TcpStream) -> [u8; 2] {
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).unwrap();
    answer
}

#[test]
fn a_record_is_in_the_log_before_anything_comes_of_it() {
    for sync in [AuditSync::Interval, AuditSync::Never, AuditSync::Turn] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let rig = Rig::recording_to(&path, sync);
        for i in 1..=3 {
            let stream = rig.command(&format!("record {i}\n"));
            assert_eq!(&answer(stream), b"ok");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.ends_with(&format!("record {i}\n")), "{sync:?}: {text}");
            assert_eq!(rig.next(), Heard::Recorded(RecordId(i)));
        }
    }
}

#[test]
fn records_that_come_while_the_disk_is_busy_follow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let rig = Rig::recording_to(&path, AuditSync::Turn);
    let streams: Vec<_> = (0..100).map(|i| rig.command(&format!("{i}\n"))).collect();
    for stream in streams {
        assert_eq!(&answer(stream), b"ok");
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let mut numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_and_no_log_at_all_are_failures() {
    let rig = Rig::recording_to(Path::new("/dev/full"), AuditSync::Interval);
    let _stream = rig.command("record\n");
    assert_eq!(rig.next(), Heard::RecordFailed(RecordId(1)));
    let rig = Rig::new();
    let _stream = rig.command("record\n");
    assert_eq!(rig.next(), Heard::RecordFailed(RecordId(1)));
}

/// Descriptors are counted for the whole process: so this runs itself in one of its own.
#[test]
fn accepting_goes_on_when_there_are_descriptors_again() {
    const INNER: &str = "CARAPACE_TEST_NO_DESCRIPTORS";
    if std::env::var_os(INNER).is_none() {
        let inner = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "accepting_goes_on_when_there_are_descriptors_again", "--nocapture"])
            .env(INNER, "1")
            .output()
            .unwrap();
        assert!(inner.status.success(), "{}", String::from_utf8_lossy(&inner.stderr));
        return;
    }
    let rig = Rig::new();
    let mut first = connect(rig.echo);
    round_trip(&mut first, b"first");
    let mut second = connect(rig.echo);
    round_trip(&mut second, b"second");
    let mut third = connect(rig.echo);
    round_trip(&mut third, b"third");
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, used, 4096).unwrap();
    // One descriptor is left: for this end of the connection. The kernel completes it without ours.
    let mut late = connect(rig.echo);
    late.write_all(b"late").unwrap();
    round_trip(&mut first, b"still served");
    drop(second);
    drop(third);
    let mut answer = [0; 4];
    late.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"late");
}
