//! Which top-level fields of a client's body reach an engine.
//!
//! `/generate`, `/encode` and `/classify` parse their bodies into the dataclasses that parts of an engine
//! pass to each other (`GenerateReqInput`, `EmbeddingReqInput` in SGLang's `io_struct.py`), so any of
//! their fields can be set over HTTP. Of these bodies only the public fields are passed on. The other
//! endpoints read their own request types and ignore what these do not have, so that fields of newer
//! engines and of clients pass, and only those that control an engine are removed.

use super::Endpoint;

/// The type that an engine parses a body into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// The body of a generating request.
    Generating(Endpoint),
    /// `EmbeddingReqInput`.
    Embedding,
    /// The request type of another endpoint.
    Other,
}

impl BodyType {
    /// The type of a body that one engine serves alone.
    pub fn of_path(path: &str) -> BodyType {
        match path {
            "/encode" | "/classify" => BodyType::Embedding,
            _ => BodyType::Other,
        }
    }
}

/// Names in order of length, then of bytes, for a search that compares few bytes.
type Names = &'static [&'static str];

/// Fields that the gateway sets itself. No flag lets a client set them.
const SET_BY_GATEWAY: Names = &[
    "rid",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "decode_tp_size",
    "routed_dp_rank",
    "bootstrap_pair_key",
    "data_parallel_rank",
    "disagg_prefill_dp_rank",
];

/// Fields that parts of an engine or an orchestrator set: keys of caches, addresses, ids of adapters,
/// tensors, times and labels of metrics. `background` lets an engine go on without a client.
const INNER: Names = &[
    "lora_id",
    "kv_hints",
    "mm_hashes",
    "background",
    "log_metrics",
    "encoder_urls",
    "return_bytes",
    "custom_labels",
    "received_time",
    "trace_context",
    "decision_layout",
    "http_worker_ipc",
    "mm_content_hashes",
    "num_items_assigned",
    "need_wait_for_image",
    "external_trace_header",
    "token_indices_to_pool",
    "need_wait_for_mm_inputs",
    "positional_embed_overrides",
    "multi_item_delimiter_indices",
];

/// The public fields of `GenerateReqInput` in SGLang 0.4.10 to 0.5.23, and two that only gateways read.
const GENERATE: Names = &[
    "text",
    "model",
    "stream",
    "no_logs",
    "priority",
    "extra_key",
    "input_ids",
    "lora_path",
    "watermark",
    "audio_data",
    "cache_salt",
    "image_data",
    "modalities",
    "session_id",
    "video_data",
    "routing_key",
    "input_embeds",
    "video_config",
    "images_config",
    "return_entropy",
    "return_logprob",
    "session_params",
    "stream_options",
    "conversation_id",
    "sampling_params",
    "top_logprobs_num",
    "logprob_start_len",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "require_reasoning",
    "token_ids_logprob",
    "use_audio_in_video",
    "max_thinking_tokens",
    "mm_processor_kwargs",
    "return_indexer_topk",
    "return_hidden_states",
    "return_sampling_mask",
    "return_routed_experts",
    "custom_logit_processor",
    "sampling_logprobs_mode",
    "image_max_dynamic_patch",
    "return_prompt_token_ids",
    "return_text_in_logprobs",
    "video_max_dynamic_patch",
    "routed_experts_start_len",
    "return_flat_raw_top_logprobs",
    "return_flat_raw_top_logprobs_b64",
    "return_flat_raw_output_top_logprobs",
];

/// The public fields of `EmbeddingReqInput`, and `model`, which only gateways read.
const EMBEDDING: Names = &[
    "text",
    "model",
    "priority",
    "input_ids",
    "lora_path",
    "audio_data",
    "dimensions",
    "image_data",
    "modalities",
    "video_data",
    "routing_key",
    "input_embeds",
    "sampling_params",
    "return_prompt_token_ids",
    "is_cross_encoder_request",
    "return_pooled_hidden_states",
];

fn contains(names: Names, key: &str) -> bool {
    let order = |name: &&str| name.len().cmp(&key.len()).then_with(|| (**name).cmp(key));
    names.binary_search_by(order).is_ok()
}

/// Further fields that clients may send to engines (`--allow-fields`): public ones of a newer engine, and
/// inner ones where all clients are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedFields(Box<[Box<str>]>);

