//! [`PartHistograms`]: the histograms of the parts of a request's time, by pool.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use router_core::fleet::ObjectName;
use router_core::inner_parts::OF_AGENTS;
use router_core::provenance::Measured;
use router_core::timeline::TimelinePart;

/// One part of the time of a pool's requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartLabels {
    pub pool: String,
    pub part: &'static str,
}

type PartFamily = Family<PartLabels, Histogram, fn() -> Histogram>;
/// The histograms of one pool.
pub(crate) type OfPool<const N: usize> = Arc<[Histogram; N]>;
/// The parts of the time to first token.
pub type TtftParts = PartHistograms<{ TimelinePart::OF_TTFT }>;
/// The parts inside the engines that agents measure.
pub type InnerPartHistograms = PartHistograms<{ OF_AGENTS.len() }>;

/// The names of the parts of the time to first token, in order.
pub(super) const TTFT_PARTS: [&str; TimelinePart::OF_TTFT] = {
    let mut names = [""; TimelinePart::OF_TTFT];
    let mut at = 0;
    while at < names.len() {
        names[at] = TimelinePart::ALL[at].as_str();
        at += 1;
    }
    names
};

/// The histograms, and those of each pool of the fleet: a request then needs no label to be made and looked
/// up. `None` until a request of the pool is observed.
#[derive(Clone, Debug)]
pub struct PartHistograms<const N: usize> {
    pub(super) family: PartFamily,
    names: [&'static str; N],
    pools: Arc<RwLock<HashMap<ObjectName, Option<OfPool<N>>>>>,
}

/// Adds the parts that are known, in milliseconds and in the order of the histograms.
pub(crate) fn observe_known<const N: usize>(
    histograms: &[Histogram; N],
    parts: impl Iterator<Item = Measured<f64>>,
) {
    for (histogram, ms) in histograms.iter().zip(parts) {
        if let Some(ms) = ms.value() {
            histogram.observe(ms / 1e3);
        }
    }
}

impl<const N: usize> PartHistograms<N> {
    pub(super) fn new(histogram: fn() -> Histogram, names: [&'static str; N]) -> PartHistograms<N> {
        let family = PartFamily::new_with_constructor(histogram);
        PartHistograms { family, names, pools: Arc::default() }
    }

    /// Adds the parts of a streamed request that are known, in order. A request that ends after its pool was removed
    /// from the fleet is not counted: its series would stay for good.
    pub(crate) fn observe(&self, pool: &ObjectName, parts: impl Iterator<Item = Measured<f64>>) {
        if let Some(histograms) = self.of_pool(pool) {
            observe_known(&histograms, parts);
        }
    }

    /// Counts requests of these pools from now on, and removes the histograms of all others.
    pub(crate) fn follow<'p>(&self, names: impl Iterator<Item = &'p ObjectName>) {
        let mut pools = self.pools.write();
        let mut before = std::mem::take(&mut *pools);
        *pools = names.map(|name| (name.clone(), before.remove(name).flatten())).collect();
        for gone in before.keys() {
            for part in self.names {
                self.family.remove(&labels(gone, part));
            }
        }
    }

    /// The histograms of a pool that the fleet has.
    pub(crate) fn of_pool(&self, pool: &ObjectName) -> Option<OfPool<N>> {
        if let Some(known) = self.pools.read().get(pool)? {
            return Some(Arc::clone(known));
        }
        // Under the lock, so that the pool is not removed meanwhile.
        let mut pools = self.pools.write();
        let known = pools.get_mut(pool)?;
        let histogram =
            |at: usize| self.family.get_or_create(&labels(pool, self.names[at])).clone();
        Some(Arc::clone(known.get_or_insert_with(|| Arc::new(std::array::from_fn(histogram)))))
    }
}

fn labels(pool: &ObjectName, part: &'static str) -> PartLabels {
    PartLabels { pool: pool.to_string(), part }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use router_core::timeline::{Moments, Timeline};

    use super::*;
    use crate::metrics::{Metrics, exposition};

    #[test]
    fn known_parts_are_counted_until_their_pool_is_gone() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let pool = ObjectName { namespace: "ns".into(), name: "pool".into() };
        let moments = Moments {
            first_attempt_us: Some(1_000),
            last_attempt_us: Some(1_000),
            placed_us: Some(3_000),
            first_event_us: Some(9_000),
            ended_us: 9_000,
            ..Moments::default()
        };
        let values =
            || Timeline::of(&moments).parts().map(|(_, ms)| ms).collect::<Vec<_>>().into_iter();
        metrics.ttft_parts.follow([&pool].into_iter());
        assert!(!exposition::encode(&registry).contains("ns/pool"), "it has served no request");
        metrics.ttft_parts.observe(&pool, values());
        metrics.ttft_parts.follow([&pool].into_iter());
        let page = exposition::encode(&registry);
        let sum = |part: &str, value: &str| {
            let labels = format!(r#"{{pool="ns/pool",part="{part}"}}"#);
            page.contains(&format!("pd_router_ttft_part_seconds_sum{labels} {value}\n"))
        };
        assert!(sum("queued", "0.002") && sum("first_byte", "0.006"), "{page}");
        assert!(sum("sent", "0.0") && !page.contains(r#"part="done""#), "{page}");
        metrics.ttft_parts.follow(std::iter::empty());
        assert!(!exposition::encode(&registry).contains("ns/pool"));
        // A request that ends later does not bring them back.
        metrics.ttft_parts.observe(&pool, values());
        assert!(!exposition::encode(&registry).contains("ns/pool"));
        metrics.ttft_parts.follow([&pool].into_iter());
        metrics.ttft_parts.observe(&pool, values());
        assert!(exposition::encode(&registry).contains("ns/pool"));
    }
}
