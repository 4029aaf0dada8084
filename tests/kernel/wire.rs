//! A wire that loses and reorders frames, made of two TAP devices and a thread each way: it needs
//! nothing of the kernel but TUN.
#![expect(unsafe_code, reason = "TUNSETIFF, which attaches to a TAP device, is an ioctl")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use crate::space::Space;

/// Frames in a thousand that are lost, and that come after the next two.
const LOST: u64 = 15;
const LATE: u64 = 30;

/// Makes interfaces of these names at both ends, and passes frames until the test ends.
pub(crate) fn lay(one: (&Space, &'static str), other: (&Space, &'static str)) {
    let (a, b) = (tap(one.0, one.1), tap(other.0, other.1));
    let (a2, b2) = (a.try_clone().expect("a handle"), b.try_clone().expect("a handle"));
    std::thread::spawn(move || pass(a, b, 7));
    std::thread::spawn(move || pass(b2, a2, 11));
}

pub(crate) fn tap(space: &Space, name: &str) -> File {
    let name = name.to_owned();
    space.run(move || {
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

fn pass(mut from: File, mut to: File, seed: u64) {
    let mut chance = seed;
    let mut late: Option<(u32, Vec<u8>)> = None;
    let mut frame = vec![0; 65_536];
    // A device that is not up takes nothing, as a wire that is not plugged in.
    let mut send = |frame: &[u8]| _ = to.write_all(frame);
    while let Ok(length) = from.read(&mut frame) {
        // Without neighbours there is no connection to lose anything of.
        let is_tcp = length > 34 && frame[12..14] == [8, 0] && frame[23] == 6;
        if !is_tcp {
            send(&frame[..length]);
            continue;
        }
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let draw = (chance >> 33) % 1_000;
        if draw < LOST {
            continue;
        }
        if draw < LOST + LATE && late.is_none() {
            late = Some((2, frame[..length].to_vec()));
            continue;
        }
        send(&frame[..length]);
        if let Some((after, held)) = &mut late {
            *after -= 1;
            if *after == 0 {
                send(held);
                late = None;
            }
        }
    }
}
