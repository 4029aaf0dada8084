//! [`PrefixIndex`]: which prefill worker has seen how much of a prompt, in fixed memory.
//!
//! A prompt is cut into blocks; a block's hash covers everything before it, so that one match
//! at depth n says that the first n blocks are the same. The index maps hashes to the workers
//! that were sent them. It is an estimate: an engine evicts what it likes.

use super::prefix_match::PrefixMatch;

/// Bytes of prompt in one block, about 512 tokens.
pub const BLOCK_BYTES: usize = 2048;
/// Blocks of a prompt that are looked at; what follows is taken for new. 8 MiB.
pub const MAX_BLOCKS: usize = 4096;

/// Blocks that tell one conversation from another: 8 KiB.
const KEY_BLOCKS: usize = 4;
/// The same in bytes: whose first bytes are known no further is a new conversation.
pub const KEY_BYTES: u64 = (KEY_BLOCKS * BLOCK_BYTES) as u64;
/// Workers that are remembered for one block. A block of more is taken for common.
const HOLDERS: usize = 4;
/// Places that one block may stand in.
const WAYS: usize = 4;
/// Places that one worker may stand in.
const PROBES: usize = 8;

/// A worker that was sent a block, and when, by the worker's own clock of new blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Holder {
    slot: u16,
    /// 0 is nobody; a slot's epochs begin at 1.
    epoch: u16,
    clock: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// 0 is free.
    hash: u64,
    touched: u32,
    /// More workers hold it than stand here.
    common: bool,
    holders: [Holder; HOLDERS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The worker's identity; 0 is free.
    worker: u64,
    /// Counts the workers that had this slot, so that a holder of an earlier one is nobody.
    epoch: u16,
    /// Counts the blocks that were new to this worker.
    clock: u32,
    touched: u32,
}

/// How large the index is, and what engines are thought to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks in the index, 48 bytes each.
    pub blocks: usize,
    /// Workers that can be told apart.
    pub workers: usize,
    /// Bytes of prompt that one engine's cache is thought to hold.
    pub cache_bytes: u64,
}

/// The blocks that prefill workers were sent. Never grows.
#[derive(Debug)]
pub struct PrefixIndex {
    entries: Box<[Entry]>,
    slots: Box<[Slot]>,
    cache_blocks: u32,
    now: u32,
}

impl PrefixIndex {
    pub fn new(capacity: Capacity) -> PrefixIndex {
        let workers = capacity.workers.clamp(PROBES, 1 << 15).next_power_of_two() * 2;
        let blocks = capacity.blocks.max(WAYS).next_power_of_two();
        let cache_blocks = capacity.cache_bytes / BLOCK_BYTES as u64;
        PrefixIndex {
            entries: vec![Entry::default(); blocks].into(),
            slots: vec![Slot::default(); workers].into(),
            cache_blocks: u32::try_from(cache_blocks).unwrap_or(u32::MAX),
            now: 0,
        }
    }

    /// Who is thought to hold how much of the prompt.
    ///
    /// ```
    /// use router_core::schedule::prefix::{Capacity, Chain, PrefixIndex};
    ///
    /// let size = Capacity { blocks: 1 << 10, workers: 8, cache_bytes: 1 << 30 };
    /// let mut index = PrefixIndex::new(size);
    /// let mut blocks = Vec::new();
    /// Chain::new(0).write(&[7; 10_000], &mut blocks);
    /// index.sent(42, &blocks);
    /// assert_eq!(index.lookup(&blocks).bytes_of(42), 8192, "whole blocks only");
    /// assert_eq!(index.lookup(&blocks).bytes_of(43), 0);
    /// ```
    pub fn lookup(&self, blocks: &[u64]) -> PrefixMatch {
        let mut held = PrefixMatch::default();
        for (&hash, depth) in blocks.iter().zip(1..) {
            let Some(entry) = self.find(hash) else { break };
            for holder in &entry.holders {
                if let Some(worker) = self.alive(holder) {
                    held.note(worker, depth);
                }
            }
            if entry.common {
                held.note_common(depth);
            }
        }
        held
    }

