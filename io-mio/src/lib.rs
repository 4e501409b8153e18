//! Carapace daemons: the event loop and everything that is a system call.
