//! Programs that run: fed, listened to while they run, and never waited for without end.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::rig;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::{LONG, binaries, wait_for};

/// A program that runs. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Arc<Output>,
    stderr: Arc<Output>,
}

/// How a program ended, and everything it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// What has been read from a pipe so far.
#[derive(Default)]
struct Output {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Output {
    fn follow(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let output = Arc::new(Self::default());
        let filled = Arc::clone(&output);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = filled.state.lock().unwrap();
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                filled.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        output
    }

    fn wait(&self, within: Duration, is_enough: impl Fn(&[u8]) -> bool) -> (Vec<u8>, bool) {
        let is_waiting = |(bytes, is_closed): &mut (Vec<u8>, bool)| !*is_closed && !is_enough(bytes);
        let state = self.state.lock().unwrap();
        let (state, timeout) = self.changed.wait_timeout_while(state, within, is_waiting).unwrap();
        (state.0.clone(), !timeout.timed_out())
    }
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // As a shell would start it, whatever the test's own signals are.
        let mut child = rig::spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = Output::follow(child.stdout.take().unwrap());
        let stderr = Output::follow(child.stderr.take().unwrap());
        Self { stdin: child.stdin.take(), child, stdout, stderr }
    }

    /// Its input, to be fed from another thread; closed when that is dropped.
    pub(crate) fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().unwrap()
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).and_then(|()| stdin.flush()).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits until it has printed this on its standard output; all that it has printed by then.
    pub(crate) fn wait_for_output(&self, text: &str) -> String {
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let (bytes, in_time) = self.stdout.wait(LONG, has);
        let printed = String::from_utf8_lossy(&bytes).into_owned();
        assert!(
            in_time && has(&bytes),
            "no {text:?} in {printed:.1000}; stderr: {:.1000}",
            self.stderr_so_far()
        );
        printed
    }

    fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.wait(Duration::ZERO, |_| true).0).into_owned()
    }

    /// Closes its input, and waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        self.stdin = None;
        self.end_with_open_input()
    }

    /// Waits for its end, its input staying open.
    pub(crate) fn end_with_open_input(&mut self) -> Ended {
        let start = Instant::now();
        let status = wait_for("the program's end", LONG, || self.child.try_wait().unwrap());
        let left = LONG.saturating_sub(start.elapsed());
        // Somebody else may hold them open; then their end is not the program's.
        let (stdout, out_closed) = self.stdout.wait(left, |_| false);
        let (stderr, err_closed) = self.stderr.wait(left, |_| false);
        assert!(out_closed && err_closed, "somebody keeps the program's output open");
        Ended { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end, this on its input.
pub(crate) fn run_with(command: &mut Command, input: &[u8]) -> Ended {
    let mut running = Running::start(command);
    let mut stdin = running.take_stdin();
    let input = input.to_vec();
    // One that ends before it has read everything is its own affair.
    thread::spawn(move || drop(stdin.write_all(&input)));
    running.end_with_open_input()
}

/// Runs a command to its end, nothing on its input.
pub(crate) fn run(command: &mut Command) -> Ended {
    Running::start(command).end()
}

/// Runs a script in a shell, natively.
pub(crate) fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script);
    command
}

/// Runs `carapace-debug` to its end, in an environment that says nothing of Carapace.
pub(crate) fn debug<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Ended {
    let mut command = rig::Launch::new(binaries().path("carapace-debug")).command();
    run(command.args(args))
}
