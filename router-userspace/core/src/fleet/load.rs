//! [`Load`]: what an agent measured at one worker, without this gateway's own share.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use serde::Serialize;

/// A load that is older than this is stale and not used: three heartbeats were missed.
pub const STALE_MS: f32 = 300.0;

/// The kernel's measurements of one worker.
///
/// The requests of others are those that the kernel counted at the pod less the leases that this
/// gateway held at the time of the measurement, and never below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// Age of the measurement: on the agent and in transit.
    pub age_ms: f32,
    /// Requests of other gateways whose response has not ended.
    pub others_requests: f32,
    /// Bytes of the requests of other gateways whose response has not started.
    pub others_waiting_bytes: f32,
    /// Mean time between two segments of streamed responses; 0 without streams.
    pub itl_us: f32,
    /// Link speed less the measured traffic other than KV cache. 0 is unknown.
    pub tx_free_bytes_per_ms: f32,
    pub rx_free_bytes_per_ms: f32,
    /// Measured speed of the KV cache that this worker sends and receives.
    pub tx_kv_bytes_per_ms: f32,
    pub rx_kv_bytes_per_ms: f32,
}

impl Load {
    /// Whether the load is too old to be used.
    pub fn is_stale(&self) -> bool {
        // Written so that an age of NaN is stale.
        !matches!(self.age_ms.partial_cmp(&STALE_MS), Some(std::cmp::Ordering::Less))
    }
}

/// Words of a load, with two numbers each.
const WORDS: usize = 4;
/// Attempts of a reader to get a consistent load. After these it gets none.
const MAX_READS: usize = 8;

/// A worker's load, written by the subscriber of its agent and read by every choice (a seqlock).
///
/// Its age counts from the last frame that set or refreshed it.
#[derive(Debug, Default)]
pub struct LoadCell {
    /// Odd during a write.
    version: AtomicU64,
    words: [AtomicU64; WORDS],
    /// Time of the last set or refresh, in microseconds of the gateway's clock; 0 is never.
    valid_us: AtomicU64,
}

impl LoadCell {
    /// Stores a load that is valid at `valid_us`. Of two concurrent writers the first one wins.
    ///
    /// ```
    /// use router_core::fleet::{Load, LoadCell};
    ///
    /// let cell = LoadCell::default();
    /// assert_eq!(cell.get(5_000), None);
    /// cell.set(&Load { others_requests: 3.0, ..Load::default() }, 5_000);
    /// let load = cell.get(7_000).unwrap();
    /// assert_eq!((load.others_requests, load.age_ms), (3.0, 2.0));
    /// ```
    pub fn set(&self, load: &Load, valid_us: u64) {
        let version = self.version.load(Ordering::Relaxed);
        let odd = version.wrapping_add(1);
        let free = version.is_multiple_of(2)
            && self
                .version
                .compare_exchange(version, odd, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if !free {
            return;
        }
        fence(Ordering::Release);
        for (word, (low, high)) in self.words.iter().zip(pairs(load)) {
            let value = u64::from(low.to_bits()) | (u64::from(high.to_bits()) << 32);
            word.store(value, Ordering::Relaxed);
        }
        self.version.store(odd.wrapping_add(1), Ordering::Release);
        self.refresh(valid_us);
    }

    /// Refreshes the load: it is still valid at `valid_us`.
    pub fn refresh(&self, valid_us: u64) {
        self.valid_us.fetch_max(valid_us.max(1), Ordering::Release);
    }

    /// Removes the load: no agent measures this worker any more.
    pub fn clear(&self) {
        self.valid_us.store(0, Ordering::Release);
    }

    /// Returns the load with its age; `None` without a load.
    pub fn get(&self, now_us: u64) -> Option<Load> {
        // Read before the words, so that the words are at least as recent.
        let valid_us = self.valid_us.load(Ordering::Acquire);
        if valid_us == 0 {
            return None;
        }
        let age_ms = now_us.saturating_sub(valid_us) as f32 / 1000.0;
        (0..MAX_READS).find_map(|_| self.read(age_ms))
    }

    fn read(&self, age_ms: f32) -> Option<Load> {
        let before = self.version.load(Ordering::Acquire);
        let words = [0, 1, 2, 3].map(|at: usize| self.words[at].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.version.load(Ordering::Relaxed);
        if before % 2 == 1 || before != after {
            return None;
        }
        let low = |at: usize| f32::from_bits(words[at] as u32);
        let high = |at: usize| f32::from_bits((words[at] >> 32) as u32);
        Some(Load {
            age_ms,
            others_requests: low(0),
            others_waiting_bytes: high(0),
            itl_us: low(1),
            tx_free_bytes_per_ms: high(1),
            rx_free_bytes_per_ms: low(2),
            tx_kv_bytes_per_ms: high(2),
            rx_kv_bytes_per_ms: low(3),
        })
    }
}

fn pairs(load: &Load) -> [(f32, f32); WORDS] {
    [
        (load.others_requests, load.others_waiting_bytes),
        (load.itl_us, load.tx_free_bytes_per_ms),
        (load.rx_free_bytes_per_ms, load.tx_kv_bytes_per_ms),
        (load.rx_kv_bytes_per_ms, 0.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_never_sees_a_mix_of_two_loads() {
        let cell = LoadCell::default();
        let of = |value: f32| Load {
            age_ms: 0.0,
            others_requests: value,
            others_waiting_bytes: value,
            itl_us: value,
            tx_free_bytes_per_ms: value,
            rx_free_bytes_per_ms: value,
            tx_kv_bytes_per_ms: value,
            rx_kv_bytes_per_ms: value,
        };
        cell.set(&of(0.0), 1);
        std::thread::scope(|scope| {
            for writer in 0..2u16 {
                let cell = &cell;
                scope.spawn(move || {
                    for round in 0..20_000u16 {
                        cell.set(&of(f32::from(round) + f32::from(writer) / 2.0), 1);
                    }
                });
            }
            for _ in 0..20_000 {
                if let Some(load) = cell.get(1) {
                    assert_eq!(load, of(load.itl_us));
                }
            }
        });
    }

    #[test]
    fn a_refresh_makes_a_load_younger_and_a_late_one_does_nothing() {
        let cell = LoadCell::default();
        cell.set(&Load::default(), 10_000);
        cell.refresh(400_000);
        cell.refresh(20_000);
        assert_eq!(cell.get(450_000).unwrap().age_ms, 50.0);
        assert!(cell.get(800_000).unwrap().is_stale());
        cell.clear();
        assert_eq!(cell.get(800_000), None);
    }

    #[test]
    fn an_old_load_and_one_of_invalid_age_are_stale() {
        assert!(!Load { age_ms: 299.0, ..Load::default() }.is_stale());
        for age_ms in [300.0, f32::INFINITY, f32::NAN] {
            assert!(Load { age_ms, ..Load::default() }.is_stale());
        }
    }
}
