//! Logprobs of the prompt in answers of `/generate`.

use bytes::Bytes;

use super::super::json::{JsonType, Patch, Raw};
use super::super::merge::Malformed;
use super::super::sse;

/// Lists with one entry per token: decode's entries, if any, follow prefill's. The other `input_*`
/// fields (flat arrays and their shapes) describe prefill's list as a whole, so prefill's are used.
const LISTS: [&str; 3] = ["input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs"];

/// All `input_*` fields of prefill's answer to one `/generate` request, for each prompt.
///
/// Decode returns empty lists in these fields: it starts from transferred KV and never scores the
/// prompt.
///
/// ```
/// use bytes::Bytes;
/// use router_core::sglang::logprob::InputLogprobs;
///
/// let prefill = Bytes::from_static(br#"{"text":"a","meta_info":{"input_token_logprobs":[[-0.10,1]]}}"#);
/// let decode = br#"{"text":"ab","meta_info":{"input_token_logprobs":[],"id":"x"}}"#;
/// assert_eq!(
///     InputLogprobs::from_prefill(&prefill).unwrap().merge_json(decode).unwrap(),
///     r#"{"text":"ab","meta_info":{"input_token_logprobs":[[-0.10,1]],"id":"x"}}"#,
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputLogprobs {
    prompts: Vec<Vec<(String, Bytes)>>,
    batch: bool,
}

impl InputLogprobs {
    /// Reads prefill's answer, which is never streamed, and shares its allocation.
    pub fn from_prefill(body: &Bytes) -> Result<InputLogprobs, Malformed> {
        let raw = Raw::parse(body).map_err(|_| Malformed("prefill's answer is not JSON"))?;
        let batch = raw.kind() == JsonType::Array;
        let answers = if batch { raw.elements().collect() } else { vec![raw] };
        let prompts = answers
            .into_iter()
            .map(|answer| {
                let meta = answer
                    .get("meta_info")
                    .ok_or(Malformed("prefill's answer has no meta_info"))?;
                let fields = meta.members().filter(|member| !member.value.is_null());
                Ok(fields
                    .filter_map(|member| {
                        let key = member.key.as_str().filter(|key| key.starts_with("input_"))?;
                        Some((key.into_owned(), body.slice_ref(member.value.bytes())))
                    })
                    .collect())
            })
            .collect::<Result<_, _>>()?;
        Ok(InputLogprobs { prompts, batch })
    }

    /// Decode's complete answer with prefill's logprobs inserted.
    pub fn merge_json(&self, decode: &[u8]) -> Result<Bytes, Malformed> {
        let raw = Raw::parse(decode).map_err(|_| Malformed("decode's answer is not JSON"))?;
        let mut patch = Patch::new(raw);
        if self.batch {
            if raw.kind() != JsonType::Array || raw.elements().count() != self.prompts.len() {
                return Err(Malformed("prefill and decode differ in the number of prompts"));
            }
            for (answer, fields) in raw.elements().zip(&self.prompts) {
                insert(fields, answer, &mut patch);
            }
        } else {
            insert(self.prompts.first().map_or(&[][..], Vec::as_slice), raw, &mut patch);
        }
        let mut out = Vec::with_capacity(decode.len() + self.size());
        patch.write(&mut out);
        Ok(out.into())
    }

    /// One event of decode's stream with prefill's logprobs inserted, as in every event of an
    /// ordinary server. Events without an answer are returned unchanged.
    pub fn merge_event(&self, event: Bytes) -> Bytes {
        let Some(data) = sse::data(&event) else { return event };
        let Ok(raw) = Raw::parse(&data) else { return event };
        let index = raw.get("index").filter(|_| self.batch).and_then(Raw::as_u64).unwrap_or(0);
        let fields = usize::try_from(index).ok().and_then(|index| self.prompts.get(index));
        let (Some(fields), Some(_)) = (fields, raw.get("meta_info")) else { return event };
        let mut patch = Patch::new(raw);
        insert(fields, raw, &mut patch);
        let mut out = Vec::with_capacity(data.len() + self.size());
        patch.write(&mut out);
        sse::with_data(&event, &out).into()
    }

    fn size(&self) -> usize {
        self.prompts.iter().flatten().map(|(key, value)| key.len() + value.len() + 4).sum()
    }
}

