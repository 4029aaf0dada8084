//! [`RdmaPort`]: one port of a device, its counters over time, and whether they are stale.

use std::time::Duration;

use router_core::provenance::{Measured, Provenance};

use super::counters::{
    Counter, CounterHistory, DeviceCounters, Freshness, ReadingChange, StalenessDetector, names,
};
use super::netlink::{self, NetlinkSource, NldevCommand, PortInfo};
use super::sysfs::Sysfs;

/// Minimum interval between two reads of the counters.
const READ_INTERVAL: Duration = Duration::from_millis(50);
/// Minimum interval between two refreshes by the driver. Each refresh is a device command.
const REFRESH_INTERVAL: Duration = Duration::from_millis(100);
/// Averaging interval of the rates in load frames.
const FRAME_RATE_INTERVAL: Duration = Duration::from_millis(200);
/// The speed that some drivers report for a link of unknown speed (`ib_get_eth_speed`).
const PLACEHOLDER_SPEED: u64 = 2_500_000_000;

/// Where the link's speed comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::agent) enum SpeedSource {
    Configured,
    /// The device's own rate.
    Device,
    /// The network interface's.
    Interface,
    #[default]
    Unknown,
}

/// How the counters were last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::agent) enum ReadMethod {
    Netlink,
    Sysfs,
    /// By netlink or sysfs, after the driver refreshed them.
    Refreshed,
    /// Not read yet.
    #[default]
    None,
}

/// One port of a device.
#[derive(Debug, Default)]
pub(super) struct RdmaPort {
    pub(super) number: u32,
    pub(super) state: u8,
    pub(super) interface: Option<(u32, String)>,
    pub(super) lifespan: Option<Duration>,
    /// Bits per second; 0 if unknown.
    pub(super) speed: u64,
    pub(super) speed_source: SpeedSource,
    pub(super) history: CounterHistory,
    pub(super) staleness: StalenessDetector,
    pub(super) read_at: Option<Duration>,
    pub(super) read_method: ReadMethod,
    due: Duration,
    /// The counters advanced after they had been stale for an unknown time.
    jumped: bool,
}

/// What a port needs to know of its device.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortContext<'a> {
    pub(super) device: &'a str,
    /// The index in netlink; `None` if the device is known from sysfs alone.
    pub(super) index: Option<u32>,
    pub(super) driver: &'static str,
    /// Whether any queue pair of the device is active.
    pub(super) is_in_use: bool,
}

impl RdmaPort {
    pub(super) fn new(number: u32) -> RdmaPort {
        RdmaPort { number, ..RdmaPort::default() }
    }

    pub(super) fn is_due(&self, at: Duration) -> bool {
        at >= self.due
    }

    /// Updates the port's state, interface and speed.
    pub(super) fn describe(
        &mut self,
        found: PortInfo,
        context: PortContext<'_>,
        sysfs: &Sysfs,
        configured: ConfiguredSpeeds,
    ) {
        (self.state, self.interface) = (found.state, found.interface);
        let interface = self.interface.as_ref();
        let of_interface = interface.and_then(|(_, name)| sysfs.interface_rate(name));
        let of_device = sysfs.rate(context.device, self.number);
        let of_device = of_device.filter(|rate| *rate > PLACEHOLDER_SPEED);
        let candidates = [
            (configured(context.device), SpeedSource::Configured),
            (of_device, SpeedSource::Device),
            (of_interface, SpeedSource::Interface),
        ];
        let known = candidates.into_iter().find_map(|(speed, by)| Some((speed?, by)));
        (self.speed, self.speed_source) = known.unwrap_or_default();
        if self.lifespan.is_none() {
            self.lifespan = sysfs.lifespan(context.device, self.number);
        }
    }

