//! The disk that the audit log is on: full at times, slow at times, and never half written.

use crate::env::{Env, News, Side};
use carapace_proto::ids::RecordId;

/// What the disk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Good,
    /// Nothing can be written.
    Full,
    /// What is written cannot be made durable.
    Rotten,
}

/// One append at a time: the next is asked for when the last has been answered.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) mood: Mood,
    /// Written, and not durable yet.
    pending: Option<(RecordId, Vec<u8>)>,
}

impl Env {
    /// Appends whole lines; the answer comes as news, also when it comes at once.
    /// `count`: how many bytes the server had.
    pub(crate) fn append(&mut self, through: RecordId, lines: &[u8], count: usize) {
        let micros = if self.chance.is(500) { 0 } else { self.chance.below(self.climate.disk_delay_us + 1) };
        if self.disk.mood == Mood::Full {
            self.say(|| format!("disk: full, {through} fails"));
            return self.tell(Side::Server, micros, News::RecordFailed { through });
        }
        self.disk.pending = Some((through, lines.to_vec()));
        self.tell(Side::Server, micros, News::Recorded { through, count });
    }

    /// The time that the disk needed is over: says whether the records are in the log.
    pub(crate) fn synced(&mut self, through: RecordId) -> bool {
        let Some((written, lines)) = self.disk.pending.take() else { return false };
        debug_assert_eq!(written, through, "appends are answered in order");
        if self.disk.mood == Mood::Rotten {
            self.say(|| format!("disk: {through} cannot be synced and is taken back"));
            return false;
        }
        let verdict = self.ledger.accepted(&lines);
        self.check(verdict);
        true
    }

    /// The server is gone: what is in the kernel will be on the disk, or not.
    pub(crate) fn server_ended(&mut self, in_order: bool) {
        if let Some((_, lines)) = self.disk.pending.take()
            && self.disk.mood == Mood::Good
        {
            let verdict = self.ledger.accepted(&lines);
            self.check(verdict);
        }
        self.ledger.server_ends(in_order);
    }
}
