//! Runs, relayed between a shim and the server.

use super::*;
use crate::limits::*;
use crate::wire::frame::ListName;

const OWN: StreamId = StreamId(1);

fn frames(frames: &[StreamFrame<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.write(OWN, &mut bytes);
    }
    bytes
}

fn list(list: ListName, bytes: &[u8], go: bool) -> StreamFrame<'_> {
    StreamFrame::List { list, go, bytes }
}

fn description() -> Vec<u8> {
    frames(&[
        StreamFrame::Run { terminal: false, tool: b"op" },
        list(ListName::Argv, b"item\0li", false),
        list(ListName::Argv, b"st\0", false),
        list(ListName::Env, b"A=b\0", false),
        list(ListName::Cwd, b"/home\0", true),
    ])
}

fn stdin(bytes: &[u8], end: bool) -> StreamFrame<'_> {
    StreamFrame::Data { channel: Channel::Main, end, more: false, bytes }
}

fn output(channel: Channel, bytes: &[u8], end: bool) -> StreamFrame<'_> {
    StreamFrame::Data { channel, end, more: false, bytes }
}

/// A run whose shim has described it.
fn running() -> (Rig, ConnId) {
    let mut rig = Rig::up();
    let conn = rig.connect(SHIM);
    rig.send(conn, &description());
    let seen = rig.take_seen();
    let expected = [
        Seen::Run(1, "op".into()),
        Seen::List(1, b"item\0li".to_vec(), false),
        Seen::List(1, b"st\0".to_vec(), false),
        Seen::List(1, b"A=b\0".to_vec(), false),
        Seen::List(1, b"/home\0".to_vec(), true),
    ];
    assert_eq!(seen, expected);
    (rig, conn)
}

/// What a shim got, as frames in words.
fn got(rig: &mut Rig, conn: ConnId) -> Vec<String> {
    let bytes = core::mem::take(&mut rig.client(conn).received);
    let (mut reader, mut input) = (FrameReader::new(), &bytes[..]);
    let mut words = Vec::new();
    while let Some(frame) = reader.next(&mut input, FRAME_BYTES_MAX).unwrap() {
        let Frame::Stream(OWN, frame) = frame else { panic!("{frame:?}") };
        words.push(match frame {
            StreamFrame::Failed { fault, text } => {
                format!("failed {fault:?}: {}", String::from_utf8_lossy(text))
            }
            StreamFrame::Data { channel, end, bytes, .. } => {
                format!("{channel:?} {} {end}", String::from_utf8_lossy(bytes))
            }
            StreamFrame::Exit { value, signaled, .. } => format!("exit {value} {signaled}"),
            StreamFrame::Credit { bytes } => format!("credit {bytes}"),
            other => format!("{other:?}"),
        });
    }
    assert!(!reader.is_mid_frame());
    words
}

#[test]
fn a_run_is_relayed_both_ways() {
    let (mut rig, conn) = running();
    rig.server().grant_initial(OWN);
    rig.pump();
    assert_eq!(got(&mut rig, conn), [format!("credit {CREDIT_INITIAL}")]);
    rig.send(conn, &frames(&[stdin(b"typed", false), stdin(b"", true)]));
    rig.send(
        conn,
        &frames(&[StreamFrame::Signal { number: 2 }, StreamFrame::Window { rows: 1, columns: 2 }]),
    );
    assert_eq!(
        rig.take_seen(),
        [
            Seen::Data(1, b"typed".to_vec(), false),
            Seen::Data(1, b"".to_vec(), true),
            Seen::Signal(1, 2),
            Seen::Window(1, 1, 2)
        ]
    );
    rig.server().send_data(OWN, Channel::Stdout, b"out\xff\0", false, false);
    rig.server().send_data(OWN, Channel::Stderr, b"err", true, false);
    rig.server().send_data(OWN, Channel::Stdout, b"", true, false);
    rig.server().send(OWN, &StreamFrame::Exit { value: 9, signaled: true, core: false });
    rig.server().close(OWN);
    rig.pump();
    assert_eq!(
        got(&mut rig, conn),
        ["Stdout out\u{fffd}\0 false", "Stderr err true", "Stdout  true", "exit 9 true"]
    );
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
    rig.pass_ms(100);
    assert!(rig.agent.is_idle());
}

#[test]
fn a_description_may_come_in_any_pieces() {
    for piece in [1, 3, 17] {
        let mut rig = Rig::up();
        let conn = rig.connect(SHIM);
        for bytes in description().chunks(piece) {
            rig.send(conn, bytes);
        }
        assert_eq!(rig.take_seen().len(), 5);
    }
}

