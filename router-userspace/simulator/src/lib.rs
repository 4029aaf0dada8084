//! The simulator: a discrete-event model of a PD fleet, driven by `router_core::schedule`.
//!
//! Engines, network and requests are the model's; every choice but the oracle's is made by
//! [`router_core::schedule::choose`] from what a gateway would know. A seed repeats a
//! run to the last bit, and all policies of a seed get the same requests at the same times.

mod cache;
mod chance;
mod chart;
mod contender;
mod decode;
mod engine;
mod event;
mod gateway;
mod harm;
mod history;
mod mix;
mod network;
mod oracle;
mod prefill;
mod summary;
#[cfg(test)]
mod tests;
mod trace;
mod trouble;
mod view;
mod world;

pub use chart::chart;
pub use contender::Contender;
pub use engine::Engine;
pub use mix::SyntheticMix;
pub use summary::{Spread, Summary};
pub use trace::{Arrival, BadTrace, Trace};
pub use trouble::{Kind, Trouble};

use router_core::schedule::SloTargets;

/// The fleet that is modelled.
#[derive(Clone, Debug)]
pub struct Setup {
    pub engine: Engine,
    pub prefills: usize,
    pub decodes: usize,
    pub gateways: usize,
    /// How old what an agent measured is when a gateway uses it.
    pub report_age_ms: f64,
    pub troubles: Vec<Trouble>,
    /// What goodput counts by.
    pub targets: SloTargets,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            engine: Engine::QWEN3_32B,
            prefills: 8,
            decodes: 8,
            gateways: 2,
            report_age_ms: 15.0,
            troubles: Vec::new(),
            targets: SloTargets { ttft_ms: 5000.0, itl_ms: 50.0 },
        }
    }
}

/// One policy at one load, over seeds `first..first + seeds`.
///
/// ```
/// use router_simulator::{Contender, Setup, SyntheticMix, run};
///
/// let trace = SyntheticMix::Conversations.draw(200, 1);
/// let contender: Contender = "round_robin".parse().unwrap();
/// let summary = run(&Setup::default(), &trace, contender, 0.5, 1..3);
/// assert_eq!((summary.requests, summary.failed), (200.0, 0.0));
/// assert!(summary.ttft_ms.p99 >= summary.ttft_ms.p50);
/// ```
pub fn run(
    setup: &Setup,
    trace: &Trace,
    contender: Contender,
    load: f64,
    seeds: std::ops::Range<u64>,
) -> Summary {
    let per_ms = load * setup.engine.capacity_per_ms(trace, setup.prefills, setup.decodes);
    let runs: Vec<Summary> = seeds
        .map(|seed| {
            let timed = trace.at_rate(per_ms, seed);
            let mut world = world::World::new(setup, &timed.arrivals, contender, seed);
            world.run();
            Summary::of(&world, setup, &timed.arrivals)
        })
        .collect();
    Summary { policy: contender.name, load, ..Summary::mean(&runs) }
}
