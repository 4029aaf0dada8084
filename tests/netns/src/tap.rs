//! TAP devices: links whose frames a process reads and writes. They need nothing of the kernel but
//! TUN.
#![expect(unsafe_code, reason = "TUNSETIFF, which attaches to a TAP device, is an ioctl")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use crate::Namespace;

/// Creates a TAP device in a namespace. It goes when the last handle is dropped.
pub(crate) fn tap(netns: &Namespace, name: &str) -> File {
    let name = name.to_owned();
    netns.run(move || {
        const IFF_TAP: i16 = 2;
        const IFF_NO_PI: i16 = 0x1000;
        const TUNSETIFF: u64 = 0x4004_54ca;
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
        // struct ifreq: the name, then the flags.
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI).to_ne_bytes());
        // SAFETY: the request is a whole `struct ifreq`, which the kernel reads and writes.
        let made = unsafe { nix::libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        device
    })
}
