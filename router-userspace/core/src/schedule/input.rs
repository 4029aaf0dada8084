//! [`ChoiceInput`]: everything that a choice is made from, as plain data.

use serde::Serialize;

use super::estimate::{Assumptions, Estimate};
use super::prefix::KEY_BYTES;
use super::prefix_match::PrefixMatch;
use crate::fleet::{EngineRates, Limits, Links, Load, QueueHead, ReportedLoad, Usage, cache_of};
use crate::pair::Pair;

/// A worker that could take the request: eligible, and with room for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What the caller knows the worker by; handed back by the choice.
    pub id: usize,
    /// The leases on it. A prefill lease counts the work that the prompt is, in bytes.
    pub usage: Usage,
    /// What it takes at once, as its engine told: what is over it waits for room at the engine.
    pub limits: Limits,
    /// The prompt at work among the leases of a prefill.
    pub queue_head: QueueHead,
    /// Pods of one group are preferred for each other. `0` is no group.
    pub group: u64,
    /// The worker's identity (UID and port, hashed), the same in every snapshot and gateway.
    pub worker: u64,
    /// The data-parallel rank, where each is a candidate of its own. A rank has its own cache.
    pub rank: u32,
    /// What was learned of it.
    pub rates: EngineRates,
    /// What its agent measured; `None` without an agent.
    pub load: Option<Load>,
    /// Blocks of prompts that it was sent and had not had, as the prefix index counts them.
    pub cached_blocks: u32,
    /// What its engine told when it was last asked, where that is not long ago.
    pub reported: Option<ReportedLoad>,
    /// The load is what an agent measured, not made of what the engine told.
    pub measured: bool,
}

impl Candidate {
    /// Whose prefix cache it is: the worker's, or the rank's.
    pub fn cache(&self) -> u64 {
        cache_of(self.worker, self.rank)
    }

    /// Whether the worker has room for `weight` beside the leases and what others have there.
    /// What takes it over its limits waits in the gateway: at the engine it would hold up others.
    ///
    /// Of others an agent tells first. Who is out of `patience` asks the engine alone, and where
    /// that does not tell, the leases: so an agent that tells nonsense delays and never refuses.
    pub fn admits(&self, weight: Usage, patience: AgentTrust) -> bool {
        let (requests, kv_tokens) = self.others(patience);
        let known = Usage {
            requests: self.usage.requests.saturating_add(requests),
            kv_tokens: self.usage.kv_tokens.saturating_add(kv_tokens),
            ..self.usage
        };
        self.limits.admit(known, weight)
    }

    /// Requests and KV tokens of others.
    fn others(&self, patience: AgentTrust) -> (u64, u64) {
        let measured = self.load.filter(|load| self.measured && !load.is_stale());
        match (measured, patience, self.reported) {
            (Some(load), AgentTrust::Trusted, _) => {
                let tokens = load.others_requests * self.rates.request_tokens;
                (load.others_requests as u64, tokens as u64)
            }
            (_, _, Some(told)) => (told.others_requests, told.others_tokens),
            (_, _, None) => (0, 0),
        }
    }
}

/// Whether a request has waited for room for longer than engines take to tell of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentTrust {
    Trusted,
    Expired,
}

impl AgentTrust {
    /// An engine that is polled is believed for so many intervals, and as long an agent is
    /// believed that it has no room.
    pub const POLLS: u64 = 3;

    /// Of a request that has waited for so long, where engines are polled every `poll_ms`.
    pub fn after(waited_ms: u64, poll_ms: u64) -> AgentTrust {
        let over = waited_ms > poll_ms.saturating_mul(AgentTrust::POLLS);
        if over { AgentTrust::Expired } else { AgentTrust::Trusted }
    }
}

