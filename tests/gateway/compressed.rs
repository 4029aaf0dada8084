//! Compressed request bodies: decoded within the limits of plain ones.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderName, HeaderValue};
use router_tests::received::without_ours;
use router_tests::{Answer, Fleet, Gateway};

use crate::{CHAT, chat};

/// SGLang's own name of the field.
const BODY_COMPRESSED: &str = "x-body-compressed";

fn gzip(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).expect("writing to memory");
    encoder.finish().expect("writing to memory").into()
}

fn deflate(text: &[u8]) -> Bytes {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).expect("writing to memory");
    encoder.finish().expect("writing to memory").into()
}

fn zstd(text: &[u8]) -> Bytes {
    zstd::encode_all(text, 3).expect("writing to memory").into()
}

async fn send(gateway: &Gateway, path: &str, field: (&'static str, &str), body: Bytes) -> Answer {
    let mut request = gateway.client.json_request(path, body);
    let value = HeaderValue::from_str(field.1).expect("a value");
    request.headers_mut().insert(HeaderName::from_static(field.0), value);
    gateway.client.send(request).await.answer().await
}

#[tokio::test]
async fn a_compressed_body_reaches_both_engines_as_it_was_before() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let text = chat("hi").to_string();
    for (index, (name, coding, body)) in [
        ("content-encoding", "gzip", gzip(text.as_bytes())),
        ("content-encoding", "X-GZip", gzip(text.as_bytes())),
        ("content-encoding", "deflate", deflate(text.as_bytes())),
        ("content-encoding", "identity, zstd", zstd(text.as_bytes())),
        ("content-encoding", "Identity", text.clone().into()),
        ("content-encoding", "", text.clone().into()),
        (BODY_COMPRESSED, "zstd", zstd(text.as_bytes())),
    ]
    .into_iter()
    .enumerate()
    {
        send(&gateway, CHAT, (name, coding), body).await.expect_status(200);
        for engine in fleet.engines() {
            let leg = engine.legs_arrived(index + 1).await.remove(index);
            assert_eq!(String::from_utf8_lossy(&without_ours(&leg)), text, "{coding}");
            for field in ["content-encoding", BODY_COMPRESSED] {
                assert!(!leg.headers.contains_key(field), "{coding}: {:?}", leg.headers);
            }
        }
    }
    // What one engine serves alone is decoded too.
    let tokens = r#"{"prompt": "hi"}"#;
    let field = ("content-encoding", "gzip");
    send(&gateway, "/tokenize", field, gzip(tokens.as_bytes())).await.expect_status(200);
}

#[tokio::test]
async fn an_unknown_coding_is_a_415_that_lists_the_known_ones() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let text = chat("hi").to_string();
    for (name, coding) in
        [("content-encoding", "br"), ("content-encoding", "gzip, gzip"), (BODY_COMPRESSED, "lz4")]
    {
        let answer = send(&gateway, CHAT, (name, coding), text.clone().into()).await;
        let answer = answer.expect_status(415);
        assert_eq!(answer.header("x-pd-router-reason"), "encoded_body");
        assert_eq!(answer.header("accept-encoding"), "gzip, deflate, zstd");
        assert!(answer.error_message().contains("gzip"), "{}", answer.text());
    }
    for (coding, body) in [("gzip", text.clone().into()), ("zstd", gzip(text.as_bytes()))] {
        let answer = send(&gateway, CHAT, ("content-encoding", coding), body).await;
        assert_eq!(answer.expect_status(400).header("x-pd-router-reason"), "body_broken");
    }
    assert_eq!(fleet.prefill[0].legs().len(), 0);
}

#[tokio::test]
async fn a_bomb_is_a_413_and_costs_no_more_than_a_large_body() {
    const LIMIT: usize = 4 << 20;
    let fleet = Fleet::start(1, 1).await;
    let limit = LIMIT.to_string();
    let gateway = fleet.gateway_with(&["--max-body", &limit]).await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let zeros = vec![0; 16 * LIMIT];
    let bombs = [("gzip", gzip(&zeros)), ("deflate", deflate(&zeros)), ("zstd", zstd(&zeros))];
    drop(zeros);
    let before = gateway.resident_bytes();
    for (coding, bomb) in bombs {
        assert!(bomb.len() < LIMIT, "{coding}: {} bytes", bomb.len());
        let answer = send(&gateway, CHAT, ("content-encoding", coding), bomb).await;
        assert_eq!(answer.expect_status(413).header("x-pd-router-reason"), "body_too_large");
    }
    let grown = gateway.peak_bytes().saturating_sub(before);
    // The decoded body, grown by doubling, the window of zstd, and the runtime's own buffers.
    assert!(grown < 8 * LIMIT as u64, "grew by {grown} bytes");
}

#[tokio::test]
async fn decoded_bodies_count_in_the_memory_of_all_bodies() {
    let fleet = Fleet::start(1, 1).await;
    let flags = ["--max-body", "1000000", "--max-body-memory", "1000000"];
    let gateway = fleet.gateway_with(&flags).await;
    let padded = |bytes: usize| {
        let mut body = chat("hi");
        body["padding"] = "x".repeat(bytes).into();
        body.to_string()
    };
    let text = padded(999_800);
    assert!(text.len() < 1_000_000);
    gateway.client.post_bytes(CHAT, text.clone()).await.expect_status(200);
    // The encoded body is there, too, until it is decoded.
    let answer = send(&gateway, CHAT, ("content-encoding", "gzip"), gzip(text.as_bytes())).await;
    assert_eq!(answer.expect_status(503).header("x-pd-router-reason"), "body_memory");
    let fits = padded(900_000);
    let answer = send(&gateway, CHAT, ("content-encoding", "zstd"), zstd(fits.as_bytes())).await;
    answer.expect_status(200);
}
