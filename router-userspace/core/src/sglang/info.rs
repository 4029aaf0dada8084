//! What engines report about themselves: parsed for pairing, merged for benchmark tools.

use bytes::Bytes;

use super::json::{JsonType, Raw};
use super::public_info::{write_each, write_public};
use super::versions::{Change, EngineVersion};
pub use crate::fleet::EngineInfo;

impl EngineInfo {
    /// Parses an engine's `/server_info` (`/get_server_info` in old versions).
    ///
    /// The settings are at the top level or, in some versions, under `server_args`. The scheduler's
    /// values are there too or in `internal_states`, one entry per DP rank. A field that is absent,
    /// null or of another type stays `None`. An answer that is not a JSON object gives `None`.
    ///
    /// ```
    /// use router_core::fleet::EngineInfo;
    ///
    /// let info = EngineInfo::from_server_info(br#"{"page_size":64,"dp_size":2,
    ///     "internal_states":[{"effective_max_running_requests_per_dp":48}]}"#).unwrap();
    /// assert_eq!((info.page_size, info.max_running_requests), (Some(64), Some(96)));
    /// ```
    pub fn from_server_info(body: &[u8]) -> Option<EngineInfo> {
        let info = ServerInfo::read(body)?;
        let dp_size = info.number("dp_size");
        Some(EngineInfo {
            model_path: info.text("model_path"),
            served_model_name: info.text("served_model_name"),
            kv_cache_dtype: info.text("kv_cache_dtype"),
            page_size: info.number("page_size"),
            max_running_requests: info.max_running_requests(dp_size),
            max_total_num_tokens: info.max_total_num_tokens(),
            disaggregation_mode: info.text("disaggregation_mode"),
            disaggregation_bootstrap_port: info.number("disaggregation_bootstrap_port"),
            dp_size,
            follow_bootstrap_room: info.follows_bootstrap_room(),
            pp_size: info.number("pp_size"),
            decode_allocation_policy: info.text("disaggregation_decode_allocation_policy"),
            role_switch: info.find("enable_pd_role_switch").and_then(Raw::as_bool),
            version: info.text("version"),
        })
    }

    /// Parses the bootstrap registry's answer to [`RouteParams::query`]. `None` if it is malformed,
    /// or if no prefill rank has registered yet (0.4.10 answers 200 then too).
    ///
    /// ```
    /// use router_core::fleet::EngineInfo;
    ///
    /// let new = br#"{"dp_size":2,"page_size":64,"kv_cache_dtype":"fp8_e5m2","follow_bootstrap_room":false}"#;
    /// assert_eq!(EngineInfo::from_route(new).unwrap().dp_size, Some(2));
    /// let old = br#"{"prefill_attn_tp_size":null,"prefill_dp_size":null}"#;
    /// assert_eq!(EngineInfo::from_route(old), None);
    /// ```
    pub fn from_route(body: &[u8]) -> Option<EngineInfo> {
        let info = ServerInfo::read(body)?;
        if let Some(dp_size) = info.number("prefill_dp_size") {
            return Some(EngineInfo {
                dp_size: Some(dp_size),
                page_size: info.number("prefill_page_size"),
                // Both roles of 0.4 distribute requests by room.
                follow_bootstrap_room: Some(true),
                ..EngineInfo::default()
            });
        }
        Some(EngineInfo {
            dp_size: Some(info.number("dp_size")?),
            page_size: info.number("page_size"),
            kv_cache_dtype: info.text("kv_cache_dtype"),
            follow_bootstrap_room: info.find("follow_bootstrap_room").and_then(Raw::as_bool),
            ..EngineInfo::default()
        })
    }
}

/// The two forms of the registry query that succeeds once a prefill server has registered
/// completely. An engine of the other kind answers 400, which is no sign of bad health: retry with
/// the [`other`](RouteParams::other) form.
///
/// ```
/// use router_core::sglang::info::RouteParams;
///
/// let form = RouteParams::of_version("0.4.10.post2");
/// assert_eq!(form.query(), "/route?engine_rank=-1&target_dp_group=-1&target_pp_rank=-1");
/// assert_eq!(form.other(), RouteParams::of_version("0.5.12"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteParams {
    /// From 0.5.10.
    Ranks,
    /// Up to 0.5.8. Versions before 0.5.3 ignore the third parameter.
    DpGroup,
}

impl RouteParams {
    /// Path and query of the `GET`.
    pub fn query(self) -> &'static str {
        match self {
            RouteParams::Ranks => {
                "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1"
            }
            RouteParams::DpGroup => "/route?engine_rank=-1&target_dp_group=-1&target_pp_rank=-1",
        }
    }

    /// The form that an engine of this version most likely accepts.
    pub fn of_version(version: &str) -> RouteParams {
        match EngineVersion::parse(version) {
            Some(version) if !version.has(Change::RouteByRank) => RouteParams::DpGroup,
            _ => RouteParams::Ranks,
        }
    }

    pub fn other(self) -> RouteParams {
        match self {
            RouteParams::Ranks => RouteParams::DpGroup,
            RouteParams::DpGroup => RouteParams::Ranks,
        }
    }
}

