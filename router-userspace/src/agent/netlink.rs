//! Which interfaces there are and which one leads to an address, asked of the kernel by rtnetlink
//! in this process's network namespace.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, socket,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;

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
    let answers = ask(RTM_GETLINK, REQUEST | DUMP, &[0; 16])?;
    Ok(answers
        .iter()
        .filter(|(kind, _)| *kind == RTM_NEWLINK)
        .filter_map(|(_, m)| link(m))
        .collect())
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
    let answers = ask(RTM_GETROUTE, REQUEST, &message)?;
    let route = answers.iter().find(|(kind, _)| *kind == RTM_NEWROUTE);
    Ok(route.and_then(|(_, message)| {
        attributes(message.get(12..)?)
            .find(|(kind, _)| *kind == RTA_OIF)
            .and_then(|(_, value)| number(value))
    }))
}

fn ask(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let to = NetlinkAddr::new(0, 0);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&message)], &[], MsgFlags::empty(), Some(&to))?;
    answers(&socket, flags & DUMP != 0)
}

fn answers(socket: &OwnedFd, dump: bool) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let mut answers = Vec::new();
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..count];
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                // An error is an answer too: there is no such route.
                NLMSG_DONE | NLMSG_ERROR => return Ok(answers),
                kind => answers.push((kind, body.to_vec())),
            }
            rest = after;
        }
        if !dump || count == 0 {
            return Ok(answers);
        }
    }
}

fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        // The upper bits say "nested" and "big endian".
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_leads_to_itself() {
        let links = links().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!(route("127.0.0.1".parse().unwrap()).unwrap(), Some(loopback.index));
    }
}
