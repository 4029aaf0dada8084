//! Writes the statuses of the cluster's objects, and the Services of Gateways.
//!
//! Only the replica that holds the Lease writes, and only what has changed. It renews the Lease while
//! it writes, and drops what it has not written when the Lease is lost. Each status is read,
//! merged and written with its resource version, so that changes of other controllers are kept. A
//! status that has been written is not read again before it has to change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api_resource::api_resource;
use super::gateway_service::ServiceReconciler;
use super::gateway_service::plan::ServiceTemplate;
use super::index::{GatewayService, ObjectStatus, StatusPatch};
use super::leader_election::{Election, LEASE, in_time};
use super::objects::Key;
use super::status_merge;
use super::write_report::WriteReport;

/// Interval between two renewals of the Lease.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// Interval at which all statuses are compared again, to repair changes by others.
const RESYNC: Duration = Duration::from_secs(600);

/// The statuses and Services that the cluster should have.
#[derive(Debug, Default, PartialEq)]
pub(super) struct DesiredState {
    pub(super) statuses: Vec<ObjectStatus>,
    /// The Services that Gateways need, and the Services that exist for them.
    pub(super) gateway_services: Vec<GatewayService>,
    pub(super) services: Vec<Service>,
}

/// Writes statuses, and Services made from `template`, whenever the desired state changes and this
/// replica holds the Lease.
pub(super) async fn run(
    client: Client,
    mut desired: watch::Receiver<Arc<DesiredState>>,
    template: Option<ServiceTemplate>,
    report: WriteReport,
) {
    let mut candidate = ElectionCandidate::new(client.clone());
    let reconciler = template.map(|template| ServiceReconciler::new(client.clone(), template));
    let mut writer = Writer { client, written: BTreeMap::new(), since: Instant::now() };
    let mut was_leader = false;
    // The first desired state is sent once all objects have been read.
    if desired.changed().await.is_err() {
        return;
    }
    loop {
        if Instant::now() >= candidate.renew_at {
            candidate.renew(&report).await;
        }
        let leader = candidate.election.leads_until().is_some();
        if leader != was_leader {
            match leader {
                true => tracing::info!(lease = LEASE, "leader election: leading"),
                false => tracing::warn!(lease = LEASE, "leader election: lost"),
            }
            writer.written.clear();
            report.set_leader(leader);
            was_leader = leader;
        }
        if !leader {
            report.retain_statuses(|_| false);
            report.retain_services(|_| false);
        } else {
            let state = Arc::clone(&desired.borrow_and_update());
            let services = async {
                if let Some(reconciler) = &reconciler {
                    let (wanted, known) = (&state.gateway_services, &state.services);
                    reconciler.reconcile(wanted, known, &report).await;
                }
            };
            // Neither waits for the other: a request that hangs keeps back only its kind, and ends after
            // `WRITE_TIMEOUT`.
            let round = async { tokio::join!(services, writer.write(&state.statuses, &report)) };
            tokio::select! {
                _ = round => {}
                () = candidate.hold(&report) => continue,
            }
        }
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(candidate.renew_at) => {}
        }
    }
}

/// This replica in the election, and when it renews or asks for the Lease next.
struct ElectionCandidate {
    election: Election,
    renew_at: Instant,
}

impl ElectionCandidate {
    fn new(client: Client) -> ElectionCandidate {
        ElectionCandidate { election: Election::new(client), renew_at: Instant::now() }
    }

    async fn renew(&mut self, report: &WriteReport) {
        let next = Instant::now() + RENEW_INTERVAL;
        self.election.acquire_or_renew(report).await;
        // Set last: a renewal that is dropped, because the round has ended, is sent again at once.
        self.renew_at = next;
    }

    /// Renews the Lease while a round of writes lasts, however long. Ends when the Lease is lost:
    /// nothing may be written from then on.
    async fn hold(&mut self, report: &WriteReport) {
        while let Some(until) = self.election.leads_until() {
            let renewal = async {
                tokio::time::sleep_until(self.renew_at).await;
                self.renew(report).await;
            };
            if tokio::time::timeout_at(until, renewal).await.is_err() {
                return;
            }
        }
    }
}

struct Writer {
    client: Client,
    /// The last status written to each object.
    written: BTreeMap<Key, StatusPatch>,
    since: Instant,
}

impl Writer {
    async fn write(&mut self, statuses: &[ObjectStatus], report: &WriteReport) {
        if self.since.elapsed() > RESYNC {
            self.written.clear();
            self.since = Instant::now();
        }
        let keys: BTreeSet<&Key> = statuses.iter().map(|status| &status.key).collect();
        self.written.retain(|key, _| keys.contains(key));
        let names: BTreeSet<String> = keys.iter().map(ToString::to_string).collect();
        report.retain_statuses(|object| names.contains(object));
        for ObjectStatus { key, patch } in statuses {
            if self.written.get(key) == Some(patch) {
                continue;
            }
            match in_time(self.write_one(key, patch)).await {
                Ok(()) => {
                    self.written.insert(key.clone(), patch.clone());
                    report.succeeded(&key.to_string());
                }
                // Another controller has written in the meantime. The next round tries again.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    tracing::debug!(object = %key, "status conflict, retrying");
                }
                Err(error) => report.status_failed(&key.to_string(), &error),
            }
        }
    }

    async fn write_one(&self, key: &Key, wanted: &StatusPatch) -> Result<(), kube::Error> {
        let resource = api_resource(key.kind);
        let api: Api<DynamicObject> = match key.kind.namespaced() {
            true => Api::namespaced_with(self.client.clone(), &key.name.namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        };
        let Some(object) = api.get_opt(&key.name.name).await? else { return Ok(()) };
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let old = object.data.get("status").cloned().unwrap_or_default();
        let Some(status) = status_merge::merged(&old, wanted, &now) else { return Ok(()) };
        let patch = json!({
            "metadata": {"resourceVersion": object.metadata.resource_version},
            "status": status,
        });
        api.patch_status(&key.name.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        tracing::debug!(object = %key, "status written");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
