//! A histogram of microseconds with four buckets per octave.

/// Number of buckets, from 1 µs to 33 s; the last one also counts longer times.
pub const BUCKETS: usize = 96;

/// The bucket that counts `us` microseconds.
///
/// ```
/// use router_common::histogram::{bucket, floor_us};
///
/// assert!(floor_us(bucket(1_000)) <= 1_000);
/// assert!(floor_us(bucket(1_000) + 1) > 1_000);
/// ```
#[inline(always)]
pub fn bucket(us: u64) -> usize {
    if us < 4 {
        return us as usize;
    }
    let octave = 63 - us.leading_zeros() as usize;
    let index = ((octave - 1) << 2) | ((us >> (octave - 2)) & 3) as usize;
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The shortest time that bucket `index` counts, in microseconds.
pub fn floor_us(index: usize) -> u64 {
    if index < 4 {
        return index as u64;
    }
    let octave = (index >> 2) + 1;
    (4 + (index as u64 & 3)) << (octave - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_microsecond_falls_into_the_bucket_whose_bounds_hold_it() {
        for us in (0..100_000).chain((17..25).map(|bit| (1 << bit) + 7)) {
            let index = bucket(us);
            assert!(floor_us(index) <= us, "{us} below bucket {index}");
            assert!(index == BUCKETS - 1 || us < floor_us(index + 1), "{us} above {index}");
        }
    }

    #[test]
    fn a_time_beyond_the_last_bucket_is_counted_in_it() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
