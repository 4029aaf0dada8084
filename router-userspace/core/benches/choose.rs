//! What a choice costs at 10, 100 and 1,000 workers of each leg.
//!
//! `collect and choose` is what a gateway does for each request: it collects candidates (leases, loads
//! of agents and engines, estimated rates), a sample in large pools, and chooses a pair. `choose alone`
//! starts with all candidates collected.
#![expect(unsafe_code, reason = "counting allocations takes a global allocator")]

mod measure;

use std::hint::black_box;
use std::sync::Arc;

use router_core::fleet::{
    EngineLoad, EngineRates, LinkTable, Load, PrefillSample, RateEstimators, Usage, Weight, Worker,
    WorkerKey, WorkerLimits,
};
use router_core::pair::Pair;
use router_core::schedule::{
    AgentTrust, Assumptions, Candidate, CandidateSet, ChoiceInput, Demand, Draw, IndexCapacity,
    Policy, PrefixIndex, SampleOrder, choose,
};

fn main() {
    println!("{:<52} {:>9} {:>7}", "operation", "us/op", "allocs");
    for count in [10, 100, 1000] {
        let fleet = Fleet::new(count);
        fleet.measured();
        for policy in [Policy::Predicted, Policy::LeastLoad] {
            fleet.alone(policy);
        }
    }
}

fn measure(name: &str, operation: impl FnMut(u64)) {
    let measure::Cost { ns, allocations } = measure::cost(operation);
    println!("{name:<52} {:>9.2} {allocations:>7.2}", ns / 1000.0);
}

/// As many prefills as decodes, with the leases, loads and links of a busy fleet.
struct Fleet {
    workers: Pair<Vec<Arc<Worker>>>,
    caches: Vec<(u64, usize)>,
    pool: EngineRates,
    links: LinkTable,
    index: PrefixIndex,
    blocks: Vec<u64>,
}

const WEIGHT: Usage =
    Weight { requests: 1, prompt_bytes: 150_000, kv_tokens: 40_000, exchanges: 1, wire_bytes: 0 };
const LIMITS: WorkerLimits = WorkerLimits { requests: 500, kv_tokens: 4_000_000 };

impl Fleet {
    fn new(count: usize) -> Fleet {
        let workers = Pair { prefill: busy("p", count), decode: busy("d", count) };
        let mut links = LinkTable::new(8192);
        for (prefill, decode) in workers.prefill.iter().zip(&workers.decode).take(500) {
            links.on_transfer(prefill.identity, decode.identity, 1e6, 1.0, 0);
        }
        let caches = workers.prefill.iter().enumerate().map(|(at, worker)| (worker.identity, at));
        let mut caches: Vec<(u64, usize)> = caches.collect();
        caches.sort_unstable();
        let size = IndexCapacity { blocks: 1 << 16, caches: count, cache_bytes: 1 << 30 };
        let mut index = PrefixIndex::new(size);
        let blocks: Vec<u64> = (1..=64).collect();
        workers.prefill.iter().take(3).for_each(|worker| index.insert(worker.identity, &blocks));
        let pool = RateEstimators::of_pool().rates(&Assumptions::USUAL.rates, 0);
        Fleet { workers, caches, pool, links, index, blocks }
    }

    fn demand(&self, known: bool) -> Demand {
        let prefix_match =
            if known { self.index.lookup(&self.blocks) } else { Demand::default().prefix_match };
        Demand { prompt_bytes: 150_000, kv_tokens: 40_000, prefix_match, prefix_key: 77 }
    }

