//! Queues, deadlines and last resorts, in paused time.

use router_core::fleet::{
    EngineInfo, EngineLoad, Fleet, Load, Member, Phase, Profile, Role, Verdict, Weight, Worker,
    WorkerKey,
};
use router_core::schedule::Policy;

use super::*;
use crate::certificates::Certificates;
use crate::clock::MonotonicClock;
use crate::config::MirrorFlags;

pub(super) fn limits(max_queued: usize) -> LimitFlags {
    LimitFlags {
        max_body: 1 << 20,
        max_body_memory: 1 << 20,
        max_header_bytes: 64 << 10,
        max_connections: 10,
        max_requests_per_worker: 8,
        max_response: 1 << 20,
        max_response_memory: 1 << 20,
        max_queued,
        max_attempts: 3,
        max_engine_crashes: 1,
        mirrors: MirrorFlags { max_mirrors: 8, max_mirror_memory: 1 << 20 },
        max_idle_per_worker: 8,
    }
}

pub(super) fn member(name: &str, role: Role, model: &str, slots: u32) -> Member {
    let address = ([127, 0, 0, 1], 8000).into();
    let worker = Arc::new(Worker::new(WorkerKey { uid: name.into(), address }, name));
    worker.health.probe_passed(0);
    let info = EngineInfo {
        model_path: Some(model.to_owned()),
        max_running_requests: Some(slots),
        ..EngineInfo::default()
    };
    let bootstrap = Some(([127, 0, 0, 1], 8998).into());
    let engine_info = Some(Arc::new(info));
    Member { worker, role, phase: Phase::Ready, bootstrap, group: None, engine_info, node: None }
}

/// One prefill and one decode of one slot.
fn members() -> Vec<Member> {
    vec![member("p", Role::Prefill, "m", 8), member("d", Role::Decode, "m", 1)]
}

fn pool(members: Vec<Member>) -> Arc<Pool> {
    let name = ObjectName { namespace: "default".into(), name: "pool".into() };
    Arc::new(Pool::new(name, Profile::Pd, members))
}

fn admission(pool: &Arc<Pool>, max_queued: usize) -> Arc<Admission> {
    let fleet = Arc::new(FleetHandle::default());
    let published = Fleet { generation: 1, pools: vec![Arc::clone(pool)], ..Fleet::default() };
    fleet.publish(published, Certificates::default());
    let view =
        SchedulerView::new(Policy::LeastLoad, MonotonicClock::start(), Duration::from_secs(1));
    Admission::new(fleet, view, limits(max_queued), Duration::from_secs(30))
}

pub(super) fn request() -> PlacementRequest {
    let weight = Weight { requests: 1, prompt_bytes: 10, kv_tokens: 5, ..Weight::default() };
    PlacementRequest { model: None, weight, avoid: Vec::new(), only: None, blocks: Vec::new() }
}

fn decode_of(placement: &Placement) -> String {
    placement.leases().last().map(|lease| lease.worker().name.to_string()).unwrap()
}

/// Starts a request that has to wait, and lets it join its queue.
async fn wait_in_queue(
    admission: &Arc<Admission>,
    pool: &Arc<Pool>,
) -> tokio::task::JoinHandle<Result<Placement, AdmissionError>> {
    let before = admission.waiting();
    let (a, p) = (Arc::clone(admission), Arc::clone(pool));
    let waiting = tokio::spawn(async move { a.admit(&p, &request(), None).await });
    while admission.waiting() == before {
        tokio::task::yield_now().await;
    }
    waiting
}

