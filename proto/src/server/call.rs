//! A call: one request of an agent, from its first frame to its last record.

use super::answer::Answer;
use super::job::Job;
use crate::ids::{ConnId, StreamId};
use crate::time::{Duration, Instant};
use crate::timers::Alarm;
use crate::wire::frame::Fault;
use carapace_policy::{BodyGate, Caller, Exec, Policy, Request, RpcGate, RpcJudged};
use std::sync::Arc;

/// What is known of a call, whatever it is doing.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) link: ConnId,
    pub(super) stream: StreamId,
    pub(super) caller: Caller,
    /// The policy that judges it, also when another has come into force since.
    pub(super) policy: Arc<Policy>,
    pub(super) about: About,
    pub(super) begun: Instant,
    pub(super) state: State,
    pub(super) alarm: Alarm,
    /// Whether its stream on the link is still open.
    pub(super) is_attached: bool,
    /// The caller has no input for its run, and said so before there was one.
    pub(super) has_no_input: bool,
    pub(super) untaken: Untaken,
}

/// The end of an answer that its client has not taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Untaken {
    /// Room that it takes from what all answers have in common.
    pub(super) reserved: u64,
    /// How much of it there was when it was last looked at.
    pub(super) bytes: usize,
}

/// What the records of a call say of it.
#[derive(Debug)]
pub(super) struct About {
    pub(super) tool: Arc<str>,
    pub(super) action: ActionType,
    /// JSON-RPC method, or HTTP method; empty for a tool run.
    pub(super) method: String,
    /// Request target without its query; empty for a tool run.
    pub(super) path: String,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// Events that a filter left out.
    pub(super) events_dropped: u64,
    /// Whether an effect was allowed to begin, so that its outcome must be recorded.
    pub(super) owes_outcome: bool,
    /// Whether records are written for this tool.
    pub(super) is_audited: bool,
}

/// What kind of effect a call has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ActionType {
    Cli,
    Http,
}

impl ActionType {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Http => "http",
        }
    }
}

/// What a call is doing.
#[derive(Debug)]
pub(super) enum State {
    /// A run's lists are arriving.
    Describing(Box<Description>),
    /// A body is arriving that will be judged.
    Collecting(Collecting),
    /// It is decided, and the decision is on its way to the log.
    Recording(Box<Then>),
    /// It waits for one of the tool's runs to end.
    Queued(Box<Exec>),
    /// An exchange with the upstream.
    Fetching(Fetching),
    /// A child process.
    Running(Box<Job>),
    /// All is done and recorded; the end of the answer waits for the client to take it.
    Finishing,
}

/// A run as the shim describes it.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub(super) terminal: bool,
    pub(super) argv: Vec<u8>,
    pub(super) env: Vec<u8>,
    pub(super) cwd: Vec<u8>,
    /// What of the room for bodies it has been given.
    pub(super) reserved: u64,
}

/// A body that arrives.
#[derive(Debug)]
pub(super) struct Collecting {
    pub(super) gate: Gate,
    pub(super) max_bytes: usize,
    pub(super) body: Vec<u8>,
    /// What of the common room it has been given.
    pub(super) reserved: u64,
    pub(super) fields: Vec<u8>,
}

/// How a body is judged.
#[derive(Debug)]
pub(super) enum Gate {
    /// As a body of any kind.
    Body(BodyGate),
    /// As JSON-RPC, call by call.
    Rpc(RpcGate),
}

/// What follows once the decision is recorded.
#[derive(Debug)]
pub(super) enum Then {
    /// A refusal or an error of our own.
    Answer(Answer),
    /// A refusal of a run.
    Fail(Fault, String),
    /// JSON-RPC that was judged; what is allowed of it has a request.
    Rpc { judged: RpcJudged, fields: Vec<u8> },
    /// A request whose body needs no judging.
    Pass { request: Request, fields: Vec<u8>, body: PassedBody },
    /// A tool run.
    Run(Box<Exec>),
}

/// The body of a request that is passed on as it comes.
#[derive(Debug, Default)]
pub(super) struct PassedBody {
    pub(super) follows: bool,
    pub(super) length: Option<u64>,
    /// What came before the request could be sent.
    pub(super) early: Vec<u8>,
    pub(super) ended: bool,
}

/// An exchange with an upstream.
#[derive(Debug)]
pub(super) struct Fetching {
    pub(super) conn: ConnId,
    /// Set for JSON-RPC: what is needed to answer for each element.
    pub(super) rpc: Option<RpcJudged>,
    /// How the body that is passed on is framed; none when there is none, or no more of it.
    pub(super) upload: Option<Upload>,
    pub(super) is_head_sent: bool,
    pub(super) is_event_stream: bool,
    pub(super) max_response_bytes: usize,
    pub(super) max_event_bytes: usize,
    pub(super) timeout: Duration,
    pub(super) event_idle: Option<Duration>,
    /// Room taken for an answer that is being gathered.
    pub(super) reserved: u64,
}

/// A body on its way to an upstream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Upload {
    Chunked,
    Length(u64),
}