    /// The prompt was sent to `worker`, whose cache holds it from now on.
    pub fn sent(&mut self, worker: u64, blocks: &[u64]) {
        self.now = self.now.wrapping_add(1);
        let slot = self.slot_of(worker);
        for &hash in blocks.iter().take(MAX_BLOCKS) {
            let entry = self.claim(hash.max(1));
            self.hold(entry, slot);
        }
    }

    /// `worker` has lost its cache: it restarted under the same identity.
    pub fn forget(&mut self, worker: u64) {
        if let Some(at) = self.probes(worker).find(|&at| self.slots[at].worker == worker) {
            self.slots[at] = Slot { epoch: next_epoch(self.slots[at].epoch), ..Slot::default() };
        }
    }

    /// Blocks that `worker` was sent and had not had: how much of its cache is in use.
    pub fn blocks_of(&self, worker: u64) -> u32 {
        let at = self.probes(worker).find(|&at| self.slots[at].worker == worker);
        at.map_or(0, |at| self.slots[at].clock)
    }

    fn find(&self, hash: u64) -> Option<&Entry> {
        let hash = hash.max(1);
        let at = set_of(hash, self.entries.len());
        self.entries[at..at + WAYS].iter().find(|entry| entry.hash == hash)
    }

    fn alive(&self, holder: &Holder) -> Option<u64> {
        let slot = self.slots.get(usize::from(holder.slot))?;
        let current = holder.epoch != 0 && slot.epoch == holder.epoch;
        let kept = slot.clock.wrapping_sub(holder.clock) <= self.cache_blocks;
        (current && kept).then_some(slot.worker)
    }

    /// The entry of a hash; the one of its set that was touched longest ago where it has none.
    fn claim(&mut self, hash: u64) -> usize {
        let start = set_of(hash, self.entries.len());
        let ways = start..start + WAYS;
        let known = ways.clone().find(|&at| self.entries[at].hash == hash);
        let at = known.unwrap_or_else(|| {
            let age = |at: &usize| match &self.entries[*at] {
                Entry { hash: 0, .. } => u32::MAX,
                entry => self.now.wrapping_sub(entry.touched),
            };
            let oldest = ways.max_by_key(age).unwrap_or(start);
            self.entries[oldest] = Entry { hash, ..Entry::default() };
            oldest
        });
        self.entries[at].touched = self.now;
        at
    }

    /// Writes `slot` among the holders of an entry.
    fn hold(&mut self, entry: usize, slot: usize) {
        let Slot { epoch, clock, .. } = self.slots[slot];
        let mut holders = self.entries[entry].holders;
        let mine = Holder { slot: slot as u16, epoch, clock };
        let known = holders.iter().position(|h| h.slot == mine.slot && h.epoch == epoch);
        let had = known.is_some_and(|at| self.alive(&holders[at]).is_some());
        let free = || holders.iter().position(|holder| self.alive(holder).is_none());
        let at = known.or_else(free).unwrap_or_else(|| {
            self.entries[entry].common = true;
            // Any will do; one by the clock spreads the places over the workers.
            clock as usize % HOLDERS
        });
        if !had {
            self.slots[slot].clock = clock.wrapping_add(1);
        }
        holders[at] = Holder { clock: self.slots[slot].clock, ..mine };
        self.entries[entry].holders = holders;
    }

