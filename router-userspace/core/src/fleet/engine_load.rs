//! [`EngineLoad`]: what an engine tells of its own load when it is asked, now and then.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::{MAX_RANKS, Usage};

/// An engine's own numbers, its ranks added up. `None` is not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EngineLoad {
    pub running: Option<u64>,
    pub queued: Option<u64>,
    /// Of decode: requests that wait for KV room, and for KV cache that is on its way. Of prefill:
    /// requests that wait for their decode, and whose KV cache is being sent.
    pub prealloc_queue: Option<u64>,
    pub transfer_queue: Option<u64>,
    /// KV tokens in use, and those that are waited for as well.
    pub used_tokens: Option<u64>,
    pub total_tokens: Option<u64>,
    /// 0 to 1.
    pub token_usage: Option<f64>,
    pub max_total_num_tokens: Option<u64>,
    pub max_running_requests: Option<u64>,
}

impl EngineLoad {
    /// Requests that the engine has in any queue or runs.
    pub fn requests(&self) -> Option<u64> {
        let parts = [self.running, self.queued, self.prealloc_queue, self.transfer_queue];
        let told = parts.iter().any(Option::is_some);
        told.then(|| parts.iter().flatten().sum())
    }

    /// Tokens that wait or are computed.
    fn tokens(&self) -> Option<u64> {
        self.total_tokens.or(self.used_tokens)
    }

    /// Beside what a gateway had there itself.
    fn beside(&self, own: Usage) -> ReportedLoad {
        ReportedLoad::excluding(self.requests().unwrap_or(0), self.tokens().unwrap_or(0), own)
    }

    /// Whether it told anything at all.
    pub fn is_empty(&self) -> bool {
        *self == EngineLoad::default()
    }
}

/// What an engine had when it was last asked: in all, and of it what was not this gateway's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReportedLoad {
    pub requests: u64,
    /// Tokens that wait or are computed.
    pub tokens: u64,
    /// By what the gateway had there at that time: what ends later is not taken for others'.
    pub others_requests: u64,
    pub others_tokens: u64,
}

impl ReportedLoad {
    /// `own` is what the gateway had there when the engine told.
    pub fn excluding(requests: u64, tokens: u64, own: Usage) -> ReportedLoad {
        ReportedLoad {
            requests,
            tokens,
            others_requests: requests.saturating_sub(own.requests),
            others_tokens: tokens.saturating_sub(own.kv_tokens),
        }
    }
}

/// [`ReportedLoad`], each number whole.
#[derive(Debug, Default)]
struct ReportedCell {
    requests: AtomicU64,
    tokens: AtomicU64,
    others_requests: AtomicU64,
    others_tokens: AtomicU64,
}

impl ReportedCell {
    fn set(&self, told: ReportedLoad) {
        self.requests.store(told.requests, Ordering::Relaxed);
        self.tokens.store(told.tokens, Ordering::Relaxed);
        self.others_requests.store(told.others_requests, Ordering::Relaxed);
        self.others_tokens.store(told.others_tokens, Ordering::Relaxed);
    }

    fn get(&self) -> ReportedLoad {
        ReportedLoad {
            requests: self.requests.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
            others_requests: self.others_requests.load(Ordering::Relaxed),
            others_tokens: self.others_tokens.load(Ordering::Relaxed),
        }
    }
}

/// What an engine told of one of its data-parallel ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankLoad {
    pub reported: ReportedLoad,
    /// The part of others' requests at the engine that is thought to be at this rank. One more than it
    /// told counts for each rank: what came since may be anywhere.
    pub others_share: f32,
}

#[derive(Debug, Default)]
struct RankCell {
    reported: ReportedCell,
    /// The bits of [`RankLoad::others_share`].
    others_share: AtomicU32,
}

/// What was told last, and when. What every choice reads stands apart; each number is whole, and
/// two of them may be of two polls.
#[derive(Debug, Default)]
pub struct EngineLoadCell {
    told: Mutex<Option<(u64, EngineLoad)>>,
    /// 0 is not told.
    max_requests: AtomicU64,
    max_tokens: AtomicU64,
    at_ms: AtomicU64,
    reported: ReportedCell,
    /// The ranks that it told of, and what.
    rank_count: AtomicU32,
    ranks: OnceLock<Box<[RankCell]>>,
}

impl EngineLoadCell {
    /// The engine told `load` while this gateway had `own` there.
    pub fn set(&self, load: EngineLoad, own: Usage, now_ms: u64) {
        self.max_requests.store(load.max_running_requests.unwrap_or(0), Ordering::Relaxed);
        self.max_tokens.store(load.max_total_num_tokens.unwrap_or(0), Ordering::Relaxed);
        self.reported.set(load.beside(own));
        self.at_ms.store(now_ms.max(1), Ordering::Relaxed);
        *self.told.lock() = Some((now_ms, load));
    }

