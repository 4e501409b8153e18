//! All unsafe code of the workspace: the few system calls that neither std nor nix offers in a form we can use.
//!
//! Everything here is called through safe functions that hold for any argument; whoever reviews unsafe code need
//! read no other folder.
#![allow(unsafe_code, reason = "these calls have no safe wrapper in std or nix")]

pub(crate) mod launch;
pub(crate) mod signal;
pub(crate) mod wait;

use nix::libc;

/// Has the allocator give memory that is free back to the kernel.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; what is allocated stays where it is.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Marks every descriptor from 3 up close-on-exec, so that what our parent left open reaches no child. Descriptors
/// that we open ourselves are made so.
pub(crate) fn close_inherited_on_exec() {
    const CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: takes three integers and touches no memory. Where the kernel does not know the call (before 5.11) it
    // says so and nothing happened.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOEXEC) };
}
