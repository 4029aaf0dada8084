//! Properties of every policy, and of `predicted` in particular.

use super::*;
use crate::fleet::{EngineRates, LinkTable, Load, PolledLoad, QueueHead, Usage, WorkerLimits};

fn idle(id: usize, group: u64) -> Candidate {
    Candidate { id, group, worker: id as u64 + 1, ..Candidate::default() }
}

fn draws() -> impl Iterator<Item = Draw> {
    (0..1000).scan(Draw { chance: 1, turn: 0 }, |draw, turn| {
        *draw = Draw { turn, ..draw.second() };
        Some(*draw)
    })
}

/// Number of a thousand choices that fall on each candidate, by id.
fn tally(policy: Policy, input: ChoiceInput<'_>) -> [usize; 16] {
    let mut seen = [0; 16];
    for draw in draws() {
        let chosen = choose(policy, &ChoiceInput { draw, ..input }).unwrap();
        seen[chosen.pair.prefill] += 1;
        seen[chosen.pair.decode] += 1;
    }
    seen
}

const DEMAND: Demand = Demand { prompt_bytes: 40_000, kv_tokens: 10_000, ..EMPTY };
const EMPTY: Demand =
    Demand { prompt_bytes: 0, kv_tokens: 0, prefix_match: PrefixMatch::NONE, prefix_key: 0 };
const DRAW: Draw = Draw { chance: 3, turn: 0 };

#[test]
fn every_policy_reaches_every_idle_worker() {
    let prefill = [idle(0, 0), idle(1, 0), idle(2, 0)];
    let decode = [idle(3, 0), idle(4, 0), idle(5, 0)];
    for policy in Policy::ALL {
        let seen = tally(policy, ChoiceInput::of(&prefill, &decode, DRAW));
        assert!(seen[..6].iter().all(|&count| count > 250), "{policy:?}: {seen:?}");
    }
}

#[test]
fn a_decode_of_the_same_group_is_preferred_and_any_other_taken_without_one() {
    let prefill = [idle(0, 7)];
    for policy in [Policy::Random, Policy::Predicted] {
        let decode = [idle(1, 8), idle(2, 7), idle(3, 0)];
        let seen = tally(policy, ChoiceInput::of(&prefill, &decode, DRAW));
        assert!(seen[2] >= 985, "{policy:?}: {seen:?}");
        let other = [idle(1, 8)];
        assert_eq!(tally(policy, ChoiceInput::of(&prefill, &other, DRAW))[1], 1000);
    }
}

#[test]
fn a_leg_without_candidates_has_no_choice() {
    for policy in Policy::ALL {
        assert_eq!(choose(policy, &ChoiceInput::of(&[idle(0, 0)], &[], DRAW)), None);
        assert_eq!(choose(policy, &ChoiceInput::of(&[], &[idle(0, 0)], DRAW)), None);
    }
}

#[test]
fn the_choice_is_explained_term_by_term() {
    let mut prefill = [idle(0, 0), idle(1, 0)];
    prefill[0].usage =
        Usage { requests: 2, prompt_bytes: 100_000, kv_tokens: 0, ..Usage::default() };
    let decode = [idle(2, 0)];
    let input = ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&prefill, &decode, DRAW) };
    let chosen = choose(Policy::Predicted, &input).unwrap();
    let (loser, worse) = chosen.runner_up.unwrap();
    let estimate = chosen.estimate.unwrap();
    assert_eq!((chosen.pair.prefill, loser.prefill), (1, 0));
    assert_eq!(estimate.wait_ms, 0.0);
    assert!((worse.wait_ms - 1800.0).abs() < 1.0, "100,000 bytes at 18 us: {worse:?}");
    assert!(worse.ttft_ms() > estimate.ttft_ms());
}

#[test]
fn a_decode_of_the_same_group_is_chosen_in_an_idle_pool_of_any_size() {
    for groups in [2, 16, 128, 1000] {
        let pods = |base: usize| -> Vec<Candidate> {
            (0..groups).map(|at| idle(base + at, at as u64 + 1)).collect()
        };
        let (prefill, decode) = (pods(0), pods(groups));
        for draw in draws().take(50) {
            let input =
                ChoiceInput { demand: DEMAND, draw, ..ChoiceInput::of(&prefill, &decode, draw) };
            let pair = choose(Policy::Predicted, &input).unwrap().pair;
            assert_eq!(pair.decode, pair.prefill + groups, "{groups} groups");
        }
    }
}

