//! Tool runs: judged, started, fed, listened to, ended.

use super::host::{Disk, Host, POLICY};
use carapace_proto::machine::{ExitStatus, Input, Source, StartError};
use carapace_proto::time::Duration;
use carapace_proto::wire::frame::{Channel, Fault, StreamFrame};

#[test]
fn an_allowed_run_gets_its_arguments_and_no_environment_but_what_the_policy_says() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0big world\0\0", "LANG=C\0LD_PRELOAD=/tmp/x\0TOKEN=mine\0");
    let (job, exec) = host.started();
    assert_eq!(exec.binary(), "/bin/echo");
    assert_eq!(exec.argv()[1..], [b"hello".to_vec(), b"big world".to_vec(), vec![]]);
    let env: Vec<_> = exec.env().collect();
    assert_eq!(env, [(&b"LANG"[..], &b"C"[..]), (b"TOKEN", b"correct horse")]);
    assert!(!host.log.contains("correct horse"));
    host.handle(Input::Bytes { source: Source::Stdout(job), bytes: b"out\xff" });
    host.handle(Input::Bytes { source: Source::Stderr(job), bytes: b"err" });
    host.handle(Input::Exited { job, status: ExitStatus::Exited(3) });
    host.exchange();
    assert_eq!(
        (&host.replies[&stream].body[..], &host.replies[&stream].stderr[..]),
        (&b"out\xff"[..], &b"err"[..])
    );
    assert_eq!(host.replies[&stream].end, None, "its outputs are still open");
    host.handle(Input::Eof { source: Source::Stdout(job) });
    host.handle(Input::Eof { source: Source::Stderr(job) });
    host.exchange();
    assert_eq!(host.replies[&stream].end.as_deref(), Some("Exit { value: 3, signaled: false, core: false }"));
    assert_eq!(host.forgotten, [job]);
    let records = host.records();
    assert_eq!((&records[0]["action_type"], &records[1]["exit_code"]), (&"cli".into(), &3.into()));
    assert_eq!(host.server.running(), 0);
}

#[test]
fn nothing_runs_unrecorded() {
    let mut host = Host::new();
    host.disk = Disk::Slow;
    host.run("echo", "hello\0", "");
    assert!(host.starts.is_empty());
    host.say_recorded();
    assert_eq!(host.starts.len(), 1);
    let mut host = Host::new();
    host.disk = Disk::Full;
    let stream = host.run("echo", "hello\0", "");
    assert!(host.starts.is_empty());
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("NotStarted"));
}

#[test]
fn denied_and_unknown_runs_are_told_apart_and_never_start() {
    let mut host = Host::new();
    for (tool, argv, fault) in
        [("echo", "goodbye\0", "Denied"), ("rm", "-rf\0/\0", "UnknownTool"), ("signal-cli", "", "Denied")]
    {
        let stream = host.run(tool, argv, "");
        let end = host.replies[&stream].end.as_ref().unwrap();
        assert!(end.contains(fault), "{tool}: {end}");
    }
    assert!(host.starts.is_empty());
    assert!(host.records().iter().all(|record| record["policy_result"] == "deny"));
}

#[test]
fn a_caller_that_leaves_before_the_start_starts_nothing() {
    let mut host = Host::new();
    host.disk = Disk::Slow;
    let stream = host.run("echo", "hello\0", "");
    host.send(stream, &StreamFrame::Reset { fault: Fault::Cancelled, text: b"" });
    host.disk = Disk::Good;
    host.say_recorded();
    assert!(host.starts.is_empty());
    assert!(host.records()[1]["error"].as_str().unwrap().contains("not started"));
    assert_eq!(host.server.running(), 0);
}

#[test]
fn input_flows_by_credit_and_its_end_is_passed_on() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    host.session.send_data(stream, Channel::Main, b"typed", false, false);
    host.exchange();
    assert!(host.session.is_clogged(stream), "nothing is granted before it runs");
    let (job, _) = host.started();
    assert_eq!(host.replies[&stream].credit, 16_384);
    assert_eq!(host.stdin[&job], b"typed");
    let bulk = vec![b'x'; 300_000];
    host.session.send_data(stream, Channel::Main, &bulk, true, false);
    host.exchange();
    assert_eq!(host.stdin[&job].len(), 300_005);
    assert_eq!(host.stdin_closed, [job]);
}

#[test]
fn input_that_ends_before_the_run_begins_ends_then() {
    let end = StreamFrame::Data { channel: Channel::Main, end: true, more: false, bytes: b"" };
    let mut host = Host::new();
    host.disk = Disk::Slow;
    let recording = host.run("echo", "hello\0", "");
    host.send(recording, &end);
    host.say_recorded();
    let (job, _) = host.started();
    assert_eq!(host.stdin_closed, [job]);
    host.disk = Disk::Good;
    let queued = host.run("echo", "hello\0", "");
    host.send(queued, &end);
    host.handle(Input::Eof { source: Source::Stdout(job) });
    host.handle(Input::Eof { source: Source::Stderr(job) });
    host.handle(Input::Exited { job, status: ExitStatus::Exited(0) });
    let (next, _) = host.started();
    assert_eq!(host.stdin_closed, [job, next]);
}

