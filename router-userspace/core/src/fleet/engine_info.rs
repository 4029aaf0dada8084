//! [`EngineInfo`]: what an engine says of itself, as far as pairing and admission read it.

use serde::Serialize;

/// What one engine reported of itself. `None` is "not told", never a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EngineInfo {
    pub model_path: Option<String>,
    pub served_model_name: Option<String>,
    pub kv_cache_dtype: Option<String>,
    /// Tokens a KV page.
    pub page_size: Option<u32>,
    pub max_running_requests: Option<u32>,
    pub max_total_num_tokens: Option<u64>,
    /// `prefill`, `decode` or `null`, as `/server_info` spells it.
    pub disaggregation_mode: Option<String>,
    pub disaggregation_bootstrap_port: Option<u16>,
    pub dp_size: Option<u32>,
    /// Whether prefill spreads requests over its DP ranks by `room % dp_size`.
    pub follow_bootstrap_room: Option<bool>,
    /// The engine's version, for example `0.5.12.post1`.
    pub version: Option<String>,
}

impl EngineInfo {
    /// Whether KV computed by one of the two engines can be used by the other: same model,
    /// KV dtype and page size. What either did not tell does not separate them.
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

    /// Whether everything that decides about fitting is the same, what was not told included.
    pub(super) fn same_kind(&self, other: &EngineInfo) -> bool {
        self.model_path == other.model_path
            && self.kv_cache_dtype == other.kv_cache_dtype
            && self.page_size == other.page_size
            && self.served_model_name == other.served_model_name
    }

    /// Whether a request that names `model` means this engine.
    pub fn serves(&self, model: &str) -> bool {
        self.served_model_name.as_deref() == Some(model)
            || self.model_path.as_deref() == Some(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_page_size_does_not_fit_and_silence_does() {
        let told = EngineInfo { page_size: Some(64), ..EngineInfo::default() };
        let other = EngineInfo { page_size: Some(1), ..EngineInfo::default() };
        assert!(!told.is_compatible_with(&other));
        assert!(told.is_compatible_with(&EngineInfo::default()));
        assert!(told.is_compatible_with(&told));
    }
}
