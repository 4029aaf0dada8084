//! Lines, deadlines and last resorts, in paused time.

use router_core::fleet::{
    EngineInfo, EngineLoad, Fleet, Load, Member, Phase, Profile, Role, Verdict, Weight, Worker,
    WorkerKey,
};

use super::*;
use crate::certificates::Certificates;
use crate::clock::Clock;
use router_core::schedule::Policy;

pub(super) fn limits(max_queued: usize) -> LimitFlags {
    LimitFlags {
        max_body: 1 << 20,
        max_body_memory: 1 << 20,
        max_head: 64 << 10,
        max_connections: 10,
        max_requests_per_worker: 8,
        max_answer: 1 << 20,
        max_queued,
        max_attempts: 3,
        max_deaths: 1,
        max_idle_per_worker: 8,
    }
}

pub(super) fn member(name: &str, role: Role, model: &str, slots: u32) -> Member {
    let key = WorkerKey { uid: name.into(), port: 8000 };
    let address = ([127, 0, 0, 1], 8000).into();
    let worker = Arc::new(Worker::new(key, name, address));
    worker.health.probe_passed(0);
    let facts = EngineInfo {
        model_path: Some(model.to_owned()),
        max_running_requests: Some(slots),
        ..EngineInfo::default()
    };
    let bootstrap = Some(([127, 0, 0, 1], 8998).into());
    let facts = Some(Arc::new(facts));
    Member {
        worker,
        role,
        phase: Phase::Ready,
        bootstrap,
        group: None,
        engine_info: facts,
        node: None,
    }
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
    let view = SchedulerView::new(Policy::LeastLoad, Clock::start(), Duration::from_secs(1));
    Admission::new(fleet, view, limits(max_queued), Duration::from_secs(30))
}

pub(super) fn ask() -> Ask {
    let weight = Weight { requests: 1, prompt_bytes: 10, kv_tokens: 5, ..Weight::default() };
    Ask { model: None, weight, avoid: Vec::new(), only: None, blocks: Vec::new() }
}

fn decode_of(seats: &Seats) -> String {
    seats.leases().last().map(|lease| lease.worker().name.to_string()).unwrap()
}

/// Starts a waiting request and lets it take its place in the line.
async fn wait_in_line(
    admission: &Arc<Admission>,
    pool: &Arc<Pool>,
) -> tokio::task::JoinHandle<Result<Seats, Reject>> {
    let before = admission.waiting();
    let (a, p) = (Arc::clone(admission), Arc::clone(pool));
    let waiting = tokio::spawn(async move { a.admit(&p, &ask(), None).await });
    while admission.waiting() == before {
        tokio::task::yield_now().await;
    }
    waiting
}

