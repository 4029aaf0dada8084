//! What the connections between a pod and a peer have counted, and how fast it grows.

use std::time::{Duration, Instant};

use router_common::flow::PairStats;
use router_core::counter_window::{CounterWindow, Growth};

/// As the rates of pods in frames: the last moment.
const SPAN: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(20);

/// Counters of a pair, by their place in its trail.
pub(super) const TX: usize = 0;
pub(super) const RX: usize = 1;
pub(super) const RETRANSMITS: usize = 2;
pub(super) const RTT_US: usize = 3;
pub(super) const RTTS: usize = 4;
pub(super) const RATE_BYTES: usize = 5;
pub(super) const RATE_US: usize = 6;

pub(super) type PairGrowth = Growth<7>;

/// A pair's counters, and payload per second.
#[derive(Clone, Debug)]
pub(super) struct PairCounters {
    pub(super) stats: PairStats,
    /// Connections older than the programs.
    pub(super) seeded: u64,
    /// Open ones that RDMA has taken over.
    pub(super) taken: u64,
    pub(super) tx_per_second: f64,
    pub(super) rx_per_second: f64,
    pub(super) read: Instant,
    trail: CounterWindow<7>,
}

impl PairCounters {
    /// One that had counted `stats` when it was read first.
    pub(super) fn new(stats: PairStats, read: Instant) -> PairCounters {
        PairCounters {
            stats,
            seeded: 0,
            taken: 0,
            tx_per_second: 0.0,
            rx_per_second: 0.0,
            read,
            trail: CounterWindow::new(SPAN, STEP),
        }
    }

    /// Takes in what was read `now`; `start` is before every reading.
    pub(super) fn follow(&mut self, stats: PairStats, now: Instant, start: Instant) {
        let (before, then) = (self.stats, self.read);
        (self.stats, self.read) = (stats, now);
        if !self.is_used() {
            return;
        }
        self.smooth(&before, now - then);
        if self.trail.newest().is_none() {
            self.trail.push(then - start, counters(&before));
        }
        self.trail.push(now - start, counters(&stats));
    }

    /// Two thirds of a change show after a second, whatever the ticks.
    fn smooth(&mut self, before: &PairStats, elapsed: Duration) {
        let elapsed = elapsed.as_secs_f64().max(1e-6);
        let weight = 1.0 - (-elapsed).exp();
        let mix = |rate: &mut f64, newer: u64, older: u64| {
            *rate += weight * (newer.saturating_sub(older) as f64 / elapsed - *rate);
        };
        mix(&mut self.tx_per_second, self.stats.tx_bytes, before.tx_bytes);
        mix(&mut self.rx_per_second, self.stats.rx_bytes, before.rx_bytes);
    }

    /// What was counted in the last moment.
    pub(super) fn growth(&self) -> Option<PairGrowth> {
        self.trail.growth()
    }

    /// Not only the place of pairs that find no room.
    pub(super) fn is_used(&self) -> bool {
        self.stats.opened + self.seeded > 0
    }

    /// Connections, with those that RDMA has taken over.
    pub(super) fn open(&self) -> u64 {
        (self.stats.established + self.seeded).saturating_sub(self.stats.closed)
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
    fn what_a_pair_counts_first_is_since_the_reading_before() {
        let start = Instant::now();
        let mut pair = PairCounters::new(PairStats::default(), start);
        pair.follow(PairStats::default(), start + TICK, start);
        assert!(pair.growth().is_none(), "a place for pairs that find no room");
        let stats = PairStats { opened: 1, tx_bytes: 1_000, ..PairStats::default() };
        pair.follow(stats, start + TICK * 2, start);
        assert_eq!(pair.growth().map(|growth| growth.per_second(TX)), Some(40_000.0));
        assert!(pair.tx_per_second > 900.0, "{}", pair.tx_per_second);
    }

    #[test]
    fn what_was_counted_before_the_first_reading_is_no_rate() {
        let start = Instant::now();
        let stats = PairStats { opened: 1, tx_bytes: 1_000, ..PairStats::default() };
        let mut pair = PairCounters::new(stats, start);
        pair.follow(stats, start, start);
        assert!(pair.growth().is_none());
        pair.follow(stats, start + TICK, start);
        assert_eq!(pair.growth().map(|growth| growth.deltas[TX]), Some(0));
        assert_eq!(pair.tx_per_second, 0.0);
    }
}
