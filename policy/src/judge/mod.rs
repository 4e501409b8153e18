//! Judging: from a call to an action or a refusal.

mod event;
mod exec;
mod filter;
mod http;
mod rpc;
mod target;
mod work;

pub use event::{AnswerVerdict, EventVerdict};
pub use exec::{CwdRule, Exec, ExecRequest};
#[cfg(feature = "file")]
pub(crate) use filter::{PATH_DEPTH_MAX, default_audit_name};
pub use http::{BodyGate, HttpHead, HttpVerdict, Refusal, Request, RpcGate};
pub use rpc::{Element, RpcJudged, RpcVerdict};
#[cfg(feature = "file")]
pub(crate) use work::Circumstances;
pub use work::RpcWork;

use crate::caller::Caller;
use crate::limits::Limits;
use crate::secret::{Secret, SecretId, Vault};
use crate::tool::{Injected, Tool};
use crate::verdict::{Denial, DenialKind, Rule};

/// Counts an otherwise allowed call against its tool's limit.
fn take_rate(tool: &Tool, caller: &Caller, limits: &mut Limits, now_us: u64) -> Result<(), Box<Denial>> {
    let Some((limit, rule)) = &tool.rate_limit else { return Ok(()) };
    limits.take(limit, &tool.name, caller.key(), now_us).map_err(|wait_us| {
        let retry_after_ms = wait_us.div_ceil(1000);
        let said = format!("{}: too many calls, try again in {} s", tool.name, wait_us.div_ceil(1_000_000));
        let reason =
            format!("more than {} calls in {} s", limit.max_requests, limit.window_us.div_ceil(1_000_000));
        Denial::new(DenialKind::RateLimited { retry_after_ms }, said, rule.clone(), reason)
    })
}

/// The values to inject, or a refusal where one has not been found.
fn injected(
    tool: &Tool,
    vault: &Vault,
    names: &[(std::sync::Arc<str>, SecretId)],
) -> Result<Injected, Box<Denial>> {
    let find = |(name, id): &(std::sync::Arc<str>, SecretId)| {
        let value = vault.whole(*id).ok_or_else(|| {
            let said = format!("{} is not ready on the host", tool.name);
            let rule = Rule::new(format!("{}: {name}", tool.name), 0);
            Denial::new(
                DenialKind::Unavailable,
                said,
                rule,
                format!("the secret for `{name}` has not been found"),
            )
        })?;
        Ok((name.clone(), value.clone()))
    };
    names.iter().map(find).collect()
}

/// The secrets to look for in what comes back, longest first so that none hides within another.
fn redactable(tool: &Tool, vault: &Vault, names: &[(std::sync::Arc<str>, SecretId)]) -> Vec<Secret> {
    if !tool.redact_output {
        return Vec::new();
    }
    let bare = names.iter().filter_map(|(_, id)| vault.bare(*id));
    let mut secrets: Vec<_> =
        bare.filter(|secret| secret.expose().len() >= crate::policy::REDACTABLE_BYTES_MIN).cloned().collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
    secrets
}
