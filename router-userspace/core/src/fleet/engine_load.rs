//! [`EngineLoad`]: the load that an engine reports when the gateway polls it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::{MAX_RANKS, Usage};

/// An engine's own report, summed over its ranks. `None` means that the field was not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EngineLoad {
    pub running: Option<u64>,
    pub queued: Option<u64>,
    /// Decode: requests that wait for KV capacity. Prefill: requests that wait for their decode.
    pub prealloc_queue: Option<u64>,
    /// Requests whose KV cache is being received (decode) or sent (prefill).
    pub transfer_queue: Option<u64>,
    /// KV tokens in use.
    pub used_tokens: Option<u64>,
    /// KV tokens in use and of queued requests.
    pub total_tokens: Option<u64>,
    /// Share of the KV tokens in use, from 0 to 1.
    pub token_usage: Option<f64>,
    pub max_total_num_tokens: Option<u64>,
    pub max_running_requests: Option<u64>,
}

impl EngineLoad {
    /// Returns the requests that the engine runs or has in a queue.
    pub fn requests(&self) -> Option<u64> {
        let parts = [self.running, self.queued, self.prealloc_queue, self.transfer_queue];
        let reported = parts.iter().any(Option::is_some);
        reported.then(|| parts.iter().flatten().fold(0, |sum: u64, part| sum.saturating_add(*part)))
    }

    /// Returns the tokens of queued and running requests.
    fn tokens(&self) -> Option<u64> {
        self.total_tokens.or(self.used_tokens)
    }

    /// Separates the usage of this gateway, `own`, from that of others.
    fn excluding(&self, own: Usage) -> PolledLoad {
        PolledLoad::excluding(self.requests().unwrap_or(0), self.tokens().unwrap_or(0), own)
    }

    /// Whether no field was reported.
    pub fn is_empty(&self) -> bool {
        *self == EngineLoad::default()
    }
}

/// An engine's load at the last poll: in total, and without this gateway's own share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolledLoad {
    pub requests: u64,
    /// Tokens of queued and running requests.
    pub tokens: u64,
    /// Computed with this gateway's leases at the time of the poll, so that its requests that end
    /// later are not counted as others'.
    pub others_requests: u64,
    pub others_tokens: u64,
}

impl PolledLoad {
    /// `own` is this gateway's usage of the engine at the time of the report.
    pub fn excluding(requests: u64, tokens: u64, own: Usage) -> PolledLoad {
        PolledLoad {
            requests,
            tokens,
            others_requests: requests.saturating_sub(own.requests),
            others_tokens: tokens.saturating_sub(own.kv_tokens),
        }
    }
}

/// [`PolledLoad`] in atomics. Each number is consistent; two of them can be of two polls.
#[derive(Debug, Default)]
struct ReportedCell {
    requests: AtomicU64,
    tokens: AtomicU64,
    others_requests: AtomicU64,
    others_tokens: AtomicU64,
}

impl ReportedCell {
    fn set(&self, load: PolledLoad) {
        self.requests.store(load.requests, Ordering::Relaxed);
        self.tokens.store(load.tokens, Ordering::Relaxed);
        self.others_requests.store(load.others_requests, Ordering::Relaxed);
        self.others_tokens.store(load.others_tokens, Ordering::Relaxed);
    }

    fn get(&self) -> PolledLoad {
        PolledLoad {
            requests: self.requests.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
            others_requests: self.others_requests.load(Ordering::Relaxed),
            others_tokens: self.others_tokens.load(Ordering::Relaxed),
        }
    }
}

/// An engine's report about one of its data-parallel ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankLoad {
    pub reported: PolledLoad,
    /// Estimated share of the others' requests that is at this rank. Each rank counts one request more
    /// than reported, since requests that arrived after the report can be at any rank.
    pub others_share: f32,
}

#[derive(Debug, Default)]
struct RankCell {
    reported: ReportedCell,
    /// The bits of [`RankLoad::others_share`].
    others_share: AtomicU32,
}

/// An engine's last report and its time. The numbers that every choice reads are atomics beside the
/// lock; each of them is consistent, but two of them can be of two polls.
#[derive(Debug, Default)]
pub struct EngineLoadCell {
    last: Mutex<Option<(u64, EngineLoad)>>,
    /// 0 is not reported.
    max_requests: AtomicU64,
    /// 0 is not reported.
    max_tokens: AtomicU64,
    /// Time of the last report; 0 is never.
    at_ms: AtomicU64,
    reported: ReportedCell,
    /// Number of ranks in the last report; the rest of `ranks` is outdated.
    rank_count: AtomicU32,
    ranks: OnceLock<Box<[RankCell]>>,
}

