//! The life of a request: route, filters, attempts, response, log line.

pub(crate) mod attempt_record;
pub(crate) mod connection_info;
pub(crate) mod content_coding;
pub(crate) mod crash_history;
pub(crate) mod early_stream;
pub(crate) mod endpoint;
mod endpoint_choice;
mod event_batch;
mod forwarded;
mod forwarded_body;
pub(crate) mod generate;
pub(crate) mod handle;
mod head;
pub(crate) mod info;
pub(crate) mod keep_alive;
#[cfg(any(test, fuzzing))]
pub(crate) mod laws;
pub(crate) mod mirror;
pub(crate) mod model;
pub(crate) mod proxied_body;
pub(crate) mod proxy;
pub(crate) mod record;
pub(crate) mod reject;
pub(crate) mod relay;
mod request_body;
pub(crate) mod response_body;
pub(crate) mod retry;
pub(crate) mod routed;
pub(crate) mod shared_answers;
mod stream_watch;
pub(crate) mod upgrade;
