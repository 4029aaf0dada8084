//! [`PrefixMatch`]: how much of one prompt each prefill worker is thought to have in its cache.

use super::prefix::BLOCK_BYTES;

/// Workers that are told of one prompt; the ones that hold least give way.
const MOST: usize = 16;

/// What the prefix index knows of one prompt. Plain data, on the stack.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefixMatch {
    workers: [(u64, u32); MOST],
    len: usize,
    /// One bit for each worker's identity: most workers hold nothing, and that is told by this.
    filter: u64,
    common: u32,
}

impl PrefixMatch {
    /// Nobody holds anything.
    pub const NONE: PrefixMatch =
        PrefixMatch { workers: [(0, 0); MOST], len: 0, filter: 0, common: 0 };

    /// Bytes of the prompt that `worker` is thought to hold.
    pub fn bytes_of(&self, worker: u64) -> u64 {
        let own = if self.filter & bit(worker) == 0 {
            0
        } else {
            let known = self.workers[..self.len].iter().find(|(known, _)| *known == worker);
            known.map_or(0, |(_, blocks)| *blocks)
        };
        u64::from(own.max(self.common)) * BLOCK_BYTES as u64
    }

    /// The caches that are thought to hold a part of it.
    pub fn holders(&self) -> impl Iterator<Item = u64> + '_ {
        self.workers[..self.len].iter().map(|(worker, _)| *worker)
    }

    /// Whether nobody is known to hold any of it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the prompt that the best informed worker holds.
    pub fn max_bytes(&self) -> u64 {
        let most = self.workers[..self.len].iter().map(|(_, blocks)| *blocks).max();
        u64::from(most.unwrap_or(0)) * BLOCK_BYTES as u64
    }

    pub(super) fn note(&mut self, worker: u64, blocks: u32) {
        let known = &mut self.workers[..self.len];
        if let Some((_, had)) = known.iter_mut().find(|(known, _)| *known == worker) {
            *had = blocks.max(*had);
        } else if let Some(place) = self.workers.get_mut(self.len) {
            *place = (worker, blocks);
            self.len += 1;
        } else if let Some(least) = self.workers.iter_mut().min_by_key(|(_, blocks)| *blocks)
            && least.1 < blocks
        {
            *least = (worker, blocks);
        }
        self.filter |= bit(worker);
    }

    pub(super) fn note_common(&mut self, blocks: u32) {
        self.common = blocks.max(self.common);
    }
}

fn bit(worker: u64) -> u64 {
    1 << (worker.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ones_that_hold_least_give_way() {
        let mut held = PrefixMatch::default();
        for worker in 1..=20 {
            held.note(worker, worker as u32);
        }
        assert_eq!(held.bytes_of(20), 20 * BLOCK_BYTES as u64);
        assert_eq!(held.max_bytes(), 20 * BLOCK_BYTES as u64);
        assert_eq!(held.bytes_of(1), 0);
    }
}
