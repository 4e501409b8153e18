//! Jobs: real programs under the loop, with a machine of a few lines.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that is surprised fails"
)]

mod runner;

use carapace_proto::machine::{ExitStatus, StartError};
use nix::libc;
use runner::{Outcome, plan, plan_in, run, shell};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

const KILL: u8 = libc::SIGKILL as u8;
const TERM: u8 = libc::SIGTERM as u8;

fn exited(code: u8) -> Result<ExitStatus, StartError> {
    Ok(ExitStatus::Exited(code))
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_once(':').unwrap().1.trim()
}

#[test]
fn exit_codes_are_told_as_they_are() {
    for code in [0, 1, 3, 126, 255] {
        assert_eq!(shell(&format!("exit {code}")).run().ended, exited(code));
    }
}

#[test]
fn death_by_any_signal_is_told_with_its_number() {
    // A core is nothing to leave about.
    for signal in
        [libc::SIGHUP, libc::SIGINT, libc::SIGKILL, libc::SIGPIPE, libc::SIGTERM, libc::SIGUSR1, 35, 64]
    {
        let signal = u8::try_from(signal).unwrap();
        let outcome = shell(&format!("ulimit -c 0; kill -{signal} $$; sleep 60")).run();
        assert_eq!(outcome.ended, Ok(ExitStatus::Signaled { signal, core: false }));
    }
}

#[test]
fn both_outputs_arrive_as_they_are() {
    let outcome = shell("printf 'out\\0\\377'; printf 'err\\n' >&2; exit 4").run();
    assert_eq!(outcome.ended, exited(4));
    assert_eq!(outcome.stdout, b"out\0\xff");
    assert_eq!(outcome.stderr, b"err\n");
}

#[test]
fn stdin_arrives_and_ends() {
    let bytes: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_be_bytes).collect();
    let outcome = plan("cat", &[]).stdin(&bytes).run();
    assert_eq!(outcome.ended, exited(0));
    assert!(outcome.stdout == bytes);
    assert_eq!(plan("cat", &[]).run().stdout, b"");
}

#[test]
fn a_job_without_stdin_sees_its_end() {
    let outcome = shell("cat; readlink /proc/self/fd/0").run();
    assert_eq!((outcome.ended.clone(), outcome.text()), (exited(0), "/dev/null\n"));
}

#[test]
fn a_job_that_reads_no_more_says_so() {
    let outcome =
        plan("sh-with-stdin", &["-c", "exec <&-; echo closed; exit 3"]).stdin(&[7; 1_000_000]).run();
    assert!(outcome.stdin_was_lost);
    assert_eq!((outcome.ended.clone(), outcome.text()), (exited(3), "closed\n"));
}

#[test]
fn a_large_output_is_complete() {
    let outcome = shell("head -c 50000000 /dev/zero; head -c 3000000 /dev/zero >&2").run();
    assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (50_000_000, 3_000_000));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let outcome = shell("sleep 600 & echo begun; wait").signal_when_it_prints(TERM).run();
    assert_eq!(outcome.ended, Ok(ExitStatus::Signaled { signal: TERM, core: false }));
    assert_eq!(outcome.text(), "begun\n");
}

#[test]
fn a_grandchild_that_holds_stdout_is_told_from_the_job_and_can_be_ended() {
    let outcome = shell("sleep 600 & echo begun; exit 5").signal_when_it_ends(KILL).run();
    assert_eq!((outcome.ended.clone(), outcome.text()), (exited(5), "begun\n"));
    assert!(outcome.outputs_outlived_it);
}

#[test]
fn signals_are_as_a_login_shell_would_have_them() {
    let outcome = shell("cat /proc/self/status").run();
    let status = outcome.text();
    // The C library keeps 32 and 33 for itself and lets nobody change them.
    const LIBRARYS: u64 = 0b11 << 31;
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        let signals = u64::from_str_radix(field(status, set), 16).unwrap();
        assert_eq!(signals & !LIBRARYS, 0, "{set}: {signals:x}");
    }
}

#[test]
fn a_job_has_its_own_session_no_way_up_and_nothing_of_ours() {
    let script = "cat /proc/self/stat; umask; cat /proc/self/status; ls -l /proc/self/fd; pwd";
    let outcome = shell(script).run();
    let mut lines = outcome.text().lines();
    let stat: Vec<_> = lines.next().unwrap().split(' ').collect();
    let (parent, group, session, terminal) = (stat[3], stat[4], stat[5], stat[6]);
    assert_eq!((group, session, terminal), (parent, parent, "0"), "cat is the shell's child");
    assert_eq!(lines.next(), Some("0077"));
    assert_eq!(field(outcome.text(), "NoNewPrivs"), "1");
    let open = outcome.text().lines().filter(|line| line.contains(" -> ")).count();
    assert_eq!(open, 4, "0 to 2, and the folder that ls reads:\n{}", outcome.text());
    assert_eq!(outcome.text().lines().last(), Some("/"));
}

