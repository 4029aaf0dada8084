//! [`PrefixIndex`]: which prefill caches hold how much of a prompt, in fixed memory.
//!
//! The index maps the hash of a block to the caches whose worker was sent that block. A cache is
//! one worker's, or one data-parallel rank's. The result is an estimate: the engine decides what it
//! evicts.

use super::prefix_blocks::{BLOCK_BYTES, MAX_BLOCKS};
use super::prefix_match::PrefixMatch;

/// Maximum number of caches stored for one block. A block with more is common to all.
const MAX_HOLDERS: usize = 4;
/// Entries that one block can occupy (set associativity).
const WAYS: usize = 4;
/// Slots that one cache can occupy (linear probing).
const PROBES: usize = 8;

/// A cache that holds a block, and when it got it on that cache's own clock.
#[derive(Clone, Copy, Debug, Default)]
struct BlockHolder {
    slot: u16,
    /// 0 is free; a slot's epochs start at 1.
    epoch: u16,
    clock: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct BlockEntry {
    /// 0 is free.
    hash: u64,
    touched: u32,
    /// More caches hold the block than `holders` can store.
    common: bool,
    holders: [BlockHolder; MAX_HOLDERS],
}

#[derive(Clone, Copy, Debug, Default)]
struct CacheSlot {
    /// The cache's identity; 0 is free.
    cache: u64,
    /// Incremented with each new occupant, so that holders of an earlier occupant are invalid.
    epoch: u16,
    /// Number of blocks that were new to this cache.
    clock: u32,
    touched: u32,
}

/// Size of the index, and the assumed size of an engine's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexCapacity {
    /// Maximum number of blocks in the index, 48 bytes each.
    pub blocks: usize,
    /// Maximum number of caches that the index distinguishes.
    pub caches: usize,
    /// Bytes of prompt that one engine's cache is assumed to hold.
    pub cache_bytes: u64,
}

/// The blocks that prefill workers were sent. Its memory never grows.
#[derive(Debug)]
pub struct PrefixIndex {
    entries: Box<[BlockEntry]>,
    slots: Box<[CacheSlot]>,
    cache_blocks: u32,
    now: u32,
}

impl PrefixIndex {
    pub fn new(capacity: IndexCapacity) -> PrefixIndex {
        let slots = capacity.caches.clamp(PROBES, 1 << 15).next_power_of_two() * 2;
        let blocks = capacity.blocks.max(WAYS).next_power_of_two();
        let cache_blocks = capacity.cache_bytes / BLOCK_BYTES as u64;
        PrefixIndex {
            entries: vec![BlockEntry::default(); blocks].into(),
            slots: vec![CacheSlot::default(); slots].into(),
            cache_blocks: u32::try_from(cache_blocks).unwrap_or(u32::MAX),
            now: 0,
        }
    }

    /// Returns how much of the prompt each cache is estimated to hold.
    ///
    /// ```
    /// use router_core::schedule::{BlockHasher, IndexCapacity, PrefixIndex};
    ///
    /// let size = IndexCapacity { blocks: 1 << 10, caches: 8, cache_bytes: 1 << 30 };
    /// let mut index = PrefixIndex::new(size);
    /// let mut blocks = Vec::new();
    /// BlockHasher::new(0).write(&[7; 10_000], &mut blocks);
    /// index.insert(42, &blocks);
    /// assert_eq!(index.lookup(&blocks).bytes_of(42), 8192, "whole blocks only");
    /// assert_eq!(index.lookup(&blocks).bytes_of(43), 0);
    /// ```
    pub fn lookup(&self, blocks: &[u64]) -> PrefixMatch {
        let mut matched = PrefixMatch::default();
        for (&hash, depth) in blocks.iter().zip(1..) {
            let Some(entry) = self.find(hash) else { break };
            for holder in &entry.holders {
                if let Some(cache) = self.alive(holder) {
                    matched.record(cache, depth);
                }
            }
            if entry.common {
                matched.record_common(depth);
            }
        }
        matched
    }

