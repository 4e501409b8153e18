//! Tools through the shim, beside the same tools run natively.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::rig::{self, Folder, Pair};

use crate::bench::{Bench, start_pair};
use crate::events::{Clock, Source};
use crate::process::{status, system_calls_from_start};
use crate::report::{Goal, Group, Row, tell};
use crate::stats::{figure, median};

/// What `head` and `cat` are given to carry.
const CARRIED_BYTES: u64 = 1 << 30;
/// A tool that prints, and then works on for a while.
const SLOW: [&str; 2] = ["-c", "echo first; sleep 0.3"];

struct Stage {
    pair: Pair,
    folder: Folder,
    _upstream: Source,
}

impl Stage {
    fn start(bench: &Bench) -> io::Result<Option<Self>> {
        let Some(binaries) = &bench.binaries else { return Ok(None) };
        let upstream = Source::start(Clock::new())?;
        let folder = Folder::create("carapace-bench")?;
        let pair = start_pair(binaries, &folder, upstream.addr())?;
        Ok(Some(Self { pair, folder, _upstream: upstream }))
    }

    /// The tool through the shim, and natively.
    fn both(&self, tool: &str, args: &[&str]) -> io::Result<[Command; 2]> {
        let (name, socket) = self.pair.shim_env();
        let link = self.folder.join("bin").join(tool);
        let link = if link.exists() { link } else { self.pair.shim(tool)? };
        let mut shim = Command::new(link);
        shim.args(args).env(name, socket);
        let mut native = Command::new(PathBuf::from("/bin").join(tool));
        native.args(args);
        Ok([shim, native])
    }
}

/// Measures a tool's start and end, its first byte, and what the shim itself costs.
pub(crate) fn start(bench: &Bench, runs: usize) -> io::Result<Vec<Group>> {
    let Some(stage) = Stage::start(bench)? else { return Ok(Vec::new()) };
    tell(&format!("`true` and a slow tool, through the shim and natively, {runs} times"));
    let found = alternately(stage.both("true", &[])?, runs, |command| {
        let start = Instant::now();
        let ended = rig::spawn(command)?.wait()?;
        if ended.success() {
            Ok(ms(start.elapsed()))
        } else {
            Err(io::Error::other(format!("`true` ended with {ended}")))
        }
    })?;
    let both =
        |what: &str, ours, theirs, goal| Row { what: what.to_owned(), ours, theirs, direct: None, goal };
    let [ours, theirs] = found.each_ref().map(|times| median(times.iter().copied()));
    let [our_best, their_best] = found.each_ref().map(|times| least_tenth(times));
    let mut rows = vec![
        both("`true`, median, ms", ours, theirs, Goal::AtMost(1.6)),
        both("the same, against exec", ours, theirs, Goal::RatioAtMost(2.0)),
        // What it takes when nothing else wants the processor: of use on a busy machine.
        both("`true`, the quickest tenth within, ms", our_best, their_best, Goal::Known),
    ];
    let [ours, theirs] = alternately(stage.both("sh", &SLOW)?, (runs / 20).max(3), first_byte)?.map(median);
    rows.push(both("first byte of a slow tool, ms", ours, theirs, Goal::AtMost(5.0)));
    let [mut shim, _] = stage.both("sh", &SLOW)?;
    rows.push(both("shim, peak RSS, MiB", Some(peak_mib(&mut shim)?), None, Goal::AtMost(1.5)));
    if bench.has_strace {
        let [shim, native] = stage.both("true", &[])?;
        let calls = |command: &Command| system_calls_from_start(command, stage.folder.path()).map(Some);
        rows.push(both("`true`, system calls here", calls(&shim)?, calls(&native)?, Goal::AtMost(45.0)));
    }
    Ok(vec![Group { title: "Tools".to_owned(), against: "exec", rows }])
}

