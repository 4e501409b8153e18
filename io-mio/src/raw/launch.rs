//! Starting a child process: what `posix_spawn` does, plus what it cannot.
//!
//! The child shares our memory until it has executed its program, and we stand still meanwhile (`CLONE_VM` and
//! `CLONE_VFORK`, as in glibc's own `posix_spawn`): starting costs the same however large the daemon is, no page is
//! copied on write afterwards, and an error needs no pipe to come back. In return everything the child does before
//! `execve` stands in one function that calls nothing but system calls.

use super::wait;
use nix::errno::Errno;
use nix::libc::{self, c_char, c_int};
use nix::sched::{CloneFlags, clone};
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getpid, setsid};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// A program and everything about the process that is to run it.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// Absolute path of the program; not searched for, and never handed to a shell.
    pub(crate) binary: &'a CStr,
    /// Its arguments, with the name it is called by.
    pub(crate) argv: &'a [CString],
    /// Its whole environment.
    pub(crate) env: &'a [CString],
    /// Its descriptors 0, 1 and 2. None of them may itself be below 3.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Its working directory.
    pub(crate) directory: BorrowedFd<'a>,
    /// Resource limits, soft and hard.
    pub(crate) limits: &'a [(Resource, rlim_t, rlim_t)],
}

/// What could not be done for the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Stage {
    Clone = 1,
    Stdio,
    Directory,
    Limits,
    Privileges,
    Exec,
}

/// Why there is no child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    pub(crate) errno: Errno,
}

/// Enough for system calls; the child calls nothing that is deeper.
const STACK_BYTES: usize = 32 * 1024;

/// Signals that must not have our disposition in the child: those with a handler of ours (it would run in our
/// memory if one came before `execve`), and the two that we ignore.
const RESET: [c_int; 6] =
    [libc::SIGCHLD, libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGTERM, libc::SIGXFSZ];

/// Starts the program, in a session and process group of its own, with signals as a login shell would have them,
/// umask 077, no way to gain privileges, and to die when the calling thread does.
pub(crate) fn launch(launch: &Launch<'_>) -> Result<Pid, Failure> {
    let argv = pointers(launch.argv);
    let envp = pointers(launch.env);
    let failed = [AtomicI32::new(0), AtomicI32::new(0)];
    let parent = getpid();
    let mut stack = vec![0; STACK_BYTES];
    let fail = |errno| Failure { stage: Stage::Clone, errno };

    // No handler may run in the child while it shares our memory.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(fail)?;
    let body = Box::new(|| {
        let Failure { stage, errno } = become_program(launch, &argv, &envp, parent);
        failed[0].store(stage as c_int, Ordering::Relaxed);
        failed[1].store(errno as c_int, Ordering::Relaxed);
        // SAFETY: ends this process and nothing else; no destructor or exit handler of ours may run here.
        unsafe { libc::_exit(127) }
    });
    // SAFETY: the closure runs on a stack of its own that outlives it, because CLONE_VFORK holds this thread until the
    // child has executed or ended. It allocates nothing, takes no lock, unwinds nowhere (each call in it is a thin
    // wrapper of a system call), and writes to no memory but its stack, errno and the two integers.
    let pid = unsafe {
        clone(body, &mut stack, CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK, Some(libc::SIGCHLD))
    };
    let unmasked = mask.thread_set_mask();

    let pid = pid.map_err(fail)?;
    unmasked.map_err(fail)?;
    let [stage, errno] = failed.map(AtomicI32::into_inner);
    match STAGES.into_iter().find(|candidate| *candidate as c_int == stage) {
        None => Ok(pid),
        Some(stage) => {
            wait::wait_for(pid);
            Err(Failure { stage, errno: Errno::from_raw(errno) })
        }
    }
}

const STAGES: [Stage; 5] = [Stage::Stdio, Stage::Directory, Stage::Limits, Stage::Privileges, Stage::Exec];

/// A list as `execve` wants it. The pointers live as long as the strings.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Runs in the child. Returns only when it failed.
fn become_program(
    launch: &Launch<'_>,
    argv: &[*const c_char],
    envp: &[*const c_char],
    parent: Pid,
) -> Failure {
    let prepared = prepare(launch, parent);
    let Err(failure) = prepared else {
        // SAFETY: all three are NUL-terminated, the lists by a null pointer, and outlive the call.
        unsafe { libc::execve(launch.binary.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        return Failure { stage: Stage::Exec, errno: Errno::last() };
    };
    failure
}

fn prepare(launch: &Launch<'_>, parent: Pid) -> Result<(), Failure> {
    let at = |stage| move |errno| Failure { stage, errno };
    setsid().map_err(at(Stage::Privileges))?;
    for (number, fd) in (0..).zip(launch.stdio) {
        // SAFETY: takes two integers; the target is one of 0, 1, 2, which nothing in this process owns any more.
        Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map_err(at(Stage::Stdio))?;
    }
    // SAFETY: takes one integer.
    Errno::result(unsafe { libc::fchdir(launch.directory.as_raw_fd()) }).map_err(at(Stage::Directory))?;
    for (resource, soft, hard) in launch.limits {
        setrlimit(*resource, *soft, *hard).map_err(at(Stage::Limits))?;
    }
    umask(Mode::from_bits_truncate(0o077));
    nix::sys::prctl::set_no_new_privs().map_err(at(Stage::Privileges))?;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(at(Stage::Privileges))?;
    // The server may have died before the line above; then nobody will tell us.
    if nix::unistd::getppid() != parent {
        return Err(Failure { stage: Stage::Privileges, errno: Errno::ESRCH });
    }
    for number in RESET {
        // SAFETY: sets a disposition of this process alone (the table is not shared), to one that calls nothing.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    SigSet::empty().thread_set_mask().map_err(at(Stage::Privileges))
}
