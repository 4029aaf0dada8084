//! Clients of gateways that send requests again and again, and the result of every request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::site::{SiteGateway, ask, enter, post, wait};

/// One request as its client saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The gateway that was asked.
    pub gateway: SocketAddr,
    pub at: Instant,
    pub took: Duration,
    pub prefill: String,
    pub decode: String,
    /// Why it failed.
    pub failure: Option<String>,
}

/// Clients that go on until dropped.
pub struct Crowd {
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

const MAX_AT_ONCE: usize = 12;

static PROMPTS: AtomicU64 = AtomicU64::new(0);

/// A prompt of about this many bytes that was never sent before.
pub fn prompt(bytes: usize) -> String {
    let number = PROMPTS.fetch_add(1, Ordering::Relaxed);
    format!("{number} {}", "word ".repeat(bytes / 5))
}

impl Crowd {
    /// Starts `clients` clients of each gateway, each with one request after the other.
    pub fn start(gateways: &[SiteGateway], clients: usize) -> Crowd {
        let (asked, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut crowd = Crowd { asked, stop, threads: Vec::new() };
        for gateway in gateways {
            for _ in 0..clients {
                let (gateway, asked) = (gateway.clone(), Arc::clone(&crowd.asked));
                let stop = Arc::clone(&crowd.stop);
                crowd.threads.push(std::thread::spawn(move || {
                    enter(&gateway.outside);
                    while !stop.load(Ordering::Relaxed) {
                        let one = one(gateway.address);
                        asked.lock().expect("no client panics while it holds the list").push(one);
                    }
                }));
            }
        }
        crowd
    }

    /// Clients of each gateway in turn, each with one request, one client every `every`. They do not
    /// wait for earlier ones, of which [`MAX_AT_ONCE`] may be under way.
    pub fn arriving(gateways: &[SiteGateway], every: Duration) -> Crowd {
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (gateways, all, stopped) = (gateways.to_vec(), Arc::clone(&asked), Arc::clone(&stop));
        let arrivals = std::thread::spawn(move || {
            let (mut clients, mut next) = (Vec::new(), Instant::now());
            for gateway in gateways.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                next = Instant::now().max(next) + every;
                let under_way = |client: &&JoinHandle<()>| !client.is_finished();
                if clients.iter().filter(under_way).count() >= MAX_AT_ONCE {
                    // This machine stalls: no further load is put on it.
                    continue;
                }
                let (gateway, asked) = (gateway.clone(), Arc::clone(&all));
                clients.push(std::thread::spawn(move || {
                    enter(&gateway.outside);
                    let one = one(gateway.address);
                    asked.lock().expect("no client panics while it holds the list").push(one);
                }));
            }
            clients.into_iter().for_each(|client| client.join().expect("a client"));
        });
        Crowd { asked, stop, threads: vec![arrivals] }
    }

    /// Requests that were sent from `from` to `to` and have been answered.
    pub fn between(&self, from: Instant, to: Instant) -> Vec<Asked> {
        let asked = self.asked.lock().expect("no client panics while it holds the list");
        asked.iter().filter(|one| from <= one.at && one.at < to).cloned().collect()
    }

    /// Waits until `count` more requests have been answered.
    pub fn until_more(&self, count: usize) {
        let from = self.asked.lock().expect("no client panics while it holds the list").len();
        wait("requests are answered", || {
            let now = self.asked.lock().expect("no client panics while it holds the list").len();
            (now >= from + count).then_some(())
        });
    }

    /// Ends the clients; all their requests.
    pub fn end(mut self) -> Vec<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client");
        }
        std::mem::take(&mut *self.asked.lock().expect("no client panics while it holds the list"))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn one(gateway: SocketAddr) -> Asked {
    let body = serde_json::json!({
        "text": prompt(1_500),
        "stream": true,
        "sampling_params": {"max_new_tokens": 12, "ignore_eos": true},
    });
    let at = Instant::now();
    let answer = ask(gateway, &post("/generate", &body.to_string()));
    let took = at.elapsed();
    let (prefill, decode) = (String::new(), String::new());
    let mut asked = Asked { gateway, at, took, prefill, decode, failure: None };
    match answer {
        Ok((head, body)) => {
            let header = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|value| value.rsplit('/').next())
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            asked.prefill = header("x-pd-router-prefill: ");
            asked.decode = header("x-pd-router-decode: ");
            if !head.starts_with("HTTP/1.1 200 ") || !body.contains("[DONE]") {
                asked.failure = Some(format!("{head}\n{body}"));
            }
        }
        Err(error) => asked.failure = Some(error.to_string()),
    }
    asked
}

/// The share of the requests for which `chosen` holds.
pub fn share(asked: &[Asked], chosen: impl Fn(&Asked) -> bool) -> f64 {
    asked.iter().filter(|one| chosen(one)).count() as f64 / asked.len().max(1) as f64
}

/// The mean time of requests, in milliseconds.
pub fn mean_ms(asked: &[Asked]) -> f64 {
    let sum: Duration = asked.iter().map(|one| one.took).sum();
    sum.as_secs_f64() * 1e3 / asked.len().max(1) as f64
}

/// Asserts that every request was answered.
pub fn none_failed(asked: &[Asked]) {
    let failed: Vec<&Asked> = asked.iter().filter(|one| one.failure.is_some()).collect();
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), asked.len(), failed.first());
}