/// Measures how fast bytes come out of a tool, and go into one.
pub(crate) fn output(bench: &Bench) -> io::Result<Vec<Group>> {
    let Some(stage) = Stage::start(bench)? else { return Ok(Vec::new()) };
    tell("1 GiB out of a tool, and 1 GiB through one");
    let bytes = CARRIED_BYTES.to_string();
    let out = alternately(stage.both("head", &["-c", &bytes, "/dev/zero"])?, bench.rounds, |command| {
        carry(command, false)
    })?
    .map(median);
    let through =
        alternately(stage.both("cat", &[])?, bench.rounds, |command| carry(command, true))?.map(median);
    let row = |what: &str, [ours, theirs]: [Option<f64>; 2], goal| Row {
        what: what.to_owned(),
        ours,
        theirs,
        direct: None,
        goal,
    };
    let rows = vec![
        row("output, MB/s", out, Goal::AtLeast(1_000.0)),
        row("input and output, MB/s", through, Goal::Known),
    ];
    Ok(vec![Group { title: "Tool output".to_owned(), against: "exec", rows }])
}

/// The time that a tenth of the runs did not need.
fn least_tenth(times: &[f64]) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 10).copied()
}

/// Takes a measurement of each command, in turn, so many times.
fn alternately(
    mut commands: [Command; 2],
    runs: usize,
    measure: impl Fn(&mut Command) -> io::Result<f64>,
) -> io::Result<[Vec<f64>; 2]> {
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        for (command, found) in commands.iter_mut().zip(&mut found) {
            found.push(measure(command)?);
        }
    }
    Ok(found)
}

fn first_byte(command: &mut Command) -> io::Result<f64> {
    let start = Instant::now();
    let mut child = rig::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    stdout.read_exact(&mut [0])?;
    let elapsed = start.elapsed();
    io::copy(&mut stdout, &mut io::sink())?;
    child.wait()?;
    Ok(ms(elapsed))
}

/// The most memory that a command's own process has held, while its tool still runs.
fn peak_mib(command: &mut Command) -> io::Result<f64> {
    let mut child = rig::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    stdout.read_exact(&mut [0])?;
    let peak = status(child.id(), "VmHWM")?;
    io::copy(&mut stdout, &mut io::sink())?;
    child.wait()?;
    Ok(peak / 1024.0)
}

/// Megabytes a second that come out of a command: of itself, or of what it is given to read. Each byte is looked at.
fn carry(command: &mut Command, is_fed: bool) -> io::Result<f64> {
    let stdin = if is_fed { Stdio::piped() } else { Stdio::null() };
    let start = Instant::now();
    let mut child = rig::spawn(command.stdin(stdin).stdout(Stdio::piped()))?;
    let feeding = child.stdin.take().map(|mut stdin| {
        thread::spawn(move || {
            let block = vec![0; 64 * 1024];
            for _ in 0..CARRIED_BYTES / (64 * 1024) {
                stdin.write_all(&block)?;
            }
            io::Result::Ok(())
        })
    });
    let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut buffer = vec![0; 256 * 1024];
    let mut carried = 0;
    loop {
        let read = stdout.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        // By words of a machine first: byte by byte it would be this that is measured.
        if bytes.as_chunks::<16>().0.iter().any(|word| u128::from_ne_bytes(*word) != 0) {
            return Err(io::Error::other("a byte has changed on its way"));
        }
        carried += u64::try_from(read).unwrap_or_default();
    }
    let elapsed = start.elapsed();
    let ended = child.wait()?;
    if let Some(feeding) = feeding {
        feeding.join().map_err(|_| io::Error::other("feeding panicked"))??;
    }
    if carried != CARRIED_BYTES || !ended.success() {
        let name = Path::new(command.get_program()).display();
        return Err(io::Error::other(format!("{name}: {carried} of {CARRIED_BYTES} bytes, {ended}")));
    }
    Ok(figure(carried) / 1e6 / elapsed.as_secs_f64())
}

fn ms(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1_000.0
}
