//! Event streams to clients.

use super::*;
use crate::limits::*;

const FIELDS: [(&str, &str); 1] = [("Content-Type", "text/event-stream")];

fn open(rig: &mut Rig) -> ConnId {
    let (conn, _) = rig.ask(EVENTS);
    rig.respond(1, 200, ResponseBody::Events, &FIELDS);
    let head = rig.received(conn);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Transfer-Encoding: chunked"), "{head}");
    conn
}

#[test]
fn the_head_and_each_event_reach_the_client_at_once() {
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    rig.data(1, b"data: 1\n\n", false);
    assert_eq!(rig.received(conn), "9\r\ndata: 1\n\n\r\n");
    rig.data(1, b":\n", false);
    assert_eq!(rig.received(conn), "2\r\n:\n\r\n");
    rig.pass(Duration::from_secs(3600));
    assert_eq!(rig.closed(conn), None);
    rig.data(1, b"", true);
    assert_eq!(rig.received(conn), "0\r\n\r\n");
    assert_eq!(rig.closed(conn), None, "the connection is good for another request");
}

#[test]
fn a_drain_does_not_call_a_stream_unstarted_that_may_have_started() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask(EVENTS);
    rig.handle(Input::Drain);
    let answer = rig.received(conn);
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("-32005"), "{answer}");
}

#[test]
fn an_event_in_fragments_is_written_whole_and_paid_for_while_it_grows() {
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    let event = format!("data: {}\n\n", "x".repeat(3_000_000));
    let (head, tail) = event.as_bytes().split_at(1_500_000);
    rig.server().send_data(StreamId(1), Channel::Main, head, false, true);
    rig.pump();
    assert_eq!(rig.received(conn), "");
    rig.server().send_data(StreamId(1), Channel::Main, tail, false, false);
    rig.pump();
    let expected = format!("{:x}\r\n{event}\r\n", event.len());
    assert_eq!(rig.received(conn), expected);
    assert!(!rig.server().is_clogged(StreamId(1)));
}

#[test]
fn an_event_without_end_is_refused() {
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    rig.server().send_data(StreamId(1), Channel::Main, &vec![b'x'; EVENT_BYTES_MAX + 1], false, true);
    rig.pump();
    assert_eq!(rig.take_seen().last(), Some(&Seen::Reset(1, Fault::Misbehaved)));
    assert_eq!(rig.received(conn), "0\r\n\r\n", "the stream ends, and not within an event");
}

#[test]
fn a_client_that_does_not_read_is_paused_then_disconnected() {
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    rig.client(conn).reads = false;
    let event = format!("data: {}\n\n", "x".repeat(4_000_000));
    for _ in 0..3 {
        rig.server().send_data(StreamId(1), Channel::Main, event.as_bytes(), false, false);
        rig.pump();
    }
    let held = rig.agent.held_bytes();
    assert!(held < EVENT_BYTES_MAX + 2 * usize::try_from(CREDIT_MAX).unwrap(), "{held}");
    rig.pass(READER_TIMEOUT);
    assert_eq!(rig.closed(conn), Some(Closing::Reset));
    assert_eq!(rig.take_seen().last(), Some(&Seen::Reset(1, Fault::Cancelled)));
    assert_eq!(rig.agent.conns.len(), 0);
}

#[test]
fn the_time_of_a_reader_begins_with_what_it_has_to_read() {
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    rig.pass(Duration::from_secs(3600));
    rig.client(conn).reads = false;
    rig.data(1, b"data: 1\n\n", false);
    rig.pass(READER_TIMEOUT / 2);
    rig.client(conn).reads = true;
    rig.pump();
    assert_eq!(rig.received(conn), "9\r\ndata: 1\n\n\r\n");
}

#[test]
fn a_client_that_leaves_ends_its_stream_at_once() {
    for lost in [false, true] {
        let mut rig = Rig::up();
        let conn = open(&mut rig);
        rig.take_seen();
        if lost {
            rig.handle(Input::Lost { conn, loss: Loss::Reset });
        } else {
            rig.eof(conn);
            assert_eq!(rig.closed(conn), Some(Closing::Orderly));
        }
        assert_eq!(rig.take_seen(), [Seen::Reset(1, Fault::Cancelled)]);
    }
}

