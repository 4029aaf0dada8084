//! [`Sysfs`]: RDMA devices in sysfs. It is the fallback for netlink, and the source of link rates.
//!
//! Layout: Documentation/ABI/stable/sysfs-class-infiniband.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::counters::{DeviceCounters, names};
use super::netlink::{DeviceInfo, MAX_COUNTERS, MAX_DEVICES, MAX_PORTS, PortInfo};

/// Maximum size of an attribute that is read here.
const MAX_VALUE_BYTES: u64 = 128;
/// Maximum number of GIDs of a port. The tables of rxe and mlx5 have 1,024 and 256 entries.
const MAX_GIDS: usize = 1_024;

/// The tree, usually `/sys`.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    root: PathBuf,
}

/// A port's counters from `counters` and `hw_counters`.
#[derive(Debug, Default)]
pub(super) struct SysfsCounters {
    pub(super) counters: DeviceCounters,
    /// The driver may not refresh them on a read.
    pub(super) may_be_stale: bool,
}

impl Sysfs {
    pub(super) fn new(root: &Path) -> Sysfs {
        Sysfs { root: root.to_owned() }
    }

    /// The devices whose name `wanted` accepts, sorted by name. Their index is 0.
    pub(super) fn devices(&self, wanted: impl Fn(&str) -> bool) -> Vec<DeviceInfo> {
        let mut names: Vec<String> = listed(&self.root.join("class/infiniband"), MAX_DEVICES);
        names.retain(|name| wanted(name));
        names.sort();
        let device = |name: String| {
            let path = self.device(&name)?;
            let guid = read(&path.join("node_guid")).and_then(|text| guid(&text));
            let ports = listed(&path.join("ports"), MAX_PORTS);
            let ports = ports.iter().filter_map(|port| port.parse::<u32>().ok()).max();
            let kind = read(&path.join("node_type")).unwrap_or_default();
            let protocol = if kind.contains("RNIC") { "iw" } else { "" };
            Some(DeviceInfo {
                index: 0,
                ports: ports.unwrap_or_default().min(MAX_PORTS as u32),
                guid: guid.unwrap_or_default(),
                protocol: protocol.to_owned(),
                name,
            })
        };
        names.into_iter().filter_map(device).collect()
    }

    /// A port's state and network interface.
    pub(super) fn port(&self, device: &DeviceInfo, number: u32) -> Option<PortInfo> {
        let path = self.port_path(&device.name, number)?;
        let state = read(&path.join("state"))?;
        let state = state.split(':').next()?.trim().parse().ok()?;
        let interface = self.interface(device, number).map(|name| (self.index(&name), name));
        Some(PortInfo { number, state, interface })
    }

    /// The port's network interface: that of a GID, else the one whose MAC address the GUID contains.
    pub(super) fn interface(&self, device: &DeviceInfo, number: u32) -> Option<String> {
        let path = self.port_path(&device.name, number)?.join("gid_attrs/ndevs");
        let of_gid = listed(&path, 16).into_iter().find_map(|entry| read(&path.join(entry)));
        of_gid.filter(|name| !name.is_empty()).or_else(|| {
            let wanted = address_of_guid(device.guid)?;
            let folder = self.root.join("class/net");
            listed(&folder, 4_096)
                .into_iter()
                .find(|name| read(&folder.join(name).join("address")).as_ref() == Some(&wanted))
        })
    }

