//! Signal dispositions: which signals are turned into bytes on a pipe, and which are as `execve` would have them.

use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// Where the handler writes. A pipe end that is never closed once it stands here.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// The highest signal number on Linux.
const SIGNAL_MAX: c_int = 64;

extern "C" fn forward(number: c_int) {
    let errno = Errno::last_raw();
    let byte = u8::try_from(number).unwrap_or(0);
    // SAFETY: write(2) is async-signal-safe and reads one byte that lives on this stack. The pipe does not block; when
    // it is full the loop has plenty to wake up for, and each signal is looked at anew whatever their number.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), ptr::from_ref(&byte).cast(), 1) };
    Errno::set_raw(errno);
}

/// From now on each of `signals` becomes one byte, its number, on `pipe`, which must be non-blocking and stay open.
pub(crate) fn forward_to(pipe: RawFd, signals: &[Signal]) -> nix::Result<()> {
    PIPE.store(pipe, Ordering::Relaxed);
    let action = SigAction::new(
        SigHandler::Handler(forward),
        SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP,
        SigSet::empty(),
    );
    for signal in signals {
        // SAFETY: the handler calls nothing but write(2) and restores errno.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(())
}

/// Undoes what our parent may have left ignored (`nohup`, a shell's `&`): children inherit it, and a tool that cannot
/// be interrupted is not the tool that was asked for. SIGPIPE stays ignored as the standard library wants it, and
/// SIGXFSZ becomes so: a file-size limit must be an error of the write, not our end. [`super::launch`] gives both
/// back to children.
pub(crate) fn default_dispositions() {
    // SAFETY: a sigaction of zeros is valid (SIG_DFL, no flags), the pointers are to locals, and only dispositions
    // that are "ignore" are changed, so no handler of anybody is lost.
    unsafe {
        for number in 1..=SIGNAL_MAX {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(number, ptr::null(), &raw mut action) == 0;
            if known && number != libc::SIGPIPE && action.sa_sigaction == libc::SIG_IGN {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(number, &raw const action, ptr::null_mut());
            }
        }
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
