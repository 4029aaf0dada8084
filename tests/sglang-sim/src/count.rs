//! Counts that are guards: what entered leaves when its guard drops.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[derive(Debug, Default)]
struct Inner {
    now: AtomicUsize,
    peak: AtomicUsize,
}

/// How many are in a place now, and how many there were at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<Inner>);

/// One (or a weight) in the place; leaves on drop.
#[derive(Debug)]
pub(crate) struct Presence {
    place: Arc<Inner>,
    weight: usize,
}

impl Count {
    pub(crate) fn enter(&self) -> Presence {
        self.enter_with(1)
    }

    pub(crate) fn enter_with(&self, weight: usize) -> Presence {
        let now = self.0.now.fetch_add(weight, Relaxed) + weight;
        self.0.peak.fetch_max(now, Relaxed);
        Presence { place: Arc::clone(&self.0), weight }
    }

    pub(crate) fn now(&self) -> usize {
        self.0.now.load(Relaxed)
    }

    pub(crate) fn peak(&self) -> usize {
        self.0.peak.load(Relaxed)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.place.now.fetch_sub(self.weight, Relaxed);
    }
}
