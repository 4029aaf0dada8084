//! Malformed engine answers: no reader panics on them.

use std::slice::from_ref;

use bytes::Bytes;
use proptest::prelude::*;

use super::json::Raw;
use super::logprob::PromptLogprobs;
use super::{Endpoint, fault, info, merge, sse};

/// JSON from words of the engine's protocol, in an arbitrary structure.
fn vocabulary() -> impl Strategy<Value = String> {
    let word = proptest::sample::select(vec![
        "choices",
        "index",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "error",
        "message",
        "code",
        "type",
        "detail",
        "meta_info",
        "finish_reason",
        "abort",
        "status_code",
        "id",
        "created",
        "delta",
        "role",
        "content",
        "sglext",
        "output_ids",
        "spec_tokens_details",
        "text",
        "input_token_logprobs",
        "input_top_logprobs",
        "internal_states",
        "completion_tokens_details",
        "server_args",
        "dp_size",
        "response",
        "response.failed",
    ]);
    let leaf = prop_oneof![
        word.clone().prop_map(|word| format!("\"{word}\"")),
        Just("null".to_owned()),
        Just("18446744073709551615".to_owned()),
        Just("3".to_owned()),
        Just("-1.5e9".to_owned()),
        Just("[]".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        let object = proptest::collection::vec((word.clone(), inner.clone()), 0..6);
        prop_oneof![
            1 => proptest::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            3 => object.prop_map(|members| {
                let members: Vec<_> =
                    members.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
                format!("{{ {} }}", members.join(" , "))
            }),
        ]
    })
}

/// Passes both answers to every reader of answers.
fn read(a: &Bytes, b: &Bytes) -> Result<(), TestCaseError> {
    for endpoint in Endpoint::ALL {
        for batch in [None, Some(1), Some(2)] {
            if let Ok(merged) = merge::json(endpoint, 2, batch, &[a.clone(), b.clone()]) {
                prop_assert!(Raw::parse(&merged).is_ok(), "{:?}", merged);
            }
        }
        let mut stream = merge::StreamMerger::new(endpoint, 2);
        for (sample, data) in [(0, a), (1, b), (1, a)] {
            let event = [b"event: x\ndata: ", &data[..], b"\n\n"].concat();
            fault::first_event_fault(endpoint, &event);
            sse::is_preamble(endpoint, &event);
            for event in [&event[..], data] {
                if let Ok(Some(out)) = stream.push(sample, event) {
                    prop_assert!(Raw::parse(&sse::data(&out).unwrap()).is_ok(), "{:?}", out);
                }
            }
        }
        stream.finish();
        fault::answer_fault(endpoint, a);
    }
    for endpoint in [Endpoint::Generate, Endpoint::Completions] {
        let Ok(mut prompt) = PromptLogprobs::from_prefill(endpoint, a) else { continue };
        if let Ok(merged) = prompt.merge_json(b) {
            prop_assert!(Raw::parse(&merged).is_ok(), "{:?}", merged);
        }
        prompt.merge_event([b"data: ", &b[..], b"\n\n"].concat().into());
    }
    let error = fault::engine_error(500, a);
    prop_assert!(error.message.len() <= 2 * fault::MAX_MESSAGE);
    info::EngineInfo::from_server_info(a);
    info::EngineInfo::from_route(a);
    prop_assert!(Raw::parse(&info::server_info(from_ref(a), from_ref(b))).is_ok());
    Ok(())
}

proptest! {
    #[test]
    fn arbitrary_json_of_protocol_words_does_not_panic(a in vocabulary(), b in vocabulary()) {
        read(&a.into(), &b.into())?;
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        a in proptest::collection::vec(any::<u8>(), 0..60),
        b in r#"[\[\]{}:,"a0\\ \n]{0,30}"#,
    ) {
        read(&a.into(), &b.into())?;
    }
}
