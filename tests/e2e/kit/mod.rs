//! What the tests stand on: programs that are run, a site that is set up and taken down, clients that hide nothing.

mod http;
mod policy;
mod program;
mod site;
mod sse;

pub(crate) use self::http::{Answer, Connection};
pub(crate) use self::policy::{GUIDE, policy_with_tools};
pub(crate) use self::program::{Ended, Running, debug, run, run_with, shell};
pub(crate) use self::site::{Setup, Site, binaries};
pub(crate) use self::sse::{EventStream, Received};

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine: what has not happened by then does not happen.
pub(crate) const LONG: Duration = Duration::from_secs(15);

/// Looks until there is something to see. What the system tells nobody of (a process that ends, a file that grows) can
/// only be looked for.
pub(crate) fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// Looks until it is so.
pub(crate) fn wait_until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    wait_for(what, within, || is_so().then_some(()));
}

/// An address that is nobody's, and stays so while nobody is told of it. Not one that the system gives out: another
/// test's daemon might get it as soon as ours is killed.
pub(crate) fn free_addr() -> SocketAddr {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at the same time begin at different places.
    let start = u16::try_from(u64::from(std::process::id()) * 331 % u64::from(COUNT)).unwrap();
    loop {
        let port = FIRST + (start + GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// How long something takes.
pub(crate) fn timed<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (body(), start.elapsed())
}

/// Bytes without a pattern that anything on the way could rely on.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// What a process holds in memory, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The descriptors that a process has open.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Says why a test is not done on this machine.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
}
