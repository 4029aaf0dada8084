//! [`Tuning`]: the constants of the policy `predicted`.

use crate::fleet::SpeedTuning;

/// The constants that are not learned. `pd-router simulate --report sensitivity` varies each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// Delay to later prompts in milliseconds for each millisecond of prefill.
    pub queue_cost: f32,
    /// Share of the uncached prompt that is assumed to be cached at the worker that the rendezvous
    /// hash names: other gateways send the conversation there too.
    pub affinity: f32,
    /// [`Tuning::affinity`] without a fresh agent load: what others sent there is unknown.
    pub blind_affinity: f32,
    /// Share of the assumed growth of prefill with the context that counts: believing it less costs
    /// less than believing it where it is too large.
    pub context: f32,
    /// Maximum share of the running prompt that counts as done, since its duration is an estimate.
    pub max_done: f32,
    /// A measured link is impaired below this share of what both NICs leave: a transfer beside two
    /// others gets a third.
    pub fair_share: f32,
    /// The significance test of per-worker speeds.
    pub speed: SpeedTuning,
}

/// A constant of [`Tuning`] by name.
pub type TuningField = (&'static str, fn(&mut Tuning) -> &mut f32);

impl Tuning {
    pub const USUAL: Tuning = Tuning {
        queue_cost: 1.0,
        affinity: 0.5,
        blind_affinity: 0.2,
        context: 0.5,
        max_done: 0.5,
        fair_share: 1.0 / 3.0,
        speed: SpeedTuning::USUAL,
    };

    pub const FIELDS: [TuningField; 8] = [
        ("queue_cost", |tuning| &mut tuning.queue_cost),
        ("affinity", |tuning| &mut tuning.affinity),
        ("blind_affinity", |tuning| &mut tuning.blind_affinity),
        ("context", |tuning| &mut tuning.context),
        ("max_done", |tuning| &mut tuning.max_done),
        ("fair_share", |tuning| &mut tuning.fair_share),
        ("critical_value", |tuning| &mut tuning.speed.critical_value),
        ("half_life_ms", |tuning| &mut tuning.speed.half_life_ms),
    ];
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning::USUAL
    }
}
