//! The counters of the connections between a pod and a peer, and their rates.

use std::time::{Duration, Instant};

use router_common::flow::PairStats;
use router_core::counter_window::{CounterWindow, Growth};

/// Rates are over the same window as those of pods in load frames.
const SPAN: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(20);

/// Index of each counter in the window of a pair.
pub(in crate::agent) const TX: usize = 0;
pub(in crate::agent) const RX: usize = 1;
pub(in crate::agent) const RETRANSMITS: usize = 2;
pub(in crate::agent) const RTT_US: usize = 3;
pub(in crate::agent) const RTTS: usize = 4;
pub(in crate::agent) const RATE_BYTES: usize = 5;
pub(in crate::agent) const RATE_US: usize = 6;

pub(in crate::agent) type PairGrowth = Growth<7>;

/// The counters of a pair, and its payload rates.
#[derive(Clone, Debug)]
pub(in crate::agent) struct PairCounters {
    pub(in crate::agent) stats: PairStats,
    /// Connections that are older than the programs.
    pub(in crate::agent) preexisting: u64,
    /// Open connections that RDMA has taken over (iWARP).
    pub(in crate::agent) offloaded: u64,
    pub(in crate::agent) tx_per_second: f64,
    pub(in crate::agent) rx_per_second: f64,
    pub(in crate::agent) read: Instant,
    window: CounterWindow<7>,
}

impl PairCounters {
    /// A pair whose first reading, at `read`, is `stats`.
    pub(in crate::agent) fn new(stats: PairStats, read: Instant) -> PairCounters {
        PairCounters {
            stats,
            preexisting: 0,
            offloaded: 0,
            tx_per_second: 0.0,
            rx_per_second: 0.0,
            read,
            window: CounterWindow::new(SPAN, STEP),
        }
    }

    /// Adds a reading taken `now`; `start` is before every reading.
    pub(in crate::agent) fn observe(&mut self, stats: PairStats, now: Instant, start: Instant) {
        let (before, then) = (self.stats, self.read);
        (self.stats, self.read) = (stats, now);
        if !self.is_used() {
            return;
        }
        self.smooth(&before, now - then);
        if self.window.newest().is_none() {
            self.window.push(then - start, counters(&before));
        }
        self.window.push(now - start, counters(&stats));
    }

    /// Moving average with a time constant of one second, independent of the ticks.
    fn smooth(&mut self, before: &PairStats, elapsed: Duration) {
        let elapsed = elapsed.as_secs_f64().max(1e-6);
        let weight = 1.0 - (-elapsed).exp();
        let mix = |rate: &mut f64, newer: u64, older: u64| {
            *rate += weight * (newer.saturating_sub(older) as f64 / elapsed - *rate);
        };
        mix(&mut self.tx_per_second, self.stats.tx_bytes, before.tx_bytes);
        mix(&mut self.rx_per_second, self.stats.rx_bytes, before.rx_bytes);
    }

    /// What was counted in the window.
    pub(in crate::agent) fn growth(&self) -> Option<PairGrowth> {
        self.window.growth()
    }

    /// Whether the pair had a connection. The entry for pairs that do not fit into the map may have none.
    pub(in crate::agent) fn is_used(&self) -> bool {
        self.stats.opened + self.preexisting > 0
    }

    /// Open connections, including those that RDMA has taken over.
    pub(in crate::agent) fn open(&self) -> u64 {
        (self.stats.established + self.preexisting).saturating_sub(self.stats.closed)
    }
}

fn counters(stats: &PairStats) -> [u64; 7] {
    [
        stats.tx_bytes,
        stats.rx_bytes,
        stats.retransmits,
        stats.rtt_us_sum,
        stats.rtt_samples,
        stats.rate_bytes,
        stats.rate_us,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(25);

    #[test]
    fn the_first_count_of_a_pair_is_measured_from_the_previous_reading() {
        let start = Instant::now();
        let mut pair = PairCounters::new(PairStats::default(), start);
        pair.observe(PairStats::default(), start + TICK, start);
        assert!(pair.growth().is_none(), "an entry for pairs that do not fit into the map");
        let stats = PairStats { opened: 1, tx_bytes: 1_000, ..PairStats::default() };
        pair.observe(stats, start + TICK * 2, start);
        assert_eq!(pair.growth().map(|growth| growth.per_second(TX)), Some(40_000.0));
        assert!(pair.tx_per_second > 900.0, "{}", pair.tx_per_second);
    }

    #[test]
    fn counts_before_the_first_reading_are_not_a_rate() {
        let start = Instant::now();
        let stats = PairStats { opened: 1, tx_bytes: 1_000, ..PairStats::default() };
        let mut pair = PairCounters::new(stats, start);
        pair.observe(stats, start, start);
        assert!(pair.growth().is_none());
        pair.observe(stats, start + TICK, start);
        assert_eq!(pair.growth().map(|growth| growth.deltas[TX]), Some(0));
        assert_eq!(pair.tx_per_second, 0.0);
    }
}
