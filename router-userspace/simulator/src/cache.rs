//! [`PrefixCache`]: the prefix cache of one modelled prefill, with LRU eviction of blocks.

use std::collections::{BTreeMap, HashMap};

/// Blocks ordered by their last use.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    used: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
    clock: u64,
    blocks: usize,
}

impl PrefixCache {
    pub(crate) fn new(blocks: usize) -> PrefixCache {
        PrefixCache { blocks, ..PrefixCache::default() }
    }

    /// Returns the number of leading blocks that are cached.
    pub(crate) fn matched(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.used.contains_key(block)).count()
    }

    /// Adds a computed prompt. Its last blocks are evicted first.
    pub(crate) fn insert(&mut self, blocks: &[u64]) {
        for &block in blocks.iter().take(self.blocks).rev() {
            self.clock += 1;
            if let Some(before) = self.used.insert(block, self.clock) {
                self.order.remove(&before);
            }
            self.order.insert(self.clock, block);
        }
        while self.used.len() > self.blocks {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.used.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_oldest_prompt_is_evicted_first() {
        let mut cache = PrefixCache::new(5);
        cache.insert(&[1, 2, 3]);
        cache.insert(&[1, 7, 8]);
        assert_eq!(cache.matched(&[1, 2, 3]), 3);
        cache.insert(&[9]);
        assert_eq!(cache.matched(&[1, 2, 3]), 2);
        assert_eq!(cache.matched(&[1, 7, 8]), 3);
        assert_eq!(cache.used.len(), cache.order.len());
    }
}
