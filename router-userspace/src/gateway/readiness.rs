//! [`Readiness`]: the answer to `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use router_core::fleet::{ListenPort, Phase, Verdict};
use tokio_util::sync::CancellationToken;

use super::fleet_handle::FleetHandle;

/// Which of the ports that the fleet wants are open.
#[derive(Default)]
pub(crate) struct OpenPorts {
    pub(crate) open: Vec<ListenPort>,
    /// Why the other ports could not be opened.
    pub(crate) failures: Vec<String>,
}

/// Whether the gateway is ready for traffic, and if not, why.
pub(crate) struct Readiness {
    fleet: Arc<FleetHandle>,
    pub(crate) ports: Mutex<OpenPorts>,
    draining: CancellationToken,
    /// Every worker of one snapshot has been probed: workers that are added later do not make the
    /// gateway unready.
    all_probed: AtomicBool,
}

impl Readiness {
    pub(crate) fn new(fleet: Arc<FleetHandle>, draining: CancellationToken) -> Readiness {
        Readiness { fleet, ports: Mutex::default(), draining, all_probed: false.into() }
    }

    /// Whether the gateway is ready.
    ///
    /// # Errors
    /// The reason why it is not ready, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.draining.is_cancelled() {
            return Err("draining".to_owned());
        }
        let fleet = self.fleet.load();
        if fleet.generation == 0 {
            return Err("no configuration has been read yet".to_owned());
        }
        let ports = self.ports.lock();
        if !ports.failures.is_empty() {
            return Err(ports.failures.join("; "));
        }
        if !fleet.ports().iter().all(|port| ports.open.contains(port)) {
            return Err("listeners are being opened".to_owned());
        }
        if !self.all_probed.load(Ordering::Relaxed) {
            let unprobed = fleet.members().filter(|(_, member)| {
                member.phase == Phase::Ready && member.worker.health.verdict() == Verdict::Unknown
            });
            let unprobed = unprobed.count();
            if unprobed > 0 {
                return Err(format!("{unprobed} engines have not been probed yet"));
            }
            self.all_probed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
