//! [`CrashHistory`]: the contents of requests that were running on engines when these crashed.
//!
//! A request may itself be what crashes engines. Its client may send it again, by whichever gateway, so
//! the attempts of one request are not enough to recognise it: its content is. Gateways that share a token
//! exchange their records: hashes under a key that is made of the token,
//! never contents.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use router_core::fleet::{ObjectName, Worker};
use router_core::sglang::{ContentHash, ContentKey, Endpoint, Request};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::token::Guard;

/// Time for which the crashes of a content count.
pub(crate) const CRASH_MEMORY: Duration = Duration::from_secs(600);
/// Age from which a crash is not taken from another gateway: what this one has forgotten must not come
/// back by a gateway that forgets it a moment later.
const MAX_SHARED_AGE: Duration = Duration::from_secs(540);
/// Maximum number of crashes. Each takes about 80 bytes; the oldest is dropped for a new one.
const MAX_CRASHES: usize = 2048;
/// Crashes of one engine within this time are one crash: an engine needs longer to load its model.
/// Several requests with the same content may have run on it, of several gateways.
const ONE_CRASH: Duration = Duration::from_secs(5);
/// A content is refused after two crashes at the earliest, since one may be a coincidence.
const MIN_CRASHES_TO_REFUSE: usize = 2;

/// A content, and the pool and the endpoint that it was sent to. What kills the engines of one pool, such
/// as a mirror, is no reason to keep it from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentFingerprint {
    pub(crate) scope: u64,
    pub(crate) content: ContentHash,
}

/// A crash of an engine while it ran a content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crash {
    pub(crate) content: ContentFingerprint,
    /// The hash of the engine's pod and address.
    pub(crate) worker: u64,
    pub(crate) at: Instant,
}

impl Crash {
    fn is_same(&self, other: &Crash) -> bool {
        let apart = self.at.saturating_duration_since(other.at);
        let apart = apart.max(other.at.saturating_duration_since(self.at));
        self.content == other.content && self.worker == other.worker && apart < ONE_CRASH
    }
}

/// The crashes of the last ten minutes.
#[derive(Debug)]
pub(crate) struct CrashHistory {
    /// Names this gateway to its peers: random, new with each process.
    pub(crate) gateway: u64,
    guard: Arc<Guard>,
    key: Mutex<KnownKey>,
    crashes: Mutex<VecDeque<Crash>>,
    /// The number of crashes that were ever added, for those who wait for the next.
    version: watch::Sender<u64>,
}

/// The key that was last made of a token; at first a random one.
#[derive(Debug)]
struct KnownKey {
    token: Option<Arc<str>>,
    key: ContentKey,
}

/// Number of crashes after which a content is refused. `per_request`: `--max-engine-crashes`.
pub(crate) fn crashes_to_refuse(per_request: u32) -> usize {
    (per_request as usize).max(MIN_CRASHES_TO_REFUSE)
}

impl CrashHistory {
    /// `guard` has the token that the gateways share. Without one, the key is random.
    pub(crate) fn new(guard: Arc<Guard>) -> CrashHistory {
        let key = KnownKey { token: None, key: ContentKey(rand::random()) };
        CrashHistory {
            gateway: rand::random(),
            guard,
            key: Mutex::new(key),
            crashes: Mutex::default(),
            version: watch::channel(0).0,
        }
    }

    /// The key of this moment. After the token has changed, earlier crashes match nothing any more.
    fn key(&self) -> ContentKey {
        let token = self.guard.token();
        let mut known = self.key.lock();
        if let Some(token) = token
            && known.token.as_ref() != Some(&token)
        {
            let mut digest = Sha256::new_with_prefix(b"pd-router fingerprints of contents\0");
            digest.update(token.as_bytes());
            let digest = digest.finalize();
            let word =
                |at: usize| digest[at..].first_chunk().copied().map_or(0, u64::from_le_bytes);
            *known = KnownKey { token: Some(token), key: ContentKey([word(0), word(8)]) };
        }
        known.key
    }

    pub(crate) fn fingerprint(&self, pool: &ObjectName, request: &Request) -> ContentFingerprint {
        let key = self.key();
        let scope = scope(key, pool, request.endpoint());
        ContentFingerprint { scope, content: request.content_hash(key, &pool.to_string()) }
    }