#[test]
fn a_busy_decode_of_the_same_group_is_not_preferred() {
    let prefill = [idle(0, 1)];
    let mut decode = [idle(1, 1), idle(2, 2)];
    decode[0].usage = Usage { requests: 9, kv_tokens: 90_000, ..Usage::default() };
    let input = ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&prefill, &decode, DRAW) };
    assert_eq!(choose(Policy::Predicted, &input).unwrap().pair.decode, 2);
}

#[test]
fn a_slow_link_moves_the_decode_until_the_measurement_expires() {
    let (prefill, decode) = ([idle(0, 0)], [idle(1, 0), idle(2, 0)]);
    let mut links = LinkTable::new(64);
    for _ in 0..50 {
        links.on_transfer(1, 2, 1e6, 100.0, 0);
    }
    let input = ChoiceInput {
        demand: DEMAND,
        links: Some(&links),
        ..ChoiceInput::of(&prefill, &decode, DRAW)
    };
    assert!(tally(Policy::Predicted, input)[2] > 985);
    let later = ChoiceInput { now_ms: 20 * crate::fleet::HALF_LIFE_MS, ..input };
    assert!(tally(Policy::Predicted, later)[1] > 300);
}

#[test]
fn a_cached_prefix_outweighs_a_short_queue_and_not_a_long_one() {
    let mut blocks = Vec::new();
    BlockHasher::new(0).write(&[5; 40_000], &mut blocks);
    let size = IndexCapacity { blocks: 1024, caches: 8, cache_bytes: 1 << 20 };
    let mut index = PrefixIndex::new(size);
    index.insert(1, &blocks);
    let demand = Demand { prefix_match: index.lookup(&blocks), ..DEMAND };
    let mut prefill = [idle(0, 0), idle(1, 0)];
    let decode = [idle(2, 0)];
    prefill[0].usage.prompt_bytes = 20_000;
    let short = tally(
        Policy::Predicted,
        ChoiceInput { demand, ..ChoiceInput::of(&prefill, &decode, DRAW) },
    );
    assert!(short[0] > 985, "{short:?}");
    prefill[0].usage.prompt_bytes = 200_000;
    let long = tally(
        Policy::Predicted,
        ChoiceInput { demand, ..ChoiceInput::of(&prefill, &decode, DRAW) },
    );
    assert!(long[1] > 985, "{long:?}");
}

#[test]
fn two_gateways_without_data_choose_the_same_prefill() {
    let decode = [idle(9, 0)];
    let prefill: Vec<Candidate> = (0..8).map(|id| idle(id, 0)).collect();
    let turned: Vec<Candidate> = prefill.iter().rev().copied().collect();
    let mut names = std::collections::HashSet::new();
    for prefix_key in 1..40 {
        let demand = Demand { prefix_key, ..DEMAND };
        let one = tally(
            Policy::Predicted,
            ChoiceInput { demand, ..ChoiceInput::of(&prefill, &decode, DRAW) },
        );
        let other = tally(
            Policy::Predicted,
            ChoiceInput { demand, ..ChoiceInput::of(&turned, &decode, DRAW) },
        );
        let first = (0..8).max_by_key(|&id| one[id]);
        assert_eq!(first, (0..8).max_by_key(|&id| other[id]));
        names.insert(first);
    }
    assert!(names.len() > 4, "prefixes are spread: {names:?}");
}