fn insert<'a>(fields: &'a [(String, Bytes)], answer: Raw<'a>, patch: &mut Patch<'a>) {
    let Some(meta) = answer.get("meta_info") else { return };
    for (key, prefill) in fields {
        match meta.get(key) {
            None => patch.append(meta, key, prefill),
            Some(decode) if LISTS.contains(&key.as_str()) && decode.kind() == JsonType::Array => {
                patch.replace(decode, concatenated(prefill, decode));
            }
            Some(decode) => patch.replace(decode, &prefill[..]),
        }
    }
}

/// Concatenates two arrays.
fn concatenated(first: &[u8], second: Raw<'_>) -> Vec<u8> {
    if second.elements().next().is_none() {
        return first.to_vec();
    }
    if Raw::trusted(first).elements().next().is_none() {
        return second.bytes().to_vec();
    }
    let mut out = Vec::with_capacity(first.len() + second.bytes().len());
    out.extend_from_slice(first.strip_suffix(b"]").unwrap_or(first));
    out.push(b',');
    out.extend_from_slice(second.bytes().strip_prefix(b"[").unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefill(body: &'static str) -> InputLogprobs {
        InputLogprobs::from_prefill(&Bytes::from_static(body.as_bytes())).unwrap()
    }

    #[test]
    fn exactly_the_input_fields_are_merged() {
        let prefill = prefill(
            r#"{"text":"p","meta_info":{"id":"p","input_token_logprobs":[[null,1,null],[-1.0e-3,2,"b"]],
            "input_top_logprobs":[null,[[-0.5,2,null]]],"input_token_ids_logprobs":[[-2.50,7,null]],
            "input_top_logprobs_shape":[3,2],"output_token_logprobs":[[-9,9,null]]}}"#,
        );
        let decode = r#"{"text":"d","meta_info":{"id":"d","input_token_logprobs":[[-4,4,null]],"input_top_logprobs":[],
            "input_top_logprobs_shape":[0,2],"output_token_logprobs":[[-0.25,5,null]]}}"#;
        let want = r#"{"text":"d","meta_info":{"id":"d","input_token_logprobs":[[null,1,null],[-1.0e-3,2,"b"],[-4,4,null]],"input_top_logprobs":[null,[[-0.5,2,null]]],
            "input_top_logprobs_shape":[3,2],"output_token_logprobs":[[-0.25,5,null]],"input_token_ids_logprobs":[[-2.50,7,null]]}}"#;
        assert_eq!(prefill.merge_json(decode.as_bytes()).unwrap(), want);
    }

    #[test]
    fn each_prompt_of_a_batch_gets_its_own_logprobs() {
        let two = prefill(
            r#"[{"meta_info":{"input_token_logprobs":[1]}},{"meta_info":{"input_token_logprobs":[2]}}]"#,
        );
        let decode = r#"[{"meta_info":{"input_token_logprobs":[]}}, {"meta_info":{}}]"#;
        assert_eq!(
            two.merge_json(decode.as_bytes()).unwrap(),
            r#"[{"meta_info":{"input_token_logprobs":[1]}}, {"meta_info":{"input_token_logprobs":[2]}}]"#
        );
        let event = r#"{"meta_info":{"input_token_logprobs":[]},"index":1}"#;
        assert_eq!(
            two.merge_event(format!("data: {event}\n\n").into()),
            "data: {\"meta_info\":{\"input_token_logprobs\":[2]},\"index\":1}\n\n"
        );
        assert!(two.merge_json(b"[{\"meta_info\":{}}]").is_err());
        assert!(two.merge_json(b"{\"meta_info\":{}}").is_err());
    }

    #[test]
    fn events_without_an_answer_are_unchanged() {
        let one = prefill(r#"{"meta_info":{"input_token_logprobs":[1]}}"#);
        for event in ["data: [DONE]\n\n", ": ping\n\n", "data: {\"error\":{\"message\":\"m\"}}\n\n"]
        {
            assert_eq!(one.merge_event(Bytes::from(event)), event);
        }
    }

    #[test]
    fn a_malformed_prefill_answer_is_an_error() {
        for body in ["", "[{}]", "{}", "oops"] {
            assert!(InputLogprobs::from_prefill(&Bytes::from(body)).is_err(), "{body}");
        }
    }
}
