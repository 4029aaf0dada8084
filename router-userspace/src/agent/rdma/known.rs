//! How far a figure can be trusted.

use serde::Serialize;

/// Said beside every figure about RDMA: not knowing is a value, and never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::agent) enum Known {
    /// Counted.
    Exact,
    /// Split by a rule, or told by something else.
    Estimated,
    #[default]
    Unknown,
}

impl Known {
    pub(super) fn name(self) -> &'static str {
        match self {
            Known::Exact => "exact",
            Known::Estimated => "estimated",
            Known::Unknown => "unknown",
        }
    }

    /// What a figure made of two is: as good as the worse.
    pub(super) fn and(self, other: Known) -> Known {
        self.max(other)
    }
}

/// A figure; null where it is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::agent) struct Figure {
    pub(in crate::agent) value: Option<f64>,
    pub(in crate::agent) known: Known,
}

impl Figure {
    pub(super) fn new(value: Option<f64>, known: Known) -> Figure {
        match value.filter(|_| known != Known::Unknown) {
            Some(value) => Figure { value: Some(value), known },
            None => Figure::default(),
        }
    }

    /// A part of it.
    pub(super) fn part(self, (share, known): (f64, Known)) -> Figure {
        Figure::new(self.value.map(|value| value * share), self.known.and(known))
    }

    /// The higher of the two; unknown if both are.
    pub(super) fn or_higher(self, other: Figure) -> Figure {
        match (self.value, other.value) {
            (Some(one), Some(another)) if another > one => other,
            (None, Some(_)) => other,
            _ => self,
        }
    }

    /// Both together; unknown if one is.
    pub(super) fn plus(self, other: Figure) -> Figure {
        let sum = self.value.zip(other.value).map(|(one, other)| one + other);
        Figure::new(sum, self.known.and(other.known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_has_no_value_and_spreads() {
        let exact = Figure::new(Some(8.0), Known::Exact);
        assert_eq!(exact.part((0.5, Known::Estimated)), Figure::new(Some(4.0), Known::Estimated));
        let unknown = Figure::new(Some(8.0), Known::Unknown);
        assert_eq!(unknown.value, None);
        assert_eq!(exact.plus(unknown), Figure::default());
        assert_eq!(exact.plus(exact).known, Known::Exact);
        assert_eq!(Figure::new(None, Known::Exact).known, Known::Unknown);
    }
}
