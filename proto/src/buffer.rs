//! A byte queue: pushed at the end, consumed at the front.

/// Below this many dead bytes at the front nothing is moved: moving costs more than the memory.
const DEAD_BYTES_MIN: usize = 4096;

/// Bytes that wait, in order. Holds no memory while it is empty, unless it was made to.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    /// Memory that is kept while it is empty, where there is as much.
    kept: usize,
}

impl Buffer {
    /// An empty buffer; allocates nothing.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), start: 0, kept: 0 }
    }

    /// An empty buffer that keeps up to `kept` bytes of memory while it is empty: for those that fill and empty all the
    /// time, and of which there are few.
    pub const fn keeping(kept: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, kept }
    }

    /// How many bytes wait.
    pub const fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether none waits.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that wait, oldest first.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Lets `write` append to the end; it must not touch what is there.
    pub fn push_with<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        write(&mut self.bytes)
    }

    /// Drops up to `count` bytes from the front.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.clear();
        } else if self.start >= DEAD_BYTES_MIN && self.start * 2 >= self.bytes.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Drops everything, and the memory with it that is not to be kept.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(self.kept);
        self.start = 0;
    }

    /// Takes everything out.
    pub fn take(&mut self) -> Vec<u8> {
        let mut bytes = core::mem::take(&mut self.bytes);
        bytes.drain(..self.start);
        self.start = 0;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_over_many_small_steps() {
        let mut buffer = Buffer::new();
        let (mut next_in, mut next_out) = (0u32, 0u32);
        for step in 0..20_000u32 {
            buffer.push(&next_in.to_be_bytes());
            next_in += 1;
            if step % 3 != 0 {
                let head: [u8; 4] = buffer.bytes()[..4].try_into().unwrap();
                assert_eq!(u32::from_be_bytes(head), next_out);
                buffer.consume(4);
                next_out += 1;
            }
        }
        assert_eq!(buffer.len(), 4 * usize::try_from(next_in - next_out).unwrap());
    }

    #[test]
    fn holds_no_memory_when_empty() {
        let mut buffer = Buffer::new();
        buffer.push(&[7; 100_000]);
        buffer.consume(99_999);
        assert_eq!(buffer.bytes(), [7]);
        buffer.consume(5);
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[test]
    fn takes_what_was_not_consumed() {
        let mut buffer = Buffer::new();
        buffer.push(b"abcdef");
        buffer.consume(2);
        assert_eq!(buffer.take(), b"cdef");
        assert!(buffer.is_empty());
    }
}
