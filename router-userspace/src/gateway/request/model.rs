//! The model that a request names: whether its pool serves it.

use std::borrow::Cow;

use router_core::fleet::{Member, ModelError, Pool};
use router_core::sglang::Invalid;

use super::reject::Reject;
use crate::gateway::shared::Gateway;

impl Gateway {
    /// Checks that engines of the pool serve the model that a request names.
    ///
    /// # Errors
    /// 404 for a model of no engine; 400 for a request that names none in a pool of several.
    pub(crate) fn check_model(&self, pool: &Pool, model: Option<&str>) -> Result<(), Reject> {
        match pool.check_model(model, self.settings.strict_models) {
            Ok(()) => Ok(()),
            Err(ModelError::Unknown) => {
                Err(Reject::ModelNotFound(model.unwrap_or_default().to_owned()))
            }
            Err(ModelError::Missing) => Err(Reject::model_required()),
        }
    }
}

impl Reject {
    /// The pool has several models, and the request names none.
    pub(crate) fn model_required() -> Reject {
        Reject::Invalid(Invalid {
            message: "'model' is required and must be a string: this pool serves several models"
                .to_owned(),
            param: Some("model"),
        })
    }
}

/// The name in `/v1/models/NAME`, percent-decoded as the engine decodes it: what is no escape stays,
/// and bytes that are not UTF-8 are replaced.
pub(crate) fn name_in_path(path: &str) -> Option<Cow<'_, str>> {
    let name = path.strip_prefix("/v1/models/")?;
    if !name.contains('%') {
        return Some(name.into());
    }
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [byte, after @ ..] = rest {
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    Some(String::from_utf8_lossy(&out).into_owned().into())
}

/// The members that serve `model`.
pub(super) fn serving<'p>(
    pool: &'p Pool,
    model: Option<&'p str>,
) -> impl Iterator<Item = &'p Member> {
    let all = pool
        .serving(model)
        .flat_map(|set| set.prefill.iter().chain(&set.decode).chain(&set.unified));
    all.map(|&id| &pool.members[id])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_path_is_percent_decoded() {
        for (path, name) in [
            ("/v1/models/m", "m"),
            ("/v1/models//models/Qwen", "/models/Qwen"),
            ("/v1/models/%2Fmodels%2fQwen3-32B", "/models/Qwen3-32B"),
            ("/v1/models/a%3Alora%20x", "a:lora x"),
            ("/v1/models/100%", "100%"),
            ("/v1/models/%zz%4", "%zz%4"),
        ] {
            assert_eq!(name_in_path(path).as_deref(), Some(name), "{path}");
        }
        assert_eq!(name_in_path("/model_info"), None);
    }
}
