//! Daemons that are started badly, and machines that run out of things.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use carapace_debug::rig::{Daemon, Launch};
use nix::sys::signal::Signal;

use crate::kit::{
    Connection, LONG, Running, Setup, Site, descriptors, policy_with_tools, run, skip, wait_until,
};

const VERSION: &str = r#"{"jsonrpc":"2.0","id":"v","method":"version"}"#;

fn setup() -> Setup {
    Setup::policy(policy_with_tools(&[("sh", "/bin/sh", "argv_allow_patterns: ['**']\nstdin: true")]))
}

fn script(site: &Site, text: &str) -> Command {
    let mut command = site.tool("sh");
    command.arg("-c").arg(text);
    command
}

/// Starts a daemon by way of a shell, which leaves it this: closed descriptors, open ones, signals ignored.
fn start_from(launch: &Launch, shell: &str, addr: SocketAddr) -> Daemon {
    let text = format!("{shell} exec {}", launch.to_string().replacen("CARAPACE_", "env CARAPACE_", 1));
    Daemon::start_at(&Launch::new("/bin/sh").arg("-c").arg(text), addr)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// docs/tools.md: "descriptors 0 to 2 and no others, signal mask and dispositions as default"; "whatever the
/// daemon was started with"
#[test]
fn what_the_daemon_inherited_reaches_no_job() {
    let site = setup().prepare();
    let leaked = site.path("leaked");
    fs::write(&leaked, "secret of the host").unwrap();
    let shell = format!("exec 5<{0} 9<{0} <&- >&- ; trap '' HUP INT QUIT TERM USR1 PIPE;", leaked.display());
    let mut server = start_from(&site.server_launch(), &shell, site.server_addr());
    let mut agent = start_from(&site.agent_launch(), &shell, site.agent_addr());
    wait_until("the link", LONG, || site.get("/health").status == 200);
    assert_eq!(site.call(VERSION).status, 200);

    let mut running = Running::start(&mut script(&site, "echo pid $$; exec sleep 60"));
    let pid = running.wait_for_output("\n").trim().strip_prefix("pid ").unwrap().to_owned();
    // The first moments of sleep are its loader's.
    wait_until("it has what it was given", LONG, || descriptors(pid.parse().unwrap()) == 3);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    // 32 and 33 are the C library's own.
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & !(0b11 << 31), 0, "{ignored}");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end_with_open_input().signal(), Some(Signal::SIGTERM as i32));
    // And it still hears what it is told.
    for daemon in [&mut agent, &mut server] {
        daemon.signal(Signal::SIGTERM).unwrap();
        assert_eq!(daemon.wait(LONG).unwrap().unwrap().code(), Some(0));
    }
}

/// docs/http.md: "When there are more connections than descriptors, the one that has been idle for longest
/// gives way."
#[test]
fn an_agent_with_few_descriptors_serves_the_newest() {
    if Command::new("/usr/bin/prlimit").arg("--version").output().is_err() {
        return skip("no prlimit");
    }
    let site = setup().agent_descriptors(200).start();
    let mut idle: Vec<Connection> = Vec::new();
    for _ in 0..300 {
        let mut connection = site.connect();
        connection.send(format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", site.agent_addr()));
        assert_eq!(connection.answer().status, 200);
        idle.push(connection);
    }
    assert!(descriptors(site.agent_pid()) < 200);
    assert_eq!(site.call(VERSION).status, 200);
    assert_eq!(run(&mut script(&site, "echo x")).out(), "x\n");
    assert!(idle[0].is_ended(), "the longest idle one has given way");
    let newest = idle.last_mut().unwrap();
    newest.call(VERSION);
    assert_eq!(newest.answer().status, 200);
}

/// A limit that leaves no descriptor to be had: 0 to 2 are taken.
const NONE: usize = 3;

/// Lets a process have no more descriptors than it has; `None` gives them back.
fn limit_descriptors(pid: u32, limit: Option<usize>) -> bool {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let hard =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().nth(4);
    let limit = limit.map_or(hard.unwrap().to_owned(), |limit| limit.to_string());
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={limit}:")]);
    match prlimit.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            skip(&String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            skip(&format!("prlimit: {error}"));
            false
        }
    }
}

/// docs/tools.md: "A host that is out of descriptors refuses runs as not started, and goes on when there are
/// some."
#[test]
fn daemons_outlive_a_lack_of_descriptors() {
    let mut site = setup().start();
    assert_eq!(site.call(VERSION).status, 200);
    let (server, agent) = (site.server_pid(), site.agent_pid());
    // The connection to the upstream that is kept would do for another call.
    let kept = descriptors(server);
    site.upstream.cut_connections();
    wait_until("the server has noticed", LONG, || descriptors(server) < kept);
    if !limit_descriptors(server, Some(NONE)) {
        return;
    }
    let answer = site.call(VERSION);
    assert!([502, 503].contains(&answer.status) && answer.code() == -32004, "{answer:?}");
    let ended = run(&mut script(&site, "echo x"));
    assert_eq!((ended.code(), ended.out().as_str()), (Some(125), ""), "{}", ended.err());
    assert!(limit_descriptors(server, None));
    wait_until("calls work again", LONG, || site.call(VERSION).status == 200);
    assert_eq!(run(&mut script(&site, "echo x")).out(), "x\n");

    assert!(limit_descriptors(agent, Some(NONE)));
    let mut waiting = site.connect();
    waiting.call(VERSION);
    // Nobody takes it up until there is room; then somebody does, with nothing that would wake them.
    assert!(site.agent().wait_for_log("accept", LONG), "{:?}", site.agent().log());
    assert!(limit_descriptors(agent, None));
    assert_eq!(waiting.answer().status, 200);
    for daemon in [site.server_pid(), site.agent_pid()] {
        assert!(fs::exists(format!("/proc/{daemon}/fd")).unwrap());
    }
}

/// docs/deploy.md: "exit 69 | the port or the socket is in use": one that a killed agent left is not.
#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let mut site = setup().start();
    let mut second = site.agent_launch().command();
    second.env("CARAPACE_HTTP_PORT", "0");
    let ended = run(&mut second);
    assert_eq!(ended.code(), Some(69), "{}", ended.err());
    assert!(ended.err().contains("agent.sock"), "{}", ended.err());
    assert_eq!(run(&mut script(&site, "echo x")).out(), "x\n");
    site.kill_agent();
    assert!(site.path("agent.sock").exists());
    site.start_agent();
    assert_eq!(run(&mut script(&site, "echo x")).out(), "x\n");
    site.agent().stop(LONG).unwrap();
    assert!(!site.path("agent.sock").exists(), "an agent that ends well removes it");
    fs::write(site.path("agent.sock"), "somebody's file").unwrap();
    let ended = run(&mut site.agent_launch().command());
    assert_eq!(ended.code(), Some(69), "{}", ended.err());
    assert_eq!(fs::read_to_string(site.path("agent.sock")).unwrap(), "somebody's file");
}

/// docs/http.md: "Whatever else answers at the server's address is no server."
#[test]
fn an_agent_whose_server_is_something_else_says_so() {
    let mut site = setup().prepare();
    // It speaks HTTP, and waits to be spoken to.
    site.set_server_addr(site.upstream.addr());
    site.start_agent();
    let answer = site.call(VERSION);
    assert_eq!((answer.status, answer.code()), (503, -32004));
    assert_eq!(site.get("/health").status, 503);
    site.agent().stop(LONG).unwrap();
}
