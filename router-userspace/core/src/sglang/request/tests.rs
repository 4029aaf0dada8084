use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::sglang::{Bootstrap, Room};

fn parse(endpoint: Endpoint, body: &str) -> Result<Request, Invalid> {
    Request::parse(endpoint, Bytes::from(body.to_owned()))
}

fn ok(endpoint: Endpoint, body: &str) -> Request {
    parse(endpoint, body).unwrap()
}

fn refused(endpoint: Endpoint, body: &str) -> Option<&'static str> {
    parse(endpoint, body).unwrap_err().param
}

const OURS: &str = r#""bootstrap_host":"h","bootstrap_port":1,"bootstrap_room":5,"rid":"00000000000000000000000000000009""#;

fn attempt(request: &Request) -> Pair<String> {
    let rooms: Vec<Room> = (0..request.rooms() as u64).map(|i| Room::from_random(5 + i)).collect();
    let rids: Vec<Rid> = (0..rooms.len() as u128).map(|i| Rid::from_random(9 + i)).collect();
    let bootstrap = Bootstrap { host: "h".into(), port: 1 };
    let legs = request.inject(&Attempt {
        bootstrap: &bootstrap,
        rooms: &rooms,
        rids: &rids,
        dp: Pair::default(),
    });
    legs.map(|body| String::from_utf8(body.to_vec()).unwrap())
}

/// The decode body of a chat request, with our members written as `+`.
fn decode(body: &str) -> String {
    attempt(&ok(Endpoint::Chat, body)).decode.replace(OURS, "+")
}

