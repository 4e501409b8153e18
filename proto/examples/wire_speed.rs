//! What the codecs cost: `cargo run --release -p carapace-proto --example wire_speed`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program, not the core"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use carapace_proto::wire::http1::{
    BodyDecoder, Framing, HeadLimits, HttpDate, ResponseMeta, host_is_allowed, parse_request, parse_response,
    parse_target, write_request_head, write_response_head,
};
use carapace_proto::wire::sse::{EventParser, EventView, Keep};

const OPENCLAW: &[u8] = b"POST /api/v1/rpc HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: keep-alive\r\n\
    Content-Type: application/json\r\nContent-Length: 193\r\n\r\n";
const BROWSER: &[u8] = b"GET /api/v1/events?account=%2B15551234567 HTTP/1.1\r\nHost: localhost:8080\r\n\
    Connection: keep-alive\r\nAccept: text/event-stream\r\nAccept-Language: en-GB,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nCache-Control: no-cache\r\nPragma: no-cache\r\nSec-Fetch-Dest: empty\r\n\
    Sec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-type: application/json\r\n\
    Content-length: 75\r\n\r\n";

/// Nanoseconds per call: the best of several runs, because others use this machine.
fn time<T>(mut call: impl FnMut() -> T) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..20 {
        let (start, mut calls) = (Instant::now(), 0_u32);
        while start.elapsed() < Duration::from_millis(20) {
            for _ in 0..64 {
                black_box(call());
            }
            calls += 64;
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    best * 1e9
}

fn heads() {
    let limits = HeadLimits::default();
    let parse =
        |bytes: &'static [u8]| time(|| parse_request(black_box(bytes), &limits).unwrap().unwrap().consumed);
    println!("request head, OpenClaw ({} bytes)     {:6.0} ns", OPENCLAW.len(), parse(OPENCLAW));
    println!("request head, browser ({} bytes)      {:6.0} ns", BROWSER.len(), parse(BROWSER));
    let admit = time(|| {
        let is_own = |host: &str| host_is_allowed(host, 8080, &[]);
        parse_target(black_box("/api/v1/rpc"), is_own).is_ok() && is_own(black_box("127.0.0.1:8080"))
    });
    println!("target and host judged                 {admit:6.0} ns");
    let response = time(|| parse_response(black_box(ANSWER), "POST", &limits).unwrap().unwrap().consumed);
    println!("response head ({} bytes)              {response:6.0} ns", ANSWER.len());

    let date = HttpDate::from_unix(784_111_777);
    let mut out = Vec::with_capacity(4096);
    let fields: [(&str, &[u8]); 1] = [("Content-Type", b"application/json")];
    let write = time(|| {
        out.clear();
        let meta = ResponseMeta {
            status: 200,
            date: Some(date.as_str()),
            framing: Framing::Length(75),
            keep_alive: true,
        };
        write_response_head(&mut out, &meta, black_box(fields)).unwrap();
        out.len()
    });
    println!("response head written ({} bytes)      {write:6.0} ns", out.len());
    let write = time(|| {
        out.clear();
        let (target, host) = black_box(("/api/v1/rpc", "127.0.0.1:8080"));
        write_request_head(&mut out, "POST", target, host, black_box(fields), Framing::Length(193)).unwrap();
        out.len()
    });
    println!("request head written ({} bytes)       {write:6.0} ns", out.len());
}

fn bodies() {
    let mut bytes = Vec::new();
    for _ in 0..64 {
        bytes.extend_from_slice(b"3f8\r\n");
        bytes.extend_from_slice(&[b'x'; 0x3f8]);
        bytes.extend_from_slice(b"\r\n");
    }
    let ns = time(|| {
        let (mut decoder, mut rest, mut len) = (BodyDecoder::chunked(), &bytes[..], 0);
        while !rest.is_empty() {
            let step = decoder.decode(rest).unwrap();
            len += step.data.len();
            rest = rest.get(step.consumed..).unwrap_or_default();
        }
        len
    });
    println!("chunked body, chunks of 1,016 bytes    {:6.1} ns/chunk", ns / 64.0);
}

fn stream(name: &str, event: &[u8], piece: usize, keep: impl Fn(&EventView<'_>) -> Keep) {
    let bytes = event.repeat((1 << 20) / event.len());
    let events = bytes.len() / event.len();
    let mut out = Vec::with_capacity(2 * bytes.len());
    let ns = time(|| {
        out.clear();
        let mut parser = EventParser::new(4 << 20);
        for piece in bytes.chunks(piece) {
            parser.feed(piece, &mut out, &keep).unwrap();
        }
        out.len()
    });
    let (len, events) =
        (f64::from(u32::try_from(bytes.len()).unwrap()), f64::from(u32::try_from(events).unwrap()));
    println!("{name:38} {:6.1} ns/event  {:6.2} GB/s", ns / events, len / ns);
}

fn main() {
    heads();
    bodies();
    let event = |len: usize| format!("event:receive\ndata:{}\n\n", "x".repeat(len - 21)).into_bytes();
    let all = |_: &EventView<'_>| Keep::Yes;
    stream("events of 100 bytes, reads of 64 KiB", &event(100), 1 << 16, all);
    stream("events of 200 bytes, reads of 64 KiB", &event(200), 1 << 16, all);
    stream("events of 300 bytes, reads of 64 KiB", &event(300), 1 << 16, all);
    stream("events of 200 bytes, one a read", &event(200), 200, all);
    stream("events of 200 bytes, reads of 77 bytes", &event(200), 77, all);
    let filter = |event: &EventView<'_>| {
        if event.event_type() == b"receive" && !event.data().is_empty() { Keep::Yes } else { Keep::No }
    };
    stream("the same, filtered by type", &event(200), 1 << 16, filter);
    stream("the same, all left out", &event(200), 1 << 16, |_| Keep::No);
    let crlf = format!("event: receive\r\ndata: {}\r\n\r\n", "x".repeat(175)).into_bytes();
    stream("events of 200 bytes with CRLF", &crlf, 1 << 16, all);
    stream("comments", b":\n", 1 << 16, all);
}
