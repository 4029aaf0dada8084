//! [`Mirror`]: a backend that gets copies of a rule's requests.

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::Target;

/// A RequestMirror filter: a share of the requests is copied to `target`, whose answers are
/// discarded.
#[derive(Clone, Debug)]
pub struct Mirror {
    pub target: Target,
    pub share: MirrorShare,
}

/// The share of requests that is mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorShare {
    numerator: u32,
    denominator: u32,
}

impl MirrorShare {
    pub const ALL: MirrorShare = MirrorShare { numerator: 1, denominator: 1 };

    /// `numerator` of `denominator` requests. `None` if that is no share from 0 to 1.
    pub fn new(numerator: i32, denominator: i32) -> Option<MirrorShare> {
        let numerator = u32::try_from(numerator).ok()?;
        let denominator = u32::try_from(denominator).ok().filter(|all| *all >= numerator.max(1))?;
        Some(MirrorShare { numerator, denominator })
    }

    /// Whether a request is mirrored. `draw` is any random number.
    pub fn takes(self, draw: u64) -> bool {
        draw % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

impl Serialize for Mirror {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let MirrorShare { numerator, denominator } = self.share;
        let mut fields = serializer.serialize_struct("Mirror", 2)?;
        fields.serialize_field("target", &self.target)?;
        fields.serialize_field("share", &(f64::from(numerator) / f64::from(denominator)))?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_its_part_of_the_draws() {
        let taken = |share: MirrorShare| (0..100).filter(|draw| share.takes(*draw)).count();
        for (numerator, denominator, of_100) in
            [(20, 100, 20), (25, 50, 50), (0, 100, 0), (7, 7, 100)]
        {
            let share = MirrorShare::new(numerator, denominator).expect("a share");
            assert_eq!(taken(share), of_100, "{numerator}/{denominator}");
        }
        assert_eq!(taken(MirrorShare::ALL), 100);
    }

    #[test]
    fn what_is_not_between_0_and_1_is_no_share() {
        for (numerator, denominator) in [(-1, 100), (101, 100), (0, 0), (1, -1)] {
            assert_eq!(MirrorShare::new(numerator, denominator), None, "{numerator}/{denominator}");
        }
    }
}
