//! The control loop: polls the source, builds a fleet when something has changed, and publishes it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use router_core::fleet::{EngineInfo, Fleet, Phase, Problem, ReadinessGuard, Verdict, WorkerKey};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::{error, info, warn};

use super::files::Directory;
use super::flags::Engines;
use super::index::{Exposure, Index, default_gateway_labels};
use super::kube::Cluster;
use crate::certificates::Certificates;
use crate::config::SourceFlags;
use crate::metrics::Metrics;

/// Poll interval of sources without change notification (directories and flags). A change takes
/// effect after two polls, or at most five while files keep changing.
pub const POLL_INTERVAL: Duration = Duration::from_millis(150);

/// Where the objects come from.
#[derive(Debug)]
pub enum Feed {
    Directory(Directory),
    Engines(Engines),
    Cluster(Box<Cluster>),
}

impl Feed {
    /// Opens the source that the flags select. Nothing is read yet.
    ///
    /// # Errors
    /// The directory cannot be read, no cluster is configured, or a URL or port is invalid.
    pub async fn open(flags: &SourceFlags, metrics: &Metrics) -> anyhow::Result<Feed> {
        if flags.kubernetes {
            let cluster = Cluster::open(flags, metrics).await.context("--kubernetes")?;
            return Ok(Feed::Cluster(Box::new(cluster)));
        }
        if let Some(path) = &flags.manifests {
            let directory = Directory::open(path);
            let directory = directory.with_context(|| format!("--manifests {}", path.display()))?;
            return Ok(Feed::Directory(directory));
        }
        Ok(Feed::Engines(Engines::parse(&flags.prefills(), &flags.decode, flags.port)?))
    }

    /// Where clients reach the Gateways of this source.
    fn exposure(&self) -> Exposure {
        match self {
            Feed::Directory(_) | Feed::Engines(_) => Exposure::Direct,
            Feed::Cluster(cluster) => cluster.exposure().clone(),
        }
    }

    /// The labels of the pods of gateways.
    fn gateway_labels(&self) -> BTreeMap<String, String> {
        match self {
            Feed::Engines(_) => BTreeMap::new(),
            Feed::Directory(_) => default_gateway_labels(),
            Feed::Cluster(cluster) => cluster.gateway_labels().clone(),
        }
    }

    /// Whether readiness that most of a pool loses at once is believed. What files and flags say is
    /// always believed: only the operator writes them.
    fn readiness_guard(&self) -> ReadinessGuard {
        match self {
            Feed::Directory(_) | Feed::Engines(_) => ReadinessGuard::disabled(),
            Feed::Cluster(cluster) => ReadinessGuard::new(cluster.readiness_panic_threshold()),
        }
    }

    /// Waits until the source may have changed, or for the next tick if the source has no change
    /// notification. Cancel-safe.
    async fn changed(&mut self, ticks: &mut Interval) {
        match self {
            Feed::Directory(_) | Feed::Engines(_) => _ = ticks.tick().await,
            Feed::Cluster(cluster) => cluster.changed().await,
        }
    }

    /// Updates `index` and returns whether it has changed. Blocks.
    fn poll(&mut self, index: &mut Index) -> bool {
        match self {
            Feed::Directory(directory) => directory.poll(index),
            Feed::Engines(engines) => engines.poll(index),
            Feed::Cluster(cluster) => cluster.poll(index),
        }
    }
}

/// The fleet of a directory of manifests as it is now.
///
/// # Errors
/// The directory cannot be read.
pub fn read_manifests(path: &Path) -> anyhow::Result<Fleet> {
    let directory = Directory::open(path);
    let mut directory = directory.with_context(|| format!("--manifests {}", path.display()))?;
    let index = Index::with_exposure(Exposure::Direct);
    let mut index = index.with_gateways(default_gateway_labels());
    directory.poll(&mut index);
    Ok(index.build(&Fleet::default()))
}

/// The loop's state. It moves to a blocking thread for each step, because reading and building
/// would block the async runtime.
struct ControlState {
    feed: Feed,
    index: Index,
    fleet: Fleet,
    certificates: Certificates,
    guard: ReadinessGuard,
    started: Instant,
}

impl ControlState {
    fn build(&mut self) -> (Fleet, Certificates) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (fleet, certificates) = (&self.fleet, &self.certificates);
        self.index.build_guarded(fleet, certificates, &mut self.guard, now_ms)
    }
}