#[test]
fn output_flows_as_the_shim_hands_it_on() {
    let (mut rig, conn) = running();
    rig.server().send_data(OWN, Channel::Stdout, &[b'x'; 100_000], false, false);
    rig.pump();
    let received = |rig: &mut Rig| rig.client(conn).received.iter().filter(|b| **b == b'x').count();
    assert_eq!(received(&mut rig), usize::try_from(CREDIT_INITIAL).unwrap());
    rig.send(conn, &frames(&[StreamFrame::Credit { bytes: CREDIT_INITIAL }]));
    let mut total = received(&mut rig);
    assert!(total > 16_384);
    let mut credited = 16_384;
    while total < 100_000 {
        rig.send(conn, &frames(&[StreamFrame::Credit { bytes: u32::try_from(total - credited).unwrap() }]));
        credited = total;
        total = received(&mut rig);
    }
    assert_eq!(rig.closed(conn), None);
}

#[test]
fn a_shim_that_is_gone_ends_its_run() {
    for lost in [false, true] {
        let (mut rig, conn) = running();
        if lost {
            rig.handle(Input::Lost { conn, loss: Loss::Reset });
        } else {
            rig.eof(conn);
            assert_eq!(rig.closed(conn), Some(Closing::Orderly));
        }
        assert_eq!(rig.take_seen(), [Seen::Reset(1, Fault::Cancelled)]);
        assert!(rig.agent.conns.is_empty());
    }
}

#[test]
fn a_server_that_refuses_is_relayed_as_a_failure() {
    let (mut rig, conn) = running();
    rig.reset(1, Fault::Denied, "not allowed");
    assert_eq!(got(&mut rig, conn), ["failed Denied: not allowed"]);
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
    let conn = rig.connect(SHIM);
    rig.send(conn, &description());
    rig.server().send(StreamId(2), &StreamFrame::Failed { fault: Fault::UnknownTool, text: b"no op" });
    rig.server().close(StreamId(2));
    rig.pump();
    assert_eq!(got(&mut rig, conn), ["failed UnknownTool: no op"]);
}

#[test]
fn a_hostile_shim_hurts_nobody_but_itself() {
    let described = |more: &[u8]| [description(), more.to_vec()].concat();
    let own = |more: StreamFrame<'static>| described(&frames(&[more]));
    let mut other_stream = Vec::new();
    StreamFrame::Signal { number: 1 }.write(StreamId(2), &mut other_stream);
    let cases: Vec<Vec<u8>> = vec![
        vec![0xff; 4],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\0\0\0\x02{}".to_vec(),
        vec![0, 0, 0, 0],
        frames(&[StreamFrame::Signal { number: 9 }]),
        frames(&[list(ListName::Argv, b"x", true)]),
        frames(&[StreamFrame::Run { terminal: false, tool: b"" }]),
        frames(&[StreamFrame::Run { terminal: false, tool: b"a\0b" }]),
        frames(&[
            StreamFrame::Run { terminal: false, tool: b"a" },
            StreamFrame::Run { terminal: false, tool: b"a" },
        ]),
        described(&other_stream),
        described(&[0xff; 4]),
        own(stdin(b"not asked for", false)),
        own(StreamFrame::Credit { bytes: 1 }),
        own(output(Channel::Stdout, b"", false)),
        own(StreamFrame::Exit { value: 0, signaled: false, core: false }),
        own(StreamFrame::Request { body: false, items: Items(b"") }),
        own(list(ListName::Argv, b"more", true)),
    ];
    for bytes in cases {
        let mut rig = Rig::up();
        let (bystander, _) = rig.ask(&call("1"));
        let conn = rig.connect(SHIM);
        rig.send(conn, &bytes);
        let words = got(&mut rig, conn);
        assert!(words.last().is_some_and(|w| w.starts_with("failed Misbehaved")), "{bytes:?}: {words:?}");
        assert_eq!(rig.closed(conn), Some(Closing::Orderly), "{bytes:?}");
        let seen = rig.take_seen();
        if seen.iter().any(|s| matches!(s, Seen::Run(2, _))) {
            assert_eq!(seen.last(), Some(&Seen::Reset(2, Fault::Cancelled)), "{bytes:?}");
        }
        rig.answer(1, "{}");
        assert!(rig.received(bystander).ends_with("{}"));
        assert_eq!(rig.agent.hub.described_bytes, 0);
    }
}

