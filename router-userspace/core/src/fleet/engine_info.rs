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
    /// The engine's version, for example `0.5.12.post1`.
    pub version: Option<String>,
}

impl EngineInfo {
    /// Whether one of the two engines can use the KV cache of the other: model, KV dtype and page size
    /// are equal. A field that one engine did not report does not separate them.
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
    }

    /// Whether all fields that decide compatibility are equal, unreported ones included.
    pub(super) fn has_same_compatibility_fields(&self, other: &EngineInfo) -> bool {
        self.model_path == other.model_path
            && self.kv_cache_dtype == other.kv_cache_dtype
            && self.page_size == other.page_size
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
}
