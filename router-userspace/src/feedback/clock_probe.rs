//! [`ClockProbe`]: asks an agent for its clock, beside its stream.
//!
//! It does not run on the thread of the streams, which sleeps to gather frames: that would be a part of each
//! round trip.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::uri::{Authority, PathAndQuery};
use parking_lot::Mutex;
use router_core::fleet::AgentAddress;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::stream_error::STREAM_TIMEOUT;
use super::subscribe::{SubscriberShared, SubscriptionState};

const CLOCK_PATH: PathAndQuery = PathAndQuery::from_static("/v1/clock");
/// Time between two round trips.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time between two round trips until the first few were answered.
const FIRST_INTERVAL: Duration = Duration::from_millis(50);
const FIRST: u32 = 8;
/// Maximum size of an answer in bytes.
const MAX_ANSWER: usize = 1 << 10;

/// The answer to `/v1/clock`.
#[derive(Deserialize)]
struct ClockAnswer {
    instance: u64,
    clock_us: u64,
}

pub(super) struct ClockProbe {
    pub(super) shared: Arc<SubscriberShared>,
    pub(super) agent: AgentAddress,
    pub(super) state: Arc<Mutex<SubscriptionState>>,
}

impl ClockProbe {
    /// Asks until the task is aborted. An agent without a stream is not asked.
    pub(super) async fn run(self) {
        let mut answered = 0;
        loop {
            let is_connected = self.state.lock().connected_at.is_some();
            let has_answer = is_connected
                && timeout(STREAM_TIMEOUT, self.round_trip()).await.ok().flatten().is_some();
            answered = if has_answer { FIRST.min(answered + 1) } else { 0 };
            let is_first = answered < FIRST && (has_answer || !is_connected);
            sleep(if is_first { FIRST_INTERVAL } else { INTERVAL }).await;
        }
    }

    /// `None` if there is no answer, or it is not valid.
    async fn round_trip(&self) -> Option<()> {
        let context = &self.shared.context;
        let headers = context.headers().ok()?;
        let authority: Authority = self.agent.address.to_string().parse().ok()?;
        let clock = context.view.clock;
        let sent_us = clock.now_us();
        let answer = context.upstream.get(&authority, &CLOCK_PATH, &headers, MAX_ANSWER).await;
        let received_us = clock.now_us();
        let answer = answer.ok().filter(|answer| answer.status() == StatusCode::OK)?;
        let ClockAnswer { instance, clock_us } = serde_json::from_slice(answer.body()).ok()?;
        self.state.lock().clock.observe(instance, clock_us, sent_us, received_us);
        Some(())
    }
}
