//! [`NetlinkSource`]: sends requests by RDMA netlink. Tests replace the kernel with recorded answers.

use std::io;

use nix::sys::socket::SockProtocol;

use super::protocol::{CHARDEV_TYPE, DEV_INDEX, NldevCommand, PORT_INDEX};
use crate::agent::host::netlink_socket::{DUMP, NetlinkSocket, push_attribute};

/// Answers RDMA netlink requests.
pub trait NetlinkSource: Send {
    /// Sends one request and returns the messages of the answer, concatenated.
    ///
    /// # Errors
    /// The kernel's error: `EINVAL` for a device that was removed or has no counters,
    /// `EPROTONOSUPPORT` without RDMA.
    fn ask(
        &mut self,
        command: NldevCommand,
        device: Option<u32>,
        port: Option<u32>,
    ) -> io::Result<&[u8]>;
}

/// The running kernel.
#[derive(Debug)]
pub struct KernelNetlink(NetlinkSocket);

impl Default for KernelNetlink {
    fn default() -> KernelNetlink {
        KernelNetlink(NetlinkSocket::new(SockProtocol::NetlinkRDMA))
    }
}

impl NetlinkSource for KernelNetlink {
    fn ask(
        &mut self,
        command: NldevCommand,
        device: Option<u32>,
        port: Option<u32>,
    ) -> io::Result<&[u8]> {
        let mut body = Vec::new();
        for (kind, value) in [(DEV_INDEX, device), (PORT_INDEX, port)] {
            if let Some(value) = value {
                push_attribute(&mut body, kind, &value.to_ne_bytes());
            }
        }
        if command == NldevCommand::Driver {
            push_attribute(&mut body, CHARDEV_TYPE, b"uverbs\0");
        }
        let flags = if command.is_dump() { DUMP } else { 0 };
        self.0.request(command.kind(), flags, &body)
    }
}
