//! [`LinkTable`]: measured links between pairs of workers, sparse and bounded.
//!
//! A fleet of 1,000 x 1,000 has a million pairs, of which few carry KV cache at any time. The
//! table keeps the pairs that were measured last; all others have the prior.

use super::adaptive_ewma::{AdaptiveEwma, Prior};

/// Slots that one pair can occupy (set associativity).
const WAYS: usize = 4;
/// Maximum weight of the past beside a new measurement, in milliseconds of transfer.
const SPEED_MEMORY_MS: f32 = 500.0;
/// Maximum weight of the past beside a new round-trip time, in measurements.
const RTT_MEMORY: f32 = 8.0;

/// The current estimate of a link.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Link {
    pub rtt_us: f32,
    /// Speed of one transfer while it is active.
    pub bytes_per_ms: f32,
}

/// The estimate of a link without measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkPrior {
    pub link: Link,
    /// Weight of the prior in milliseconds of measured transfer.
    pub weight_ms: f32,
}

#[derive(Debug, Default)]
struct LinkSlot {
    /// Hash of both workers; 0 is free.
    key: u64,
    speed: AdaptiveEwma,
    rtt: AdaptiveEwma,
}

/// Round-trip times and transfer speeds by pair of workers. Its memory never grows.
#[derive(Debug)]
pub struct LinkTable {
    slots: Box<[LinkSlot]>,
}

impl LinkTable {
    /// Creates a table for `pairs` pairs, rounded up to a power of two.
    pub fn new(pairs: usize) -> LinkTable {
        let slots = pairs.max(WAYS).next_power_of_two();
        LinkTable { slots: (0..slots).map(|_| LinkSlot::default()).collect() }
    }

    /// Returns the estimate of the link `prefill -> decode`: the measurements, weighted by their age,
    /// and `prior`.
    pub fn get(&self, prefill: u64, decode: u64, prior: LinkPrior, now_ms: u64) -> Link {
        let key = pair_key(prefill, decode);
        let Some(slot) = self.set(key).iter().find(|slot| slot.key == key) else {
            return prior.link;
        };
        let speed = Prior { value: prior.link.bytes_per_ms, weight: prior.weight_ms };
        let rtt = Prior { value: prior.link.rtt_us, weight: 1.0 };
        Link { rtt_us: slot.rtt.value(rtt, now_ms), bytes_per_ms: slot.speed.value(speed, now_ms) }
    }

    /// Records that `bytes` of KV cache were transferred in `ms`.
    pub fn on_transfer(&mut self, prefill: u64, decode: u64, bytes: f32, ms: f32, now_ms: u64) {
        self.slot(prefill, decode, now_ms).speed.observe_volatile(
            bytes,
            ms,
            SPEED_MEMORY_MS,
            now_ms,
        );
    }

    /// Records a round-trip time of a connection between the two workers.
    pub fn on_round_trip(&mut self, prefill: u64, decode: u64, rtt_us: f32, now_ms: u64) {
        self.slot(prefill, decode, now_ms).rtt.observe_volatile(rtt_us, 1.0, RTT_MEMORY, now_ms);
    }

    fn set(&self, key: u64) -> &[LinkSlot] {
        let at = self.set_at(key);
        &self.slots[at..at + WAYS]
    }

    fn set_at(&self, key: u64) -> usize {
        (key as usize & (self.slots.len() - 1)) & !(WAYS - 1)
    }

    /// Returns the pair's slot. A new pair replaces the least recently measured one of its set.
    fn slot(&mut self, prefill: u64, decode: u64, now_ms: u64) -> &mut LinkSlot {
        let key = pair_key(prefill, decode);
        let at = self.set_at(key);
        let set = &mut self.slots[at..at + WAYS];
        let known = set.iter().position(|slot| slot.key == key);
        let chosen = known.unwrap_or_else(|| {
            let age = |slot: &LinkSlot| slot.speed.age_ms(now_ms).min(slot.rtt.age_ms(now_ms));
            let free =
                |slot: &LinkSlot| if slot.key == 0 { u64::MAX } else { u64::from(age(slot)) };
            let oldest = (0..WAYS).max_by_key(|&way| free(&set[way])).unwrap_or(0);
            set[oldest] = LinkSlot { key, ..LinkSlot::default() };
            oldest
        });
        &mut set[chosen]
    }
}

/// Hash of both identities, never 0. Their order matters.
fn pair_key(prefill: u64, decode: u64) -> u64 {
    let mut z = prefill.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ decode.rotate_left(32);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (z ^ (z >> 32)).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::adaptive_ewma::HALF_LIFE_MS;
    use super::*;

    const PRIOR: LinkPrior =
        LinkPrior { link: Link { rtt_us: 100.0, bytes_per_ms: 1000.0 }, weight_ms: 50.0 };

    #[test]
    fn a_slow_link_is_measured_and_expires() {
        let mut links = LinkTable::new(64);
        for _ in 0..20 {
            links.on_transfer(1, 2, 1000.0, 100.0, 0);
            links.on_round_trip(1, 2, 5000.0, 0);
        }
        let slow = links.get(1, 2, PRIOR, 0);
        assert!(slow.bytes_per_ms < 150.0 && slow.rtt_us > 4000.0, "{slow:?}");
        assert_eq!(links.get(2, 1, PRIOR, 0), PRIOR.link, "the reverse direction is another link");
        let later = links.get(1, 2, PRIOR, 8 * HALF_LIFE_MS);
        assert!(later.bytes_per_ms > 900.0, "{later:?}");
    }

    #[test]
    fn the_table_never_grows_and_keeps_the_pairs_measured_last() {
        let mut links = LinkTable::new(64);
        for pair in 0..10_000 {
            links.on_transfer(pair, pair + 1, 10.0, 100.0, pair * 300);
        }
        assert_eq!(links.slots.len(), 64);
        let now = 10_000 * 300;
        assert!(links.get(9_999, 10_000, PRIOR, now).bytes_per_ms < 900.0);
        assert_eq!(links.get(0, 1, PRIOR, now), PRIOR.link);
    }
}
