//! Parsing of requests, and the bodies written from them.

use super::*;
use crate::sglang::{BootstrapAddress, Room};

pub(super) fn parse(endpoint: Endpoint, body: &str) -> Result<Request, Invalid> {
    Request::parse(endpoint, Bytes::from(body.to_owned()))
}

pub(super) fn ok(endpoint: Endpoint, body: &str) -> Request {
    parse(endpoint, body).unwrap()
}

fn rejected(endpoint: Endpoint, body: &str) -> Option<&'static str> {
    parse(endpoint, body).unwrap_err().param
}

pub(super) const ADDED: &str = r#""bootstrap_host":"h","bootstrap_port":1,"bootstrap_room":5,"rid":"00000000000000000000000000000009""#;

pub(super) fn attempt(request: &Request) -> Pair<String> {
    let rooms: Vec<Room> = (0..request.rooms() as u64).map(|i| Room::from_random(5 + i)).collect();
    let rids: Vec<Rid> = (0..rooms.len() as u128).map(|i| Rid::from_random(9 + i)).collect();
    let bootstrap = BootstrapAddress { host: "h".into(), port: 1 };
    let attempt =
        Attempt { bootstrap: &bootstrap, rooms: &rooms, rids: &rids, dp: Pair::default() };
    let mut shared = request.clone();
    shared.marked.max_copied_bytes = 0;
    let text = |body: SplicedBody| {
        let whole = body.to_bytes();
        assert_eq!(whole.len(), body.len());
        String::from_utf8(whole.to_vec()).unwrap()
    };
    let legs = request.inject(&attempt).map(text);
    assert_eq!(shared.inject(&attempt).map(text), legs);
    legs
}

/// The decode body of a chat request, with the attempt's members written as `+`.
fn decode(body: &str) -> String {
    attempt(&ok(Endpoint::Chat, body)).decode.replace(ADDED, "+")
}

