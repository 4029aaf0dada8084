//! Tells the cluster's objects how they stand: one replica at a time, and only what has changed.
//!
//! The replica that holds the Lease writes. Each object's status is read, merged and written with
//! its version, so that nobody's words are lost; what was written once is not looked at again
//! before it is to change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use router_core::fleet::ObjectName;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::index::{Standing, Told};
use super::kube::resource;
use super::merge;
use super::objects::Key;

/// The Lease, in the namespace that pd-router runs in.
const LEASE: &str = "pd-router-gateway";
/// A holder that has not renewed for so long has gone.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Between two looks at the Lease and the Service.
const ROUND: Duration = Duration::from_secs(3);
/// Between two writes of what is told to everybody anew, against what others have changed.
const RESYNC: Duration = Duration::from_secs(600);

/// Writes statuses as `standings` change, while this replica holds the Lease. `service` is whose
/// address is the Gateways'.
pub(super) async fn run(
    client: Client,
    mut standings: watch::Receiver<Arc<Vec<Standing>>>,
    service: Option<ObjectName>,
) {
    let identity = identity();
    let mut election = Election { client: client.clone(), identity, seen: None };
    let mut writer = Writer { client, written: BTreeMap::new(), since: Instant::now() };
    let mut addresses = Vec::new();
    let mut leads = false;
    let mut look = Instant::now();
    loop {
        if Instant::now() >= look {
            look = Instant::now() + ROUND;
            let before = leads;
            leads = election.campaign().await;
            if leads != before {
                tracing::info!(leads, lease = LEASE, "who writes statuses has changed");
                writer.written.clear();
            }
            if leads && let Some(found) = writer.addresses(service.as_ref()).await {
                addresses = found;
            }
        }
        if leads {
            let now = Arc::clone(&standings.borrow_and_update());
            writer.write(&now, &addresses).await;
        }
        tokio::select! {
            changed = standings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(look) => {}
        }
    }
}

/// Unlike that of any other replica, also after a restart.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{:08x}", host.trim(), rand::random::<u32>())
}

/// The part of one replica in choosing who writes.
struct Election {
    client: Client,
    identity: String,
    /// The Lease's version when it last changed, and when that was seen: clocks need not agree.
    seen: Option<(String, Instant)>,
}

impl Election {
    /// Takes or renews the Lease; returns whether it is ours.
    async fn campaign(&mut self) -> bool {
        match self.try_campaign().await {
            Ok(leads) => leads,
            Err(error) => {
                tracing::debug!(%error, "the Lease cannot be had");
                false
            }
        }
    }

    async fn try_campaign(&mut self) -> Result<bool, kube::Error> {
        let leases: Api<Lease> = Api::default_namespaced(self.client.clone());
        let Some(mut lease) = leases.get_opt(LEASE).await? else {
            let lease = Lease { metadata: metadata(), spec: Some(self.held(0)) };
            leases.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() {
            let since = match &self.seen {
                Some((known, since)) if *known == version => *since,
                _ => Instant::now(),
            };
            self.seen = Some((version, since));
            if since.elapsed() < LEASE_DURATION {
                return Ok(false);
            }
        }
        let changes = spec.lease_transitions.unwrap_or_default();
        let mut held = self.held(changes + i32::from(holder != self.identity));
        if holder == self.identity {
            held.acquire_time = spec.acquire_time;
        }
        lease.spec = Some(held);
        // Refused where another replica was quicker: the version is part of it.
        match leases.replace(LEASE, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn held(&self, changes: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }
}

fn metadata() -> ObjectMeta {
    ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() }
}

struct Writer {
    client: Client,
    /// What each object has been told, with the addresses then.
    written: BTreeMap<Key, (Told, Vec<String>)>,
    since: Instant,
}

impl Writer {
    /// The addresses of the Service; `None` where it cannot be asked.
    async fn addresses(&self, service: Option<&ObjectName>) -> Option<Vec<String>> {
        let Some(name) = service else { return Some(Vec::new()) };
        let services: Api<Service> = Api::namespaced(self.client.clone(), &name.namespace);
        match services.get_opt(&name.name).await {
            Ok(service) => Some(service.as_ref().map(addresses).unwrap_or_default()),
            Err(error) => {
                tracing::debug!(%error, service = %name, "the Service cannot be read");
                None
            }
        }
    }

    async fn write(&mut self, standings: &[Standing], addresses: &[String]) {
        if self.since.elapsed() > RESYNC {
            self.written.clear();
            self.since = Instant::now();
        }
        let keys: std::collections::BTreeSet<&Key> =
            standings.iter().map(|standing| &standing.key).collect();
        self.written.retain(|key, _| keys.contains(key));
        for Standing { key, told } in standings {
            let known = self.written.get(key);
            if known.is_some_and(|(before, at)| before == told && at == addresses) {
                continue;
            }
            match self.tell(key, told, addresses).await {
                Ok(()) => _ = self.written.insert(key.clone(), (told.clone(), addresses.to_vec())),
                // The next round tries again.
                Err(error) => tracing::debug!(%error, object = %key, "its status is not written"),
            }
        }
    }

    async fn tell(&self, key: &Key, told: &Told, addresses: &[String]) -> Result<(), kube::Error> {
        let resource = resource(key.kind);
        let api: Api<DynamicObject> = match key.kind.namespaced() {
            true => Api::namespaced_with(self.client.clone(), &key.name.namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        };
        let Some(object) = api.get_opt(&key.name.name).await? else { return Ok(()) };
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let old = object.data.get("status").cloned().unwrap_or_default();
        let Some(status) = merge::merged(&old, told, addresses, &now) else { return Ok(()) };
        let patch = json!({
            "metadata": {"resourceVersion": object.metadata.resource_version},
            "status": status,
        });
        api.patch_status(&key.name.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        tracing::debug!(object = %key, "status written");
        Ok(())
    }
}

/// Where a Service can be reached: what its load balancer was given, else its cluster IP.
fn addresses(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer") {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
        let address = |one: &k8s_openapi::api::core::v1::LoadBalancerIngress| {
            one.ip.clone().or_else(|| one.hostname.clone())
        };
        return ingress.iter().filter_map(address).collect();
    }
    let ip = spec.and_then(|spec| spec.cluster_ip.clone());
    ip.filter(|ip| !ip.is_empty() && ip != "None").into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_address_is_read_and_never_invented() {
        let cluster = service(json!({"spec": {"clusterIP": "10.96.0.7"}}));
        assert_eq!(addresses(&cluster), ["10.96.0.7"]);
        let headless = service(json!({"spec": {"clusterIP": "None"}}));
        assert_eq!(addresses(&headless), Vec::<String>::new());
        let balancer = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7"}});
        assert_eq!(addresses(&service(balancer.clone())), Vec::<String>::new());
        let mut balancer = balancer;
        balancer["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb"}]}});
        assert_eq!(addresses(&service(balancer)), ["192.0.2.1", "lb"]);
    }
}
