//! The phase of a connection (`phase`), and what is known of its request and response (`flags`).

/// No request is outstanding.
pub const IDLE: u32 = 0;
/// A request has begun, and its response has not.
pub const WAITING: u32 = 1;
/// The response's head is incomplete.
pub const HEAD: u32 = 2;
/// The response's body has begun and not ended.
pub const BODY: u32 = 3;

/// A request was seen on this connection.
pub const SEEN: u32 = 1;
/// Not HTTP/1: TLS, HTTP/2, an upgraded connection.
pub const OPAQUE: u32 = 1 << 1;
/// The request was a HEAD.
pub const BODILESS: u32 = 1 << 2;
/// The response ends at `answer_end`.
pub const SIZED: u32 = 1 << 3;
/// The response ends with an empty chunk.
pub const CHUNKED: u32 = 1 << 4;
/// The response ends with the connection, or its head is too long to be read.
pub const ENDLESS: u32 = 1 << 5;
/// A byte of the body was seen.
pub const BEGUN: u32 = 1 << 6;
/// The beginning of the request was not seen, so its times are unknown.
pub const UNTIMED: u32 = 1 << 7;
pub const FIN_TO_POD: u32 = 1 << 8;
pub const FIN_FROM_POD: u32 = 1 << 9;

const PER_RESPONSE: u32 = SIZED | CHUNKED | ENDLESS | BEGUN;
pub(super) const PER_REQUEST: u32 = PER_RESPONSE | BODILESS | UNTIMED;