    /// The number of crashes of this content, if it is at least `limit`. The content is hashed only if
    /// contents of its pool and endpoint have crashed as many engines together.
    pub(crate) fn crashes(
        &self,
        pool: &ObjectName,
        request: &Request,
        limit: usize,
    ) -> Option<usize> {
        if self.crashes.lock().len() < limit {
            return None;
        }
        let scope = scope(self.key(), pool, request.endpoint());
        let now = Instant::now();
        let counted = |crash: &&Crash| {
            crash.content.scope == scope && now.duration_since(crash.at) < CRASH_MEMORY
        };
        if self.crashes.lock().iter().filter(counted).count() < limit {
            return None;
        }
        let content = self.fingerprint(pool, request);
        let crashes = count(&self.crashes.lock(), content, now);
        (crashes >= limit).then_some(crashes)
    }

    /// Records that `worker` crashed while it ran the content. Returns the number of crashes so far.
    pub(crate) fn record(&self, content: ContentFingerprint, worker: &Worker) -> usize {
        let worker = worker_hash(self.key(), worker);
        let crash = Crash { content, worker, at: Instant::now() };
        self.add([crash]);
        count(&self.crashes.lock(), content, crash.at)
    }

    /// Adds crashes that are not known yet. `age` of each is that at its sender.
    pub(crate) fn learn(
        &self,
        crashes: impl IntoIterator<Item = (ContentFingerprint, u64, Duration)>,
    ) {
        let now = Instant::now();
        self.add(crashes.into_iter().filter_map(|(content, worker, age)| {
            let at = now.checked_sub(age).filter(|_| age < MAX_SHARED_AGE)?;
            Some(Crash { content, worker, at })
        }));
    }

    fn add(&self, new: impl IntoIterator<Item = Crash>) {
        let now = Instant::now();
        let mut crashes = self.crashes.lock();
        crashes.retain(|crash| now.duration_since(crash.at) < CRASH_MEMORY);
        let mut added = 0;
        for crash in new {
            if crashes.iter().any(|known| known.is_same(&crash)) {
                continue;
            }
            if crashes.len() >= MAX_CRASHES {
                // Gateways that are full would give each other their oldest for ever.
                if crashes.front().is_some_and(|oldest| crash.at < oldest.at) {
                    continue;
                }
                crashes.pop_front();
            }
            // Oldest first.
            let at = crashes.partition_point(|known| known.at <= crash.at);
            crashes.insert(at, crash);
            added += 1;
        }
        drop(crashes);
        if added > 0 {
            self.version.send_modify(|version| *version += added);
        }
    }

    /// The crashes of the last ten minutes, oldest first, and their version.
    pub(crate) fn all(&self) -> (u64, Vec<Crash>) {
        let version = *self.version.borrow();
        let now = Instant::now();
        let crashes = self.crashes.lock();
        let recent = crashes.iter().filter(|crash| now.duration_since(crash.at) < CRASH_MEMORY);
        (version, recent.copied().collect())
    }

    /// Waits until the version is another than `version`.
    pub(crate) async fn changed(&self, version: u64) {
        let mut versions = self.version.subscribe();
        // The sender lives as long as `self`.
        _ = versions.wait_for(|now| *now != version).await;
    }
}

/// The number of crashes of `content`.
fn count(crashes: &VecDeque<Crash>, content: ContentFingerprint, now: Instant) -> usize {
    let counted =
        |crash: &&Crash| crash.content == content && now.duration_since(crash.at) < CRASH_MEMORY;
    crashes.iter().filter(counted).count()
}

/// A hash of the pool and the endpoint, by which most requests differ without a look at their bodies.
fn scope(key: ContentKey, pool: &ObjectName, endpoint: Endpoint) -> u64 {
    let parts = [pool.namespace.as_bytes(), b"/", pool.name.as_bytes(), endpoint.path().as_bytes()];
    key.hash_of(&parts) as u64
}

