//! [`EngineInfo`]: the fields of an engine's `/server_info` that pairing and admission use.

use serde::Serialize;

use super::Role;

/// What an engine reported about itself. `None` means that the field was not reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EngineInfo {
    pub model_path: Option<String>,
    pub served_model_name: Option<String>,
    pub kv_cache_dtype: Option<String>,
    /// Tokens per KV page.
    pub page_size: Option<u32>,
    pub max_running_requests: Option<u32>,
    pub max_total_num_tokens: Option<u64>,
    /// `prefill`, `decode` or `null`, as in `/server_info`.
    pub disaggregation_mode: Option<String>,
    pub disaggregation_bootstrap_port: Option<u16>,
    pub dp_size: Option<u32>,
    /// Whether the engine assigns a request to DP rank `bootstrap_room % dp_size`.
    pub follow_bootstrap_room: Option<bool>,
    /// Number of pipeline stages.
    pub pp_size: Option<u32>,
    /// When a decode reserves KV cache: as in `/server_info`, from 0.5.22 on. Prefill and decode must agree.
    pub decode_allocation_policy: Option<String>,
    /// Whether the engine may change its role while it runs (`/pd_role_switch`, from 0.5.21 on).
    pub role_switch: Option<bool>,
    /// The engine's version, for example `0.5.12.post1`.
    pub version: Option<String>,
}

impl EngineInfo {
    /// Whether one of the two engines can use the KV cache of the other: model, KV dtype, page size and
    /// decode allocation policy are equal. A field that one engine did not report does not separate them.
    pub fn is_compatible_with(&self, other: &EngineInfo) -> bool {
        fn agree<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
        }
        agree(&self.model_path, &other.model_path)
            && agree(&self.kv_cache_dtype, &other.kv_cache_dtype)
            && agree(&self.page_size, &other.page_size)
            && agree(&self.decode_allocation_policy, &other.decode_allocation_policy)
    }

    /// Whether all fields that decide compatibility are equal, unreported ones included.
    pub(super) fn has_same_compatibility_fields(&self, other: &EngineInfo) -> bool {
        self.model_path == other.model_path
            && self.kv_cache_dtype == other.kv_cache_dtype
            && self.page_size == other.page_size
            && self.decode_allocation_policy == other.decode_allocation_policy
            && self.served_model_name == other.served_model_name
    }

    /// Whether the engine runs in another role than `role`: `prefill`, `decode`, or neither.
    pub(super) fn contradicts(&self, role: Role) -> bool {
        let wanted = match role {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Unified => "null",
        };
        self.disaggregation_mode.as_deref().is_some_and(|mode| mode != wanted)
    }

    /// The role that the engine has taken by itself. `None` if it cannot change its role, or does not
    /// report it.
    pub fn switched_role(&self) -> Option<Role> {
        match self.disaggregation_mode.as_deref().filter(|_| self.role_switch == Some(true))? {
            "prefill" => Some(Role::Prefill),
            "decode" => Some(Role::Decode),
            _ => None,
        }
    }

    /// Whether this engine serves requests that name `model`.
    pub fn serves(&self, model: &str) -> bool {
        self.served_model_name.as_deref() == Some(model)
            || self.model_path.as_deref() == Some(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_page_size_is_incompatible_and_an_unreported_one_is_not() {
        let reported = EngineInfo { page_size: Some(64), ..EngineInfo::default() };
        let other = EngineInfo { page_size: Some(1), ..EngineInfo::default() };
        assert!(!reported.is_compatible_with(&other));
        assert!(reported.is_compatible_with(&EngineInfo::default()));
        assert!(reported.is_compatible_with(&reported));
    }

    #[test]
    fn decode_allocation_policies_must_be_equal_where_both_are_reported() {
        let of = |policy: &str| EngineInfo {
            decode_allocation_policy: Some(policy.to_owned()),
            ..EngineInfo::default()
        };
        assert!(!of("prefill_complete").is_compatible_with(&of("default")));
        assert!(of("prefill_complete").is_compatible_with(&of("prefill_complete")));
        assert!(of("prefill_complete").is_compatible_with(&EngineInfo::default()));
    }

    #[test]
    fn only_an_engine_with_role_switch_takes_a_role_of_its_own() {
        let info = |mode: &str, role_switch| EngineInfo {
            disaggregation_mode: Some(mode.to_owned()),
            role_switch,
            ..EngineInfo::default()
        };
        assert_eq!(info("decode", Some(true)).switched_role(), Some(Role::Decode));
        assert_eq!(info("null", Some(true)).switched_role(), None);
        assert_eq!(info("decode", Some(false)).switched_role(), None);
        assert_eq!(info("decode", None).switched_role(), None);
    }
}
