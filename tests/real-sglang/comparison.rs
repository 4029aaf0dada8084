//! Answers of the pair, compared with those of the reference server.

use std::collections::HashSet;

use router_tests::Client;
use serde_json::Value;

use crate::answer::{Answer, send, text};
use crate::requests::{self, RequestCase};
use crate::testbed::TestBed;

/// Number of concurrent prompts, so that a decode leg could be mixed up with many others.
const CONCURRENT: u32 = 24;

/// Sends every request of the table, one after another.
pub(crate) async fn matches_reference(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&[]).await;
    let mut differences = Vec::new();
    let mut texts = HashSet::new();
    let table = requests::table();
    for case in &table {
        let expected = send(&testbed.reference(), case).await;
        let got = send(&gateway.client, case).await;
        texts.insert(text(&expected));
        if !matches(&got, &expected) {
            differences.push(shown(case, &got, &expected));
        }
    }
    println!(
        "  {} of {} answers are the reference's, {} texts differ from one another",
        table.len() - differences.len(),
        table.len(),
        texts.len()
    );
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(texts.len() >= 30, "{} texts prove little", texts.len());
    testbed.wait_until_idle().await;
}

/// Errors are compared by status and message, since gateways have their own error shape.
pub(crate) fn matches(got: &Answer, expected: &Answer) -> bool {
    if expected.status.is_success() {
        return got == expected;
    }
    let words = message(&expected.body);
    got.status == expected.status && message(&got.body).contains(&words)
}

fn message(body: &[Value]) -> String {
    let body = &body[0];
    let message = body["error"]["message"].as_str().or_else(|| body["message"].as_str());
    let words: Vec<&str> = message.unwrap_or_default().split_whitespace().collect();
    words.join(" ")
}

fn shown(case: &RequestCase, got: &Answer, expected: &Answer) -> String {
    let body = |answer: &Answer| Value::from(answer.body.clone()).to_string();
    format!(
        "{} ({})\n  through the pair: {} {}\n  the reference: {} {}",
        case.name,
        case.path,
        got.status,
        body(got),
        expected.status,
        body(expected)
    )
}

/// Engine control in a client's body has no effect.
pub(crate) async fn engine_control_is_ignored(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&[]).await;
    for case in requests::table().iter().filter(|case| case.name.ends_with(" 7")) {
        let expected = send(&testbed.reference(), case).await;
        let mut case_with_control = case.clone();
        let fields = requests::client_engine_control().as_object().cloned().expect("an object");
        case_with_control.body.as_object_mut().expect("an object").extend(fields);
        let got = send(&gateway.client, &case_with_control).await;
        assert!(matches(&got, &expected), "{}", shown(case, &got, &expected));
    }
    testbed.wait_until_idle().await;
}

/// Concurrent requests use distinct rooms: a shared room would give one the other's continuation.
pub(crate) async fn concurrent_requests(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&[]).await;
    let prompt = |number: u32| RequestCase {
        name: format!("prompt {number}"),
        path: "/generate",
        body: requests::generate(&format!("every prompt moves {number} streams"), 16),
    };
    let cases: Vec<RequestCase> = (0..CONCURRENT).map(prompt).collect();
    let got = send_concurrently(gateway.client, &cases).await;
    for (case, got) in cases.iter().zip(got) {
        let expected = send(&testbed.reference(), case).await;
        assert!(matches(&got, &expected), "{}", shown(case, &got, &expected));
    }
    testbed.wait_until_idle().await;
}

async fn send_concurrently(client: Client, cases: &[RequestCase]) -> Vec<Answer> {
    let send = |case: &RequestCase| {
        let case = case.clone();
        tokio::spawn(async move { send(&client, &case).await })
    };
    let mut answers = Vec::with_capacity(cases.len());
    for running in cases.iter().map(send).collect::<Vec<_>>() {
        answers.push(running.await.expect("an answer"));
    }
    answers
}
