//! Which interfaces there are and which one leads to an address, asked of the kernel by rtnetlink
//! in this process's network namespace.

use std::io;
use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use super::wire::{DUMP, Line, attributes, messages, number, push_attribute, text};

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
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// The bridge that it is a port of, 0 if none.
    pub(super) master: u32,
    /// `veth`, `bridge`, ...; empty for a device.
    pub(super) kind: String,
}

/// Asks about interfaces and routes.
#[derive(Debug)]
pub(super) struct Netlink(Line);

impl Default for Netlink {
    fn default() -> Netlink {
        Netlink(Line::new(SockProtocol::NetlinkRoute))
    }
}

impl Netlink {
    /// Every interface.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        // struct ifinfomsg, all zeros: of any family.
        let answer = self.0.ask(RTM_GETLINK, DUMP, &[0; 16])?;
        let links = messages(answer).filter(|message| message.kind == RTM_NEWLINK);
        Ok(links.filter_map(|message| link(message.body)).collect())
    }

    /// The answer; an error is one too: there is no such thing.
    fn ask(&mut self, kind: u16, body: &[u8]) -> io::Result<Option<&[u8]>> {
        self.0.open()?;
        Ok(self.0.ask(kind, 0, body).ok())
    }

    /// What interface `index` has moved; `None` if there is no such interface.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn counters(&mut self, index: u32) -> io::Result<Option<Counters>> {
        // struct if_stats_msg: family, padding, index, and which attributes are wanted.
        let mut message = [0; 12];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        message[8..].copy_from_slice(&(1u32 << (IFLA_STATS_LINK_64 - 1)).to_ne_bytes());
        Ok(self.ask(RTM_GETSTATS, &message)?.and_then(moved))
    }

    /// The interface by which packets to `address` leave; `None` without a route.
    ///
    /// # Errors
    /// The socket's, not the route's.
    pub(super) fn route(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let (family, bytes) = match address {
            IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
        };
        // struct rtmsg: family, destination's prefix length, then zeros.
        let mut message = vec![0u8; 12];
        message[0] = u8::try_from(family).unwrap_or_default();
        message[1] = if address.is_ipv4() { 32 } else { 128 };
        push_attribute(&mut message, RTA_DST, &bytes);
        Ok(self.ask(RTM_GETROUTE, &message)?.and_then(carrier))
    }
}

/// The counters in an answer to RTM_GETSTATS.
fn moved(answer: &[u8]) -> Option<Counters> {
    let message = messages(answer).find(|message| message.kind == RTM_NEWSTATS)?;
    let mut told = attributes(message.body.get(12..)?);
    let (_, stats) = told.find(|(kind, _)| *kind == IFLA_STATS_LINK_64)?;
    // struct rtnl_link_stats64: packets received and sent, then the bytes.
    let number = |at: usize| Some(u64::from_ne_bytes(stats.get(at..at + 8)?.try_into().ok()?));
    Some(Counters { rx_bytes: number(16)?, tx_bytes: number(24)? })
}

/// The interface in an answer to RTM_GETROUTE.
fn carrier(answer: &[u8]) -> Option<u32> {
    let message = messages(answer).find(|message| message.kind == RTM_NEWROUTE)?;
    let (_, index) = attributes(message.body.get(12..)?).find(|(kind, _)| *kind == RTA_OIF)?;
    number(index)
}

fn link(message: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(message.get(4..8)?.try_into().ok()?);
    let mut link = Link { index, name: String::new(), master: 0, kind: String::new() };
    for (kind, value) in attributes(message.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MASTER => link.master = number(value)?,
            IFLA_LINKINFO => {
                let info = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = info.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

/// What an interface has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_leads_to_itself() {
        let mut netlink = Netlink::default();
        let links = netlink.links().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!(netlink.route("127.0.0.1".parse().unwrap()).unwrap(), Some(loopback.index));
        assert!(netlink.counters(loopback.index).unwrap().is_some());
        assert_eq!(netlink.counters(u32::MAX >> 1).unwrap(), None);
        assert!(netlink.counters(loopback.index).unwrap().is_some(), "an error ends nothing");
    }
}
