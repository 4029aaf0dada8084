//! [`CrashHistory`]: the contents of requests that were running on engines when these crashed.
//!
//! A request may itself be what crashes engines. Its client may send it again, so the attempts of one
//! request are not enough to recognise it: its content is.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use router_core::fleet::{ObjectName, Worker};
use router_core::sglang::{Endpoint, Request};
use tokio::time::Instant;

/// Time for which the crashes of a content count.
pub(crate) const CRASH_MEMORY: Duration = Duration::from_secs(600);
/// Maximum number of contents. Each takes about 100 bytes; the oldest is dropped for a new one.
const MAX_CONTENTS: usize = 1024;
/// Crashes of one engine within this time are one crash: an engine needs longer to load its model.
/// Several requests with the same content may have run on it.
const ONE_CRASH: Duration = Duration::from_secs(5);
/// A content is refused after two crashes at the earliest, since one may be a coincidence.
const MIN_CRASHES_TO_REFUSE: u32 = 2;

/// The endpoint and the hash of a request's pool and body, as the client sent it. What kills the engines of
/// one pool, such as a mirror, is no reason to keep it from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentFingerprint {
    endpoint: Endpoint,
    bytes: usize,
    hash: u64,
}

#[derive(Debug)]
struct CrashedContent {
    content: ContentFingerprint,
    crashes: u32,
    last_worker: u64,
    last: Instant,
}

/// The contents of the last ten minutes, oldest first.
#[derive(Debug)]
pub(crate) struct CrashHistory {
    /// Random, so that no client can make two contents with the same hash.
    seed: u64,
    contents: Mutex<VecDeque<CrashedContent>>,
}

impl Default for CrashHistory {
    fn default() -> CrashHistory {
        CrashHistory { seed: rand::random(), contents: Mutex::default() }
    }
}

/// Number of crashes after which a content is refused. `per_request`: `--max-engine-crashes`.
pub(crate) fn crashes_to_refuse(per_request: u32) -> u32 {
    per_request.max(MIN_CRASHES_TO_REFUSE)
}

impl CrashHistory {
    pub(crate) fn fingerprint(&self, pool: &ObjectName, request: &Request) -> ContentFingerprint {
        let (endpoint, body) = (request.endpoint(), request.body());
        let seed = hash(hash(self.seed, pool.namespace.as_bytes()), pool.name.as_bytes());
        ContentFingerprint { endpoint, bytes: body.len(), hash: hash(seed, body) }
    }

    /// The number of engines of a pool that crashed while they ran this content. A body is hashed only if a
    /// content of its length is known.
    pub(crate) fn crashes(&self, pool: &ObjectName, request: &Request) -> u32 {
        let (endpoint, bytes) = (request.endpoint(), request.body().len());
        let now = Instant::now();
        let is_like = |known: &CrashedContent| {
            known.content.endpoint == endpoint
                && known.content.bytes == bytes
                && now.duration_since(known.last) < CRASH_MEMORY
        };
        if !self.contents.lock().iter().any(is_like) {
            return 0;
        }
        let content = self.fingerprint(pool, request);
        let contents = self.contents.lock();
        let found = contents.iter().find(|known| is_like(known) && known.content == content);
        found.map_or(0, |known| known.crashes)
    }

    /// Records that `worker` crashed while it ran the content. Returns the number of crashes so far.
    pub(crate) fn record(&self, content: ContentFingerprint, worker: &Worker) -> u32 {
        let now = Instant::now();
        let mut contents = self.contents.lock();
        contents.retain(|known| now.duration_since(known.last) < CRASH_MEMORY);
        let at = contents.iter().position(|known| known.content == content);
        let mut entry = at.and_then(|at| contents.remove(at)).unwrap_or(CrashedContent {
            content,
            crashes: 0,
            last_worker: 0,
            last: now,
        });
        let is_same_crash = entry.crashes > 0
            && entry.last_worker == worker.identity
            && now.duration_since(entry.last) < ONE_CRASH;
        if !is_same_crash {
            entry.crashes += 1;
        }
        (entry.last_worker, entry.last) = (worker.identity, now);
        let crashes = entry.crashes;
        if contents.len() >= MAX_CONTENTS {
            contents.pop_front();
        }
        contents.push_back(entry);
        crashes
    }
}

/// A keyed hash by folded multiplication: fast, since every streamed request is hashed.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let wide = u128::from(hash ^ word) * u128::from(FACTOR ^ seed.rotate_left(32) | 1);
        (wide as u64) ^ ((wide >> 64) as u64) ^ seed
    };
    let mut words = bytes.chunks_exact(8);
    let mut state = mix(seed, bytes.len() as u64);
    for word in &mut words {
        state = mix(state, word.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)));
    }
    let rest = words.remainder().iter().fold(1, |all, byte| all << 8 | u64::from(*byte));
    mix(mix(state, rest), FACTOR)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use router_core::fleet::WorkerKey;

    use super::*;

    fn request(text: &str) -> Request {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
        Request::parse(Endpoint::Chat, Bytes::from(body)).expect("a valid request")
    }

    fn pool(name: &str) -> ObjectName {
        ObjectName { namespace: "default".into(), name: name.into() }
    }

    fn worker(uid: &str) -> Worker {
        let key = WorkerKey { uid: uid.into(), address: ([127, 0, 0, 1], 8000).into() };
        Worker::new(key, "default/pod")
    }

    #[tokio::test(start_paused = true)]
    async fn crashes_are_counted_by_content_and_forgotten_after_ten_minutes() {
        let history = CrashHistory::default();
        let (poison, other) = (request("poison"), request("potion"));
        assert_eq!(history.record(history.fingerprint(&pool("a"), &poison), &worker("a")), 1);
        assert_eq!(history.record(history.fingerprint(&pool("a"), &poison), &worker("b")), 2);
        assert_eq!(
            (history.crashes(&pool("a"), &poison), history.crashes(&pool("a"), &other)),
            (2, 0)
        );
        assert_eq!(history.crashes(&pool("b"), &poison), 0, "another pool");
        tokio::time::advance(CRASH_MEMORY).await;
        assert_eq!(history.crashes(&pool("a"), &poison), 0);
        assert_eq!(history.record(history.fingerprint(&pool("a"), &poison), &worker("a")), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_with_one_content_on_one_engine_count_its_crash_once() {
        let history = CrashHistory::default();
        let content = history.fingerprint(&pool("a"), &request("hi"));
        assert_eq!(history.record(content, &worker("a")), 1);
        assert_eq!(history.record(content, &worker("a")), 1);
        tokio::time::advance(ONE_CRASH).await;
        assert_eq!(history.record(content, &worker("a")), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_contents_are_dropped() {
        let history = CrashHistory::default();
        let first = request("first");
        history.record(history.fingerprint(&pool("a"), &first), &worker("a"));
        for n in 0..MAX_CONTENTS {
            history
                .record(history.fingerprint(&pool("a"), &request(&format!("n{n}"))), &worker("a"));
        }
        assert_eq!(history.contents.lock().len(), MAX_CONTENTS);
        assert_eq!(history.crashes(&pool("a"), &first), 0);
    }
}
