//! The shape of a prompt: single or a batch, and its size.

use std::ops::Range;

use super::json::{JsonType, Raw, ValueShape};
use super::{Endpoint, Invalid};

/// The size that one image, audio or video counts, whatever the size of its encoding: about a
/// thousand tokens.
const MEDIA_BYTES: usize = 4096;
/// The depth of a conversation with an image, audio or video, at least: `[{"content":[{..}]}]`. A long
/// conversation of text alone need not be searched for them.
const MEDIA_DEPTH: usize = 4;

/// The shape of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PromptShape {
    /// Number of prompts, if the request is a batch.
    pub(super) batch: Option<usize>,
    /// Bytes of text, or four times the number of token ids.
    pub(super) bytes: usize,
}

/// A field that can contain a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct PromptField<'a> {
    pub(super) raw: Raw<'a>,
    pub(super) shape: ValueShape,
}

impl PromptField<'_> {
    fn is_set(&self) -> bool {
        !self.raw.is_null()
    }
}

/// The fields that can contain a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PromptFields<'a> {
    /// `messages`, `prompt`, `text` or `input`.
    pub(super) main: Option<PromptField<'a>>,
    /// `system` or `instructions`.
    pub(super) preamble: Option<PromptField<'a>>,
    pub(super) input_ids: Option<PromptField<'a>>,
    pub(super) input_embeds: Option<PromptField<'a>>,
    /// `session_params`, whose history may be the whole prompt of `/generate`.
    pub(super) session: bool,
}

impl PromptFields<'_> {
    /// The byte ranges of preamble and prompt in the body.
    pub(super) fn places(&self, body: &[u8]) -> [Range<usize>; 2] {
        let start = body.as_ptr() as usize;
        let main = self.main.filter(PromptField::is_set).or(self.input_ids);
        [self.preamble, main].map(|field| {
            field.map_or(0..0, |PromptField { raw, .. }| {
                let from = raw.bytes().as_ptr() as usize - start;
                from..from + raw.bytes().len()
            })
        })
    }
}

impl PromptShape {
    pub(super) fn read(
        endpoint: Endpoint,
        fields: &PromptFields<'_>,
    ) -> Result<PromptShape, Invalid> {
        let main = fields.main.filter(PromptField::is_set);
        let ids = fields.input_ids.filter(PromptField::is_set);
        let embeds = fields.input_embeds.filter(PromptField::is_set);
        match endpoint {
            Endpoint::Completions => main.map_or(Ok(PromptShape::default()), completion_prompt),
            // The order of precedence of the engine.
            Endpoint::Generate => match (main, ids, embeds) {
                (Some(texts), _, _) => text(texts),
                (_, Some(ids), _) => token_ids(ids, fields.session),
                (_, _, Some(rows)) => embeddings(rows),
                _ => Ok(PromptShape::default()),
            },
            Endpoint::Chat | Endpoint::Responses | Endpoint::Messages => {
                let bytes = match ids {
                    Some(ids) if endpoint == Endpoint::Chat => 4 * numbers(ids.raw),
                    _ => {
                        let parts = [main, fields.preamble];
                        parts.into_iter().flatten().map(conversation_bytes).sum()
                    }
                };
                Ok(PromptShape { batch: None, bytes })
            }
        }
    }
}

/// A string, `[..strings]`, `[..ints]` (one prompt) or `[[..ints]]`.
///
/// The engine also reads strings and booleans as token ids, if not all elements are strings:
/// `["1", 2]` and `[true, 2]` are one prompt. What it cannot read as one of these it refuses.
fn completion_prompt(PromptField { raw, shape }: PromptField<'_>) -> Result<PromptShape, Invalid> {
    if raw.kind() != JsonType::Array {
        return Ok(PromptShape { batch: None, bytes: text_bytes(raw) });
    }
    Ok(match first(raw) {
        None => return Err(Invalid::field("prompt", "must not be an empty list")),
        Some(JsonType::Number) => PromptShape { batch: None, bytes: 4 * numbers(raw) },
        Some(JsonType::Array) => {
            PromptShape { batch: Some(shape.children), bytes: 4 * numbers(raw) }
        }
        Some(JsonType::String) if raw.elements().all(|one| one.kind() == JsonType::String) => {
            PromptShape { batch: Some(shape.children), bytes: text_bytes(raw) }
        }
        Some(_) => PromptShape { batch: None, bytes: 4 * numbers(raw) },
    })
}

