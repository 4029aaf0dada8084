//! Control ports, which only the engines know: the ports at which the ranks of a prefill take control
//! messages. They are read from the bootstrap server of the prefill, rarely and one request at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use router_core::fleet::Role;
use router_core::sglang::info::RouteParams;
use router_core::sglang::ranks::{RegisteredRanks, control_address};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use crate::agent::pods::source::KnownPod;
use crate::http_client::HttpClient;

/// Time that one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after which ports are read again: an engine that restarts in its pod has other ports.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// Time before the first retry if a server did not answer, or has not registered all of its ranks.
/// It doubles with each retry, up to half of [`REFRESH_INTERVAL`].
const FIRST_RETRY: Duration = Duration::from_secs(3);
/// Maximum size of an answer in bytes; real answers have a few hundred.
const MAX_ANSWER: usize = 64 << 10;
/// Minimum time between requests to two servers.
const PAUSE: Duration = Duration::from_millis(20);

/// The bootstrap server of a prefill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct BootstrapServer {
    pub(in crate::agent) uid: Arc<str>,
    pub(in crate::agent) address: SocketAddr,
}

/// The control addresses of the ranks of a prefill, which may be on several pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct ControlPorts {
    pub(in crate::agent) uid: Arc<str>,
    pub(in crate::agent) addresses: BTreeSet<SocketAddr>,
}

/// The bootstrap servers of the prefills among `pods`.
pub(in crate::agent) fn bootstrap_servers<'p>(
    pods: impl Iterator<Item = &'p KnownPod>,
) -> Vec<BootstrapServer> {
    let prefills = pods.filter(|pod| pod.role == Some(Role::Prefill));
    prefills
        .filter_map(|pod| {
            let address = SocketAddr::new(pod.address, pod.bootstrap?);
            Some(BootstrapServer { uid: Arc::clone(&pod.uid), address })
        })
        .collect()
}

/// The ports of one bootstrap server, and when they are read next.
#[derive(Debug)]
struct BootstrapState {
    address: SocketAddr,
    form: RouteParams,
    addresses: BTreeSet<SocketAddr>,
    due: Instant,
    /// Time between the last request and `due`.
    wait: Duration,
}

/// Reads the ports of the servers in `wanted`, and sends those that changed, until a channel closes.
pub(in crate::agent) async fn watch(
    mut wanted: watch::Receiver<Vec<BootstrapServer>>,
    ports: mpsc::Sender<ControlPorts>,
) {
    let client = HttpClient::without_pool(REQUEST_TIMEOUT);
    let mut known: BTreeMap<Arc<str>, BootstrapState> = BTreeMap::new();
    loop {
        update_known(&mut known, &wanted.borrow_and_update());
        let due = known.iter_mut().min_by_key(|(_, known)| known.due);
        let Some((uid, server)) = due else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let wait = server.due.saturating_duration_since(Instant::now());
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            () = sleep(wait.max(PAUSE)) => {}
        }
        let uid = Arc::clone(uid);
        let addresses = server.fetch(&client).await;
        server.wait = if addresses.is_some() { REFRESH_INTERVAL } else { server.retry_wait() };
        server.due = Instant::now() + server.wait;
        let Some(addresses) = addresses else { continue };
        if addresses == server.addresses {
            continue;
        }
        info!(server = %server.address, ranks = addresses.len(), "control ports changed");
        server.addresses.clone_from(&addresses);
        if ports.send(ControlPorts { uid, addresses }).await.is_err() {
            return;
        }
    }
}

/// Removes servers that are not wanted any more, and adds new ones, which are due at once.
fn update_known(known: &mut BTreeMap<Arc<str>, BootstrapState>, wanted: &[BootstrapServer]) {
    known.retain(|uid, known| {
        wanted.iter().any(|server| server.uid == *uid && server.address == known.address)
    });
    for server in wanted {
        known.entry(Arc::clone(&server.uid)).or_insert_with(|| BootstrapState {
            address: server.address,
            form: RouteParams::Ranks,
            addresses: BTreeSet::new(),
            due: Instant::now(),
            wait: Duration::ZERO,
        });
    }
}

impl BootstrapState {
    /// Time before the next request to a server that did not answer. A server that did answer the
    /// last time is restarting, so the first retry comes soon.
    fn retry_wait(&self) -> Duration {
        if self.wait == REFRESH_INTERVAL {
            return FIRST_RETRY;
        }
        (self.wait * 2).clamp(FIRST_RETRY, REFRESH_INTERVAL / 2)
    }

    /// Fetches the control address of every rank; `None` if one of them cannot be read.
    ///
    /// If the address of the first rank has not changed, the others are assumed unchanged too.
    async fn fetch(&mut self, client: &HttpClient) -> Option<BTreeSet<SocketAddr>> {
        let authority: Authority = self.address.to_string().parse().ok()?;
        let sizes = match self.sizes(client, &authority).await {
            Some(sizes) => sizes,
            None => {
                self.form = self.form.other();
                self.sizes(client, &authority).await?
            }
        };
        let mut addresses = BTreeSet::new();
        for query in sizes.queries() {
            let path = PathAndQuery::try_from(query).ok()?;
            let address = control_address(&get(client, &authority, path).await?)?;
            if addresses.is_empty() && self.addresses.contains(&address) {
                return Some(self.addresses.clone());
            }
            addresses.insert(address);
        }
        Some(addresses)
    }

    async fn sizes(&self, client: &HttpClient, authority: &Authority) -> Option<RegisteredRanks> {
        let path = PathAndQuery::from_static(self.form.query());
        RegisteredRanks::read(self.form, &get(client, authority, path).await?)
    }
}

async fn get(client: &HttpClient, authority: &Authority, path: PathAndQuery) -> Option<Bytes> {
    let answer = timeout(REQUEST_TIMEOUT, client.fetch(authority.clone(), path, MAX_ANSWER)).await;
    match answer.unwrap_or_else(|_| Err("timeout".to_owned())) {
        Ok(body) => Some(body),
        Err(reason) => {
            debug!(%authority, reason, "cannot read ranks of bootstrap server");
            None
        }
    }
}
