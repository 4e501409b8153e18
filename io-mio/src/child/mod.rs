//! Jobs: child processes, from start to reaping.

mod account;
mod directory;
mod start;

pub use account::Account;
pub(crate) use start::Started;

use crate::raw::{self, wait};
use carapace_policy::Exec;
use carapace_proto::ids::JobId;
use carapace_proto::machine::{ExitStatus, StartError};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use start::Common;
use std::collections::HashMap;
use std::fs::File;
use std::io;

/// All jobs of the daemon.
///
/// A job's process that has ended stays a zombie until the machine forgets the job: as long as it does, its number, which
/// is also that of its process group, belongs to nobody else, and what is left of the group can be signalled.
#[derive(Debug)]
pub struct Children {
    common: Common,
    jobs: HashMap<JobId, Job>,
}

#[derive(Debug)]
struct Job {
    /// Also the number of its process group and session.
    pid: Pid,
    has_ended: bool,
}

impl Children {
    /// Jobs of this account, with this limit of open descriptors unless the policy says otherwise.
    pub fn new(account: Account, open_files: (rlim_t, rlim_t)) -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        Ok(Self { common: Common { account, open_files, null }, jobs: HashMap::new() })
    }

    pub(crate) fn start(&mut self, job: JobId, exec: &Exec) -> Result<Started, StartError> {
        let started = start::start(&self.common, job, exec)?;
        self.jobs.insert(job, Job { pid: started.pid, has_ended: false });
        Ok(started)
    }

    /// Signals a job's process group.
    pub(crate) fn signal(&self, job: JobId, number: u8) {
        let Some(job) = self.jobs.get(&job) else { return };
        let Ok(signal) = Signal::try_from(i32::from(number)) else {
            log::error!("there is no signal {number}");
            return;
        };
        match killpg(job.pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => log::warn!("process group {}: {signal} not sent: {error}", job.pid),
        }
    }

    /// Jobs whose process has ended since this was last asked.
    pub(crate) fn ended(&mut self) -> Vec<(JobId, ExitStatus)> {
        let running = self.jobs.iter_mut().filter(|(_, job)| !job.has_ended);
        let ended = running.filter_map(|(id, job)| {
            let status = wait::peek(job.pid)?;
            job.has_ended = true;
            Some((*id, status))
        });
        ended.collect()
    }

    /// Reaps a job's process. The machine wants to hear no more of it.
    pub(crate) fn forget(&mut self, job: JobId) {
        if let Some(job) = self.jobs.remove(&job) {
            debug_assert!(job.has_ended, "a job is forgotten while it runs, and would never be reaped");
            wait::reap(job.pid);
        }
    }

    /// Ends every job at once.
    pub(crate) fn kill_all(&self) {
        for job in self.jobs.values() {
            let _ = killpg(job.pid, Signal::SIGKILL);
        }
    }
}

/// Sees to it that jobs inherit nothing of what our own parent left us: ignored signals, open descriptors. To be called
/// before anything is opened.
pub fn disinherit() {
    raw::signal::default_dispositions();
    raw::close_inherited_on_exec();
}

/// Raises our own limit of open descriptors as far as it goes, and says what it was.
pub fn raise_open_files() -> io::Result<(rlim_t, rlim_t)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok((soft, hard))
}
