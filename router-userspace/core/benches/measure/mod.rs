//! Measures an operation: the best time of several rounds, and its allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; the block came from the system allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// The cost of one operation.
pub(crate) struct Cost {
    pub(crate) ns: f64,
    pub(crate) allocations: f64,
}

/// Runs `operation` with the number of the run, for about 150 ms, after some runs to warm up. Returns
/// the best of ten rounds, since other programs only make a round slower.
pub(crate) fn cost(mut operation: impl FnMut(u64)) -> Cost {
    let (mut round, started) = (0, Instant::now());
    while started.elapsed() < Duration::from_millis(10) {
        operation(round);
        round += 1;
    }
    let runs = round.max(1);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let best = (0..10)
        .map(|_| {
            let started = Instant::now();
            (0..runs).for_each(|_| {
                operation(round);
                round += 1;
            });
            started.elapsed()
        })
        .min();
    let allocations = (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64;
    Cost {
        ns: best.unwrap_or_default().as_nanos() as f64 / runs as f64,
        allocations: allocations / (runs * 10) as f64,
    }
}
