//! Jobs as processes: signals, ends, limits, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::kit::{
    LONG, Running, Setup, Site, descriptors, policy_with_tools, resident_kib, run, shell, timed, wait_until,
};

const SHELL: &str = "argv_allow_patterns: ['**']\nstdin: true\nkill_grace_secs: 1";

/// Each round is short, so that a trap is not kept waiting.
const FOR_EVER: &str = "while :; do sleep 0.05; done";

fn site_with(keys: &str) -> Site {
    Setup::policy(policy_with_tools(&[("sh", "/bin/sh", &format!("{SHELL}\n{keys}"))])).start()
}

fn site() -> Site {
    site_with("")
}

fn script(site: &Site, text: &str) -> Command {
    let mut command = site.tool("sh");
    command.arg("-c").arg(text);
    command
}

/// Starts a script; its process.
fn start(site: &Site, text: &str) -> (Running, u32) {
    start_after(site, ":", text)
}

/// Starts a script, and waits until its first part is done; its process.
fn start_after(site: &Site, first: &str, then: &str) -> (Running, u32) {
    let running = Running::start(&mut script(site, &format!("{first}; echo pid $$; {then}")));
    let printed = running.wait_for_output("\n");
    let line = printed.lines().next().unwrap_or_default();
    let pid = line.strip_prefix("pid ").and_then(|pid| pid.parse().ok());
    (running, pid.unwrap_or_else(|| panic!("{line:?}")))
}

