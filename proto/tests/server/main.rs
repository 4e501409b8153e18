//! The server's machine, driven by hand: a scripted agent on one side, scripted upstreams and children on the other.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test's helpers fail by panicking, too"
)]

mod host;
mod http;
mod link;
mod run;
