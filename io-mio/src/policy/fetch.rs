//! Fetching a secret from where the policy says it is. Errors never hold any of it.

use super::open_plain;
use carapace_policy::SecretPlace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::env;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Ample for any token or key.
const BYTES_MAX: u64 = 64 * 1024;
/// A program that gives a secret may ask a server for it; it must not ask a person.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The secret's bytes as they stand there.
pub(super) fn fetch(place: &SecretPlace) -> Result<Vec<u8>, String> {
    match place {
        SecretPlace::Command { argv, .. } => command(argv, COMMAND_TIMEOUT),
        SecretPlace::Credential(name) => credential(name),
        SecretPlace::Env(name) => env::var_os(name)
            .map(OsStringExt::into_vec)
            .ok_or_else(|| format!("the environment has no {name}")),
        SecretPlace::File(path) => file(Path::new(path)),
    }
}

fn credential(name: &str) -> Result<Vec<u8>, String> {
    let Some(directory) = env::var_os("CREDENTIALS_DIRECTORY") else {
        return Err(format!(
            "credential {name}: there are no credentials (CREDENTIALS_DIRECTORY is not set)"
        ));
    };
    if name.contains('/') {
        return Err(format!("credential {name}: not a name"));
    }
    file(&Path::new(&directory).join(name))
}

fn file(path: &Path) -> Result<Vec<u8>, String> {
    const OTHERS_READ: u32 = 0o004;
    let shown = path.display();
    let (file, meta) = open_plain(path).map_err(|error| format!("{shown}: {error}"))?;
    if meta.permissions().mode() & OTHERS_READ != 0 {
        log::warn!("{shown}: everybody on this machine may read this secret");
    }
    limited(file).map_err(|what| format!("{shown}: {what}"))
}

fn limited(source: impl std::io::Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let count = source.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if u64::try_from(count).is_ok_and(|count| count <= BYTES_MAX) {
        Ok(bytes)
    } else {
        Err(format!("longer than {BYTES_MAX} bytes"))
    }
}

/// Runs a program of the operator's, with our environment and without a shell, and takes what it prints.
fn command(argv: &[String], timeout: Duration) -> Result<Vec<u8>, String> {
    let Some((program, args)) = argv.split_first() else { return Err("no program".into()) };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let printed = printed(&mut child, timeout);
    if printed.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("{program}: {error}"))?;
    let bytes = printed.map_err(|what| format!("{program}: {what}"))?;
    if status.success() { Ok(bytes) } else { Err(format!("{program}: {status}")) }
}

fn printed(child: &mut Child, timeout: Duration) -> Result<Vec<u8>, String> {
    let Some(mut pipe) = child.stdout.take() else { return Ok(Vec::new()) };
    let until = Instant::now() + timeout;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let ready = poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], left);
        match ready.map_err(|error| error.to_string())? {
            0 => return Err("took too long".into()),
            _ => match pipe.read(&mut buffer).map_err(|error| error.to_string())? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            },
        }
        if u64::try_from(bytes.len()).is_ok_and(|count| count > BYTES_MAX) {
            return Err(format!("printed more than {BYTES_MAX} bytes"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(argv: &[&str], timeout: Duration) -> Result<Vec<u8>, String> {
        let argv: Vec<_> = argv.iter().map(|arg| (*arg).to_owned()).collect();
        command(&argv, timeout)
    }

    #[test]
    fn a_program_gives_what_it_prints() {
        assert_eq!(run(&["/bin/echo", "a b", "$HOME"], COMMAND_TIMEOUT).unwrap(), b"a b $HOME\n");
    }

    #[test]
    fn a_program_that_fails_hangs_or_floods_gives_nothing() {
        let error = run(&["/bin/sh", "-c", "echo hunter2; exit 3"], COMMAND_TIMEOUT).unwrap_err();
        assert_eq!(error, "/bin/sh: exit status: 3");
        let error = run(&["/bin/sh", "-c", "echo hunter2; exec cat /dev/zero"], COMMAND_TIMEOUT).unwrap_err();
        assert_eq!(error, "/bin/sh: printed more than 65536 bytes");
        let error =
            run(&["/bin/sh", "-c", "echo hunter2; exec sleep 600"], Duration::from_millis(20)).unwrap_err();
        assert_eq!(error, "/bin/sh: took too long");
        assert!(run(&["/nonexistent"], COMMAND_TIMEOUT).is_err());
    }
}
