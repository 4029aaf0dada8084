//! Gauges that count guards: dropping the guard decrements the gauge.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[derive(Debug, Default)]
struct Inner {
    now: AtomicUsize,
    peak: AtomicUsize,
}

/// The current value and the peak.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauge(Arc<Inner>);

/// A unit (or a weight) of a gauge, removed on drop.
#[derive(Debug)]
pub(crate) struct GaugeGuard {
    position: Arc<Inner>,
    weight: usize,
}

impl Gauge {
    pub(crate) fn enter(&self) -> GaugeGuard {
        self.enter_with(1)
    }

    pub(crate) fn enter_with(&self, weight: usize) -> GaugeGuard {
        let now = self.0.now.fetch_add(weight, Relaxed) + weight;
        self.0.peak.fetch_max(now, Relaxed);
        GaugeGuard { position: Arc::clone(&self.0), weight }
    }

    pub(crate) fn now(&self) -> usize {
        self.0.now.load(Relaxed)
    }

    pub(crate) fn peak(&self) -> usize {
        self.0.peak.load(Relaxed)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.position.now.fetch_sub(self.weight, Relaxed);
    }
}
