//! [`Draw`]: the randomness of one choice, passed in so that a choice can be repeated.

/// Random bits and a turn counter for one choice.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Uniform over all of `u64`, fresh for each choice.
    pub chance: u64,
    /// Number of choices made before this one.
    pub turn: u64,
}

impl Draw {
    /// Returns the next draw: as random as this one, and independent of it.
    pub fn second(self) -> Draw {
        // The finaliser of splitmix64 (Steele, Lea, Flood 2014) turns one draw into another.
        let mut z = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Draw { chance: z ^ (z >> 31), turn: self.turn }
    }

    /// Returns the positions `0..len` in ascending order from a random one on. Where the first minimum
    /// is taken, ties are then broken evenly, and gateways do not all choose the same worker.
    pub(super) fn positions(self, len: usize) -> impl Iterator<Item = usize> + use<> {
        let start = self.below(len);
        (start..len).chain(0..start)
    }

    /// Returns a number in `0..n`, taken from the high bits. `n` must not be 0.
    pub(super) fn below(self, n: usize) -> usize {
        ((u128::from(self.chance) * n as u128) >> 64) as usize
    }
}
