//! [`Provenance`]: how a value was obtained. [`Measured`]: a value with its provenance.

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// How a value was obtained. The order is that of trust: unknown, estimated, exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provenance {
    /// Not measured. The value says nothing and must not be read as zero.
    #[default]
    Unknown,
    /// Split by a rule or inferred from something else.
    Estimated,
    /// Counted.
    Exact,
}

impl Provenance {
    /// `exact`, `estimated` or `unknown`, as in JSON and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Provenance::Exact => "exact",
            Provenance::Estimated => "estimated",
            Provenance::Unknown => "unknown",
        }
    }

    /// The provenance of a value computed from two others: the less trusted of the two.
    #[must_use]
    pub fn and(self, other: Provenance) -> Provenance {
        self.min(other)
    }
}

/// A value with its provenance. In JSON it is `{"value": 1.5, "provenance": "exact"}`; the value
/// is null if it is unknown.
///
/// ```
/// use router_core::provenance::{Measured, Provenance};
///
/// let rate = Measured::exact(8.0);
/// let half = rate.times(Measured::estimated(0.5));
/// assert_eq!((half.value(), half.provenance()), (Some(4.0), Provenance::Estimated));
/// assert_eq!(rate.plus(Measured::unknown()).value(), None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Measured<T> {
    pub(crate) value: T,
    pub(crate) provenance: Provenance,
}

impl<T> Measured<T> {
    pub const fn exact(value: T) -> Measured<T> {
        Measured { value, provenance: Provenance::Exact }
    }

    pub const fn estimated(value: T) -> Measured<T> {
        Measured { value, provenance: Provenance::Estimated }
    }

    pub const fn provenance(&self) -> Provenance {
        self.provenance
    }
}

impl<T: Copy + Default> Measured<T> {
    pub fn unknown() -> Measured<T> {
        Measured::default()
    }

    /// `value` with `provenance`; unknown if either is missing.
    pub fn new(value: Option<T>, provenance: Provenance) -> Measured<T> {
        match value.filter(|_| provenance != Provenance::Unknown) {
            Some(value) => Measured { value, provenance },
            None => Measured::default(),
        }
    }

    /// The value, unless it is unknown.
    pub fn value(self) -> Option<T> {
        (self.provenance != Provenance::Unknown).then_some(self.value)
    }

    /// Applies `f` to the value and keeps the provenance.
    #[must_use]
    pub fn map<U: Copy + Default>(self, f: impl FnOnce(T) -> U) -> Measured<U> {
        Measured::new(self.value().map(f), self.provenance)
    }
}

impl Measured<f64> {
    /// The product; unknown if a factor is.
    #[must_use]
    pub fn times(self, factor: Measured<f64>) -> Measured<f64> {
        let product = self.value().zip(factor.value()).map(|(one, factor)| one * factor);
        Measured::new(product, self.provenance.and(factor.provenance))
    }

    /// The sum; unknown if a term is.
    #[must_use]
    pub fn plus(self, other: Measured<f64>) -> Measured<f64> {
        let sum = self.value().zip(other.value()).map(|(one, other)| one + other);
        Measured::new(sum, self.provenance.and(other.provenance))
    }

    /// The higher of the two; unknown if both are.
    #[must_use]
    pub fn or_higher(self, other: Measured<f64>) -> Measured<f64> {
        match (self.value(), other.value()) {
            (Some(one), Some(another)) if another > one => other,
            (None, Some(_)) => other,
            _ => self,
        }
    }
}

/// `Some` is exact, `None` is unknown.
impl<T: Copy + Default> From<Option<T>> for Measured<T> {
    fn from(counted: Option<T>) -> Measured<T> {
        Measured::new(counted, Provenance::Exact)
    }
}

impl<T: Copy + Default + Serialize> Serialize for Measured<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Measured", 2)?;
        object.serialize_field("value", &self.value())?;
        object.serialize_field("provenance", &self.provenance)?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_value_is_none_and_makes_results_unknown() {
        let exact = Measured::exact(8.0);
        assert_eq!(exact.times(Measured::estimated(0.5)), Measured::estimated(4.0));
        let unknown = Measured::new(Some(8.0), Provenance::Unknown);
        assert_eq!(unknown.value(), None);
        assert_eq!(exact.plus(unknown), Measured::unknown());
        assert_eq!(exact.plus(exact).provenance(), Provenance::Exact);
        assert_eq!(Measured::<f64>::new(None, Provenance::Exact).provenance(), Provenance::Unknown);
        assert_eq!(unknown.or_higher(exact), exact);
        assert_eq!(unknown.map(|value| value + 1.0), Measured::unknown());
    }

    #[test]
    fn json_has_null_for_an_unknown_value() {
        let json = |measured: Measured<f32>| serde_json::to_string(&measured).unwrap();
        assert_eq!(json(Measured::exact(1.5)), r#"{"value":1.5,"provenance":"exact"}"#);
        assert_eq!(json(Measured::unknown()), r#"{"value":null,"provenance":"unknown"}"#);
    }
}
