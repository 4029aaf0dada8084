//! Answers of the pair, against those of the ordinary server.

use std::collections::HashSet;

use router_tests::Client;
use serde_json::Value;

use crate::answer::{Said, said, text};
use crate::requests::{self, Ask};
use crate::world::World;

/// Prompts sent at once; each decode leg then has many neighbours that it could be mixed up with.
const AT_ONCE: u32 = 24;

/// Every request of the table, one after another.
pub(crate) async fn equal(world: &mut World) {
    let gateway = world.gateway(&[]).await;
    let mut different = Vec::new();
    let mut texts = HashSet::new();
    let table = requests::table();
    for ask in &table {
        let expected = said(&world.reference(), ask).await;
        let got = said(&gateway.client, ask).await;
        texts.insert(text(&expected));
        if !same(&got, &expected) {
            different.push(shown(ask, &got, &expected));
        }
    }
    println!(
        "  {} of {} answers are the reference's, {} texts differ from one another",
        table.len() - different.len(),
        table.len(),
        texts.len()
    );
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(texts.len() >= 30, "{} texts prove little", texts.len());
    world.idle().await;
}

/// An engine's refusal is compared by status and words: gateways have a shape of their own.
pub(crate) fn same(got: &Said, expected: &Said) -> bool {
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

fn shown(ask: &Ask, got: &Said, expected: &Said) -> String {
    let body = |said: &Said| Value::from(said.body.clone()).to_string();
    format!(
        "{} ({})\n  through the pair: {} {}\n  the reference: {} {}",
        ask.name,
        ask.path,
        got.status,
        body(got),
        expected.status,
        body(expected)
    )
}

/// Engine control in a client's body is the gateway's to set.
pub(crate) async fn smuggling(world: &mut World) {
    let gateway = world.gateway(&[]).await;
    for ask in requests::table().iter().filter(|ask| ask.name.ends_with(" 7")) {
        let expected = said(&world.reference(), ask).await;
        let mut smuggling = ask.clone();
        let fields = requests::smuggled().as_object().cloned().expect("an object");
        smuggling.body.as_object_mut().expect("an object").extend(fields);
        let got = said(&gateway.client, &smuggling).await;
        assert!(same(&got, &expected), "{}", shown(ask, &got, &expected));
    }
    world.idle().await;
}

/// A room that two requests shared would give one of them the other's continuation.
pub(crate) async fn at_once(world: &mut World) {
    let gateway = world.gateway(&[]).await;
    let prompt = |number: u32| Ask {
        name: format!("prompt {number}"),
        path: "/generate",
        body: requests::generate(&format!("every prompt moves {number} streams"), 16),
    };
    let asks: Vec<Ask> = (0..AT_ONCE).map(prompt).collect();
    let got = all_at_once(gateway.client, &asks).await;
    for (ask, got) in asks.iter().zip(got) {
        let expected = said(&world.reference(), ask).await;
        assert!(same(&got, &expected), "{}", shown(ask, &got, &expected));
    }
    world.idle().await;
}

async fn all_at_once(client: Client, asks: &[Ask]) -> Vec<Said> {
    let send = |ask: &Ask| {
        let ask = ask.clone();
        tokio::spawn(async move { said(&client, &ask).await })
    };
    let mut answers = Vec::with_capacity(asks.len());
    for running in asks.iter().map(send).collect::<Vec<_>>() {
        answers.push(running.await.expect("an answer"));
    }
    answers
}
