//! `carapace-debug demo`: the whole product on one machine, in one command, each step checking itself.

mod calls;
mod events;
mod stage;
mod step;
mod tools;

use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::upstream::Event;

use self::stage::Stage;
use self::step::Step;
use crate::failure::Failure;
use crate::output::{Format, Output, Style};

/// What makes a step.
type Act = fn(&mut Stage) -> Result<Step, Failure>;

/// The pause between two events while the demo is left running.
const SERVED_EVENT_EVERY: Duration = Duration::from_secs(5);

/// Starts an upstream that speaks signal-cli's API, a server, an agent and a shim, on free ports and in a temporary folder;
/// tries what is allowed and what is not; shows what the client saw, and what the audit log says; cleans up.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running afterwards, until Ctrl-C, and print how to reach it.
    #[arg(long)]
    serve: bool,
    /// A real signal-cli daemon in place of the one built in, as http://HOST:PORT. Nothing is sent through it.
    #[arg(long, value_name = "URL", value_parser = http_url)]
    upstream: Option<String>,
}

fn http_url(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("http://").ok_or("it begins with http://")?.trim_end_matches('/');
    if authority.is_empty() || authority.contains(|c: char| c.is_whitespace() || "/?#@\"\\".contains(c)) {
        return Err("as in http://127.0.0.1:8080".to_owned());
    }
    Ok(format!("http://{authority}"))
}

/// Runs the demo; whether everything was as it should be.
pub(crate) fn run(args: &Args, output: &mut Output) -> Result<bool, Failure> {
    let start = Instant::now();
    let mut stage = Stage::set_up(args.upstream.as_deref(), output)?;
    stage.introduce(output)?;
    let acts: [Act; 8] = [
        calls::allowed,
        calls::denied_recipient,
        calls::denied_method,
        calls::batch,
        events::stream,
        tools::output,
        tools::input,
        tools::denied,
    ];
    let mut wrong = 0;
    let mut checks = 0;
    for (number, act) in (1..).zip(acts) {
        let step = act(&mut stage)?;
        checks += step.checks();
        wrong += step.wrong();
        step.print(number, acts.len(), output)?;
        output.flush()?;
    }
    let took = format!("{} steps, {checks} checks, {:.1} s", acts.len(), start.elapsed().as_secs_f64());
    conclude(wrong, &took, output)?;
    if args.serve {
        serve(&mut stage, output)?;
    }
    Ok(wrong == 0)
}

fn conclude(wrong: usize, took: &str, output: &mut Output) -> Result<(), Failure> {
    if output.format() == Format::Json {
        return Ok(());
    }
    let (style, verdict) = match wrong {
        0 => (Style::Good, "Everything was as it should be.".to_owned()),
        _ => (Style::Bad, format!("{wrong} of them not as it should be.")),
    };
    let verdict = output.paint(style, &verdict);
    output.line(format_args!("\n{} {}", verdict, output.paint(Style::Faint, &format!("({took})"))))?;
    Ok(())
}

/// Leaves everything running, with an event now and then.
fn serve(stage: &mut Stage, output: &mut Output) -> Result<(), Failure> {
    stage.explain(output)?;
    output.flush()?;
    for number in 1_u64.. {
        thread::sleep(SERVED_EVENT_EVERY);
        if let Some(why) = stage.who_ended()? {
            return Err(Failure::Unavailable(why));
        }
        stage.emit(&Event::receive(events::envelope(&format!("event {number}"))));
    }
    Ok(())
}
