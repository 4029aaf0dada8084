//! [`Demand`]: what one request needs, and where its prompt may already be cached.

use super::prefix_blocks::KEY_BYTES;
use super::prefix_match::PrefixMatch;

/// What one request asks of a pair.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    pub prompt_bytes: u64,
    /// KV tokens by the gateway's own estimate, as the decode lease counts them.
    pub kv_tokens: u64,
    /// How much of the prompt each prefill cache is estimated to hold.
    pub prefix_match: PrefixMatch,
    /// Hash of the prompt's first blocks, the same in every gateway; 0 is none. It names the
    /// prefill that other gateways would choose where no cache is known to hold the prompt.
    pub prefix_key: u64,
}

impl Demand {
    /// Bytes of the prompt that `cache` is not known to hold.
    pub fn uncached_bytes(&self, cache: u64) -> u64 {
        self.prompt_bytes.saturating_sub(self.prefix_match.bytes_of(cache))
    }

    /// Returns the one of `caches` that every gateway would choose for this prompt if all workers
    /// were idle, or `None` where the index already knows the conversation.
    pub fn rendezvous(
        &self,
        caches: impl IntoIterator<Item = u64>,
        could: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        if self.prefix_match.max_bytes() >= KEY_BYTES { None } else { self.owner(caches, could) }
    }

    /// Returns the one of `caches` that every gateway would choose for this conversation, known or
    /// not, if all workers were idle; `None` for a prompt shorter than a block.
    ///
    /// It is the cache with the highest hash of key and identity among those that `could` serve
    /// (rendezvous hashing, Thaler and Ravishankar 1998). A worker that leaves moves only its own
    /// prefixes.
    pub fn owner(
        &self,
        caches: impl IntoIterator<Item = u64>,
        could: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let key = self.prefix_key;
        if key == 0 {
            return None;
        }
        let mut best = None;
        for cache in caches {
            let mixed = (cache ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let weight = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
            // `could` is called only for a cache that would win: a few times of a thousand.
            if best.is_none_or(|(most, _)| weight > most) && could(cache) {
                best = Some((weight, cache));
            }
        }
        best.map(|(_, cache)| cache)
    }
}
