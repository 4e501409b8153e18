//! The steps that run tools through the shim.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Instant;

use carapace_debug::rig;

use super::stage::{Stage, on_path};
use super::step::Step;
use crate::failure::Failure;

/// What is piped into a tool: more than any buffer on the way holds.
const INPUT_LINES: usize = 200_000;

/// Runs a command to its end, with this on its standard input.
fn run(command: &mut Command, input: Option<Vec<u8>>) -> Result<Output, Failure> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = rig::spawn(command)?;
    let feeding = child.stdin.take().zip(input).map(|(mut stdin, input)| {
        // A tool that ends before it has read everything is its own affair.
        thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let output = child.wait_with_output()?;
    if let Some(feeding) = feeding {
        let _ = feeding.join();
    }
    Ok(output)
}

fn native(tool: &str, args: &[&str]) -> Command {
    let mut command = Command::new(on_path(tool).unwrap_or_else(|| tool.into()));
    command.args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a tool both ways, shows it, and checks that they cannot be told apart.
fn both(
    stage: &mut Stage,
    step: &mut Step,
    tool: &str,
    args: &[&str],
    input: Option<Vec<u8>>,
) -> Result<(), Failure> {
    let start = Instant::now();
    let ours = run(&mut stage.tool(tool, args), input.clone())?;
    let elapsed = start.elapsed().as_secs_f64() * 1_000.0;
    let theirs = run(&mut native(tool, args), input)?;
    step.show("output", text(&ours.stdout));
    if !ours.stderr.is_empty() {
        step.show("stderr", text(&ours.stderr));
    }
    step.show("ended", format!("{} after {elapsed:.1} ms", ours.status));
    step.records(stage.records(2)?);
    step.check("its output is that of the native tool, byte for byte", ours.stdout == theirs.stdout, || {
        format!("natively {:?}", text(&theirs.stdout))
    });
    step.check_eq("so is its end", ours.status, theirs.status);
    step.check_eq("the record says allow", step.count_records("policy_result", "allow"), 1);
    step.check_eq("the log has its exit code", step.count_records("exit_code", 0), 1);
    Ok(())
}

pub(super) fn output(stage: &mut Stage) -> Result<Step, Failure> {
    let mut step = Step::new("A tool", "A symlink to the shim, named uname, runs uname on the host.");
    step.show("command", "uname -sr");
    both(stage, &mut step, "uname", &["-sr"], None)?;
    Ok(step)
}

pub(super) fn input(stage: &mut Stage) -> Result<Step, Failure> {
    let mut step = Step::new("A tool that reads", "Standard input is streamed to the host as it comes.");
    let input: Vec<u8> =
        (0..INPUT_LINES).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    step.show("command", format!("(200,000 lines, {} bytes) | wc -lc", input.len()));
    both(stage, &mut step, "wc", &["-lc"], Some(input))?;
    Ok(step)
}

pub(super) fn denied(stage: &mut Stage) -> Result<Step, Failure> {
    let mut step = Step::new(
        "A denied command line",
        "The policy allows wc to count, and not to read a file of the host.",
    );
    step.show("command", "wc -c /etc/passwd");
    let output = run(&mut stage.tool("wc", &["-c", "/etc/passwd"]), None)?;
    step.show("stderr", text(&output.stderr));
    step.show("ended", output.status.to_string());
    step.records(stage.records(1)?);
    step.check_eq("the exit code is 126, denied by policy", output.status.code(), Some(126));
    let stderr = text(&output.stderr);
    step.check(
        "one line on standard error says so, nothing on standard output",
        output.stdout.is_empty() && stderr.starts_with("carapace:") && stderr.lines().count() == 1,
        || format!("{:?}, {stderr:?}", text(&output.stdout)),
    );
    step.check_eq("the record says deny", step.count_records("policy_result", "deny"), 1);
    step.check_eq("nothing was run", step.count_records("event", "outcome"), 0);
    Ok(step)
}