#[test]
fn control_is_cut_wherever_it_stands_and_commas_stay_right() {
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
fn every_control_key_is_known() {
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
    ] {
        for endpoint in Endpoint::ALL {
            let plain = ok(endpoint, &format!(r#"{{"{key}":1,"z":2}}"#)).plain(&[]);
            assert_eq!(plain.iter().filter(|&&b| b == b'1').count(), 0, "{endpoint} {key}");
        }
    }
}

#[test]
fn numbers_escapes_order_and_duplicates_survive() {
    let body = r#"{"z":1e400,"seed":12345678901234567890123,"top_p":0.10000000000000000555,"z":-0.0,"u":"\u00e9\/é","n":1}"#;
    assert_eq!(decode(body), format!("{},+}}", body.strip_suffix('}').unwrap()));
}

#[test]
fn prefill_does_not_stream_and_decode_does() {
    let legs = attempt(&ok(
        Endpoint::Chat,
        r#"{"stream_options":{"include_usage":true},"stream":true,"m":1,"stream":true}"#,
    ));
    assert_eq!(legs.prefill, format!(r#"{{"stream":false,"m":1,"stream":false,{OURS}}}"#));
    assert_eq!(
        legs.decode,
        format!(
            r#"{{"stream_options":{{"include_usage":true}},"stream":true,"m":1,"stream":true,{OURS}}}"#
        )
    );
}

#[test]
fn bodies_that_do_not_differ_are_one_allocation() {
    let request = ok(Endpoint::Chat, r#"{"messages":[],"stream":false}"#);
    let legs = request.inject(&Attempt {
        bootstrap: &Bootstrap { host: "h".into(), port: 1 },
        rooms: &[Room::from_random(1)],
        rids: &[Rid::from_random(1)],
        dp: Pair::default(),
    });
    assert_eq!(legs.prefill.as_ptr(), legs.decode.as_ptr());
}

#[test]
fn batches_get_lists_of_their_length() {
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
fn a_batch_is_what_the_engine_takes_for_one() {
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
    assert_eq!(refused(Completions, r#"{"prompt":[]}"#), Some("prompt"));
    assert_eq!(refused(Generate, r#"{"text":[]}"#), Some("text"));
    assert_eq!(refused(Generate, r#"{"input_ids":[]}"#), Some("input_ids"));
    assert_eq!(refused(Generate, r#"{"input_embeds":[]}"#), Some("input_embeds"));
}

#[test]
fn n_is_strictly_a_small_positive_integer() {
    use Endpoint::{Chat, Completions, Generate, Responses};
    for bad in ["0", "-1", "1.0", "\"2\"", "true", "129", "1e1", "[2]", "18446744073709551616"] {
        assert_eq!(refused(Chat, &format!(r#"{{"n":{bad}}}"#)), Some("n"), "{bad}");
        let nested = format!(r#"{{"text":"a","sampling_params":{{"n":{bad}}}}}"#);
        assert_eq!(refused(Generate, &nested), Some("sampling_params.n"), "{bad}");
    }
    assert_eq!(ok(Chat, r#"{"n":null}"#).samples(), 1);
    assert_eq!(ok(Responses, r#"{"n":"x"}"#).samples(), 1);
    assert_eq!(refused(Completions, r#"{"n":2,"best_of":3}"#), Some("best_of"));
    assert_eq!(refused(Completions, r#"{"best_of":2}"#), Some("best_of"));
    let list =
        |a, b| format!(r#"{{"text":["a","b"],"sampling_params":[{{"n":{a}}},{{"n":{b}}}]}}"#);
    assert_eq!(refused(Generate, &list(2, 3)), Some("sampling_params.n"));
    assert_eq!(ok(Generate, &list(2, 2)).samples(), 2);
    let wide = format!(r#"{{"n":100,"prompt":[{}"a"]}}"#, "\"a\",".repeat(99));
    assert_eq!(refused(Completions, &wide), Some("prompt"));
}

#[test]
fn n_reads_one_in_both_bodies_of_a_sample_and_stays_for_a_single_engine() {
    let completions = ok(Endpoint::Completions, r#"{"n" : 3,"prompt":"a", "best_of":3}"#);
    assert_eq!(completions.samples(), 3);
    let legs = attempt(&completions);
    assert_eq!(legs.decode, format!(r#"{{"n" : 1,"prompt":"a", "best_of":1,{OURS}}}"#));
    assert_eq!(legs.prefill, legs.decode);
    assert_eq!(
        completions.plain(&[Rid::from_random(1)]),
        r#"{"n" : 3,"prompt":"a", "best_of":3,"rid":"00000000000000000000000000000001"}"#
    );
    let generate =
        ok(Endpoint::Generate, r#"{"sampling_params": {"temperature":0,"n" :2},"text":"a"}"#);
    assert_eq!(
        attempt(&generate).decode,
        format!(r#"{{"sampling_params": {{"temperature":0,"n" :1}},"text":"a",{OURS}}}"#)
    );
    let beam = ok(Endpoint::Generate, r#"{"sampling_params":{"n":2,"beam_width":4},"text":"a"}"#);
    assert_eq!(beam.samples(), 1);
    assert!(attempt(&beam).decode.contains(r#""n":2"#));
}

#[test]
fn stream_is_read_as_the_engine_s_models_read_it() {
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
        assert_eq!(refused(Endpoint::Chat, &format!(r#"{{"stream":{bad}}}"#)), Some("stream"));
    }
}

#[test]
fn the_few_fields_are_read_and_the_last_of_two_counts() {
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
    let responses =
        ok(Endpoint::Responses, r#"{"previous_response_id":"resp_1","max_output_tokens":3}"#);
    assert_eq!(responses.previous_response_id(), Some("resp_1"));
    assert_eq!(responses.max_output_tokens(), Some(3));
}

#[test]
fn a_response_is_named_by_its_request_id() {
    let decode =
        attempt(&ok(Endpoint::Responses, r#"{"request_id":"resp_mine","input":"a"}"#)).decode;
    assert_eq!(
        decode,
        format!(r#"{{"input":"a",{OURS},"request_id":"resp_00000000000000000000000000000009"}}"#)
    );
    assert_eq!(
        Endpoint::Responses.abort_name(&Rid::from_random(9)).as_deref(),
        Some("resp_00000000000000000000000000000009")
    );
}

#[test]
fn forced_ranks_reach_the_leg_they_are_for() {
    let legs = ok(Endpoint::Chat, "{}").inject(&Attempt {
        bootstrap: &Bootstrap { host: "h".into(), port: 1 },
        rooms: &[Room::from_random(5)],
        rids: &[Rid::from_random(9)],
        dp: Pair { prefill: Some(2), decode: Some(3) },
    });
    assert_eq!(
        legs.prefill,
        format!(r#"{{{OURS},"routed_dp_rank":2,"disagg_prefill_dp_rank":2}}"#)
    );
    assert_eq!(legs.decode, format!(r#"{{{OURS},"disagg_prefill_dp_rank":2,"routed_dp_rank":3}}"#));
}

#[test]
fn what_is_no_json_object_is_refused() {
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
        let refused = Request::parse(Endpoint::Chat, Bytes::from_static(body)).unwrap_err();
        assert_eq!(refused.param, None);
        assert!(refused.message.starts_with("The request body"), "{refused}");
    }
    let many = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(MAX_MEMBERS));
    assert!(parse(Endpoint::Chat, &many).unwrap_err().message.contains("4096"));
}

/// A JSON value as text, with spellings that a parser would not write itself.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        r#""([ -!#-\[\]-~éß漢😀]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}){0,12}""#,
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let space = "[ \t\r\n]{0,2}";
        let members = proptest::collection::vec((key(), space, inner.clone()), 0..4);
        prop_oneof![
            (proptest::collection::vec(inner, 0..4), space)
                .prop_map(|(items, ws)| format!("[{ws}{}{ws}]", items.join(&format!("{ws},{ws}")))),
            members.prop_map(|members| {
                let members: Vec<_> = members
                    .iter()
                    .map(|(key, ws, value)| format!("{key}{ws}:{ws}{value}"))
                    .collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

/// A key as text: plain ones, control ones, control ones with letters escaped.
fn key() -> impl Strategy<Value = String> {
    let control = proptest::sample::select(vec![
        "rid",
        "bootstrap_room",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_pair_key",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
        "data_parallel_rank",
        "decode_tp_size",
    ]);
    let escaped = (control.clone(), any::<u64>()).prop_map(|(key, which)| {
        let mut out = String::new();
        for (i, c) in key.chars().enumerate() {
            match which >> (i % 64) & 1 {
                1 => out.push_str(&format!("\\u{:04x}", c as u32)),
                _ => out.push(c),
            }
        }
        format!("\"{out}\"")
    });
    prop_oneof![
        2 => r#""[a-z_]{0,6}""#.prop_filter("fields that are read have their own tests", |key| {
            !["stream", "n", "model"].contains(&key.trim_matches('"'))
        }),
        1 => control.prop_map(|key| format!("\"{key}\"")),
        1 => escaped,
    ]
}

/// A member with the white space around its parts.
fn member() -> impl Strategy<Value = [String; 6]> {
    let space = "[ \t\r\n]{0,2}";
    (space, key(), space, space, value(), space)
        .prop_map(|(a, key, b, c, value, d)| [a, key, b, format!(":{c}"), value, d])
}

fn is_control(key: &str) -> bool {
    let key: String = match serde_json::from_str(key) {
        Ok(key) => key,
        Err(_) => return false,
    };
    is_engine_control(Endpoint::Chat, &key)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The decode body is the client's members but the control ones, byte for byte and in order,
    /// then ours.
    #[test]
    fn the_client_s_bytes_survive(members in proptest::collection::vec(member(), 0..8), tail in "[ \n]{0,2}") {
        let write = |members: &[&[String; 6]]| {
            members.iter().map(|m| m.concat()).collect::<Vec<_>>().join(",")
        };
        let all: Vec<_> = members.iter().collect();
        let body = format!("{{{}}}{tail}", write(&all));
        let kept: Vec<_> = members.iter().filter(|m| !is_control(&m[1])).collect();
        let legs = attempt(&ok(Endpoint::Chat, &body));
        prop_assert_eq!(&legs.prefill, &legs.decode);
        prop_assert!(legs.decode.ends_with(&tail));

        // Ours stand last; without them, and without white space between tokens, what is left
        // is what was kept.
        prop_assert_eq!(legs.decode.matches(OURS).count(), 1, "{}", legs.decode);
        let comma = if kept.is_empty() { "" } else { "," };
        let rest = legs.decode.replacen(&format!("{comma}{OURS}"), "", 1);
        let want = format!("{{{}}}", write(&kept));
        prop_assert_eq!(tokens(&rest), tokens(&want));

        // Between two kept neighbours not even white space changes.
        for pair in members.windows(2) {
            if !is_control(&pair[0][1]) && !is_control(&pair[1][1]) {
                let both = format!("{},{}", pair[0][1..].concat(), pair[1][..5].concat());
                prop_assert!(rest.contains(&both), "{} in {}", both, rest);
            }
        }
    }

    /// The engine's parser, which keeps the last of two, sees the client's values and ours.
    #[test]
    fn the_engine_reads_what_was_sent(members in proptest::collection::vec(member(), 0..8)) {
        let body = format!("{{{}}}", members.iter().map(|m| m.concat()).collect::<Vec<_>>().join(","));
        let read = |text: &str| {
            Raw::parse(text.as_bytes()).unwrap().members()
                .filter_map(|m| Some((m.key.as_str()?.into_owned(), m.value.bytes().to_vec())))
                .collect::<HashMap<_, _>>()
        };
        let mut want = read(&body);
        want.retain(|key, _| !is_engine_control(Endpoint::Chat, key));
        want.extend(read(&format!("{{{OURS}}}")));
        prop_assert_eq!(read(&attempt(&ok(Endpoint::Chat, &body)).decode), want);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for endpoint in Endpoint::ALL {
            let _ = Request::parse(endpoint, Bytes::from(bytes.clone()));
        }
    }

    /// Whatever is accepted makes bodies that are accepted again, with nothing left to remove.
    #[test]
    fn accepted_text_stays_json(
        endpoint in proptest::sample::select(Endpoint::ALL.to_vec()),
        text in r#"\{("(n|rid|text|prompt|stream|sampling_params|stream_options|input_ids)":(\[[1-3"a\],]{0,6}|[0-3]|true|\{"n":2\}|"a"|\[\]|\[\[1\]\]|\["a","b"\]),?){0,4}\}"#,
    ) {
        if let Ok(request) = Request::parse(endpoint, Bytes::from(text)) {
            let legs = attempt(&request);
            for body in [&legs.prefill, &legs.decode] {
                prop_assert!(Raw::parse(body.as_bytes()).is_ok(), "{}", body);
            }
            prop_assert_eq!(ok(endpoint, &legs.prefill).stream(), false);
            prop_assert_eq!(ok(endpoint, &legs.decode).samples(), 1);
        }
    }
}

/// The text without white space between tokens.
fn tokens(text: &str) -> String {
    let mut out = String::new();
    let (mut inside, mut escaped) = (false, false);
    for c in text.chars() {
        if inside || !c.is_ascii_whitespace() {
            out.push(c);
        }
        match c {
            '"' if !escaped => inside = !inside,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    out
}