/// A hash that all gateways have for one engine.
fn worker_hash(key: ContentKey, worker: &Worker) -> u64 {
    let address = worker.key.address.to_string();
    key.hash_of(&[worker.key.uid.as_bytes(), b"@", address.as_bytes()]) as u64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use router_core::fleet::WorkerKey;

    use super::*;
    use crate::control::files::tests::TempDirectory;

    fn history() -> CrashHistory {
        CrashHistory::new(Arc::new(Guard::new(None, false)))
    }

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
        let history = history();
        let (poison, other) = (request("poison"), request("potion"));
        assert_eq!(history.record(history.fingerprint(&pool("a"), &poison), &worker("a")), 1);
        assert_eq!(history.crashes(&pool("a"), &poison, 2), None);
        assert_eq!(history.record(history.fingerprint(&pool("a"), &poison), &worker("b")), 2);
        let crashes = |pool_name, request| history.crashes(&pool(pool_name), request, 2);
        assert_eq!((crashes("a", &poison), crashes("a", &other)), (Some(2), None));
        assert_eq!(crashes("b", &poison), None, "another pool");
        assert_eq!(history.crashes(&pool("a"), &poison, 3), None);
        tokio::time::advance(CRASH_MEMORY).await;
        assert_eq!(crashes("a", &poison), None);
        assert_eq!(history.record(history.fingerprint(&pool("a"), &poison), &worker("a")), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_with_one_content_on_one_engine_count_its_crash_once() {
        let history = history();
        let content = history.fingerprint(&pool("a"), &request("hi"));
        assert_eq!(history.record(content, &worker("a")), 1);
        assert_eq!(history.record(content, &worker("a")), 1);
        tokio::time::advance(ONE_CRASH).await;
        assert_eq!(history.record(content, &worker("a")), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_crashes_are_dropped() {
        let history = history();
        let first = request("first");
        history.record(history.fingerprint(&pool("a"), &first), &worker("a"));
        for n in 0..MAX_CRASHES {
            history
                .record(history.fingerprint(&pool("a"), &request(&format!("n{n}"))), &worker("a"));
        }
        assert_eq!(history.crashes.lock().len(), MAX_CRASHES);
        assert_eq!(history.crashes(&pool("a"), &first, 1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn two_full_gateways_settle() {
        let guard = Arc::new(Guard::Loopback);
        let (one, other) = (CrashHistory::new(Arc::clone(&guard)), CrashHistory::new(guard));
        for (history, name) in [(&one, "one"), (&other, "other")] {
            for n in 0..MAX_CRASHES {
                tokio::time::advance(Duration::from_millis(1)).await;
                let crash = request(&format!("{name}{n}"));
                history.record(history.fingerprint(&pool("a"), &crash), &worker("a"));
            }
        }
        for _ in 0..2 {
            one.learn(shared(&other));
            other.learn(shared(&one));
        }
        let versions = (one.all().0, other.all().0);
        one.learn(shared(&other));
        other.learn(shared(&one));
        assert_eq!((one.all().0, other.all().0), versions);
    }

    /// What a gateway learns of another.
    fn shared(from: &CrashHistory) -> Vec<(ContentFingerprint, u64, Duration)> {
        let crashes = from.all().1;
        crashes.iter().map(|crash| (crash.content, crash.worker, crash.at.elapsed())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn gateways_with_one_token_share_their_crashes_and_those_with_another_do_not() {
        let scratch = TempDirectory::new();
        let with_token = |name: &str, token: &str| {
            scratch.write(name, token);
            CrashHistory::new(Arc::new(Guard::new(Some(&scratch.path().join(name)), false)))
        };
        let (one, two) = (with_token("one", "secret"), with_token("two", "secret\n"));
        let (poison, here) = (request("poison"), pool("a"));
        one.record(one.fingerprint(&here, &poison), &worker("a"));
        two.learn(shared(&one));
        assert_eq!(two.record(two.fingerprint(&here, &poison), &worker("b")), 2);
        one.learn(shared(&two));
        assert_eq!(one.crashes(&here, &poison, 2), Some(2));
        // What comes back is known, and so is the same crash as another gateway saw it.
        let version = one.all().0;
        tokio::time::advance(ONE_CRASH / 2).await;
        two.record(two.fingerprint(&here, &poison), &worker("b"));
        one.learn(shared(&two));
        assert_eq!((one.all().0, one.crashes(&here, &poison, 2)), (version, Some(2)));
        let other = with_token("three", "another");
        other.learn(shared(&one));
        assert_eq!(other.crashes(&here, &poison, 2), None);
        tokio::time::advance(MAX_SHARED_AGE).await;
        let late = with_token("four", "secret");
        late.learn(shared(&one));
        assert_eq!(late.all().1.len(), 0, "they are forgotten soon");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_crash_learns_of_the_next() {
        let history = history();
        let content = history.fingerprint(&pool("a"), &request("hi"));
        let waiting = tokio::time::timeout(Duration::from_secs(1), history.changed(0));
        assert!(waiting.await.is_err(), "nothing has changed");
        history.record(content, &worker("a"));
        history.changed(0).await;
    }
}
