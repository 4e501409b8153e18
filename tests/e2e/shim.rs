//! Tools through the shim: bytes, arguments, environment, exit codes. The measure is the native run.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::kit::{
    Ended, LONG, Running, Setup, Site, binaries, noise, policy_with_tools, run, run_with, shell, timed,
    wait_until,
};

/// A shell that may do anything and reads its input, and some tools that may do less.
const TOOLS: &[(&str, &str, &str)] = &[
    ("sh", "/bin/sh", "argv_allow_patterns: ['**']\nstdin: true"),
    ("cat", "/bin/cat", "argv_allow_patterns: ['']\nstdin: true"),
    ("wc", "/usr/bin/wc", "argv_allow_patterns: ['-c']"),
    ("echo", "/bin/echo", "argv_allow_patterns: ['hello *']\nargv_deny_patterns: ['--reveal']"),
];

fn site() -> Site {
    Setup::policy(policy_with_tools(TOOLS)).start()
}

/// A script through the shim.
fn script(site: &Site, text: &str) -> Command {
    let mut command = site.tool("sh");
    command.arg("-c").arg(text);
    command
}

/// A failure of Carapace's own: nothing on stdout, one line on stderr.
fn is_refusal(ended: &Ended, code: i32) {
    let said = ended.err();
    assert_eq!((ended.code(), ended.out().as_str()), (Some(code), ""), "{said}");
    assert!(said.starts_with("carapace:") && said.ends_with('\n') && said.lines().count() == 1, "{said:?}");
}

/// docs/tools.md: "The measure is the native run: output, exit status and behaviour are the same."
#[test]
fn output_and_exit_code_are_those_of_the_native_run() {
    let site = site();
    for text in [
        "echo out; echo err >&2; exit 3",
        "exit 0",
        "exit 1",
        "exit 255",
        "exit 126",
        "printf 'no newline'; printf 'none here' >&2",
        r"printf '\000\001\377\200\r\n\033[31m\357\273\277'",
        "exec >&-; echo gone; exit 4",
        "exec 2>&- >&-; exit 5",
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done",
        "head -c 5000000 /dev/zero; head -c 300000 /dev/zero >&2",
        "cat; echo end",
        "ulimit -n; umask",
    ] {
        let (native, ours) = (run(&mut shell(text)), run(&mut script(&site, text)));
        assert_eq!(ours.status, native.status, "{text}: {}", ours.err());
        if text.contains("umask") {
            assert!(ours.out().ends_with("0077\n"), "{}", ours.out());
            continue;
        }
        assert!(ours.stdout == native.stdout, "{text}: {:.200}", ours.out());
        assert!(ours.stderr == native.stderr || text.contains("gone"), "{text}: {:.200}", ours.err());
    }
}

/// docs/tools.md: "a tool killed by a signal kills its shim by the same signal, so that a shell sees what it
/// would natively"
#[test]
fn a_tool_killed_by_a_signal_is_seen_to_be() {
    let site = site();
    for signal in
        ["HUP", "INT", "QUIT", "ABRT", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "BUS", "XCPU"]
    {
        let text = format!("echo before; kill -{signal} $$; echo after");
        let (native, ours) = (run(&mut shell(&text)), run(&mut script(&site, &text)));
        assert_eq!((ours.signal(), ours.code()), (native.signal(), None), "{signal}: {}", ours.err());
        assert_eq!(ours.out(), "before\n");
        let tool = site.tool("sh");
        let mut outer = shell(&format!("\"$TOOL\" -c 'kill -{signal} $$'; echo $?"));
        outer.env("TOOL", tool.get_program()).env("CARAPACE_AGENT_SOCKET", site.path("agent.sock"));
        let code = 128 + native.signal().unwrap();
        assert_eq!(run(&mut outer).out(), format!("{code}\n"), "{signal}");
    }
}

/// docs/tools.md: "**Standard input, output and error** stream as bytes"
#[test]
fn large_binary_input_arrives_byte_for_byte() {
    let site = site();
    let input = noise(30_000_000, 11);
    let native = run_with(&mut shell("sha256sum"), &input);
    let ours = run_with(&mut script(&site, "sha256sum"), &input);
    assert_eq!((ours.code(), ours.out(), ours.err()), (Some(0), native.out(), String::new()));
}