#[test]
fn engine_control_is_removed_anywhere_and_commas_stay_valid() {
    for (body, want) in [
        (r#"{}"#, r#"{+}"#),
        (r#" { } "#, r#" {+ } "#),
        (r#"{"rid":1}"#, r#"{+}"#),
        (r#"{ "rid" : 1 }"#, r#"{ + }"#),
        (r#"{"rid":1,"a":2}"#, r#"{"a":2,+}"#),
        (r#"{"a":2,"rid":1}"#, r#"{"a":2,+}"#),
        (r#"{"a":2 , "rid":1 , "b":3 }"#, r#"{"a":2 , "b":3,+ }"#),
        (r#"{"rid":1,"bootstrap_room":2 , "a":3,"rid":4,"bootstrap_host":null}"#, r#"{"a":3,+}"#),
        (r#"{"rid":1,"rid":[1,"],"],"rid":{"a":1}}"#, r#"{+}"#),
        (r#"{"bootstrap\u005froom":9223372036854775808,"a":1}"#, r#"{"a":1,+}"#),
        (r#"{"a":1,"\u0072\u0069\u0064":"x"}"#, r#"{"a":1,+}"#),
        (r#"{"a":{"rid":1,"bootstrap_room":2}}"#, r#"{"a":{"rid":1,"bootstrap_room":2},+}"#),
        (r#"{"Rid":1,"rid ":2,"\ud800":3}"#, r#"{"Rid":1,"rid ":2,"\ud800":3,+}"#),
    ] {
        assert_eq!(decode(body), want, "{body}");
    }
}

#[test]
fn every_control_key_is_removed() {
    for key in [
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "bootstrap_pair_key",
        "rid",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
        "data_parallel_rank",
        "decode_tp_size",
        "kv_hints",
        "http_worker_ipc",
        "encoder_urls",
        "num_items_assigned",
        "need_wait_for_mm_inputs",
        "lora_id",
        "received_time",
        "external_trace_header",
        "log_metrics",
        "return_bytes",
        "mm_hashes",
        "mm_content_hashes",
        "custom_labels",
        "positional_embed_overrides",
        "multi_item_delimiter_indices",
        "token_indices_to_pool",
    ] {
        for endpoint in Endpoint::ALL {
            let plain = ok(endpoint, &format!(r#"{{"{key}":1,"z":2}}"#)).plain(&[]).to_bytes();
            assert_eq!(plain.iter().filter(|&&b| b == b'1').count(), 0, "{endpoint} {key}");
        }
    }
}

#[test]
fn generate_gets_its_public_fields_and_those_that_a_flag_allows() {
    let body =
        r#"{"text":"a" , "top_logprobs_num" : 1.0,"made_up":1,"embed_overrides":[],"new":2 }"#;
    let plain = |allowed: &[String]| {
        let allowed = AllowedFields::new(allowed).unwrap();
        let body = Bytes::from_static(body.as_bytes());
        let request = Request::parse_with(Endpoint::Generate, body, &allowed).unwrap();
        String::from_utf8(request.plain(&[]).to_bytes().to_vec()).unwrap()
    };
    let (start, rid) = (r#"{"text":"a" , "top_logprobs_num" : 1.0"#, r#""rid":[]"#);
    let kept = |text: &str| text.split(",\"rid\"").next().unwrap().trim_end().to_owned();
    assert_eq!(kept(&plain(&[])), kept(&format!("{start},{rid} }}")));
    assert_eq!(kept(&plain(&["new".to_owned()])), format!(r#"{start},"new":2"#));
}

#[test]
fn removed_fields_are_named_in_order_and_unescaped() {
    let removed = |endpoint, body: &str| {
        ok(endpoint, body).removed_fields().map(String::from).collect::<Vec<_>>()
    };
    let body =
        r#"{"text":"a","r\u0069d" : 1,"sampling_params":{"n":1,"rid":2},"new":{"\"":[]},"rid":3}"#;
    assert_eq!(removed(Endpoint::Generate, body), ["rid", "new", "rid"]);
    assert_eq!(removed(Endpoint::Chat, body), ["rid", "rid"]);
    assert!(removed(Endpoint::Chat, r#"{"stream":true,"stream_options":{},"n":2}"#).is_empty());
}

#[test]
fn a_response_in_the_background_is_refused() {
    let body = |value: &str| format!(r#"{{"input":"a","background":{value}}}"#);
    for asked in ["true", "1", "\"yes\""] {
        assert_eq!(rejected(Endpoint::Responses, &body(asked)), Some("background"), "{asked}");
    }
    let kept = attempt(&ok(Endpoint::Responses, &body("false"))).decode;
    assert!(kept.contains(r#""background":false"#), "{kept}");
}

#[test]
fn numbers_escapes_order_and_duplicates_are_kept() {
    let body = r#"{"z":1e400,"seed":12345678901234567890123,"top_p":0.10000000000000000555,"z":-0.0,"u":"\u00e9\/é","n":1}"#;
    assert_eq!(decode(body), format!("{},+}}", body.strip_suffix('}').unwrap()));
}

#[test]
fn only_decode_streams() {
    let legs = attempt(&ok(
        Endpoint::Chat,
        r#"{"stream_options":{"include_usage":true},"stream":true,"m":1,"stream":true}"#,
    ));
    assert_eq!(legs.prefill, format!(r#"{{"stream":false,"m":1,"stream":false,{ADDED}}}"#));
    assert_eq!(
        legs.decode,
        format!(
            r#"{{"stream_options":{{"include_usage":true}},"stream":true,"m":1,"stream":true,{ADDED}}}"#
        )
    );
}

#[test]
fn a_long_body_is_not_copied_for_legs_and_samples() {
    let prompt = "a".repeat(MAX_COPIED_BYTES);
    let body = format!(r#"{{"rid":"mine","prompt":"{prompt}","n":2,"stream":true}}"#);
    let request = ok(Endpoint::Completions, &body);
    let client = request.body().as_ptr_range();
    for _sample in 0..2 {
        let legs = request.inject(&Attempt {
            bootstrap: &BootstrapAddress { host: "h".into(), port: 1 },
            rooms: &[Room::from_random(1)],
            rids: &[Rid::from_random(1)],
            dp: Pair::default(),
        });
        for leg in [legs.prefill, legs.decode] {
            let pieces = (0..).map_while(|at| leg.piece(at));
            let copied = pieces.filter(|piece| !client.contains(&piece.as_ptr()));
            let copied: usize = copied.map(|piece| piece.len()).sum();
            assert!(copied < 256, "{copied} bytes are not the client's buffer");
        }
    }
}

#[test]
fn a_batch_gets_lists_of_its_length() {
    let legs = attempt(&ok(Endpoint::Completions, r#"{"prompt":["a","b"]}"#));
    assert_eq!(
        legs.prefill,
        concat!(
            r#"{"prompt":["a","b"],"bootstrap_host":["h","h"],"bootstrap_port":[1,1],"#,
            r#""bootstrap_room":[5,6],"rid":["00000000000000000000000000000009","#,
            r#""0000000000000000000000000000000a"]}"#
        )
    );
}

#[test]
fn a_batch_is_detected_as_in_the_engine() {
    use Endpoint::{Chat, Completions, Generate};
    for (endpoint, body, batch, bytes) in [
        (Completions, r#"{"prompt":"abc"}"#, None, 3),
        (Completions, r#"{"prompt":[1,2,3]}"#, None, 12),
        (Completions, r#"{"prompt":[[1,2],[3]]}"#, Some(2), 12),
        (Completions, r#"{"prompt":["a"]}"#, Some(1), 5),
        (Generate, r#"{"text":"abc","input_ids":[[1]]}"#, None, 3),
        (Generate, r#"{"text":null,"input_ids":[1,2]}"#, None, 8),
        (Generate, r#"{"input_ids":[[1,2],[3,4],[5]]}"#, Some(3), 20),
        (Generate, r#"{"input_ids":[],"session_params":{"id":"s"}}"#, None, 0),
        (Generate, r#"{"input_embeds":[[0.5,1],[2,3]]}"#, None, 8),
        (Generate, r#"{"input_embeds":[[[0.5],[1]],[[2]]]}"#, Some(2), 12),
        (Generate, r#"{"text":["a,b","c"],"image_data":["x",null]}"#, Some(2), 11),
        (Chat, r#"{"messages":[{"role":"user"}]}"#, None, 17),
        (Chat, r#"{"messages":[],"input_ids":[1,2,3]}"#, None, 12),
    ] {
        let request = ok(endpoint, body);
        assert_eq!((request.batch(), request.prompt_bytes()), (batch, bytes), "{body}");
    }
    assert_eq!(rejected(Completions, r#"{"prompt":[]}"#), Some("prompt"));
    assert_eq!(rejected(Generate, r#"{"text":[]}"#), Some("text"));
    assert_eq!(rejected(Generate, r#"{"input_ids":[]}"#), Some("input_ids"));
    assert_eq!(rejected(Generate, r#"{"input_embeds":[]}"#), Some("input_embeds"));
}

#[test]
fn an_image_counts_a_fixed_size_and_not_its_base64() {
    let picture = "A".repeat(1 << 20);
    let chat = |part: String| {
        format!(r#"{{"messages":[{{"content":[{{"type":"text","text":"what is it?"}},{part}]}}]}}"#)
    };
    for (endpoint, part) in [
        (
            Endpoint::Chat,
            format!(
                r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}}"#
            ),
        ),
        (
            Endpoint::Chat,
            format!(r#"{{"type":"input_audio","input_audio":{{"data":"{picture}"}}}}"#),
        ),
        (
            Endpoint::Messages,
            format!(r#"{{"type":"image","source":{{"type":"base64","data":"{picture}"}}}}"#),
        ),
    ] {
        let bytes = ok(endpoint, &chat(part)).prompt_bytes();
        assert!((4096..4400).contains(&bytes), "{bytes}");
    }
    let text = format!(r#"{{"type":"text","text":"base64 {picture}"}}"#);
    assert!(ok(Endpoint::Chat, &chat(text)).prompt_bytes() > 1 << 20);
}

#[test]
fn n_must_be_a_small_positive_integer() {
    use Endpoint::{Chat, Completions, Generate, Responses};
    for bad in ["0", "-1", "1.0", "\"2\"", "true", "129", "1e1", "[2]", "18446744073709551616"] {
        assert_eq!(rejected(Chat, &format!(r#"{{"n":{bad}}}"#)), Some("n"), "{bad}");
        let nested = format!(r#"{{"text":"a","sampling_params":{{"n":{bad}}}}}"#);
        assert_eq!(rejected(Generate, &nested), Some("sampling_params.n"), "{bad}");
    }
    assert_eq!(ok(Chat, r#"{"n":null}"#).samples(), 1);
    assert_eq!(ok(Responses, r#"{"n":"x"}"#).samples(), 1);
    assert_eq!(rejected(Completions, r#"{"n":2,"best_of":3}"#), Some("best_of"));
    assert_eq!(rejected(Completions, r#"{"best_of":2}"#), Some("best_of"));
    let list =
        |a, b| format!(r#"{{"text":["a","b"],"sampling_params":[{{"n":{a}}},{{"n":{b}}}]}}"#);
    assert_eq!(rejected(Generate, &list(2, 3)), Some("sampling_params.n"));
    assert_eq!(ok(Generate, &list(2, 2)).samples(), 2);
    let wide = format!(r#"{{"n":100,"prompt":[{}"a"]}}"#, "\"a\",".repeat(99));
    assert_eq!(rejected(Completions, &wide), Some("prompt"));
}

#[test]
fn n_becomes_one_for_a_pair_and_stays_for_a_single_engine() {
    let completions = ok(Endpoint::Completions, r#"{"n" : 3,"prompt":"a", "best_of":3}"#);
    assert_eq!(completions.samples(), 3);
    let legs = attempt(&completions);
    assert_eq!(legs.decode, format!(r#"{{"n" : 1,"prompt":"a", "best_of":1,{ADDED}}}"#));
    assert_eq!(legs.prefill, legs.decode);
    assert_eq!(
        completions.plain(&[Rid::from_random(1)]).to_bytes(),
        r#"{"n" : 3,"prompt":"a", "best_of":3,"rid":"00000000000000000000000000000001"}"#
    );
    let generate =
        ok(Endpoint::Generate, r#"{"sampling_params": {"temperature":0,"n" :2},"text":"a"}"#);
    assert_eq!(
        attempt(&generate).decode,
        format!(r#"{{"sampling_params": {{"temperature":0,"n" :1}},"text":"a",{ADDED}}}"#)
    );
    let beam = ok(Endpoint::Generate, r#"{"sampling_params":{"n":2,"beam_width":4},"text":"a"}"#);
    assert_eq!(beam.samples(), 1);
    assert!(attempt(&beam).decode.contains(r#""n":2"#));
}

#[test]
fn stream_accepts_the_booleans_of_the_engine() {
    for (value, want) in [
        ("true", true),
        ("1", true),
        ("\"Yes\"", true),
        ("0", false),
        ("null", false),
        ("\"off\"", false),
    ] {
        let request = ok(Endpoint::Chat, &format!(r#"{{"stream":{value}}}"#));
        assert_eq!(request.stream(), want, "{value}");
        let prefill = attempt(&request).prefill;
        assert_eq!(prefill.contains(r#""stream":false"#), want, "{prefill}");
    }
    for bad in ["2", "\"perhaps\"", "[]", "{}"] {
        assert_eq!(rejected(Endpoint::Chat, &format!(r#"{{"stream":{bad}}}"#)), Some("stream"));
    }
}

#[test]
fn the_needed_fields_are_read_and_the_last_of_two_counts() {
    let request = ok(
        Endpoint::Chat,
        r#"{"model":"a","mod\u0065l":"\u0062","stream":true,"max_tokens":7,"max_completion_tokens":9,
            "stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#,
    );
    assert_eq!(request.model(), Some("b"));
    assert_eq!(request.max_output_tokens(), Some(9));
    assert!(request.include_usage() && request.continuous_usage());
    let generate = ok(
        Endpoint::Generate,
        r#"{"text":"a","return_logprob":[false,true],"sampling_params":{"max_new_tokens":5000000000}}"#,
    );
    assert_eq!(generate.max_output_tokens(), Some(u32::MAX));
    assert!(generate.wants_logprob_merge());
    assert!(!ok(Endpoint::Chat, r#"{"return_logprob":true}"#).wants_logprob_merge());
    for (body, wanted) in [
        (r#"{"prompt":"a","echo":true,"logprobs":1}"#, true),
        (r#"{"prompt":"a","echo":1,"logprobs":5}"#, true),
        (r#"{"prompt":"a","echo":true,"logprobs":0}"#, false),
        (r#"{"prompt":"a","echo":true,"logprobs":null}"#, false),
        (r#"{"prompt":"a","echo":false,"logprobs":1}"#, false),
        (r#"{"prompt":"a","logprobs":1}"#, false),
    ] {
        assert_eq!(ok(Endpoint::Completions, body).wants_logprob_merge(), wanted, "{body}");
    }
    let responses =
        ok(Endpoint::Responses, r#"{"previous_response_id":"resp_1","max_output_tokens":3}"#);
    assert_eq!(responses.previous_response_id(), Some("resp_1"));
    assert_eq!(responses.max_output_tokens(), Some(3));
}

#[test]
fn a_response_gets_a_request_id() {
    let decode =
        attempt(&ok(Endpoint::Responses, r#"{"request_id":"resp_mine","input":"a"}"#)).decode;
    assert_eq!(
        decode,
        format!(r#"{{"input":"a",{ADDED},"request_id":"resp_00000000000000000000000000000009"}}"#)
    );
    assert_eq!(
        Endpoint::Responses.abort_rid(&Rid::from_random(9)).as_deref(),
        Some("resp_00000000000000000000000000000009")
    );
}

#[test]
fn forced_ranks_reach_their_leg() {
    let legs = ok(Endpoint::Chat, "{}").inject(&Attempt {
        bootstrap: &BootstrapAddress { host: "h".into(), port: 1 },
        rooms: &[Room::from_random(5)],
        rids: &[Rid::from_random(9)],
        dp: Pair { prefill: Some(2), decode: Some(3) },
    });
    let legs = legs.map(|body| body.to_bytes());
    assert_eq!(
        legs.prefill,
        format!(r#"{{{ADDED},"routed_dp_rank":2,"disagg_prefill_dp_rank":2}}"#)
    );
    assert_eq!(
        legs.decode,
        format!(r#"{{{ADDED},"disagg_prefill_dp_rank":2,"routed_dp_rank":3}}"#)
    );
}

#[test]
fn a_body_that_is_not_a_json_object_is_rejected() {
    let bodies: [&[u8]; 9] = [
        b"",
        b"[]",
        b"\"a\"",
        b"\xEF\xBB\xBF{}",
        b"{\"a\":NaN}",
        b"{\"a\":1,}",
        b"{\"a\":\"\xff\"}",
        b"{}{}",
        b"{'a':1}",
    ];
    for body in bodies {
        let rejected = Request::parse(Endpoint::Chat, Bytes::from_static(body)).unwrap_err();
        assert_eq!(rejected.param, None);
        assert!(rejected.message.starts_with("The request body"), "{rejected}");
    }
    let many = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(MAX_MEMBERS));
    assert!(parse(Endpoint::Chat, &many).unwrap_err().message.contains("4096"));
    let many = format!(r#"{{"sampling_params":{{{}"n":1}}}}"#, r#""n":1,"#.repeat(20_000));
    assert_eq!(rejected(Endpoint::Generate, &many), Some("sampling_params.n"));
}

#[test]
fn a_continued_conversation_starts_with_equal_text() {
    let text = |body: &'static str| {
        let request = Request::parse(Endpoint::Messages, Bytes::from_static(body.as_bytes()));
        let request = request.unwrap();
        request.prompt_text().collect::<Vec<_>>().concat()
    };
    let first = text(r#"{"messages":[{"role":"user","content":"a"}], "system":"be good"}"#);
    let second = text(
        r#"{"model":"m","system":"be good","messages":[{"role":"user","content":"a"},{"role":"x"}]}"#,
    );
    assert!(first.starts_with(b"\"be good\"[{\"role\""));
    assert!(second.starts_with(&first[..first.len() - 1]), "all but the closing bracket");
    assert_eq!(text(r#"{"max_tokens":3}"#), b"");
}
