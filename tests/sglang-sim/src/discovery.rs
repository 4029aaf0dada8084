//! The prefills that a decode knows: looked up in their registries, kept until a heartbeat fails.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::time::{Instant, interval_at, sleep, timeout};

use crate::config::Config;
use crate::kv::control;
use crate::process::Process;

/// Maximum size of a registry answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// One prefill, as its registry describes it.
#[derive(Debug, Default)]
struct PrefillEntry {
    dp_size: u64,
    ranks: HashMap<u64, SocketAddr>,
    misses: u32,
}

/// The prefills that a decode has looked up, by bootstrap address.
#[derive(Debug)]
pub(crate) struct KnownPrefills {
    known: Mutex<HashMap<String, PrefillEntry>>,
    lost: Mutex<Vec<LostRank>>,
    client: Client<HttpConnector, Empty<Bytes>>,
    limit: Duration,
}

/// A prefill rank whose control connection has ended.
#[derive(Clone, Debug)]
struct LostRank {
    bootstrap: String,
    control: SocketAddr,
    ticks: u32,
}

/// Why the lookup of a prefill failed.
#[derive(Debug)]
pub(crate) enum DiscoveryError {
    /// The request fails; its error names this handshake reason.
    Reason(String),
    /// Page size or KV type differ. The scheduler of a 0.5 decode crashes.
    Mismatch,
}

impl KnownPrefills {
    pub(crate) fn new(config: &Config) -> KnownPrefills {
        let mut connector = HttpConnector::new();
        if !config.host.is_unspecified() {
            connector.set_local_address(Some(config.host));
        }
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.timing.peer_timeout));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        KnownPrefills {
            known: Mutex::default(),
            lost: Mutex::default(),
            client,
            limit: config.timing.peer_timeout,
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, PrefillEntry>> {
        self.known.lock()
    }

    /// Forgets a prefill whose control connection has ended. A real engine restarts so slowly that
    /// the heartbeat always notices; a simulated engine can be back before the next heartbeat.
    pub(crate) fn connection_lost(&self, control: SocketAddr) {
        let mut lost = self.lost.lock();
        self.known().retain(|bootstrap, prefill| {
            let is_this_prefill = prefill.ranks.values().any(|rank| *rank == control);
            if is_this_prefill {
                lost.push(LostRank { bootstrap: bootstrap.clone(), control, ticks: 0 });
            }
            !is_this_prefill
        });
    }

    /// The lost ranks that have been gone for `misses` heartbeats.
    fn expired_ranks(&self, misses: u32) -> Vec<LostRank> {
        let mut lost = self.lost.lock();
        lost.iter_mut().for_each(|rank| rank.ticks += 1);
        lost.extract_if(.., |rank| rank.ticks >= misses).collect()
    }

    /// Sends a GET to a bootstrap server. `None` unless it answers 200 within the timeout.
    async fn get(&self, bootstrap: &str, path: &str) -> Option<Bytes> {
        let uri: http::Uri = format!("http://{bootstrap}{path}").parse().ok()?;
        let answer = async {
            let response = self.client.get(uri).await.ok()?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.ok()?;
            (status == http::StatusCode::OK).then(|| body.to_bytes())
        };
        timeout(self.limit, answer).await.ok().flatten()
    }

    async fn get_json(&self, bootstrap: &str, path: &str) -> Option<Value> {
        serde_json::from_slice(&self.get(bootstrap, path).await?).ok()
    }
}

/// The number of DP ranks of a prefill, read once and cached.
async fn dp_size(process: &Process, bootstrap: &str) -> Result<u64, DiscoveryError> {
    if let Some(prefill) = process.prefills.known().get(bootstrap) {
        return Ok(prefill.dp_size);
    }
    let size = if process.is_0_4() {
        size_0_4(process, bootstrap).await
    } else {
        size_0_5(process, bootstrap).await
    }?;
    let mut known = process.prefills.known();
    known
        .entry(bootstrap.to_owned())
        .or_insert(PrefillEntry { dp_size: size, ..PrefillEntry::default() });
    Ok(size)
}

