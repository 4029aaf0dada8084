//! What a decode knows of prefills: looked up in their registries, kept until a heartbeat fails.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::{Instant, interval_at, sleep, timeout};

use crate::config::Config;
use crate::kv::control;
use crate::life::Life;

/// Largest registry answer that is read.
const ANSWER_LIMIT: usize = 1 << 20;

/// One prefill as its registry describes it.
#[derive(Debug, Default)]
struct Prefill {
    dp_size: u64,
    ranks: HashMap<u64, SocketAddr>,
    misses: u32,
}

/// The prefills that a decode has met, by bootstrap address.
#[derive(Debug)]
pub(crate) struct Peers {
    known: Mutex<HashMap<String, Prefill>>,
    broken: Mutex<Vec<Broken>>,
    client: Client<HttpConnector, Empty<Bytes>>,
    limit: Duration,
}

/// A prefill rank whose control connection has ended.
#[derive(Clone, Debug)]
struct Broken {
    bootstrap: String,
    control: SocketAddr,
    ticks: u32,
}

/// Why a prefill could not be met.
#[derive(Debug)]
pub(crate) enum Unmet {
    /// The request fails with this reason of a handshake.
    Reason(String),
    /// Sizes differ, at which a 0.5 decode's scheduler crashes.
    Mismatch,
}

impl Peers {
    pub(crate) fn new(config: &Config) -> Peers {
        let mut connector = HttpConnector::new();
        if !config.host.is_unspecified() {
            connector.set_local_address(Some(config.host));
        }
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.timing.peer_timeout));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Peers {
            known: Mutex::default(),
            broken: Mutex::default(),
            client,
            limit: config.timing.peer_timeout,
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Prefill>> {
        self.known.lock().expect("no code panics while it holds the known prefills")
    }

    /// Forgets a prefill whose control connection has ended. A real engine takes so long to
    /// restart that the heartbeat always notices; one of these may be back before the next.
    pub(crate) fn broke(&self, control: SocketAddr) {
        let mut broken = self.broken.lock().expect("nothing panics with the broken ones");
        self.known().retain(|bootstrap, prefill| {
            let theirs = prefill.ranks.values().any(|rank| *rank == control);
            if theirs {
                broken.push(Broken { bootstrap: bootstrap.clone(), control, ticks: 0 });
            }
            !theirs
        });
    }

    /// The broken ranks that as many heartbeats would have missed by now.
    fn missed(&self, misses: u32) -> Vec<Broken> {
        let mut broken = self.broken.lock().expect("nothing panics with the broken ones");
        broken.iter_mut().for_each(|rank| rank.ticks += 1);
        broken.extract_if(.., |rank| rank.ticks >= misses).collect()
    }

    /// GET from a bootstrap server; `None` for anything but a 200 within the limit.
    async fn get(&self, bootstrap: &str, path: &str) -> Option<Bytes> {
        let uri: http::Uri = format!("http://{bootstrap}{path}").parse().ok()?;
        let answer = async {
            let response = self.client.get(uri).await.ok()?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await.ok()?;
            (status == http::StatusCode::OK).then(|| body.to_bytes())
        };
        timeout(self.limit, answer).await.ok().flatten()
    }

    async fn get_json(&self, bootstrap: &str, path: &str) -> Option<Value> {
        serde_json::from_slice(&self.get(bootstrap, path).await?).ok()
    }
}

/// The number of DP ranks of a prefill, asked for once and then remembered.
async fn dp_size(life: &Life, bootstrap: &str) -> Result<u64, Unmet> {
    if let Some(prefill) = life.peers.known().get(bootstrap) {
        return Ok(prefill.dp_size);
    }
    let size =
        if life.is_old() { size_old(life, bootstrap).await } else { size(life, bootstrap).await }?;
    let mut known = life.peers.known();
    known.entry(bootstrap.to_owned()).or_insert(Prefill { dp_size: size, ..Prefill::default() });
    Ok(size)
}