    fn index(&self, interface: &str) -> u32 {
        let path = self.root.join("class/net").join(interface).join("ifindex");
        read(&path).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// The port's rate in bits per second.
    pub(super) fn rate(&self, device: &str, number: u32) -> Option<u64> {
        rate(&read(&self.port_path(device, number)?.join("rate"))?)
    }

    /// The speed of a network interface in bits per second; `None` if unknown.
    pub(super) fn interface_rate(&self, interface: &str) -> Option<u64> {
        let path = self.root.join("class/net").join(interface).join("speed");
        let megabits: i64 = read(&path)?.parse().ok()?;
        u64::try_from(megabits).ok().filter(|rate| *rate > 0).map(|rate| rate * 1_000_000)
    }

    /// The IP addresses in a device's GIDs, which RoCEv2 packets carry.
    pub(super) fn addresses(&self, device: &DeviceInfo) -> Vec<IpAddr> {
        let gids = (1..=device.ports).filter_map(|number| {
            let folder = self.port_path(&device.name, number)?.join("gids");
            Some(listed(&folder, MAX_GIDS).into_iter().filter_map(move |gid| {
                let gid: Ipv6Addr = read(&folder.join(gid))?.parse().ok()?;
                (!gid.is_unspecified()).then(|| gid.to_canonical())
            }))
        });
        gids.flatten().collect()
    }

    /// Time for which the kernel caches the port's counters.
    pub(super) fn lifespan(&self, device: &str, number: u32) -> Option<Duration> {
        let path = self.port_path(device, number)?.join("hw_counters/lifespan");
        let milliseconds: u64 = read(&path)?.parse().ok()?;
        Some(Duration::from_millis(milliseconds.min(60_000)))
    }

    /// The port's counters.
    pub(super) fn counters(&self, device: &str, number: u32) -> SysfsCounters {
        let Some(path) = self.port_path(device, number) else { return SysfsCounters::default() };
        let hardware = values(&path.join("hw_counters"), |name| names::hardware(name).is_some());
        let by_name = || hardware.iter().map(|(name, value)| (name.as_str(), *value));
        SysfsCounters {
            counters: names::from_hardware(by_name()).or(self.standard(device, number)),
            may_be_stale: names::may_be_stale(by_name().map(|(name, _)| name)),
        }
    }

    /// The standard counters of the InfiniBand specification, which netlink does not have.
    pub(super) fn standard(&self, device: &str, number: u32) -> DeviceCounters {
        let Some(path) = self.port_path(device, number) else { return DeviceCounters::default() };
        let found = values(&path.join("counters"), |name| names::standard(name).is_some());
        names::from_standard(found.iter().map(|(name, value)| (name.as_str(), *value)))
    }

    /// The driver: from the `device/driver` link, else guessed from counter names.
    pub(super) fn driver(&self, device: &str) -> Option<&'static str> {
        let path = self.device(device)?;
        if let Ok(link) = std::fs::read_link(path.join("device/driver")) {
            return Some(match link.file_name()?.to_str()? {
                "mlx5_core" | "mlx5_ib" => "mlx5",
                "mlx4_core" | "mlx4_ib" => "mlx4",
                "bnxt_en" | "bnxt_re" => "bnxt_re",
                "ice" | "i40e" | "idpf" | "irdma" => "irdma",
                "erdma" => "erdma",
                "efa" => "efa",
                "hns3" | "hns_roce" => "hns",
                "qede" | "qedr" => "qedr",
                _ => return None,
            });
        }
        let counted = |name: &str| path.join("ports/1/hw_counters").join(name).exists();
        let hints = [("sent_pkts", "rxe"), ("tx_bytes_cnt", "erdma"), ("hw_tx_bytes_cnt", "erdma")];
        hints.into_iter().find_map(|(name, driver)| counted(name).then_some(driver))
    }

    fn device(&self, name: &str) -> Option<PathBuf> {
        // A device name is one path component; anything else is rejected.
        let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        plain.then(|| self.root.join("class/infiniband").join(name))
    }

    fn port_path(&self, device: &str, number: u32) -> Option<PathBuf> {
        Some(self.device(device)?.join("ports").join(number.to_string()))
    }
}

fn listed(folder: &Path, most: usize) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).take(most).collect()
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_VALUE_BYTES).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// Numbers by file name.
fn values(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
    let names = listed(folder, MAX_COUNTERS).into_iter().filter(|name| wanted(name));
    names
        .filter_map(|name| {
            let value = read(&folder.join(&name))?.parse().ok()?;
            Some((name, value))
        })
        .collect()
}

/// Parses `100 Gb/sec (4X EDR)` as bits per second.
fn rate(text: &str) -> Option<u64> {
    let gigabits: f64 = text.strip_suffix(')')?.split(" Gb/sec").next()?.trim().parse().ok()?;
    let sane = gigabits.is_finite() && (0.1..=10_000.0).contains(&gigabits);
    sane.then(|| (gigabits * 1e9).round() as u64)
}

