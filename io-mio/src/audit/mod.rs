//! The audit log's file: appended to with one write a turn, by one writer, never left with half a record.

mod sync;

use crate::exit::{Exit, Fatal};
use crate::mail::Post;
use carapace_proto::time::{Duration, Instant};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sync::Syncer;

/// The file's mode: its owner writes, a group may read.
const MODE: u32 = 0o640;
/// How long records may be in the kernel only, where the operator chose [`AuditSync::Interval`].
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// A syncing thread that had nothing to do for this long is let go.
const THREAD_IDLE: Duration = Duration::from_secs(2);

/// When records are on the disk rather than in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditSync {
    /// Within a second.
    #[default]
    Interval,
    /// When the system sees fit.
    Never,
    /// Before anything they allow begins.
    Turn,
}

/// The open log.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: Arc<Flock<File>>,
    mode: AuditSync,
    syncer: Syncer,
    state: State,
    /// Whether the last append failed; said once, and taken back once.
    is_failing: bool,
    /// Somebody asked for the file to be opened anew while it was being synced.
    wants_reopening: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everything is as durable as it is to be. A syncing thread may be parked until then.
    Clean { park_until: Option<Instant> },
    /// Written and not yet synced.
    Dirty { sync_at: Instant },
    /// Being synced, with this many bytes that were appended for it.
    Syncing { count: usize, is_dirty_again: bool },
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// The records are in the log, as durably as they are to be before anything happens.
    Done,
    /// They will be; [`Audit::synced`] says when.
    Later,
    /// An earlier append is being synced: try again after it.
    Busy,
}

impl Audit {
    /// Opens the log, makes it if need be, and keeps everybody else from writing it. What a crash left of a last
    /// record is moved to a file beside it.
    pub fn open(path: &Path, mode: AuditSync) -> Result<Self, Fatal> {
        let file = open(path).map_err(|error| {
            let is_locked = error.kind() == ErrorKind::WouldBlock;
            let (exit, what) = if is_locked {
                (Exit::Unavailable, "another process writes it".to_owned())
            } else {
                (Exit::Config, error.to_string())
            };
            Fatal::new(exit, format!("audit log {}: {what}", path.display()))
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            mode,
            syncer: Syncer::default(),
            state: State::Clean { park_until: None },
            is_failing: false,
            wants_reopening: false,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends whole records with one write. After an error nothing of them is in the file.
    pub(crate) fn append(&mut self, now: Instant, records: &[u8], post: &Post) -> io::Result<Appended> {
        if self.mode == AuditSync::Turn && matches!(self.state, State::Syncing { .. }) {
            return Ok(Appended::Busy);
        }
        let result = self.append_all(records);
        self.note(&result);
        result?;
        match (self.mode, self.state) {
            (AuditSync::Never, _) => Ok(Appended::Done),
            (AuditSync::Turn, _) => {
                if let Err(error) = self.syncer.sync(&self.file, post) {
                    self.take_back(records.len());
                    return Err(error);
                }
                self.state = State::Syncing { count: records.len(), is_dirty_again: false };
                Ok(Appended::Later)
            }
            (AuditSync::Interval, State::Clean { .. }) => {
                self.state = State::Dirty { sync_at: now + SYNC_INTERVAL };
                Ok(Appended::Done)
            }
            (AuditSync::Interval, State::Dirty { .. }) => Ok(Appended::Done),
            (AuditSync::Interval, State::Syncing { count, .. }) => {
                self.state = State::Syncing { count, is_dirty_again: true };
                Ok(Appended::Done)
            }
        }
    }

    fn append_all(&self, records: &[u8]) -> io::Result<()> {
        let count = (&**self.file).write(records)?;
        if count == records.len() {
            return Ok(());
        }
        self.take_back(count);
        Err(ErrorKind::StorageFull.into())
    }

    /// Removes the last `count` bytes. They are ours: there is no other writer.
    fn take_back(&self, count: usize) {
        let cut = || {
            let end = self.file.metadata()?.len();
            self.file.set_len(end.saturating_sub(u64::try_from(count).unwrap_or(0)))
        };
        if let Err(error) = cut() {
            let path = self.path.display();
            log::error!("audit log {path}: half a record was written and cannot be taken back: {error}");
        }
    }

    fn note(&mut self, result: &io::Result<()>) {
        match result {
            Err(error) if !self.is_failing => {
                log::error!(
                    "audit log {}: cannot be written: {error}; calls are refused",
                    self.path.display()
                );
            }
            Ok(()) if self.is_failing => {
                log::warn!("audit log {}: can be written again", self.path.display());
            }
            Ok(()) | Err(_) => {}
        }
        self.is_failing = result.is_err();
    }

    /// A sync has ended. `Some`: the append that waited for it, so many bytes, is in the log, or is not.
    pub(crate) fn synced(
        &mut self,
        now: Instant,
        result: io::Result<()>,
        post: &Post,
    ) -> Option<(usize, io::Result<()>)> {
        let State::Syncing { count, is_dirty_again } = self.state else { return None };
        self.note(&result);
        let waited = self.mode == AuditSync::Turn;
        if waited {
            self.state = State::Clean { park_until: Some(now + THREAD_IDLE) };
            if result.is_err() {
                // What is not known to be on the disk must not look as if it were; nothing was written after it.
                self.take_back(count);
            }
        } else {
            self.syncer.release();
            self.state = if is_dirty_again {
                State::Dirty { sync_at: now + SYNC_INTERVAL }
            } else {
                State::Clean { park_until: None }
            };
        }
        if std::mem::take(&mut self.wants_reopening) {
            self.reopen(now, post);
        }
        waited.then_some((count, result))
    }

    /// When [`Audit::handle_timeout`] wants to be called.
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Clean { park_until } => park_until,
            State::Dirty { sync_at } => Some(sync_at),
            State::Syncing { .. } => None,
        }
    }

    /// Starts the sync that is due, or lets the thread go that had none to do.
    pub(crate) fn handle_timeout(&mut self, now: Instant, post: &Post) {
        match self.state {
            State::Clean { park_until: Some(until) } if until <= now => {
                self.syncer.release();
                self.state = State::Clean { park_until: None };
            }
            State::Dirty { sync_at } if sync_at <= now => self.start_sync(now, post),
            State::Clean { .. } | State::Dirty { .. } | State::Syncing { .. } => {}
        }
    }

    fn start_sync(&mut self, now: Instant, post: &Post) {
        self.state = match self.syncer.sync(&self.file, post) {
            Ok(()) => State::Syncing { count: 0, is_dirty_again: false },
            Err(error) => {
                log::error!("audit log {}: cannot be synced: {error}", self.path.display());
                State::Dirty { sync_at: now + SYNC_INTERVAL }
            }
        };
    }

    /// Opens the log anew, after somebody has moved the file away. When that fails the old file stays in use.
    pub(crate) fn reopen(&mut self, now: Instant, post: &Post) {
        let known = self.file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        let there = std::fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino())).ok();
        if known.is_some() && known == there {
            return;
        }
        if matches!(self.state, State::Syncing { .. }) {
            self.wants_reopening = true;
            return;
        }
        match open(&self.path) {
            Ok(file) => {
                if matches!(self.state, State::Dirty { .. }) {
                    self.start_sync(now, post);
                }
                self.file = Arc::new(file);
                log::info!("audit log {} opened anew", self.path.display());
            }
            Err(error) => {
                log::error!("audit log {}: {error}; the old file stays in use", self.path.display());
            }
        }
    }

    /// Before the process ends: what was promised to be on the disk within a second.
    pub(crate) fn finish(&self) {
        if self.mode != AuditSync::Never
            && let Err(error) = self.file.sync_data()
        {
            log::error!("audit log {}: cannot be synced: {error}", self.path.display());
        }
    }
}

