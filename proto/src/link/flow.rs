//! One stream's credit in both directions, and what waits for it.

use crate::ids::StreamId;
use crate::limits::{CREDIT_INITIAL, CREDIT_MAX};
use crate::wire::frame::{Channel, PAYLOAD_BYTES_MAX, StreamFrame};
use std::collections::VecDeque;

/// How much of a stream may overtake others while the link is congested.
const BURST_BYTES_MAX: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Flow {
    /// Payload bytes that may still be sent.
    credit: u64,
    /// What waits for credit or for room on the link, in order.
    queue: VecDeque<Waiting>,
    queued_bytes: usize,
    /// Whether the stream stands in the session's line for room.
    pub(super) is_in_line: bool,
    /// Bytes put on the link in this stretch of congestion, and which stretch it is.
    burst: usize,
    epoch: u64,
    /// Payload bytes that the peer may still send.
    allowance: u64,
    /// Payload bytes handed on since the last grant, and since the window last grew.
    consumed: u32,
    consumed_at_window: u32,
    window: u32,
}

/// Something that waits: data with its bytes, or a whole frame that must not overtake it.
#[derive(Debug)]
enum Waiting {
    Data { channel: Channel, end: bool, more: bool, bytes: Vec<u8>, start: usize },
    Frame(Vec<u8>),
}

impl Flow {
    pub(super) fn new(credit: u32, allowance: u32) -> Self {
        Self {
            credit: u64::from(credit),
            queue: VecDeque::new(),
            queued_bytes: 0,
            is_in_line: false,
            burst: 0,
            epoch: 0,
            allowance: u64::from(allowance),
            consumed: 0,
            consumed_at_window: 0,
            window: CREDIT_INITIAL,
        }
    }

    /// Whether nothing waits, so that data may go straight to the link.
    pub(super) fn is_clear(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that wait.
    pub(super) const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// What the peer may have under way beyond the initial credit.
    pub(super) const fn extra_window(&self) -> u32 {
        self.window - CREDIT_INITIAL
    }

    pub(super) const fn credited(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes as u64);
    }

    /// How many of `bytes` may go on the link now.
    pub(super) fn room(&mut self, bytes: usize, is_congested: bool, epoch: u64) -> usize {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.burst = 0;
        }
        let room = usize::try_from(self.credit).unwrap_or(usize::MAX).min(bytes);
        if is_congested { room.min(BURST_BYTES_MAX.saturating_sub(self.burst)) } else { room }
    }

    /// Writes data that there is room for, in frames of the right size.
    pub(super) fn write(
        &mut self,
        stream: StreamId,
        channel: Channel,
        bytes: &[u8],
        end: bool,
        more: bool,
        out: &mut Vec<u8>,
    ) -> u64 {
        self.credit = self.credit.saturating_sub(bytes.len() as u64);
        self.burst = self.burst.saturating_add(bytes.len());
        let mut frames = 0;
        let mut rest = bytes;
        loop {
            let (head, tail) = rest.split_at(rest.len().min(PAYLOAD_BYTES_MAX));
            let is_last = tail.is_empty();
            let frame =
                StreamFrame::Data { channel, end: end && is_last, more: more || !is_last, bytes: head };
            frame.write(stream, out);
            frames += 1;
            rest = tail;
            if is_last {
                return frames;
            }
        }
    }

    pub(super) fn queue_data(&mut self, channel: Channel, end: bool, more: bool, bytes: &[u8]) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Waiting::Data { channel, end, more, bytes: bytes.to_vec(), start: 0 });
    }

    pub(super) fn queue_frame(&mut self, stream: StreamId, frame: &StreamFrame<'_>) {
        let mut bytes = Vec::new();
        frame.write(stream, &mut bytes);
        self.queue.push_back(Waiting::Frame(bytes));
    }

    /// Writes what waits, as far as there is room; says how many frames that made.
    pub(super) fn write_queue(
        &mut self,
        stream: StreamId,
        is_congested: impl Fn(usize) -> bool,
        epoch: u64,
        out: &mut Vec<u8>,
    ) -> u64 {
        let (mut frames, begin) = (0, out.len());
        while let Some(waiting) = self.queue.pop_front() {
            match waiting {
                Waiting::Frame(bytes) => {
                    out.extend_from_slice(&bytes);
                    frames += 1;
                }
                Waiting::Data { channel, end, more, bytes, start } => {
                    let rest = bytes.get(start..).unwrap_or_default();
                    // One frame at a time: streams that wait take turns.
                    let want = rest.len().min(PAYLOAD_BYTES_MAX);
                    let room = self.room(want, is_congested(out.len() - begin), epoch);
                    if room == 0 && !rest.is_empty() {
                        self.queue.push_front(Waiting::Data { channel, end, more, bytes, start });
                        break;
                    }
                    let (head, tail) = rest.split_at(room);
                    let is_last = tail.is_empty();
                    frames += self.write(stream, channel, head, end && is_last, more || !is_last, out);
                    self.queued_bytes -= room;
                    if !is_last {
                        self.queue.push_front(Waiting::Data {
                            channel,
                            end,
                            more,
                            bytes,
                            start: start + room,
                        });
                    }
                }
            }
        }
        frames
    }

    /// Whether what waits is stopped by the link alone, not by the peer.
    pub(super) fn wants_room(&self) -> bool {
        !self.queue.is_empty() && self.credit > 0
    }

    /// Takes in payload from the peer; false when it was not paid for.
    #[must_use]
    pub(super) fn received(&mut self, bytes: usize) -> bool {
        match self.allowance.checked_sub(bytes as u64) {
            Some(left) => {
                self.allowance = left;
                true
            }
            None => false,
        }
    }

    /// The peer may send so much more.
    pub(super) const fn grant(&mut self, bytes: u32) {
        self.allowance = self.allowance.saturating_add(bytes as u64);
    }

    /// Payload was handed on. Says how much to grant, if it is time to.
    ///
    /// The window doubles each time a whole one has drained, as long as `may_grow`.
    pub(super) fn consumed(&mut self, bytes: usize, may_grow: impl Fn(u32) -> bool) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.consumed = self.consumed.saturating_add(bytes);
        self.consumed_at_window = self.consumed_at_window.saturating_add(bytes);
        if self.consumed < self.window / 2 {
            return None;
        }
        let mut grant = core::mem::take(&mut self.consumed);
        if self.consumed_at_window >= self.window && self.window < CREDIT_MAX && may_grow(self.window) {
            grant = grant.saturating_add(self.window);
            self.window *= 2;
            self.consumed_at_window = 0;
        }
        self.allowance = self.allowance.saturating_add(u64::from(grant));
        Some(grant)
    }
}
