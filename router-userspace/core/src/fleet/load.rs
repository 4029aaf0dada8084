//! [`Load`]: what an agent measured of one worker, beside what the gateway knows itself.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use serde::Serialize;

/// A load that is older than this is not believed any more: three heartbeats were missed.
pub const STALE_MS: f32 = 300.0;

/// The kernel's view of one worker, less the gateway's own share in it.
///
/// Counts of other gateways' requests are what the kernel saw at the pod less the leases that
/// the gateway held when the frame came; never below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// Since it was measured, on the agent's clock and on the way.
    pub age_ms: f32,
    /// Requests of others whose answer has not ended.
    pub others_requests: f32,
    /// Bytes of the requests of others whose answer has not begun.
    pub others_waiting_bytes: f32,
    /// Mean time between two segments of streamed answers; 0 where nothing streams.
    pub itl_us: f32,
    /// Link speed less what was measured to be used, KV cache excepted.
    pub tx_free_bytes_per_ms: f32,
    pub rx_free_bytes_per_ms: f32,
    /// KV cache on its way, out of this worker and into it.
    pub tx_kv_bytes_per_ms: f32,
    pub rx_kv_bytes_per_ms: f32,
}

impl Load {
    /// Whether it is too old to be believed.
    pub fn is_stale(&self) -> bool {
        // Written so that an age that is no number is stale.
        !matches!(self.age_ms.partial_cmp(&STALE_MS), Some(std::cmp::Ordering::Less))
    }
}

/// Words that a load takes: two numbers each.
const WORDS: usize = 4;
/// A reader that meets so many changes in a row knows nothing for this once.
const TRIES: usize = 8;

/// A worker's load, written by whoever listens to its agent and read whole by every choice.
///
/// Its age is counted from when it was last told or said to be as before.
#[derive(Debug, Default)]
pub struct LoadCell {
    /// Odd while it is written.
    version: AtomicU64,
    words: [AtomicU64; WORDS],
    /// Microseconds of the gateway's clock as of which the words hold; 0 is never.
    holds_us: AtomicU64,
}

impl LoadCell {
    /// Takes in a load as of `holds_us`. Of two writers at once the first one counts.
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
    pub fn set(&self, load: &Load, holds_us: u64) {
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
        self.holds(holds_us);
    }

    /// What was told holds as of `holds_us` too.
    pub fn holds(&self, holds_us: u64) {
        self.holds_us.fetch_max(holds_us.max(1), Ordering::Release);
    }

    /// Forgets what was told: nobody measures this worker any more.
    pub fn clear(&self) {
        self.holds_us.store(0, Ordering::Release);
    }

    /// The load, with its age; `None` where nothing was ever told.
    pub fn get(&self, now_us: u64) -> Option<Load> {
        // Before the words: what is read after it is at least as young.
        let holds_us = self.holds_us.load(Ordering::Acquire);
        if holds_us == 0 {
            return None;
        }
        let age_ms = now_us.saturating_sub(holds_us) as f32 / 1000.0;
        (0..TRIES).find_map(|_| self.whole(age_ms))
    }

    fn whole(&self, age_ms: f32) -> Option<Load> {
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
    fn a_load_is_never_half_of_one_and_half_of_another() {
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
    fn a_heartbeat_makes_a_load_younger_and_a_late_one_no_older() {
        let cell = LoadCell::default();
        cell.set(&Load::default(), 10_000);
        cell.holds(400_000);
        cell.holds(20_000);
        assert_eq!(cell.get(450_000).unwrap().age_ms, 50.0);
        assert!(cell.get(800_000).unwrap().is_stale());
        cell.clear();
        assert_eq!(cell.get(800_000), None);
    }

    #[test]
    fn an_old_load_and_one_of_no_age_are_stale() {
        assert!(!Load { age_ms: 299.0, ..Load::default() }.is_stale());
        for age_ms in [300.0, f32::INFINITY, f32::NAN] {
            assert!(Load { age_ms, ..Load::default() }.is_stale());
        }
    }
}