/// `0216:3eff:fe00:0102`.
fn guid(text: &str) -> Option<u64> {
    u64::from_str_radix(&text.replace(':', ""), 16).ok()
}

/// The MAC address in a modified EUI-64 (RFC 4291, appendix A); `None` for other GUIDs.
fn address_of_guid(guid: u64) -> Option<String> {
    let [a, b, c, ff, fe, d, e, f] = guid.to_be_bytes();
    let made = ff == 0xff && fe == 0xfe;
    made.then(|| format!("{:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}", a ^ 2))
}

#[cfg(test)]
mod tests {
    use super::super::counters::Counter;
    use super::super::tests::tree::Tree;
    use super::*;

    #[test]
    fn the_tree_of_erdmas_installer_driver_is_read() {
        let tree = Tree::new();
        tree.erdma("erdma_0", &[("hw_tx_bytes_cnt", 7), ("hw_rx_bytes_cnt", 8), ("cmdq_comp", 1)]);
        let sysfs = Sysfs::new(tree.root());
        let [device] = &sysfs.devices(|_| true)[..] else { panic!("one device") };
        assert_eq!((&*device.name, device.ports, &*device.protocol), ("erdma_0", 1, "iw"));
        let port = sysfs.port(device, 1).expect("a port");
        assert_eq!(port.state, 4);
        assert_eq!(port.interface, Some((3, "eth1".to_owned())), "by its address");
        assert_eq!(sysfs.driver("erdma_0"), Some("erdma"));
        assert_eq!(sysfs.lifespan("erdma_0", 1), Some(Duration::from_millis(10)));
        let counted = sysfs.counters("erdma_0", 1);
        assert_eq!(counted.counters.get(Counter::TxBytes), Some(7));
        assert!(counted.may_be_stale);
    }

    #[test]
    fn mlx5_counts_bytes_in_the_standard_folder() {
        let tree = Tree::new();
        let port = "class/infiniband/mlx5_0/ports/1";
        tree.write(&format!("{port}/state"), "4: ACTIVE\n");
        tree.write(&format!("{port}/rate"), "100 Gb/sec (4X EDR)\n");
        tree.write(&format!("{port}/gid_attrs/ndevs/0"), "eth0\n");
        tree.write(&format!("{port}/counters/port_xmit_data"), "1000\n");
        tree.write(&format!("{port}/counters/port_rcv_data"), "250\n");
        tree.write(&format!("{port}/hw_counters/rx_write_requests"), "12\n");
        let sysfs = Sysfs::new(tree.root());
        let device = &sysfs.devices(|_| true)[0];
        assert_eq!(sysfs.interface(device, 1), Some("eth0".to_owned()));
        assert_eq!(sysfs.rate("mlx5_0", 1), Some(100_000_000_000));
        let counters = sysfs.counters("mlx5_0", 1).counters;
        assert_eq!(counters.get(Counter::TxBytes), Some(4_000));
        assert_eq!(counters.get(Counter::RxBytes), Some(1_000));
        assert_eq!(counters.get(Counter::RxRequests), Some(12));
    }

    #[test]
    fn malformed_values_are_unknown() {
        assert_eq!(rate("2.5 Gb/sec (1X SDR)"), Some(2_500_000_000));
        for text in
            ["", "fast", "Gb/sec ()", "inf Gb/sec (1X)", "-1 Gb/sec (1X)", "nan Gb/sec (1X)"]
        {
            assert_eq!(rate(text), None, "{text}");
        }
        let tree = Tree::new();
        tree.write("class/infiniband/x/ports/1/hw_counters/tx_bytes", "many\n");
        tree.write("class/infiniband/x/ports/1/hw_counters/lifespan", "soon\n");
        let sysfs = Sysfs::new(tree.root());
        assert_eq!(sysfs.counters("x", 1).counters, DeviceCounters::default());
        assert_eq!((sysfs.lifespan("x", 1), sysfs.rate("x", 1)), (None, None));
        assert_eq!(sysfs.rate("../../../etc", 1), None);
        assert_eq!(address_of_guid(0x0200_00ff_fe00_0001), Some("00:00:00:00:00:01".to_owned()));
        assert_eq!(address_of_guid(1), None);
    }
}
