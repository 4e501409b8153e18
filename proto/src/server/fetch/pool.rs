//! Connections to upstreams, at work and waiting.

use super::super::{Drain, Server, Timer};
use crate::ids::{CallId, ConnId};
use crate::limits::{POOL_BURST_MAX, POOL_BURST_TIMEOUT, POOL_IDLE_MAX, POOL_IDLE_TIMEOUT};
use crate::machine::Address;
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::timers::Alarm;
use crate::wire::http1::{BodyDecoder, HeadScanner};
use crate::wire::sse::EventParser;
use carapace_policy::Request;
use std::collections::BTreeMap;

/// All connections to upstreams.
#[derive(Debug, Default)]
pub(in super::super) struct Upstreams {
    pub(super) conns: BTreeMap<ConnId, UpstreamConn>,
    /// Connections that wait for work, by address; the one that was used last is used first.
    idle: BTreeMap<Address, Vec<ConnId>>,
    dialed: u64,
}

#[derive(Debug)]
pub(super) struct UpstreamConn {
    pub(super) address: Address,
    pub(super) out: Outbox,
    pub(super) is_connected: bool,
    pub(super) exchange: Option<Box<Exchange>>,
    pub(super) alarm: Alarm,
}

/// One request and its answer.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) call: CallId,
    /// As it was judged; it also judges what comes back.
    pub(super) request: Request,
    pub(super) scanner: HeadScanner,
    /// The beginning of a head that is not whole.
    pub(super) head: Vec<u8>,
    /// Set once the head is read.
    pub(super) body: Option<BodyDecoder>,
    pub(super) sort: Sort,
    pub(super) keep_alive: bool,
    pub(super) is_paused: bool,
    /// Bytes of the caller's body that went into `out` and were not written, to be paid for when they are.
    pub(super) uploading: usize,
    /// When it must be over; later than the connection's own alarm where that watches for silence.
    pub(super) started: Instant,
}

/// What becomes of a body.
#[derive(Debug)]
pub(super) enum Sort {
    /// Gathered whole before anything is said.
    Gathered { status: u16, fields: Vec<u8>, bytes: Vec<u8> },
    /// Passed on as it comes.
    Streamed,
    /// Passed on as whole events.
    Events(Box<EventParser>),
}

impl UpstreamConn {
    /// One that is being dialled.
    pub(super) fn new(address: Address) -> Self {
        Self { address, out: Outbox::default(), is_connected: false, exchange: None, alarm: Alarm::default() }
    }
}

impl Exchange {
    pub(super) fn new(now: Instant, call: CallId, request: Request) -> Self {
        Self {
            call,
            request,
            scanner: HeadScanner::new(),
            head: Vec::new(),
            body: None,
            sort: Sort::Streamed,
            keep_alive: false,
            is_paused: false,
            uploading: 0,
            started: now,
        }
    }
}

impl Upstreams {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    pub(in super::super) fn unsent(&self, conn: ConnId) -> &[u8] {
        self.conns
            .get(&conn)
            .filter(|upstream| upstream.is_connected)
            .map_or(&[], |upstream| upstream.out.unsent())
    }

    pub(in super::super) fn held_bytes(&self) -> usize {
        let held = |upstream: &UpstreamConn| {
            let exchange = upstream.exchange.as_ref().map_or(0, |exchange| match &exchange.sort {
                Sort::Gathered { fields, bytes, .. } => fields.len() + bytes.len() + exchange.head.len(),
                Sort::Streamed => exchange.head.len(),
                Sort::Events(parser) => parser.pending_bytes() + exchange.head.len(),
            });
            upstream.out.len() + exchange
        };
        self.conns.values().map(held).sum()
    }

    /// A connection to work on: one that waits, or a new one.
    pub(super) fn take(&mut self, address: &Address) -> (ConnId, bool) {
        while let Some(conn) = self.idle.get_mut(address).and_then(Vec::pop) {
            if self.conns.contains_key(&conn) {
                return (conn, true);
            }
        }
        self.idle.remove(address);
        self.dialed += 1;
        (ConnId::dialed(self.dialed), false)
    }

    fn forget_idle(&mut self, address: &Address, conn: ConnId) {
        if let Some(idle) = self.idle.get_mut(address) {
            idle.retain(|other| *other != conn);
            if idle.is_empty() {
                self.idle.remove(address);
            }
        }
    }
}

impl Server {
    /// Keeps a connection for the next fetch.
    pub(super) fn keep(&mut self, now: Instant, conn: ConnId) {
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        let idle = self.upstreams.idle.entry(upstream.address.clone()).or_default();
        if idle.len() >= POOL_BURST_MAX || !matches!(self.drain, Drain::No) {
            self.close_upstream(conn);
            return;
        }
        let patience = if idle.len() < POOL_IDLE_MAX { POOL_IDLE_TIMEOUT } else { POOL_BURST_TIMEOUT };
        idle.push(conn);
        upstream.alarm.set(&mut self.timers, Timer::Upstream(conn), now + patience);
    }

    pub(in super::super) fn close_idle_upstreams(&mut self) {
        let idle: Vec<ConnId> = self
            .upstreams
            .conns
            .iter()
            .filter(|(_, upstream)| upstream.exchange.is_none())
            .map(|(conn, _)| *conn)
            .collect();
        for conn in idle {
            self.close_upstream(conn);
        }
    }

    pub(super) fn close_upstream(&mut self, conn: ConnId) -> Option<Box<Exchange>> {
        if self.upstreams.conns.contains_key(&conn) {
            self.close_conn(conn);
        }
        self.remove_upstream(conn)
    }

    pub(super) fn remove_upstream(&mut self, conn: ConnId) -> Option<Box<Exchange>> {
        let mut upstream = self.upstreams.conns.remove(&conn)?;
        upstream.alarm.remove(&mut self.timers, Timer::Upstream(conn));
        self.upstreams.forget_idle(&upstream.address, conn);
        upstream.exchange
    }
}
