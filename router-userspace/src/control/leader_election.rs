//! Leader election: the replica that holds the Lease writes statuses and Services.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::Instant;

use super::write_report::WriteReport;

/// Name of the Lease, in the namespace that pd-router runs in.
pub(super) const LEASE: &str = "pd-router-gateway";
/// Time without renewal after which another replica may take the Lease.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Time without renewal after which the holder stops writing. It is shorter than
/// [`LEASE_DURATION`], so that two replicas never write at once.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Timeout of one attempt to acquire or renew the Lease, well below [`RENEW_DEADLINE`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Timeout of one write of the holder, and of what it reads for it; below [`RENEW_DEADLINE`]. The client
/// has none that suits: its own is for watches.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(8);

/// One replica's participation in the election.
pub(super) struct Election {
    client: Client,
    identity: String,
    /// Resource version of the Lease when it last changed, and when this replica observed it. Local
    /// time is used because the replicas' clocks may differ.
    observed: Option<(String, Instant)>,
    /// When this replica last acquired or renewed the Lease.
    renewed: Option<Instant>,
}

impl Election {
    pub(super) fn new(client: Client) -> Election {
        // Unique among replicas and restarts.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let identity = format!("{}-{:08x}", host.trim(), rand::random::<u32>());
        Election { client, identity, observed: None, renewed: None }
    }

    /// Tries to acquire or renew the Lease.
    pub(super) async fn acquire_or_renew(&mut self, report: &WriteReport) {
        let started = Instant::now();
        match tokio::time::timeout(REQUEST_TIMEOUT, self.try_acquire()).await {
            Ok(Ok(acquired)) => {
                self.renewed = acquired.then_some(started);
                report.succeeded(LEASE);
            }
            Ok(Err(error)) => report.lease_failed(LEASE, &error.to_string()),
            Err(_) => report.lease_failed(LEASE, "timeout"),
        }
    }

    /// Until when this replica may write: it holds the Lease and has renewed it in time.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        let until = self.renewed? + RENEW_DEADLINE;
        (Instant::now() < until).then_some(until)
    }

    async fn try_acquire(&mut self) -> Result<bool, kube::Error> {
        let leases: Api<Lease> = Api::default_namespaced(self.client.clone());
        let Some(mut lease) = leases.get_opt(LEASE).await? else {
            let lease = Lease { metadata: metadata(), spec: Some(self.lease_spec(0)) };
            leases.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() {
            let since = match &self.observed {
                Some((known, since)) if *known == version => *since,
                _ => Instant::now(),
            };
            self.observed = Some((version, since));
            if since.elapsed() < LEASE_DURATION {
                return Ok(false);
            }
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        let mut renewed = self.lease_spec(transitions + i32::from(holder != self.identity));
        if holder == self.identity {
            renewed.acquire_time = spec.acquire_time;
        }
        lease.spec = Some(renewed);
        // The object carries its resource version, so the API server answers 409 if another replica
        // has written in the meantime.
        match leases.replace(LEASE, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lease_spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// Ends a write that takes longer than [`WRITE_TIMEOUT`] with an error, so that those after it get their
/// turn while the Lease is renewed.
pub(super) async fn in_time<T>(
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    tokio::time::timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", WRITE_TIMEOUT.as_secs());
        Err(kube::Error::Service(reason.into()))
    })
}

fn metadata() -> ObjectMeta {
    ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() }
}