/// docs/tools.md: "a long pipe needs no memory"
#[test]
fn a_pipe_through_the_tool_gives_back_what_went_in() {
    let site = site();
    let input = noise(20_000_000, 12);
    let before = crate::kit::resident_kib(site.server_pid()) + crate::kit::resident_kib(site.agent_pid());
    let ended = run_with(&mut site.tool("cat"), &input);
    assert_eq!(ended.code(), Some(0), "{}", ended.err());
    assert!(ended.stdout == input, "{} of {} bytes", ended.stdout.len(), input.len());
    let after = crate::kit::resident_kib(site.server_pid()) + crate::kit::resident_kib(site.agent_pid());
    assert!(after < before + 12 * 1024, "from {before} KiB to {after} KiB");
}

/// docs/tools.md: "the first byte arrives when the tool writes it, the end of input is seen as such"
#[test]
fn input_and_output_are_a_conversation() {
    let site = site();
    let text = "echo ready; while read -r line; do echo \"got $line\"; done; echo end";
    let mut running = Running::start(&mut script(&site, text));
    running.wait_for_output("ready\n");
    for n in 0..5 {
        running.feed(format!("{n}\n").as_bytes());
        running.wait_for_output(&format!("got {n}\n"));
    }
    let ended = running.end();
    assert!(ended.out().ends_with("got 4\nend\n"), "{}", ended.out());
}

/// docs/tools.md: "Input that nobody reads holds nobody up"
#[test]
fn input_that_nobody_reads_holds_nobody_up() {
    let site = site();
    let mut running = Running::start(&mut script(&site, "exit 3"));
    assert_eq!(running.end_with_open_input().code(), Some(3));
    let ended = run(&mut shell(&format!(
        "yes | CARAPACE_AGENT_SOCKET={} {} -c 'exit 4'; echo $?",
        site.path("agent.sock").display(),
        site.tool("sh").get_program().display()
    )));
    assert_eq!(ended.out(), "4\n");
}

/// docs/tools.md: "input that the policy does not give (`stdin: false`, the default) is left to others"
#[test]
fn input_that_the_policy_does_not_give_is_left_to_others() {
    let site = site();
    let mut outer = shell("\"$TOOL\" -c; cat");
    outer.env("TOOL", site.tool("wc").get_program()).env("CARAPACE_AGENT_SOCKET", site.path("agent.sock"));
    let ended = run_with(&mut outer, b"for whoever comes next");
    assert_eq!((ended.out().as_str(), ended.err().as_str()), ("0\nfor whoever comes next", ""));
}

/// docs/tools.md: "**Arguments**, byte for byte, also when they are not UTF-8, empty, 100 KB long, contain
/// newlines, or are many."
#[test]
fn arguments_arrive_byte_for_byte() {
    let site = site();
    let odd: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"a b".to_vec(),
        b"line\nline\r\n".to_vec(),
        (1..=255).collect(),
        b"\xff\xfe\x80".to_vec(),
        "--é=\u{1f600}".into(),
        b"'\"\\$(echo x)`;&|*".to_vec(),
        b"--".to_vec(),
        b"--version".to_vec(),
        b"".to_vec(),
        vec![b'x'; 100_000],
        noise(60_000, 13).into_iter().map(|byte| byte.max(1)).collect(),
    ];
    let mut command = script(&site, "printf '%s\\0' \"$@\"");
    command.arg("sh").args(odd.iter().map(|arg| OsString::from_vec(arg.clone())));
    let ended = run(&mut command);
    assert_eq!(ended.code(), Some(0), "{}", ended.err());
    let expected: Vec<u8> = odd.into_iter().flat_map(|arg| [arg, vec![0]].concat()).collect();
    assert!(ended.stdout == expected, "{} bytes of {}", ended.stdout.len(), expected.len());
}

/// docs/tools.md: "or are many"
#[test]
fn very_many_arguments_arrive() {
    let site = site();
    let mut command = script(&site, "echo $# $1 ${20000}");
    command.arg("sh").args((1..=20_000).map(|n| n.to_string()));
    assert_eq!(run(&mut command).out(), "20000 1 20000\n");
    let mut command = script(&site, "echo $#");
    command.arg("sh").args((0..14).map(|_| "x".repeat(120_000)));
    assert_eq!(run(&mut command).out(), "14\n");
}

