//! Clients that send requests without pause, and the results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use router_tests::client::End;
use router_tests::{Client, eventually};
use tokio::task::JoinSet;

use crate::{CHAT, chat};

/// Sends requests until it is ended.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    /// Begins with this many clients, each with one request at a time, every other one streamed.
    pub(crate) fn start(client: Client, clients: usize) -> Load {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut all = JoinSet::new();
        for number in 0..clients {
            all.spawn(ask(client, number, Arc::clone(&stop), Arc::clone(&answered)));
        }
        Load { stop, answered, clients: all }
    }

    /// Waits until that many more requests have been answered.
    pub(crate) async fn more(&self, count: usize) {
        let goal = self.answered.load(Relaxed) + count;
        eventually("requests are answered", Duration::from_secs(60), async || {
            (self.answered.load(Relaxed) >= goal).then_some(())
        })
        .await;
    }

    /// Ends it and returns how many requests were answered.
    ///
    /// # Panics
    /// A request failed.
    pub(crate) async fn end(mut self) -> usize {
        self.stop.store(true, Relaxed);
        let mut failed = Vec::new();
        while let Some(client) = self.clients.join_next().await {
            failed.extend(client.expect("a client does not panic"));
        }
        let answered = self.answered.load(Relaxed);
        let few = &failed[..failed.len().min(10)];
        assert!(failed.is_empty(), "{} of {answered} requests failed: {few:#?}", failed.len());
        answered
    }
}

async fn ask(
    client: Client,
    number: usize,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) -> Vec<String> {
    let mut failed = Vec::new();
    let mut turn = number;
    while !stop.load(Relaxed) {
        turn += 1;
        let mut body = chat(&format!("client {number}, turn {turn}"));
        body["stream"] = turn.is_multiple_of(2).into();
        let request = client.json_request(CHAT, body.to_string());
        match client.try_send(request).await {
            Ok(mut stream) => {
                let status = stream.status;
                let mut text = Vec::new();
                let end = loop {
                    match stream.piece().await {
                        Ok(piece) => text.extend_from_slice(&piece),
                        Err(end) => break end,
                    }
                };
                let text = String::from_utf8_lossy(&text);
                let whole = text.contains("[DONE]") || body["stream"] == false;
                if status != 200 || end != End::Clean || !whole || text.contains("\"error\"") {
                    failed.push(format!("{turn}: {status} {end:?} {text}"));
                }
            }
            Err(error) => failed.push(format!("{turn}: {error:#}")),
        }
        answered.fetch_add(1, Relaxed);
    }
    failed
}