#[test]
fn the_owner_s_bonus_is_the_share_of_others_in_the_streams() {
    // Without growth by the context a share of the prompt is the same share of its time.
    let tuning = Tuning { context: 0.0, ..Tuning::USUAL };
    let demand = Demand { prefix_key: 7, ..DEMAND };
    // The bonus of the owner and of the other prefill, as shares of what they are subtracted from.
    let bonus = |prefill_load, others_requests| {
        let on = |id, load| Candidate { load, measured: load.is_some(), ..idle(id, 0) };
        let prefill = [on(0, prefill_load), on(1, prefill_load)];
        let mut decode = [on(2, Some(Load { others_requests, ..Load::default() }))];
        decode[0].usage.requests = 3;
        let input =
            ChoiceInput { demand, tuning: &tuning, ..ChoiceInput::of(&prefill, &decode, DRAW) };
        let chosen = choose(Policy::Predicted, &input).unwrap();
        [chosen.estimate.unwrap(), chosen.runner_up.unwrap().1]
            .map(|of| of.affinity_bonus_ms / (of.prefill_ms + of.queue_cost_ms))
    };
    let near = |[owner, other]: [f32; 2], share: f32| {
        assert!((owner - share).abs() < 1e-3 && other == 0.0, "{owner}, {other} beside {share}");
    };
    let fresh = Some(Load::default());
    near(bonus(fresh, 0.0), 0.0);
    near(bonus(fresh, 1.0), 0.25);
    near(bonus(fresh, 3.0), tuning.affinity);
    near(bonus(fresh, 30.0), tuning.affinity);
    near(bonus(None, 3.0), tuning.blind_affinity);
}

#[test]
fn a_worker_without_a_fresh_load_gets_the_median_and_a_penalty() {
    let busy = |bytes| Some(Load { others_waiting_bytes: bytes, ..Load::default() });
    let mut prefill = [idle(0, 0), idle(1, 0), idle(2, 0)];
    let decode = [idle(3, 0)];
    (prefill[0].load, prefill[2].load) = (busy(0.0), busy(500_000.0));
    let seen = tally(
        Policy::Predicted,
        ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&prefill, &decode, DRAW) },
    );
    assert!(seen[0] > 985, "the one that is known to be idle: {seen:?}");
    prefill[0].load = Some(Load { age_ms: 10_000.0, ..Load::default() });
    prefill[2].usage.prompt_bytes = 10_000;
    let stale = tally(
        Policy::Predicted,
        ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&prefill, &decode, DRAW) },
    );
    assert!(stale[0] > 0 && stale[1] > 0, "both take the median: {stale:?}");
}

#[test]
fn a_pair_that_meets_the_targets_is_chosen() {
    let prefill = [idle(0, 0)];
    let mut decode = [idle(1, 0), idle(2, 0)];
    // The second is better on the whole, but its step is over the target.
    decode[0].usage =
        Usage { requests: 40, prompt_bytes: 0, kv_tokens: 10_000, ..Usage::default() };
    decode[1].rates = EngineRates { step_us: 60_000.0, output_tokens: 1.0, ..decode[1].rates };
    let objective =
        Objective { decode_weight: 0.0, targets: Some(SloTargets { ttft_ms: 1e5, itl_ms: 50.0 }) };
    let input =
        ChoiceInput { demand: DEMAND, objective, ..ChoiceInput::of(&prefill, &decode, DRAW) };
    assert!(tally(Policy::Predicted, input)[1] > 985);
}

#[test]
fn a_wait_for_decode_capacity_is_predicted_and_avoided() {
    let prefill = [idle(0, 0)];
    let mut decode = [idle(1, 0), idle(2, 0)];
    // The emptier of the two has no capacity, since its engine is smaller.
    decode[0].usage = Usage { requests: 2, prompt_bytes: 0, kv_tokens: 20_000, ..Usage::default() };
    decode[0].limits = WorkerLimits { requests: 100, kv_tokens: 25_000 };
    decode[1].usage = Usage { requests: 3, prompt_bytes: 0, kv_tokens: 30_000, ..Usage::default() };
    let input = ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&prefill, &decode, DRAW) };
    assert!(tally(Policy::Predicted, input)[2] > 985);
    let one = ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&prefill, &decode[..1], DRAW) };
    let estimate = choose(Policy::Predicted, &one).unwrap().estimate.unwrap();
    // A quarter of the batch must end: a quarter of 300 steps of 20 ms, longer by the batch.
    assert!((1500.0..1700.0).contains(&estimate.admission_ms), "{estimate:?}");
}