#[tokio::test(start_paused = true)]
async fn a_freed_lease_wakes_the_line_in_order() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let held = admission.admit(&pool, &ask(), None).await.unwrap();
    let first = wait_in_line(&admission, &pool).await;
    let second = wait_in_line(&admission, &pool).await;
    drop(held);
    let served = first.await.unwrap().unwrap();
    assert!(!second.is_finished(), "one slot serves one");
    drop(served);
    assert!(second.await.unwrap().is_ok());
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_comes_later_does_not_pass_the_line() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let held = admission.admit(&pool, &ask(), None).await.unwrap();
    let first = wait_in_line(&admission, &pool).await;
    drop(held);
    // The slot is free now and the first of the line has not run yet.
    let asks = ask();
    let mut late = Box::pin(admission.admit(&pool, &asks, None));
    assert!(futures_util::poll!(late.as_mut()).is_pending(), "the line is not empty");
    let served = first.await.unwrap().unwrap();
    assert!(futures_util::poll!(late.as_mut()).is_pending(), "the slot is taken");
    drop(served);
    assert!(late.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_full_line_and_a_late_one_are_told_apart() {
    let pool = pool(members());
    let admission = admission(&pool, 1);
    let _held = admission.admit(&pool, &ask(), None).await.unwrap();
    let waiting = wait_in_line(&admission, &pool).await;
    let refused = admission.admit(&pool, &ask(), None).await.unwrap_err();
    assert_eq!(refused.reason(), "queue_full");
    let before = Instant::now();
    assert_eq!(waiting.await.unwrap().unwrap_err().reason(), "queue_timeout");
    assert_eq!(before.elapsed().as_secs(), 30);
    let soon = Instant::now() + Duration::from_secs(2);
    let late = admission.admit(&pool, &ask(), Some(soon)).await.unwrap_err();
    assert_eq!(late.reason(), "request_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_the_line_lets_the_next_one_look() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let held = admission.admit(&pool, &ask(), None).await.unwrap();
    let gone = wait_in_line(&admission, &pool).await;
    let next = wait_in_line(&admission, &pool).await;
    // The lease ends and wakes the first, which leaves without taking its turn.
    drop(held);
    gone.abort();
    assert!(next.await.unwrap().is_ok());
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_model_does_not_hold_up_another() {
    let mut all = members();
    all.push(member("p2", Role::Prefill, "other", 8));
    all.push(member("d2", Role::Decode, "other", 1));
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let of = |model: &str| Ask { model: Some(model.to_owned()), ..ask() };
    let _held = admission.admit(&pool, &of("m"), None).await.unwrap();
    let (a, p) = (Arc::clone(&admission), Arc::clone(&pool));
    let waiting = tokio::spawn(async move { a.admit(&p, &of("m"), None).await });
    while admission.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let seats = admission.admit(&pool, &of("other"), None).await.unwrap();
    assert_eq!(decode_of(&seats), "d2");
    assert!(!waiting.is_finished());
    let unknown = admission.admit(&pool, &of("third"), None).await.unwrap_err();
    assert_eq!(unknown.reason(), "model_not_found");
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
    let held = admission.admit(&pool, &ask(), None).await.unwrap();
    assert_eq!(decode_of(&held), "d");
    // The healthy one is full: wait for it rather than try the dead one.
    let waiting = wait_in_line(&admission, &pool).await;
    assert!(!waiting.is_finished());
    // All look dead: the last ones are tried rather than refused.
    up.health.unreachable();
    assert_eq!(up.health.verdict(), Verdict::Down);
    admission.wake();
    assert_eq!(decode_of(&waiting.await.unwrap().unwrap()), "d2");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_failed_this_request_is_taken_again_only_alone() {
    let mut all = members();
    all.push(member("d2", Role::Decode, "m", 8));
    all[1].engine_info = all[2].engine_info.clone();
    let failed = Arc::clone(&all[1].worker);
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let ask = Ask { avoid: vec![failed], ..ask() };
    for _ in 0..8 {
        let seats = admission.admit(&pool, &ask, None).await.unwrap();
        assert_eq!(decode_of(&seats), "d2");
    }
    let alone = self::pool(members());
    let ask = Ask { avoid: vec![Arc::clone(&alone.members[1].worker)], ..ask };
    assert_eq!(decode_of(&admission.admit(&alone, &ask, None).await.unwrap()), "d");
}

#[tokio::test(start_paused = true)]
async fn nobody_ready_is_said_at_once() {
    let mut all = members();
    all[1].phase = Phase::Draining;
    let pool = pool(all);
    let admission = admission(&pool, 8);
    let refused = admission.admit(&pool, &ask(), None).await.unwrap_err();
    assert_eq!(refused.reason(), "nobody_ready");
}

/// One engine in both roles: its prefill lease fills the place that its decode lease needs.
#[tokio::test(start_paused = true)]
async fn a_pair_that_fills_up_while_it_is_taken_does_not_lock_the_line() {
    let decode = member("both", Role::Decode, "m", 1);
    let prefill = Member { role: Role::Prefill, ..decode.clone() };
    let pool = pool(vec![prefill, decode]);
    let admission = admission(&pool, 8);
    let waiting = wait_in_line(&admission, &pool).await;
    assert!(matches!(waiting.await.unwrap(), Err(Reject::QueueTimeout(_))));
    assert_eq!(pool.members[0].worker.usage(), Weight::default());
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_down_is_passed_over_while_another_is_up() {
    let mut members: Vec<Member> = Vec::new();
    for page_size in [1, 64] {
        for (name, role) in [("p", Role::Prefill), ("d", Role::Decode)] {
            let mut member = member(&format!("{name}-{page_size}"), role, "m", 8);
            let facts = EngineInfo {
                page_size: Some(page_size),
                ..(**member.engine_info.as_ref().unwrap()).clone()
            };
            member.engine_info = Some(Arc::new(facts));
            members.push(member);
        }
    }
    members[0].worker.health.unreachable();
    let pool = pool(members);
    assert_eq!(pool.compatible_sets.len(), 2);
    let admission = admission(&pool, 8);
    for _ in 0..4 {
        let seats = admission.admit(&pool, &ask(), None).await.unwrap();
        assert_eq!(decode_of(&seats), "d-64");
    }
    pool.members[2].worker.health.unreachable();
    assert!(admission.admit(&pool, &ask(), None).await.is_ok(), "the last ones are tried");
}

fn running(requests: u64) -> EngineLoad {
    EngineLoad { running: Some(requests), ..EngineLoad::default() }
}

#[tokio::test(start_paused = true)]
async fn what_others_have_by_the_engine_s_word_is_no_room_until_it_tells_otherwise() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let (decode, clock) = (&pool.members[1].worker, admission.view.clock);
    decode.engine.set(running(1), Weight::default(), clock.now_ms());
    let waiting = wait_in_line(&admission, &pool).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "the only slot is another's");
    let told = Instant::now();
    decode.engine.set(running(0), Weight::default(), clock.now_ms());
    let served = waiting.await.unwrap().unwrap();
    assert!(told.elapsed() <= 2 * LOOK_AGAIN, "nobody calls, and it looks again by itself");
    // What it told while the request was there is not another's when that has ended.
    decode.engine.set(running(1), decode.usage(), clock.now_ms());
    drop(served);
    assert!(admission.admit(&pool, &ask(), None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_agent_s_word_is_kept_and_one_that_lies_delays_and_refuses_nothing() {
    let pool = pool(members());
    let admission = admission(&pool, 8);
    let (decode, clock) = (Arc::clone(&pool.members[1].worker), admission.view.clock);
    let full = Load { others_requests: 1e6, ..Load::default() };
    // Fresh for the whole test: the gateway's own clock is not the one that is paused.
    decode.load.set(&full, clock.now_us());
    let before = Instant::now();
    assert!(admission.admit(&pool, &ask(), None).await.is_ok());
    // Three polls of a second, after which the engine's word counts, or the leases alone.
    let waited = before.elapsed();
    assert!((3.0..3.1).contains(&waited.as_secs_f64()), "{waited:?}");
}
