//! [`Links`]: what is known of the way between two workers, bounded and sparse.
//!
//! A fleet of 1,000 x 1,000 has a million pairs, of which few carry KV cache at any time. The
//! table keeps the ones that were heard of last; all others are the prior.

use super::adaptive_ewma::{AdaptiveEwma, Prior};

/// Slots that one pair may stand in.
const WAYS: usize = 4;
/// How much of the past counts beside a new measurement, in milliseconds of transfer.
const SPEED_MEMORY_MS: f32 = 500.0;
/// The same, in measurements.
const RTT_MEMORY: f32 = 8.0;

/// What is thought of a link now.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Link {
    pub rtt_us: f32,
    /// Of one transfer, while it moves.
    pub bytes_per_ms: f32,
}

/// What is thought of a link of which nothing was heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkPrior {
    pub link: Link,
    /// How many milliseconds of transfer weigh as much as the prior.
    pub weight_ms: f32,
}

#[derive(Debug, Default)]
struct Slot {
    /// Both workers, hashed; 0 is free.
    key: u64,
    speed: AdaptiveEwma,
    rtt: AdaptiveEwma,
}

/// Round-trip times and transfer speeds by pair of workers. Never grows.
#[derive(Debug)]
pub struct Links {
    slots: Box<[Slot]>,
}

impl Links {
    /// Room for about `pairs` pairs, rounded up to a power of two.
    pub fn new(pairs: usize) -> Links {
        let slots = pairs.max(WAYS).next_power_of_two();
        Links { slots: (0..slots).map(|_| Slot::default()).collect() }
    }

    /// What is known of `prefill -> decode`, mixed with `prior` by its age and weight.
    pub fn get(&self, prefill: u64, decode: u64, prior: LinkPrior, now_ms: u64) -> Link {
        let key = key_of(prefill, decode);
        let Some(slot) = self.set(key).iter().find(|slot| slot.key == key) else {
            return prior.link;
        };
        let speed = Prior { value: prior.link.bytes_per_ms, weight: prior.weight_ms };
        let rtt = Prior { value: prior.link.rtt_us, weight: 1.0 };
        Link { rtt_us: slot.rtt.value(rtt, now_ms), bytes_per_ms: slot.speed.value(speed, now_ms) }
    }

    /// `bytes` of KV cache went over in `ms` of transfer.
    pub fn transferred(&mut self, prefill: u64, decode: u64, bytes: f32, ms: f32, now_ms: u64) {
        self.slot(prefill, decode, now_ms).speed.observe_volatile(
            bytes,
            ms,
            SPEED_MEMORY_MS,
            now_ms,
        );
    }

    /// A round-trip time of a connection between the two.
    pub fn round_trip(&mut self, prefill: u64, decode: u64, rtt_us: f32, now_ms: u64) {
        self.slot(prefill, decode, now_ms).rtt.observe_volatile(rtt_us, 1.0, RTT_MEMORY, now_ms);
    }

    fn set(&self, key: u64) -> &[Slot] {
        let at = self.set_at(key);
        &self.slots[at..at + WAYS]
    }

    fn set_at(&self, key: u64) -> usize {
        (key as usize & (self.slots.len() - 1)) & !(WAYS - 1)
    }

    /// The pair's slot, taken from whoever was heard of least lately where it has none.
    fn slot(&mut self, prefill: u64, decode: u64, now_ms: u64) -> &mut Slot {
        let key = key_of(prefill, decode);
        let at = self.set_at(key);
        let set = &mut self.slots[at..at + WAYS];
        let known = set.iter().position(|slot| slot.key == key);
        let taken = known.unwrap_or_else(|| {
            let age = |slot: &Slot| slot.speed.age_ms(now_ms).min(slot.rtt.age_ms(now_ms));
            let free = |slot: &Slot| if slot.key == 0 { u64::MAX } else { u64::from(age(slot)) };
            let oldest = (0..WAYS).max_by_key(|&way| free(&set[way])).unwrap_or(0);
            set[oldest] = Slot { key, ..Slot::default() };
            oldest
        });
        &mut set[taken]
    }
}

/// Both identities in one number, never 0; the order of the two matters.
fn key_of(prefill: u64, decode: u64) -> u64 {
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
    fn a_slow_link_is_known_for_slow_and_forgiven_in_time() {
        let mut links = Links::new(64);
        for _ in 0..20 {
            links.transferred(1, 2, 1000.0, 100.0, 0);
            links.round_trip(1, 2, 5000.0, 0);
        }
        let slow = links.get(1, 2, PRIOR, 0);
        assert!(slow.bytes_per_ms < 150.0 && slow.rtt_us > 4000.0, "{slow:?}");
        assert_eq!(links.get(2, 1, PRIOR, 0), PRIOR.link, "the way back is another link");
        let later = links.get(1, 2, PRIOR, 8 * HALF_LIFE_MS);
        assert!(later.bytes_per_ms > 900.0, "{later:?}");
    }

    #[test]
    fn the_table_never_grows_and_keeps_what_was_heard_of_last() {
        let mut links = Links::new(64);
        for pair in 0..10_000 {
            links.transferred(pair, pair + 1, 10.0, 100.0, pair * 300);
        }
        assert_eq!(links.slots.len(), 64);
        let now = 10_000 * 300;
        assert!(links.get(9_999, 10_000, PRIOR, now).bytes_per_ms < 900.0);
        assert_eq!(links.get(0, 1, PRIOR, now), PRIOR.link);
    }
}