async fn size_0_4(process: &Process, bootstrap: &str) -> Result<u64, DiscoveryError> {
    let path = "/route?engine_rank=-1&target_dp_group=-1";
    let info = process.prefills.get_json(bootstrap, path).await.unwrap_or_default();
    info["prefill_dp_size"].as_u64().filter(|size| *size > 0).ok_or_else(|| {
        let reason =
            format!("Could not fetch prefill parallel info from bootstrap_addr: {bootstrap}");
        DiscoveryError::Reason(reason)
    })
}

async fn size_0_5(process: &Process, bootstrap: &str) -> Result<u64, DiscoveryError> {
    let path = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
    for attempt in 1..=process.config.timing.route_attempts {
        if let Some(info) = process.prefills.get_json(bootstrap, path).await {
            let config = &process.config;
            let page_size = info["page_size"].as_u64();
            let matches = page_size.is_none_or(|size| size == u64::from(config.page_size))
                && info["kv_cache_dtype"].as_str().is_none_or(|d| d == config.kv_cache_dtype);
            return if matches {
                Ok(info["dp_size"].as_u64().unwrap_or(1).max(1))
            } else {
                Err(DiscoveryError::Mismatch)
            };
        }
        if attempt < process.config.timing.route_attempts {
            sleep(process.config.timing.route_retry).await;
        }
    }
    // The engine aborts the receiver here; the client reads that reason.
    Err(DiscoveryError::Reason("Aborted by AbortReq.".into()))
}

/// The control address of the prefill rank that `room` belongs to.
///
/// # Errors
/// The registry does not answer, is incomplete, or describes an incompatible engine.
pub(crate) async fn find_rank(
    process: &Arc<Process>,
    bootstrap: &str,
    room: u64,
    forced_rank: Option<u64>,
    own: SocketAddr,
) -> Result<SocketAddr, DiscoveryError> {
    let size = dp_size(process, bootstrap).await?;
    let rank = forced_rank.unwrap_or(room % size);
    if let Some(address) = process
        .prefills
        .known()
        .get(bootstrap)
        .and_then(|prefill| prefill.ranks.get(&rank).copied())
    {
        return Ok(address);
    }
    let path = if process.is_0_4() {
        format!("/route?engine_rank=0&target_dp_group={rank}")
    } else {
        format!("/route?prefill_dp_rank={rank}&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0")
    };
    let info = process.prefills.get_json(bootstrap, &path).await.unwrap_or_default();
    let ip = info["rank_ip"].as_str().and_then(|ip| ip.parse().ok());
    let port = info["rank_port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let (Some(ip), Some(port)) = (ip, port) else {
        let reason = format!(
            "Could not fetch bootstrap info for engine rank: 0 and target_dp_group: {rank}"
        );
        return Err(DiscoveryError::Reason(reason));
    };
    let address = SocketAddr::new(ip, port);
    if let Some(prefill) = process.prefills.known().get_mut(bootstrap) {
        prefill.ranks.insert(rank, address);
    }
    if let Some(data) = process.data {
        let registration = control::registration(own, data, process.is_0_4());
        process.outboxes.send(process, address, registration);
    }
    Ok(address)
}

/// Probes every known prefill. After `heartbeat_misses` failures, transfers from that prefill fail
/// and it is forgotten, so that the next request looks it up again.
pub(crate) async fn heartbeat(process: Arc<Process>) {
    let period = process.config.timing.heartbeat_interval;
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        process.wait_for_scheduler().await;
        let addresses: Vec<String> = process.prefills.known().keys().cloned().collect();
        for bootstrap in addresses {
            let alive = process.prefills.get(&bootstrap, "/health").await.is_some();
            let lost = {
                let mut known = process.prefills.known();
                let Some(prefill) = known.get_mut(&bootstrap) else { continue };
                prefill.misses = if alive { 0 } else { prefill.misses + 1 };
                let lost = prefill.misses >= process.config.timing.heartbeat_misses;
                if lost {
                    known.remove(&bootstrap);
                }
                lost
            };
            if lost {
                process.ranks.iter().for_each(|rank| rank.fail_receivers(&bootstrap, None));
            }
        }
        for lost in process.prefills.expired_ranks(process.config.timing.heartbeat_misses) {
            let peer = Some(lost.control);
            process.ranks.iter().for_each(|rank| rank.fail_receivers(&lost.bootstrap, peer));
        }
    }
}
