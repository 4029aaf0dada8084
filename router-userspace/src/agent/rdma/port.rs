//! One port of a device: its counters over time, and whether they can be believed.

use std::time::Duration;

use router_core::provenance::{Measured, Provenance};

use super::counters::names;
use super::counters::{
    Counter, CounterHistory, DeviceCounters, Freshness, ReadingChange, StalenessDetector,
};
use super::netlink::NetlinkSource;
use super::netlink::NldevCommand;
use super::netlink::{self, PortInfo};
use super::sysfs::Sysfs;

/// Counters are read no more often than this, however short they live.
const COUNTERS_EVERY: Duration = Duration::from_millis(50);
/// A driver is made to refresh counters no more often than this: each time is a command to the
/// device.
const REFRESH_EVERY: Duration = Duration::from_millis(100);
/// Load frames' rates are over so long.
const MOMENT: Duration = Duration::from_millis(200);
/// What some drivers say of a link whose speed they do not know (`ib_get_eth_speed`).
const PLACEHOLDER: u64 = 2_500_000_000;

/// Where a figure of the link's speed comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::agent) enum SpeedSource {
    Configured,
    /// The device's own rate.
    Device,
    /// The network interface's.
    Interface,
    #[default]
    Nothing,
}

/// How counters were read last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::agent) enum ReadMethod {
    Netlink,
    Sysfs,
    /// By netlink or sysfs, after the driver was made to refresh them.
    Refreshed,
    #[default]
    Nothing,
}

/// A port.
#[derive(Debug, Default)]
pub(super) struct RdmaPort {
    pub(super) number: u32,
    pub(super) state: u8,
    pub(super) interface: Option<(u32, String)>,
    pub(super) lifespan: Option<Duration>,
    /// Bits a second, 0 while unknown.
    pub(super) speed: u64,
    pub(super) speed_source: SpeedSource,
    pub(super) meter: CounterHistory,
    pub(super) watch: StalenessDetector,
    pub(super) read: Option<Duration>,
    pub(super) by: ReadMethod,
    due: Duration,
    /// Counters jumped after they had stood still for an unknown time.
    jumped: bool,
}

/// Of which device a port is.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortContext<'a> {
    pub(super) device: &'a str,
    /// Its index in netlink; `None` where only sysfs knows it.
    pub(super) index: Option<u32>,
    pub(super) driver: &'static str,
    /// A queue pair of it could move something.
    pub(super) is_held: bool,
}

impl RdmaPort {
    pub(super) fn new(number: u32) -> RdmaPort {
        RdmaPort { number, ..RdmaPort::default() }
    }

    pub(super) fn is_due(&self, at: Duration) -> bool {
        at >= self.due
    }

    /// Takes up what the port says of itself and its link.
    pub(super) fn describe(
        &mut self,
        found: PortInfo,
        of: PortContext<'_>,
        sysfs: &Sysfs,
        set: ConfiguredSpeeds,
    ) {
        (self.state, self.interface) = (found.state, found.interface);
        let interface = self.interface.as_ref();
        let of_interface = interface.and_then(|(_, name)| sysfs.interface_rate(name));
        let of_device = sysfs.rate(of.device, self.number);
        let of_device = of_device.filter(|rate| *rate > PLACEHOLDER);
        let candidates = [
            (set(of.device), SpeedSource::Configured),
            (of_device, SpeedSource::Device),
            (of_interface, SpeedSource::Interface),
        ];
        let known = candidates.into_iter().find_map(|(speed, by)| Some((speed?, by)));
        (self.speed, self.speed_source) = known.unwrap_or_default();
        if self.lifespan.is_none() {
            self.lifespan = sysfs.lifespan(of.device, self.number);
        }
    }

    /// Reads the counters, after `refresh` was tried where reading alone may tell nothing new.
    pub(super) fn sample(
        &mut self,
        at: Duration,
        of: PortContext<'_>,
        source: &mut dyn NetlinkSource,
        sysfs: &Sysfs,
        refresh: &mut dyn FnMut(&str) -> bool,
    ) {
        let before = self.watch.verdict(of.is_held);
        let wants = of.driver == "erdma" && of.is_held && self.watch.wants_refresh();
        let refreshed = wants && refresh(of.device);
        let (counters, by) = self.counters(of, source, sysfs);
        let change = self.meter.push(at, counters, |index| names::is_narrow(of.driver, index));
        self.watch.read(at, change, refreshed);
        let stood = matches!(before, Freshness::Unproven | Freshness::Stale);
        if stood && change == ReadingChange::Advanced {
            self.meter.restart(at);
            self.jumped = true;
        }
        self.by = if refreshed { ReadMethod::Refreshed } else { by };
        self.read = Some(at);
        let every = if wants { REFRESH_EVERY } else { COUNTERS_EVERY };
        self.due = at + every.max(self.lifespan.unwrap_or_default());
    }

    fn counters(
        &mut self,
        of: PortContext<'_>,
        source: &mut dyn NetlinkSource,
        sysfs: &Sysfs,
    ) -> (DeviceCounters, ReadMethod) {
        let answer = of
            .index
            .map(|index| source.ask(NldevCommand::Counters, Some(index), Some(self.number)));
        if let Some(Ok(answer)) = answer {
            let named = netlink::counters(answer);
            let may_stand_still = names::may_stand_still(named.iter().map(|(name, _)| *name));
            self.watch.may_stand_still = may_stand_still;
            let counters = names::of_hardware(named.into_iter());
            // mlx5 counts its bytes where netlink has nothing.
            let all = match counters.has_bytes() {
                true => counters,
                false => counters.or(sysfs.standard(of.device, self.number)),
            };
            return (all, ReadMethod::Netlink);
        }
        let counted = sysfs.counters(of.device, self.number);
        self.watch.may_stand_still = counted.may_stand_still;
        (counted.counters, ReadMethod::Sysfs)
    }

    /// Whether the device's bytes may be said: it counts them, and they are no stale ones.
    pub(super) fn bytes_provenance(&self, is_held: bool) -> Provenance {
        let fresh = match self.watch.verdict(is_held) {
            Freshness::Moving | Freshness::Idle => true,
            Freshness::Unread | Freshness::Unproven | Freshness::Stale => false,
        };
        let known = fresh && self.meter.counters().has_bytes();
        if known { Provenance::Exact } else { Provenance::Unknown }
    }

    /// Per second, over the last second, as far as it is known.
    pub(super) fn rate(&self, counter: Counter, is_held: bool) -> Measured<f64> {
        self.fresh(self.meter.rate(counter), is_held)
    }

    /// The same over the last moment, as load frames have it.
    pub(super) fn recent(&self, counter: Counter, is_held: bool) -> Measured<f64> {
        self.fresh(self.meter.rate_over(counter, MOMENT), is_held)
    }

    fn fresh(&self, rate: Option<f64>, is_held: bool) -> Measured<f64> {
        let verdict = self.watch.verdict(is_held);
        let is_fresh = matches!(verdict, Freshness::Moving | Freshness::Idle);
        Measured::new(rate, if is_fresh { Provenance::Exact } else { Provenance::Unknown })
    }

    /// Takes note that counters jumped, once.
    pub(super) fn take_jump(&mut self) -> bool {
        std::mem::take(&mut self.jumped)
    }
}

/// Bits a second that are configured for a device.
pub(super) type ConfiguredSpeeds<'a> = &'a dyn Fn(&str) -> Option<u64>;