#[test]
fn capacity_is_what_all_known_requests_leave() {
    let limits = WorkerLimits { requests: 10, kv_tokens: 50_000 };
    let usage = Usage { requests: 2, prompt_bytes: 0, kv_tokens: 20_000, ..Usage::default() };
    let alone = Candidate { limits, usage, measured: true, ..idle(1, 0) };
    let weight = |kv_tokens| Usage { requests: 1, prompt_bytes: 0, kv_tokens, ..Usage::default() };
    let admits = |of: Candidate, tokens| of.admits(weight(tokens), AgentTrust::Trusted);
    assert!(admits(alone, 30_000) && !admits(alone, 30_001));
    let load = Some(Load { others_requests: 3.0, ..Load::default() });
    let shared = Candidate { load, ..alone };
    assert!(admits(shared, 6_000) && !admits(shared, 6_001), "8,000 tokens each");
    let old = load.map(|load| Load { age_ms: 1e6, ..load });
    assert!(admits(Candidate { load: old, ..alone }, 30_000));
    let empty = Candidate { limits, ..idle(1, 0) };
    assert!(admits(empty, 1 << 40), "an idle engine rejects by itself");
    let full = Candidate { load: Some(Load { others_requests: 8.0, ..Load::default() }), ..alone };
    assert!(!admits(full, 1), "two of this gateway and eight of others");
}

#[test]
fn the_engine_s_report_counts_without_an_agent_and_after_trust_expires() {
    let limits = WorkerLimits { requests: 10, kv_tokens: 50_000 };
    let usage = Usage { requests: 2, kv_tokens: 20_000, ..Usage::default() };
    // Of 45,000 reported tokens 40,000 were this gateway's; half of those have ended since.
    let then = Usage { requests: 4, kv_tokens: 40_000, ..Usage::default() };
    let reported = Some(PolledLoad::excluding(5, 45_000, then));
    let reporting = Candidate { limits, usage, reported, ..idle(1, 0) };
    let admits = |of: Candidate, kv_tokens, trust| {
        of.admits(Usage { requests: 1, kv_tokens, ..Usage::default() }, trust)
    };
    assert!(
        admits(reporting, 25_000, AgentTrust::Trusted),
        "requests that ended since are not counted as others'"
    );
    assert!(!admits(reporting, 25_001, AgentTrust::Trusted));
    let lying = Load { others_requests: 1e9, ..Load::default() };
    let measured = Candidate { load: Some(lying), measured: true, ..reporting };
    assert!(!admits(measured, 1, AgentTrust::Trusted));
    assert!(
        admits(measured, 25_000, AgentTrust::Expired)
            && !admits(measured, 25_001, AgentTrust::Expired)
    );
    let silent = Candidate { reported: None, ..measured };
    assert!(
        admits(silent, 30_000, AgentTrust::Expired) && !admits(silent, 30_001, AgentTrust::Expired)
    );
    assert_eq!(AgentTrust::after(3_000, 1_000), AgentTrust::Trusted);
    assert_eq!(AgentTrust::after(3_001, 1_000), AgentTrust::Expired);
}

/// Share of a leg's workers that are less busy than the chosen one.
fn better(all: &[Candidate], chosen: usize) -> f64 {
    let busy = |candidate: &Candidate| candidate.usage.prompt_bytes + candidate.usage.kv_tokens;
    let less = all.iter().filter(|other| busy(other) < busy(&all[chosen])).count();
    less as f64 / all.len() as f64
}

#[test]
fn a_sample_of_a_large_pool_is_nearly_as_good_as_all_of_it() {
    let legs = |leg: u64, draw: Draw| -> Vec<Candidate> {
        let busy = |id: usize| Draw { chance: draw.chance ^ (id as u64) << 7 ^ leg, turn: 0 };
        let usage = |id: usize| match (leg, busy(id).second().below(100_000) as u64) {
            (0, prompt_bytes) => Usage { requests: 1, prompt_bytes, ..Usage::default() },
            (_, kv_tokens) => Usage { requests: 1, kv_tokens, ..Usage::default() },
        };
        (0..1000).map(|id| Candidate { usage: usage(id), ..idle(id, 0) }).collect()
    };
    let (mut sum, mut worst, mut whole) = (0.0, 0.0f64, 0.0f64);
    for draw in draws().take(200) {
        let (prefill, decode) = (legs(0, draw), legs(1, draw));
        let part = |all: &[Candidate], draw: Draw| {
            let order = SampleOrder::of(all.len(), draw, []);
            let enough = order.sample_size();
            order.take(enough).map(|at| all[at]).collect::<Vec<_>>()
        };
        let (few, mates) = (part(&prefill, draw.second()), part(&decode, draw.second().second()));
        assert_eq!((few.len(), mates.len()), (SAMPLE_SIZE, SAMPLE_SIZE));
        let pair = |prefill: &[Candidate], decode: &[Candidate]| {
            let input = ChoiceInput { demand: DEMAND, ..ChoiceInput::of(prefill, decode, draw) };
            choose(Policy::Predicted, &input)
        };
        let (Some(of_few), Some(of_all)) = (pair(&few, &mates), pair(&prefill, &decode)) else {
            continue;
        };
        let of = |pair: Pair<usize>| {
            (better(&prefill, pair.prefill) + better(&decode, pair.decode)) / 2.0
        };
        sum += of(of_few.pair);
        worst = worst.max(of(of_few.pair));
        whole = whole.max(of(of_all.pair));
    }
    // The best of 64 is, on average, the best 1 in 65.
    assert!(sum / 200.0 < 0.025 && worst < 0.12, "mean {}, worst {worst}", sum / 200.0);
    assert!(whole < 0.02, "all of it: {whole}");
}

