//! [`Ranks`]: the data-parallel ranks of an engine that a request can be assigned to.

use serde::Serialize;

use super::{EngineInfo, Role};
use crate::sglang::versions::{Change, EngineVersion};

/// Maximum number of ranks that are scheduled on. An engine with more ranks chooses by itself.
pub const MAX_RANKS: u32 = 64;

/// How a request is assigned to a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Steering {
    /// The engine uses rank `bootstrap_room % count`.
    Room,
    /// A field of the request names the rank, regardless of the bootstrap room.
    Field,
}

/// The ranks of an engine, and how a request is assigned to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ranks {
    /// At least 2.
    pub count: u32,
    pub steering: Steering,
}

impl Ranks {
    /// Returns the ranks of an engine in `role`; `None` if it has one rank, more than [`MAX_RANKS`], or
    /// chooses by itself.
    ///
    /// Prefill follows the bootstrap room unless it reports otherwise, and decodes look for the KV
    /// cache at that rank. Decode takes the field `routed_dp_rank` from 0.5.10 on. Version 0.4 follows
    /// the bootstrap room on both sides. Between the two versions the engine chooses.
    pub fn of(info: &EngineInfo, role: Role) -> Option<Ranks> {
        let count = info.dp_size.filter(|count| (2..=MAX_RANKS).contains(count))?;
        let version = info.version.as_deref().and_then(EngineVersion::parse);
        let knows_field = version.is_some_and(|version| version.has(Change::RoutedRank));
        let old = version.is_some_and(|version| !version.has(Change::OwnDecodeRank));
        let steering = match (role, info.follow_bootstrap_room) {
            (Role::Unified, _) => return None,
            (Role::Prefill, Some(true)) => Steering::Room,
            (Role::Decode, _) if knows_field => Steering::Field,
            (Role::Prefill, Some(false)) if knows_field => Steering::Field,
            (Role::Decode, Some(true)) => Steering::Room,
            (_, None) if old => Steering::Room,
            _ => return None,
        };
        Some(Ranks { count, steering })
    }

    /// Whether a decode finds the KV cache at the prefill rank that a request names.
    ///
    /// 0.5.10 takes the named rank before it has looked the prefill up, and then fails the request.
    /// From 0.5.11 on it looks the prefill up first.
    pub fn decode_finds_named_prefill_rank(decode: &EngineInfo) -> bool {
        let version = decode.version.as_deref().and_then(EngineVersion::parse);
        version.is_none_or(|version| {
            !version.has(Change::RoutedRank) || version.has(Change::NamedPrefillRank)
        })
    }

    /// Whether one bootstrap room can lead to rank `mine` here and to rank `theirs` of `other`.
    pub fn meet(&self, mine: u32, other: &Ranks, theirs: u32) -> bool {
        let both = self.steering == Steering::Room && other.steering == Steering::Room;
        let common = divisor(self.count, other.count);
        !both || mine % common == theirs % common
    }
}

/// The rank that a request is assigned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RankAssignment {
    pub ranks: Ranks,
    pub rank: u32,
}

fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(dp_size: u32, version: &str, follows: Option<bool>) -> EngineInfo {
        EngineInfo {
            dp_size: Some(dp_size),
            version: Some(version.to_owned()),
            follow_bootstrap_room: follows,
            ..EngineInfo::default()
        }
    }

    #[test]
    fn steering_depends_on_role_and_version() {
        let by = |info: &EngineInfo, role| Ranks::of(info, role).map(|ranks| ranks.steering);
        let new = engine(4, "0.5.12.post1", Some(true));
        assert_eq!(by(&new, Role::Prefill), Some(Steering::Room));
        assert_eq!(by(&new, Role::Decode), Some(Steering::Field));
        assert_eq!(by(&new, Role::Unified), None);
        let balanced = engine(4, "0.5.12", Some(false));
        assert_eq!(by(&balanced, Role::Prefill), Some(Steering::Field));
        let old = engine(4, "0.4.10", None);
        assert_eq!(by(&old, Role::Prefill), Some(Steering::Room));
        assert_eq!(by(&old, Role::Decode), Some(Steering::Room));
        let between = engine(4, "0.5.6", Some(false));
        assert_eq!((by(&between, Role::Prefill), by(&between, Role::Decode)), (None, None));
        for odd in [engine(1, "0.4.10", None), engine(65, "0.4.10", None), engine(4, "x", None)] {
            assert_eq!(Ranks::of(&odd, Role::Prefill), None, "{odd:?}");
        }
    }

    #[test]
    fn only_decodes_of_0_5_10_mishandle_a_named_prefill_rank() {
        for (version, finds) in
            [("0.5.10", false), ("0.5.10.post1", false), ("0.5.11", true), ("0.5.12.post1", true)]
        {
            let decode = engine(1, version, None);
            assert_eq!(Ranks::decode_finds_named_prefill_rank(&decode), finds, "{version}");
        }
    }

    #[test]
    fn two_engines_that_follow_the_room_meet_if_their_ranks_agree() {
        let ranks = |count, steering| Ranks { count, steering };
        let (four, six) = (ranks(4, Steering::Room), ranks(6, Steering::Room));
        assert!(four.meet(1, &six, 3) && !four.meet(1, &six, 2));
        assert!(four.meet(1, &ranks(3, Steering::Room), 2), "coprime counts always meet");
        assert!(four.meet(1, &ranks(4, Steering::Field), 2));
    }
}