/// `/generate` treats every list of texts as a batch.
fn text(PromptField { raw, shape }: PromptField<'_>) -> Result<PromptShape, Invalid> {
    match raw.kind() {
        JsonType::Array if shape.children == 0 => {
            Err(Invalid::field("text", "must not be an empty list"))
        }
        JsonType::Array => Ok(PromptShape { batch: Some(shape.children), bytes: text_bytes(raw) }),
        _ => Ok(PromptShape { batch: None, bytes: text_bytes(raw) }),
    }
}

fn token_ids(
    PromptField { raw, shape }: PromptField<'_>,
    session: bool,
) -> Result<PromptShape, Invalid> {
    let bytes = 4 * numbers(raw);
    match first(raw) {
        None if session => Ok(PromptShape { batch: None, bytes: 0 }),
        None => Err(Invalid::field("input_ids", "must not be an empty list")),
        Some(JsonType::Array) => Ok(PromptShape { batch: Some(shape.children), bytes }),
        Some(_) => Ok(PromptShape { batch: None, bytes }),
    }
}

/// `[[..floats]]` is one prompt, `[[[..floats]]]` a batch. One row of floats is one token.
fn embeddings(PromptField { raw, shape }: PromptField<'_>) -> Result<PromptShape, Invalid> {
    let Some(row) = raw.elements().next() else {
        return Err(Invalid::field("input_embeds", "must not be an empty list"));
    };
    if first(row) != Some(JsonType::Array) {
        return Ok(PromptShape { batch: None, bytes: 4 * shape.children });
    }
    let rows: usize = raw.elements().map(|prompt| prompt.elements().count()).sum();
    Ok(PromptShape { batch: Some(shape.children), bytes: 4 * rows })
}

/// The text size of a conversation. Each embedded image, audio or video counts [`MEDIA_BYTES`],
/// because a megabyte of base64 is far less than a quarter of a million tokens.
fn conversation_bytes(PromptField { raw, shape }: PromptField<'_>) -> usize {
    let len = text_bytes(raw);
    let encoded = |sign: &[u8]| memchr::memmem::find(raw.bytes(), sign).is_some();
    if len <= MEDIA_BYTES
        || shape.depth < MEDIA_DEPTH
        || !(encoded(b"base64") || encoded(b"input_audio"))
    {
        return len;
    }
    let parts = raw.elements().filter_map(|turn| turn.get("content")).flat_map(Raw::elements);
    let media = parts.filter(|part| {
        let kind = part.get("type").and_then(Raw::as_str).unwrap_or_default();
        ["image", "audio", "video"].iter().any(|media| kind.contains(media))
    });
    let excess: usize = media.map(|part| part.bytes().len().saturating_sub(MEDIA_BYTES)).sum();
    len.saturating_sub(excess)
}

fn first(array: Raw<'_>) -> Option<JsonType> {
    array.elements().next().map(Raw::kind)
}

/// The number of numbers in an array (of arrays), none of which is empty.
fn numbers(raw: Raw<'_>) -> usize {
    memchr::memchr_iter(b',', raw.bytes()).count() + 1
}

/// The length of a string without its quotes, or of the JSON text of any other value.
fn text_bytes(raw: Raw<'_>) -> usize {
    let len = raw.bytes().len();
    if raw.kind() == JsonType::String { len.saturating_sub(2) } else { len }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_prompts_are_one_prompt() {
        let batch = |text: &str| {
            let raw = Raw::parse(text.as_bytes()).unwrap();
            let shape = ValueShape { children: raw.elements().count(), depth: 1 };
            completion_prompt(PromptField { raw, shape }).unwrap().batch
        };
        for one in [r#"["1",2]"#, "[true,2]", r#"["1",true]"#, r#"[1,"2"]"#, "[1.0,2]", "[5]"] {
            assert_eq!(batch(one), None, "{one}");
        }
        for two in [r#"["1","2"]"#, r#"["a","b"]"#, "[[1],[2]]", r#"[["1",2],[true]]"#] {
            assert_eq!(batch(two), Some(2), "{two}");
        }
        assert_eq!(batch(r#"["1"]"#), Some(1));
    }
}