/// docs/tools.md: "A tool gets a fixed PATH, the account's HOME, USER and LOGNAME, then that, then
/// `env_inject`, which wins. Injected secrets are in no log and no record."
#[test]
fn the_environment_is_built_from_nothing() {
    let keys = "argv_allow_patterns: ['']\nenv_allow: [LANG, 'LC_*', TOKEN]\n\
                env_inject: { TOKEN: { env: HOST_TOKEN }, FIXED: 'a literal value' }";
    let site = Setup::policy(policy_with_tools(&[("env", "/usr/bin/env", keys)]))
        .server_env("HOST_TOKEN", "from the host")
        .start();
    let mut command = site.tool("env");
    command.envs([
        ("LANG", "de_DE"),
        ("LC_TIME", "x=y z"),
        ("TOKEN", "the caller's"),
        ("LD_PRELOAD", "/x.so"),
    ]);
    command.envs([("OTHER", "1"), ("PATH", "/vm/bin"), ("HOME", "/vm/home"), ("LC", "1")]);
    let ended = run(&mut command);
    assert_eq!(ended.code(), Some(0), "{}", ended.err());
    let printed = ended.out();
    let mut names: Vec<_> =
        printed.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    let expected = ["FIXED", "HOME", "LANG", "LC_TIME", "LOGNAME", "PATH", "TOKEN", "USER", "_CARAPACE_JOB"];
    assert_eq!(names, expected, "{printed}");
    assert!(printed.contains("LANG=de_DE\n") && printed.contains("LC_TIME=x=y z\n"), "{printed}");
    assert!(!printed.contains("/vm/") && !printed.contains("the caller's"), "{printed}");
    // Printed or masked, it is the host's.
    assert!(printed.contains("TOKEN=from the host\n") || printed.contains("TOKEN=[REDACTED]\n"), "{printed}");
    // "Secrets of `env_inject` appear in no log, audit record"
    let logged = format!("{:?}{:?}", site.wait_for_records(2), std::fs::read_to_string(site.audit_log()));
    assert!(!logged.contains("from the host") && !logged.contains("a literal value"), "{logged}");
}