    fn input<'a>(
        &'a self,
        demand: Demand,
        legs: Pair<&'a [Candidate]>,
        round: u64,
    ) -> ChoiceInput<'a> {
        let now_ms = 1000 + round % 200;
        let (links, candidates) = (Some(&self.links), legs);
        let draw = draw_of(round).second().second();
        ChoiceInput { demand, links, candidates, now_ms, ..ChoiceInput::of(&[], &[], draw) }
    }

    /// Measures all of a gateway's choice.
    fn measured(&self) {
        let mut all = Pair { prefill: Vec::new(), decode: Vec::new() };
        let count = self.caches.len();
        for (name, known) in [("known prompt", true), ("new prompt", false)] {
            let demand = self.demand(known);
            measure(&format!("collect and choose, {name}, {count} x {count}"), |round| {
                let draw = draw_of(round);
                let holder = |cache| {
                    let at = self.caches.binary_search_by_key(&cache, |(cache, _)| *cache).ok()?;
                    Some(self.caches[at].1)
                };
                let caches = self.caches.iter().map(|(cache, _)| *cache);
                let named = demand.prefix_match.holders().chain(demand.owner(caches, |_| true));
                let order = SampleOrder::of(count, draw, named.filter_map(holder));
                gather(order, &self.workers.prefill, &self.pool, round, &mut all.prefill);
                let order = SampleOrder::of(count, draw.second(), []);
                gather(order, &self.workers.decode, &self.pool, round, &mut all.decode);
                let legs = Pair { prefill: &all.prefill[..], decode: &all.decode[..] };
                black_box(choose(Policy::Predicted, &self.input(demand, legs, round)));
            });
        }
    }

    /// Measures the choice among all candidates of both legs.
    fn alone(&self, policy: Policy) {
        let count = self.caches.len();
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        gather(SampleOrder::all(count), &self.workers.prefill, &self.pool, 0, &mut prefill);
        gather(SampleOrder::all(count), &self.workers.decode, &self.pool, 0, &mut decode);
        let demand = self.demand(true);
        measure(&format!("choose alone, {}, {count} x {count}", policy.as_str()), |round| {
            let legs = Pair { prefill: &prefill[..], decode: &decode[..] };
            black_box(choose(policy, black_box(&self.input(demand, legs, round))));
        });
    }
}

fn draw_of(round: u64) -> Draw {
    Draw { chance: round.wrapping_mul(0x9e37_79b9_7f4a_7c15), turn: round }
}

fn busy(name: &str, count: usize) -> Vec<Arc<Worker>> {
    let worker = |at: usize| {
        let address = ([10, 0, 0, 1], 8000).into();
        let key = WorkerKey { uid: format!("{name}-{at}").into(), address };
        let worker = Arc::new(Worker::new(key, name));
        worker.health.probe_passed(0);
        let noise = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let weight = Usage {
            requests: noise % 30 + 1,
            prompt_bytes: noise % 900_000,
            kv_tokens: noise % 200_000,
            ..Usage::default()
        };
        // The lease counts for the whole measurement.
        std::mem::forget(worker.try_lease(weight, WorkerLimits::NONE, None));
        worker.prefill_queue().push(weight.prompt_bytes as f32, 0);
        let sample = PrefillSample {
            work_bytes: 90_000.0,
            ms: 1500.0,
            predicted_ms: 1500.0,
            usual_us_per_byte: 18.0,
            sent_ms: 0,
            now_ms: 1500,
        };
        worker.rate_estimators.on_prefill(&RateEstimators::of_pool(), sample);
        worker.rate_estimators.on_decode_step(18_000.0, 0);
        let report =
            EngineLoad { running: Some(20), total_tokens: Some(90_000), ..Default::default() };
        worker.engine.set(report, weight, 0);
        let load = Load {
            others_requests: (noise % 9) as f32,
            others_waiting_bytes: (noise % 100_000) as f32,
            tx_free_bytes_per_ms: 12.5e6,
            rx_free_bytes_per_ms: 12.5e6,
            ..Load::default()
        };
        if !at.is_multiple_of(50) {
            worker.load.set(&load, 1_100_000);
        }
        worker
    };
    (0..count).map(worker).collect()
}

/// Collects candidates as a gateway does.
fn gather(
    order: SampleOrder,
    workers: &[Arc<Worker>],
    pool: &EngineRates,
    round: u64,
    all: &mut Vec<Candidate>,
) {
    let now_us = 1_000_000 + round % 200 * 1000;
    let now_ms = now_us / 1000;
    let mut set = CandidateSet::new(all, order.sample_size());
    for id in order {
        let worker = &workers[id];
        if set.accepts(u8::from(worker.health.verdict() != router_core::fleet::Verdict::Up)) {
            let measured = worker.load.get(now_us);
            let candidate = Candidate {
                id,
                usage: worker.usage(),
                limits: LIMITS,
                queue_head: worker.prefill_queue().head(now_ms),
                worker: worker.identity,
                rates: worker.rate_estimators.rates(pool, now_ms),
                load: measured,
                reported: worker.engine.recent(now_ms, 3000),
                measured: measured.is_some(),
                ..Candidate::default()
            };
            if candidate.admits(WEIGHT, AgentTrust::Trusted) {
                set.push(candidate);
            }
        }
        if set.is_complete() {
            break;
        }
    }
}
