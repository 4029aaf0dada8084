//! Tells the cluster's objects how they stand: one replica at a time, and only what has changed.
//!
//! The replica that holds the Lease writes. Each object's status is read, merged and written with
//! its version, so that nobody's words are lost; what was written once is not looked at again
//! before it is to change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::fronts::Fronts;
use super::fronts::plan::Shape;
use super::index::{Front, Standing, Told};
use super::kube::resource;
use super::lead::{Election, LEASE};
use super::merge;
use super::objects::Key;

/// Between two looks at the Lease.
const ROUND: Duration = Duration::from_secs(3);
/// Between two writes of what is told to everybody anew, against what others have changed.
const RESYNC: Duration = Duration::from_secs(600);

/// What the cluster is to be told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Report {
    pub(super) standings: Vec<Standing>,
    /// The Gateways that need a Service, and the Services that there are for it.
    pub(super) fronts: Vec<Front>,
    pub(super) services: Vec<Service>,
}

/// Writes statuses, and Services of this shape, as reports change, while this replica holds the
/// Lease.
pub(super) async fn run(
    client: Client,
    mut reports: watch::Receiver<Arc<Report>>,
    shape: Option<Shape>,
) {
    let mut election = Election::new(client.clone());
    let mut fronts = shape.map(|shape| Fronts::new(client.clone(), shape));
    let mut writer = Writer { client, written: BTreeMap::new(), since: Instant::now() };
    let mut led = false;
    let mut look = Instant::now();
    // The first report says that everything has been read: before it, nothing is known.
    if reports.changed().await.is_err() {
        return;
    }
    loop {
        if Instant::now() >= look {
            look = Instant::now() + ROUND;
            election.campaign().await;
        }
        let leads = election.leads();
        if leads != led {
            tracing::info!(leads, lease = LEASE, "who writes statuses has changed");
            writer.written.clear();
            led = leads;
        }
        if leads {
            let report = Arc::clone(&reports.borrow_and_update());
            if let Some(fronts) = &mut fronts {
                fronts.settle(&report.fronts, &report.services).await;
            }
            writer.write(&report.standings).await;
        }
        tokio::select! {
            changed = reports.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(look) => {}
        }
    }
}

struct Writer {
    client: Client,
    /// What each object has been told.
    written: BTreeMap<Key, Told>,
    since: Instant,
}

impl Writer {
    async fn write(&mut self, standings: &[Standing]) {
        if self.since.elapsed() > RESYNC {
            self.written.clear();
            self.since = Instant::now();
        }
        let keys: std::collections::BTreeSet<&Key> =
            standings.iter().map(|standing| &standing.key).collect();
        self.written.retain(|key, _| keys.contains(key));
        for Standing { key, told } in standings {
            if self.written.get(key) == Some(told) {
                continue;
            }
            match self.tell(key, told).await {
                Ok(()) => _ = self.written.insert(key.clone(), told.clone()),
                // The next round tries again.
                Err(error) => tracing::debug!(%error, object = %key, "its status is not written"),
            }
        }
    }

    async fn tell(&self, key: &Key, told: &Told) -> Result<(), kube::Error> {
        let resource = resource(key.kind);
        let api: Api<DynamicObject> = match key.kind.namespaced() {
            true => Api::namespaced_with(self.client.clone(), &key.name.namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        };
        let Some(object) = api.get_opt(&key.name.name).await? else { return Ok(()) };
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let old = object.data.get("status").cloned().unwrap_or_default();
        let Some(status) = merge::merged(&old, told, &now) else { return Ok(()) };
        let patch = json!({
            "metadata": {"resourceVersion": object.metadata.resource_version},
            "status": status,
        });
        api.patch_status(&key.name.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        tracing::debug!(object = %key, "status written");
        Ok(())
    }
}
