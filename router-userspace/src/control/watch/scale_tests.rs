//! What one pod's event costs among a thousand.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use router_core::fleet::{EngineInfo, Fleet, Phase};

use super::tests::{Case, pod, pods_of, pool, present};
use super::*;

const PODS: usize = 1_000;
const EVENTS: u64 = 40;
/// Of the processor's time, in a build for tests: for reading it, making the fleet, and what objects
/// are to be reported.
const MOST: Duration = Duration::from_millis(10);

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
fn one_pods_event_among_a_thousand_costs_milliseconds() {
    let mut case = Case::new();
    // The pods are the first pool's alone.
    case.apply(&Watch::Kind(Kind::InferencePoolV1), present(Kind::InferencePoolV1, pool("q", "b")));
    let watch = pods_of("a");
    let named = |at: usize| format!("engine-{at}");
    case.list(&watch, (0..PODS).map(|at| pod(&named(at), 1, "a", true)).collect());
    let mut fleet = case.index.build(&Fleet::default());
    let info = || EngineInfo {
        served_model_name: Some("qwen".into()),
        model_path: Some("/models/qwen".into()),
        page_size: Some(64),
        ..EngineInfo::default()
    };
    for worker in fleet.workers() {
        case.index.set_engine_info(worker.key.clone(), info());
    }
    fleet = case.index.build(&fleet);
    let mut took = Vec::new();
    for event in 0..EVENTS {
        let ready = event % 2 == 1;
        let change = present(Kind::Pod, pod(&named(500), 2 + event, "a", ready));
        let start = processor_time();
        assert!(case.apply(&watch, change));
        fleet = case.index.build(&fleet);
        let statuses = case.index.statuses(&fleet);
        let fronts = case.index.gateway_services();
        took.push(processor_time() - start);
        assert!(!statuses.is_empty() && fronts.0.len() < 2);
        let up = fleet.pools[0].members.iter().filter(|member| member.phase == Phase::Ready);
        assert_eq!(up.count(), if ready { PODS } else { PODS - 1 });
    }
    // The fastest: what others leave in the caches is not what is measured.
    let fastest = took.iter().min().copied().unwrap_or_default();
    println!("{fastest:?}");
    assert!(fastest < MOST, "{took:?}");
}