#[tokio::test(start_paused = true)]
async fn an_ended_lease_wakes_the_queue_in_order() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let held = admission.admit(&pool, &request(), None).await.unwrap();
    let first = wait_in_queue(&admission, &pool).await;
    let second = wait_in_queue(&admission, &pool).await;
    drop(held);
    let served = first.await.unwrap().unwrap();
    assert!(!second.is_finished(), "one slot serves one");
    drop(served);
    assert!(second.await.unwrap().is_ok());
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_later_request_does_not_overtake_the_queue() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let held = admission.admit(&pool, &request(), None).await.unwrap();
    let first = wait_in_queue(&admission, &pool).await;
    drop(held);
    // The slot is free now, and the head of the queue has not run yet.
    let later_request = request();
    let mut late = Box::pin(admission.admit(&pool, &later_request, None));
    assert!(futures_util::poll!(late.as_mut()).is_pending(), "the queue is not empty");
    let served = first.await.unwrap().unwrap();
    assert!(futures_util::poll!(late.as_mut()).is_pending(), "the slot is taken");
    drop(served);
    assert!(late.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_a_queue_timeout_and_a_deadline_are_different_errors() {
    let pool = pool(members());
    let admission = admission(&pool, 1);
    let _held = admission.admit(&pool, &request(), None).await.unwrap();
    let waiting = wait_in_queue(&admission, &pool).await;
    let refused = admission.admit(&pool, &request(), None).await.unwrap_err();
    assert_eq!(refused, AdmissionError::QueueFull);
    let before = Instant::now();
    let limit = Duration::from_secs(30);
    assert_eq!(waiting.await.unwrap().unwrap_err(), AdmissionError::QueueTimeout(limit));
    assert_eq!(before.elapsed().as_secs(), 30);
    let soon = Instant::now() + Duration::from_secs(2);
    let late = admission.admit(&pool, &request(), Some(soon)).await.unwrap_err();
    assert_eq!(late, AdmissionError::Deadline);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_the_queue_wakes_the_next() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let held = admission.admit(&pool, &request(), None).await.unwrap();
    let gone = wait_in_queue(&admission, &pool).await;
    let next = wait_in_queue(&admission, &pool).await;
    // The lease ends and wakes the head, which leaves without trying again.
    drop(held);
    gone.abort();
    assert!(next.await.unwrap().is_ok());
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_model_does_not_delay_another() {
    let mut all = members();
    all.push(member("p2", Role::Prefill, "other", 8));
    all.push(member("d2", Role::Decode, "other", 1));
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let of = |model: &str| PlacementRequest { model: Some(model.to_owned()), ..request() };
    let _held = admission.admit(&pool, &of("m"), None).await.unwrap();
    let (a, p) = (Arc::clone(&admission), Arc::clone(&pool));
    let waiting = tokio::spawn(async move { a.admit(&p, &of("m"), None).await });
    while admission.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let placement = admission.admit(&pool, &of("other"), None).await.unwrap();
    assert_eq!(decode_of(&placement), "d2");
    assert!(!waiting.is_finished());
    let unknown = admission.admit(&pool, &of("third"), None).await.unwrap_err();
    assert_eq!(unknown, AdmissionError::ModelNotFound("third".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_model_is_refused_among_several_models() {
    let mut all = members();
    all.push(member("p2", Role::Prefill, "other", 8));
    all.push(member("d2", Role::Decode, "other", 1));
    let pool = pool(all);
    let refused = admission(&pool, 8).admit(&pool, &request(), None).await.unwrap_err();
    assert_eq!(refused, AdmissionError::ModelRequired);
}

#[tokio::test(start_paused = true)]
async fn prefill_s_rank_is_not_sent_to_a_decode_of_0_5_10() {
    for (decode, is_named) in [("0.5.10", false), ("0.5.10.post1", false), ("0.5.11", true)] {
        let balanced = |version: &str| EngineInfo {
            dp_size: Some(4),
            follow_bootstrap_room: Some(false),
            version: Some(version.to_owned()),
            ..EngineInfo::default()
        };
        let mut all = members();
        all[0].engine_info = Some(Arc::new(balanced("0.5.12.post1")));
        all[1].engine_info = Some(Arc::new(balanced(decode)));
        let pool = pool(all);
        let placement = admission(&pool, 8).admit(&pool, &request(), None).await.unwrap();
        let Placement::Pair { ranks, .. } = placement else { panic!("a pool of pairs") };
        assert_eq!(ranks.prefill.is_some(), is_named, "{decode}");
        assert!(ranks.decode.is_some(), "{decode}");
    }
}

#[tokio::test(start_paused = true)]
async fn health_is_a_last_resort_and_capacity_never_is() {
    let mut all = members();
    all.push(member("d2", Role::Decode, "m", 1));
    let down = Arc::clone(&all[2].worker);
    let up = Arc::clone(&all[1].worker);
    down.health.unreachable();
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let held = admission.admit(&pool, &request(), None).await.unwrap();
    assert_eq!(decode_of(&held), "d");
    // The healthy one is full: wait for it rather than try the dead one.
    let waiting = wait_in_queue(&admission, &pool).await;
    assert!(!waiting.is_finished());
    // All look dead: the last ones are tried rather than refused.
    up.health.unreachable();
    assert_eq!(up.health.verdict(), Verdict::Down);
    admission.wake();
    assert_eq!(decode_of(&waiting.await.unwrap().unwrap()), "d2");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_half_open_worker_gets_one_request_at_a_time() {
    let mut all = members();
    all.push(member("d2", Role::Decode, "m", 8));
    let half_open = Arc::clone(&all[2].worker);
    half_open.health.ejected(0);
    half_open.health.probe_passed(60_000);
    all[1].engine_info = all[2].engine_info.clone();
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(admission.admit(&pool, &request(), None).await.unwrap());
    }
    assert_eq!(half_open.usage().requests, 1);
    held.clear();
    half_open.health.answered();
    for _ in 0..6 {
        held.push(admission.admit(&pool, &request(), None).await.unwrap());
    }
    assert!(half_open.usage().requests > 1, "it has answered and is up again");
}

#[tokio::test(start_paused = true)]
async fn a_half_open_worker_that_refused_is_left_to_the_others() {
    let mut all = members();
    all.push(member("d2", Role::Decode, "m", 8));
    all[1].engine_info = all[2].engine_info.clone();
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let half_open = &pool.members[2].worker.health;
    half_open.ejected(0);
    half_open.probe_passed(60_000);
    half_open.refused(admission.view.clock.now_ms());
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(admission.admit(&pool, &request(), None).await.unwrap());
        assert_eq!(decode_of(&held[held.len() - 1]), "d");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_failed_this_request_is_chosen_again_only_if_alone() {
    let mut all = members();
    all.push(member("d2", Role::Decode, "m", 8));
    all[1].engine_info = all[2].engine_info.clone();
    let failed = Arc::clone(&all[1].worker);
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let request = PlacementRequest { avoid: vec![failed], ..request() };
    for _ in 0..8 {
        let placement = admission.admit(&pool, &request, None).await.unwrap();
        assert_eq!(decode_of(&placement), "d2");
    }
    let alone = self::pool(members());
    let request = PlacementRequest { avoid: vec![Arc::clone(&alone.members[1].worker)], ..request };
    assert_eq!(decode_of(&admission.admit(&alone, &request, None).await.unwrap()), "d");
}

#[tokio::test(start_paused = true)]
async fn a_pool_without_a_ready_worker_is_refused_at_once() {
    let mut all = members();
    all[1].phase = Phase::Draining;
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let refused = admission.admit(&pool, &request(), None).await.unwrap_err();
    let AdmissionError::NoWorkerReady(why) = refused else { panic!("{refused:?}") };
    assert!(why.starts_with("pool default/pool: "), "{why}");
}

/// Lets the engine of a prefill run as decode.
fn contradict(prefill: &mut Member) {
    let as_decode = EngineInfo {
        disaggregation_mode: Some("decode".to_owned()),
        ..prefill.engine_info.as_deref().cloned().unwrap_or_default()
    };
    prefill.engine_info = Some(Arc::new(as_decode));
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_decode_beside_one_misconfigured_prefill() {
    let mut all = members();
    all.push(member("wrong", Role::Prefill, "m", 8));
    contradict(&mut all[2]);
    let whole = pool(all.clone());
    all.remove(1);
    let without_decode = pool(all);
    let admission = admission(&without_decode, 8);
    without_decode.history.served_until(admission.view.clock.now_ms());
    let waiting = wait_in_queue(&admission, &without_decode).await;
    let fleet = Fleet { generation: 2, pools: vec![whole], ..Fleet::default() };
    admission.fleet.publish(fleet, Certificates::default());
    admission.wake();
    assert_eq!(decode_of(&waiting.await.unwrap().unwrap()), "d");
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_engines_contradict_their_roles_is_refused_at_once() {
    let mut all = members();
    contradict(&mut all[0]);
    let pool = pool(all);
    let admission = admission(&pool, 8);
    pool.history.served_until(admission.view.clock.now_ms());
    let began = Instant::now();
    let refused = admission.admit(&pool, &request(), None).await.unwrap_err();
    assert_eq!(refused, AdmissionError::NoWorkerReady(none_ready(&pool)));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_workers_that_start_or_that_were_there_lately() {
    let mut all = members();
    all[1].phase = Phase::NotReady;
    let starting = pool(all);
    let admission = admission(&starting, 8);
    let began = Instant::now();
    let refused = admission.admit(&starting, &request(), None).await.unwrap_err();
    assert_eq!(refused, AdmissionError::NoWorkerReady(none_ready(&starting)));
    assert!(began.elapsed() >= Duration::from_secs(30), "it waited for --queue-timeout");

    let empty = pool(Vec::new());
    empty.history.served_until(admission.view.clock.now_ms());
    let waiting = wait_in_queue(&admission, &empty).await;
    let fleet = Fleet { generation: 2, pools: vec![pool(members())], ..Fleet::default() };
    admission.fleet.publish(fleet, Certificates::default());
    admission.wake();
    assert!(waiting.await.unwrap().is_ok(), "the pool has workers again");
}

/// One engine in both roles: its prefill lease uses the capacity that its decode lease needs.
#[tokio::test(start_paused = true)]
async fn a_pair_that_fills_up_while_it_is_leased_does_not_deadlock_the_queue() {
    let decode = member("both", Role::Decode, "m", 1);
    let prefill = Member { role: Role::Prefill, ..decode.clone() };
    let pool = pool(vec![prefill, decode]);
    let admission = admission(&pool, 8);
    let waiting = wait_in_queue(&admission, &pool).await;
    assert!(matches!(waiting.await.unwrap(), Err(AdmissionError::QueueTimeout(_))));
    assert_eq!(pool.members[0].worker.usage(), Weight::default());
}

#[tokio::test(start_paused = true)]
async fn a_compatible_set_that_is_down_is_not_used_while_another_is_up() {
    let mut members: Vec<Member> = Vec::new();
    for page_size in [1, 64] {
        for (name, role) in [("p", Role::Prefill), ("d", Role::Decode)] {
            let mut member = member(&format!("{name}-{page_size}"), role, "m", 8);
            let info = EngineInfo {
                page_size: Some(page_size),
                ..(**member.engine_info.as_ref().unwrap()).clone()
            };
            member.engine_info = Some(Arc::new(info));
            members.push(member);
        }
    }
    members[0].worker.health.unreachable();
    let pool = pool(members);
    assert_eq!(pool.compatible_sets.len(), 2);
    let admission = admission(&pool, 8);
    for _ in 0..4 {
        let placement = admission.admit(&pool, &request(), None).await.unwrap();
        assert_eq!(decode_of(&placement), "d-64");
    }
    pool.members[2].worker.health.unreachable();
    assert!(admission.admit(&pool, &request(), None).await.is_ok(), "the last ones are tried");
}

fn running(requests: u64) -> EngineLoad {
    EngineLoad { running: Some(requests), ..EngineLoad::default() }
}

#[tokio::test(start_paused = true)]
async fn requests_of_others_that_the_engine_reports_take_capacity_until_its_next_report() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let (decode, clock) = (&pool.members[1].worker, admission.view.clock);
    decode.engine.set(running(1), Weight::default(), clock.now_ms());
    let waiting = wait_in_queue(&admission, &pool).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "the only slot is another's");
    let reported_at = Instant::now();
    decode.engine.set(running(0), Weight::default(), clock.now_ms());
    let served = waiting.await.unwrap().unwrap();
    assert!(reported_at.elapsed() <= 2 * POLL_INTERVAL, "no wake-up comes, the head polls");
    // Our own request is part of what the engine reports now, and not another gateway's after it ends.
    decode.engine.set(running(1), decode.usage(), clock.now_ms());
    drop(served);
    assert!(admission.admit(&pool, &request(), None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_agent_report_delays_a_request_and_never_rejects_it() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let (decode, clock) = (Arc::clone(&pool.members[1].worker), admission.view.clock);
    let full = Load { others_requests: 1e6, ..Load::default() };
    // Fresh for the whole test: the gateway's own clock is not the one that is paused.
    decode.load.set(&full, clock.now_us());
    let before = Instant::now();
    assert!(admission.admit(&pool, &request(), None).await.is_ok());
    // Three polls of a second. After them the engine's report counts, or the leases alone.
    let waited = before.elapsed();
    assert!((3.0..3.1).contains(&waited.as_secs_f64()), "{waited:?}");
}

/// A pool of one decode that is starting or ready.
fn forwarding(name: &str, phase: Phase) -> Arc<Pool> {
    let decode = Member { phase, ..member("d", Role::Decode, "m", 1) };
    let name = ObjectName { namespace: "default".into(), name: name.into() };
    Arc::new(Pool::new(name, Profile::Pd, vec![decode]))
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_request_waits_for_a_ready_worker_and_not_for_a_timer() {
    let starting = forwarding("a", Phase::NotReady);
    let admission = admission(&starting, 1);
    let (a, pool) = (Arc::clone(&admission), Arc::clone(&starting));
    let waiting = tokio::spawn(async move { a.until_ready(&pool, None).await });
    while admission.forwards.0.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let full = admission.until_ready(&starting, None).await.unwrap_err();
    assert_eq!(full, AdmissionError::QueueFull);
    // Those of one pool do not count for another.
    let another = forwarding("b", Phase::NotReady);
    let mut other = Box::pin(admission.until_ready(&another, None));
    assert!(futures_util::poll!(other.as_mut()).is_pending());
    let before = Instant::now();
    let ready = forwarding("a", Phase::Ready);
    let fleet = Fleet { generation: 2, pools: vec![ready], ..Fleet::default() };
    admission.fleet.publish(fleet, Certificates::default());
    let pool = waiting.await.unwrap().unwrap();
    assert_eq!((pool.members[0].phase, before.elapsed()), (Phase::Ready, Duration::ZERO));
    drop(other);
    assert!(admission.forwards.0.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_request_waits_no_longer_than_it_may() {
    let starting = forwarding("a", Phase::NotReady);
    let admission = admission(&starting, 1);
    let before = Instant::now();
    let refused = admission.until_ready(&starting, None).await.unwrap_err();
    assert_eq!(refused, AdmissionError::NoWorkerReady(none_ready(&starting)));
    assert_eq!(before.elapsed().as_secs(), 30);
    let deadline = Some(Instant::now() + Duration::from_secs(1));
    let refused = admission.until_ready(&starting, deadline).await.unwrap_err();
    assert_eq!(refused, AdmissionError::Deadline);
}