impl AllowedFields {
    /// # Errors
    /// One of the fields is set by the gateway itself, is empty or has white space; it is named.
    pub fn new(fields: &[String]) -> Result<AllowedFields, String> {
        for field in fields {
            if field.is_empty() || field.contains(char::is_whitespace) {
                return Err(format!("`{field}` must be the name of a field, without white space"));
            }
            // The gateway sets `request_id` on `/v1/responses`.
            if field == "request_id" || contains(SET_BY_GATEWAY, field) {
                return Err(format!("`{field}` is set by the gateway, and cannot be a client's"));
            }
        }
        Ok(AllowedFields(fields.iter().map(|field| field.as_str().into()).collect()))
    }

    /// Whether a top-level field of a client's body is removed before an engine gets it.
    pub(crate) fn removes(&self, body: BodyType, key: &str) -> bool {
        use BodyType::{Embedding, Generating, Other};
        use Endpoint::{Generate, Responses};
        let is_removed = match body {
            Generating(Generate) => !contains(GENERATE, key),
            Embedding => !contains(EMBEDDING, key),
            // A response in the background is refused, and its field is read for that. Engines use
            // `request_id` as the rid.
            Generating(Responses) if key == "background" => false,
            Generating(Responses) if key == "request_id" => true,
            Generating(_) | Other => contains(SET_BY_GATEWAY, key) || contains(INNER, key),
        };
        is_removed && !self.0.iter().any(|field| **field == *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of the two dataclasses, and whether it is public.
    const FIELDS: &str = include_str!("io_struct_fields.txt");

    #[test]
    fn names_are_sorted_and_no_public_field_is_an_inner_one() {
        for names in [SET_BY_GATEWAY, INNER, GENERATE, EMBEDDING] {
            assert!(names.is_sorted_by_key(|name| (name.len(), *name)), "{names:?}");
        }
        for name in GENERATE.iter().chain(EMBEDDING) {
            assert!(!contains(INNER, name) && !contains(SET_BY_GATEWAY, name), "{name}");
        }
    }

    #[test]
    fn each_field_of_the_engine_s_dataclasses_passes_if_it_is_public() {
        let none = AllowedFields::default();
        let mut seen = 0;
        for line in FIELDS.lines().filter(|line| !line.starts_with('#')) {
            let [class, kind, field] = *line.split(' ').collect::<Vec<_>>() else {
                panic!("{line}")
            };
            let body = match class {
                "GenerateReqInput" => BodyType::Generating(Endpoint::Generate),
                _ => BodyType::Embedding,
            };
            assert_eq!(none.removes(body, field), kind == "inner", "{line}");
            // What is inner to one type is removed from the bodies of all.
            if kind == "inner" && !matches!(field, "embed_overrides" | "embed_override_token_id") {
                assert!(none.removes(BodyType::Other, field), "{line}");
                assert!(none.removes(BodyType::Generating(Endpoint::Chat), field), "{line}");
            }
            seen += 1;
        }
        assert!(seen > 90, "{seen}");
        for field in ["made_up", "embed_overrides"] {
            assert!(none.removes(BodyType::Generating(Endpoint::Generate), field), "{field}");
            assert!(!none.removes(BodyType::Other, field), "{field}");
        }
    }

    #[test]
    fn allowed_fields_pass_but_those_that_the_gateway_sets() {
        let allowed = AllowedFields::new(&["made_up".to_owned(), "mm_hashes".to_owned()]).unwrap();
        for body in [BodyType::Generating(Endpoint::Generate), BodyType::Embedding, BodyType::Other]
        {
            for field in ["made_up", "mm_hashes"] {
                assert!(!allowed.removes(body, field), "{body:?} {field}");
            }
            assert!(allowed.removes(body, "kv_hints") && allowed.removes(body, "rid"), "{body:?}");
        }
    }

    #[test]
    fn what_no_client_may_send_and_what_is_no_name_is_refused_by_name() {
        let others = ["request_id", "", " ", " mm_hashes", "mm hashes", "mm_hashes\t"];
        for field in SET_BY_GATEWAY.iter().copied().chain(others) {
            let fields = ["made_up".to_owned(), field.to_owned()];
            let error = AllowedFields::new(&fields).unwrap_err();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
    }
}
