//! [`BlockHasher`]: cuts a prompt into blocks and hashes each together with everything before it.

/// Bytes of prompt in one block, about 512 tokens.
pub const BLOCK_BYTES: usize = 2048;
/// Maximum number of blocks of a prompt that are hashed (8 MiB). The rest counts as not cached.
pub const MAX_BLOCKS: usize = 4096;

/// Blocks that identify a conversation: 8 KiB.
const KEY_BLOCKS: usize = 4;
/// [`prefix_key`] covers this many bytes. A prompt of which less is known is a new conversation.
pub const KEY_BYTES: u64 = (KEY_BLOCKS * BLOCK_BYTES) as u64;

/// Returns the key that a rendezvous hash uses: the hash of the first blocks, which every turn of a
/// conversation shares and which are longer than a common system prompt. 0 for a prompt shorter
/// than a block.
pub fn prefix_key(blocks: &[u64]) -> u64 {
    blocks.get(KEY_BLOCKS - 1).or(blocks.last()).copied().unwrap_or(0)
}

/// Hashes the blocks of a prompt that arrives in pieces. The hash of a block covers all blocks
/// before it, so a match at depth `n` means that the first `n` blocks are equal.
#[derive(Debug)]
pub struct BlockHasher {
    hash: u64,
    block: [u8; BLOCK_BYTES],
    filled: usize,
}

impl BlockHasher {
    /// Prompts of different seeds (models, tenants) have no hash in common.
    pub fn new(seed: u64) -> BlockHasher {
        BlockHasher { hash: seed, block: [0; BLOCK_BYTES], filled: 0 }
    }

    /// Appends the hashes of the blocks that `piece` completes. The result does not depend on how
    /// the prompt is cut into pieces.
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

/// Multiply and fold in four independent lanes, which the processor runs in parallel.
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

    fn blocks_of(prompt: &[u8]) -> Vec<u64> {
        let mut blocks = Vec::new();
        BlockHasher::new(0).write(prompt, &mut blocks);
        blocks
    }

    proptest::proptest! {
        #[test]
        fn how_a_prompt_is_cut_into_pieces_does_not_change_its_hashes(
            prompt in proptest::collection::vec(proptest::num::u8::ANY, 0..9000),
            cuts in proptest::collection::vec(0usize..9000, 0..6),
        ) {
            let whole = blocks_of(&prompt);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(prompt.len())).collect();
            cuts.extend([0, prompt.len()]);
            cuts.sort_unstable();
            let (mut hasher, mut blocks) = (BlockHasher::new(0), Vec::new());
            for cut in cuts.windows(2) {
                hasher.write(&prompt[cut[0]..cut[1]], &mut blocks);
            }
            proptest::prop_assert_eq!(blocks, whole);
        }
    }
}
