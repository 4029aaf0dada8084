//! Property tests of the splice, on JSON in every spelling.

use std::collections::HashMap;

use proptest::prelude::*;

use super::tests::{ADDED, attempt, ok};
use super::*;
use crate::sglang::{AllowedFields, BodyType};

/// A JSON value as text, in spellings that a serializer would not write.
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

/// A key as text: plain keys, control keys, control keys with escaped letters.
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
        2 => r#""[a-z_]{0,6}""#.prop_filter("parsed fields have their own tests", |key| {
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

fn removes(key: &str) -> bool {
    AllowedFields::default().removes(BodyType::Generating(Endpoint::Chat), key)
}

fn is_control(key: &str) -> bool {
    let key: String = match serde_json::from_str(key) {
        Ok(key) => key,
        Err(_) => return false,
    };
    removes(&key)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The decode body is the client's members without engine control, byte for byte and in order,
    /// followed by the attempt's members.
    #[test]
    fn the_bytes_of_the_client_are_kept(members in proptest::collection::vec(member(), 0..8), tail in "[ \n]{0,2}") {
        let write = |members: &[&[String; 6]]| {
            members.iter().map(|m| m.concat()).collect::<Vec<_>>().join(",")
        };
        let all: Vec<_> = members.iter().collect();
        let body = format!("{{{}}}{tail}", write(&all));
        let kept: Vec<_> = members.iter().filter(|m| !is_control(&m[1])).collect();
        let legs = attempt(&ok(Endpoint::Chat, &body));
        prop_assert_eq!(&legs.prefill, &legs.decode);
        prop_assert!(legs.decode.ends_with(&tail));

        // The attempt's members come last. Without them, and without white space between tokens,
        // the rest equals the kept members.
        prop_assert_eq!(legs.decode.matches(ADDED).count(), 1, "{}", legs.decode);
        let comma = if kept.is_empty() { "" } else { "," };
        let rest = legs.decode.replacen(&format!("{comma}{ADDED}"), "", 1);
        let want = format!("{{{}}}", write(&kept));
        prop_assert_eq!(tokens(&rest), tokens(&want));

        // Between two kept neighbours even white space stays.
        for pair in members.windows(2) {
            if !is_control(&pair[0][1]) && !is_control(&pair[1][1]) {
                let both = format!("{},{}", pair[0][1..].concat(), pair[1][..5].concat());
                prop_assert!(rest.contains(&both), "{} in {}", both, rest);
            }
        }
    }

    /// A parser that keeps the last of two, as the engine's, sees the client's values and the
    /// attempt's.
    #[test]
    fn the_engine_reads_what_was_sent(members in proptest::collection::vec(member(), 0..8)) {
        let body = format!("{{{}}}", members.iter().map(|m| m.concat()).collect::<Vec<_>>().join(","));
        let read = |text: &str| {
            Raw::parse(text.as_bytes()).unwrap().members()
                .filter_map(|m| Some((m.key.as_str()?.into_owned(), m.value.bytes().to_vec())))
                .collect::<HashMap<_, _>>()
        };
        let mut want = read(&body);
        want.retain(|key, _| !removes(key));
        want.extend(read(&format!("{{{ADDED}}}")));
        prop_assert_eq!(read(&attempt(&ok(Endpoint::Chat, &body)).decode), want);
    }

    #[test]
    fn arbitrary_bytes_keep_the_laws(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        crate::laws::request(&bytes);
    }

    /// The parsed fields in every shape, including invalid ones.
    #[test]
    fn parsed_fields_keep_the_laws(
        endpoint in 0..Endpoint::ALL.len(),
        text in r#"\{("(n|rid|text|prompt|stream|sampling_params|stream_options|input_ids)":(\[[1-3"a\],]{0,6}|[0-3]|true|\{"n":2\}|"a"|\[\]|\[\[1\]\]|\["a","b"\]),?){0,4}\}"#,
    ) {
        crate::laws::request(&[&[endpoint as u8], text.as_bytes()].concat());
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
