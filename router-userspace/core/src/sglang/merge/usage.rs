//! Merges the `usage` of n samples of the same prompts.

use super::super::json::{JsonType, Patch, Raw};
use super::decimal;

/// Prompt tokens and their details count once; completion tokens are summed.
pub(super) fn merge(usages: &[Raw<'_>]) -> Vec<u8> {
    let Some(&first) = usages.iter().find(|usage| usage.kind() == JsonType::Object) else {
        return b"null".to_vec();
    };
    let mut patch = Patch::new(first);
    let completion = sum(usages, "completion_tokens");
    for key in ["completion_tokens", "reasoning_tokens"] {
        if let (Some(old), Some(total)) = (first.get(key), sum(usages, key)) {
            patch.replace(old, decimal(total));
        }
    }
    let prompt = first.get("prompt_tokens").and_then(Raw::as_u64);
    if let (Some(old), Some(prompt), Some(completion)) =
        (first.get("total_tokens"), prompt, completion)
    {
        patch.replace(old, decimal(prompt.saturating_add(completion)));
    }
    let key = "completion_tokens_details";
    let details: Vec<Raw<'_>> = usages
        .iter()
        .filter_map(|usage| usage.get(key).filter(|d| d.kind() == JsonType::Object))
        .collect();
    if let Some(&template) = details.first() {
        let merged = sums(template, &details);
        match first.get(key) {
            Some(old) => patch.replace(old, merged),
            None => patch.append(first, key, &merged),
        }
    }
    let mut out = Vec::new();
    patch.write(&mut out);
    out
}

/// The object with each count summed over all objects.
fn sums(template: Raw<'_>, all: &[Raw<'_>]) -> Vec<u8> {
    let mut patch = Patch::new(template);
    for member in template.members() {
        let Some(key) = member.key.as_str() else { continue };
        if member.value.as_u64().is_some()
            && let Some(total) = sum(all, &key)
        {
            patch.replace(member.value, decimal(total));
        }
    }
    let mut out = Vec::new();
    patch.write(&mut out);
    out
}

fn sum(objects: &[Raw<'_>], key: &str) -> Option<u64> {
    objects
        .iter()
        .filter_map(|object| object.get(key)?.as_u64())
        .reduce(|total, count| total.saturating_add(count))
}
