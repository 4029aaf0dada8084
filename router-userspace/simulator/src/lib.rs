//! The simulator: a discrete-event model of a PD fleet, driven by `router_core::schedule`.
//!
//! Engines, network and requests are modelled. Every choice except the oracle's is made by
//! [`router_core::schedule::choose`] from the information that a gateway would have. A seed repeats a
//! run exactly, and all policies of a seed get the same requests at the same times.

mod cache;
mod chart;
mod contender;
mod decode;
mod engine_model;
mod event;
mod fault;
mod gateway_model;
mod history;
mod inject;
mod mix;
mod network;
mod observed;
mod oracle;
mod perturbation;
mod prefill;
mod published_rule;
mod random;
mod report;
mod simulation;
mod summary;
#[cfg(test)]
mod tests;
mod trace;

pub use chart::chart;
pub use contender::Contender;
pub use engine_model::EngineModel;
pub use fault::{FaultEffect, InjectedFault};
pub use mix::SyntheticMix;
pub use perturbation::Perturbation;
pub use report::Report;
pub use summary::{Distribution, Summary};
pub use trace::{BadTrace, Trace, TraceRequest};

use router_core::schedule::{SloTargets, Tuning};

/// The modelled fleet.
#[derive(Clone, Debug)]
pub struct FleetSetup {
    pub engine: EngineModel,
    pub prefills: usize,
    pub decodes: usize,
    pub gateways: usize,
    /// Age of an agent's measurements when a gateway uses them.
    pub report_age_ms: f64,
    pub faults: Vec<InjectedFault>,
    /// How far the fleet differs from what the policies assume.
    pub perturbation: Perturbation,
    /// Constants of the policy `predicted`.
    pub tuning: Tuning,
    /// Requests within these targets count as goodput.
    pub targets: SloTargets,
}

impl Default for FleetSetup {
    fn default() -> FleetSetup {
        FleetSetup {
            engine: EngineModel::QWEN3_32B,
            prefills: 8,
            decodes: 8,
            gateways: 2,
            report_age_ms: 15.0,
            faults: Vec::new(),
            perturbation: Perturbation::default(),
            tuning: Tuning::USUAL,
            targets: SloTargets { ttft_ms: 5000.0, itl_ms: 50.0 },
        }
    }
}

/// Simulates one policy at one load and returns the mean over `seeds`.
///
/// ```
/// use router_simulator::{Contender, FleetSetup, SyntheticMix, run};
///
/// let trace = SyntheticMix::Conversations.draw(200, 1);
/// let contender: Contender = "round_robin".parse().unwrap();
/// let summary = run(&FleetSetup::default(), &trace, contender, 0.5, 1..3);
/// assert_eq!((summary.requests, summary.failed), (200.0, 0.0));
/// assert!(summary.ttft_ms.p99 >= summary.ttft_ms.p50);
/// ```
pub fn run(
    setup: &FleetSetup,
    trace: &Trace,
    contender: Contender,
    load: f64,
    seeds: std::ops::Range<u64>,
) -> Summary {
    let per_ms = load * setup.engine.capacity_per_ms(trace, setup.prefills, setup.decodes);
    let setup =
        &FleetSetup { engine: setup.perturbation.of_engine(&setup.engine), ..setup.clone() };
    let runs: Vec<Summary> = seeds
        .map(|seed| {
            let timed = trace.at_rate(per_ms, seed);
            let mut simulation =
                simulation::Simulation::new(setup, &timed.arrivals, contender, seed);
            simulation.run();
            Summary::of(&simulation, setup, &timed.arrivals)
        })
        .collect();
    Summary { policy: contender.name, load, ..Summary::mean(&runs) }
}
