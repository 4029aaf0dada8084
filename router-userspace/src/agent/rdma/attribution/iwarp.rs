//! TCP connections that RDMA has taken over: iWARP sets one up, and then the card carries it alone.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use router_common::flow::{FlowKey, OpenConnection};

/// What MPA's request or reply and its private data have at most (RFC 5044, 7.1: 20 and 512
/// bytes), and the SYN.
const SET_UP: u64 = 533;
/// A connection that is younger may still have something to say.
const YOUNG: Duration = Duration::from_secs(2);

/// Which connections those are.
#[derive(Debug, Default)]
pub(in crate::agent) struct IwarpConnections {
    /// Both ends, as the connection manager has them.
    pub(in crate::agent) ends: HashSet<(SocketAddr, SocketAddr)>,
    /// Ids of pods with queue pairs on an iWARP device.
    pub(in crate::agent) pods: HashSet<u32>,
}

impl IwarpConnections {
    /// Whether this is one: the connection manager says so, or a pod that uses iWARP has it and it
    /// fell silent after no more than a set-up.
    pub(in crate::agent) fn has(
        &self,
        flow: &FlowKey,
        seen: &OpenConnection,
        now: Duration,
    ) -> bool {
        if seen.established == 0 || self.ends.is_empty() && self.pods.is_empty() {
            return false;
        }
        let ends = (
            SocketAddr::new(address(flow.local), flow.local_port),
            SocketAddr::new(address(flow.remote), flow.remote_port),
        );
        if self.ends.contains(&ends) {
            return true;
        }
        let since = Duration::from_nanos(seen.since_ns);
        let is_set_up = (1..=SET_UP).contains(&seen.acked) && seen.received <= SET_UP;
        self.pods.contains(&seen.pair.pod) && is_set_up && now.saturating_sub(since) >= YOUNG
    }
}

fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
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

    fn seen(pod: u32, acked: u64, received: u64, age: Duration) -> OpenConnection {
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
    fn a_connection_of_the_connection_manager_is_taken() {
        let ends = ("10.0.0.1:18515".parse().unwrap(), "10.0.0.2:40000".parse().unwrap());
        let taken = IwarpConnections { ends: [ends].into(), pods: HashSet::new() };
        let new = seen(1, 0, 0, Duration::ZERO);
        assert!(taken.has(&flow(), &new, NOW));
        assert!(!taken.has(&FlowKey { remote_port: 40_001, ..flow() }, &new, NOW));
        assert!(!taken.has(&flow(), &OpenConnection { established: 0, ..new }, NOW));
    }

    #[test]
    fn a_silent_one_of_a_pod_that_uses_iwarp_is_taken_and_a_talking_one_is_not() {
        let taken = IwarpConnections { ends: HashSet::new(), pods: [1].into() };
        let (old, young) = (Duration::from_secs(5), Duration::from_millis(100));
        assert!(taken.has(&flow(), &seen(1, 45, 44, old), NOW));
        assert!(!taken.has(&flow(), &seen(1, 45, 44, young), NOW));
        assert!(!taken.has(&flow(), &seen(1, 600, 44, old), NOW));
        assert!(!taken.has(&flow(), &seen(1, 45, 600, old), NOW));
        assert!(!taken.has(&flow(), &seen(1, 0, 0, old), NOW), "not counted is not silent");
        assert!(!taken.has(&flow(), &seen(2, 45, 44, old), NOW), "a pod without iWARP");
    }
}