#[test]
fn a_running_prompt_counts_as_at_most_half_done() {
    let mut prefill = [idle(0, 0), idle(1, 0)];
    let decode = [idle(2, 0)];
    for (at, busy_ms) in [(0, 0.0), (1, 700.0)] {
        prefill[at].usage =
            Usage { requests: 1, prompt_bytes: 100_000, kv_tokens: 0, ..Usage::default() };
        prefill[at].queue_head = QueueHead { work_bytes: 100_000.0, busy_ms };
    }
    let input = ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&prefill, &decode, DRAW) };
    assert!(tally(Policy::Predicted, input)[1] > 985);
    let wait_ms = |busy_ms| {
        let head = QueueHead { work_bytes: 100_000.0, busy_ms };
        let all = [Candidate { queue_head: head, ..prefill[0] }];
        let input = ChoiceInput { demand: DEMAND, ..ChoiceInput::of(&all, &decode, DRAW) };
        choose(Policy::Predicted, &input).unwrap().estimate.unwrap().wait_ms
    };
    assert!((wait_ms(700.0) - 1100.0).abs() < 1.0, "1,800 ms of work: {}", wait_ms(700.0));
    assert!((wait_ms(1e9) - 900.0).abs() < 1.0, "an overdue prompt is not done: {}", wait_ms(1e9));
}

proptest::proptest! {
    #[test]
    fn any_numbers_yield_a_repeatable_choice(
        legs in proptest::collection::vec(
            (0u64..1 << 50, 0u64..1 << 40, proptest::num::f32::ANY, proptest::num::f32::ANY),
            1..40,
        ),
        chance in proptest::num::u64::ANY,
        prompt_bytes in 0u64..1 << 40,
    ) {
        let all: Vec<Candidate> = legs.iter().enumerate().map(|(id, &(bytes, tokens, x, y))| {
            let usage = Usage { requests: bytes % 100, prompt_bytes: bytes, kv_tokens: tokens, ..Usage::default() };
            let rates = EngineRates { prefill_us_per_byte: x, step_us: y, ..EngineRates::default() };
            let load = Load {
                age_ms: if bytes % 2 == 0 { 1.0 } else { x },
                others_requests: y,
                others_waiting_bytes: y,
                tx_free_bytes_per_ms: x,
                rx_kv_bytes_per_ms: y,
                ..Load::default()
            };
            let limits = WorkerLimits { requests: tokens % 100, kv_tokens: tokens };
            let head = QueueHead { work_bytes: y, busy_ms: x };
            let load = (bytes % 5 > 0).then_some(load);
            Candidate { usage, load, limits, queue_head: head, rates, ..idle(id, bytes % 3) }
        }).collect();
        let demand = Demand { prompt_bytes, kv_tokens: prompt_bytes / 4, prefix_key: chance, ..EMPTY };
        let draw = Draw { chance, turn: chance };
        for policy in Policy::ALL {
            let input = ChoiceInput { demand, ..ChoiceInput::of(&all, &all, draw) };
            let pair = choose(policy, &input).map(|chosen| chosen.pair).unwrap();
            proptest::prop_assert!(pair.prefill < all.len() && pair.decode < all.len());
            let again = choose(policy, &input).map(|chosen| chosen.pair).unwrap();
            proptest::prop_assert_eq!(pair, again);
        }
    }
}