impl EngineLoadCell {
    /// Stores a report, made while this gateway's leases on the engine were `own`.
    pub fn set(&self, load: EngineLoad, own: Usage, now_ms: u64) {
        self.max_requests.store(load.max_running_requests.unwrap_or(0), Ordering::Relaxed);
        self.max_tokens.store(load.max_total_num_tokens.unwrap_or(0), Ordering::Relaxed);
        self.reported.set(load.excluding(own));
        self.at_ms.store(now_ms.max(1), Ordering::Relaxed);
        *self.last.lock() = Some((now_ms, load));
    }

    /// Stores a report per data-parallel rank; `own` returns this gateway's leases on a rank. `ranks`
    /// is empty where the engine does not report ranks. The time is that of [`EngineLoadCell::set`].
    pub fn set_ranks(&self, ranks: &[EngineLoad], own: impl Fn(u32) -> Usage) {
        let ranks = ranks.get(..MAX_RANKS as usize).unwrap_or(ranks);
        self.rank_count.store(ranks.len() as u32, Ordering::Relaxed);
        if ranks.is_empty() {
            return;
        }
        let cells =
            self.ranks.get_or_init(|| (0..MAX_RANKS).map(|_| RankCell::default()).collect());
        let reports = || (0..).zip(ranks).map(|(rank, load)| load.excluding(own(rank)));
        let others = reports().fold(0, |sum: u64, rank| sum.saturating_add(rank.others_requests));
        let all = others as f32 + ranks.len() as f32;
        for (cell, rank) in cells.iter().zip(reports()) {
            cell.reported.set(rank);
            let share = (rank.others_requests as f32 + 1.0) / all;
            cell.others_share.store(share.to_bits(), Ordering::Relaxed);
        }
    }

    /// Returns the last report and its age in milliseconds.
    ///
    /// ```
    /// use router_core::fleet::{EngineLoadCell, EngineLoad, Usage};
    ///
    /// let cell = EngineLoadCell::default();
    /// cell.set(EngineLoad { running: Some(2), ..EngineLoad::default() }, Usage::default(), 5_000);
    /// assert_eq!(cell.get(5_400).map(|(age_ms, load)| (age_ms, load.running)), Some((400, Some(2))));
    /// ```
    pub fn get(&self, now_ms: u64) -> Option<(u64, EngineLoad)> {
        let last = *self.last.lock();
        last.map(|(at_ms, load)| (now_ms.saturating_sub(at_ms), load))
    }

    /// Returns the reported maximum number of running requests.
    pub fn max_requests(&self) -> Option<u64> {
        Some(self.max_requests.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Returns the reported capacity in KV tokens.
    pub fn max_tokens(&self) -> Option<u64> {
        Some(self.max_tokens.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Returns the last report if it is at most `max_age_ms` old.
    pub fn recent(&self, now_ms: u64, max_age_ms: u64) -> Option<PolledLoad> {
        let at_ms = self.at_ms.load(Ordering::Relaxed);
        let fresh = at_ms > 0 && now_ms.saturating_sub(at_ms) <= max_age_ms;
        fresh.then(|| self.reported.get())
    }

    /// Returns the last report about one data-parallel rank, which is as old as that of
    /// [`EngineLoadCell::recent`]. `None` if the engine does not report this rank.
    pub fn rank(&self, rank: u32) -> Option<RankLoad> {
        let reported = rank < self.rank_count.load(Ordering::Relaxed);
        let cell = self.ranks.get()?.get(rank as usize).filter(|_| reported)?;
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
    fn an_unreported_limit_is_none_and_an_old_report_is_not_recent() {
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
        let expected = PolledLoad { requests: 4, tokens: 70, others_requests: 3, others_tokens: 0 };
        assert_eq!(cell.recent(1_100, 1_000), Some(expected));
        assert_eq!(cell.recent(1_101, 1_000), None);
    }

    #[test]
    fn ranks_are_separate_where_the_engine_reports_them() {
        let cell = EngineLoadCell::default();
        let running = |requests| EngineLoad { running: Some(requests), ..EngineLoad::default() };
        let own = |rank| Usage { requests: u64::from(rank), ..Usage::default() };
        cell.set_ranks(&[running(6), running(1)], own);
        let [first, second] = [0, 1].map(|rank| cell.rank(rank).unwrap());
        assert_eq!((first.reported.others_requests, second.reported.others_requests), (6, 0));
        assert_eq!((first.others_share, second.others_share), (7.0 / 8.0, 1.0 / 8.0));
        assert_eq!(cell.rank(2), None);
        cell.set_ranks(&[], own);
        assert_eq!(cell.rank(0), None);
    }
}
