//! The prefix cache of a rank: which beginnings of prompts need no computation.

use std::collections::HashMap;

use crate::model::mix;

/// Tokens of a block. A block is known by all tokens up to its end.
const BLOCK: usize = 64;

/// Blocks by their hash, each with the time of its last use; the least recently used go first.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    blocks: HashMap<u64, u64>,
    /// Maximum number of blocks. 0 caches nothing.
    capacity: usize,
    clock: u64,
}

impl PrefixCache {
    pub(crate) fn new(tokens: usize) -> PrefixCache {
        PrefixCache { blocks: HashMap::new(), capacity: tokens / BLOCK, clock: 0 }
    }

    /// The number of tokens at the prompt's beginning that are cached. All of its whole blocks are
    /// cached afterwards.
    pub(crate) fn compute(&mut self, prompt: &[u32]) -> usize {
        if self.capacity == 0 {
            return 0;
        }
        self.clock += 1;
        let (mut hash, mut cached, mut is_cached) = (0, 0, true);
        for block in prompt.chunks_exact(BLOCK) {
            hash = block.iter().fold(hash, |hash, token| mix(hash ^ u64::from(*token)));
            is_cached &= self.blocks.insert(hash, self.clock).is_some();
            cached += if is_cached { BLOCK } else { 0 };
        }
        // The last token is always computed: its output is the answer's first token.
        cached = cached.min(prompt.len().saturating_sub(1));
        self.evict();
        cached
    }

    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
    }

    /// Removes the blocks of the oldest uses, an eighth more than must go, so that this is rare.
    fn evict(&mut self) {
        let Some(excess) =
            self.blocks.len().checked_sub(self.capacity).filter(|excess| *excess > 0)
        else {
            return;
        };
        let mut uses: Vec<u64> = self.blocks.values().copied().collect();
        let count = (excess + self.capacity / 8).min(uses.len() - 1);
        let (_, newest_to_go, _) = uses.select_nth_unstable(count);
        let newest_to_go = *newest_to_go;
        self.blocks.retain(|_, used| *used > newest_to_go);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(first: u32, tokens: usize) -> Vec<u32> {
        (0..tokens as u32).map(|at| first + at / 640).collect()
    }

    #[test]
    fn whole_blocks_of_a_common_beginning_are_cached() {
        let mut cache = PrefixCache::new(10_000);
        assert_eq!(cache.compute(&prompt(1, 1_000)), 0);
        assert_eq!(cache.compute(&prompt(1, 1_000)), 960);
        // The first 640 tokens are equal, and then no more.
        let mut other = prompt(1, 1_000);
        other[640..].fill(77);
        assert_eq!(cache.compute(&other), 640);
        // The last token is computed even if all blocks are cached.
        assert_eq!(cache.compute(&prompt(1, 640)), 639);
        cache.clear();
        assert_eq!(cache.compute(&prompt(1, 640)), 0);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut cache = PrefixCache::new(6_400);
        for first in 0..9 {
            cache.compute(&prompt(first * 10, 640));
            cache.compute(&prompt(0, 640));
        }
        assert_eq!(cache.compute(&prompt(0, 640)), 639, "used again and again");
        cache.compute(&prompt(1_000, 1_280));
        assert!(cache.blocks.len() <= 100, "{}", cache.blocks.len());
        assert_eq!(cache.compute(&prompt(10, 640)), 0, "the oldest");
        assert_eq!(PrefixCache::new(0).compute(&prompt(1, 640)), 0);
    }
}
