//! Carapace policy: may this call run, and as exactly what. Pure.
//!
//! A [`Policy`] is read from text ([`Policy::parse`]) and then answers three questions: who is served
//! ([`Policy::admit`]), may this exchange with an upstream take place ([`Policy::judge_http`], then for a JSON-RPC body
//! [`Policy::judge_rpc`]), and may this program run ([`Policy::judge_exec`]). What is allowed comes back as an action,
//! a [`Request`] or an [`Exec`], which nobody else can make: what was judged is what is carried out.
//!
//! Everything not allowed is denied. There is no I/O here, no clock and no chance: the loader reads files and fetches
//! secrets, and time is an argument.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "file"),
    expect(dead_code, reason = "only the reader of the file makes the parts of a policy")
)]

pub mod glob;
pub mod json;

mod caller;
mod commands;
mod content;
mod judge;
mod limits;
mod patterns;
mod policy;
mod problem;
mod profile;
#[cfg(feature = "file")]
mod read;
mod redact;
mod secret;
mod tool;
mod verdict;
mod words;

pub use caller::{Caller, Peer};
pub use content::{ContentMatch, Sieve};
pub use judge::{
    AnswerVerdict, BodyGate, CwdRule, Element, EventVerdict, Exec, ExecRequest, HttpHead, HttpVerdict,
    Refusal, Request, RpcGate, RpcJudged, RpcVerdict, RpcWork,
};
pub use limits::{Limits, RateLimit};
pub use policy::{Binary, Policy};
pub use problem::{Position, Problem, Problems};
#[cfg(feature = "file")]
pub use read::{Explained, Outcome, schema};
pub use secret::{Secret, SecretId, SecretPlace, SecretSource};
pub use tool::{AuditRules, CliTool, HttpTool, Rlimits, Scheme, Tool, ToolKind, Upstream};
pub use verdict::{Denial, DenialKind, Judged, Notes, Param, Rule, Step};
