//! Loopback addresses that no other test uses, so that every server may have its usual port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// A process that holds this UDP port of an address holds the address.
const CLAIM_PORT: u16 = 65_521;

/// Number of addresses that this process has claimed: where to look next.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address in 127.0.0.0/8 of which no other holder exists; given back on drop.
#[derive(Debug)]
pub struct Loopback {
    address: Ipv4Addr,
    _claim: UdpSocket,
}

impl Loopback {
    /// Claims the next free address. Processes begin at different ones and skip those in use.
    ///
    /// # Panics
    /// No address is free.
    #[must_use]
    pub fn claim() -> Loopback {
        let start = std::process::id().wrapping_mul(97);
        for _ in 0..100_000 {
            let place = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            // The second byte is never 0: 127.0.x.y is where people and the demo listen.
            let [_, low, third, last] = place.to_be_bytes();
            let address = Ipv4Addr::new(127, low.max(1), third, last.clamp(1, 254));
            if let Ok(claim) = UdpSocket::bind(SocketAddr::new(address.into(), CLAIM_PORT)) {
                return Loopback { address, _claim: claim };
            }
        }
        panic!("no loopback address is free");
    }

    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.into()
    }

    #[must_use]
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_given_out_once() {
        let held: Vec<Loopback> = (0..50).map(|_| Loopback::claim()).collect();
        let mut addresses: Vec<IpAddr> = held.iter().map(Loopback::ip).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 50);
        assert!(addresses.iter().all(IpAddr::is_loopback));
    }
}
