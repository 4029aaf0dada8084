//! Which replica writes: the one that holds the Lease.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::Instant;

/// The Lease, in the namespace that pd-router runs in.
pub(super) const LEASE: &str = "pd-router-gateway";
/// A holder that has not renewed for so long has gone.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long does as if it had lost it, before others may take it.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// For one question about the Lease: a server that hangs must not outlast the deadline.
const PATIENCE: Duration = Duration::from_secs(4);

/// The part of one replica in choosing who writes.
pub(super) struct Election {
    client: Client,
    identity: String,
    /// The Lease's version when it last changed, and when that was seen: clocks need not agree.
    seen: Option<(String, Instant)>,
    /// When it last was ours.
    renewed: Option<Instant>,
}

impl Election {
    pub(super) fn new(client: Client) -> Election {
        // Unlike that of any other replica, also after a restart.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let identity = format!("{}-{:08x}", host.trim(), rand::random::<u32>());
        Election { client, identity, seen: None, renewed: None }
    }

    /// Takes or renews the Lease.
    pub(super) async fn campaign(&mut self) {
        let asked = Instant::now();
        match tokio::time::timeout(PATIENCE, self.try_campaign()).await {
            Ok(Ok(true)) => self.renewed = Some(asked),
            Ok(Ok(false)) => self.renewed = None,
            Ok(Err(error)) => tracing::debug!(%error, "the Lease cannot be had"),
            Err(_) => tracing::debug!("the Lease cannot be had in time"),
        }
    }

    /// Whether the Lease is ours, as far as we know.
    pub(super) fn leads(&self) -> bool {
        self.renewed.is_some_and(|renewed| renewed.elapsed() < RENEW_DEADLINE)
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
