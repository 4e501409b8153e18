//! Daemons that do not start, and what they say and end with.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use carapace_debug::rig::{Daemon, Launch};

use crate::kit::{Ended, LONG, Setup, Site, binaries, debug, run};

fn end_of(launch: &Launch) -> Ended {
    run(&mut launch.command())
}

/// Starts the site's server, which must end by itself: its exit code and what it said.
fn refusal(site: &Site) -> (Option<i32>, String) {
    let ended = end_of(&site.server_launch());
    assert_eq!(ended.out(), "");
    (ended.code(), ended.err())
}

fn server() -> Launch {
    Launch::new(binaries().path("carapace-server"))
}

/// guide: "Verify installation"
#[test]
fn programs_say_their_version_and_their_usage() {
    for program in ["carapace-server", "carapace-agent", "carapace-shim", "carapace-debug"] {
        let ended = end_of(&Launch::new(binaries().path(program)).arg("--version"));
        let (name, version) = (program, env!("CARGO_PKG_VERSION"));
        assert_eq!(
            (ended.code(), ended.out(), ended.err()),
            (Some(0), format!("{name} {version}\n"), "".into())
        );
        let ended = end_of(&Launch::new(binaries().path(program)).arg("--help"));
        assert_eq!((ended.code(), ended.err().as_str()), (Some(0), ""), "{program}");
        assert!(ended.out().contains("Usage:"), "{program}: {}", ended.out());
    }
}

/// docs/deploy.md: "64 usage"
#[test]
fn a_wrong_command_line_ends_with_64_and_is_named() {
    for program in ["carapace-server", "carapace-agent"] {
        for args in [&["--lisen", "127.0.0.1:1"][..], &["--log-level", "loud"], &["surplus"]] {
            let launch =
                args.iter().fold(Launch::new(binaries().path(program)), |launch, arg| launch.arg(arg));
            let ended = end_of(&launch);
            assert_eq!((ended.code(), ended.out()), (Some(64), String::new()), "{program} {args:?}");
            assert!(ended.err().starts_with(&format!("{program}: ")), "{}", ended.err());
            assert!(
                ended.err().contains(args[args.len() - 1]) || ended.err().contains(args[0]),
                "{}",
                ended.err()
            );
        }
    }
}

/// docs/deploy.md: "78 configuration or policy"
#[test]
fn a_wrong_value_of_the_environment_ends_with_78_and_is_named() {
    let wrong = [
        ("carapace-server", "CARAPACE_LOG_LEVEL", "loud"),
        ("carapace-server", "CARAPACE_LOG_JSON", "maybe"),
        ("carapace-server", "CARAPACE_AUDIT_SYNC", "often"),
        ("carapace-agent", "CARAPACE_LOG_JSON", "maybe"),
        ("carapace-agent", "CARAPACE_SERVER_PORT", "http"),
        ("carapace-agent", "CARAPACE_HTTP_PORT", "65536"),
        ("carapace-agent", "CARAPACE_HTTP_LISTEN_ADDR", "here"),
    ];
    for (program, name, value) in wrong {
        let ended = end_of(&Launch::new(binaries().path(program)).env(name, value));
        assert_eq!(ended.code(), Some(78), "{name}={value}: {}", ended.err());
        assert!(ended.err().contains(name) && ended.err().contains(value), "{}", ended.err());
    }
}

/// docs/policy.md: "A mistake is an error with file, line, column and the line itself; no message quotes a
/// secret. At start the server then exits with status 78"
#[test]
fn a_policy_that_does_not_parse_ends_with_78_and_is_shown() {
    let site =
        Setup::policy("tools:\n  op:\n    type: cli\n    binary: /usr/bin/op\n    argv_alow_patterns: [x]\n")
            .prepare();
    let (code, said) = refusal(&site);
    assert_eq!(code, Some(78));
    let place = format!("{}:5:5: ", site.policy_file().display());
    assert!(said.contains(&place), "{said}");
    assert!(
        said.contains("argv_alow_patterns") && said.contains("did you mean `argv_allow_patterns`"),
        "{said}"
    );
    assert!(said.contains("5 |     argv_alow_patterns: [x]\n") && said.contains("    ^"), "{said}");

    site.write_policy("tools:\n  op: [\n");
    let (code, said) = refusal(&site);
    assert_eq!(code, Some(78));
    assert!(said.contains(&format!("{}:", site.policy_file().display())), "{said}");
}

