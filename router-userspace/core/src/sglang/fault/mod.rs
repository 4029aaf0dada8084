//! Failures that engines report, and errors for clients.

mod answer;
mod client;
mod engine;
mod redact;

pub use answer::{EngineFault, answer_fault, event_fault, first_event_fault};
pub use client::ClientError;
pub use engine::{MAX_MESSAGE, about_transfer, engine_error, is_requested_abort, lacks_room};
pub use redact::strip_addresses;
