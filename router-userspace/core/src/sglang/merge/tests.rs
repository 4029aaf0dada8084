//! Merged answers and streams, in the engine's shapes.

use super::*;

fn chunk(id: &str, choice: &str) -> Vec<u8> {
    format!("data: {{\"id\":\"{id}\",\"created\":{},\"choices\":[{choice}]}}\n\n", id.len())
        .into_bytes()
}

fn text(event: Option<Bytes>) -> String {
    String::from_utf8(event.unwrap().to_vec()).unwrap()
}

#[test]
fn a_batch_is_ordered_by_prompt_then_sample() {
    let part = |k: u32| {
        Bytes::from(format!(
            r#"{{"id":"r{k}","choices":[{{"index":0,"text":"p0s{k}"}},{{"index":1,"text":"p1s{k}"}}]}}"#
        ))
    };
    let merged = json(Endpoint::Completions, 3, Some(2), &[part(0), part(1), part(2)]).unwrap();
    let raw = Raw::parse(&merged).unwrap();
    let texts: Vec<String> = raw
        .get("choices")
        .unwrap()
        .elements()
        .map(|c| {
            let index = c.get("index").unwrap().as_u64().unwrap();
            format!("{index}:{}", c.get("text").unwrap().as_str().unwrap())
        })
        .collect();
    assert_eq!(texts, ["0:p0s0", "1:p0s1", "2:p0s2", "3:p1s0", "4:p1s1", "5:p1s2"]);
}

