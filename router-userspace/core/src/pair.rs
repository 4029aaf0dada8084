//! [`Pair`]: one value for the prefill leg and one for the decode leg.

use std::fmt;

use serde::Serialize;

/// The prefill or the decode half of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    Prefill,
    Decode,
}

impl Leg {
    /// The other leg.
    pub fn peer(self) -> Leg {
        match self {
            Leg::Prefill => Leg::Decode,
            Leg::Decode => Leg::Prefill,
        }
    }

    /// `prefill` or `decode`, as in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Leg::Prefill => "prefill",
            Leg::Decode => "decode",
        }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for the prefill leg and one for the decode leg.
///
/// ```
/// use router_core::pair::{Leg, Pair};
///
/// let seconds = Pair { prefill: 1, decode: 20 };
/// assert_eq!(seconds.map(|s| s * 1000)[Leg::Decode], 20_000);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Pair<P, D = P> {
    pub prefill: P,
    pub decode: D,
}

impl<P, D> Pair<P, D> {
    /// A pair of references into this one.
    pub fn as_ref(&self) -> Pair<&P, &D> {
        Pair { prefill: &self.prefill, decode: &self.decode }
    }
}

impl<T> Pair<T> {
    /// Applies `f` to both legs, prefill first.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Pair<U> {
        Pair { prefill: f(self.prefill), decode: f(self.decode) }
    }
}

impl<T> std::ops::Index<Leg> for Pair<T> {
    type Output = T;

    fn index(&self, leg: Leg) -> &T {
        match leg {
            Leg::Prefill => &self.prefill,
            Leg::Decode => &self.decode,
        }
    }
}

impl<T> std::ops::IndexMut<Leg> for Pair<T> {
    fn index_mut(&mut self, leg: Leg) -> &mut T {
        match leg {
            Leg::Prefill => &mut self.prefill,
            Leg::Decode => &mut self.decode,
        }
    }
}
