//! Waiting for children. nix loses those that died by a real-time signal (it cannot name the signal), and std cannot
//! look at how a child ended without reaping it.

use carapace_proto::machine::ExitStatus;
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::unistd::Pid;
use std::mem;

/// How a child has ended, if it has. It stays a zombie.
pub(crate) fn peek(pid: Pid) -> Option<ExitStatus> {
    let info = wait(pid, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)?;
    // SAFETY: both fields are there in what waitid fills in.
    let (child, status) = unsafe { (info.si_pid(), info.si_status()) };
    let byte = u8::try_from(status).unwrap_or(u8::MAX);
    match info.si_code {
        _ if child == 0 => None,
        libc::CLD_EXITED => Some(ExitStatus::Exited(byte)),
        code => Some(ExitStatus::Signaled { signal: byte, core: code == libc::CLD_DUMPED }),
    }
}

/// Reaps a child that has ended.
pub(crate) fn reap(pid: Pid) {
    wait(pid, libc::WEXITED | libc::WNOHANG);
}

/// Waits for a child that is about to end, and reaps it.
pub(crate) fn wait_for(pid: Pid) {
    wait(pid, libc::WEXITED);
}

fn wait(pid: Pid, options: c_int) -> Option<libc::siginfo_t> {
    let id = libc::id_t::try_from(pid.as_raw()).ok()?;
    loop {
        // SAFETY: zeros are a valid siginfo_t, and it is a valid place for one to be written to.
        let (result, info) = unsafe {
            let mut info: libc::siginfo_t = mem::zeroed();
            (libc::waitid(libc::P_PID, id, &raw mut info, options), info)
        };
        match Errno::result(result) {
            Ok(_) => return Some(info),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}
