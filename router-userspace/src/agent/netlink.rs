//! Which interfaces there are and which one leads to an address, asked of the kernel by rtnetlink
//! in this process's network namespace.

use std::io;
use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use super::wire::{DUMP, Socket, attributes, messages, number, push_attribute, text};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_STATS64: u16 = 23;

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

/// Every interface.
///
/// # Errors
/// The kernel's.
pub(super) fn links() -> io::Result<Vec<Link>> {
    // struct ifinfomsg, all zeros: of any family.
    let mut answer = Vec::new();
    Socket::open(SockProtocol::NetlinkRoute)?.ask(RTM_GETLINK, DUMP, &[0; 16], &mut answer)?;
    let links = messages(&answer).filter(|message| message.kind == RTM_NEWLINK);
    Ok(links.filter_map(|message| link(message.body)).collect())
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

/// What interface `index` has moved; `None` if there is no such interface.
///
/// # Errors
/// The socket's.
pub(super) fn counters(index: u32) -> io::Result<Option<Counters>> {
    let mut message = [0; 16];
    message[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut answer = Vec::new();
    let mut socket = Socket::open(SockProtocol::NetlinkRoute)?;
    // An error is an answer too: there is no such interface.
    _ = socket.ask(RTM_GETLINK, 0, &message, &mut answer);
    let link = messages(&answer).find(|message| message.kind == RTM_NEWLINK);
    Ok(link.and_then(|message| {
        let body = message.body.get(16..)?;
        let (_, stats) = attributes(body).find(|(kind, _)| *kind == IFLA_STATS64)?;
        // struct rtnl_link_stats64: packets received and sent, then the bytes.
        let number = |at: usize| Some(u64::from_ne_bytes(stats.get(at..at + 8)?.try_into().ok()?));
        Some(Counters { rx_bytes: number(16)?, tx_bytes: number(24)? })
    }))
}

/// The interface by which packets to `address` leave; `None` without a route.
///
/// # Errors
/// The socket's, not the route's.
pub(super) fn route(address: IpAddr) -> io::Result<Option<u32>> {
    let (family, bytes) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    // struct rtmsg: family, destination's prefix length, then zeros.
    let mut message = vec![0u8; 12];
    message[0] = u8::try_from(family).unwrap_or_default();
    message[1] = if address.is_ipv4() { 32 } else { 128 };
    push_attribute(&mut message, RTA_DST, &bytes);
    let mut answer = Vec::new();
    let mut socket = Socket::open(SockProtocol::NetlinkRoute)?;
    // An error is an answer too: there is no such route.
    _ = socket.ask(RTM_GETROUTE, 0, &message, &mut answer);
    let route = messages(&answer).find(|message| message.kind == RTM_NEWROUTE);
    Ok(route.and_then(|message| {
        attributes(message.body.get(12..)?)
            .find(|(kind, _)| *kind == RTA_OIF)
            .and_then(|(_, value)| number(value))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_leads_to_itself() {
        let links = links().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!(route("127.0.0.1".parse().unwrap()).unwrap(), Some(loopback.index));
        assert!(counters(loopback.index).unwrap().is_some());
        assert_eq!(counters(u32::MAX >> 1).unwrap(), None);
    }
}