/// docs/tools.md: "Injected secrets are in no log and no record", at any level; the tool has them whole.
#[test]
fn an_injected_secret_reaches_the_tool_whole() {
    let keys = "argv_allow_patterns: ['**']\nenv_inject: { TOKEN: { env: HOST_TOKEN } }";
    let mut site = Setup::policy(policy_with_tools(&[("sh", "/bin/sh", keys)]))
        .server_env("HOST_TOKEN", "s3cret-and-long-enough")
        .server_env("CARAPACE_LOG_LEVEL", "trace")
        .start();
    let digest = |text: &str| run(&mut shell(&format!("printf %s '{text}' | sha256sum"))).out();
    let ended = run(&mut script(&site, "printf %s \"$TOKEN\" | sha256sum"));
    assert_eq!(ended.out(), digest("s3cret-and-long-enough"));
    let log = site.server().log().join("\n");
    assert!(log.contains("trace") || log.contains("TRACE") || log.contains("DEBUG"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
}

/// docs/tools.md: "126 denied by the policy"; "each with one line on standard error that begins `carapace:`,
/// never on standard output, and without a rule or a path of the host"
#[test]
fn a_denied_command_line() {
    let site = site();
    assert_eq!(run(site.tool("echo").args(["hello", "world"])).out(), "hello world\n");
    for args in [
        &["goodbye"][..],
        &[],
        &["hello"],
        &["hello", "a", "b"],
        &["hello", "--reveal"],
        &["hello", "--reveal=1"],
    ] {
        let ended = run(site.tool("echo").args(args));
        is_refusal(&ended, 126);
        for secret in ["hello *", "--reveal'", "_patterns", "/bin/echo", "policy.yaml"] {
            assert!(!ended.err().contains(secret), "{}", ended.err());
        }
    }
    let records = site.records();
    let denied: Vec<_> = records.iter().filter(|record| record["policy_result"] == "deny").collect();
    assert_eq!(denied.len(), 6);
    assert!(
        denied.iter().all(|record| record["action_type"] == "cli" && record["rule"].is_string()),
        "{denied:?}"
    );
}

/// docs/tools.md: "127 unknown tool"
#[test]
fn an_unknown_tool() {
    let site = site();
    for name in ["op", "signal-cli", "SH", "sh "] {
        let ended = run(&mut site.tool(name));
        assert!(
            ended.code() == Some(127) || name == "signal-cli",
            "{name}: {:?} {}",
            ended.code(),
            ended.err()
        );
        assert!(ended.err().starts_with("carapace:"), "{name}: {}", ended.err());
    }
    assert_eq!(site.wait_for_records(4).len(), 4);
}

/// docs/tools.md: "125 for anything else (the agent or the server is away"
#[test]
fn an_agent_or_a_server_that_is_away() {
    let mut site = site();
    let host_secrets = [site.server_port(), "policy.yaml".into(), "/bin/sh".into()];
    site.kill_server();
    wait_until("the outage is noticed", LONG, || site.get("/health").status == 503);
    let (ended, took) = timed(|| run(&mut script(&site, "echo x")));
    is_refusal(&ended, 125);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(host_secrets.iter().all(|secret| !ended.err().contains(secret)), "{}", ended.err());
    site.kill_agent();
    is_refusal(&run(&mut script(&site, "echo x")), 125);
    std::fs::remove_file(site.path("agent.sock")).unwrap();
    is_refusal(&run(&mut script(&site, "echo x")), 125);
}

/// docs/tools.md: "`carapace-shim --tool NAME ARGS...` does the same without a link; `--version` and `--help`
/// are the shim's only under its own name."
#[test]
fn the_shim_under_its_own_name() {
    let site = site();
    let shim = || {
        let mut command = Command::new(binaries().path("carapace-shim"));
        command.env("CARAPACE_AGENT_SOCKET", site.path("agent.sock"));
        command
    };
    assert_eq!(run(shim().args(["--tool", "echo", "hello", "--tool"])).out(), "hello --tool\n");
    assert_eq!(run(shim().arg("--version")).out(), format!("carapace-shim {}\n", env!("CARGO_PKG_VERSION")));
    assert!(run(shim().arg("--help")).out().contains("Usage:"));
    is_refusal(&run(&mut shim()), 125);
    assert_eq!(
        run(site.tool("sh").args(["-c", "echo $0 \"$@\"", "--version", "--help"])).out(),
        "--version --help\n"
    );
}

/// docs/tools.md: "a shim that finds itself below a job says so and stops"
#[test]
fn a_job_cannot_call_itself_for_ever() {
    let site = site();
    let tool = site.tool("sh");
    let text = format!(
        "CARAPACE_AGENT_SOCKET='{}' '{}' -c 'echo inner'",
        site.path("agent.sock").display(),
        tool.get_program().display()
    );
    let ended = run(&mut script(&site, &text));
    assert_eq!((ended.code(), ended.out().as_str()), (Some(125), ""));
    assert!(ended.err().starts_with("carapace:"), "{}", ended.err());
}

/// docs/tools.md: "`cwd` (default `/`), or the caller's own where `cwd_allowed` holds it once symbolic links
/// are resolved"
#[test]
fn working_directories() {
    let site = Setup::policy(policy_with_tools(&[])).prepare();
    let (work, other) = (site.path("work"), site.path("other"));
    for folder in [&work, &work.join("sub"), &other] {
        std::fs::create_dir(folder).unwrap();
    }
    symlink(&other, work.join("out")).unwrap();
    let keys = format!("argv_allow_patterns: ['']\ncwd_allowed: ['{}']", work.display());
    let mut site = site;
    site.write_policy(&policy_with_tools(&[
        ("pwd", "/bin/pwd", keys.as_str()),
        ("pwd-fixed", "/bin/pwd", "argv_allow_patterns: ['']\ncwd: /usr"),
        ("pwd-plain", "/bin/pwd", "argv_allow_patterns: ['']"),
    ]));
    site.start_server();
    site.start_agent();
    let pwd = |tool: &str, folder: &std::path::Path| run(site.tool(tool).current_dir(folder));
    assert_eq!(pwd("pwd-plain", &work).out(), "/\n");
    assert_eq!(pwd("pwd-fixed", &work).out(), "/usr\n");
    for folder in [&work, &work.join("sub")] {
        assert_eq!(pwd("pwd", folder).out(), format!("{}\n", folder.display()));
    }
    is_refusal(&pwd("pwd", &other), 126);
    is_refusal(&pwd("pwd", std::path::Path::new("/")), 126);
    // What the shim's directory is called is the VM's affair, what it leads to the host's.
    let ended = pwd("pwd", &work.join("out"));
    assert_ne!(ended.out(), format!("{}\n", other.display()));
}

/// docs/policy.md: "Looked at when the policy is loaded: missing is a warning, writable by others an error"
#[test]
fn a_tool_that_is_not_installed() {
    let site = Setup::policy(policy_with_tools(&[
        ("absent", "/nonexistent/absent", "argv_allow_patterns: ['**']"),
        ("data", "/etc/hostname", "argv_allow_patterns: ['**']"),
    ]))
    .start();
    for tool in ["absent", "data"] {
        let ended = run(&mut site.tool(tool));
        is_refusal(&ended, 125);
        assert!(!ended.err().contains('/'), "{}", ended.err());
    }
    let records = site.wait_for_records(4);
    assert!(
        records.iter().any(|record| record["event"] == "outcome" && record["error"].is_string()),
        "{records:?}"
    );
}

/// docs/policy.md: "missing is a warning, writable by others an error"
#[test]
fn a_tool_that_others_may_write_is_refused_at_the_start() {
    let mut site = Setup::policy(policy_with_tools(&[])).prepare();
    let binary = site.script("tool", "#!/bin/sh\necho hello\n");
    site.write_policy(&policy_with_tools(&[("tool", binary.to_str().unwrap(), "argv_allow_patterns: ['']")]));
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o707)).unwrap();
    let ended = run(&mut site.server_launch().command());
    assert_eq!(ended.code(), Some(78));
    assert!(ended.err().contains("tool `tool`") && ended.err().contains("may write"), "{}", ended.err());
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o700)).unwrap();
    site.start_server();
    site.start_agent();
    assert_eq!(run(&mut site.tool("tool")).out(), "hello\n");
}

