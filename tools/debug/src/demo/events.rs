//! The step that watches an event stream.

use std::io::{BufRead, BufReader};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::upstream::{Event, Upstream};
use serde_json::{Value, json};

use super::stage::Stage;
use super::step::Step;
use crate::failure::Failure;

/// Events sent, and the pause between two.
const EVENTS: usize = 20;
const EVERY: Duration = Duration::from_millis(50);
/// An event later than this is late.
const LATE: Duration = Duration::from_millis(100);
/// How long the head of a stream, or a last event, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a real daemon's stream is watched.
const WATCH: Duration = Duration::from_secs(3);

/// What a client of the stream sees.
#[derive(Debug)]
enum Seen {
    /// The response has begun.
    Head { status: u16, kind: String },
    /// An event's data.
    Data { data: String, at: Instant },
}

/// The data of an event as signal-cli sends them.
pub(super) fn envelope(message: &str) -> String {
    let envelope = json!({ "sourceNumber": "+15550100002", "dataMessage": { "message": message } });
    json!({ "envelope": envelope, "account": "+15550100001" }).to_string()
}

pub(super) fn stream(stage: &mut Stage) -> Result<Step, Failure> {
    let mut step = Step::new("An event stream", "The VM listens for messages; the upstream has some.");
    let url = stage.url("/api/v1/events");
    step.show("request", format!("GET {url}"));
    let (sender, seen) = mpsc::channel();
    let client = stage.client().clone();
    let watching =
        thread::Builder::new().name("events".to_owned()).spawn(move || watch(&client, &url, &sender))?;
    let start = Instant::now();
    let head = seen.recv_timeout(PATIENCE);
    let opened = start.elapsed();
    let Ok(Seen::Head { status, kind }) = head else {
        step.check("the stream opens", false, || "no answer within 5 s".to_owned());
        return Ok(step);
    };
    step.show("answer", format!("{status} {kind}, after {:.1} ms", opened.as_secs_f64() * 1_000.0));
    step.check_eq("it is an event stream", (status, kind.as_str()), (200, "text/event-stream"));
    match stage.stand_in() {
        Some(upstream) => {
            let sent = emit_all(upstream);
            judge(&mut step, &sent, &received(&seen, EVENTS, PATIENCE));
            upstream.end_streams();
            step.check("the upstream ends it: the client sees its end", ends(&seen), || {
                "still open".to_owned()
            });
            // The thread ends with the stream.
            let _ = watching.join();
        }
        None => {
            let events = received(&seen, EVENTS, WATCH);
            step.show("events", format!("{} in {} s", events.len(), WATCH.as_secs()));
        }
    }
    // What remains of a real daemon's stream is closed, and recorded, when the demo ends.
    step.records(stage.records(if stage.stand_in().is_some() { 2 } else { 1 })?);
    step.check_eq("the record says allow", step.count_records("policy_result", "allow"), 1);
    Ok(step)
}

fn watch(client: &ureq::Agent, url: &str, seen: &Sender<Seen>) {
    let Ok(mut response) = client.get(url).header("Accept", "text/event-stream").call() else { return };
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
    let head = Seen::Head { status: response.status().as_u16(), kind: kind.unwrap_or_default().to_owned() };
    // Nobody looks any more when sending fails.
    let _ = seen.send(head);
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let Ok(line) = line else { return };
        let at = Instant::now();
        let Some(data) = line.strip_prefix("data:") else { continue };
        if seen.send(Seen::Data { data: data.trim_start().to_owned(), at }).is_err() {
            return;
        }
    }
}

/// Sends the events; when each was.
fn emit_all(upstream: &Upstream) -> Vec<Instant> {
    // The rhythm of messages, not of a benchmark.
    (0..EVENTS)
        .map(|number| {
            let event = Event::receive(envelope(&format!("message {number}")));
            let sent = Instant::now();
            upstream.emit(&event);
            thread::sleep(EVERY);
            sent
        })
        .collect()
}

fn received(seen: &mpsc::Receiver<Seen>, count: usize, patience: Duration) -> Vec<(String, Instant)> {
    let deadline = Instant::now() + patience;
    let mut events = Vec::new();
    while events.len() < count {
        match seen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Seen::Data { data, at }) => events.push((data, at)),
            Ok(Seen::Head { .. }) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    events
}

fn judge(step: &mut Step, sent: &[Instant], received: &[(String, Instant)]) {
    let message = |data: &str| {
        let data: Value = serde_json::from_str(data).ok()?;
        data.pointer("/envelope/dataMessage/message")?.as_str().map(str::to_owned)
    };
    let wanted: Vec<_> = (0..EVENTS).map(|number| Some(format!("message {number}"))).collect();
    let found: Vec<_> = received.iter().map(|(data, _)| message(data)).collect();
    if let Some((data, _)) = received.first() {
        step.show("first", data);
    }
    let mut latencies: Vec<Duration> =
        sent.iter().zip(received).map(|(sent, (_, at))| at.saturating_duration_since(*sent)).collect();
    latencies.sort_unstable();
    let middle = latencies.get(latencies.len() / 2);
    if let (Some(least), Some(middle), Some(most)) = (latencies.first(), middle, latencies.last()) {
        let ms = |latency: &Duration| latency.as_secs_f64() * 1_000.0;
        let (least, middle, most) = (ms(least), ms(middle), ms(most));
        step.show(
            "latency",
            format!(
                "min {least:.2} ms, median {middle:.2} ms, max {most:.2} ms, from the upstream to the client"
            ),
        );
    }
    step.check("all 20 events came, once and in order", found == wanted, || {
        format!("{} came: {found:?}", found.len())
    });
    let late = latencies.iter().filter(|latency| **latency >= LATE).count();
    step.check_eq("none was later than 100 ms", late, 0);
}

/// Whether the stream ends soon.
fn ends(seen: &mpsc::Receiver<Seen>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match seen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}
