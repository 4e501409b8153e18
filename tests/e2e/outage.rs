//! Daemons that die, and come back.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::rig::Daemon;
use carapace_debug::upstream::Fault;
use nix::sys::signal::Signal;

use crate::kit::{Connection, LONG, Setup, debug, policy_with_tools, timed, wait_until};

const VERSION: &str = r#"{"jsonrpc":"2.0","id":"v","method":"version"}"#;

fn setup() -> Setup {
    Setup::policy(policy_with_tools(&[]))
}

/// docs/http.md: "Without a server a call is refused within a second of the loss, as not started (503)."
#[test]
fn without_a_server_calls_are_refused_within_a_second() {
    let mut site = setup().prepare();
    // An address where nobody listens.
    site.start_server();
    site.kill_server();
    site.start_agent();
    for _ in 0..3 {
        let (answer, took) = timed(|| site.call(VERSION));
        assert_eq!((answer.status, answer.code()), (503, -32004));
        assert_eq!(answer.json()["id"], "v");
        assert!(answer.field("retry-after").is_some());
        assert!(took < Duration::from_millis(1200), "{took:?}");
    }
    let health = site.get("/health");
    assert_eq!(health.status, 503);
    assert_ne!(health.json()["status"], "ok");
    assert_eq!(site.events("/api/v1/events").head.status, 503);
}

/// docs/http.md: "The agent recovers by itself within a second of the server's return."
#[test]
fn the_agent_recovers_within_a_second_of_the_server_s_return() {
    let mut site = setup().start();
    assert_eq!(site.call(VERSION).status, 200);
    site.kill_server();
    wait_until("the outage is noticed", LONG, || site.call(VERSION).status == 503);
    site.start_server();
    let (_, took) = timed(|| wait_until("a call works", LONG, || site.call(VERSION).status == 200));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// docs/http.md: "The agent recovers by itself within a second of the server's return": nobody calls
/// meanwhile.
#[test]
fn the_agent_recovers_by_itself() {
    let mut site = setup().start();
    site.kill_server();
    assert!(site.agent().wait_for_log("nobody listens", LONG), "{:?}", site.agent().log());
    wait_until("health tells of it", LONG, || site.get("/health").status == 503);
    site.start_server();
    let (_, took) = timed(|| wait_until("the link is back", LONG, || site.get("/health").status == 200));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(site.call(VERSION).status, 200);
}

/// docs/http.md: "A call in a short outage only takes longer."
#[test]
fn a_call_in_a_short_outage_only_takes_longer() {
    let mut site = setup().start();
    site.kill_server();
    let mut connection = site.connect();
    connection.call(VERSION);
    site.start_server();
    assert_eq!(connection.answer().json()["result"]["version"], "0.14.4");
}

/// docs/http.md: "One that ran when the session was lost has an unknown outcome (504): it is never started
/// twice."
#[test]
fn a_call_that_runs_when_the_server_dies_has_an_unknown_outcome() {
    let mut site = setup().start();
    site.upstream.set_fault(Some(Fault::Stall));
    let mut connection = site.connect();
    connection.call(VERSION);
    assert!(site.upstream.wait_for_requests(1, LONG));
    site.kill_server();
    let (answer, took) = timed(|| connection.answer());
    assert_eq!((answer.status, answer.code()), (504, -32005));
    assert_eq!(answer.json()["id"], "v");
    assert!(answer.text().contains("unknown"), "{}", answer.text());
    assert!(took < Duration::from_secs(2), "{took:?}");
    site.upstream.set_fault(None);
    site.start_server();
    wait_until("calls work again", LONG, || site.call(VERSION).status == 200);
    let first =
        site.upstream.requests().into_iter().filter(|request| request.received < Instant::now()).count();
    assert_eq!(first, 2, "the lost call and the new one");
}

/// docs/http.md: "it is never started twice": every caller is answered while the server dies again and again,
/// and every answer is true.
#[test]
fn callers_are_answered_whatever_happens_to_the_server() {
    let mut site = setup().start();
    let addr = site.agent_addr();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (stop, site) = (&stop, &mut site);
    let outcomes = thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                scope.spawn(move || {
                    let mut outcomes = Vec::new();
                    let mut number = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        number += 1;
                        let id = format!("{caller}-{number}");
                        let mut connection = Connection::open(addr);
                        connection.call(format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"version"}}"#));
                        let answer = connection.answer();
                        assert_eq!(answer.json()["id"], id.as_str(), "{answer:?}");
                        outcomes.push(answer.status);
                    }
                    outcomes
                })
            })
            .collect();
        for _ in 0..3 {
            let before = site.upstream.requests().len();
            wait_until("calls go through", LONG, || site.upstream.requests().len() > before + 20);
            site.kill_server();
            site.start_server();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(outcomes.iter().all(|status| [200, 503, 504].contains(status)), "{outcomes:?}");
    let answered = outcomes.iter().filter(|status| **status == 200).count();
    let unknown = outcomes.iter().filter(|status| **status == 504).count();
    let seen = site.upstream.requests().len();
    assert!(
        seen >= answered && seen <= answered + unknown,
        "{seen} seen, {answered} answered, {unknown} unknown"
    );
}

