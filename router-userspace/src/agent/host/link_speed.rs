//! The speed that a device reports, read by the ethtool ioctl that every driver supports.
#![expect(unsafe_code, reason = "SIOCETHTOOL is an ioctl with a pointer in its argument")]

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// ETHTOOL_GSET of include/uapi/linux/ethtool.h; drivers of the newer call support it too.
const GET_SETTINGS: u32 = 1;
const UNKNOWN: u32 = u32::MAX;

/// `struct ethtool_cmd`.
#[repr(C)]
#[derive(Default)]
struct EthtoolCommand {
    command: u32,
    supported: u32,
    advertising: u32,
    speed: u16,
    duplex_port_address_transceiver_autoneg_mdio: [u8; 6],
    maxtxpkt: u32,
    maxrxpkt: u32,
    speed_high: u16,
    tp_mdix: [u8; 2],
    lp_advertising: u32,
    reserved: [u32; 2],
}

/// Bytes per second of an interface with a physical device; `None` for a virtual one, whose reported
/// speed is meaningless.
pub(in crate::agent) fn bytes_per_second(interface: &str) -> Option<f64> {
    if !Path::new("/sys/class/net").join(interface).join("device").exists() {
        return None;
    }
    megabits(interface).map(|megabits| f64::from(megabits) * 1e6 / 8.0)
}

fn megabits(interface: &str) -> Option<u32> {
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    let mut settings = EthtoolCommand { command: GET_SETTINGS, ..EthtoolCommand::default() };
    // SAFETY: all zeros are a `struct ifreq` without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let capacity = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..capacity].iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut settings).cast();
    // SAFETY: the request and what it points to live until the call returns, and the kernel
    // writes no more than the command's struct.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    let speed = u32::from(settings.speed) | (u32::from(settings.speed_high) << 16);
    (done == 0 && speed != 0 && speed != UNKNOWN).then_some(speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_missing_interfaces_have_no_speed() {
        assert_eq!(size_of::<EthtoolCommand>(), 44);
        assert_eq!(bytes_per_second("lo"), None);
        assert_eq!(megabits("nowhere0"), None);
    }
}