impl Default for Candidate {
    /// An idle worker of which nothing was learned.
    fn default() -> Candidate {
        Candidate {
            id: 0,
            usage: Usage::default(),
            limits: Limits::NONE,
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

/// What is asked: one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    pub prompt_bytes: u64,
    /// KV tokens by the gateway's own estimate, as decode's lease counts them.
    pub kv_tokens: u64,
    /// Who has seen how much of the prompt.
    pub prefix_match: PrefixMatch,
    /// Hash of the prompt's first blocks, the same in every gateway; 0 is none. Where nobody is
    /// known to hold the prompt, it says whom the other gateways would have sent it to.
    pub prefix_key: u64,
}

impl Demand {
    /// The one of these caches that other gateways would take for the prompt, were all idle, where
    /// the index knows no more of it: of those that `could`, the one with the highest hash of key
    /// and identity (Thaler and Ravishankar 1998). Every gateway names the same one, and a worker
    /// that goes takes only its own prefixes with it.
    pub fn rendezvous(
        &self,
        caches: impl IntoIterator<Item = u64>,
        could: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let key = self.prefix_key;
        if key == 0 || self.prefix_match.max_bytes() >= KEY_BYTES {
            return None;
        }
        let mut best = None;
        for cache in caches {
            let mixed = (cache ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let weight = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
            // Who could not is asked about only where it would win: a few times of a thousand.
            if best.is_none_or(|(most, _)| weight > most) && could(cache) {
                best = Some((weight, cache));
            }
        }
        best.map(|(_, cache)| cache)
    }
}

/// What the choice is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// What a millisecond of the whole answer's decode weighs beside one of TTFT.
    pub decode_weight: f32,
    /// Where these are set, a pair within them is taken before any that is not.
    pub targets: Option<SloTargets>,
}

impl Default for Objective {
    fn default() -> Objective {
        Objective { decode_weight: 1.0, targets: None }
    }
}

/// Service-level objectives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SloTargets {
    pub ttft_ms: f32,
    pub itl_ms: f32,
}

/// Chance and turn for one choice.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Uniform over all of `u64`, fresh for each choice.
    pub chance: u64,
    /// Counts the choices made so far.
    pub turn: u64,
}

impl Draw {
    /// The next draw: as random as this one, and independent of it.
    pub fn second(self) -> Draw {
        // The finaliser of splitmix64 (Steele, Lea, Flood 2014) turns one draw into another.
        let mut z = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Draw { chance: z ^ (z >> 31), turn: self.turn }
    }

    /// A number in `0..n`, by the high bits. `n` must not be 0.
    pub(super) fn below(self, n: usize) -> usize {
        ((u128::from(self.chance) * n as u128) >> 64) as usize
    }
}

/// A request, who could take it, and what is known.
#[derive(Clone, Copy, Debug)]
pub struct ChoiceInput<'a> {
    pub demand: Demand,
    pub candidates: Pair<&'a [Candidate]>,
    /// Facts about pairs; `None` where nobody measures.
    pub links: Option<&'a Links>,
    pub assumptions: &'a Assumptions,
    pub objective: Objective,
    pub now_ms: u64,
    pub draw: Draw,
}

impl<'a> ChoiceInput<'a> {
    /// An input of candidates alone, for the policies that read nothing else.
    pub fn of(prefill: &'a [Candidate], decode: &'a [Candidate], draw: Draw) -> ChoiceInput<'a> {
        ChoiceInput {
            demand: Demand::default(),
            candidates: Pair { prefill, decode },
            links: None,
            assumptions: &Assumptions::USUAL,
            objective: Objective::default(),
            now_ms: 0,
            draw,
        }
    }
}

/// The pair that takes the request, and why.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// By [`Candidate::id`].
    pub pair: Pair<usize>,
    /// Of policies that predict.
    pub estimate: Option<Estimate>,
    /// The best of the pairs that were not taken, near-ties included.
    pub runner_up: Option<(Pair<usize>, Estimate)>,
    /// Chosen to learn how it does, not for being best.
    pub explored: bool,
}
