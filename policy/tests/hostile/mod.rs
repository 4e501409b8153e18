//! What must hold for any policy file and any request, however odd: shared by the tests and the fuzz target `policy`.

use carapace_policy::json::Scan;
use carapace_policy::{
    Caller, ExecRequest, HttpHead, HttpVerdict, Limits, Peer, Policy, RpcVerdict, Secret, SecretSource,
    ToolKind,
};

/// Where the policy file ends and the request begins in one input.
pub(crate) const SEPARATOR: &str = "\n---8<---\n";

/// Reads the policy and puts the request to every tool in every way there is.
pub(crate) fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (file, request) = text.split_once(SEPARATOR).unwrap_or((&text, "{}"));
    let mut policy = match Policy::parse("policy.yaml", file) {
        Ok(policy) => policy,
        Err(problems) => {
            assert!(problems.iter().count() > 0);
            assert!(!problems.to_string().is_empty());
            return;
        }
    };
    let ids: Vec<_> = policy.secrets().iter().map(SecretSource::id).collect();
    for id in ids {
        let _ = policy.provide(id, Secret::new(b"provided-secret"));
    }
    if let Ok(explained) = policy.explain(request) {
        assert!(!explained.to_string().is_empty());
    }
    let peer = Peer { agent: Some("vm-1".to_owned()), uid: Some(1000), own_uid: 1000, ..Peer::default() };
    let Ok(caller) = policy.admit(&peer) else { return };
    for tool in policy.tools() {
        match tool.kind() {
            ToolKind::Http(_) => {
                exchange(&policy, tool.name(), &caller, request);
                calls(&policy, tool.name(), &caller, request.as_bytes());
            }
            ToolKind::Cli(_) => run(&policy, tool.name(), &caller, request),
        }
    }
}

/// A rebuilt body is accepted again, and rebuilt to itself; no way of cutting a body changes its verdict.
fn calls(policy: &Policy, tool: &str, caller: &Caller, body: &[u8]) {
    let Ok(gate) = policy.rpc_gate(tool, caller) else { return };
    let judge = |body: &[u8]| policy.judge_rpc(&gate, caller, &mut Limits::new(), 0, body);
    let verdict = judge(body);
    let mut work = gate.clone().begin();
    let half = body.get(..body.len() / 2).unwrap_or_default();
    if work.feed(half).is_err() {
        assert!(matches!(verdict, RpcVerdict::Malformed { .. }));
    }
    let RpcVerdict::Judged(judged) = verdict else { return };
    let Some(request) = judged.request else { return };
    let rebuilt = request.body().unwrap_or_default();
    assert!(Scan::whole(rebuilt).is_ok());
    let RpcVerdict::Judged(again) = judge(rebuilt) else { panic!("the rebuilt request is no request") };
    assert!(again.elements.iter().all(|element| element.verdict.is_ok()));
    assert_eq!(
        again.request.and_then(|request| request.body().map(<[u8]>::to_vec)).as_deref(),
        Some(rebuilt)
    );
}

fn exchange(policy: &Policy, tool: &str, caller: &Caller, request: &str) {
    let (method, target) = request.split_once(' ').unwrap_or(("GET", request));
    let head = HttpHead { method, target, content_type: Some("application/json"), content_encoding: None };
    match policy.judge_http(tool, caller, &mut Limits::new(), 0, &head) {
        HttpVerdict::Pass(judged) => {
            assert!(judged.action.target().ends_with(target));
            let path = target.split('?').next().unwrap_or_default();
            assert!(!path.split('/').any(|part| matches!(part, "." | "..")), "{target}");
            let _ = judged.action.judge_event("message", request.as_bytes());
        }
        HttpVerdict::Body(gate) => {
            let _ = policy.judge_body(gate, caller, &mut Limits::new(), 0, request.as_bytes().to_vec());
        }
        HttpVerdict::Refuse(refusal) => assert!(!refusal.denial.said.is_empty()),
        HttpVerdict::Rpc(_) => {}
    }
}

/// What runs is what was asked for, argument by argument.
fn run(policy: &Policy, tool: &str, caller: &Caller, request: &str) {
    let argv: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
    let env: [(&[u8], &[u8]); 2] = [(b"LANG", b"C"), (b"LD_PRELOAD", b"x")];
    let request = ExecRequest { tool, argv: &argv, env: &env, cwd: Some(b"/srv"), tty: false };
    if let Ok(judged) = policy.judge_exec(caller, &mut Limits::new(), 0, &request) {
        let exec = judged.action;
        assert!(exec.argv().iter().skip(1).map(Vec::as_slice).eq(argv.iter().copied()));
        assert!(exec.binary().starts_with('/'));
        assert!(exec.env().all(|(name, _)| name != b"_CARAPACE_JOB"));
    }
}
