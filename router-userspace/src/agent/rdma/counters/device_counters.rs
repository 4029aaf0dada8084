//! [`DeviceCounters`]: a device's counters under names common to all drivers.

use serde::Serialize;

/// A counter that at least one driver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::agent) enum Counter {
    TxBytes,
    RxBytes,
    TxPackets,
    RxPackets,
    /// Work requests.
    TxRequests,
    /// Requests of peers.
    RxRequests,
    /// Dropped by the device's bandwidth limit.
    TxDropsBandwidth,
    RxDropsBandwidth,
    /// Dropped by the device's packet rate limit.
    TxDropsPackets,
    RxDropsPackets,
    /// Dropped for any other reason that the device counts.
    TxDropsOther,
    RxDropsOther,
}

/// The number of variants of [`Counter`].
pub(in crate::agent) const COUNTER_COUNT: usize = 12;

/// Values by counter. `None` means that the device does not count it, which is not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct DeviceCounters([Option<u64>; COUNTER_COUNT]);

impl DeviceCounters {
    pub(in crate::agent) fn get(&self, counter: Counter) -> Option<u64> {
        self.0[counter as usize]
    }

    /// Adds to a counter. Some drivers count IPv4 and IPv6, or each kind of request, separately.
    pub(in crate::agent) fn add(&mut self, counter: Counter, value: u64) {
        let slot = &mut self.0[counter as usize];
        *slot = Some(slot.unwrap_or_default().wrapping_add(value));
    }

    /// Fills counters that are unknown here from `other`.
    pub(in crate::agent) fn or(mut self, other: DeviceCounters) -> DeviceCounters {
        for (slot, other) in self.0.iter_mut().zip(other.0) {
            *slot = slot.or(other);
        }
        self
    }

    /// The index and both values of each counter that both have.
    pub(in crate::agent) fn zip(
        &self,
        other: &DeviceCounters,
    ) -> impl Iterator<Item = (usize, u64, u64)> {
        let pairs = self.0.iter().zip(other.0).enumerate();
        pairs.filter_map(|(index, (one, other))| Some((index, (*one)?, other?)))
    }

    /// Whether both byte counters are known.
    pub(in crate::agent) fn has_bytes(&self) -> bool {
        self.get(Counter::TxBytes).is_some() && self.get(Counter::RxBytes).is_some()
    }

    /// The counters by name, for `/v1/loads`.
    pub(in crate::agent) fn values(&self) -> CounterValues {
        CounterValues {
            tx_bytes: self.get(Counter::TxBytes),
            rx_bytes: self.get(Counter::RxBytes),
            tx_packets: self.get(Counter::TxPackets),
            rx_packets: self.get(Counter::RxPackets),
            tx_requests: self.get(Counter::TxRequests),
            rx_requests: self.get(Counter::RxRequests),
            tx_drops_bandwidth: self.get(Counter::TxDropsBandwidth),
            rx_drops_bandwidth: self.get(Counter::RxDropsBandwidth),
            tx_drops_packets: self.get(Counter::TxDropsPackets),
            rx_drops_packets: self.get(Counter::RxDropsPackets),
            tx_drops_other: self.get(Counter::TxDropsOther),
            rx_drops_other: self.get(Counter::RxDropsOther),
        }
    }
}

/// Counters by name; null if the device does not count them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(in crate::agent) struct CounterValues {
    pub(in crate::agent) tx_bytes: Option<u64>,
    pub(in crate::agent) rx_bytes: Option<u64>,
    pub(in crate::agent) tx_packets: Option<u64>,
    pub(in crate::agent) rx_packets: Option<u64>,
    pub(in crate::agent) tx_requests: Option<u64>,
    pub(in crate::agent) rx_requests: Option<u64>,
    pub(in crate::agent) tx_drops_bandwidth: Option<u64>,
    pub(in crate::agent) rx_drops_bandwidth: Option<u64>,
    pub(in crate::agent) tx_drops_packets: Option<u64>,
    pub(in crate::agent) rx_drops_packets: Option<u64>,
    pub(in crate::agent) tx_drops_other: Option<u64>,
    pub(in crate::agent) rx_drops_other: Option<u64>,
}