/// docs/tools.md: "Runs side by side are runs apart"
#[test]
fn many_runs_at_once_keep_their_bytes_apart() {
    let site = site();
    thread::scope(|scope| {
        for n in 0..30u64 {
            let site = &site;
            scope.spawn(move || {
                let input = noise(200_000, n);
                let mut command = script(site, &format!("cat; exit {n}"));
                let ended = run_with(&mut command, &input);
                assert_eq!(ended.code(), Some(i32::try_from(n).unwrap()), "{}", ended.err());
                assert!(ended.stdout == input);
            });
        }
    });
}

/// docs/audit.md: "arguments, redacted, where the policy says `log_argv`"; "`status`, `exit_code`, `signal`,
/// `error` | outcome | how it ended: one of them"
#[test]
fn runs_are_recorded_with_their_ends() {
    let keys = "argv_allow_patterns: ['**']\naudit: { enabled: true, redact_patterns: ['--session=*'] }";
    let site = Setup::policy(policy_with_tools(&[("sh", "/bin/sh", keys)])).start();
    run(site.tool("sh").args(["-c", "printf four; exit 7", "sh", "--session=abcdef"]));
    run(&mut script(&site, "kill -TERM $$"));
    let records = site.wait_for_records(4);
    assert_eq!(records[0]["argv"][0], "-c");
    assert!(!records[0].to_string().contains("abcdef"), "{}", records[0]);
    let outcome = |call: usize| {
        let id = &records[call * 2]["request_id"];
        let found = records.iter().find(|record| record["event"] == "outcome" && record["request_id"] == *id);
        found.unwrap_or_else(|| panic!("no outcome: {records:?}"))
    };
    assert_eq!((&outcome(0)["exit_code"], &outcome(0)["bytes_out"]), (&7.into(), &4.into()));
    assert_eq!(outcome(1)["signal"], 15);
    assert!(
        records.iter().all(|record| record["tool"] == "sh" && record["action_type"] == "cli"),
        "{records:?}"
    );
}
