//! Which faults a seed has. Each kind is off in half of the seeds: a fault that is always there hides the bugs that
//! need its absence.

use crate::chance::Chance;

/// Weights and rates of faults. Rates are in permille.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Climate {
    /// Bytes travel in small pieces.
    pub(crate) shreds: bool,
    /// How long a piece travels at most.
    pub(crate) latency_max_us: u64,
    /// Pieces that stand still for seconds on their way.
    pub(crate) stalls: u64,
    /// Dials that are refused, or never answered.
    pub(crate) bad_dials: u64,
    /// Exchanges in which an upstream misbehaves.
    pub(crate) rude_upstreams: u64,
    /// Children that do not behave as one would wish.
    pub(crate) rude_children: u64,
    /// Clients that do not read, or leave.
    pub(crate) rude_clients: u64,
    /// Calls that nobody may make, or that are no calls.
    pub(crate) bad_calls: u64,
    /// How long a record takes to be on the disk, at most.
    pub(crate) disk_delay_us: u64,

    // What chaos does, by weight.
    pub(crate) cut_link: u64,
    pub(crate) cut_any: u64,
    pub(crate) half_open: u64,
    pub(crate) disk_fault: u64,
    pub(crate) reload: u64,
    pub(crate) drain: u64,
    pub(crate) kill_server: u64,
    pub(crate) kill_agent: u64,
    pub(crate) strangers: u64,
    pub(crate) set_clock: u64,
}

impl Climate {
    pub(crate) fn storm(chance: &mut Chance) -> Self {
        let mut some = |value: u64| if chance.is(500) { value } else { 0 };
        let mut climate = Self {
            shreds: some(1) > 0,
            latency_max_us: 300 + some(3_000),
            stalls: some(4),
            bad_dials: some(100),
            rude_upstreams: some(250),
            rude_children: some(250),
            rude_clients: some(150),
            bad_calls: 100 + some(200),
            disk_delay_us: some(4_000),
            cut_link: some(6),
            cut_any: some(10),
            half_open: some(3),
            disk_fault: some(4),
            reload: some(5),
            drain: some(2),
            kill_server: some(2),
            kill_agent: some(2),
            strangers: some(12),
            set_clock: some(1),
        };
        // Now and then a fair day: what is exact only when nothing is cut must be seen, too.
        if chance.is(60) {
            climate = Self { latency_max_us: 300, bad_calls: 100, ..Self::default() };
        }
        climate
    }

    pub(crate) const fn calm() -> Self {
        Self {
            shreds: false,
            latency_max_us: 300,
            stalls: 0,
            bad_dials: 0,
            rude_upstreams: 0,
            rude_children: 0,
            rude_clients: 0,
            bad_calls: 0,
            disk_delay_us: 200,
            cut_link: 0,
            cut_any: 0,
            half_open: 0,
            disk_fault: 0,
            reload: 0,
            drain: 0,
            kill_server: 0,
            kill_agent: 0,
            strangers: 0,
            set_clock: 0,
        }
    }
}
