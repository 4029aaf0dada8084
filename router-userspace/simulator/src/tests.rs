//! Properties of the model under every policy.

use super::*;
use crate::simulation::{RequestStage, Simulation};

fn finished(setup: &FleetSetup, trace: &Trace, contender: Contender, seed: u64) -> (usize, usize) {
    let mut simulation = Simulation::new(setup, &trace.arrivals, contender, seed);
    simulation.run();
    let count = |stage| simulation.requests.iter().filter(|request| request.stage == stage).count();
    assert!(simulation.prefills.iter().all(|prefill| prefill.queue.is_empty()));
    let kept =
        |decode: &crate::decode::DecodeModel| (decode.used, decode.coming, decode.queue.len());
    assert!(
        simulation.decodes.iter().all(|decode| kept(decode) == (0, 0, 0)),
        "all capacity is released"
    );
    for (request, arrival) in simulation.requests.iter().zip(&trace.arrivals) {
        if request.stage == RequestStage::Finished {
            let cached = f64::from(request.cached);
            let own = setup.engine.prefill_ms(f64::from(arrival.input_tokens) - cached, cached);
            let kv_ms = f64::from(arrival.input_tokens.min(setup.engine.chunk_tokens))
                * setup.engine.kv_bytes_per_token
                / setup.engine.nic_bytes_per_ms;
            let least = arrival.at_ms + own;
            assert!(request.first_ms >= least - 1e-3, "faster than its own prefill");
            assert!(request.first_ms >= arrival.at_ms + kv_ms.min(own) - 1e-3);
            let steps = f64::from(arrival.output_tokens - 1) * setup.engine.step_ms;
            assert!(request.end_ms >= request.first_ms + steps - 1e-3, "faster than its steps");
        }
    }
    (count(RequestStage::Finished), count(RequestStage::Failed))
}

fn synthetic(requests: usize, load: f64) -> Trace {
    let setup = FleetSetup::default();
    let trace = SyntheticMix::Conversations.draw(requests, 5);
    let per_ms = load * setup.engine.capacity_per_ms(&trace, setup.prefills, setup.decodes);
    trace.at_rate(per_ms, 5)
}

#[test]
fn every_request_finishes_under_every_policy() {
    let trace = synthetic(200, 0.7);
    for contender in Contender::ALL {
        assert_eq!(
            finished(&FleetSetup::default(), &trace, contender, 1),
            (200, 0),
            "{contender:?}"
        );
    }
}

#[test]
fn requests_of_a_dying_worker_fail_and_none_is_lost() {
    let trace = synthetic(200, 0.7);
    for dies in ["dies:2@0.5-1", "dies:11@0.5-1"] {
        let setup = FleetSetup { faults: vec![dies.parse().unwrap()], ..FleetSetup::default() };
        for contender in Contender::ALL {
            let (finished, failed) = finished(&setup, &trace, contender, 1);
            assert_eq!(finished + failed, 200, "{contender:?}");
            assert!(failed < 60, "{contender:?}: {failed} failed");
            assert!(failed > 0 || dies == "dies:2@0.5-1", "a decode always has requests");
        }
    }
}

#[test]
fn an_overloaded_fleet_finishes_every_request() {
    let trace = synthetic(300, 5.0);
    let setup = FleetSetup { decodes: 1, ..FleetSetup::default() };
    for name in ["random", "predicted", "oracle"] {
        assert_eq!(finished(&setup, &trace, name.parse().unwrap(), 1), (300, 0));
    }
}

#[test]
fn a_seed_repeats_a_run_and_another_seed_does_not() {
    let trace = SyntheticMix::Conversations.draw(300, 1);
    for name in ["predicted", "cache_aware", "oracle"] {
        let contender = name.parse().unwrap();
        let once = |seeds| run(&FleetSetup::default(), &trace, contender, 0.8, seeds);
        assert_eq!(once(1..3), once(1..3));
        assert_ne!(once(1..3), once(3..5));
    }
}

#[test]
fn no_policy_beats_the_oracle_by_more_than_noise() {
    let trace = SyntheticMix::Conversations.draw(400, 2);
    let setup = FleetSetup::default();
    for load in [0.5, 0.9] {
        let cost = |contender| {
            let summary = run(&setup, &trace, contender, load, 1..3);
            (summary.ttft_ms.mean, summary.e2e_ms.mean)
        };
        let bound = cost("oracle".parse().unwrap());
        for contender in Contender::ALL {
            let (ttft, e2e) = cost(contender);
            assert!(ttft > bound.0 * 0.95 && e2e > bound.1 * 0.97, "{contender:?} at {load}");
        }
    }
}

