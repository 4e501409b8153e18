//! The thread that waits for the disk, so that the loop does not. It is there only while there is something to sync.

use crate::mail::{Letter, Post};
use nix::fcntl::Flock;
use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;

/// Ample: the thread makes one system call.
const STACK_BYTES: usize = 64 * 1024;

/// The way to the thread, while there is one. It ends when this end of the channel is dropped, which only the loop
/// does: so no request can fall between its deciding to end and its ending.
#[derive(Debug, Default)]
pub(super) struct Syncer {
    thread: Option<mpsc::Sender<Arc<Flock<File>>>>,
}

impl Syncer {
    /// Has the file synced; [`Letter::Synced`] says that it was.
    pub(super) fn sync(&mut self, file: &Arc<Flock<File>>, post: &Post) -> io::Result<()> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => start(post.clone())?,
        };
        thread.send(file.clone()).map_err(|_| io::Error::other("the syncing thread is gone"))?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Lets the thread end.
    pub(super) fn release(&mut self) {
        self.thread = None;
    }
}

fn start(post: Post) -> io::Result<mpsc::Sender<Arc<Flock<File>>>> {
    let (sender, files) = mpsc::channel::<Arc<Flock<File>>>();
    let work = move || {
        for file in files {
            post.send(Letter::Synced(file.sync_data()));
        }
    };
    thread::Builder::new().name("audit-sync".into()).stack_size(STACK_BYTES).spawn(work)?;
    Ok(sender)
}