/// docs/policy.md: "A mistake is an error with file, line, column and the line itself": each of them.
#[test]
fn every_mistake_of_meaning_is_named_at_once() {
    let site =
        Setup::policy("tools:\n  op:\n    type: cli\n    binary: op\n    argv_allow_patterns: ['[']\n")
            .prepare();
    let (code, said) = refusal(&site);
    assert_eq!(code, Some(78));
    for place in [":4:13: ", ":5:27: "] {
        assert!(said.contains(place), "{said}");
    }
}

/// docs/deploy.md: "78 configuration or policy"
#[test]
fn a_policy_that_is_not_there_or_no_file_ends_with_78() {
    let site = Setup::guide().prepare();
    fs::remove_file(site.policy_file()).unwrap();
    let (code, said) = refusal(&site);
    assert_eq!(code, Some(78));
    assert!(said.contains(site.policy_file().to_str().unwrap()), "{said}");
    fs::create_dir(site.policy_file()).unwrap();
    assert_eq!(refusal(&site).0, Some(78));
}

/// docs/deploy.md: "It must not be writable by others."
#[test]
fn a_policy_that_others_may_write_ends_with_78() {
    let site = Setup::guide().prepare();
    fs::set_permissions(site.policy_file(), Permissions::from_mode(0o606)).unwrap();
    let (code, said) = refusal(&site);
    assert_eq!(code, Some(78));
    assert!(said.contains("everybody may write it"), "{said}");
}

/// docs/policy.md: "no message quotes a secret"
#[test]
fn a_mistake_beside_a_secret_does_not_show_it() {
    let policy = "tools:\n  op:\n    type: cli\n    binary: /usr/bin/op\n    argv_allow_patterns: ['**']\n    \
                  env_inject:\n      TOKEN: { literal: hunter2-hunter2, fil: x }\n";
    let (code, said) = refusal(&Setup::policy(policy).prepare());
    assert_eq!(code, Some(78));
    assert!(said.contains(":7:") && !said.contains("hunter2"), "{said}");
}

/// docs/deploy.md: "69 an address or file that is needed cannot be had"; guide: "Check port isn't already in
/// use"
#[test]
fn a_port_in_use_ends_with_69() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let site = Setup::guide().prepare();
    let launch = server()
        .arg("--listen")
        .arg(addr.to_string())
        .env("CARAPACE_POLICY_FILE", site.policy_file())
        .env("CARAPACE_AUDIT_LOG", site.audit_log());
    let ended = end_of(&launch);
    assert_eq!(ended.code(), Some(69), "{}", ended.err());
    assert!(ended.err().contains(&addr.to_string()), "{}", ended.err());

    let launch = Launch::new(binaries().path("carapace-agent"))
        .env("CARAPACE_HTTP_PORT", addr.port().to_string())
        .env("CARAPACE_CLI_SOCKET", site.path("agent.sock"));
    let ended = end_of(&launch);
    assert_eq!(ended.code(), Some(69), "{}", ended.err());
    assert!(ended.err().contains(&addr.to_string()), "{}", ended.err());
}

/// docs/audit.md: "One writer: the file is locked."
#[test]
fn an_audit_log_that_another_server_writes_ends_with_69() {
    let site = Setup::guide().start_server();
    let mut launch = server().arg("--listen").arg("127.0.0.1:0");
    for (name, value) in
        [("CARAPACE_POLICY_FILE", site.policy_file()), ("CARAPACE_AUDIT_LOG", site.audit_log())]
    {
        launch = launch.env(name, value);
    }
    let ended = end_of(&launch);
    assert_eq!(ended.code(), Some(69));
    assert!(ended.err().contains("another process writes it"), "{}", ended.err());
}

/// docs/audit.md: "written **before** its effect": a server that could not write starts nothing.
#[test]
fn an_audit_log_that_cannot_be_opened_ends_with_78() {
    let site = Setup::guide().prepare();
    fs::create_dir(site.audit_log()).unwrap();
    let (code, said) = refusal(&site);
    assert_eq!(code, Some(78));
    assert!(said.contains(site.audit_log().to_str().unwrap()), "{said}");
}

