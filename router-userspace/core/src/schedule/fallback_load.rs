//! [`FallbackLoad`]: what replaces the load of a worker without fresh data: the pool's median.

use super::candidate::Candidate;
use crate::fleet::Load;

/// Maximum number of workers that the median is taken over, spread evenly over the pool.
const MAX_SAMPLES: usize = 32;

/// Added to the cost of a worker whose load is unknown while other workers' loads are known.
const PENALTY_MS: f32 = 25.0;

/// The median of each term of the fresh loads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FallbackLoad {
    pub(super) load: Load,
    /// Whether any load is known. If so, a worker of unknown load costs a penalty.
    pub(super) known: bool,
}

impl FallbackLoad {
    /// Where all loads are fresh this costs one check per candidate.
    pub(super) fn of(candidates: &[Candidate]) -> FallbackLoad {
        let stale = |c: &Candidate| c.load.is_none_or(|load| load.is_stale());
        if !candidates.iter().any(stale) {
            return FallbackLoad::default();
        }
        let stride = candidates.len().div_ceil(MAX_SAMPLES).max(1);
        let mut sample = [Load::default(); MAX_SAMPLES];
        let mut len = 0;
        for candidate in candidates.iter().step_by(stride).filter(|c| !stale(c)) {
            sample[len] = candidate.load.unwrap_or_default();
            len += 1;
        }
        let median = |term: fn(&Load) -> f32| median(&sample[..len], term);
        FallbackLoad {
            known: len > 0,
            load: Load {
                age_ms: 0.0,
                others_requests: median(|load| load.others_requests),
                others_waiting_bytes: median(|load| load.others_waiting_bytes),
                itl_us: median(|load| load.itl_us),
                tx_free_bytes_per_ms: median(|load| load.tx_free_bytes_per_ms),
                rx_free_bytes_per_ms: median(|load| load.rx_free_bytes_per_ms),
                tx_kv_bytes_per_ms: median(|load| load.tx_kv_bytes_per_ms),
                rx_kv_bytes_per_ms: median(|load| load.rx_kv_bytes_per_ms),
            },
        }
    }

    /// Returns the load of a worker or its replacement, and the penalty for not knowing it.
    #[inline]
    pub(super) fn or_measured<'a>(&'a self, load: Option<&'a Load>) -> (&'a Load, f32) {
        match load {
            Some(load) if !load.is_stale() => (load, 0.0),
            _ => (&self.load, if self.known { PENALTY_MS } else { 0.0 }),
        }
    }
}

fn median(loads: &[Load], term: fn(&Load) -> f32) -> f32 {
    let mut values = [0.0; MAX_SAMPLES];
    let values = &mut values[..loads.len()];
    for (value, load) in values.iter_mut().zip(loads) {
        *value = term(load);
    }
    let middle = values.len() / 2;
    if values.is_empty() { 0.0 } else { *values.select_nth_unstable_by(middle, f32::total_cmp).1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(load: Option<Load>) -> Candidate {
        Candidate { load, ..Candidate::default() }
    }

    #[test]
    fn a_worker_without_a_load_gets_the_median() {
        let busy = |bytes| Some(Load { others_waiting_bytes: bytes, ..Load::default() });
        let pool = [with(busy(10.0)), with(None), with(busy(30.0)), with(busy(20.0))];
        let fallback = FallbackLoad::of(&pool);
        assert!(fallback.known);
        assert_eq!(fallback.load.others_waiting_bytes, 20.0);
    }

    #[test]
    fn without_agents_there_is_no_penalty() {
        assert!(!FallbackLoad::of(&[with(None), with(None)]).known);
    }
}
