//! What a daemon may hold at most: the sum of the product's own caps, as far as this world can fill them.

use crate::env::{Env, Side};
use crate::ledger::{State, What};
use crate::net::Kind;
use crate::rules::{ANSWER_MAX, BODY_MAX, EVENT_MAX};
use carapace_proto::limits::{
    ACK_BYTES, CLIENT_UNSENT_HIGH, CREDIT_INITIAL, FRAME_BYTES_MAX, HEAD_BYTES_MAX, LINK_UNSENT_HIGH,
    PIPELINE_BYTES_MAX, REQUEST_KEPT_BYTES_MAX,
};

/// The most that the driver's stand-in reads at once.
pub(crate) const SHARE: usize = 32 * 1024;
/// The most that the kernel's stand-in holds of one direction of a connection.
pub(crate) const WIRE: usize = 256 * 1024;
/// What a stream may put on a link that is full.
const BURST: usize = 32 * 1024;
/// Records, heads, and what is left of calls whose clients have gone.
const REST: usize = 512 * 1024;

/// What one call may cost a daemon at most.
fn call(what: &What) -> usize {
    let credit = CREDIT_INITIAL as usize;
    let own = match what {
        What::Get => SHARE + credit,
        What::Events => SHARE + EVENT_MAX + credit,
        What::Malformed | What::Wrong => 2 * BODY_MAX,
        What::Put { length } => usize::try_from(*length).unwrap_or(0),
        What::Rpc { .. } => ANSWER_MAX + BODY_MAX,
        What::Run { stdin, .. } => 2 * SHARE + credit + usize::try_from(*stdin).unwrap_or(0),
    };
    own + BURST
}

/// The bound at this moment.
pub(crate) fn most(env: &Env, side: Side) -> usize {
    let count = |kind: Kind| env.net.wires.values().filter(|wire| wire.kind == kind).count();
    let link = LINK_UNSENT_HIGH + WIRE + 2 * FRAME_BYTES_MAX + usize::try_from(ACK_BYTES).unwrap_or(0);
    let calls: usize =
        env.ledger.calls.values().filter(|call| call.state == State::Open).map(|open| call(&open.what)).sum();
    match side {
        Side::Server => (count(Kind::Link) + count(Kind::Peer)) * link + calls + REST,
        Side::Agent => {
            let client =
                CLIENT_UNSENT_HIGH + PIPELINE_BYTES_MAX + SHARE + HEAD_BYTES_MAX + REQUEST_KEPT_BYTES_MAX;
            link + count(Kind::Client) * client + 2 * calls + REST
        }
    }
}
