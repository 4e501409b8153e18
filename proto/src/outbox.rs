//! Bytes for one sink, and whether the driver has been told of them.

use crate::buffer::Buffer;

/// What one connection or pipe still has to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    buffer: Buffer,
    announced: bool,
}

impl Outbox {
    pub(crate) fn unsent(&self) -> &[u8] {
        self.buffer.bytes()
    }

    pub(crate) const fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Lets `write` append bytes.
    pub(crate) fn push_with<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.buffer.push_with(write)
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.push(bytes);
    }

    /// Whether the driver must be told (once) that there is something to write.
    pub(crate) fn wants_announcing(&mut self) -> bool {
        let wants = !self.announced && !self.buffer.is_empty();
        self.announced |= wants;
        wants
    }

    pub(crate) fn sent(&mut self, count: usize) {
        self.buffer.consume(count);
        self.announced &= !self.buffer.is_empty();
    }
}