#[test]
fn the_environment_is_made_from_nothing() {
    let sent: [(&[u8], &[u8]); 4] =
        [(b"LANG", b"C"), (b"HOME", b"/elsewhere"), (b"SECRET", b"x"), (b"TOKEN", b"mine")];
    let outcome = plan_in(None, &sent, "env", &[]).run();
    let mut names: Vec<_> = outcome.text().lines().collect();
    names.sort_unstable();
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    let expected = [
        "HOME=/elsewhere".to_owned(),
        "LANG=C".to_owned(),
        format!("LOGNAME={user}"),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        "TOKEN=hunter2-hunter2".to_owned(),
        format!("USER={user}"),
        "_CARAPACE_JOB=1".to_owned(),
    ];
    assert_eq!(names, expected);
}

#[test]
fn arguments_arrive_as_they_are() {
    let long = "x".repeat(100_000);
    let args = ["-c", "printf '<%s>' \"$0\" \"$@\"", "", "a b", "$HOME", "'\n\"", "*", &long];
    let outcome = plan("sh", &args).run();
    assert_eq!(outcome.text(), format!("<><a b><$HOME><'\n\"><*><{long}>"));
}

#[test]
fn the_callers_directory_is_entered_only_where_the_policy_says() {
    let in_directory = |path| plan_in(Some(path), &[], "pwd", &["-P"]).run();
    assert_eq!(in_directory("/usr/bin/../lib").text(), "/usr/lib\n");
    for outside in ["/etc", "/usr/..", "/nonexistent", "/usr/bin/env"] {
        assert_eq!(in_directory(outside).ended, Err(StartError::BadDirectory), "{outside}");
    }
}

#[test]
fn what_cannot_be_started_says_why() {
    for (tool, error) in [
        ("missing", StartError::NotFound),
        ("below-a-file", StartError::NotFound),
        ("no-program", StartError::NotExecutable),
        ("folder", StartError::NotExecutable),
        ("no-directory", StartError::BadDirectory),
    ] {
        assert_eq!(plan(tool, &[]).run().ended, Err(error), "{tool}");
    }
}

/// No shell is ever involved: a text without `#!` is no program.
#[test]
fn a_text_is_not_handed_to_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    fs::write(&path, "echo run by a shell").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let policy = format!(
        "tools: {{ script: {{ type: cli, binary: {}, argv_allow_patterns: [\"**\"] }} }}",
        path.display()
    );
    assert_eq!(runner::plan_of(&policy, "script").run().ended, Err(StartError::NotExecutable));
    fs::write(&path, "#!/bin/sh\necho run by \"$0\"").unwrap();
    let outcome = runner::plan_of(&policy, "script").run();
    assert_eq!(outcome.text(), format!("run by {}\n", path.display()));
}

#[test]
fn limits_are_those_of_the_policy_and_otherwise_those_we_were_given() {
    let outcome =
        plan("limited", &["-c", "ulimit -t; ulimit -v; ulimit -n; ulimit -H -n; ulimit -u || ulimit -p"])
            .run();
    assert_eq!(outcome.text().lines().take(4).collect::<Vec<_>>(), ["7", "976562", "50", "50"]);
    let given = runner::given_open_files();
    let outcome = shell("ulimit -S -n; ulimit -H -n").run();
    assert_eq!(outcome.text(), format!("{}\n{}\n", given.0, given.1));
}

#[test]
fn five_hundred_runs_leave_nothing_behind() {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let zombies = || {
        let children = fs::read_to_string(format!("/proc/self/task/{}/children", nix::unistd::gettid()));
        children.map_or(0, |children| children.split_whitespace().count())
    };
    let some = |count| (0..count).map(|_| plan("true", &[])).collect();
    runner::alone(|run| {
        run(1, some(1));
        let before = (open(), zombies());
        let outcomes = run(16, some(500));
        assert!(outcomes.iter().all(|outcome: &Outcome| outcome.ended == exited(0)));
        assert_eq!((open(), zombies()), before);
    });
}

#[test]
fn two_hundred_run_at_once() {
    let plans = (0..200).map(|i| shell(&format!("cat /dev/null; echo {i}; exit {}", i % 7))).collect();
    for (i, outcome) in run(200, plans).into_iter().enumerate() {
        assert_eq!(outcome.ended, exited(u8::try_from(i % 7).unwrap()));
        assert_eq!(outcome.text(), format!("{i}\n"));
    }
}

/// The job keeps a pipe open that we read: its end is the job's end.
#[test]
fn jobs_die_with_the_daemon() {
    const INNER: &str = "CARAPACE_TEST_FIFO";
    if let Some(fifo) = std::env::var_os(INNER) {
        let script = format!("exec sleep 600 > {}", fifo.to_str().unwrap());
        shell(&script).run();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "jobs_die_with_the_daemon", "--nocapture"])
        .env(INNER, &fifo)
        .spawn()
        .unwrap();
    // Waits for the job to open it.
    let mut held = fs::File::open(&fifo).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(std::io::Read::read(&mut held, &mut [0]).unwrap(), 0);
}
