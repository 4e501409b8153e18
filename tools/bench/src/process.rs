//! What the system says of a process: CPU, memory, threads, system calls.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::rig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::stats::figure;

/// CPU seconds that these processes have used so far, ended threads included.
pub(crate) fn cpu_seconds(pids: &[u32]) -> io::Result<f64> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name stands in brackets and may hold anything; utime and stime are the 12th and 13th field behind it.
        let (_, fields) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
        ticks += fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum::<u64>();
    }
    Ok(figure(ticks) / figure(per_second))
}

/// A number of `/proc/PID/status`: `VmRSS`, `VmHWM` (both KiB), `Threads`.
pub(crate) fn status(pid: u32, name: &str) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.map(figure).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Lets us, and what we start, hold as many descriptors as the system allows.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Whether a program is found in the `PATH`.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The system calls that these processes make while `body` runs.
pub(crate) fn system_calls_of(
    pids: &[u32],
    folder: &Path,
    body: impl FnOnce() -> io::Result<()>,
) -> io::Result<f64> {
    let summary = folder.join("strace-attached");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(&summary);
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    let mut tracer = rig::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))?;
    let mut stderr = tracer.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut said = Vec::new();
    let mut is_open = true;
    // It names each process that it has attached to.
    while is_open && said.windows(9).filter(|word| word == b" attached").count() < pids.len() {
        let mut buffer = [0; 512];
        let read = stderr.read(&mut buffer)?;
        is_open = read > 0;
        said.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    if !is_open {
        tracer.wait()?;
        return Err(io::Error::other(String::from_utf8_lossy(&said).trim().to_owned()));
    }
    let done = body();
    // INT lets it detach and write its summary.
    let pid = i32::try_from(tracer.id()).map_err(io::Error::other)?;
    signal::kill(Pid::from_raw(pid), Signal::SIGINT)?;
    tracer.wait()?;
    done?;
    total_of(&summary)
}

/// The system calls of a program and its children, from its start to its end.
pub(crate) fn system_calls_from_start(traced: &Command, folder: &Path) -> io::Result<f64> {
    let summary = folder.join("strace-started");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(&summary).arg(traced.get_program()).args(traced.get_args());
    for (name, value) in traced.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let status = rig::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("under strace it ended with {status}")));
    }
    total_of(&summary)
}

fn total_of(summary: &Path) -> io::Result<f64> {
    let text = fs::read_to_string(summary)?;
    // Columns: % time, seconds, usecs/call, calls, errors where there are any, name.
    let total = text.lines().rfind(|line| line.trim_end().ends_with(" total"));
    let calls = total.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    calls.map(figure).ok_or_else(|| io::Error::other("strace wrote no total"))
}

/// Waits until `is_so`, looking often; whether it became so within `timeout`.
pub(crate) fn wait_until(timeout: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}
