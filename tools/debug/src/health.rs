//! `carapace-debug health`: whether a server answers on its link port, and how it is.

use std::time::{Duration, Instant};

use carapace_client::DEFAULT_PORT;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Format, Output, Style, scrubbed};

/// Ask a server how it is. Exits with 1 when it does not take on new calls, and with 69 when it does not answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the server is.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port that it listens on for agents.
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// How long to wait for an answer.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Prints what the server says; whether it is healthy.
pub(crate) fn run(args: &Args, output: &mut Output) -> Result<bool, Failure> {
    let start = Instant::now();
    let health = carapace_client::health(&args.host, args.port, args.timeout).map_err(|error| {
        Failure::Unavailable(format!("no healthy server at {}:{}: {error}", args.host, args.port))
    })?;
    let elapsed = start.elapsed();
    let is_healthy = health.status == "ok";
    if output.format() == Format::Json {
        output.json(&json!({
            "status": health.status, "connections": health.connections, "version": health.version,
            "uptime_secs": health.uptime_secs, "policy_version": health.policy, "calls": health.calls,
            "denied": health.denied, "running": health.running, "response_us": u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        }))?;
        return Ok(is_healthy);
    }
    let plural = if health.connections == 1 { "" } else { "s" };
    let (style, state) =
        if is_healthy { (Style::Good, "healthy") } else { (Style::Odd, health.status.as_str()) };
    let state = output.paint(style, &scrubbed(state));
    output.line(format_args!("Server is {state}, {} connection{plural}", health.connections))?;
    let up = humantime::format_duration(Duration::from_secs(health.uptime_secs));
    let rows = [
        ("version", health.version),
        ("up", up.to_string()),
        ("policy", health.policy),
        ("calls", format!("{}, of them denied {}, running {}", health.calls, health.denied, health.running)),
        ("answered", format!("in {:.1} ms", elapsed.as_secs_f64() * 1_000.0)),
    ];
    for (label, text) in rows {
        output.line(format_args!(
            "{}  {}",
            output.paint(Style::Faint, &format!("{label:>10}")),
            scrubbed(&text)
        ))?;
    }
    Ok(is_healthy)
}