#[test]
fn prompt_tokens_count_once_and_the_rest_is_summed() {
    let part = |completion: u32, details: &str| {
        Bytes::from(format!(
            r#"{{"choices":[{{"index":0}}],"usage":{{"prompt_tokens":10,"total_tokens":{},"completion_tokens":{completion},"prompt_tokens_details":{{"cached_tokens":8}},"reasoning_tokens":1,"completion_tokens_details":{details}}}}}"#,
            10 + completion
        ))
    };
    let parts = [
        part(2, "null"),
        part(3, r#"{"reasoning_tokens":1,"x":"y"}"#),
        part(4, r#"{"reasoning_tokens":2}"#),
    ];
    let merged = json(Endpoint::Chat, 3, None, &parts).unwrap();
    let usage = Raw::parse(&merged).unwrap().get("usage").unwrap();
    assert_eq!(
        std::str::from_utf8(usage.bytes()).unwrap(),
        r#"{"prompt_tokens":10,"total_tokens":19,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":8},"reasoning_tokens":3,"completion_tokens_details":{"reasoning_tokens":3,"x":"y"}}"#
    );
}

#[test]
fn an_extension_lists_the_output_ids_of_every_sample() {
    let part = |ids: &str| {
        Bytes::from(format!(
            r#"{{"choices":[{{"index":0}}],"sglext":{{"input_ids":[1],"output_ids":[{ids}],"spec_tokens_details":{{"a":1}}}}}}"#
        ))
    };
    let merged = json(Endpoint::Chat, 2, None, &[part("[2,3]"), part("[4]")]).unwrap();
    assert!(
        merged.ends_with(
            br#""sglext":{"input_ids":[1],"output_ids":[[2,3],[4]],"spec_tokens_details":[{"a":1},{"a":1}]}}"#
        ),
        "{merged:?}"
    );
}

#[test]
fn answers_that_do_not_match_are_malformed() {
    let good = Bytes::from_static(br#"{"choices":[{"index":0}]}"#);
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"choices":[]}"#,
        r#"{"choices":[{}]}"#,
        r#"{"choices":[{"index":0},{"index":1}]}"#,
    ] {
        let parts = [good.clone(), Bytes::from(bad)];
        assert!(json(Endpoint::Chat, 2, None, &parts).is_err(), "{bad}");
    }
    assert!(json(Endpoint::Chat, 2, None, &[good]).is_err());
    for (batch, part) in [(Some(1), "{}"), (None, "[{}]"), (Some(2), "[{}]"), (None, "1")] {
        let parts = [Bytes::from(part), Bytes::from(part)];
        assert!(json(Endpoint::Generate, 2, batch, &parts).is_err(), "{part}");
    }
}

#[test]
fn merged_streams_share_id_and_time_and_end_once() {
    let mut stream = StreamMerger::new(Endpoint::Chat, 2);
    let first = text(
        stream
            .push(1, &chunk("bb", r#"{"index":0,"delta":{"role":"assistant","content":""}}"#))
            .unwrap(),
    );
    assert_eq!(
        first,
        "data: {\"id\":\"bb\",\"created\":2,\"choices\":[{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
    );
    let second =
        text(stream.push(0, &chunk("a", r#"{"index":0,"delta":{"content":"1.50"}}"#)).unwrap());
    assert_eq!(
        second,
        "data: {\"id\":\"bb\",\"created\":2,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"1.50\"}}]}\n\n"
    );
    for (sample, completion) in [(0, 3), (1, 4)] {
        let usage = format!(
            "data: {{\"id\":\"x{sample}\",\"created\":9,\"choices\":[],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{completion},\"total_tokens\":{}}}}}\n\n",
            5 + completion
        );
        assert_eq!(stream.push(sample, usage.as_bytes()), Ok(None));
        assert!(!stream.is_complete());
        assert_eq!(stream.push(sample, b"data: [DONE]\n\n"), Ok(None));
    }
    assert!(stream.is_complete());
    assert_eq!(
        stream.finish(),
        "data: {\"id\":\"bb\",\"created\":2,\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}}\n\ndata: [DONE]\n\n"
    );
}

#[test]
fn continuous_usage_stays_with_its_choice() {
    let mut stream = StreamMerger::new(Endpoint::Completions, 2);
    let event = b"data: {\"id\":\"a\",\"choices\":[{\"index\":2,\"text\":\"\"}],\"usage\":{\"completion_tokens\":1}}\n\n";
    assert_eq!(
        text(stream.push(1, event).unwrap()),
        "data: {\"id\":\"a\",\"choices\":[{\"index\":5,\"text\":\"\"}],\"usage\":{\"completion_tokens\":1}}\n\n"
    );
    assert_eq!(stream.finish(), "data: [DONE]\n\n");
}

#[test]
fn events_of_generate_get_the_index_of_n_fold_sampling() {
    let mut stream = StreamMerger::new(Endpoint::Generate, 3);
    let single =
        stream.push(2, b"data: {\"text\":\"a\",\"meta_info\":{\"id\":\"x\"}}\n\n").unwrap();
    assert_eq!(text(single), "data: {\"text\":\"a\",\"meta_info\":{\"id\":\"x\"},\"index\":2}\n\n");
    let batch = stream.push(1, b"data: {\"text\":\"a\",\"index\":4}\n\n").unwrap();
    assert_eq!(text(batch), "data: {\"text\":\"a\",\"index\":13}\n\n");
}

#[test]
fn the_failure_of_one_sample_fails_the_stream() {
    let mut stream = StreamMerger::new(Endpoint::Chat, 2);
    let fault =
        stream.push(1, b"data: {\"error\":{\"message\":\"m\",\"code\":503}}\n\n").unwrap_err();
    assert_eq!((fault.status, &*fault.message), (503, "m"));
    assert_eq!(stream.push(0, b"data: oops\n\n").unwrap_err().status, 502);
    assert_eq!(stream.push(2, &chunk("a", "{\"index\":0}")).unwrap_err().status, 502);
    assert_eq!(stream.push(0, b": ping\n\n"), Ok(None));
}

#[test]
fn extension_chunks_are_merged_and_the_named_one_keeps_its_name() {
    let mut stream = StreamMerger::new(Endpoint::Chat, 2);
    for (sample, ids) in [(1, "[4]"), (0, "[2,3]")] {
        let plain = br#"data: {"id":"a","choices":[],"sglext":{"routed_experts":"x"}}"#;
        assert_eq!(stream.push(sample, plain), Ok(None));
        let named = format!(
            "event: sglext_ids\ndata: {{\"id\":\"a\",\"choices\":[],\"sglext\":{{\"output_ids\":[{ids}]}}}}\n\n"
        );
        assert_eq!(stream.push(sample, named.as_bytes()), Ok(None));
    }
    assert_eq!(
        stream.finish(),
        concat!(
            "data: {\"id\":\"a\",\"choices\":[],\"sglext\":{\"routed_experts\":\"x\"}}\n\n",
            "event: sglext_ids\n",
            "data: {\"id\":\"a\",\"choices\":[],\"sglext\":{\"output_ids\":[[2,3],[4]]}}\n\n",
            "data: [DONE]\n\n"
        )
    );
}
