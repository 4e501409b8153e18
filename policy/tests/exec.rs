//! Programs: arguments, environment, directory, terminal, secrets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may fail loudly"
)]

use carapace_policy::*;

const POLICY: &str = r#"
tools:
  op:
    type: cli
    binary: /usr/bin/op
    argv_allow_patterns: ["item get *", "item list **", "--version"]
    argv_deny_patterns: ["item delete", "--reveal"]
    env_allow: [TERM, "LC_*", "*X"]
    env_inject: { TOKEN: { env: OP_TOKEN }, FIXED: "literal-secret" }
    cwd_allowed: ["/srv/work"]
    stdin: true
    limits: { cpu_secs: 5 }
    timeout_secs: 30
    max_output_bytes: 1000
    audit: { redact_patterns: ["--session=*"] }
  id: { type: cli, binary: /usr/bin/id, argv_allow_patterns: ["*"] }
clients:
  - { agent: vm-1, tools: [op] }
  - { uid: 7, tools: ["*"] }
"#;

fn policy() -> Policy {
    let mut policy = Policy::parse("p", POLICY).unwrap_or_else(|problems| panic!("{problems}"));
    let ids: Vec<_> = policy.secrets().iter().map(SecretSource::id).collect();
    assert_eq!(ids.len(), 1);
    policy.provide(ids[0], Secret::new(b"token-value")).unwrap();
    policy
}

fn agent(policy: &Policy) -> Caller {
    policy.admit(&Peer { agent: Some("vm-1".to_owned()), ..Peer::default() }).unwrap()
}

fn run(request: &ExecRequest<'_>) -> Result<Judged<Exec>, Box<Denial>> {
    let policy = policy();
    policy.judge_exec(&agent(&policy), &mut Limits::new(), 0, request)
}

fn request<'a>(argv: &'a [&'a [u8]]) -> ExecRequest<'a> {
    ExecRequest { tool: "op", argv, env: &[], cwd: None, tty: false }
}

#[test]
fn runs_exactly_what_was_judged() {
    let env: [(&[u8], &[u8]); 7] = [
        (b"TERM", b"xterm"),
        (b"TERM", b"second"),
        (b"LC_ALL", b"C"),
        (b"PATH", b"/evil"),
        (b"LD_X", b"/evil.so"),
        (b"TOKEN", b"mine"),
        (b"_CARAPACE_JOB", b"1"),
    ];
    let argv: [&[u8]; 3] = [b"item", b"get", b"a b\xff\n"];
    let request = ExecRequest { env: &env, cwd: Some(b"/srv/work/x"), ..request(&argv) };
    let judged = run(&request).unwrap();
    let exec = judged.action;
    assert_eq!(exec.binary(), "/usr/bin/op");
    assert_eq!(exec.argv(), [&b"op"[..], b"item", b"get", b"a b\xff\n"]);
    let env: Vec<_> = exec.env().map(|(name, value)| [name, b"=", value].concat()).collect();
    let expected = ["TERM=xterm", "LC_ALL=C", "TOKEN=token-value", "FIXED=literal-secret"];
    assert_eq!(env, expected.map(|text| text.as_bytes().to_vec()));
    let roots = ["/srv/work".to_owned()];
    assert_eq!(exec.cwd(), CwdRule::Caller { dir: b"/srv/work/x", roots: &roots });
    assert!(exec.stdin() && !exec.tty());
    assert_eq!(
        (exec.timeout().as_secs(), exec.max_output_bytes(), exec.limits().cpu_secs),
        (30, 1000, Some(5))
    );
    assert_eq!(exec.secrets_to_redact().len(), 2);
    assert_eq!(format!("{exec:?}"), "Exec(/usr/bin/op as op)");
    assert_eq!(judged.notes.argv().unwrap(), ["item", "get", "a b\u{fffd}\n"]);
    assert_eq!(judged.notes.rule().unwrap().to_string(), "op: argv_allow_patterns[0] (line 6)");
}

#[test]
fn denies_the_rest() {
    for argv in [
        &[&b"item"[..], b"delete", b"x"][..],
        &[b"item", b"get"],
        &[b"item", b"get", b"x", b"y"],
        &[b"item", b"list", b"--reveal"],
        &[b"item", b"list", b"--reveal=1"],
        &[b"item", b"list", b"--rev"],
        &[b"item get x"],
        &[b"item", b"list", b"\0"],
        &[],
    ] {
        let denial = run(&request(argv)).expect_err("allowed");
        assert!(!denial.said.contains("reveal") && !denial.said.contains("/usr"), "{}", denial.said);
    }
    let argv: [&[u8]; 1] = [b"--version"];
    assert!(run(&request(&argv)).is_ok());
    assert!(run(&ExecRequest { tty: true, ..request(&argv) }).is_err());
    assert!(run(&ExecRequest { cwd: Some(b"relative"), ..request(&argv) }).is_err());
    let unknown = run(&ExecRequest { tool: "rm", ..request(&argv) }).expect_err("allowed");
    let others = run(&ExecRequest { tool: "id", ..request(&argv) }).expect_err("allowed");
    assert_eq!((unknown.kind, others.kind), (DenialKind::UnknownTool, DenialKind::UnknownTool));
    assert_eq!(unknown.said.replace("rm", ""), others.said.replace("id", ""));
}

#[test]
fn waits_for_its_secrets() {
    let policy = Policy::parse("p", POLICY).unwrap();
    let denial = policy
        .judge_exec(&agent(&policy), &mut Limits::new(), 0, &request(&[b"--version"]))
        .expect_err("ran");
    assert_eq!(denial.kind, DenialKind::Unavailable);
    let uid = policy.admit(&Peer { uid: Some(7), ..Peer::default() }).unwrap();
    let id = ExecRequest { tool: "id", ..request(&[]) };
    assert!(policy.judge_exec(&uid, &mut Limits::new(), 0, &id).is_ok());
}

#[test]
fn clients_use_only_what_is_listed() {
    let policy = policy();
    assert!(policy.admit(&Peer { agent: Some("vm-2".to_owned()), ..Peer::default() }).is_err());
    let own = policy.admit(&Peer { uid: Some(0), ..Peer::default() }).unwrap();
    assert_eq!(policy.tools_for(&own).count(), 0);
    assert_eq!(policy.tools_for(&agent(&policy)).map(Tool::name).collect::<Vec<_>>(), ["op"]);
}

#[test]
fn secrets_are_checked_when_they_come() {
    let mut policy = policy();
    let id = policy.secrets()[0].id();
    assert!(policy.provide(id, Secret::new(b"")).is_err());
    assert!(policy.provide(id, Secret::new(b"a\0b")).is_err());
    let binaries: Vec<_> =
        policy.binaries().map(|binary| (binary.tool.to_owned(), binary.at().line)).collect();
    assert_eq!(binaries, [("id".to_owned(), 16), ("op".to_owned(), 3)]);
}