#[test]
fn a_description_without_end_is_refused() {
    let mut rig = Rig::up();
    let conn = rig.connect(SHIM);
    rig.send(conn, &frames(&[StreamFrame::Run { terminal: false, tool: b"op" }]));
    for _ in 0..40 {
        if rig.closed(conn).is_none() {
            rig.send(conn, &frames(&[list(ListName::Env, &[b'x'; 60_000], false)]));
        }
    }
    assert!(got(&mut rig, conn)[0].starts_with("failed Misbehaved"));
    let slow = rig.connect(SHIM);
    rig.send(slow, b"\0\0");
    rig.pass(RUN_TIMEOUT);
    assert!(got(&mut rig, slow)[0].starts_with("failed Misbehaved"));
    assert!(rig.take_seen().is_empty());
    assert_eq!(rig.agent.held_bytes(), 0);
}

#[test]
fn many_descriptions_share_a_cap() {
    let mut rig = Rig::up();
    let mut refused = 0;
    for _ in 0..12 {
        let conn = rig.connect(SHIM);
        rig.send(conn, &frames(&[StreamFrame::Run { terminal: false, tool: b"op" }]));
        for _ in 0..30 {
            if rig.closed(conn).is_none() {
                rig.send(conn, &frames(&[list(ListName::Env, &[b'x'; 60_000], false)]));
            }
        }
        refused += usize::from(rig.closed(conn).is_some());
    }
    assert!(refused > 0 && rig.agent.held_bytes() <= RUNS_BYTES_MAX + FRAME_BYTES_MAX);
}

#[test]
fn runs_wait_for_the_link_and_hear_when_it_does_not_come() {
    let mut rig = Rig::down();
    let conn = rig.connect(SHIM);
    rig.send(conn, &description());
    rig.send(conn, &frames(&[StreamFrame::Signal { number: 15 }]));
    rig.pass_ms(500);
    rig.server_comes();
    let seen = rig.take_seen();
    assert_eq!((seen.len(), seen.last()), (6, Some(&Seen::Signal(1, 15))));
    rig.server_goes();
    assert_eq!(
        got(&mut rig, conn),
        ["failed OutcomeUnknown: the link to the server was lost; the outcome is unknown"]
    );
    rig.pass(OUTAGE_WAIT);
    let conn = rig.connect(SHIM);
    rig.send(conn, &description());
    assert_eq!(got(&mut rig, conn), ["failed NotStarted: not started: the connection to the server broke"]);
    let mut rig = Rig::up();
    rig.server_reads = false;
    let conn = rig.connect(SHIM);
    rig.send(conn, &description());
    rig.server_goes();
    assert!(got(&mut rig, conn)[0].starts_with("failed NotStarted"));
}

#[test]
fn a_drain_lets_runs_finish_and_starts_none() {
    let (mut rig, conn) = running();
    rig.handle(Input::Drain);
    let late = rig.connect(SHIM);
    assert_eq!(got(&mut rig, late), ["failed NotStarted: not started: the agent is stopping"]);
    rig.server().send(OWN, &StreamFrame::Exit { value: 0, signaled: false, core: false });
    rig.server().close(OWN);
    rig.pump();
    assert_eq!(got(&mut rig, conn), ["exit 0 false"]);
    assert!(rig.drained);
}

#[test]
fn a_shim_hears_of_one_end_whatever_it_says_after_it() {
    let (mut rig, conn) = running();
    rig.client(conn).reads = false;
    let input = frames(&[StreamFrame::Signal { number: 2 }, StreamFrame::Signal { number: 15 }]);
    let (head, tail) = input.split_at(input.len() - 8);
    rig.server().send(OWN, &StreamFrame::Exit { value: 0, signaled: false, core: false });
    rig.server().close(OWN);
    rig.pump();
    rig.send(conn, head);
    rig.send(conn, tail);
    rig.client(conn).reads = true;
    rig.pump();
    assert_eq!(got(&mut rig, conn), ["exit 0 false"]);
}

#[test]
fn a_shim_that_is_stopped_is_waited_for() {
    let (mut rig, conn) = running();
    rig.client(conn).reads = false;
    rig.server().send_data(OWN, Channel::Stdout, b"late", true, false);
    rig.server().send(OWN, &StreamFrame::Exit { value: 0, signaled: false, core: false });
    rig.server().close(OWN);
    rig.pump();
    rig.pass(Duration::from_secs(3600));
    assert_eq!(rig.closed(conn), None);
    rig.client(conn).reads = true;
    rig.pump();
    assert_eq!(got(&mut rig, conn), ["Stdout late true", "exit 0 false"]);
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
}
