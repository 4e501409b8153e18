//! The demo finds everything as it should be, and leaves nothing behind, however it ends.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carapace-debug"));
    command.arg("demo").stdin(Stdio::null());
    command
}

#[test]
fn everything_is_as_it_should_be() {
    let output = demo().args(["--format", "json"]).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let steps: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(steps.len(), 8, "{}", String::from_utf8_lossy(&output.stderr));
    for step in &steps {
        let checks = step["checks"].as_array().expect("checks");
        assert!(!checks.is_empty());
        for check in checks {
            // How late an event is depends on what else this machine does.
            let is_about_time = check["claim"].as_str().is_some_and(|claim| claim.contains(" ms"));
            assert!(check["ok"] == true || is_about_time, "{}: {check}", step["title"]);
        }
    }
}

#[test]
fn one_that_is_left_running_cleans_up_when_it_is_ended() {
    let mut child = demo().arg("--serve").stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines =
        BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
    let folder = lines.by_ref().find_map(|line| line.trim().strip_prefix("folder ").map(str::to_owned));
    let folder = folder.expect("a folder");
    assert!(lines.by_ref().any(|line| line.starts_with("Everything is left running")));
    let agent = lines.find(|line| line.trim().starts_with("agent ")).expect("its command line");
    assert!(Path::new(&folder).is_dir() && agent.contains(&folder));
    kill(Pid::from_raw(i32::try_from(child.id()).expect("small")), Signal::SIGTERM).expect("it runs");
    assert_eq!(child.wait().expect("ends").code(), Some(128 + 15));
    assert!(!Path::new(&folder).exists());
    // What it has started held the folder's name on its command line or in its environment.
    let names_it = |process: &Path| {
        ["cmdline", "environ"].iter().any(|file| {
            let bytes = fs::read(process.join(file)).unwrap_or_default();
            bytes.windows(folder.len()).any(|part| part == folder.as_bytes())
        })
    };
    let processes =
        fs::read_dir("/proc").expect("the processes").map(|entry| entry.expect("a process").path());
    assert_eq!(processes.filter(|process| names_it(process)).count(), 0);
}
