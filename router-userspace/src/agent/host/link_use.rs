//! [`LinkUse`]: how much of a link is used.

/// A link's speed and use in bytes per second, as seen by the pod or node behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::agent) struct LinkUse {
    pub(in crate::agent) speed: f64,
    pub(in crate::agent) tx: f64,
    pub(in crate::agent) rx: f64,
}
