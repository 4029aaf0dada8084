//! [`Load`]: what an agent measured of one worker, beside what the gateway knows itself.

use serde::Serialize;

/// A load that is older than this is not believed any more: three heartbeats were missed.
pub const STALE_MS: f32 = 300.0;

/// The kernel's view of one worker, less the gateway's own share in it.
///
/// Counts of other gateways' requests are what the kernel saw at the pod less the leases that
/// the gateway held when the frame came; never below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// Since it was measured, on the agent's clock and on the way.
    pub age_ms: f32,
    /// Requests of others whose answer has not ended.
    pub others_requests: f32,
    /// Bytes of the requests of others whose answer has not begun.
    pub others_waiting_bytes: f32,
    /// Mean time between two segments of streamed answers; 0 where nothing streams.
    pub itl_us: f32,
    /// Link speed less what was measured to be used, KV cache excepted.
    pub tx_free_bytes_per_ms: f32,
    pub rx_free_bytes_per_ms: f32,
    /// KV cache on its way, out of this worker and into it.
    pub tx_kv_bytes_per_ms: f32,
    pub rx_kv_bytes_per_ms: f32,
}

impl Load {
    /// Whether it is too old to be believed.
    pub fn is_stale(&self) -> bool {
        // Written so that an age that is no number is stale.
        !matches!(self.age_ms.partial_cmp(&STALE_MS), Some(std::cmp::Ordering::Less))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_load_and_one_of_no_age_are_stale() {
        assert!(!Load { age_ms: 299.0, ..Load::default() }.is_stale());
        for age_ms in [300.0, f32::INFINITY, f32::NAN] {
            assert!(Load { age_ms, ..Load::default() }.is_stale());
        }
    }
}