#[test]
fn a_tool_that_takes_no_input_is_granted_none() {
    let mut host = Host::new();
    let stream = host.run("silent", "", "");
    host.started();
    assert_eq!(host.replies.get(&stream).map_or(0, |reply| reply.credit), 0);
}

#[test]
fn input_that_the_tool_does_not_want_any_more_is_dropped() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.handle(Input::StdinLost { job });
    host.session.send_data(stream, Channel::Main, &[0; 100_000], true, false);
    host.exchange();
    assert!(!host.session.is_clogged(stream));
    assert!(host.server.held_bytes() < 1024, "only what waits for its acknowledgement");
}

#[test]
fn signals_reach_the_tool_and_only_those_that_may() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    for number in [2, 9, 15, 200] {
        host.send(stream, &StreamFrame::Signal { number });
    }
    assert_eq!(host.signals, [(job, 2), (job, 15)]);
}

#[test]
fn death_by_signal_is_told() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.handle(Input::Eof { source: Source::Stdout(job) });
    host.handle(Input::Eof { source: Source::Stderr(job) });
    host.handle(Input::Exited { job, status: ExitStatus::Signaled { signal: 11, core: true } });
    host.exchange();
    assert_eq!(host.replies[&stream].end.as_deref(), Some("Exit { value: 11, signaled: true, core: true }"));
    assert_eq!(host.records()[1]["signal"], 11);
}

#[test]
fn a_vanished_caller_ends_its_job_with_term_and_then_kill() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.send(stream, &StreamFrame::Reset { fault: Fault::Cancelled, text: b"" });
    assert_eq!(host.signals, [(job, 15)]);
    host.pass(Duration::from_millis(2_100));
    assert_eq!(host.signals[..2], [(job, 15), (job, 9)]);
    host.handle(Input::Exited { job, status: ExitStatus::Signaled { signal: 9, core: false } });
    assert_eq!(host.forgotten, [job]);
    assert_eq!(host.server.running(), 0);
}

#[test]
fn a_job_that_takes_too_long_is_ended_and_the_caller_told_when_it_is_gone() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.pass(Duration::from_millis(10_100));
    assert_eq!(host.signals, [(job, 15)]);
    assert!(host.replies[&stream].end.is_none());
    host.handle(Input::Exited { job, status: ExitStatus::Signaled { signal: 15, core: false } });
    host.exchange();
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("TimedOut"));
}

#[test]
fn a_job_that_prints_too_much_is_ended() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    for _ in 0..3 {
        host.handle(Input::Bytes { source: Source::Stdout(job), bytes: &[b'y'; 40_000] });
        host.exchange();
    }
    assert_eq!(host.signals, [(job, 15)]);
    host.handle(Input::Exited { job, status: ExitStatus::Signaled { signal: 15, core: false } });
    host.exchange();
    assert_eq!(host.replies[&stream].body.len(), 100_000);
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("TooMuchOutput"));
}

#[test]
fn a_reader_that_does_not_read_pauses_its_job() {
    let mut host = Host::new();
    host.drains = false;
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.handle(Input::Bytes { source: Source::Stdout(job), bytes: &[b'y'; 40_000] });
    assert_eq!(host.paused, [Source::Stdout(job), Source::Stderr(job)]);
    host.exchange();
    assert_eq!(host.replies[&stream].body.len(), 16_384);
    host.session.consumed(stream, 16_384);
    host.exchange();
    host.session.consumed(stream, 40_000 - 16_384);
    host.exchange();
    assert_eq!(host.replies[&stream].body.len(), 40_000);
    assert!(host.paused.is_empty());
}

#[test]
fn output_of_a_job_that_has_ended_waits_for_a_slow_reader() {
    let mut host = Host::new();
    host.drains = false;
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.handle(Input::Bytes { source: Source::Stdout(job), bytes: &[b'x'; 50_000] });
    host.handle(Input::Exited { job, status: ExitStatus::Exited(0) });
    assert!(host.paused.contains(&Source::Stdout(job)));
    host.pass(Duration::from_secs(5));
    assert!(host.forgotten.is_empty(), "the rest is still in its pipe");
    host.drains = true;
    host.session.consumed(stream, host.replies[&stream].body.len());
    host.exchange();
    assert!(host.paused.is_empty());
    host.handle(Input::Bytes { source: Source::Stdout(job), bytes: b"rest" });
    host.handle(Input::Eof { source: Source::Stdout(job) });
    host.handle(Input::Eof { source: Source::Stderr(job) });
    host.exchange();
    assert_eq!(host.replies[&stream].body.len(), 50_004);
    assert!(host.replies[&stream].end.as_ref().unwrap().starts_with("Exit { value: 0"));
}

