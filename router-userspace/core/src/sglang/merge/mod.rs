//! Merges n single-sample answers into the answer that one engine would give for n samples.
//!
//! The order is that of the engine, by prompt, then by sample: sample `k` of prompt `i` has index
//! `i * n + k`. Parts are copied as bytes, so every choice stays as the engine wrote it.

mod stream;
mod usage;

pub use stream::StreamMerger;

use bytes::Bytes;

use super::Endpoint;
use super::json::{JsonType, Patch, Raw};

/// An engine's answer does not have the format of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an engine's answer is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// Merges the answers to `samples` single-sample requests, in order of the samples.
///
/// `batch` is [`Request::batch`](super::Request::batch). Id, time and model are those of the first
/// answer. Completion tokens are summed, prompt tokens count once.
///
/// ```
/// use bytes::Bytes;
/// use router_core::sglang::{Endpoint, merge};
///
/// let part = |text: &str| Bytes::from(format!(
///     r#"{{"id":"{text}","choices":[{{"index":0,"text":"{text}"}}],"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}}}"#
/// ));
/// assert_eq!(
///     merge::json(Endpoint::Completions, 2, None, &[part("a"), part("b")]).unwrap(),
///     concat!(
///         r#"{"id":"a","choices":[{"index":0,"text":"a"},{"index":1,"text":"b"}],"#,
///         r#""usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#,
///     ),
/// );
/// ```
pub fn json(
    endpoint: Endpoint,
    samples: u32,
    batch: Option<usize>,
    parts: &[Bytes],
) -> Result<Bytes, Malformed> {
    let [first, ..] = parts else { return Err(Malformed("no answer")) };
    if parts.len() != samples as usize {
        return Err(Malformed("a missing sample"));
    }
    if parts.len() == 1 {
        return Ok(first.clone());
    }
    let raws: Vec<Raw<'_>> = parts
        .iter()
        .map(|part| Raw::parse(part).map_err(|_| Malformed("not JSON")))
        .collect::<Result<_, _>>()?;
    match endpoint {
        Endpoint::Generate => generate(batch, &raws),
        _ => choices(batch, &raws),
    }
}

/// `/generate` returns an array if there is more than one sequence.
fn generate(batch: Option<usize>, parts: &[Raw<'_>]) -> Result<Bytes, Malformed> {
    let rows: Vec<Vec<Raw<'_>>> = parts
        .iter()
        .map(|part| match (batch, part.kind()) {
            (None, JsonType::Object) => Ok(vec![*part]),
            (Some(len), JsonType::Array) => sized(part.elements().collect(), len),
            _ => Err(Malformed("not one answer per prompt")),
        })
        .collect::<Result<_, _>>()?;
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.bytes().len() + 1).sum());
    interleave(&rows, &mut out, |raw, _, out| {
        out.extend_from_slice(raw.bytes());
        Ok(())
    })?;
    Ok(out.into())
}

fn choices(batch: Option<usize>, parts: &[Raw<'_>]) -> Result<Bytes, Malformed> {
    let rows: Vec<Vec<Raw<'_>>> = parts
        .iter()
        .map(|part| {
            let choices = part.get("choices").ok_or(Malformed("no choices"))?;
            sized(choices.elements().collect(), batch.unwrap_or(1))
        })
        .collect::<Result<_, _>>()?;
    let first = parts[0];
    let mut array = Vec::new();
    interleave(&rows, &mut array, |choice, index, out| {
        let old = choice.get("index").ok_or(Malformed("a choice without an index"))?;
        let mut patch = Patch::new(choice);
        patch.replace(old, decimal(index));
        patch.write(out);
        Ok(())
    })?;
    let mut patch = Patch::new(first);
    let old = first.get("choices").ok_or(Malformed("no choices"))?;
    patch.replace(old, array);
    if let Some(old) = first.get("usage") {
        let usages: Vec<Raw<'_>> = parts.iter().filter_map(|part| part.get("usage")).collect();
        patch.replace(old, usage::merge(&usages));
    }
    extension(first, parts, &mut patch);
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.bytes().len()).sum());
    patch.write(&mut out);
    Ok(out.into())
}

/// Writes an array of the rows' items, by prompt, then by sample.
fn interleave<'a>(
    rows: &[Vec<Raw<'a>>],
    out: &mut Vec<u8>,
    mut write: impl FnMut(Raw<'a>, usize, &mut Vec<u8>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    out.push(b'[');
    let mut index = 0;
    for prompt in 0..rows.first().map_or(0, Vec::len) {
        for row in rows {
            if index > 0 {
                out.push(b',');
            }
            write(row[prompt], index, out)?;
            index += 1;
        }
    }
    out.push(b']');
    Ok(())
}

fn sized(row: Vec<Raw<'_>>, len: usize) -> Result<Vec<Raw<'_>>, Malformed> {
    if row.len() == len { Ok(row) } else { Err(Malformed("not one answer per prompt")) }
}

/// Merges SGLang's `sglext`: the first answer's, with the output ids and speculation figures of
/// all.
fn extension<'a>(first: Raw<'a>, parts: &[Raw<'a>], patch: &mut Patch<'a>) {
    let Some(extension) = first.get("sglext") else { return };
    let all = |key: &'static str| {
        parts.iter().filter_map(move |part| part.get("sglext")?.get(key).filter(|v| !v.is_null()))
    };
    if let Some(old) = extension.get("output_ids") {
        patch.replace(old, array(all("output_ids").flat_map(|ids| ids.elements())));
    }
    if let Some(old) = extension.get("spec_tokens_details") {
        patch.replace(old, array(all("spec_tokens_details")));
    }
}

fn array<'a>(items: impl Iterator<Item = Raw<'a>>) -> Vec<u8> {
    let mut out = vec![b'['];
    for item in items {
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(item.bytes());
    }
    out.push(b']');
    out
}

fn decimal(number: impl itoa::Integer) -> Vec<u8> {
    itoa::Buffer::new().format(number).as_bytes().to_vec()
}

#[cfg(test)]
mod tests;