/// docs/audit.md: "mode 0640"; guide: "Check audit log is working: ls -la /var/log/carapace/audit.log"
#[test]
fn the_audit_log_is_there_from_the_start() {
    let site = Setup::guide().start_server();
    let meta = fs::metadata(site.audit_log()).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (0, 0o640));
}

/// docs/deploy.md: "`--check` says what is wrong and starts nothing"
#[test]
fn check_reads_everything_and_starts_nothing() {
    let site = Setup::guide().server_arg("--check").prepare();
    let ended = end_of(&site.server_launch());
    assert_eq!((ended.code(), ended.err().as_str()), (Some(0), ""));
    assert!(ended.out().contains(site.policy_file().to_str().unwrap()), "{}", ended.out());
    assert!(!site.audit_log().exists());

    site.write_policy("tools: 1\n");
    let (code, said) = refusal(&site);
    assert_eq!(code, Some(78));
    assert!(said.contains(&format!("{}:1:8: ", site.policy_file().display())), "{said}");
}

/// docs/deploy.md: "`--print-config` shows what is in force and where it comes from"
#[test]
fn print_config_says_what_is_in_force_and_where_from() {
    let site = Setup::guide().server_arg("--print-config").server_env("CARAPACE_LOG_JSON", "true").prepare();
    let ended = end_of(&site.server_launch());
    assert_eq!((ended.code(), ended.err().as_str()), (Some(0), ""));
    let printed = ended.out();
    let line = |name: &str| {
        let line = printed.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name}: {printed}")).split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(line("listen "), ["listen", &site.server_addr().to_string(), "--listen"]);
    assert_eq!(line("policy "), ["policy", site.policy_file().to_str().unwrap(), "CARAPACE_POLICY_FILE"]);
    assert_eq!(line("log-json "), ["log-json", "true", "CARAPACE_LOG_JSON"]);
    assert_eq!(line("log-level "), ["log-level", "info", "default"]);
}

/// docs/deploy.md: "Without `--insecure` the server refuses to listen anywhere but on loopback, and says
/// why."
#[test]
fn an_address_that_strangers_reach_needs_insecure() {
    let site = Setup::guide().prepare();
    let launch = |insecure: bool| {
        let launch = server().arg("--listen").arg("0.0.0.0:0").arg("--check");
        let launch = launch.env("CARAPACE_POLICY_FILE", site.policy_file());
        if insecure { launch.arg("--insecure") } else { launch }
    };
    let ended = end_of(&launch(false));
    assert_eq!(ended.code(), Some(64));
    assert!(ended.err().contains("--insecure"), "{}", ended.err());
    assert_eq!(end_of(&launch(true)).code(), Some(0));
}

/// guide: `Environment="CARAPACE_LOG_LEVEL=info"`, `"CARAPACE_LOG_JSON=true"`, `"CARAPACE_POLICY_FILE=..."`, `--listen
/// 127.0.0.1:8765`
#[test]
fn the_server_starts_as_the_guide_s_unit_starts_it() {
    let mut site = Setup::guide()
        .server_env("CARAPACE_LOG_LEVEL", "info")
        .server_env("CARAPACE_LOG_JSON", "true")
        .start_server();
    let health = debug(&["health", "--port", &site.server_port()]);
    assert_eq!(health.code(), Some(0), "{}", health.err());
    site.server().stop(LONG).unwrap();
    let log = site.server().log();
    assert!(log.iter().any(|line| line.contains("listening on 127.0.0.1:")), "{log:?}");
    for line in &log {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
    }
}

/// docs/deploy.md: "Flags win over environment variables, and these over defaults"
#[test]
fn the_log_level_decides_what_is_logged() {
    let site = Setup::guide().prepare();
    let addr = site.server_addr();
    let launch = server()
        .arg("--listen")
        .arg(addr.to_string())
        .arg("--log-level")
        .arg("error")
        .env("CARAPACE_LOG_LEVEL", "trace")
        .env("CARAPACE_POLICY_FILE", site.policy_file())
        .env("CARAPACE_AUDIT_LOG", site.audit_log());
    let mut server = Daemon::start_at(&launch, addr).unwrap();
    server.stop(LONG).unwrap();
    assert_eq!(server.log(), Vec::<String>::new());
}