#[test]
fn output_that_nobody_takes_is_not_waited_for_beyond_the_runs_time() {
    let mut host = Host::new();
    host.drains = false;
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.handle(Input::Bytes { source: Source::Stdout(job), bytes: &[b'x'; 50_000] });
    host.handle(Input::Exited { job, status: ExitStatus::Exited(0) });
    host.pass(Duration::from_secs(11));
    assert_eq!(host.forgotten, [job]);
    host.session.consumed(stream, host.replies[&stream].body.len());
    host.drains = true;
    host.exchange();
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("TimedOut"));
}

#[test]
fn a_grandchild_that_keeps_the_output_open_delays_the_end_by_a_second() {
    let mut host = Host::new();
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.handle(Input::Exited { job, status: ExitStatus::Exited(0) });
    host.pass(Duration::from_millis(900));
    assert!(host.replies.get(&stream).and_then(|reply| reply.end.as_ref()).is_none());
    host.pass(Duration::from_millis(200));
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("Exit { value: 0"));
    assert_eq!(host.forgotten, [job]);
}

#[test]
fn runs_beyond_the_slots_wait_their_turn_and_not_for_ever() {
    let mut host = Host::new();
    host.run("echo", "hello\0", "");
    let (first, _) = host.started();
    let second = host.run("echo", "hello\0", "");
    let third = host.run("echo", "hello\0", "");
    assert!(host.starts.is_empty());
    for source in [Source::Stdout(first), Source::Stderr(first)] {
        host.handle(Input::Eof { source });
    }
    host.handle(Input::Exited { job: first, status: ExitStatus::Exited(0) });
    assert_eq!(host.starts.len(), 1);
    assert!(!host.replies.contains_key(&second));
    host.started();
    host.pass(Duration::from_millis(5_100));
    assert!(host.replies[&third].end.as_ref().unwrap().contains("NotStarted"));
}

#[test]
fn a_tool_that_cannot_be_started_is_told_without_a_path() {
    let mut host = Host::new();
    for (error, fault) in [
        (StartError::NotFound, "Failed"),
        (StartError::BadDirectory, "Denied"),
        (StartError::Other("/bin/echo: secret".to_owned()), "Failed"),
    ] {
        let stream = host.run("echo", "hello\0", "");
        let (job, _) = host.starts.pop_front().unwrap();
        host.handle(Input::StartFailed { job, error });
        host.exchange();
        let end = host.replies[&stream].end.as_ref().unwrap();
        assert!(end.contains(fault), "{end}");
        assert!(!end.contains("/bin") && !end.contains("secret"));
    }
    assert_eq!(host.server.running(), 0);
}

#[test]
fn lists_beyond_two_mebibytes_are_refused() {
    let mut host = Host::new();
    let stream = carapace_proto::ids::StreamId(1);
    host.session.open_run(stream);
    host.session.send(stream, &StreamFrame::Run { terminal: false, tool: b"echo" });
    let part = vec![b'x'; 60_000];
    for _ in 0..36 {
        let list =
            StreamFrame::List { list: carapace_proto::wire::frame::ListName::Argv, go: false, bytes: &part };
        host.session.send(stream, &list);
    }
    host.exchange();
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("Failed { fault: Failed"));
}

#[test]
fn input_that_a_content_filter_forbids_ends_the_job() {
    let filter = "content_filters: [{ pattern: top-secret, action: block }]\n";
    let mut host = Host::under(&format!("{POLICY}{filter}"));
    let stream = host.run("echo", "hello\0", "");
    let (job, _) = host.started();
    host.session.send_data(stream, Channel::Main, b"top-se", false, false);
    host.exchange();
    host.session.send_data(stream, Channel::Main, b"cret plans", true, false);
    host.exchange();
    assert_eq!(host.stdin[&job], b"top-se", "also when it is cut in two");
    assert_eq!(host.signals, [(job, 15)]);
    host.handle(Input::Exited { job, status: ExitStatus::Signaled { signal: 15, core: false } });
    host.exchange();
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("Failed { fault: Denied"));
    assert!(host.records()[1]["error"].as_str().unwrap().contains("content filter"));
}

#[test]
fn a_run_that_is_never_described_takes_no_room_for_long() {
    let mut host = Host::new();
    let stream = carapace_proto::ids::StreamId(1);
    host.session.open_run(stream);
    host.session.send(stream, &StreamFrame::Run { terminal: false, tool: b"echo" });
    let list = StreamFrame::List {
        list: carapace_proto::wire::frame::ListName::Argv,
        go: false,
        bytes: &[b'x'; 60_000],
    };
    host.session.send(stream, &list);
    host.exchange();
    host.pass(Duration::from_millis(10_100));
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("NotStarted"));
    assert_eq!(host.server.running(), 0);
}
