//! Ctrl-C: whatever was started is stopped, and no folder stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long daemons may take to end after an interrupt.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// What is to be stopped and removed, in the whole process: a signal knows no owner.
static LIVE: Mutex<Live> = Mutex::new(Live { groups: BTreeSet::new(), folders: BTreeSet::new() });

struct Live {
    groups: BTreeSet<u32>,
    folders: BTreeSet<PathBuf>,
}

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn add_group(leader: u32) {
    live().groups.insert(leader);
}

pub(super) fn remove_group(leader: u32) {
    live().groups.remove(&leader);
}

pub(super) fn add_folder(path: &Path) {
    live().folders.insert(path.to_owned());
}

pub(super) fn remove_folder(path: &Path) {
    live().folders.remove(path);
}

/// Runs `body`, and gives back what it returns. INT, TERM and HUP end the process, after every [`Daemon`](super::Daemon) was
/// stopped and every [`Folder`](super::Folder) removed. Children must be made by [`spawn`] or as such daemons.
///
/// # Errors
/// When the signals cannot be watched, or `body` panicked.
pub fn interruptible<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let mut watched = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1] {
        watched.add(signal);
    }
    // Blocked in every thread, and waited for in this one. `body` gets a thread of its own because the first thread is the
    // one that the kernel prefers: while `spawn` unblocks the signals in another, they still come here.
    watched.thread_block()?;
    let (sender, receiver) = mpsc::channel();
    let running = thread::Builder::new().name("main".to_owned()).spawn(move || {
        let returned = body();
        // Nobody receives only when a signal is ending the process.
        let _ = sender.send(returned);
        let _ = signal::kill(Pid::this(), Signal::SIGUSR1);
    })?;
    loop {
        let signal = watched.wait()?;
        if signal == Signal::SIGUSR1 {
            if let Ok(returned) = receiver.try_recv() {
                return Ok(returned);
            }
            if running.is_finished() {
                return Err(io::Error::other("the main thread panicked"));
            }
            continue;
        }
        clean_up();
        process::exit(128 + signal as i32);
    }
}

/// Spawns a child whose signals are not blocked, unlike ours under [`interruptible`].
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let before = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let spawned = command.spawn();
    before.thread_set_mask()?;
    spawned
}

fn clean_up() {
    // Held to the end: nothing is started any more.
    let live = live();
    let groups: Vec<Pid> =
        live.groups.iter().filter_map(|leader| i32::try_from(*leader).ok()).map(Pid::from_raw).collect();
    for group in &groups {
        let _ = signal::killpg(*group, Signal::SIGTERM);
    }
    let deadline = Instant::now() + STOP_WITHIN;
    for group in &groups {
        while !has_ended(*group) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = signal::killpg(*group, Signal::SIGKILL);
    }
    for folder in &live.folders {
        let _ = fs::remove_dir_all(folder);
    }
}

fn has_ended(child: Pid) -> bool {
    match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => false,
        Ok(_) | Err(_) => true,
    }
}