/// Opens the file for appending, with its mode, locked, and ending with a whole line.
fn open(path: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(MODE)
        // Opening a pipe would wait for somebody to read it.
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    let meta = file.metadata()?;
    if meta.len() == 0 && meta.is_file() && meta.permissions().mode() & 0o777 != MODE {
        // Whatever our umask is. A file that has been in use keeps the mode that its owner gave it.
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    set_torn_aside(&file, path, meta.len())?;
    Ok(file)
}

/// If the last line has no end, our predecessor died while writing it. It was never accepted, so nothing came of it.
fn set_torn_aside(file: &File, path: &Path, length: u64) -> io::Result<()> {
    let torn = last_line(file, length)?;
    if torn.is_empty() {
        return Ok(());
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".torn");
    let mut keep = OpenOptions::new().append(true).create(true).mode(MODE).open(&aside)?;
    keep.write_all(&torn)?;
    keep.write_all(b"\n")?;
    keep.sync_data()?;
    file.set_len(length - u64::try_from(torn.len()).unwrap_or(0))?;
    log::warn!(
        "audit log {}: the last record was cut short by a crash; its {} bytes are in {}",
        path.display(),
        torn.len(),
        Path::new(&aside).display()
    );
    Ok(())
}

/// What follows the last line end.
fn last_line(mut file: &File, length: u64) -> io::Result<Vec<u8>> {
    const STEP: u64 = 64 * 1024;
    let mut tail = Vec::new();
    let mut start = length;
    while start > 0 {
        let step = start.min(STEP);
        start -= step;
        file.seek(SeekFrom::Start(start))?;
        let mut chunk = vec![0; usize::try_from(step).unwrap_or(0)];
        file.read_exact(&mut chunk)?;
        let end = chunk.iter().rposition(|byte| *byte == b'\n');
        chunk.drain(..end.map_or(0, |end| end + 1));
        chunk.append(&mut tail);
        tail = chunk;
        if end.is_some() {
            break;
        }
    }
    Ok(tail)
}

#[cfg(test)]
mod tests;