fn status_of(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Whether a process is there and not merely waiting to be reaped.
fn is_alive(pid: u32) -> bool {
    status_of(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

fn ends(pid: u32, within: Duration) -> Duration {
    timed(|| wait_until("the job's end", within, || !is_alive(pid))).1
}

/// Children of a process, those that wait to be reaped among them.
fn children(pid: u32) -> Vec<u32> {
    let of_thread = |thread: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default()
    };
    let all: String = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(of_thread).collect();
    all.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// docs/tools.md: "INT, TERM, HUP, QUIT, USR1 and USR2 reach the tool, each time."
#[test]
fn signals_reach_the_tool() {
    let site = site();
    let signals = [
        (Signal::SIGINT, "INT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGINT, "INT"),
    ];
    let trap = |(_, name): &(Signal, &str)| format!("trap 'echo got {name}; n=$((n+1))' {name}; ");
    let traps: String = signals.iter().map(trap).collect();
    let text =
        format!("n=0; {traps} echo ready; while [ $n -lt {} ]; do sleep 0.02; done; exit 9", signals.len());
    let mut running = Running::start(&mut script(&site, &text));
    let mut expected = running.wait_for_output("ready\n");
    for (signal, name) in signals {
        expected.push_str(&format!("got {name}\n"));
        running.signal(signal);
        running.wait_for_output(&expected);
    }
    assert_eq!(running.end_with_open_input().code(), Some(9));
}

/// docs/tools.md: "a tool killed by a signal kills its shim by the same signal": Ctrl-C, too.
#[test]
fn a_signal_that_kills_the_tool_kills_the_shim() {
    let site = site();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
        let (mut running, pid) = start(&site, "exec sleep 60");
        running.signal(signal);
        let ended = running.end_with_open_input();
        assert_eq!((ended.signal(), ended.err().as_str()), (Some(signal as i32), ""), "{signal}");
        assert!(!is_alive(pid));
    }
}

/// docs/tools.md: "output, exit status and behaviour are the same": whatever the tool does with a signal is
/// what happens.
#[test]
fn a_tool_that_outlives_a_signal_ends_as_it_likes() {
    let site = site();
    let (mut running, _) = start_after(&site, "trap 'echo caught; exit 7' TERM", FOR_EVER);
    running.signal(Signal::SIGTERM);
    let ended = running.end_with_open_input();
    assert_eq!(ended.code(), Some(7));
    assert!(ended.out().ends_with("caught\n"));
}

/// docs/tools.md: "A shim, agent or server that is killed ends its jobs."
#[test]
fn a_killed_shim_ends_its_job() {
    let site = site();
    let (running, pid) = start(&site, "exec sleep 60");
    running.signal(Signal::SIGKILL);
    let took = ends(pid, LONG);
    assert!(took < Duration::from_secs(2), "{took:?}");
    let (running, pid) = start_after(&site, "trap '' TERM HUP INT", FOR_EVER);
    running.signal(Signal::SIGKILL);
    let took = ends(pid, LONG);
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(4), "{took:?}");
    let records = site.wait_for_records(4);
    assert!(records.iter().filter(|record| record["event"] == "outcome").count() == 2, "{records:?}");
}

/// docs/tools.md: "A shim, agent or server that is killed ends its jobs."
#[test]
fn a_killed_agent_ends_its_jobs() {
    let mut site = site();
    let (mut running, pid) = start(&site, "exec sleep 60");
    site.kill_agent();
    let took = ends(pid, LONG);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let ended = running.end_with_open_input();
    assert_eq!(ended.code(), Some(125));
    assert!(ended.err().starts_with("carapace:") && ended.err().contains("unknown"), "{}", ended.err());
}

/// docs/tools.md: "A shim, agent or server that is killed ends its jobs."
#[test]
fn a_killed_server_ends_its_jobs() {
    let mut site = site();
    let (mut running, pid) = start(&site, "exec sleep 60");
    site.kill_server();
    let took = ends(pid, LONG);
    assert!(took < Duration::from_secs(1), "{took:?}");
    let ended = running.end_with_open_input();
    assert_eq!(ended.code(), Some(125));
    assert!(ended.err().starts_with("carapace:") && ended.err().contains("unknown"), "{}", ended.err());
}

/// docs/tools.md: "A reader that has enough ends the tool, as natively."
#[test]
fn a_reader_that_has_enough_ends_the_tool() {
    let site =
        Setup::policy(policy_with_tools(&[("yes", "/usr/bin/yes", "argv_allow_patterns: ['']")])).start();
    let mut outer = shell("{ \"$TOOL\"; echo $? >&2; } | head -n 1");
    outer.env("TOOL", site.tool("yes").get_program()).env("CARAPACE_AGENT_SOCKET", site.path("agent.sock"));
    let (ended, took) = timed(|| run(&mut outer));
    assert_eq!((ended.out().as_str(), ended.err().as_str()), ("y\n", "141\n"));
    assert!(took < Duration::from_secs(3), "{took:?}");
    wait_until("yes ends", Duration::from_secs(4), || children(site.server_pid()).is_empty());
}

/// docs/tools.md: "`timeout_secs` and `max_output_bytes` end it (TERM, and KILL after `kill_grace_secs`), and
/// the caller is told when it is gone."
#[test]
fn a_job_that_takes_too_long_is_ended() {
    let site = site_with("timeout_secs: 1");
    for first in [":", "trap '' TERM"] {
        let (mut running, pid) = start_after(&site, first, FOR_EVER);
        let (ended, took) = timed(|| running.end_with_open_input());
        assert_eq!(ended.code(), Some(125), "{}", ended.err());
        assert!(!is_alive(pid), "told before it was gone");
        let said = ended.err().to_lowercase();
        assert!(
            said.starts_with("carapace:") && said.contains("1 s")
                || said.contains("too long")
                || said.contains("time"),
            "{said}"
        );
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}

/// docs/tools.md: "`timeout_secs` and `max_output_bytes` end it"
#[test]
fn a_job_that_prints_too_much_is_ended() {
    let site = site_with("max_output_bytes: 100000");
    let ended = run(&mut script(&site, "head -c 100000 /dev/zero"));
    assert_eq!((ended.code(), ended.stdout.len()), (Some(0), 100_000), "{}", ended.err());
    let (mut running, pid) = start(&site, "exec yes");
    let ended = running.end_with_open_input();
    assert_eq!(ended.code(), Some(125));
    assert!(ended.stdout.len() <= 100_000, "{}", ended.stdout.len());
    assert!(ended.err().starts_with("carapace:"), "{}", ended.err());
    assert!(!is_alive(pid));
}

/// docs/tools.md: "`max_concurrent` by waiting for up to 5 s, and then 125"
#[test]
fn runs_wait_for_each_other_where_only_one_may_be() {
    let site = site_with("max_concurrent: 1");
    let (mut first, _) = start(&site, "read -r line; echo done");
    let second = Running::start(&mut script(&site, "echo second"));
    wait_until("the second is recorded", LONG, || site.records().len() == 2);
    first.feed(b"\n");
    assert_eq!(first.end().code(), Some(0));
    assert_eq!(second.end().out(), "second\n");
    let (_running, _) = start(&site, "exec sleep 60");
    let (refused, took) = timed(|| run(&mut script(&site, "echo third")));
    assert_eq!((refused.code(), refused.out().as_str()), (Some(125), ""));
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(8), "{took:?}");
}

/// docs/tools.md: "that keeps the output open delays the end by a second at most, and is ended with the job's
/// process group"
#[test]
fn a_grandchild_holds_nobody_up_and_does_not_stay() {
    let site = site();
    let (mut running, _) = start(&site, "sleep 60 & echo child $!; exit 3");
    let (ended, took) = timed(|| running.end_with_open_input());
    assert_eq!(ended.code(), Some(3));
    assert!(took < Duration::from_secs(3), "{took:?}");
    let child = ended.out().split_whitespace().last().unwrap().parse().unwrap();
    wait_until("the grandchild ends", Duration::from_secs(5), || !is_alive(child));
}

/// docs/tools.md: "A job is a fresh process: descriptors 0 to 2 and no others, signal mask and dispositions
/// as default, its own session and process group, umask 077, no new privileges"
#[test]
fn a_job_is_a_fresh_process() {
    let site = site();
    // A request or two, so that the daemons have more to inherit.
    assert_eq!(run(&mut script(&site, "exit 0")).code(), Some(0));
    let _events = site.events("/api/v1/events");
    let (running, pid) = start(&site, "exec sleep 60");
    // The first moments of sleep are its loader's.
    wait_until("it is sleep", LONG, || status_of(pid, "Name").as_deref() == Some("sleep"));
    wait_until("it has descriptors 0 to 2 and no others", LONG, || descriptors(pid) == 3);
    for fd in 0..3 {
        assert!(
            fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().to_str().unwrap().starts_with("pipe:")
        );
    }
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        let mask = u64::from_str_radix(&status_of(pid, name).unwrap(), 16).unwrap();
        // 32 and 33 are the C library's own, which lets nobody else set them: they are as the test was started.
        assert_eq!(mask & !(0b11 << 31), 0, "{name}: {mask:x}");
    }
    assert_eq!(status_of(pid, "NoNewPrivs").unwrap(), "1");
    assert_eq!(status_of(pid, "Umask").unwrap(), "0077");
    assert_eq!(status_of(pid, "NSsid").unwrap(), pid.to_string());
    assert_eq!(status_of(pid, "NSpgid").unwrap(), pid.to_string());
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    drop(running);
}

/// docs/tools.md: "and leave nothing behind"
#[test]
fn two_hundred_runs_leave_nothing_behind() {
    let site = site();
    assert_eq!(run(&mut script(&site, "exit 0")).code(), Some(0));
    let (server, agent) = (site.server_pid(), site.agent_pid());
    wait_until("the first run is over", LONG, || children(server).is_empty());
    let before = (descriptors(server), descriptors(agent));
    thread::scope(|scope| {
        for part in 0..4 {
            let site = &site;
            scope.spawn(move || {
                for n in 0..50 {
                    let text = if n % 10 == 0 { "kill -9 $$" } else { "echo x" };
                    let ended = run(&mut script(site, text));
                    assert_eq!(ended.out(), if n % 10 == 0 { "" } else { "x\n" }, "{part}: {}", ended.err());
                }
            });
        }
    });
    wait_until("no child is left", LONG, || children(server).is_empty());
    wait_until("no descriptor is left", LONG, || (descriptors(server), descriptors(agent)) == before);
    assert_eq!(site.wait_for_records(402).len(), 402);
}

/// docs/deploy.md: "what runs is finished (up to 30 s), nothing new is taken on"
#[test]
fn a_running_job_finishes_when_the_server_drains() {
    let mut site = site();
    let (mut running, _) = start(&site, "read -r line; echo done");
    site.server().signal(Signal::SIGTERM).unwrap();
    assert!(site.server().wait_for_log("drain", LONG), "{:?}", site.server().log());
    let refused = run(&mut script(&site, "echo new"));
    assert_eq!((refused.code(), refused.out().as_str()), (Some(125), ""));
    running.feed(b"\n");
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{}", ended.err());
    assert!(ended.out().ends_with("done\n"));
    assert_eq!(site.server().wait(LONG).unwrap().unwrap().code(), Some(0));
}

/// docs/tools.md: "`limits` by rlimit"
#[test]
fn limits_hold() {
    let site = site_with("limits: { open_files: 17, cpu_secs: 1 }");
    assert_eq!(run(&mut script(&site, "ulimit -n")).out(), "17\n");
    let ended = run(&mut script(&site, "while :; do :; done"));
    assert_eq!(ended.signal(), Some(Signal::SIGXCPU as i32), "{:?}", ended.status);
}

/// docs/tools.md: "A tool that floods disturbs no call."
#[test]
fn a_tool_that_floods_disturbs_no_call() {
    let site = site();
    // Nobody reads what they print.
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let mut command = script(&site, "exec yes");
            command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    wait_until("they run", LONG, || children(site.server_pid()).len() == 4);
    let memory = || resident_kib(site.server_pid()) + resident_kib(site.agent_pid());
    let before = memory();
    for _ in 0..20 {
        let (answer, took) = timed(|| site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#));
        assert_eq!(answer.status, 200);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert_eq!(run(&mut script(&site, "echo x")).out(), "x\n");
    assert!(memory() < before + 16 * 1024, "from {before} KiB to {} KiB", memory());
    for mut flood in floods {
        flood.kill().unwrap();
        flood.wait().unwrap();
    }
    wait_until("they are ended", Duration::from_secs(5), || children(site.server_pid()).is_empty());
}
