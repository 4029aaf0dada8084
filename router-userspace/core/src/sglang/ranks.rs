//! The ranks of a prefill as its bootstrap registry reports them: their number and their addresses.

use std::net::{IpAddr, SocketAddr};

use super::info::RouteParams;
use super::json::{JsonType, Raw};

/// Maximum number of ranks of one prefill that are queried.
pub const MAX_RANKS: usize = 512;

/// The number of ranks by kind of parallelism, and the query form for one rank.
///
/// ```
/// use router_core::sglang::info::RouteParams;
/// use router_core::sglang::ranks::RegisteredRanks;
///
/// let body = br#"{"attn_tp_size":2,"attn_cp_size":1,"dp_size":1,"pp_size":1}"#;
/// let ranks = RegisteredRanks::read(RouteParams::Ranks, body).unwrap();
/// assert_eq!(
///     ranks.queries().last().unwrap(),
///     "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=1&target_pp_rank=0",
/// );
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisteredRanks {
    form: RouteParams,
    dp: usize,
    cp: usize,
    tp: usize,
    pp: usize,
}

impl RegisteredRanks {
    /// Parses the answer to [`RouteParams::query`]. `None` if it contains no sizes, as before the
    /// first rank has registered.
    pub fn read(form: RouteParams, body: &[u8]) -> Option<RegisteredRanks> {
        let answer = Raw::parse(body).ok().filter(|raw| raw.kind() == JsonType::Object)?;
        let size = |key: &str| {
            let size = usize::try_from(answer.get(key)?.as_u64()?).ok()?;
            (size > 0).then_some(size)
        };
        let one = |key| size(key).unwrap_or(1);
        match form {
            RouteParams::Ranks => Some(RegisteredRanks {
                form,
                dp: size("dp_size")?,
                cp: one("attn_cp_size"),
                tp: one("attn_tp_size"),
                pp: one("pp_size"),
            }),
            RouteParams::DpGroup => {
                let dp = size("prefill_dp_size")?;
                // Versions without the size of a group report that of all groups together.
                let tp = size("prefill_attn_tp_size")
                    .unwrap_or_else(|| (one("prefill_tp_size") / dp).max(1));
                Some(RegisteredRanks { form, dp, cp: 1, tp, pp: one("prefill_pp_size") })
            }
        }
    }

    /// Path and query of the `GET` for each rank, rank 0 first.
    pub fn queries(self) -> impl Iterator<Item = String> {
        let RegisteredRanks { form, dp, cp, tp, pp } = self;
        let all = (0..dp).flat_map(move |dp| {
            let ranks = (0..cp).flat_map(move |cp| (0..tp).map(move |tp| (cp, tp)));
            ranks.flat_map(move |(cp, tp)| (0..pp).map(move |pp| (dp, cp, tp, pp)))
        });
        all.take(MAX_RANKS).map(move |(dp, cp, tp, pp)| match form {
            RouteParams::Ranks => format!(
                "/route?prefill_dp_rank={dp}&prefill_cp_rank={cp}\
                 &target_tp_rank={tp}&target_pp_rank={pp}"
            ),
            RouteParams::DpGroup => {
                format!("/route?engine_rank={tp}&target_dp_group={dp}&target_pp_rank={pp}")
            }
        })
    }
}

/// The control address of a rank, from the answer to one of [`RegisteredRanks::queries`].
///
/// ```
/// use router_core::sglang::ranks::control_address;
///
/// let body = br#"{"rank_ip":"10.0.0.7","rank_port":50123}"#;
/// assert_eq!(control_address(body), "10.0.0.7:50123".parse().ok());
/// ```
pub fn control_address(body: &[u8]) -> Option<SocketAddr> {
    let answer = Raw::parse(body).ok().filter(|raw| raw.kind() == JsonType::Object)?;
    let ip = answer.get("rank_ip")?.as_str()?;
    let ip: IpAddr = ip.trim_matches(['[', ']']).parse().ok()?;
    let port = answer.get("rank_port")?;
    let port = port.as_u64().or_else(|| port.as_str()?.parse().ok())?;
    u16::try_from(port).ok().filter(|port| *port > 0).map(|port| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queries(form: RouteParams, body: &[u8]) -> Vec<String> {
        RegisteredRanks::read(form, body).map(|ranks| ranks.queries().collect()).unwrap_or_default()
    }

    #[test]
    fn every_rank_is_queried_once_in_either_form() {
        let new = br#"{"attn_tp_size":2,"attn_cp_size":2,"dp_size":3,"pp_size":2}"#;
        let mut all = queries(RouteParams::Ranks, new);
        assert_eq!(all.len(), 24);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 24);
        let old = br#"{"prefill_attn_tp_size":2,"prefill_dp_size":2}"#;
        assert_eq!(
            queries(RouteParams::DpGroup, old),
            [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(group, rank)| format!(
                "/route?engine_rank={rank}&target_dp_group={group}&target_pp_rank=0"
            ))
        );
        // The first versions report the tensor-parallel size of all groups together.
        let first = br#"{"prefill_tp_size":8,"prefill_dp_size":4}"#;
        assert_eq!(queries(RouteParams::DpGroup, first).len(), 8);
    }

    #[test]
    fn an_answer_without_sizes_gives_none_and_absurd_sizes_are_limited() {
        for body in [&b"Missing inputs for bootstrap server."[..], br#"{"dp_size":null}"#, b"[]"] {
            assert_eq!(RegisteredRanks::read(RouteParams::Ranks, body), None);
        }
        let absurd = br#"{"attn_tp_size":4294967295,"dp_size":4294967295}"#;
        assert_eq!(queries(RouteParams::Ranks, absurd).len(), MAX_RANKS);
    }

    #[test]
    fn an_address_without_a_valid_ip_and_port_is_none() {
        assert_eq!(control_address(br#"{"rank_ip":"10.0.0.7","rank_port":0}"#), None);
        assert_eq!(control_address(br#"{"rank_ip":"prefill-0","rank_port":1}"#), None);
        let v6 = br#"{"rank_ip":"[fd00::7]","rank_port":"50123"}"#;
        assert_eq!(control_address(v6), "[fd00::7]:50123".parse().ok());
    }
}