/// Merges `/server_info` answers into the shape that SGLang's benchmark tools expect from a load
/// balancer: decode's internal states first, then every answer.
///
/// API keys, passwords, files, addresses, ports and all text that is not known to be public are
/// removed. Answers that are not JSON objects are omitted.
///
/// ```
/// use bytes::Bytes;
/// use router_core::sglang::info::server_info;
///
/// let prefill = Bytes::from_static(br#"{"version":"0.5"}"#);
/// let decode = Bytes::from_static(br#"{"internal_states":[{"last_gen_throughput":1.50}]}"#);
/// assert_eq!(
///     server_info(&[prefill], &[decode]),
///     concat!(
///         r#"{"internal_states":[{"last_gen_throughput":1.50}],"prefill":[{"version":"0.5"}],"#,
///         r#""decode":[{"internal_states":[{"last_gen_throughput":1.50}]}]}"#,
///     ),
/// );
/// ```
pub fn server_info(prefill: &[Bytes], decode: &[Bytes]) -> Bytes {
    let prefill: Vec<Raw<'_>> = prefill.iter().filter_map(|body| object(body)).collect();
    let decode: Vec<Raw<'_>> = decode.iter().filter_map(|body| object(body)).collect();
    let states: Vec<Raw<'_>> = decode
        .iter()
        .filter_map(|info| info.get("internal_states"))
        .flat_map(|states| states.elements())
        .filter(|state| state.kind() == JsonType::Object)
        .collect();
    let mut out = Vec::new();
    out.extend_from_slice(b"{\"internal_states\":");
    if states.is_empty() {
        // The tools read these two fields of the first state unconditionally.
        out.extend_from_slice(b"[{\"last_gen_throughput\":0.0,\"avg_spec_accept_length\":null}]");
    } else {
        list(&states, &mut out);
    }
    out.extend_from_slice(b",\"prefill\":");
    list(&prefill, &mut out);
    out.extend_from_slice(b",\"decode\":");
    list(&decode, &mut out);
    out.push(b'}');
    out.into()
}

/// The public part of one engine's `/server_info`, of a pool without prefill and decode roles; `None` if it is not a
/// JSON object.
///
/// ```
/// use router_core::sglang::info::public_server_info;
///
/// let info = public_server_info(br#"{"version":"0.5.23","api_key":"secret"}"#).unwrap();
/// assert_eq!(info, r#"{"version":"0.5.23"}"#);
/// assert_eq!(public_server_info(b"secret"), None);
/// ```
pub fn public_server_info(body: &[u8]) -> Option<Bytes> {
    let mut out = Vec::new();
    write_public("", object(body)?, &mut out);
    Some(out.into())
}

fn object(body: &[u8]) -> Option<Raw<'_>> {
    Raw::parse(body).ok().filter(|raw| raw.kind() == JsonType::Object)
}

/// Appends the public parts of the items. An item without one is omitted.
fn list(items: &[Raw<'_>], out: &mut Vec<u8>) {
    out.push(b'[');
    write_each(items.iter(), out, |item, out| write_public("", *item, out));
    out.push(b']');
}

/// The `/server_info` of one engine, and the places of its fields.
struct ServerInfo<'a> {
    top: Raw<'a>,
    args: Option<Raw<'a>>,
    states: Option<Raw<'a>>,
}

impl<'a> ServerInfo<'a> {
    fn read(body: &'a [u8]) -> Option<ServerInfo<'a>> {
        let top = object(body)?;
        Some(ServerInfo { top, args: top.get("server_args"), states: top.get("internal_states") })
    }

    fn find(&self, key: &str) -> Option<Raw<'a>> {
        let first = self.states.and_then(|states| states.elements().next());
        [Some(self.top), self.args, first]
            .into_iter()
            .flatten()
            .find_map(|place| place.get(key).filter(|value| !value.is_null()))
    }

    fn text(&self, key: &str) -> Option<String> {
        self.find(key)?.as_str().map(String::from)
    }

