//! Asking the kernel by RDMA netlink, behind an interface that recorded answers fit as well.

use std::io;

use nix::sys::socket::SockProtocol;

use super::super::wire::{DUMP, Line, push_attribute};
use super::nldev::{CHARDEV_TYPE, Command, DEV_INDEX, PORT_INDEX};

/// What answers questions about RDMA devices.
pub trait Source: Send {
    /// The answer's messages, one after another.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` for a device that is gone or does not count, `EPROTONOSUPPORT`
    /// without RDMA.
    fn ask(
        &mut self,
        command: Command,
        device: Option<u32>,
        port: Option<u32>,
    ) -> io::Result<&[u8]>;
}

/// The running kernel.
#[derive(Debug)]
pub struct Kernel(Line);

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel(Line::new(SockProtocol::NetlinkRDMA))
    }
}

impl Source for Kernel {
    fn ask(
        &mut self,
        command: Command,
        device: Option<u32>,
        port: Option<u32>,
    ) -> io::Result<&[u8]> {
        let mut body = Vec::new();
        for (kind, value) in [(DEV_INDEX, device), (PORT_INDEX, port)] {
            if let Some(value) = value {
                push_attribute(&mut body, kind, &value.to_ne_bytes());
            }
        }
        if command == Command::Driver {
            push_attribute(&mut body, CHARDEV_TYPE, b"uverbs\0");
        }
        let flags = if command.is_dump() { DUMP } else { 0 };
        self.0.ask(command.kind(), flags, &body)
    }
}
