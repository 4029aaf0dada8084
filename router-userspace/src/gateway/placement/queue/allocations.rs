//! Nothing is allocated under the lock of the queues, once the buffers have grown to the pool.
#![expect(unsafe_code, reason = "counting allocations takes a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use router_core::fleet::{Load, Profile, Role};
use router_core::schedule::Policy;

use super::tests::{limits, member, request};
use super::*;
use crate::clock::MonotonicClock;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no counter any more, and nothing to count.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the system allocator's own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; the block came from the system allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// As many prefills as decodes, with load from agents, in groups or not.
fn admission(workers: usize, groups: bool) -> (Arc<Pool>, Arc<Admission>) {
    let clock = MonotonicClock::start();
    let mut members = Vec::new();
    for at in 0..workers {
        for (name, role) in [("p", Role::Prefill), ("d", Role::Decode)] {
            let mut one = member(&format!("{name}-{at}"), role, "m", 100);
            one.group = groups.then(|| format!("rack-{}", at / 4).into());
            one.worker.load.set(&Load::default(), clock.now_us());
            one.worker.lease_history.record(0, one.worker.usage());
            members.push(one);
        }
    }
    let name = ObjectName { namespace: "default".into(), name: "pool".into() };
    let pool = Arc::new(Pool::new(name, Profile::Pd, members));
    let view = SchedulerView::new(Policy::Predicted, clock, Duration::from_secs(1));
    let handle = Arc::new(FleetHandle::default());
    (pool, Admission::new(handle, view, limits(8), Duration::from_secs(30)))
}

#[test]
fn leases_are_taken_without_allocating_under_the_lock() {
    for (workers, groups) in [(3, false), (20, true), (300, false)] {
        let (pool, admission) = admission(workers, groups);
        let blocks: Vec<u64> = (1..=64).collect();
        let request = PlacementRequest { blocks, model: Some("m".to_owned()), ..request() };
        let mut held = Vec::new();
        let mut most = 0;
        for round in 0..1000 {
            let placer = admission.placer(&pool, &request, AgentTrust::Trusted);
            let mut queues = admission.queues.lock();
            let before = ALLOCATIONS.with(Cell::get);
            let leased = placer.lease(&admission.released, &mut queues.buffers);
            let allocated = ALLOCATIONS.with(Cell::get) - before;
            drop(queues);
            let leased = leased.expect("there is capacity");
            // The first choices grow the buffers.
            if round >= 10 {
                most = allocated.max(most);
            }
            assert!(matches!(leased, Leased::Pair { .. }));
            held.push(admission.finish(&placer, leased));
            if held.len() > 20 {
                held.remove(0);
            }
        }
        assert_eq!(most, 0, "{workers} workers a side, groups: {groups}");
    }
}