    fn probes(&self, worker: u64) -> impl Iterator<Item = usize> + Clone + use<> {
        let slots = self.slots.len();
        let first = (worker.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        (0..PROBES).map(move |probe| (first + probe) & (slots - 1))
    }

    /// The worker's slot, taken from whoever was sent nothing for longest where it has none.
    fn slot_of(&mut self, worker: u64) -> usize {
        let mut probes = self.probes(worker);
        let known = probes.clone().find(|&at| self.slots[at].worker == worker);
        let at = known.unwrap_or_else(|| {
            let first = probes.next().unwrap_or(0);
            let age = |at: &usize| match &self.slots[*at] {
                Slot { worker: 0, .. } => u32::MAX,
                slot => self.now.wrapping_sub(slot.touched),
            };
            let at = self.probes(worker).max_by_key(age).unwrap_or(first);
            let epoch = next_epoch(self.slots[at].epoch);
            self.slots[at] = Slot { worker, epoch, ..Slot::default() };
            at
        });
        self.slots[at].touched = self.now;
        at
    }
}

/// What a rendezvous hash goes by: the first blocks, which every turn of a conversation shares
/// and which are more than a common system prompt. 0 where a prompt is shorter than a block.
pub fn key_of(blocks: &[u64]) -> u64 {
    blocks.get(KEY_BLOCKS - 1).or(blocks.last()).copied().unwrap_or(0)
}

fn set_of(hash: u64, entries: usize) -> usize {
    (hash as usize & (entries - 1)) & !(WAYS - 1)
}

fn next_epoch(epoch: u16) -> u16 {
    epoch.wrapping_add(1).max(1)
}

/// Cuts a prompt that comes in pieces into blocks, and hashes each with all before it.
#[derive(Debug)]
pub struct Chain {
    hash: u64,
    block: [u8; BLOCK_BYTES],
    filled: usize,
}

impl Chain {
    /// Prompts of different seeds (models, tenants) share nothing.
    pub fn new(seed: u64) -> Chain {
        Chain { hash: seed, block: [0; BLOCK_BYTES], filled: 0 }
    }

    /// Appends the hashes of the blocks that `piece` completes. How a prompt is cut into pieces
    /// makes no difference.
    pub fn write(&mut self, mut piece: &[u8], blocks: &mut Vec<u64>) {
        while !piece.is_empty() && blocks.len() < MAX_BLOCKS {
            if self.filled == 0
                && let Some((block, rest)) = piece.split_first_chunk::<BLOCK_BYTES>()
            {
                self.hash = hash(self.hash, block);
                piece = rest;
            } else {
                let taken = piece.len().min(BLOCK_BYTES - self.filled);
                self.block[self.filled..self.filled + taken].copy_from_slice(&piece[..taken]);
                self.filled += taken;
                piece = &piece[taken..];
                if self.filled < BLOCK_BYTES {
                    return;
                }
                self.filled = 0;
                self.hash = hash(self.hash, &self.block);
            }
            blocks.push(self.hash.max(1));
        }
    }
}

/// Four lanes of multiply and fold, which the processor works on at once.
fn hash(seed: u64, block: &[u8; BLOCK_BYTES]) -> u64 {
    const KEYS: [u64; 4] = [
        0x9e37_79b9_7f4a_7c15,
        0xd6e8_feb8_6659_fd93,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
    ];
    let mut lanes = KEYS.map(|key| key ^ seed);
    for stripe in block.as_chunks::<32>().0 {
        for ((lane, word), key) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0).zip(KEYS) {
            *lane = fold(*lane ^ u64::from_le_bytes(*word), key);
        }
    }
    lanes.iter().fold(seed, |sum, &lane| fold(sum ^ lane, KEYS[0]))
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn index(blocks: usize, cache_blocks: u64) -> PrefixIndex {
        PrefixIndex::new(Capacity { blocks, workers: 16, cache_bytes: cache_blocks * BLOCK })
    }

    fn blocks_of(prompt: &[u8]) -> Vec<u64> {
        let mut blocks = Vec::new();
        Chain::new(0).write(prompt, &mut blocks);
        blocks
    }

