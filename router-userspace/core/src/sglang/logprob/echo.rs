//! Logprobs of the prompt in answers of `/v1/completions` with `echo` and `logprobs`.

use bytes::Bytes;

use super::super::json::{JsonType, Patch, Raw};
use super::super::merge::Malformed;
use super::super::sse;

/// Lists of `choices[].logprobs` with one entry per token.
const LISTS: [&str; 4] = ["text_offset", "token_logprobs", "tokens", "top_logprobs"];

/// The prompt's part of `choices[].logprobs` of prefill's answer, for each choice.
///
/// Prefill's lists have the prompt's tokens and then the token that prefill computed itself, which
/// decode's answer has as well. Decode's lists have no token of the prompt.
///
/// ```
/// use bytes::Bytes;
/// use router_core::sglang::logprob::EchoLogprobs;
///
/// let prefill = Bytes::from_static(
///     br#"{"choices":[{"index":0,"logprobs":{"tokens":["a","b"],"token_logprobs":[null,-1.50]}}]}"#,
/// );
/// let decode = br#"{"choices":[{"index":0,"logprobs":{"tokens":["b"],"token_logprobs":[-1.5]}}]}"#;
/// assert_eq!(
///     EchoLogprobs::from_prefill(&prefill).unwrap().merge_json(decode).unwrap(),
///     r#"{"choices":[{"index":0,"logprobs":{"tokens":["a","b"],"token_logprobs":[null,-1.5]}}]}"#,
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoLogprobs {
    choices: Vec<ChoicePrompt>,
}

/// The prompt's entries of one choice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ChoicePrompt {
    index: u64,
    /// The entries of each of [`LISTS`], separated by commas.
    entries: [Bytes; LISTS.len()],
    /// An event of the stream has them already.
    is_sent: bool,
}

impl EchoLogprobs {
    /// Reads prefill's answer, which is never streamed, and shares its allocation.
    pub fn from_prefill(body: &Bytes) -> Result<EchoLogprobs, Malformed> {
        let raw = Raw::parse(body).map_err(|_| Malformed("prefill's answer is not JSON"))?;
        let choices = raw.get("choices").ok_or(Malformed("prefill's answer has no choices"))?;
        let count = choices.elements().count() as u64;
        let computed = raw.get("usage").and_then(|usage| usage.get("completion_tokens"));
        // Prefill computes one token for each choice, unless it says otherwise.
        let computed = computed.and_then(Raw::as_u64).filter(|all| count > 0 && all % count == 0);
        let computed = computed.map_or(1, |all| usize::try_from(all / count).unwrap_or(usize::MAX));
        let choices = choices.elements().enumerate().map(|(at, choice)| {
            let logprobs = choice.get("logprobs");
            let list = |name| logprobs.and_then(|logprobs| logprobs.get(name));
            let length = list("tokens").map_or(0, |tokens| tokens.elements().count());
            let prompt = length.saturating_sub(computed);
            ChoicePrompt {
                index: choice.get("index").and_then(Raw::as_u64).unwrap_or(at as u64),
                entries: LISTS.map(|name| {
                    list(name).map_or_else(Bytes::new, |list| first_entries(body, list, prompt))
                }),
                is_sent: false,
            }
        });
        Ok(EchoLogprobs { choices: choices.collect() })
    }

    /// Decode's complete answer with the prompt's logprobs in front of the output's.
    pub fn merge_json(&self, decode: &[u8]) -> Result<Bytes, Malformed> {
        let raw = Raw::parse(decode).map_err(|_| Malformed("decode's answer is not JSON"))?;
        let choices = raw.get("choices").ok_or(Malformed("decode's answer has no choices"))?;
        if choices.elements().count() != self.choices.len() {
            return Err(Malformed("prefill and decode differ in the number of choices"));
        }
        let mut patch = Patch::new(raw);
        for (at, choice) in choices.elements().enumerate() {
            let index = choice.get("index").and_then(Raw::as_u64).unwrap_or(at as u64);
            if let Some(prompt) = self.choices.iter().find(|prompt| prompt.index == index) {
                prompt.insert(choice, &mut patch);
            }
        }
        let mut out = Vec::with_capacity(decode.len() + self.size());
        patch.write(&mut out);
        Ok(out.into())
    }

    /// One event of decode's stream. The first event of a choice that has logprobs gets the
    /// prompt's in front; all others are returned unchanged.
    pub fn merge_event(&mut self, event: Bytes) -> Bytes {
        if self.choices.iter().all(|prompt| prompt.is_sent) {
            return event;
        }
        let Some(data) = sse::data(&event) else { return event };
        let Ok(raw) = Raw::parse(&data) else { return event };
        let mut patch = Patch::new(raw);
        let mut is_changed = false;
        for choice in raw.get("choices").into_iter().flat_map(Raw::elements) {
            let index = choice.get("index").and_then(Raw::as_u64).unwrap_or(0);
            let prompt = self.choices.iter_mut().find(|prompt| prompt.index == index);
            if let Some(prompt) = prompt.filter(|prompt| !prompt.is_sent)
                && prompt.insert(choice, &mut patch)
            {
                (prompt.is_sent, is_changed) = (true, true);
            }
        }
        if !is_changed {
            return event;
        }
        let mut out = Vec::with_capacity(data.len() + self.size());
        patch.write(&mut out);
        sse::with_data(&event, &out).into()
    }

