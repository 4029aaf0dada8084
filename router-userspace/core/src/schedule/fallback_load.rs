//! [`FallbackLoad`]: what stands for a worker of which nothing fresh is known: the pool's median.

use super::input::Candidate;
use crate::fleet::Load;

/// Workers that the median is taken over, spread over the pool.
const SAMPLES: usize = 32;

/// The median of each term over those whose load is fresh.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FallbackLoad {
    pub(super) load: Load,
    /// Anybody's load is known: then not to know another's costs it a penalty.
    pub(super) known: bool,
}

impl FallbackLoad {
    /// Costs nothing but a look at each where all are fresh.
    pub(super) fn of(candidates: &[Candidate]) -> FallbackLoad {
        let stale = |c: &Candidate| c.load.is_none_or(|load| load.is_stale());
        if !candidates.iter().any(stale) {
            return FallbackLoad::default();
        }
        let stride = candidates.len().div_ceil(SAMPLES).max(1);
        let mut sample = [Load::default(); SAMPLES];
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
}

fn median(loads: &[Load], term: fn(&Load) -> f32) -> f32 {
    let mut values = [0.0; SAMPLES];
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
    fn one_silent_agent_is_taken_for_an_ordinary_worker() {
        let busy = |bytes| Some(Load { others_waiting_bytes: bytes, ..Load::default() });
        let pool = [with(busy(10.0)), with(None), with(busy(30.0)), with(busy(20.0))];
        let typical = FallbackLoad::of(&pool);
        assert!(typical.known);
        assert_eq!(typical.load.others_waiting_bytes, 20.0);
    }

    #[test]
    fn without_agents_nobody_is_penalised() {
        assert!(!FallbackLoad::of(&[with(None), with(None)]).known);
    }
}
