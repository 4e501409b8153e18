//! What becomes of a JSON-RPC body.

use super::http::{Request, RpcGate};
use super::work::Circumstances;
use crate::caller::Caller;
use crate::json::Id;
use crate::limits::Limits;
use crate::policy::Policy;
use crate::verdict::{Denial, Notes, Trace};

/// What became of a body.
#[derive(Debug)]
#[must_use]
pub enum RpcVerdict {
    /// It was understood; each call was judged by itself.
    Judged(Box<RpcJudged>),
    /// It is no request; the answer has the id `null`.
    Malformed {
        /// -32700 for what is no JSON, -32600 for JSON that is no request or could be read in two ways.
        code: i32,
        /// One sentence for the caller.
        said: String,
    },
}

/// A judged body.
#[derive(Debug)]
pub struct RpcJudged {
    /// Whether it is an array, also of one call: the answer is one then, too.
    pub batch: bool,
    /// The calls in order.
    pub elements: Vec<Element>,
    /// What the upstream gets, rebuilt from the allowed calls; `None` when none is allowed.
    pub request: Option<Request>,
}

/// One judged call.
#[derive(Debug)]
pub struct Element {
    /// Its id. What is no well-formed call has the id `null`.
    pub id: Id,
    /// Its method, of at most 1 KiB; empty for what is no well-formed call.
    pub method: String,
    /// Allowed, or why not.
    pub verdict: Result<Notes, Box<Denial>>,
}

impl Policy {
    /// Judges a complete JSON-RPC body in one go, and rebuilds what is allowed of it. For bodies of up to a hundred
    /// kilobytes; larger ones are better judged in steps ([`RpcGate::begin`]).
    pub fn judge_rpc(
        &self,
        gate: &RpcGate,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        body: &[u8],
    ) -> RpcVerdict {
        self.judge_rpc_traced(
            gate,
            body,
            &mut Circumstances { caller, limits, now_us, trace: &mut Trace::off() },
        )
    }

    pub(crate) fn judge_rpc_traced(
        &self,
        gate: &RpcGate,
        body: &[u8],
        circumstances: &mut Circumstances<'_>,
    ) -> RpcVerdict {
        let mut work = gate.clone().begin();
        loop {
            if let Some(verdict) = work.step_traced(self, body, circumstances) {
                return verdict;
            }
        }
    }
}