    fn number<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        T::try_from(self.find(key)?.as_u64()?).ok()
    }

    /// The effective limit of all schedulers together, else the setting, which is often null.
    fn max_running_requests(&self, dp_size: Option<u32>) -> Option<u32> {
        match self.number::<u32>("effective_max_running_requests_per_dp") {
            Some(per_dp) => Some(per_dp.saturating_mul(dp_size.unwrap_or(1).max(1))),
            None => self.number("max_running_requests"),
        }
    }

    /// The KV capacity as the engine reports it: of one DP rank.
    fn max_total_num_tokens(&self) -> Option<u64> {
        self.number("max_total_num_tokens").or_else(|| {
            let state = self.states?.elements().next()?;
            state.get("memory_usage")?.get("token_capacity")?.as_u64()
        })
    }

    /// On a prefill server `auto` means following the room.
    fn follows_bootstrap_room(&self) -> Option<bool> {
        let method = self.text("load_balance_method")?;
        let prefill = self.text("disaggregation_mode").as_deref() == Some("prefill");
        match method.as_str() {
            "follow_bootstrap_room" => Some(true),
            "auto" => prefill.then_some(true),
            _ => Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_info_of_every_version_is_parsed() {
        let old = br#"{"model_path":"/m","served_model_name":"m","page_size":1,"dp_size":1,
            "kv_cache_dtype":"auto","max_running_requests":null,"disaggregation_mode":"prefill",
            "disaggregation_bootstrap_port":34000,"max_total_num_tokens":20000,
            "internal_states":[{"memory_usage":{"token_capacity":19999}}],"version":"0.4.10.post2"}"#;
        let info = EngineInfo::from_server_info(old).unwrap();
        assert_eq!(info.model_path.as_deref(), Some("/m"));
        assert_eq!(info.disaggregation_bootstrap_port, Some(34000));
        assert_eq!(info.max_total_num_tokens, Some(20000));
        assert_eq!(info.max_running_requests, None);
        assert_eq!(info.version.as_deref(), Some("0.4.10.post2"));

        let nested = br#"{"server_args":{"model_path":"/m","max_running_requests":7},
            "internal_states":[{"memory_usage":{"token_capacity":5}}],"dp_size":"x"}"#;
        let info = EngineInfo::from_server_info(nested).unwrap();
        assert_eq!(info.model_path.as_deref(), Some("/m"));
        assert_eq!((info.max_running_requests, info.max_total_num_tokens), (Some(7), Some(5)));
        assert_eq!(info.dp_size, None);

        assert_eq!(EngineInfo::from_server_info(b"[]"), None);
        assert_eq!(EngineInfo::from_server_info(b"not found"), None);
        assert_eq!(EngineInfo::from_server_info(b"{}"), Some(EngineInfo::default()));
    }

    #[test]
    fn a_prefill_with_load_balance_method_auto_follows_the_room() {
        let info = |text: &str| EngineInfo::from_server_info(text.as_bytes()).unwrap();
        let auto = info(r#"{"load_balance_method":"auto","disaggregation_mode":"prefill"}"#);
        assert_eq!(auto.follow_bootstrap_room, Some(true));
        let robin =
            info(r#"{"load_balance_method":"round_robin","disaggregation_mode":"prefill"}"#);
        assert_eq!(robin.follow_bootstrap_room, Some(false));
    }

    #[test]
    fn both_registry_answer_formats_are_parsed() {
        let old =
            EngineInfo::from_route(br#"{"prefill_attn_tp_size":4,"prefill_dp_size":2}"#).unwrap();
        assert_eq!((old.dp_size, old.follow_bootstrap_room), (Some(2), Some(true)));
        let new =
            br#"{"attn_tp_size":4,"dp_size":1,"page_size":null,"follow_bootstrap_room":true}"#;
        assert_eq!(EngineInfo::from_route(new).unwrap().page_size, None);
        assert_eq!(EngineInfo::from_route(b"Missing inputs for bootstrap server."), None);
        let middle = br#"{"prefill_attn_tp_size":4,"prefill_dp_size":2,"prefill_page_size":64}"#;
        assert_eq!(EngineInfo::from_route(middle).unwrap().page_size, Some(64));
    }

    #[test]
    fn the_registry_query_depends_on_the_version() {
        for (version, want) in [
            ("0.4.10.post2", RouteParams::DpGroup),
            ("0.5.2", RouteParams::DpGroup),
            ("0.5.8", RouteParams::DpGroup),
            ("0.5.10", RouteParams::Ranks),
            ("0.5.12.post1", RouteParams::Ranks),
            ("1.0", RouteParams::Ranks),
            ("unknown", RouteParams::Ranks),
        ] {
            assert_eq!(RouteParams::of_version(version), want, "{version}");
        }
    }

    #[test]
    fn private_items_of_a_list_leave_no_gap() {
        let decode = Bytes::from_static(br#"{"internal_states":["a","b",{"n":1},"c"]}"#);
        let merged = server_info(&[], &[decode]);
        let raw = Raw::parse(&merged).unwrap();
        assert_eq!(raw.get("internal_states").unwrap().bytes(), br#"[{"n":1}]"#);
    }

    #[test]
    fn merged_server_info_always_has_an_internal_state() {
        let merged = server_info(&[], &[Bytes::from_static(b"oops")]);
        let raw = Raw::parse(&merged).unwrap();
        let state = raw.get("internal_states").unwrap().elements().next().unwrap();
        assert_eq!(state.get("last_gen_throughput").unwrap().bytes(), b"0.0");
        assert_eq!(raw.get("decode").unwrap().bytes(), b"[]");
    }
}
