//! What versions of SGLang changed for a router, in one table.
//!
//! Only two changes have to be known by the version: which rank field a request may carry and how a
//! registry is asked. The others show in an engine's answers, so that forks and patched versions work.

/// A version of SGLang: 0, 5, 12 for `0.5.12.post1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineVersion([u32; 3]);

impl EngineVersion {
    /// Parses the `version` of `/server_info`. `None` if it does not begin with two numbers.
    ///
    /// ```
    /// use router_core::sglang::versions::{Change, EngineVersion};
    ///
    /// let version = EngineVersion::parse("0.5.12.post1").unwrap();
    /// assert!(version.has(Change::RoutedRank) && !version.has(Change::RoleSwitch));
    /// assert_eq!(EngineVersion::parse("main"), None);
    /// ```
    pub fn parse(text: &str) -> Option<EngineVersion> {
        let mut parts = text.split('.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse().ok()
        });
        Some(EngineVersion([parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)]))
    }

    /// Whether this version has the change.
    pub fn has(self, change: Change) -> bool {
        self >= change.row().since
    }
}

/// A change of SGLang that a router notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Decode chooses its data-parallel rank by itself.
    OwnDecodeRank,
    /// The bootstrap registry is asked by prefill rank.
    RouteByRank,
    /// Requests may name a rank in `routed_dp_rank`.
    RoutedRank,
    /// Decode looks a prefill up before it uses the rank that a request names.
    NamedPrefillRank,
    Loads,
    Ready,
    ResponsesInPairs,
    RoleSwitch,
    NoGetLoad,
    MessagesInPairs,
    DecodeAllocation,
}

/// How the gateway learns whether an engine has a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// By its version.
    Version,
    /// By a field of `/server_info`.
    Field(&'static str),
    /// By its answer.
    Answer,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct ChangeRow {
    pub change: Change,
    /// The first version that has it.
    pub since: EngineVersion,
    pub detection: Detection,
}

/// All changes, in the order of [`Change`].
pub const CHANGES: [ChangeRow; 11] = [
    row(Change::OwnDecodeRank, 0, Detection::Version),
    row(Change::RouteByRank, 10, Detection::Version),
    row(Change::RoutedRank, 10, Detection::Version),
    row(Change::NamedPrefillRank, 11, Detection::Version),
    row(Change::Loads, 10, Detection::Answer),
    row(Change::Ready, 20, Detection::Answer),
    row(Change::ResponsesInPairs, 20, Detection::Answer),
    row(Change::RoleSwitch, 21, Detection::Field("enable_pd_role_switch")),
    row(Change::NoGetLoad, 21, Detection::Answer),
    row(Change::MessagesInPairs, 22, Detection::Answer),
    row(Change::DecodeAllocation, 22, Detection::Field("disaggregation_decode_allocation_policy")),
];

/// A change of version 0.5.`patch`.
const fn row(change: Change, patch: u32, detection: Detection) -> ChangeRow {
    ChangeRow { change, since: EngineVersion([0, 5, patch]), detection }
}

impl Change {
    fn row(self) -> &'static ChangeRow {
        &CHANGES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_its_row_and_stands_in_the_documents() {
        let page = include_str!("../../../../docs/reference/compatibility.md");
        for (at, row) in CHANGES.iter().enumerate() {
            assert_eq!(row.change as usize, at);
            let [major, minor, patch] = row.since.0;
            let version = format!("| {major}.{minor}.{patch}");
            assert!(page.contains(&version), "{version}");
            if let Detection::Field(field) = row.detection {
                let line = page.lines().find(|line| line.starts_with(&version)).unwrap_or_default();
                assert!(line.contains(field), "{field} of {version}");
            }
        }
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let version = |text: &str| EngineVersion::parse(text).unwrap();
        assert!(!version("0.4.10.post2").has(Change::OwnDecodeRank));
        assert!(version("0.5.0rc1").has(Change::OwnDecodeRank));
        assert!(!version("0.5.9").has(Change::RouteByRank));
        assert!(version("0.5.10").has(Change::RouteByRank));
        assert!(version("1.0.0").has(Change::DecodeAllocation));
        assert_eq!(EngineVersion::parse("5"), None);
    }
}
