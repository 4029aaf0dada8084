//! [`IwarpConnections`]: TCP connections that carry RDMA. iWARP sets a connection up over TCP, and
//! then the card carries it without the host's stack.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use router_common::flow::{FlowKey, OpenConnection};

use crate::agent::pods::map_contents::canonical_address;

/// Maximum bytes of a set-up in one direction: an MPA request or reply with its private data
/// (RFC 5044, 7.1: 20 and 512 bytes), and the SYN.
const MAX_SETUP_BYTES: u64 = 533;
/// A younger connection may still send data over TCP.
const MIN_AGE: Duration = Duration::from_secs(2);

/// How iWARP connections are recognised.
#[derive(Debug, Default)]
pub(in crate::agent) struct IwarpConnections {
    /// Local and remote address of the connection manager's connections.
    pub(in crate::agent) endpoints: HashSet<(SocketAddr, SocketAddr)>,
    /// The ids of pods with queue pairs on an iWARP device.
    pub(in crate::agent) pods: HashSet<u32>,
}

impl IwarpConnections {
    /// Whether a connection carries iWARP: the connection manager lists it, or a pod that uses iWARP
    /// has it and it was silent since its set-up.
    pub(in crate::agent) fn contains(
        &self,
        flow: &FlowKey,
        connection: &OpenConnection,
        now: Duration,
    ) -> bool {
        if connection.established == 0 || self.endpoints.is_empty() && self.pods.is_empty() {
            return false;
        }
        let endpoints = (
            SocketAddr::new(canonical_address(flow.local), flow.local_port),
            SocketAddr::new(canonical_address(flow.remote), flow.remote_port),
        );
        if self.endpoints.contains(&endpoints) {
            return true;
        }
        let since = Duration::from_nanos(connection.since_ns);
        let is_setup_only = (1..=MAX_SETUP_BYTES).contains(&connection.acked)
            && connection.received <= MAX_SETUP_BYTES;
        self.pods.contains(&connection.pair.pod)
            && is_setup_only
            && now.saturating_sub(since) >= MIN_AGE
    }
}

#[cfg(test)]
mod tests {
    use router_common::flow::{PairKey, mapped};

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn flow() -> FlowKey {
        FlowKey {
            local: mapped([10, 0, 0, 1]),
            remote: mapped([10, 0, 0, 2]),
            local_port: 18_515,
            remote_port: 40_000,
        }
    }

    fn connection(pod: u32, acked: u64, received: u64, age: Duration) -> OpenConnection {
        OpenConnection {
            pair: PairKey { pod, peer: 9, class: 0 },
            established: 1,
            acked,
            received,
            since_ns: (NOW - age).as_nanos() as u64,
            ..OpenConnection::default()
        }
    }

    #[test]
    fn a_connection_of_the_connection_manager_is_iwarp() {
        let endpoints = ("10.0.0.1:18515".parse().unwrap(), "10.0.0.2:40000".parse().unwrap());
        let iwarp = IwarpConnections { endpoints: [endpoints].into(), pods: HashSet::new() };
        let new = connection(1, 0, 0, Duration::ZERO);
        assert!(iwarp.contains(&flow(), &new, NOW));
        assert!(!iwarp.contains(&FlowKey { remote_port: 40_001, ..flow() }, &new, NOW));
        assert!(!iwarp.contains(&flow(), &OpenConnection { established: 0, ..new }, NOW));
    }

    #[test]
    fn a_connection_silent_since_its_set_up_is_iwarp_if_the_pod_uses_iwarp() {
        let iwarp = IwarpConnections { endpoints: HashSet::new(), pods: [1].into() };
        let (old, young) = (Duration::from_secs(5), Duration::from_millis(100));
        assert!(iwarp.contains(&flow(), &connection(1, 45, 44, old), NOW));
        assert!(!iwarp.contains(&flow(), &connection(1, 45, 44, young), NOW));
        assert!(!iwarp.contains(&flow(), &connection(1, 600, 44, old), NOW));
        assert!(!iwarp.contains(&flow(), &connection(1, 45, 600, old), NOW));
        assert!(
            !iwarp.contains(&flow(), &connection(1, 0, 0, old), NOW),
            "a connection without counts is not silent"
        );
        assert!(!iwarp.contains(&flow(), &connection(2, 45, 44, old), NOW), "a pod without iWARP");
    }
}