/// docs/http.md: "An agent or a server that is gone leaves no stream, call or job behind"
#[test]
fn a_killed_agent_s_calls_are_given_up() {
    let mut site = setup().start();
    site.upstream.set_fault(Some(Fault::Stall));
    let mut connection = site.connect();
    connection.call(VERSION);
    assert!(site.upstream.wait_for_requests(1, LONG));
    site.kill_agent();
    wait_until("the upstream's connection is closed", Duration::from_secs(3), || {
        site.upstream.open_connections() == 0
    });
    let records = site.wait_for_records(2);
    assert_eq!(records[1]["event"], "outcome");
    assert!(records[1]["error"].is_string(), "{}", records[1]);
    site.upstream.set_fault(None);
    site.start_agent();
    assert_eq!(site.call(VERSION).status, 200);
}

/// docs/deploy.md: "what runs is finished (up to 30 s), nothing new is taken on"
#[test]
fn a_running_call_finishes_when_the_server_drains() {
    let mut site = setup().start();
    site.upstream.fault_once(Fault::Delay(Duration::from_millis(700)));
    let mut connection = site.connect();
    connection.call(VERSION);
    assert!(site.upstream.wait_for_requests(1, LONG));
    site.server().signal(Signal::SIGTERM).unwrap();
    assert!(site.server().wait_for_log("drain", LONG), "{:?}", site.server().log());
    let refused = site.call(VERSION);
    assert_eq!((refused.status, refused.code()), (503, -32004));
    assert_eq!(connection.answer().json()["result"]["version"], "0.14.4");
    assert_eq!(site.server().wait(LONG).unwrap().unwrap().code(), Some(0));
    assert_eq!(site.upstream.requests().len(), 1);
    let records = site.records();
    assert!(
        records.iter().any(|record| record["event"] == "outcome" && record["status"] == 200),
        "{records:?}"
    );
}

/// docs/deploy.md: "what runs is finished (up to 30 s)": also when it is the agent that is to end.
#[test]
fn a_running_call_finishes_when_the_agent_drains() {
    let mut site = setup().start();
    site.upstream.fault_once(Fault::Delay(Duration::from_millis(500)));
    let mut connection = site.connect();
    connection.call(VERSION);
    assert!(site.upstream.wait_for_requests(1, LONG));
    site.agent().signal(Signal::SIGTERM).unwrap();
    let answer = connection.answer();
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert_eq!(site.agent().wait(LONG).unwrap().unwrap().code(), Some(0));
}

/// docs/deploy.md: "a second one ends at once"
#[test]
fn a_second_signal_ends_a_daemon_at_once() {
    let mut site = setup().start();
    site.upstream.set_fault(Some(Fault::Stall));
    let mut connection = site.connect();
    connection.call(VERSION);
    assert!(site.upstream.wait_for_requests(1, LONG));
    site.server().signal(Signal::SIGTERM).unwrap();
    assert!(site.server().wait_for_log("drain", LONG), "{:?}", site.server().log());
    assert!(site.server().wait(Duration::from_millis(200)).unwrap().is_none(), "a call still runs");
    site.server().signal(Signal::SIGTERM).unwrap();
    let (ended, took) = timed(|| site.server().wait(LONG).unwrap());
    assert!(ended.is_some() && took < Duration::from_secs(1), "{ended:?} {took:?}");
    assert_eq!((connection.answer().status), 504);
}

/// docs/http.md: "Half a request holds nobody else up, and does not keep an agent from ending."
#[test]
fn half_requests_do_not_keep_an_agent_from_ending() {
    let mut site = setup().start();
    let mut kept = site.connect();
    kept.call(VERSION);
    assert_eq!(kept.answer().status, 200);
    let mut fresh = site.connect();
    let mut half = site.connect();
    half.send("GET /health HT");
    let mut shim = UnixStream::connect(site.path("agent.sock")).unwrap();
    shim.write_all(b"\0\0\0").unwrap();
    // Whatever came before it has been read when this is answered.
    assert_eq!(site.call(VERSION).status, 200);
    site.agent().signal(Signal::SIGTERM).unwrap();
    assert!(kept.is_ended() && fresh.is_ended());
    assert_eq!(half.answer().status, 503);
    drop(half);
    let (code, took) = timed(|| site.agent().wait(LONG).unwrap().unwrap().code());
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// docs/deploy.md: "what runs is finished": links of agents are no work.
#[test]
fn a_linked_server_with_nothing_to_do_ends_at_once() {
    let mut site = setup().start();
    site.server().signal(Signal::SIGTERM).unwrap();
    let (code, took) = timed(|| site.server().wait(LONG).unwrap().unwrap().code());
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Of two agents of one server one goes, and the other stays.
#[test]
fn agents_are_apart() {
    let mut site = setup().start();
    let launch = site.agent_launch().env("CARAPACE_HTTP_PORT", "0").env("CARAPACE_SERVER_HOST", "localhost");
    let launch = launch.env("CARAPACE_CLI_SOCKET", site.path("other.sock"));
    let other = Daemon::start(&launch, 1).unwrap();
    let call_other = || {
        let mut connection = Connection::open(other.addr());
        connection.call(VERSION);
        connection.answer().status
    };
    wait_until("the other's link", LONG, || call_other() == 200);
    let health = debug(&["health", "--port", &site.server_port()]);
    assert!(health.out().starts_with("Server is healthy, 3 connections\n"), "{}", health.out());
    site.upstream.set_fault(Some(Fault::Stall));
    let mut stalled = site.connect();
    stalled.call(VERSION);
    assert!(site.upstream.wait_for_requests(2, LONG));
    site.upstream.set_fault(None);
    assert_eq!(call_other(), 200);
    site.kill_agent();
    assert_eq!(call_other(), 200);
}
