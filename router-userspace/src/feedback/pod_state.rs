//! [`PodState`]: the last record of one pod, and how it becomes the load of the pod's workers.

use std::sync::Arc;

use router_core::fleet::{Load, Role, Usage};
use router_core::frame::PodRecord;
use router_core::provenance::Measured;
use router_core::schedule::step_us_of_idle;

use super::pod_workers::{PodWorker, PodWorkers};
use crate::scheduler_view::SchedulerView;

/// Bytes of a request beside its body: its head, and the fields that injection adds.
pub(super) const OVERHEAD_BYTES: u64 = 640;
/// Share of a link that counts as free however much others use: no transfer is impossible.
const MIN_FREE_SHARE: f32 = 0.01;

/// The time of a frame, on the gateway's clock.
pub(super) struct FrameContext<'v> {
    /// When the frame arrived.
    pub(super) now_us: u64,
    /// When the agent last confirmed its values.
    pub(super) valid_us: u64,
    pub(super) view: &'v SchedulerView,
}

/// The last record of one pod, and the workers that it describes.
#[derive(Debug)]
pub(super) struct PodState {
    pub(super) record: PodRecord,
    /// The pod's workers that this agent may report: those on its own node, if both nodes are
    /// known.
    pub(super) workers: Vec<PodWorker>,
    /// Whether the pod belongs to a pool, on any node.
    pub(super) is_in_pool: bool,
    /// Request bytes and KV bytes that the pool's estimate of KV size has already counted.
    pub(super) counted: (u64, u64),
}

impl PodState {
    /// The state before the first record.
    pub(super) fn new(pod: u64, node: Option<&Arc<str>>, pod_workers: &PodWorkers) -> PodState {
        let workers = pod_workers.of_pod(pod);
        let accepted = workers.iter().filter(|worker| is_accepted(node, worker));
        PodState {
            record: PodRecord::default(),
            workers: accepted.cloned().collect(),
            is_in_pool: !workers.is_empty(),
            counted: (0, 0),
        }
    }

    /// Sets the load of the pod's workers from the record.
    pub(super) fn update_workers(&mut self, context: &FrameContext<'_>) {
        let Some(first) = self.workers.first() else { return };
        let now_ms = context.now_us / 1000;
        let measured_us = context.now_us.saturating_sub(u64::from(self.record.age_us));
        // The kernel counts per pod, so the leases of all of the pod's workers are subtracted.
        let own = self.workers.iter().fold(Usage::default(), |mut own, pod_worker| {
            let then = pod_worker.worker.lease_history.at(measured_us / 1000);
            own.exchanges += then.exchanges;
            own.wire_bytes += then.wire_bytes;
            own
        });
        let load = load(&self.record, own);
        for pod_worker in &self.workers {
            pod_worker.worker.load.set(&load, measured_us.max(context.valid_us));
            observe_step(&self.record, &load, pod_worker, context.view, now_ms);
        }
        // KV bytes per request byte, from what the pod received and what it sent.
        let (requested, sent) = transfer_totals(&self.record);
        if requested < self.counted.0 || sent < self.counted.1 {
            self.counted = (requested, sent);
        }
        let new = (requested - self.counted.0, sent - self.counted.1);
        if first.role == Role::Prefill && new.0 > 0 && new.1 > 0 {
            first.pool.on_kv_transfer(new.0 as f32, new.1 as f32, now_ms);
            self.counted = (requested, sent);
        }
    }

    /// Marks the workers' loads as still valid at `valid_us`.
    pub(super) fn refresh(&self, valid_us: u64) {
        self.workers.iter().for_each(|pod_worker| pod_worker.worker.load.refresh(valid_us));
    }
}

/// Whether an agent on `node` may report a worker: unless both nodes are known and differ.
fn is_accepted(node: Option<&Arc<str>>, worker: &PodWorker) -> bool {
    node.zip(worker.node.as_ref()).is_none_or(|(agent, worker)| agent == worker)
}

/// Bytes of requests received, and bytes of KV cache sent.
pub(super) fn transfer_totals(record: &PodRecord) -> (u64, u64) {
    (record.request_bytes, record.kv_tx_bytes)
}

/// The scheduler's load of a pod, without this gateway's own requests.
fn load(record: &PodRecord, own: Usage) -> Load {
    let own_bytes = own.wire_bytes + own.exchanges * OVERHEAD_BYTES;
    let kv = |rate: Measured<f32>| rate.value().unwrap_or(0.0);
    let speed = record.link_bytes_per_s.value().unwrap_or(0.0);
    let free = |used: Measured<f32>, kv: f32| {
        // The scheduler accounts for KV transfers separately.
        let others = (used.value().unwrap_or(0.0) - kv).max(0.0);
        (speed - others).max(speed * MIN_FREE_SHARE) / 1000.0
    };
    let (tx_kv, rx_kv) = (kv(record.kv_tx_bytes_per_s), kv(record.kv_rx_bytes_per_s));
    Load {
        age_ms: 0.0,
        others_requests: u64::from(record.in_flight).saturating_sub(own.exchanges) as f32,
        others_waiting_bytes: record.waiting_bytes.saturating_sub(own_bytes) as f32,
        itl_us: if record.itl.samples > 0 { record.itl.mean_us } else { 0.0 },
        tx_free_bytes_per_ms: free(record.link_tx_used_bytes_per_s, tx_kv),
        rx_free_bytes_per_ms: free(record.link_rx_used_bytes_per_s, rx_kv),
        tx_kv_bytes_per_ms: tx_kv / 1000.0,
        rx_kv_bytes_per_ms: rx_kv / 1000.0,
    }
}

/// Adds a decode step that the kernel saw to the estimates of the engine's speed.
fn observe_step(
    record: &PodRecord,
    load: &Load,
    pod_worker: &PodWorker,
    view: &SchedulerView,
    now_ms: u64,
) {
    if load.itl_us <= 0.0 || record.streaming == 0 || pod_worker.role == Role::Prefill {
        return;
    }
    let worker = &pod_worker.worker;
    let request_tokens = pod_worker.pool.request_tokens(&view.assumptions.rates, now_ms);
    let batch = worker.usage().kv_tokens as f32 + load.others_requests * request_tokens;
    let step_us = step_us_of_idle(load.itl_us, batch, &view.assumptions);
    pod_worker.pool.on_pool_decode_step(step_us, now_ms);
    worker.rate_estimators.on_decode_step(step_us, now_ms);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_link_keeps_one_percent_free_and_an_unknown_link_is_zero() {
        let used = PodRecord {
            link_bytes_per_s: Measured::exact(1e9),
            link_tx_used_bytes_per_s: Measured::exact(2e9),
            link_rx_used_bytes_per_s: Measured::exact(6e8),
            kv_rx_bytes_per_s: Measured::exact(4e8),
            ..PodRecord::default()
        };
        let busy = load(&used, Usage::default());
        assert_eq!((busy.tx_free_bytes_per_ms, busy.rx_free_bytes_per_ms), (1e4, 8e5));
        assert_eq!(busy.rx_kv_bytes_per_ms, 4e5);
        let unknown = load(&PodRecord::default(), Usage::default());
        assert_eq!(unknown.tx_free_bytes_per_ms, 0.0);
    }
}