#[test]
fn agents_move_the_load_from_a_slow_prefill_and_a_busy_link() {
    let trace = SyntheticMix::Conversations.draw(400, 2);
    for fault in ["slow:0:4", "busy:1:0.95"] {
        let setup = FleetSetup { faults: vec![fault.parse().unwrap()], ..FleetSetup::default() };
        let p90 = |name: &str| {
            let contender = name.parse().unwrap();
            run(&setup, &trace, contender, 0.5, 1..3).ttft_ms.p90
        };
        let (predicted, blind) = (p90("predicted"), p90("round_robin"));
        assert!(predicted < blind / 2.0, "{fault}: {predicted} ms, round robin {blind} ms");
    }
}

#[test]
fn with_scarce_decode_capacity_predicted_waits_less_than_the_baselines() {
    let trace = SyntheticMix::Conversations.draw(400, 2);
    let setup = FleetSetup { decodes: 3, ..FleetSetup::default() };
    // Two seeds differ by more than the policies do.
    let mean = |name: &str| run(&setup, &trace, name.parse().unwrap(), 0.9, 1..9).ttft_ms.mean;
    let predicted = mean("predicted");
    for name in ["round_robin", "least_load", "cache_aware", "reported_1s"] {
        assert!(predicted < mean(name), "{predicted} ms, {name} {} ms", mean(name));
    }
}

#[test]
fn a_longer_step_is_a_larger_batch_or_a_longer_context() {
    let engine = EngineModel::QWEN3_32B;
    assert!(engine.step_ms(2, 1000.0) > engine.step_ms(1, 1000.0));
    assert!(engine.step_ms(1, 2000.0) > engine.step_ms(1, 1000.0));
    assert!(engine.prefill_ms(100.0, 50_000.0) > 2.0 * engine.prefill_ms(100.0, 0.0));
}

#[test]
fn at_rate_keeps_the_rate_and_spreads_quantised_times() {
    let mut trace = SyntheticMix::Conversations.draw(2000, 1);
    for arrival in &mut trace.arrivals {
        arrival.at_ms = (arrival.at_ms / 3000.0).floor() * 3000.0;
    }
    let spread = trace.at_rate(0.01, 7);
    let last = spread.arrivals.last().unwrap().at_ms;
    assert!((last - 200_000.0).abs() < 1.0, "{last}");
    assert!(spread.arrivals.windows(2).all(|two| two[0].at_ms <= two[1].at_ms));
    let same = spread.arrivals.windows(2).filter(|two| two[0].at_ms == two[1].at_ms).count();
    assert!(same < 3, "{same} at the same time");
    assert_eq!(spread, trace.at_rate(0.01, 7), "a seed repeats it");
}

/// Margin of the guard: a cell of few requests differs by this much between equal policies.
const GUARD_MARGIN: f64 = 1.05;

/// Mean and p99 of `predicted` as multiples of the simple rule's.
fn beside_the_simple_rule(setup: &FleetSetup, trace: &Trace, load: f64) -> (f64, f64) {
    let ttft = |name: &str| run(setup, trace, name.parse().unwrap(), load, 1..5).ttft_ms;
    let (predicted, simple) = (ttft("predicted"), ttft("kv"));
    (predicted.mean / simple.mean, predicted.p99 / simple.p99)
}

#[test]
fn predicted_is_not_worse_than_the_simple_rule() {
    let mut failures = Vec::new();
    for (name, mix) in SyntheticMix::ALL {
        let trace = mix.draw(1000, 3);
        for gateways in [1, 4] {
            let setup = FleetSetup { gateways, ..FleetSetup::default() };
            let (mean, p99) = beside_the_simple_rule(&setup, &trace, 0.9);
            println!("{name}, {gateways} gateways: mean {mean:.3}, p99 {p99:.3}");
            if mean > GUARD_MARGIN || p99 > GUARD_MARGIN {
                failures.push(format!("{name}, {gateways} gateways: {mean:.3}, {p99:.3}"));
            }
        }
    }
    assert!(failures.is_empty(), "mean and p99 beside kv, at most {GUARD_MARGIN}: {failures:?}");
}

#[test]
fn predicted_beats_the_simple_rule_in_lasting_trouble() {
    let trace = SyntheticMix::Conversations.draw(1500, 3);
    for fault in ["slow:0:3", "busy:0:0.95"] {
        let setup = FleetSetup { faults: vec![fault.parse().unwrap()], ..FleetSetup::default() };
        let (mean, p99) = beside_the_simple_rule(&setup, &trace, 0.6);
        println!("{fault}: mean {mean:.3}, p99 {p99:.3}");
        assert!(mean < 1.0 && p99 < GUARD_MARGIN, "{fault}: {mean:.3}, {p99:.3}");
    }
}
