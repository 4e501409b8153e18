//! What helper threads tell the loop. A name look-up, an fdatasync and reading a policy may take seconds, and the
//! loop waits for nothing; each is done by a thread that ends when it has nothing more to do.

use crate::policy::LoadError;
use carapace_policy::Policy;
use mio::{Registry, Waker};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};

/// News for the loop.
#[derive(Debug)]
pub(crate) enum Letter {
    /// The policy was read anew, or could not be.
    Policy(Result<Box<Policy>, LoadError>),
    /// A name was looked up.
    Resolved { host: String, addresses: Vec<SocketAddr> },
    /// The audit log was synced.
    Synced(io::Result<()>),
}

/// Where a thread posts its news.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    sender: mpsc::Sender<Letter>,
    waker: Arc<Waker>,
}

impl Post {
    /// Leaves a letter and wakes the loop. When the loop is gone nobody wants it any more.
    pub(crate) fn send(&self, letter: Letter) {
        if self.sender.send(letter).is_ok()
            && let Err(error) = self.waker.wake()
        {
            log::error!("the loop cannot be woken: {error}");
        }
    }
}

/// Makes both ends.
pub(crate) fn open(registry: &Registry, token: mio::Token) -> io::Result<(Post, mpsc::Receiver<Letter>)> {
    let (sender, receiver) = mpsc::channel();
    let waker = Arc::new(Waker::new(registry, token)?);
    Ok((Post { sender, waker }, receiver))
}
