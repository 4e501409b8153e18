//! The real programs, end to end: real processes, sockets, signals, files. Each test is headed by the sentence that it
//! proves, of `docs/` or of the deployment guide (`guide:`).
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
mod headings;
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