    /// Records that a prompt was sent to the worker of `cache`, which holds it from now on.
    pub fn insert(&mut self, cache: u64, blocks: &[u64]) {
        self.now = self.now.wrapping_add(1);
        let slot = self.slot_of(cache);
        for &hash in blocks.iter().take(MAX_BLOCKS) {
            let entry = self.claim(hash.max(1));
            self.add_holder(entry, slot);
        }
    }

    /// Forgets the blocks of `cache`: its engine restarted under the same identity.
    pub fn forget(&mut self, cache: u64) {
        if let Some(at) = self.probes(cache).find(|&at| self.slots[at].cache == cache) {
            self.slots[at] =
                CacheSlot { epoch: next_epoch(self.slots[at].epoch), ..CacheSlot::default() };
        }
    }

    /// Returns the number of new blocks that `cache` received: how much of it is in use.
    pub fn blocks_of(&self, cache: u64) -> u32 {
        let at = self.probes(cache).find(|&at| self.slots[at].cache == cache);
        at.map_or(0, |at| self.slots[at].clock)
    }

    fn find(&self, hash: u64) -> Option<&BlockEntry> {
        let hash = hash.max(1);
        let at = set_of(hash, self.entries.len());
        self.entries[at..at + WAYS].iter().find(|entry| entry.hash == hash)
    }

    fn alive(&self, holder: &BlockHolder) -> Option<u64> {
        let slot = self.slots.get(usize::from(holder.slot))?;
        let current = holder.epoch != 0 && slot.epoch == holder.epoch;
        let kept = slot.clock.wrapping_sub(holder.clock) <= self.cache_blocks;
        (current && kept).then_some(slot.cache)
    }

    /// Returns the entry of a hash. A new hash replaces the least recently used entry of its set.
    fn claim(&mut self, hash: u64) -> usize {
        let start = set_of(hash, self.entries.len());
        let ways = start..start + WAYS;
        let known = ways.clone().find(|&at| self.entries[at].hash == hash);
        let at = known.unwrap_or_else(|| {
            let age = |at: &usize| match &self.entries[*at] {
                BlockEntry { hash: 0, .. } => u32::MAX,
                entry => self.now.wrapping_sub(entry.touched),
            };
            let oldest = ways.max_by_key(age).unwrap_or(start);
            self.entries[oldest] = BlockEntry { hash, ..BlockEntry::default() };
            oldest
        });
        self.entries[at].touched = self.now;
        at
    }

    /// Adds `slot` to the holders of an entry.
    fn add_holder(&mut self, entry: usize, slot: usize) {
        let CacheSlot { epoch, clock, .. } = self.slots[slot];
        let mut holders = self.entries[entry].holders;
        let mine = BlockHolder { slot: slot as u16, epoch, clock };
        let known = holders.iter().position(|h| h.slot == mine.slot && h.epoch == epoch);
        let had = known.is_some_and(|at| self.alive(&holders[at]).is_some());
        let free = || holders.iter().position(|holder| self.alive(holder).is_none());
        let at = known.or_else(free).unwrap_or_else(|| {
            self.entries[entry].common = true;
            // Any holder can be replaced; the clock spreads replacements over the positions.
            clock as usize % MAX_HOLDERS
        });
        if !had {
            self.slots[slot].clock = clock.wrapping_add(1);
        }
        holders[at] = BlockHolder { clock: self.slots[slot].clock, ..mine };
        self.entries[entry].holders = holders;
    }

