//! [`PrefixMatch`]: how much of one prompt each prefill cache is estimated to hold.

use super::prefix_blocks::BLOCK_BYTES;

/// Maximum number of caches in one match. Beyond it, those that hold least are dropped.
const MAX_CACHES: usize = 16;

/// The result of one lookup in the prefix index. Plain data, on the stack.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefixMatch {
    /// Identity of a cache, and the blocks that it holds.
    caches: [(u64, u32); MAX_CACHES],
    len: usize,
    /// A Bloom filter of one hash: most caches hold nothing, and this says so without a search.
    filter: u64,
    /// Blocks that more workers hold than the index remembers: taken to be in every cache.
    common: u32,
}

impl PrefixMatch {
    /// No cache holds any of the prompt.
    pub const NONE: PrefixMatch =
        PrefixMatch { caches: [(0, 0); MAX_CACHES], len: 0, filter: 0, common: 0 };

    /// Returns the bytes of the prompt that `cache` is estimated to hold.
    pub fn bytes_of(&self, cache: u64) -> u64 {
        let own = if self.filter & bit(cache) == 0 {
            0
        } else {
            let known = self.caches[..self.len].iter().find(|(known, _)| *known == cache);
            known.map_or(0, |(_, blocks)| *blocks)
        };
        u64::from(own.max(self.common)) * BLOCK_BYTES as u64
    }

    /// Returns the caches that are estimated to hold a part of the prompt.
    pub fn holders(&self) -> impl Iterator<Item = u64> + '_ {
        self.caches[..self.len].iter().map(|(cache, _)| *cache)
    }

    /// Whether no cache is known to hold any of the prompt.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes of the prompt in the cache that holds most of it.
    pub fn max_bytes(&self) -> u64 {
        let most = self.caches[..self.len].iter().map(|(_, blocks)| *blocks).max();
        u64::from(most.unwrap_or(0)) * BLOCK_BYTES as u64
    }

    pub(super) fn record(&mut self, cache: u64, blocks: u32) {
        let known = &mut self.caches[..self.len];
        if let Some((_, held)) = known.iter_mut().find(|(known, _)| *known == cache) {
            *held = blocks.max(*held);
        } else if let Some(entry) = self.caches.get_mut(self.len) {
            *entry = (cache, blocks);
            self.len += 1;
        } else if let Some(least) = self.caches.iter_mut().min_by_key(|(_, blocks)| *blocks)
            && least.1 < blocks
        {
            *least = (cache, blocks);
        }
        self.filter |= bit(cache);
    }

    pub(super) fn record_common(&mut self, blocks: u32) {
        self.common = blocks.max(self.common);
    }
}

fn bit(cache: u64) -> u64 {
    1 << (cache.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_match_drops_the_caches_that_hold_least() {
        let mut matched = PrefixMatch::default();
        for cache in 1..=20 {
            matched.record(cache, cache as u32);
        }
        assert_eq!(matched.bytes_of(20), 20 * BLOCK_BYTES as u64);
        assert_eq!(matched.max_bytes(), 20 * BLOCK_BYTES as u64);
        assert_eq!(matched.bytes_of(1), 0);
    }
}
