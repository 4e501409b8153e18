//! Every cap and every deadline, with its reason. Bytes and durations, units in the names where the type has none.

use crate::time::Duration;

// ---- frames ----

/// 64 KiB: two or three reads' worth; large enough that a header's cost vanishes, small enough that one frame never
/// holds up an interactive call.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// 64 KiB: many times the largest message we send.
pub const JSON_BYTES_MAX: usize = 64 * 1024;
/// 4 KiB: a handshake is a few hundred bytes, and strangers shall not make us remember more.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 * 1024;
/// 2 MiB for arguments and environment of a run: what Linux takes with the usual stack limit of 8 MiB.
pub const RUN_LISTS_BYTES_MAX: usize = 2 * 1024 * 1024;

// ---- link ----

/// A stranger has this long to say who it is.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not said who they are; the oldest gives way, so that strangers cannot lock out an agent.
pub const HANDSHAKES_MAX: usize = 64;
/// Links that stand at once: many more than agents have been seen on one host, and few enough for their buffers.
pub const LINKS_MAX: usize = 256;
/// The name of a tool, or a method, that a peer asks for; it stands in the log.
pub const NAME_BYTES_MAX: usize = 256;
/// What a stream may send before the first grant: enough for almost every call and answer.
pub const CREDIT_INITIAL: u32 = 16 * 1024;
/// What a stream that drains may have under way: 1 GB/s at a round trip of 1 ms.
pub const CREDIT_MAX: u32 = 1024 * 1024;
/// What all streams of a session may have under way beyond their initial credit.
pub const SESSION_CREDIT_MAX: u64 = 32 * 1024 * 1024;
/// Above this much unsent on a link, data waits in its stream, so that an interactive call overtakes it.
pub const LINK_UNSENT_HIGH: usize = 256 * 1024;
/// Below this much unsent, data that waits is put on the link again.
pub const LINK_UNSENT_LOW: usize = 64 * 1024;
/// Unsent plus unacknowledged bytes above which data waits: what a session may cost in memory while a link is dead.
pub const LINK_RETAINED_MAX: usize = 4 * 1024 * 1024;
/// Above this a peer that does not acknowledge has had its chance: what is not data cannot wait.
pub const LINK_RETAINED_LIMIT: usize = 4 * LINK_RETAINED_MAX;
/// An acknowledgement is due after this many bytes...
pub const ACK_BYTES: u64 = 64 * 1024;
/// ...or this long after the first frame not yet acknowledged.
pub const ACK_DELAY: Duration = Duration::from_millis(20);
/// A link on which nothing was heard for this long is asked for a sign of life.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// How long the sign of life may take: with the above, a half-open link is found in 25 s.
pub const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Streams open at once in one session: more than the connections an agent takes.
pub const STREAMS_MAX: usize = 20_000;
/// The first pause before dialling again; it doubles...
pub const REDIAL_MIN: Duration = Duration::from_millis(50);
/// ...up to this while the server answers and turns the agent away, ...
pub const REDIAL_MAX: Duration = Duration::from_secs(5);
/// ...and up to this while nobody answers: a server that comes back has its agents back within a second, and a refused
/// dial costs nobody anything.
pub const REDIAL_AWAY_MAX: Duration = Duration::from_millis(500);
/// While calls wait for the link, and shortly after it was lost, dial at least this often: recovery takes at most 1 s.
pub const REDIAL_EAGER: Duration = Duration::from_millis(250);
/// How long a new call waits for a link that is down, counted from the loss.
pub const OUTAGE_WAIT: Duration = Duration::from_secs(1);

// ---- agent: HTTP ----

/// A request head with its fields.
pub const HEAD_BYTES_MAX: usize = 60 * 1024;
/// Fields in a head.
pub const HEAD_FIELDS_MAX: usize = 100;
/// A request target.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;
/// From accept, or from the first byte of a later head, to the end of the head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A body has this long...
pub const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// ...and another second for each of these many bytes received.
pub const BODY_BYTES_PER_SECOND: u64 = 64 * 1024;
/// How long a connection may be idle between two requests.
pub const KEEPALIVE_HTTP_IDLE: Duration = Duration::from_secs(75);
/// A client whose event stream does not drain is disconnected after this long; it will come back.
pub const READER_TIMEOUT: Duration = Duration::from_secs(30);
/// When an upstream has not answered a request for a stream within this time, the client gets its head anyway.
pub const STREAM_HEAD_DELAY: Duration = Duration::from_secs(1);
/// After a refusal in mid-request, so much more is read and dropped, that the answer is not lost to a reset...
pub const LINGER_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// ...for so long.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections of HTTP clients, or as many as there are descriptors less [`DESCRIPTORS_RESERVED`].
pub const HTTP_CONNS_MAX: usize = 16_384;
/// Descriptors kept for everything that is not a client's connection.
pub const DESCRIPTORS_RESERVED: usize = 128;
/// Bytes of a pipelined request held while an earlier one is answered; then reading stops.
pub const PIPELINE_BYTES_MAX: usize = 64 * 1024;
/// A request body kept in the agent to answer with the right id when the link is lost.
pub const REQUEST_KEPT_BYTES_MAX: usize = 16 * 1024;
/// Connections beyond the most there may be, which are told so before they are closed.
pub const TURNED_AWAY_MAX: usize = 64;
/// A client that has half-closed its connection may be gone altogether, and nothing tells which: one that takes its
/// answer within this long gets it, and a call that takes longer is cancelled within a second.
pub const HALF_CLOSED_WAIT: Duration = Duration::from_millis(750);
/// How long the rest of a request is waited for that will be answered with an error in any case: the answer shall
/// carry the request's id.
pub const REFUSED_BODY_WAIT: Duration = Duration::from_millis(500);
/// While this much waits to be read by a client, its pipelined requests wait too.
pub const CLIENT_UNSENT_HIGH: usize = 64 * 1024;
/// An event being put together: the largest that a server passes on, and something for its comments.
pub const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;
/// Shim connections at once.
pub const SHIM_CONNS_MAX: usize = 1_024;
/// Arguments and environments of runs that have not been handed to the server, together.
pub const RUNS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a shim may take to say what it wants.
pub const RUN_TIMEOUT: Duration = Duration::from_secs(10);

// ---- server ----

/// Bodies being collected to be judged, together.
pub const BODIES_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Answers being collected, together.
pub const ANSWERS_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Connecting to an upstream.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections kept per upstream for long.
pub const POOL_IDLE_MAX: usize = 32;
/// How long those beyond that are kept: calls come in bursts, and a connection costs as much as a call.
pub const POOL_BURST_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle connections per upstream at any time.
pub const POOL_BURST_MAX: usize = 1_024;
/// How long an idle connection to an upstream is kept.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// What may wait to be written to an upstream or a job's stdin before its source is paused.
pub const FEED_BYTES_HIGH: usize = 256 * 1024;
/// A response head of an upstream: what fits into one frame.
pub const RESPONSE_HEAD_BYTES_MAX: usize = 60 * 1024;
/// How long a call waits for a slot of `max_concurrent`.
pub const SLOT_WAIT: Duration = Duration::from_secs(5);
/// A grandchild that keeps a job's output open after the job has ended delays its end by no more than this.
pub const GRANDCHILD_WAIT: Duration = Duration::from_secs(1);
/// Outcome records that could not be written and wait; beyond it new calls are refused, and nothing is dropped before.
pub const OUTCOMES_WAITING_MAX: usize = 1_024;
/// How soon an append to the audit log that failed is tried again.
pub const RECORD_RETRY: Duration = Duration::from_secs(1);
/// How long a drain may take.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
