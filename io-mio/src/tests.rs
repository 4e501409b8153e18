//! What several unit tests need.

use carapace_policy::{Denial, Exec, ExecRequest, Limits, Peer, Policy};

/// What the policy lets the daemon's own account run.
pub(crate) fn try_judge(policy: &Policy, tool: &str, argv: &[&[u8]]) -> Result<Exec, Box<Denial>> {
    let peer = Peer { uid: Some(0), ..Peer::default() };
    let caller = policy.admit(&peer)?;
    let request = ExecRequest { tool, argv, env: &[], cwd: None, tty: false };
    policy.judge_exec(&caller, &mut Limits::default(), 0, &request).map(|judged| judged.action)
}

/// The same, where it must.
pub(crate) fn judge(policy: &Policy, tool: &str, argv: &[&[u8]]) -> Exec {
    try_judge(policy, tool, argv).unwrap()
}
