//! [`Told`]: what an agent told of one pod, and how it becomes the load of the pod's workers.

use std::sync::Arc;

use router_core::fleet::{Load, Role, Usage};
use router_core::frame::PodRecord;
use router_core::provenance::Measured;
use router_core::schedule::step_us_of_idle;

use super::targets::{Target, Targets};
use crate::scheduler_view::SchedulerView;

/// What a request's head and the fields that injection adds take beside its body.
pub(super) const OVERHEAD_BYTES: u64 = 640;
/// Whatever others do, a link has this much left: nothing is known to be impossible.
const LEAST_FREE: f32 = 0.01;

/// When a frame came, and as of when it holds.
pub(super) struct Now<'v> {
    /// On the gateway's clock.
    pub(super) us: u64,
    pub(super) holds_us: u64,
    pub(super) view: &'v SchedulerView,
}

/// What was told of one pod, and whom it concerns.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) record: PodRecord,
    /// The workers of the pod that this agent may tell of: those of its own node, as far as both
    /// nodes are known.
    pub(super) targets: Vec<Target>,
    /// Whether it is a pod of a pool, of whatever node.
    pub(super) is_known: bool,
    /// Bytes asked and KV bytes sent that are evidence already.
    pub(super) counted: (u64, u64),
}

impl Told {
    /// Nothing yet.
    pub(super) fn of(pod: u64, node: Option<&Arc<str>>, targets: &Targets) -> Told {
        let workers = targets.of_pod(pod);
        let believed = workers.iter().filter(|target| is_believed(node, target));
        Told {
            record: PodRecord::default(),
            targets: believed.cloned().collect(),
            is_known: !workers.is_empty(),
            counted: (0, 0),
        }
    }

    /// Tells the workers.
    pub(super) fn pass_on(&mut self, now: &Now<'_>) {
        let Some(first) = self.targets.first() else { return };
        let measured_us = now.us.saturating_sub(u64::from(self.record.age_us));
        // The kernel counts by pod: of several workers of one, what all of them were sent is ours.
        let own = self.targets.iter().fold(Usage::default(), |mut own, target| {
            let then = target.worker.lease_history.at(measured_us / 1000);
            own.exchanges += then.exchanges;
            own.wire_bytes += then.wire_bytes;
            own
        });
        let load = load(&self.record, own);
        for target in &self.targets {
            target.worker.load.set(&load, measured_us.max(now.holds_us));
            learn_step(&self.record, &load, target, now.view, now.us / 1000);
        }
        // How much KV cache a byte of prompt makes, from what went in and what went out.
        let (asked, sent) = evidence(&self.record);
        if asked < self.counted.0 || sent < self.counted.1 {
            self.counted = (asked, sent);
        }
        let new = (asked - self.counted.0, sent - self.counted.1);
        if first.role == Role::Prefill && new.0 > 0 && new.1 > 0 {
            first.pool.on_kv_transfer(new.0 as f32, new.1 as f32, now.us / 1000);
            self.counted = (asked, sent);
        }
    }

    /// Tells them that it still holds.
    pub(super) fn holds(&self, holds_us: u64) {
        self.targets.iter().for_each(|target| target.worker.load.holds(holds_us));
    }
}

/// Whether an agent of `node` may tell of a worker: not where both nodes are known, and two.
fn is_believed(node: Option<&Arc<str>>, target: &Target) -> bool {
    node.zip(target.node.as_ref()).is_none_or(|(agent, worker)| agent == worker)
}

/// Bytes asked, and bytes of KV cache sent.
pub(super) fn evidence(record: &PodRecord) -> (u64, u64) {
    (record.asked_bytes, record.kv_tx_bytes)
}

/// A record as the scheduler takes it, without what this gateway had there itself.
fn load(record: &PodRecord, own: Usage) -> Load {
    let own_bytes = own.wire_bytes + own.exchanges * OVERHEAD_BYTES;
    let kv = |rate: Measured<f32>| rate.value().unwrap_or(0.0);
    let speed = record.link_bytes_per_s.value().unwrap_or(0.0);
    let free = |used: Measured<f32>, kv: f32| {
        // What KV cache uses of the link is told apart.
        let others = (used.value().unwrap_or(0.0) - kv).max(0.0);
        (speed - others).max(speed * LEAST_FREE) / 1000.0
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

/// A step that the kernel saw is evidence of the engine's speed.
fn learn_step(record: &PodRecord, load: &Load, target: &Target, view: &SchedulerView, now_ms: u64) {
    if load.itl_us <= 0.0 || record.streaming == 0 || target.role == Role::Prefill {
        return;
    }
    let worker = &target.worker;
    let request_tokens = target.pool.request_tokens(&view.assumptions.rates, now_ms);
    let batch = worker.usage().kv_tokens as f32 + load.others_requests * request_tokens;
    let step_us = step_us_of_idle(load.itl_us, batch, &view.assumptions);
    target.pool.on_pool_decode_step(step_us, now_ms);
    worker.rate_estimators.on_decode_step(step_us, now_ms);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_link_leaves_a_little_and_an_unknown_one_says_nothing() {
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
