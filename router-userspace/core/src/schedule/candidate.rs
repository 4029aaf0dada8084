//! [`Candidate`]: a worker that could serve a request, as plain data.

use super::assumptions::Assumptions;
use crate::fleet::{EngineRates, Load, PolledLoad, QueueHead, Usage, WorkerLimits, cache_of};

/// A worker that is eligible for the request and has capacity for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The caller's number for the worker. The choice returns it.
    pub id: usize,
    /// The leases on the worker. A prefill lease counts the work of its prompt in bytes.
    pub usage: Usage,
    /// What the engine runs at once, as it reported. Requests beyond it queue at the engine.
    pub limits: WorkerLimits,
    /// The prompt that a prefill computes now.
    pub queue_head: QueueHead,
    /// Pods of one group are preferred for each other. `0` is no group.
    pub group: u64,
    /// The worker's identity (a hash of UID and port), the same in every snapshot and gateway.
    pub worker: u64,
    /// The data-parallel rank, where each rank is a candidate. A rank has its own prefix cache.
    pub rank: u32,
    /// What the worker was observed to do, mixed with its pool's rates.
    pub rates: EngineRates,
    /// The load that an agent measured, or else one made of the engine's report.
    pub load: Option<Load>,
    /// New prompt blocks that this gateway sent to the worker, as the prefix index counts them.
    pub cached_blocks: u32,
    /// The engine's last report; `None` if it is too old.
    pub reported: Option<PolledLoad>,
    /// Whether `load` comes from an agent, not from the engine's report.
    pub measured: bool,
}

impl Candidate {
    /// Returns the identity of the prefix cache: the worker's, or the rank's.
    pub fn cache(&self) -> u64 {
        cache_of(self.worker, self.rank)
    }

    /// Whether the worker has capacity for `weight` beside this gateway's leases and the usage of
    /// other gateways. A request without capacity waits in the gateway: in the engine's queue it
    /// would block the requests behind it.
    ///
    /// The usage of others comes from the agent. Once `trust` has expired it comes from the
    /// engine's last report, and without a report it is taken for zero. A lying agent can
    /// therefore delay a request but never reject it.
    pub fn admits(&self, weight: Usage, trust: AgentTrust) -> bool {
        let (requests, kv_tokens) = self.others(trust);
        let known = Usage {
            requests: self.usage.requests.saturating_add(requests),
            kv_tokens: self.usage.kv_tokens.saturating_add(kv_tokens),
            ..self.usage
        };
        self.limits.admit(known, weight)
    }

    /// Requests and KV tokens of other gateways.
    fn others(&self, trust: AgentTrust) -> (u64, u64) {
        let measured = self.load.filter(|load| self.measured && !load.is_stale());
        match (measured, trust, self.reported) {
            (Some(load), AgentTrust::Trusted, _) => {
                let tokens = load.others_requests * self.rates.request_tokens;
                (load.others_requests as u64, tokens as u64)
            }
            (_, _, Some(reported)) => (reported.others_requests, reported.others_tokens),
            (_, _, None) => (0, 0),
        }
    }
}

impl Default for Candidate {
    /// An idle worker without observations.
    fn default() -> Candidate {
        Candidate {
            id: 0,
            usage: Usage::default(),
            limits: WorkerLimits::NONE,
            queue_head: QueueHead::default(),
            group: 0,
            worker: 0,
            rank: 0,
            rates: Assumptions::USUAL.rates,
            load: None,
            cached_blocks: 0,
            reported: None,
            measured: false,
        }
    }
}

/// Whether admission believes an agent that a worker has no capacity. Trust expires when a request
/// has waited longer than engines take to report their own load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentTrust {
    Trusted,
    Expired,
}

impl AgentTrust {
    /// Number of poll intervals for which an engine's report is valid, and for which an agent is
    /// trusted that a worker has no capacity.
    pub const POLLS: u64 = 3;

    /// Returns the trust left for a request that has waited `waited_ms`, where engines are polled
    /// every `poll_ms`.
    pub fn after(waited_ms: u64, poll_ms: u64) -> AgentTrust {
        let expired = waited_ms > poll_ms.saturating_mul(AgentTrust::POLLS);
        if expired { AgentTrust::Expired } else { AgentTrust::Trusted }
    }
}
