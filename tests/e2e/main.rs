//! The real programs, end to end: real processes, sockets, signals, files. Each test is headed by the sentence that it
//! proves, of the deployment guide (`guide:`), of `docs/`, or of the tables that those are made from.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, too"
)]

mod audit;
mod calls;
mod events;
mod guide;
mod hardship;
mod http;
mod jobs;
mod kit;
mod outage;
mod plain;
mod server;
mod shim;
mod start;
mod strangers;
mod upstreams;
