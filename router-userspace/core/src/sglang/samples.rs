//! `n`: the requested number of samples per prompt.

use super::Invalid;
use super::json::{JsonType, Raw};

/// Maximum `n`.
pub const MAX_SAMPLES: u32 = 128;

/// Maximum number of sequences per request: prompts of a batch times samples.
pub const MAX_SEQUENCES: usize = 8192;

/// Parses a number of samples, more strictly than the engine: the engine would accept `"2"` and
/// `2.0` and then hang.
pub(super) fn count(param: &'static str, value: Raw<'_>) -> Result<Option<u32>, Invalid> {
    if value.is_null() {
        return Ok(None);
    }
    match value.as_u64() {
        Some(0) => Err(Invalid::field(param, "must be at least 1")),
        Some(n) if n <= u64::from(MAX_SAMPLES) => Ok(Some(n as u32)),
        Some(_) => Err(Invalid::field(param, &format!("must be at most {MAX_SAMPLES}"))),
        None => Err(Invalid::field(param, "must be a positive integer")),
    }
}

/// The number of samples in `/generate`'s `sampling_params`, an object or a list with one per
/// prompt.
///
/// A beam search returns n sequences of one search, so it is one request.
pub(super) fn of_sampling_params(params: Raw<'_>) -> Result<u32, Invalid> {
    let mut agreed = None;
    for one in sets(params) {
        let n = match one.get("n") {
            Some(n) => count("sampling_params.n", n)?.unwrap_or(1),
            None => 1,
        };
        if agreed.is_some_and(|agreed| agreed != n) {
            return Err(Invalid::field("sampling_params.n", "must be the same for all prompts"));
        }
        agreed = Some(n);
    }
    let beam = sets(params).next().and_then(|one| one.get("beam_width"));
    match beam.and_then(Raw::as_u64) {
        Some(width) if width > 1 => Ok(1),
        _ => Ok(agreed.unwrap_or(1)),
    }
}

/// The object itself, or the elements of a list.
pub(super) fn sets<'a>(params: Raw<'a>) -> impl Iterator<Item = Raw<'a>> {
    let single = (params.kind() == JsonType::Object).then_some(params);
    single.into_iter().chain(params.elements())
}