async fn size_old(life: &Life, bootstrap: &str) -> Result<u64, Unmet> {
    let path = "/route?engine_rank=-1&target_dp_group=-1";
    let info = life.peers.get_json(bootstrap, path).await.unwrap_or_default();
    info["prefill_dp_size"].as_u64().filter(|size| *size > 0).ok_or_else(|| {
        let reason =
            format!("Could not fetch prefill parallel info from bootstrap_addr: {bootstrap}");
        Unmet::Reason(reason)
    })
}

async fn size(life: &Life, bootstrap: &str) -> Result<u64, Unmet> {
    let path = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
    for attempt in 1..=life.config.timing.route_attempts {
        if let Some(info) = life.peers.get_json(bootstrap, path).await {
            let config = &life.config;
            let page_size = info["page_size"].as_u64();
            let fits = page_size.is_none_or(|size| size == u64::from(config.page_size))
                && info["kv_cache_dtype"].as_str().is_none_or(|d| d == config.kv_cache_dtype);
            return if fits {
                Ok(info["dp_size"].as_u64().unwrap_or(1).max(1))
            } else {
                Err(Unmet::Mismatch)
            };
        }
        if attempt < life.config.timing.route_attempts {
            sleep(life.config.timing.route_retry).await;
        }
    }
    // The engine gives up by aborting the receiver, which is the reason that the client reads.
    Err(Unmet::Reason("Aborted by AbortReq.".into()))
}

/// The control address of the prefill rank that a room belongs to.
///
/// # Errors
/// The registry does not answer, is incomplete, or describes an engine that does not fit.
pub(crate) async fn meet(
    life: &Arc<Life>,
    bootstrap: &str,
    room: u64,
    wanted: Option<u64>,
    own: SocketAddr,
) -> Result<SocketAddr, Unmet> {
    let size = dp_size(life, bootstrap).await?;
    let rank = wanted.unwrap_or(room % size);
    if let Some(address) =
        life.peers.known().get(bootstrap).and_then(|prefill| prefill.ranks.get(&rank).copied())
    {
        return Ok(address);
    }
    let path = if life.is_old() {
        format!("/route?engine_rank=0&target_dp_group={rank}")
    } else {
        format!("/route?prefill_dp_rank={rank}&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0")
    };
    let info = life.peers.get_json(bootstrap, &path).await.unwrap_or_default();
    let ip = info["rank_ip"].as_str().and_then(|ip| ip.parse().ok());
    let port = info["rank_port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let (Some(ip), Some(port)) = (ip, port) else {
        let reason = format!(
            "Could not fetch bootstrap info for engine rank: 0 and target_dp_group: {rank}"
        );
        return Err(Unmet::Reason(reason));
    };
    let address = SocketAddr::new(ip, port);
    if let Some(prefill) = life.peers.known().get_mut(bootstrap) {
        prefill.ranks.insert(rank, address);
    }
    if let Some(data) = life.data {
        let hello = control::registration(own, data, life.is_old());
        life.outboxes.send(life, address, hello);
    }
    Ok(address)
}

/// Asks every known prefill whether it lives; after enough misses its rooms fail and it is
/// forgotten, so that the next request looks it up again.
pub(crate) async fn heartbeat(life: Arc<Life>) {
    let period = life.config.timing.heartbeat_interval;
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        life.turn().await;
        let addresses: Vec<String> = life.peers.known().keys().cloned().collect();
        for bootstrap in addresses {
            let alive = life.peers.get(&bootstrap, "/health").await.is_some();
            let lost = {
                let mut known = life.peers.known();
                let Some(prefill) = known.get_mut(&bootstrap) else { continue };
                prefill.misses = if alive { 0 } else { prefill.misses + 1 };
                let lost = prefill.misses >= life.config.timing.heartbeat_misses;
                if lost {
                    known.remove(&bootstrap);
                }
                lost
            };
            if lost {
                life.ranks.iter().for_each(|rank| rank.lose(&bootstrap, None));
            }
        }
        for broken in life.peers.missed(life.config.timing.heartbeat_misses) {
            let peer = Some(broken.control);
            life.ranks.iter().for_each(|rank| rank.lose(&broken.bootstrap, peer));
        }
    }
}