/// Publishes a fleet once the source has been read, and again whenever the source or what the
/// gateway's probes have learned about engines has changed, until `shutdown` is ready.
pub async fn run(
    feed: Feed,
    mut engine_info: mpsc::Receiver<(WorkerKey, EngineInfo)>,
    publish: impl Fn(Fleet, Certificates) + Send + Sync + 'static,
    shutdown: impl Future<Output = ()>,
) {
    let publish = Arc::new(publish);
    let index = Index::with_exposure(feed.exposure()).with_gateways(feed.gateway_labels());
    let guard = feed.readiness_guard();
    let mut state = ControlState {
        feed,
        index,
        fleet: Fleet::default(),
        certificates: Certificates::default(),
        guard,
        started: Instant::now(),
    };
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutdown = std::pin::pin!(shutdown);
    let mut first = true;
    let mut probes_open = true;
    loop {
        let (poll, received) = tokio::select! {
            () = &mut shutdown => return,
            () = state.feed.changed(&mut ticks) => (true, None),
            // No event of the source says that a distrusted engine has stopped answering.
            () = tokio::time::sleep(POLL_INTERVAL), if !state.fleet.distrusted.is_empty() => (true, None),
            received = engine_info.recv(), if probes_open => {
                probes_open = received.is_some();
                (false, received)
            }
        };
        let mut changed = false;
        let mut received = received;
        while let Some((worker, learned)) = received {
            changed |= state.index.set_engine_info(worker, learned);
            received = engine_info.try_recv().ok();
        }
        // Nothing is published before the source has been read.
        changed &= !first;
        if !poll && !changed {
            continue;
        }
        let publish = Arc::clone(&publish);
        let step = tokio::task::spawn_blocking(move || advance(state, poll, changed, &*publish));
        match step.await {
            Ok((next, built)) => {
                state = next;
                first &= !built;
            }
            Err(failure) => {
                error!(%failure, "control plane failed, serving the last fleet");
                return;
            }
        }
    }
}

/// Runs one step. The fleet is published before it is logged or written to statuses.
fn advance(
    mut state: ControlState,
    poll: bool,
    mut changed: bool,
    publish: &dyn Fn(Fleet, Certificates),
) -> (ControlState, bool) {
    if poll {
        changed |= state.feed.poll(&mut state.index);
    }
    changed |= state.fleet.distrusted.iter().any(|worker| worker.health.verdict() != Verdict::Up);
    if changed {
        let (mut next, mut certificates) = state.build();
        if state.index.forget_vanished(&next.distrusted) {
            (next, certificates) = state.build();
        }
        publish(next.clone(), certificates.clone());
        log_changes(&state.fleet, &next);
        (state.fleet, state.certificates) = (next, certificates);
        if let Feed::Cluster(cluster) = &state.feed {
            cluster.served(&state.index, &state.fleet);
        }
    }
    (state, changed)
}

/// Logs the problems that are new, those that are solved, and a summary of the fleet.
fn log_changes(old: &Fleet, new: &Fleet) {
    let before: BTreeSet<&Problem> = old.problems.iter().collect();
    let after: BTreeSet<&Problem> = new.problems.iter().collect();
    for problem in after.difference(&before) {
        warn!(code = problem.code, %problem, "configuration problem");
    }
    for problem in before.difference(&after) {
        info!(code = problem.code, %problem, "configuration problem solved");
    }
    info!(
        generation = new.generation,
        listeners = new.listeners.len(),
        pools = new.pools.len(),
        workers = new.workers().count(),
        ready = new.members().filter(|(_, member)| member.phase == Phase::Ready).count(),
        problems = new.problems.len(),
        "fleet published"
    );
}

#[cfg(test)]
mod tests {
    use super::super::files::Directory;
    use super::super::files::tests::TempDirectory;
    use super::*;

    const POOL: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool}
spec: {selector: {matchLabels: {app: a}}, targetPorts: [{number: 8000}]}
---
";

    fn pod(ready: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, uid: u, labels: {{app: a}}}}\n\
             status: {{podIP: 10.0.0.1, conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n"
        )
    }

    /// The next fleet that satisfies `wanted`.
    async fn next(
        fleets: &mut mpsc::UnboundedReceiver<Fleet>,
        wanted: impl Fn(&Fleet) -> bool,
    ) -> Fleet {
        let wait = async {
            loop {
                let fleet = fleets.recv().await.expect("run publishes");
                if wanted(&fleet) {
                    return fleet;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("a fleet in time")
    }

    #[tokio::test]
    async fn changes_of_files_and_engine_info_are_published_until_shutdown() {
        let scratch = TempDirectory::new();
        scratch.write("all.yaml", &(POOL.to_owned() + &pod("False")));
        let feed = Feed::Directory(Directory::open(scratch.path()).unwrap());
        let (engine_info, received) = mpsc::channel(8);
        let (published, mut fleets) = mpsc::unbounded_channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(run(
            feed,
            received,
            move |fleet, _| published.send(fleet).expect("the test receives"),
            async move {
                let _ = stopped.await;
            },
        ));
        let first = next(&mut fleets, |_| true).await;
        let worker = Arc::clone(&first.pools[0].members[0].worker);
        assert_eq!(first.pools[0].members[0].phase, Phase::NotReady);

        scratch.write("all.yaml", &(POOL.to_owned() + &pod("True")));
        let ready = |fleet: &Fleet| fleet.pools[0].members[0].phase == Phase::Ready;
        let second = next(&mut fleets, ready).await;
        assert!(Arc::ptr_eq(&worker, &second.pools[0].members[0].worker));

        let model = EngineInfo { served_model_name: Some("qwen".into()), ..EngineInfo::default() };
        engine_info.send((worker.key.clone(), model)).await.unwrap();
        let has_model =
            |fleet: &Fleet| fleet.pools[0].compatible_sets[0].models.iter().any(|m| **m == *"qwen");
        next(&mut fleets, has_model).await;

        stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap();
    }
}