#[test]
fn an_upstream_that_is_slow_to_answer_does_not_hold_up_the_head() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask(EVENTS);
    rig.pass(STREAM_HEAD_DELAY);
    let head = rig.received(conn);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Content-Type: text/event-stream"), "{head}");
    assert!(head.ends_with("\r\n\r\n3\r\n:\n\n\r\n"), "{head}");
    rig.respond(1, 200, ResponseBody::Events, &FIELDS);
    rig.data(1, b"data: 1\n\n", false);
    assert_eq!(rig.received(conn), "9\r\ndata: 1\n\n\r\n");
    // An error that comes too late to be told ends the stream.
    for late in ["response", "reset"] {
        let mut rig = Rig::up();
        let (conn, _) = rig.ask(EVENTS);
        rig.pass(STREAM_HEAD_DELAY);
        rig.received(conn);
        if late == "reset" {
            rig.reset(1, Fault::BadUpstream, "");
        } else {
            rig.respond(1, 404, ResponseBody::None, &[]);
        }
        assert_eq!(rig.received(conn), "0\r\n\r\n");
        assert_eq!(rig.closed(conn), None);
        assert!(rig.agent.hub.streams.is_empty());
    }
    // A call is no stream, however long it takes.
    let (conn, _) = rig.ask(&call("1"));
    rig.pass(STREAM_HEAD_DELAY * 3);
    assert_eq!(rig.received(conn), "");
}

#[test]
fn http_1_0_clients_see_the_end_of_the_stream_as_the_end_of_the_connection() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask("GET /api/v1/events HTTP/1.0\r\nHost: localhost:8080\r\n\r\n");
    rig.respond(1, 200, ResponseBody::Events, &FIELDS);
    rig.data(1, b"data: 1\n\n", false);
    rig.reset(1, Fault::BadUpstream, "");
    assert!(rig.received(conn).ends_with("\r\n\r\ndata: 1\n\n"));
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
}

#[test]
fn a_lost_link_and_a_drain_end_streams_in_order() {
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    rig.server().send_data(StreamId(1), Channel::Main, b"data: ha", false, true);
    rig.pump();
    rig.server_goes();
    assert_eq!(rig.received(conn), "0\r\n\r\n");
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    rig.take_seen();
    rig.handle(Input::Drain);
    assert_eq!(rig.received(conn), "0\r\n\r\n");
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
    assert_eq!(rig.take_seen(), [Seen::Reset(1, Fault::Cancelled)]);
    assert!(rig.drained);
}

#[test]
fn a_thousand_streams_get_an_event_with_one_write_each() {
    let mut rig = Rig::up();
    rig.agent.http_conns_max = 2_000;
    let conns: Vec<ConnId> = (1..=1000)
        .map(|stream| {
            let (conn, _) = rig.ask(EVENTS);
            rig.respond(stream, 200, ResponseBody::Events, &FIELDS);
            rig.received(conn);
            conn
        })
        .collect();
    for stream in 1..=1000 {
        rig.server().send_data(StreamId(stream), Channel::Main, b"data: x\n\n", false, false);
    }
    let bytes = rig.server().unsent().to_vec();
    rig.server().sent(bytes.len());
    let source = Source::Conn(rig.link.unwrap());
    rig.agent.handle(rig.now, Input::Bytes { source, bytes: &bytes });
    let mut writes = 0;
    while let Some(output) = rig.agent.poll_output() {
        assert!(matches!(output, Output::Write(_)), "{output:?}");
        writes += 1;
    }
    assert!(writes <= 1001, "{writes} writes");
    rig.pump();
    assert!(conns.iter().all(|conn| rig.clients[conn].received == b"9\r\ndata: x\n\n\r\n"));
}

/// "RSS per idle event stream, server + agent: at most 4 KiB" (goals): what the agent keeps for one is a fraction of it.
#[test]
fn an_idle_stream_is_small() {
    let mut rig = Rig::up();
    let conn = open(&mut rig);
    rig.data(1, b"data: 1\n\n", false);
    rig.pass_ms(100);
    rig.received(conn);
    assert_eq!(rig.agent.held_bytes(), 0);
    assert!(size_of::<HttpConn>() <= 400, "{}", size_of::<HttpConn>());
}