    fn probes(&self, cache: u64) -> impl Iterator<Item = usize> + Clone + use<> {
        let slots = self.slots.len();
        let first = (cache.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        (0..PROBES).map(move |probe| (first + probe) & (slots - 1))
    }

    /// Returns the slot of a cache. A new cache replaces the least recently used slot it probes.
    fn slot_of(&mut self, cache: u64) -> usize {
        let mut probes = self.probes(cache);
        let known = probes.clone().find(|&at| self.slots[at].cache == cache);
        let at = known.unwrap_or_else(|| {
            let first = probes.next().unwrap_or(0);
            let age = |at: &usize| match &self.slots[*at] {
                CacheSlot { cache: 0, .. } => u32::MAX,
                slot => self.now.wrapping_sub(slot.touched),
            };
            let at = self.probes(cache).max_by_key(age).unwrap_or(first);
            let epoch = next_epoch(self.slots[at].epoch);
            self.slots[at] = CacheSlot { cache, epoch, ..CacheSlot::default() };
            at
        });
        self.slots[at].touched = self.now;
        at
    }
}

fn set_of(hash: u64, entries: usize) -> usize {
    (hash as usize & (entries - 1)) & !(WAYS - 1)
}

fn next_epoch(epoch: u16) -> u16 {
    epoch.wrapping_add(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::BlockHasher;
    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn index(blocks: usize, cache_blocks: u64) -> PrefixIndex {
        PrefixIndex::new(IndexCapacity { blocks, caches: 16, cache_bytes: cache_blocks * BLOCK })
    }

    fn blocks_of(prompt: &[u8]) -> Vec<u64> {
        let mut blocks = Vec::new();
        BlockHasher::new(0).write(prompt, &mut blocks);
        blocks
    }

    #[test]
    fn the_next_turn_of_a_conversation_finds_the_last_worker() {
        let mut index = index(1 << 12, 1000);
        let first: Vec<u8> = (0..20_000u32).map(|i| ((i * i) >> 5) as u8).collect();
        let mut second = first.clone();
        second.extend_from_slice(&[9; 10_000]);
        index.insert(7, &blocks_of(&first));
        index.insert(8, &blocks_of(&[1; 30_000]));
        let matched = index.lookup(&blocks_of(&second));
        assert_eq!((matched.bytes_of(7), matched.bytes_of(8)), (9 * BLOCK, 0));
    }

    #[test]
    fn a_new_or_restarted_worker_holds_nothing() {
        let mut index = index(1 << 12, 1000);
        let blocks = blocks_of(&[3; 20_000]);
        index.insert(7, &blocks);
        assert!(index.lookup(&blocks).bytes_of(7) > 0);
        assert_eq!(index.lookup(&blocks).bytes_of(7 + (1 << 40)), 0);
        index.forget(7);
        assert_eq!(index.lookup(&blocks).bytes_of(7), 0);
        index.insert(7, &blocks[..2]);
        assert_eq!(index.lookup(&blocks).bytes_of(7), 2 * BLOCK);
    }

    #[test]
    fn blocks_beyond_the_cache_size_count_as_evicted() {
        let mut index = index(1 << 14, 100);
        let old: Vec<u64> = (1..=50).collect();
        index.insert(7, &old);
        index.insert(7, &(1001..=1060).collect::<Vec<u64>>());
        assert_eq!(index.lookup(&old[..1]).bytes_of(7), 0, "110 blocks do not fit in 100");
        assert_eq!(index.lookup(&[1060]).bytes_of(7), BLOCK);
    }

    #[test]
    fn a_prefix_with_too_many_holders_is_common_to_all() {
        let mut index = index(1 << 12, 1000);
        for worker in 1..=6 {
            index.insert(worker, &[11, 12]);
        }
        let matched = index.lookup(&[11, 12, 13]);
        assert!((1..=6).all(|worker| matched.bytes_of(worker) == 2 * BLOCK));
        assert_eq!(matched.bytes_of(99), 2 * BLOCK);
    }

    proptest::proptest! {
        #[test]
        fn memory_is_fixed_and_a_lookup_never_exceeds_what_was_inserted(
            sends in proptest::collection::vec((1u64..40, 0u64..500, 1u64..30), 1..300),
        ) {
            let mut index = index(256, 200);
            let mut longest = std::collections::HashMap::new();
            for (worker, start, len) in sends {
                let chain: Vec<u64> = (0..len).map(|i| 1 + start * 1000 + i).collect();
                index.insert(worker, &chain);
                let known = longest.entry((worker, start)).or_insert(0);
                *known = len.max(*known);
            }
            proptest::prop_assert_eq!(index.entries.len(), 256);
            for (&(worker, start), &len) in &longest {
                let chain: Vec<u64> = (0..100).map(|i| 1 + start * 1000 + i).collect();
                let matched = index.lookup(&chain);
                let most = longest.iter().filter(|((_, s), _)| *s == start).map(|(_, l)| *l).max();
                proptest::prop_assert!(matched.bytes_of(worker) <= most.unwrap_or(len) * BLOCK);
            }
        }
    }
}