    #[test]
    fn the_next_turn_of_a_conversation_finds_the_worker_of_the_last() {
        let mut index = index(1 << 12, 1000);
        let first: Vec<u8> = (0..20_000u32).map(|i| ((i * i) >> 5) as u8).collect();
        let mut second = first.clone();
        second.extend_from_slice(&[9; 10_000]);
        index.sent(7, &blocks_of(&first));
        index.sent(8, &blocks_of(&[1; 30_000]));
        let held = index.lookup(&blocks_of(&second));
        assert_eq!((held.bytes_of(7), held.bytes_of(8)), (9 * BLOCK, 0));
    }

    #[test]
    fn a_worker_of_a_new_identity_knows_nothing() {
        let mut index = index(1 << 12, 1000);
        let blocks = blocks_of(&[3; 20_000]);
        index.sent(7, &blocks);
        assert!(index.lookup(&blocks).bytes_of(7) > 0);
        assert_eq!(index.lookup(&blocks).bytes_of(7 + (1 << 40)), 0);
        index.forget(7);
        assert_eq!(index.lookup(&blocks).bytes_of(7), 0);
        index.sent(7, &blocks[..2]);
        assert_eq!(index.lookup(&blocks).bytes_of(7), 2 * BLOCK);
    }

    #[test]
    fn what_a_full_cache_must_have_evicted_is_not_counted_on() {
        let mut index = index(1 << 14, 100);
        let old: Vec<u64> = (1..=50).collect();
        index.sent(7, &old);
        index.sent(7, &(1001..=1060).collect::<Vec<u64>>());
        assert_eq!(index.lookup(&old[..1]).bytes_of(7), 0, "110 blocks do not fit in 100");
        assert_eq!(index.lookup(&[1060]).bytes_of(7), BLOCK);
    }

    #[test]
    fn a_prefix_that_everybody_has_is_common() {
        let mut index = index(1 << 12, 1000);
        for worker in 1..=6 {
            index.sent(worker, &[11, 12]);
        }
        let held = index.lookup(&[11, 12, 13]);
        assert!((1..=6).all(|worker| held.bytes_of(worker) == 2 * BLOCK));
        assert_eq!(held.bytes_of(99), 2 * BLOCK);
    }

    proptest::proptest! {
        #[test]
        fn pieces_make_no_difference(
            prompt in proptest::collection::vec(proptest::num::u8::ANY, 0..9000),
            cuts in proptest::collection::vec(0usize..9000, 0..6),
        ) {
            let whole = blocks_of(&prompt);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(prompt.len())).collect();
            cuts.extend([0, prompt.len()]);
            cuts.sort_unstable();
            let (mut chain, mut blocks) = (Chain::new(0), Vec::new());
            for cut in cuts.windows(2) {
                chain.write(&prompt[cut[0]..cut[1]], &mut blocks);
            }
            proptest::prop_assert_eq!(blocks, whole);
        }

        #[test]
        fn memory_is_fixed_and_a_lookup_never_tells_more_than_was_sent(
            sends in proptest::collection::vec((1u64..40, 0u64..500, 1u64..30), 1..300),
        ) {
            let mut index = index(256, 200);
            let mut longest = std::collections::HashMap::new();
            for (worker, start, len) in sends {
                let chain: Vec<u64> = (0..len).map(|i| 1 + start * 1000 + i).collect();
                index.sent(worker, &chain);
                let known = longest.entry((worker, start)).or_insert(0);
                *known = len.max(*known);
            }
            proptest::prop_assert_eq!(index.entries.len(), 256);
            for (&(worker, start), &len) in &longest {
                let chain: Vec<u64> = (0..100).map(|i| 1 + start * 1000 + i).collect();
                let held = index.lookup(&chain);
                let most = longest.iter().filter(|((_, s), _)| *s == start).map(|(_, l)| *l).max();
                proptest::prop_assert!(held.bytes_of(worker) <= most.unwrap_or(len) * BLOCK);
            }
        }
    }
}