    fn size(&self) -> usize {
        self.choices.iter().flat_map(|prompt| &prompt.entries).map(|list| list.len() + 1).sum()
    }
}

impl ChoicePrompt {
    /// Inserts the entries into a choice of decode. Returns whether the choice has logprobs.
    fn insert<'a>(&self, choice: Raw<'a>, patch: &mut Patch<'a>) -> bool {
        let logprobs = choice.get("logprobs").filter(|raw| raw.kind() == JsonType::Object);
        let Some(logprobs) = logprobs else { return false };
        for (name, entries) in LISTS.iter().zip(&self.entries) {
            let list = logprobs.get(name).filter(|list| list.kind() == JsonType::Array);
            let Some(list) = list.filter(|_| !entries.is_empty()) else { continue };
            let rest = list.bytes().strip_prefix(b"[").unwrap_or_default();
            let comma: &[u8] = if list.elements().next().is_some() { b"," } else { b"" };
            patch.replace(list, [b"[", &entries[..], comma, rest].concat());
        }
        true
    }
}

/// The text of the first `count` entries of a list, without brackets.
fn first_entries(body: &Bytes, list: Raw<'_>, count: usize) -> Bytes {
    let mut entries = list.elements().take(count);
    let Some(first) = entries.next() else { return Bytes::new() };
    let last = entries.last().unwrap_or(first);
    let (start, end) = (list.range_of(first).start, list.range_of(last).end);
    body.slice_ref(&list.bytes()[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefill(body: &'static str) -> EchoLogprobs {
        EchoLogprobs::from_prefill(&Bytes::from_static(body.as_bytes())).unwrap()
    }

    const TWO_PROMPTS: &str = concat!(
        r#"{"choices":[{"index":0,"logprobs":{"text_offset":[-1, -1],"token_logprobs":[null,-2],"#,
        r#""tokens":["a","x"],"top_logprobs":[null,{"x":-2}]}},"#,
        r#"{"index":1,"logprobs":{"text_offset":[-1,-1,-1],"token_logprobs":[null,-3.0,-4],"#,
        r#""tokens":["b","c","y"],"top_logprobs":[null,{"c":-3},{"y":-4}]}}],"#,
        r#""usage":{"completion_tokens":2}}"#,
    );

    #[test]
    fn each_choice_gets_the_entries_of_its_own_prompt() {
        let decode = concat!(
            r#"{"choices":[{"index":0,"logprobs":{"text_offset":[-1],"token_logprobs":[-2],"#,
            r#""tokens":["x"],"top_logprobs":[{"x":-2}]}},"#,
            r#"{"index":1,"logprobs":{"text_offset":[],"token_logprobs":[],"tokens":[],"#,
            r#""top_logprobs":[]}}]}"#,
        );
        let want = concat!(
            r#"{"choices":[{"index":0,"logprobs":{"text_offset":[-1,-1],"token_logprobs":[null,-2],"#,
            r#""tokens":["a","x"],"top_logprobs":[null,{"x":-2}]}},"#,
            r#"{"index":1,"logprobs":{"text_offset":[-1,-1],"token_logprobs":[null,-3.0],"#,
            r#""tokens":["b","c"],"top_logprobs":[null,{"c":-3}]}}]}"#,
        );
        assert_eq!(prefill(TWO_PROMPTS).merge_json(decode.as_bytes()).unwrap(), want);
        assert!(prefill(TWO_PROMPTS).merge_json(br#"{"choices":[]}"#).is_err());
    }

    #[test]
    fn the_first_event_of_a_choice_has_its_prompt() {
        let mut echo = prefill(TWO_PROMPTS);
        let event = |index: u32, tokens: &str| {
            Bytes::from(format!(
                "data: {{\"choices\":[{{\"index\":{index},\"logprobs\":{{\"tokens\":[{tokens}]}}}}]}}\n\n"
            ))
        };
        let none = Bytes::from_static(b"data: {\"choices\":[{\"index\":1,\"logprobs\":null}]}\n\n");
        assert_eq!(echo.merge_event(none.clone()), none);
        assert_eq!(echo.merge_event(event(1, "\"y\"")), event(1, "\"b\",\"c\",\"y\""));
        assert_eq!(echo.merge_event(event(1, "\"z\"")), event(1, "\"z\""));
        assert_eq!(echo.merge_event(event(0, "")), event(0, "\"a\""));
        assert_eq!(echo.merge_event(event(0, "\"x\"")), event(0, "\"x\""));
        let done = Bytes::from_static(b"data: [DONE]\n\n");
        assert_eq!(echo.merge_event(done.clone()), done);
    }

    #[test]
    fn a_malformed_prefill_answer_is_an_error() {
        for body in ["", "{}", "oops"] {
            assert!(EchoLogprobs::from_prefill(&Bytes::from(body)).is_err(), "{body}");
        }
    }
}
