//! Which engines of a pool serve the model that a request names.

use super::{CompatibleSet, Pool};

/// Why no engine of a pool is the right one for the model of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelError {
    /// The request names no model, and the pool has several.
    Missing,
    /// The pool serves other models.
    Unknown,
}

/// The sets of a pool that serve a request.
#[derive(Clone, Copy)]
enum Serving<'a> {
    All,
    /// The sets that have this name.
    Named(&'a str),
    None,
}

impl Serving<'_> {
    fn includes(self, set: &CompatibleSet) -> bool {
        match self {
            Serving::All => true,
            Serving::Named(name) => set.has_name(name),
            Serving::None => false,
        }
    }
}

impl CompatibleSet {
    fn has_name(&self, name: &str) -> bool {
        self.models.iter().any(|known| **known == *name)
    }
}

impl Pool {
    /// Returns the sets that serve `model`.
    ///
    /// A pool of one model serves every name and requests without a name, since the engine ignores it.
    /// In a pool of several models an unknown name, or none, has no set. `NAME:ADAPTER` names an
    /// adapter of the engines of NAME.
    pub fn serving<'a>(
        &'a self,
        model: Option<&'a str>,
    ) -> impl Iterator<Item = &'a CompatibleSet> + 'a {
        let serving = self.find_model(model);
        self.compatible_sets.iter().filter(move |set| serving.includes(set))
    }

    /// Checks that engines of the pool serve `model`. A pool without engines passes.
    ///
    /// `strict`: a pool of one model does not serve other names either. Names that its engines have
    /// not reported yet are not refused.
    ///
    /// # Errors
    /// The name is unknown, or is missing where the pool has several models.
    pub fn check_model(&self, model: Option<&str>, strict: bool) -> Result<(), ModelError> {
        let is_unreported = self.compatible_sets.iter().any(|set| set.models.is_empty());
        match (self.find_model(model), model) {
            _ if self.compatible_sets.is_empty() => Ok(()),
            (Serving::None, None) => Err(ModelError::Missing),
            (Serving::None, Some(_)) => Err(ModelError::Unknown),
            (_, Some(name)) if strict && !is_unreported && self.served_name(name).is_none() => {
                Err(ModelError::Unknown)
            }
            _ => Ok(()),
        }
    }

    fn find_model<'a>(&'a self, model: Option<&str>) -> Serving<'a> {
        if self.compatible_sets.len() <= 1 {
            return Serving::All;
        }
        match model.and_then(|name| self.served_name(name)) {
            Some(name) => Serving::Named(name),
            None if self.has_one_model() => Serving::All,
            None => Serving::None,
        }
    }

    /// Whether all engines share a name. During a rollout they may differ in other names, such as
    /// the path of the weights.
    fn has_one_model(&self) -> bool {
        let Some((first, rest)) = self.compatible_sets.split_first() else { return true };
        let is_common = |name: &str| rest.iter().all(|set| set.has_name(name));
        first.models.iter().any(|name| is_common(name))
            || self.compatible_sets.iter().all(|set| set.models.is_empty())
    }

    /// The name of an engine that `model` stands for: the name itself, or the longest that is
    /// followed by `:ADAPTER`. A name may contain colons.
    fn served_name(&self, model: &str) -> Option<&str> {
        let names = || self.compatible_sets.iter().flat_map(|set| &set.models).map(|name| &**name);
        let is_base = |name: &&str| {
            let adapter = model.strip_prefix(*name).and_then(|rest| rest.strip_prefix(':'));
            adapter.is_some_and(|adapter| !adapter.is_empty())
        };
        let exact = names().find(|name| *name == model);
        exact.or_else(|| names().filter(is_base).max_by_key(|name| name.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::tests::member;
    use super::super::{EngineInfo, ObjectName, Profile, Role};
    use super::*;

    fn pool(models: &[(&str, &str)]) -> Pool {
        let engine = |(path, served): &(&str, &str)| {
            let info = EngineInfo {
                model_path: Some((*path).to_owned()),
                served_model_name: Some((*served).to_owned()),
                ..EngineInfo::default()
            };
            member(path, Role::Unified, Some(info))
        };
        let name = ObjectName { namespace: "default".into(), name: "pool".into() };
        Pool::new(name, Profile::Single, models.iter().map(engine).collect())
    }

    fn found(pool: &Pool, model: Option<&str>) -> Vec<usize> {
        pool.serving(model).flat_map(|set| set.unified.clone()).collect()
    }

    #[test]
    fn an_adapter_reaches_the_engines_of_its_base() {
        let pool = pool(&[("/m/a", "gpt"), ("/m/b", "gpt:120b"), ("s3://m/c", "c")]);
        assert_eq!(found(&pool, Some("gpt:lora")), [0]);
        assert_eq!(found(&pool, Some("gpt:120b")), [1]);
        assert_eq!(found(&pool, Some("gpt:120b:lora")), [1], "the longest name");
        assert_eq!(found(&pool, Some("s3://m/c:x")), [2]);
        for unknown in ["gpt:", "gp", "gptx", "lora", ""] {
            assert!(found(&pool, Some(unknown)).is_empty(), "{unknown}");
            assert_eq!(pool.check_model(Some(unknown), false), Err(ModelError::Unknown));
        }
    }

    #[test]
    fn a_name_is_required_in_a_pool_of_several_models() {
        let several = pool(&[("/m/a", "a"), ("/m/b", "b")]);
        assert!(found(&several, None).is_empty());
        assert_eq!(several.check_model(None, false), Err(ModelError::Missing));
        assert_eq!(several.check_model(Some("b"), true), Ok(()));
        assert_eq!(pool(&[]).check_model(None, true), Ok(()), "no engine is known");
    }

    #[test]
    fn a_pool_of_one_model_refuses_other_names_only_if_strict() {
        let one = pool(&[("/m/a", "a")]);
        for (name, strict) in [("other", Err(ModelError::Unknown)), ("a", Ok(())), ("a:x", Ok(()))]
        {
            assert_eq!(one.check_model(Some(name), false), Ok(()), "{name}");
            assert_eq!(one.check_model(Some(name), true), strict, "{name}");
        }
        assert_eq!(one.check_model(None, true), Ok(()));
    }

    #[test]
    fn new_weights_under_the_same_name_are_one_model() {
        let rollout = pool(&[("/m/a-v1", "a"), ("/m/a-v2", "a")]);
        assert_eq!(found(&rollout, None), [0, 1]);
        assert_eq!(found(&rollout, Some("any")), [0, 1]);
        assert_eq!(found(&rollout, Some("/m/a-v2")), [1]);
    }
}
