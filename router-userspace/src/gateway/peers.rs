//! [`GatewayPeers`]: the other gateways, of which this one learns which contents crashed engines there.
//!
//! Each gateway holds one request to `GET /crashes` of each other one, which is answered when there is
//! something new, and at once at the start. So a gateway needs no list of who must be informed, no queue
//! and no retry: a gateway that was unreachable or restarted gets everything with its next answer.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use router_core::fleet::Fleet;
use router_core::sglang::ContentHash;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::request::crash_history::{ContentFingerprint, CrashHistory};
use crate::http_client::HttpClient;
use crate::token::Guard;

/// Time after which a request for news is answered without any.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(15);
/// Time for an answer: `MAX_WAIT`, and what a busy gateway and the network need.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of an answer in bytes. A record takes about 110.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Pause before the next request to a peer that failed: doubled up to the maximum, and drawn from its
/// upper half.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Pause after an answer with news: a peer under whose token many crashes come is not asked in a loop.
const ANSWER_PAUSE: Duration = Duration::from_millis(5);

/// What `GET /crashes` answers.
#[derive(Debug, Serialize, Deserialize)]
struct CrashReport {
    /// Random, new with each process.
    gateway: String,
    /// Changes with every crash that becomes known.
    version: u64,
    crashes: Vec<SharedCrash>,
}

/// A crash of an engine while it ran a content. All are keyed hashes, in hexadecimal digits.
#[derive(Debug, Serialize, Deserialize)]
struct SharedCrash {
    scope: String,
    content: String,
    worker: String,
    age_ms: u64,
}

/// The answer to `GET /crashes?gateway=ID&version=N`, as JSON: at once if the gateway or its version is
/// another one, else after the next crash, or after [`MAX_WAIT`].
pub(crate) async fn answer(history: &CrashHistory, query: &str) -> String {
    let gateway = format!("{:016x}", history.gateway);
    let mut known = (None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "gateway" => known.0 = Some(value == gateway),
            "version" => known.1 = value.parse().ok(),
            _ => {}
        }
    }
    if let (Some(true), Some(version)) = known {
        _ = timeout(MAX_WAIT, history.changed(version)).await;
    }
    let (version, crashes) = history.all();
    let crashes = crashes.iter().map(|crash| SharedCrash {
        scope: format!("{:016x}", crash.content.scope),
        content: format!("{:032x}", crash.content.content.0),
        worker: format!("{:016x}", crash.worker),
        age_ms: u64::try_from(crash.at.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    let answer = CrashReport { gateway, version, crashes: crashes.collect() };
    serde_json::to_string(&answer).unwrap_or_default()
}

/// The requests to all other gateways.
pub(crate) struct GatewayPeers {
    shared: Arc<PeerContext>,
    /// Peers of flags, in addition to those of the snapshot.
    static_peers: Vec<SocketAddr>,
    tasks: TaskTracker,
    stop: CancellationToken,
    running: Mutex<HashMap<SocketAddr, AbortHandle>>,
}

struct PeerContext {
    client: HttpClient,
    guard: Arc<Guard>,
    history: Arc<CrashHistory>,
}

impl GatewayPeers {
    /// The requests end with `stop`. `guard` has the token of the peers' admin ports.
    pub(crate) fn new(
        client: HttpClient,
        guard: Arc<Guard>,
        history: Arc<CrashHistory>,
        static_peers: Vec<SocketAddr>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> GatewayPeers {
        let shared = Arc::new(PeerContext { client, guard, history });
        GatewayPeers { shared, static_peers, tasks, stop, running: Mutex::default() }
    }

    /// Asks the gateways of a snapshot and of flags, and no others.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let wanted: HashSet<SocketAddr> =
            self.static_peers.iter().chain(&fleet.gateways).copied().collect();
        let mut running = self.running.lock();
        running.retain(|peer, task| {
            let stays = wanted.contains(peer);
            if !stays {
                task.abort();
            }
            stays
        });
        for peer in wanted {
            running.entry(peer).or_insert_with(|| {
                let (context, stop) = (Arc::clone(&self.shared), self.stop.clone());
                let task = async move { stop.run_until_cancelled(context.follow(peer)).await };
                self.tasks.spawn(task).abort_handle()
            });
        }
    }
}

impl PeerContext {
    /// Asks one gateway again and again. Ends only where the gateway is this one.
    async fn follow(&self, peer: SocketAddr) {
        let mut known: Option<(String, u64)> = None;
        let mut pause = MIN_PAUSE;
        let mut last_error = None;
        loop {
            match self.ask(peer, known.as_ref()).await {
                Ok(answer) if answer.gateway == format!("{:016x}", self.history.gateway) => return,
                Ok(answer) => {
                    let was_lost = last_error.take().is_some();
                    if known.is_none() || was_lost {
                        tracing::info!(%peer, "gateway peer connected");
                    }
                    self.history.learn(answer.crashes.iter().filter_map(read));
                    known = Some((answer.gateway, answer.version));
                    pause = MIN_PAUSE;
                    tokio::time::sleep(ANSWER_PAUSE).await;
                }
                Err(reason) => {
                    if last_error.as_ref() != Some(&reason) {
                        tracing::warn!(%peer, reason, "gateway peer lost");
                        last_error = Some(reason);
                    }
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    async fn ask(
        &self,
        peer: SocketAddr,
        known: Option<&(String, u64)>,
    ) -> Result<CrashReport, String> {
        let authority = Authority::try_from(peer.to_string()).map_err(|error| error.to_string())?;
        let path = match known {
            Some((gateway, version)) => format!("/crashes?gateway={gateway}&version={version}"),
            None => "/crashes".to_owned(),
        };
        let path = PathAndQuery::try_from(path).map_err(|error| error.to_string())?;
        let token = self.guard.token().ok_or("the token file is missing or invalid")?;
        let mut bearer =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| error.to_string())?;
        bearer.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        let answer = self.client.get(&authority, &path, &headers, MAX_ANSWER_BYTES);
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?;
        let answer: http::Response<Bytes> = answer.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("answered {}", answer.status()));
        }
        let answer: CrashReport =
            serde_json::from_slice(answer.body()).map_err(|error| error.to_string())?;
        // It goes into the next path.
        match answer.gateway.len() == 16 && answer.gateway.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(answer),
            false => Err("the gateway's id is not 16 hexadecimal digits".to_owned()),
        }
    }
}

/// `None` for a record that cannot be read.
fn read(crash: &SharedCrash) -> Option<(ContentFingerprint, u64, Duration)> {
    let scope = u64::from_str_radix(&crash.scope, 16).ok()?;
    let content = ContentHash(u128::from_str_radix(&crash.content, 16).ok()?);
    let worker = u64::from_str_radix(&crash.worker, 16).ok()?;
    Some((ContentFingerprint { scope, content }, worker, Duration::from_millis(crash.age_ms)))
}
