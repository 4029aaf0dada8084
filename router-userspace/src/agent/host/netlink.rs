//! Interfaces, their byte counters and routes, read by rtnetlink in this process's network namespace.

use std::io;
use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use crate::agent::host::netlink_socket::{
    DUMP, NetlinkSocket, attributes, messages, number, push_attribute, text,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_STATS_LINK_64: u16 = 1;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Interface {
    pub(in crate::agent) index: u32,
    pub(in crate::agent) name: String,
    /// Index of the bridge that it is a port of; 0 if none.
    pub(in crate::agent) master: u32,
    /// `veth`, `bridge` and so on; empty for a physical device.
    pub(in crate::agent) kind: String,
}

/// A client of rtnetlink.
#[derive(Debug)]
pub(in crate::agent) struct Netlink(NetlinkSocket);

impl Default for Netlink {
    fn default() -> Netlink {
        Netlink(NetlinkSocket::new(SockProtocol::NetlinkRoute))
    }
}

impl Netlink {
    /// Every interface.
    ///
    /// # Errors
    /// The socket fails, or the kernel refuses the request.
    pub(in crate::agent) fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        // struct ifinfomsg, all zeros: of any family.
        let answer = self.0.request(RTM_GETLINK, DUMP, &[0; 16])?;
        let links = messages(answer).filter(|message| message.kind == RTM_NEWLINK);
        Ok(links.filter_map(|message| interface(message.body)).collect())
    }

    /// The answer; `None` if the kernel answers with an error, which means that nothing matches.
    fn request(&mut self, kind: u16, body: &[u8]) -> io::Result<Option<&[u8]>> {
        self.0.open()?;
        Ok(self.0.request(kind, 0, body).ok())
    }

    /// The byte counters of interface `index`; `None` if there is no such interface.
    ///
    /// # Errors
    /// The socket fails.
    pub(in crate::agent) fn counters(
        &mut self,
        index: u32,
    ) -> io::Result<Option<InterfaceCounters>> {
        // struct if_stats_msg: family, padding, index, and which attributes are wanted.
        let mut message = [0; 12];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        message[8..].copy_from_slice(&(1u32 << (IFLA_STATS_LINK_64 - 1)).to_ne_bytes());
        Ok(self.request(RTM_GETSTATS, &message)?.and_then(link_stats))
    }

    /// The index of the interface that packets to `address` leave by; `None` without a route.
    ///
    /// # Errors
    /// The socket fails.
    pub(in crate::agent) fn route(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let (family, bytes) = match address {
            IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
        };
        // struct rtmsg: family, destination's prefix length, then zeros.
        let mut message = vec![0u8; 12];
        message[0] = u8::try_from(family).unwrap_or_default();
        message[1] = if address.is_ipv4() { 32 } else { 128 };
        push_attribute(&mut message, RTA_DST, &bytes);
        Ok(self.request(RTM_GETROUTE, &message)?.and_then(output_interface))
    }
}

/// The counters in an answer to RTM_GETSTATS.
fn link_stats(answer: &[u8]) -> Option<InterfaceCounters> {
    let message = messages(answer).find(|message| message.kind == RTM_NEWSTATS)?;
    let mut attributes = attributes(message.body.get(12..)?);
    let (_, stats) = attributes.find(|(kind, _)| *kind == IFLA_STATS_LINK_64)?;
    // struct rtnl_link_stats64: packets received and sent, then the bytes of both.
    let number = |at: usize| Some(u64::from_ne_bytes(stats.get(at..at + 8)?.try_into().ok()?));
    Some(InterfaceCounters { rx_packets: number(0)?, rx_bytes: number(16)?, tx_bytes: number(24)? })
}

/// The interface in an answer to RTM_GETROUTE.
fn output_interface(answer: &[u8]) -> Option<u32> {
    let message = messages(answer).find(|message| message.kind == RTM_NEWROUTE)?;
    let (_, index) = attributes(message.body.get(12..)?).find(|(kind, _)| *kind == RTA_OIF)?;
    number(index)
}

fn interface(message: &[u8]) -> Option<Interface> {
    let index = u32::from_ne_bytes(message.get(4..8)?.try_into().ok()?);
    let mut interface = Interface { index, name: String::new(), master: 0, kind: String::new() };
    for (kind, value) in attributes(message.get(16..)?) {
        match kind {
            IFLA_IFNAME => interface.name = text(value),
            IFLA_MASTER => interface.master = number(value)?,
            IFLA_LINKINFO => {
                let info = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                interface.kind = info.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(interface)
}

/// Bytes that an interface has received and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct InterfaceCounters {
    pub(in crate::agent) rx_packets: u64,
    pub(in crate::agent) rx_bytes: u64,
    pub(in crate::agent) tx_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_exists_and_routes_to_itself() {
        let mut netlink = Netlink::default();
        let interfaces = netlink.interfaces().unwrap();
        let loopback = interfaces.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!(netlink.route("127.0.0.1".parse().unwrap()).unwrap(), Some(loopback.index));
        assert!(netlink.counters(loopback.index).unwrap().is_some());
        assert_eq!(netlink.counters(u32::MAX >> 1).unwrap(), None);
        assert!(
            netlink.counters(loopback.index).unwrap().is_some(),
            "the socket survives an error"
        );
    }
}
