//! Ports that only the engines know: where each rank of a prefill takes control messages, asked
//! of its bootstrap registry, rarely and one question at a time.

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

use super::pods::KnownPod;
use crate::http_client::HttpClient;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer holds: an engine that restarts in its pod has other ports.
const HOLDS: Duration = Duration::from_secs(60);
/// How soon a prefill is asked again that did not answer, or has not registered all its ranks;
/// twice as long after every further time, up to half of the above.
const AGAIN: Duration = Duration::from_secs(3);
/// A registry's answers have a few hundred bytes.
const LONGEST_ANSWER: usize = 64 << 10;
/// Between two prefills that are asked.
const PAUSE: Duration = Duration::from_millis(20);

/// Whom to ask: a prefill and its bootstrap server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bootstrap {
    pub(super) uid: Arc<str>,
    pub(super) address: SocketAddr,
}

/// What a prefill told: the control addresses of its ranks, which may be on other pods too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) uid: Arc<str>,
    pub(super) controls: BTreeSet<SocketAddr>,
}

/// The bootstrap servers of the prefills among `pods`.
pub(super) fn bootstraps<'p>(pods: impl Iterator<Item = &'p KnownPod>) -> Vec<Bootstrap> {
    let prefills = pods.filter(|pod| pod.role == Some(Role::Prefill));
    prefills
        .filter_map(|pod| {
            let address = SocketAddr::new(pod.address, pod.bootstrap?);
            Some(Bootstrap { uid: Arc::clone(&pod.uid), address })
        })
        .collect()
}

/// What is known of one registry.
#[derive(Debug)]
struct Known {
    address: SocketAddr,
    form: RouteParams,
    controls: BTreeSet<SocketAddr>,
    due: Instant,
    /// How long it was until then.
    wait: Duration,
}

/// Asks the registries that `wanted` names, for as long as anyone listens to what they tell.
pub(super) async fn learn(mut wanted: watch::Receiver<Vec<Bootstrap>>, told: mpsc::Sender<Told>) {
    let upstream = HttpClient::sparing(PATIENCE);
    let mut known: BTreeMap<Arc<str>, Known> = BTreeMap::new();
    loop {
        take_up(&mut known, &wanted.borrow_and_update());
        let due = known.iter_mut().min_by_key(|(_, known)| known.due);
        let Some((uid, registry)) = due else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let wait = registry.due.saturating_duration_since(Instant::now());
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
        let controls = registry.ask(&upstream).await;
        registry.wait = if controls.is_some() { HOLDS } else { registry.longer() };
        registry.due = Instant::now() + registry.wait;
        let Some(controls) = controls else { continue };
        if controls == registry.controls {
            continue;
        }
        info!(registry = %registry.address, ranks = controls.len(), "control ports learned");
        registry.controls.clone_from(&controls);
        if told.send(Told { uid, controls }).await.is_err() {
            return;
        }
    }
}

/// Forgets whom nobody wants to know of any more, and asks new ones at once.
fn take_up(known: &mut BTreeMap<Arc<str>, Known>, wanted: &[Bootstrap]) {
    known.retain(|uid, known| {
        wanted.iter().any(|registry| registry.uid == *uid && registry.address == known.address)
    });
    for registry in wanted {
        known.entry(Arc::clone(&registry.uid)).or_insert_with(|| Known {
            address: registry.address,
            form: RouteParams::Ranks,
            controls: BTreeSet::new(),
            due: Instant::now(),
            wait: Duration::ZERO,
        });
    }
}

impl Known {
    /// Until the next question to a prefill that did not answer: soon at first, and where it did
    /// answer before, which means that it restarts.
    fn longer(&self) -> Duration {
        if self.wait == HOLDS { AGAIN } else { (self.wait * 2).clamp(AGAIN, HOLDS / 2) }
    }

    /// The control address of every rank; `None` if not all could be asked for.
    ///
    /// Where the first rank is where it was, the others are held to be as well.
    async fn ask(&mut self, upstream: &HttpClient) -> Option<BTreeSet<SocketAddr>> {
        let authority: Authority = self.address.to_string().parse().ok()?;
        let sizes = match self.sizes(upstream, &authority).await {
            Some(sizes) => sizes,
            None => {
                self.form = self.form.other();
                self.sizes(upstream, &authority).await?
            }
        };
        let mut controls = BTreeSet::new();
        for query in sizes.queries() {
            let path = PathAndQuery::try_from(query).ok()?;
            let control = control_address(&get(upstream, &authority, path).await?)?;
            if controls.is_empty() && self.controls.contains(&control) {
                return Some(self.controls.clone());
            }
            controls.insert(control);
        }
        Some(controls)
    }

    async fn sizes(&self, upstream: &HttpClient, authority: &Authority) -> Option<RegisteredRanks> {
        let path = PathAndQuery::from_static(self.form.query());
        RegisteredRanks::read(self.form, &get(upstream, authority, path).await?)
    }
}

async fn get(upstream: &HttpClient, authority: &Authority, path: PathAndQuery) -> Option<Bytes> {
    let answer = timeout(PATIENCE, upstream.fetch(authority.clone(), path, LONGEST_ANSWER)).await;
    match answer.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
        Ok(body) => Some(body),
        Err(why) => {
            debug!(%authority, why, "the bootstrap server does not tell its ranks");
            None
        }
    }
}
