//! [`Gateway`]: the state that all requests share.

use std::sync::Arc;

use super::fleet_handle::FleetHandle;
use super::peers::GatewayPeers;
use super::placement::queue::Admission;
use super::placement::responses::Responses;
use super::request::content_coding::BodyDecoder;
use super::request::crash_history::CrashHistory;
use super::request::mirror::Mirrors;
use super::request::shared_answers::SharedAnswers;
use super::timeline::recent::RecentRequests;
use super::traces::TraceExporter;
use super::upstream::dispatch::Dispatch;
use crate::config::GatewaySettings;
use crate::feedback::Subscriptions;
use crate::http_client::HttpClient;
use crate::http_client::collector::BodyMemory;
use crate::metrics::Metrics;

/// State that all requests share.
pub(crate) struct Gateway {
    pub(crate) settings: GatewaySettings,
    /// Sends requests to the backends of Services.
    pub(crate) http: HttpClient,
    pub(crate) fleet: Arc<FleetHandle>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) metrics: Metrics,
    /// The last requests, for `/requests`.
    pub(crate) recent: Arc<RecentRequests>,
    /// Exports requests as traces.
    pub(crate) traces: Option<TraceExporter>,
    /// The load streams of the agents.
    pub(crate) feedback: Subscriptions,
    /// The bytes that all request bodies together may hold in memory.
    pub(crate) body_memory: BodyMemory,
    pub(crate) body_decoder: BodyDecoder,
    pub(crate) responses: Responses,
    pub(crate) shared_answers: SharedAnswers,
    /// The contents of requests that were running on engines when these crashed.
    pub(crate) crashes: Arc<CrashHistory>,
    /// The other gateways. `None` without a token that they share.
    pub(crate) peers: Option<GatewayPeers>,
    pub(crate) mirrors: Mirrors,
}

impl Gateway {
    /// Records which pools had ready workers until now. Called before the next snapshot is published.
    pub(crate) fn record_serving_pools(&self) {
        let now_ms = self.dispatch.clock.now_ms();
        for pool in self.fleet.load().pools.iter().filter(|pool| pool.has_ready_workers()) {
            pool.history.served_until(now_ms);
        }
    }
}