    /// The same of each data-parallel rank, where `own` is what the gateway had there; none where the
    /// engine does not tell them apart. [`EngineLoadCell::set`] says when.
    pub fn set_ranks(&self, ranks: &[EngineLoad], own: impl Fn(u32) -> Usage) {
        let ranks = ranks.get(..MAX_RANKS as usize).unwrap_or(ranks);
        self.rank_count.store(ranks.len() as u32, Ordering::Relaxed);
        if ranks.is_empty() {
            return;
        }
        let cells =
            self.ranks.get_or_init(|| (0..MAX_RANKS).map(|_| RankCell::default()).collect());
        let told = || (0..).zip(ranks).map(|(rank, load)| load.beside(own(rank)));
        let others = told().fold(0, |sum: u64, rank| sum.saturating_add(rank.others_requests));
        let all = others as f32 + ranks.len() as f32;
        for (cell, rank) in cells.iter().zip(told()) {
            cell.reported.set(rank);
            let share = (rank.others_requests as f32 + 1.0) / all;
            cell.others_share.store(share.to_bits(), Ordering::Relaxed);
        }
    }

    /// The load and how old it is.
    ///
    /// ```
    /// use router_core::fleet::{EngineLoadCell, EngineLoad, Usage};
    ///
    /// let cell = EngineLoadCell::default();
    /// cell.set(EngineLoad { running: Some(2), ..EngineLoad::default() }, Usage::default(), 5_000);
    /// assert_eq!(cell.get(5_400).map(|(age_ms, load)| (age_ms, load.running)), Some((400, Some(2))));
    /// ```
    pub fn get(&self, now_ms: u64) -> Option<(u64, EngineLoad)> {
        let told = *self.told.lock();
        told.map(|(at_ms, load)| (now_ms.saturating_sub(at_ms), load))
    }

    /// Requests that it says it runs at once.
    pub fn max_requests(&self) -> Option<u64> {
        Some(self.max_requests.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// KV tokens that it says it has room for.
    pub fn max_tokens(&self) -> Option<u64> {
        Some(self.max_tokens.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// What it told, where that is no older than `most_ms`.
    pub fn recent(&self, now_ms: u64, most_ms: u64) -> Option<ReportedLoad> {
        let at_ms = self.at_ms.load(Ordering::Relaxed);
        let fresh = at_ms > 0 && now_ms.saturating_sub(at_ms) <= most_ms;
        fresh.then(|| self.reported.get())
    }

    /// The same of one data-parallel rank, and as old; `None` where the engine does not tell them apart.
    pub fn of_rank(&self, rank: u32) -> Option<RankLoad> {
        let told = rank < self.rank_count.load(Ordering::Relaxed);
        let cell = self.ranks.get()?.get(rank as usize).filter(|_| told)?;
        Some(RankLoad {
            reported: cell.reported.get(),
            others_share: f32::from_bits(cell.others_share.load(Ordering::Relaxed)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_no_limit_and_what_is_old_is_not_recent() {
        let cell = EngineLoadCell::default();
        assert_eq!((cell.max_requests(), cell.max_tokens(), cell.recent(9, 9)), (None, None, None));
        let load = EngineLoad {
            running: Some(3),
            prealloc_queue: Some(1),
            used_tokens: Some(70),
            max_total_num_tokens: Some(1_000),
            ..EngineLoad::default()
        };
        let own = Usage { requests: 1, kv_tokens: 80, ..Usage::default() };
        cell.set(load, own, 100);
        assert_eq!((cell.max_requests(), cell.max_tokens()), (None, Some(1_000)));
        let told = ReportedLoad { requests: 4, tokens: 70, others_requests: 3, others_tokens: 0 };
        assert_eq!(cell.recent(1_100, 1_000), Some(told));
        assert_eq!(cell.recent(1_101, 1_000), None);
    }

    #[test]
    fn ranks_are_told_apart_where_the_engine_does() {
        let cell = EngineLoadCell::default();
        let running = |requests| EngineLoad { running: Some(requests), ..EngineLoad::default() };
        let own = |rank| Usage { requests: u64::from(rank), ..Usage::default() };
        cell.set_ranks(&[running(6), running(1)], own);
        let [first, second] = [0, 1].map(|rank| cell.of_rank(rank).unwrap());
        assert_eq!((first.reported.others_requests, second.reported.others_requests), (6, 0));
        assert_eq!((first.others_share, second.others_share), (7.0 / 8.0, 1.0 / 8.0));
        assert_eq!(cell.of_rank(2), None);
        cell.set_ranks(&[], own);
        assert_eq!(cell.of_rank(0), None);
    }
}
