//! Carapace daemons: the event loop and everything that is a system call.
//!
//! The machines of `carapace-proto` decide; this crate obeys. [`turn`] is the loop that drives either of them;
//! [`server`] and [`agent`] read a configuration, open what it names and start the loop.
//!
//! | module | what |
//! |---|---|
//! | [`turn`] | the loop: poll, read, carry out, record, write; connections it makes |
//! | [`listen`] | TCP and Unix listeners, and who connects to them |
//! | [`child`] | jobs: started, signalled, reaped |
//! | [`audit`] | the log's file |
//! | [`policy`] | the policy's file, the programs it names, and its secrets |
//! | [`signal`], [`clock`] | signals as bytes; the only clock |
//! | [`config`], [`log`] | flags, environment, what is logged and how |
//! | `raw` | all unsafe code |

pub mod agent;
pub mod audit;
pub mod child;
pub mod clock;
pub mod config;
pub mod exit;
pub mod listen;
pub mod log;
pub mod policy;
pub mod server;
pub mod signal;
pub mod turn;

mod daemon;
mod mail;
mod peer;
mod port;
mod raw;
mod resolve;

#[cfg(test)]
mod tests;
