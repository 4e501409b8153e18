//! Bytes from strangers, on every socket that listens.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::kit::{
    LONG, Setup, Site, debug, descriptors, noise, policy_with_tools, resident_kib, run, timed, wait_until,
};

/// The first bytes of a TLS handshake, of HTTP/2, of a frame of 4 GiB, and of nothing at all.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().copied().chain(noise(500, 1)).collect();
    vec![
        ("noise", noise(100_000, 2)),
        ("a TLS ClientHello", tls),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("a frame of 4 GiB", b"\xff\xff\xff\xff{\"hello\":{".to_vec()),
        ("a frame of 4 GiB of binary", b"\xff\xff\xff\xff\x01\0".to_vec()),
        ("an empty frame", vec![0; 4]),
        ("zeros", vec![0; 70_000]),
        ("JSON that is no message", b"\0\0\0\x0b{\"x\":[1,2]}".to_vec()),
        ("JSON that is none", b"\0\0\0\x06{\"x\":[".to_vec()),
        ("a message of the other side", b"\0\0\0\x0b{\"ping\":{}}".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("bare line ends", b"\n\n\n\n\r\r\r\r\n".to_vec()),
    ]
}

/// Sends it, and waits until the other end closes; how long that took.
fn is_closed_upon(addr: SocketAddr, bytes: &[u8]) -> Option<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    // Refused in the middle of it, most likely.
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Ok(_) | Err(_) => Some(start.elapsed()),
    }
}

/// docs/protocol.md: "A length above the limit, a body of no bytes, a binary frame with parts missing or an
/// invalid JSON message ends the link"; "An announced length allocates nothing before bytes arrive."
#[test]
fn the_server_s_port_survives_garbage() {
    let mut site = Setup::guide().start_server();
    let port = site.server_port();
    let before = (resident_kib(site.server_pid()), descriptors(site.server_pid()));
    for (what, bytes) in garbage() {
        assert!(is_closed_upon(site.server_addr(), &bytes).is_some(), "{what} is still listened to");
        assert_eq!(debug(&["health", "--port", &port]).code(), Some(0), "after {what}");
    }
    wait_until("the strangers' descriptors are closed", LONG, || descriptors(site.server_pid()) <= before.1);
    let after = resident_kib(site.server_pid());
    assert!(after < before.0 + 4096, "from {} KiB to {after} KiB", before.0);
    assert!(site.server().wait(Duration::ZERO).unwrap().is_none());
}

/// docs/protocol.md: "of more than 64 connections that have not said it, the oldest gives way"
#[test]
fn strangers_who_say_nothing_lock_nobody_out() {
    let site = Setup::guide().start_server();
    let before = resident_kib(site.server_pid());
    let crowd: Vec<_> = (0..300).map(|_| TcpStream::connect(site.server_addr()).unwrap()).collect();
    let health = debug(&["health", "--port", &site.server_port()]);
    assert_eq!(health.code(), Some(0), "{}", health.err());
    wait_until("the oldest are gone", LONG, || descriptors(site.server_pid()) < 64 + 40);
    let after = resident_kib(site.server_pid());
    assert!(after < before + 4096, "from {before} KiB to {after} KiB");
    drop(crowd);
}

/// docs/protocol.md: "A peer has 5 s for its hello"
#[test]
fn a_stranger_who_says_nothing_is_closed() {
    let site = Setup::guide().start_server();
    let stream = TcpStream::connect(site.server_addr()).unwrap();
    let took = is_closed_upon(site.server_addr(), b"").expect("closed");
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(8), "{took:?}");
    stream.shutdown(Shutdown::Both).unwrap_or_default();
}

/// Calls on a site while strangers are at it; each must be answered soon.
fn calls_go_on<T>(site: &Site, during: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !is_over.load(Ordering::Relaxed) {
                let (answer, took) = timed(|| site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#));
                assert_eq!(answer.json()["result"]["version"], "0.14.4");
                slowest = slowest.max(took);
            }
            slowest
        });
        let done = during();
        is_over.store(true, Ordering::Relaxed);
        let slowest = calling.join().unwrap();
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        done
    })
}

/// docs/http.md: "Strangers may say to any port whatever they like"; "and calls go on"
#[test]
fn calls_go_on_while_strangers_talk_nonsense() {
    let mut site =
        Setup::policy(policy_with_tools(&[("sh", "/bin/sh", "argv_allow_patterns: ['**']")])).start();
    let pids = [site.server_pid(), site.agent_pid()];
    let memory = || pids.map(resident_kib).iter().sum::<u64>();
    let before = memory();
    calls_go_on(&site, || {
        for (what, bytes) in garbage() {
            for addr in [site.server_addr(), site.agent_addr()] {
                let mut stream = TcpStream::connect(addr).unwrap();
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(Shutdown::Write);
                stream.set_read_timeout(Some(LONG)).unwrap();
                let read = stream.read_to_end(&mut Vec::new());
                let is_still_open = read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
                assert!(!is_still_open, "{what} is still listened to at {addr}");
            }
            let mut stream = UnixStream::connect(site.path("agent.sock")).unwrap();
            let _ = stream.write_all(&bytes);
            stream.set_read_timeout(Some(LONG)).unwrap();
            let _ = stream.shutdown(Shutdown::Write);
            let read = stream.read_to_end(&mut Vec::new());
            assert!(
                !read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "{what} to the shims' socket"
            );
        }
        for seed in 0..60 {
            for addr in [site.server_addr(), site.agent_addr()] {
                let _ = TcpStream::connect(addr).unwrap().write_all(&noise(20_000, seed));
            }
            let mut stream = UnixStream::connect(site.path("agent.sock")).unwrap();
            let _ = stream.write_all(&noise(20_000, seed));
        }
    });
    let mut tool = site.tool("sh");
    assert_eq!(run(tool.args(["-c", "echo x"])).out(), "x\n");
    let after = memory();
    assert!(after < before + 16 * 1024, "from {before} KiB to {after} KiB");
    assert!(site.server().wait(Duration::ZERO).unwrap().is_none());
    assert!(site.agent().wait(Duration::ZERO).unwrap().is_none());
}

/// docs/http.md: "an announced length allocates nothing before bytes arrive"
#[test]
fn promises_of_much_cost_nothing() {
    let site = Setup::policy(policy_with_tools(&[])).start();
    let pids = [site.server_pid(), site.agent_pid()];
    let memory = || pids.map(resident_kib).iter().sum::<u64>();
    let before = memory();
    let head = format!(
        "POST /api/v1/rpc HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n{{",
        site.agent_addr()
    );
    let crowd: Vec<_> = (0..200)
        .map(|_| {
            let mut http = TcpStream::connect(site.agent_addr()).unwrap();
            http.write_all(head.as_bytes()).unwrap();
            let mut shim = UnixStream::connect(site.path("agent.sock")).unwrap();
            shim.write_all(b"\0\0\xff\xf0").unwrap();
            (http, shim)
        })
        .collect();
    let health = debug(&["health", "--port", &site.server_port()]);
    assert_eq!(health.code(), Some(0), "{}", health.err());
    let after = memory();
    assert!(after < before + 8 * 1024, "from {before} KiB to {after} KiB");
    drop(crowd);
    assert_eq!(site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#).status, 200);
}

/// docs/deploy.md: "It is mode 0660: whoever is to use shims belongs to the unit's group."
#[test]
fn the_shims_socket_is_not_for_everybody() {
    let site = Setup::guide().start();
    let meta = fs::metadata(site.path("agent.sock")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o660);
}
