//! From what the policy allowed to a running process.

use super::account::Account;
use super::directory;
use crate::raw::launch::{Failure, Launch, Stage, launch};
use carapace_policy::{Exec, Rlimits};
use carapace_proto::ids::JobId;
use carapace_proto::machine::StartError;
use mio::unix::pipe;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, rlim_t};
use nix::unistd::{Pid, pipe2};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// Where a job looks for programs, whatever the daemon's own PATH.
const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that runs, and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// Absent where the job has none: it sees end of file at once.
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// What all jobs have in common.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) account: Account,
    /// Open descriptors, soft and hard, as they were before we raised ours: programs that use `select` fail with more.
    pub(crate) open_files: (rlim_t, rlim_t),
    /// Standard input of jobs that have none.
    pub(crate) null: File,
}

/// Starts what `exec` says.
pub(crate) fn start(common: &Common, job: JobId, exec: &Exec) -> Result<Started, StartError> {
    if exec.tty() {
        return Err(StartError::Other("this server gives no terminals".into()));
    }
    if exec.run_as().is_some_and(|name| *name != *common.account.name) {
        return Err(StartError::Other("this server runs tools as its own account only".into()));
    }
    let directory = directory::open(exec.cwd())?;
    let binary = c_string(exec.binary().as_bytes())?;
    let argv = exec.argv().iter().map(|arg| c_string(arg)).collect::<Result<Vec<_>, _>>()?;
    let env = environment(&common.account, job, exec)?;
    let limits = limits(exec.limits(), common.open_files);
    let pipes = Pipes::new(exec.stdin()).map_err(|error| no_room(&error))?;
    let pid = launch(&Launch {
        binary: &binary,
        argv: &argv,
        env: &env,
        stdio: [
            pipes.stdin.as_ref().map_or(common.null.as_fd(), |(theirs, _)| theirs.as_fd()),
            pipes.stdout.1.as_fd(),
            pipes.stderr.1.as_fd(),
        ],
        directory: directory.as_fd(),
        limits: &limits,
    })
    .map_err(start_error)?;
    Ok(Started {
        pid,
        stdin: pipes.stdin.map(|(_, ours)| ours),
        stdout: pipes.stdout.0,
        stderr: pipes.stderr.0,
    })
}

/// Both ends of each. Ours do not block; theirs do, as programs expect.
struct Pipes {
    stdin: Option<(OwnedFd, pipe::Sender)>,
    stdout: (pipe::Receiver, OwnedFd),
    stderr: (pipe::Receiver, OwnedFd),
}

impl Pipes {
    fn new(stdin: bool) -> io::Result<Self> {
        let output = || -> io::Result<_> {
            let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
            let ours = pipe::Receiver::from(ours);
            ours.set_nonblocking(true)?;
            Ok((ours, theirs))
        };
        let input = || -> io::Result<_> {
            let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
            let ours = pipe::Sender::from(ours);
            ours.set_nonblocking(true)?;
            Ok((theirs, ours))
        };
        Ok(Self { stdin: stdin.then(input).transpose()?, stdout: output()?, stderr: output()? })
    }
}

/// The environment, from nothing.
fn environment(account: &Account, job: JobId, exec: &Exec) -> Result<Vec<CString>, StartError> {
    let base: [(&[u8], &[u8]); 4] = [
        (b"PATH", PATH),
        (b"HOME", account.home.as_os_str().as_bytes()),
        (b"USER", account.name.as_bytes()),
        (b"LOGNAME", account.name.as_bytes()),
    ];
    let base = base.into_iter().filter(|(name, _)| !exec.env().any(|(other, _)| other == *name));
    let mark = job.0.to_string();
    let all = base.chain(exec.env()).chain([(b"_CARAPACE_JOB".as_slice(), mark.as_bytes())]);
    all.map(|(name, value)| c_string(&[name, b"=", value].concat())).collect()
}

fn limits(limits: Rlimits, open_files: (rlim_t, rlim_t)) -> Vec<(Resource, rlim_t, rlim_t)> {
    // Only lowering needs no privilege; what is higher than ours already holds.
    let lowered = |resource, value: rlim_t, hard: rlim_t| {
        let ceiling = getrlimit(resource).map_or(rlim_t::MAX, |(_, hard)| hard);
        (resource, value.min(ceiling), hard.min(ceiling))
    };
    let (soft, hard) = open_files;
    let open_files = limits.open_files.map_or((soft, hard), |most| (most.min(hard), most.min(hard)));
    let mut all = vec![(Resource::RLIMIT_NOFILE, open_files.0, open_files.1)];
    if let Some(secs) = limits.cpu_secs {
        // SIGXCPU first, which can be told from other deaths; SIGKILL a second later.
        all.push(lowered(Resource::RLIMIT_CPU, secs, secs.saturating_add(1)));
    }
    if let Some(bytes) = limits.memory_bytes {
        all.push(lowered(Resource::RLIMIT_AS, bytes, bytes));
    }
    if let Some(count) = limits.processes {
        all.push(lowered(Resource::RLIMIT_NPROC, count, count));
    }
    all
}

fn c_string(bytes: &[u8]) -> Result<CString, StartError> {
    CString::new(bytes).map_err(|_| StartError::Other("an argument or variable holds a NUL".into()))
}

fn start_error(failure: Failure) -> StartError {
    let Failure { stage, errno } = failure;
    match (stage, errno) {
        (_, Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => StartError::NoRoom,
        (Stage::Directory, _) => StartError::BadDirectory,
        (Stage::Exec, Errno::ENOENT | Errno::ENOTDIR) => StartError::NotFound,
        (
            Stage::Exec,
            Errno::EACCES | Errno::EISDIR | Errno::ELOOP | Errno::ENOEXEC | Errno::EPERM | Errno::ETXTBSY,
        ) => StartError::NotExecutable,
        (Stage::Clone | Stage::Exec | Stage::Limits | Stage::Privileges | Stage::Stdio, errno) => {
            StartError::Other(format!("{stage:?}: {errno}"))
        }
    }
}

fn no_room(error: &io::Error) -> StartError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => StartError::NoRoom,
        _ => StartError::Other(format!("pipe: {error}")),
    }
}
