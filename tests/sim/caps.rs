//! What a daemon may hold at most: the sum of the product's own caps.

use crate::env::Side;
use crate::rules::{ANSWER_MAX, BODY_MAX, EVENT_MAX};
use carapace_proto::limits::{
    CLIENT_UNSENT_HIGH, FEED_BYTES_HIGH, FRAME_BYTES_MAX, HEAD_BYTES_MAX, LINK_RETAINED_MAX,
    LINK_UNSENT_HIGH, PIPELINE_BYTES_MAX, REQUEST_KEPT_BYTES_MAX, RESPONSE_HEAD_BYTES_MAX,
};

/// The most that the driver's stand-in reads at once.
pub(crate) const SHARE: usize = 128 * 1024;

/// With so many connections around.
pub(crate) fn most(side: Side, conns: usize) -> usize {
    let link = LINK_RETAINED_MAX + LINK_UNSENT_HIGH + 2 * FRAME_BYTES_MAX;
    match side {
        Side::Server => {
            // What was read before the source was paused, an answer or an event, a body, a head, input.
            let call =
                2 * SHARE + ANSWER_MAX + EVENT_MAX + BODY_MAX + RESPONSE_HEAD_BYTES_MAX + FEED_BYTES_HIGH;
            let records = 256 * 1024;
            conns.min(4) * link + 3 * conns * call / 4 + records
        }
        Side::Agent => {
            let client = CLIENT_UNSENT_HIGH
                + PIPELINE_BYTES_MAX
                + SHARE
                + HEAD_BYTES_MAX
                + REQUEST_KEPT_BYTES_MAX
                + EVENT_MAX
                + 1024 * 1024;
            link + conns * client
        }
    }
}