    /// Reads the counters. Calls `refresh` first if a read alone may return stale values.
    pub(super) fn sample(
        &mut self,
        at: Duration,
        context: PortContext<'_>,
        source: &mut dyn NetlinkSource,
        sysfs: &Sysfs,
        refresh: &mut dyn FnMut(&str) -> bool,
    ) {
        let before = self.staleness.verdict(context.is_in_use);
        let wants =
            context.driver == "erdma" && context.is_in_use && self.staleness.wants_refresh();
        let refreshed = wants && refresh(context.device);
        let (counters, method) = self.counters(context, source, sysfs);
        let change =
            self.history.push(at, counters, |index| names::is_32_bit(context.driver, index));
        self.staleness.on_reading(at, change, refreshed);
        let was_stale = matches!(before, Freshness::Unproven | Freshness::Stale);
        if was_stale && change == ReadingChange::Advanced {
            self.history.restart(at);
            self.jumped = true;
        }
        self.read_method = if refreshed { ReadMethod::Refreshed } else { method };
        self.read_at = Some(at);
        let interval = if wants { REFRESH_INTERVAL } else { READ_INTERVAL };
        self.due = at + interval.max(self.lifespan.unwrap_or_default());
    }

    fn counters(
        &mut self,
        context: PortContext<'_>,
        source: &mut dyn NetlinkSource,
        sysfs: &Sysfs,
    ) -> (DeviceCounters, ReadMethod) {
        let answer = context
            .index
            .map(|index| source.ask(NldevCommand::Counters, Some(index), Some(self.number)));
        if let Some(Ok(answer)) = answer {
            let named = netlink::counters(answer);
            let may_be_stale = names::may_be_stale(named.iter().map(|(name, _)| *name));
            self.staleness.may_be_stale = may_be_stale;
            let counters = names::from_hardware(named.into_iter());
            // mlx5 counts bytes in the standard counters, which netlink does not have.
            let all = match counters.has_bytes() {
                true => counters,
                false => counters.or(sysfs.standard(context.device, self.number)),
            };
            return (all, ReadMethod::Netlink);
        }
        let counted = sysfs.counters(context.device, self.number);
        self.staleness.may_be_stale = counted.may_be_stale;
        (counted.counters, ReadMethod::Sysfs)
    }

    /// The provenance of the device's byte counters: unknown if it does not count bytes or the
    /// counters may be stale.
    pub(super) fn bytes_provenance(&self, is_in_use: bool) -> Provenance {
        let fresh = match self.staleness.verdict(is_in_use) {
            Freshness::Moving | Freshness::Idle => true,
            Freshness::Unread | Freshness::Unproven | Freshness::Stale => false,
        };
        let is_known = fresh && self.history.counters().has_bytes();
        if is_known { Provenance::Exact } else { Provenance::Unknown }
    }

    /// The rate per second over the last second; unknown if the counters may be stale.
    pub(super) fn rate(&self, counter: Counter, is_in_use: bool) -> Measured<f64> {
        self.fresh(self.history.rate(counter), is_in_use)
    }

    /// The rate per second over the interval of load frames; unknown if the counters may be stale.
    pub(super) fn recent(&self, counter: Counter, is_in_use: bool) -> Measured<f64> {
        self.fresh(self.history.rate_over(counter, FRAME_RATE_INTERVAL), is_in_use)
    }

    fn fresh(&self, rate: Option<f64>, is_in_use: bool) -> Measured<f64> {
        let verdict = self.staleness.verdict(is_in_use);
        let is_fresh = matches!(verdict, Freshness::Moving | Freshness::Idle);
        Measured::new(rate, if is_fresh { Provenance::Exact } else { Provenance::Unknown })
    }

    /// Whether the counters advanced after being stale, since the last call.
    pub(super) fn take_jump(&mut self) -> bool {
        std::mem::take(&mut self.jumped)
    }
}

/// The configured speed of a device in bits per second, by its name.
pub(super) type ConfiguredSpeeds<'a> = &'a dyn Fn(&str) -> Option<u64>;
