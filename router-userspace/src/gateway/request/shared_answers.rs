//! [`SharedAnswers`]: answers that several engines are asked for, shared by all callers of a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use router_core::fleet::ObjectName;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::reject::Reject;

/// How long an answer is reused. Engines answer `/server_info` and `/health_generate` at the cost of
/// the requests that they run, so that clients must not set the pace.
const LIFETIME: Duration = Duration::from_secs(1);
/// Maximum number of answers of one path of one pool that are kept or being fetched. It bounds how often
/// engines are asked by callers with different credentials, made-up ones too: a caller beyond it gets 429.
/// An answer that has failed makes place for another, since an engine that refuses at once has done
/// little. `/v1/models` costs engines little as well; its answers are bounded for the gateway's memory.
const MAX_ANSWERS: usize = 64;
/// Maximum size of an answer that is kept, in bytes. A larger one is shared by those who wait for it.
const MAX_KEPT_BYTES: usize = 1 << 20;
/// Headers by which an engine, or a proxy in front of it, decides who may read its answer.
const CREDENTIALS: [HeaderName; 3] = [AUTHORIZATION, COOKIE, HeaderName::from_static("x-api-key")];

/// What an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AnswerKey {
    pool: ObjectName,
    path: Box<str>,
    /// The values of [`CREDENTIALS`], each with its position there.
    credentials: Vec<(usize, HeaderValue)>,
}

impl AnswerKey {
    pub(crate) fn new(pool: &ObjectName, path: &str, headers: &HeaderMap) -> AnswerKey {
        let values =
            |(at, name)| headers.get_all(name).iter().map(move |value| (at, value.clone()));
        let credentials = CREDENTIALS.iter().enumerate().flat_map(values).collect();
        AnswerKey { pool: pool.clone(), path: path.into(), credentials }
    }
}

type Answer = Result<Bytes, Reject>;
/// Empty while the answer is being fetched.
type AnswerCell = OnceCell<(Instant, Answer)>;

/// The latest answers of side endpoints.
#[derive(Debug, Default)]
pub(crate) struct SharedAnswers(Mutex<HashMap<AnswerKey, Arc<AnswerCell>>>);

impl SharedAnswers {
    /// Returns the answer of `fetch`, or of another caller whose fetch is running or ended less than
    /// a second ago. If a caller leaves while it fetches, the next one fetches.
    ///
    /// # Errors
    /// `fetch` has failed, or too many different answers are wanted.
    pub(crate) async fn get_or_fetch(
        &self,
        key: AnswerKey,
        fetch: impl Future<Output = Answer>,
    ) -> Answer {
        let cell = self.cell(&key)?;
        let (_, answer) = cell
            .get_or_init(|| async {
                let answer = fetch.await;
                (Instant::now(), answer)
            })
            .await;
        if answer.as_ref().is_ok_and(|body| body.len() > MAX_KEPT_BYTES) {
            let mut cells = self.0.lock();
            if cells.get(&key).is_some_and(|kept| Arc::ptr_eq(kept, &cell)) {
                cells.remove(&key);
            }
        }
        answer.clone()
    }

    fn cell(&self, key: &AnswerKey) -> Result<Arc<AnswerCell>, Reject> {
        let is_current =
            |cell: &AnswerCell| cell.get().is_none_or(|(at, _)| at.elapsed() < LIFETIME);
        let mut cells = self.0.lock();
        if let Some(cell) = cells.get(key).filter(|cell| is_current(cell)) {
            return Ok(Arc::clone(cell));
        }
        // A cell without an answer and without a caller was left.
        cells.retain(|_, cell| {
            is_current(cell) && (cell.initialized() || Arc::strong_count(cell) > 1)
        });
        let is_like = |other: &AnswerKey| other.pool == key.pool && other.path == key.path;
        if cells.keys().filter(|other| is_like(other)).count() >= MAX_ANSWERS {
            let failed = |cell: &AnswerCell| cell.get().is_some_and(|(_, answer)| answer.is_err());
            let mut all = cells.iter();
            let found = all.find(|(other, cell)| is_like(other) && failed(cell));
            let found = found.map(|(other, _)| other.clone()).ok_or(Reject::QueueFull)?;
            cells.remove(&found);
        }
        let cell = Arc::new(AnswerCell::new());
        cells.insert(key.clone(), Arc::clone(&cell));
        Ok(cell)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn key(token: &str) -> AnswerKey {
        key_of("/server_info", token)
    }

    fn key_of(path: &str, token: &str) -> AnswerKey {
        let pool = ObjectName { namespace: "default".into(), name: "pool".into() };
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(token).unwrap());
        AnswerKey::new(&pool, path, &headers)
    }

    #[tokio::test(start_paused = true)]
    async fn callers_of_a_second_share_one_fetch() {
        let (answers, fetches) = (SharedAnswers::default(), AtomicUsize::new(0));
        let get = |token: &str| {
            answers.get_or_fetch(key(token), async {
                fetches.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(Bytes::from_static(b"{}"))
            })
        };
        let (a, b) = tokio::join!(get("k"), get("k"));
        assert!(a.is_ok() && b.is_ok());
        tokio::time::sleep(Duration::from_millis(900)).await;
        get("k").await.unwrap();
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
        get("other").await.unwrap();
        assert_eq!(fetches.load(Ordering::SeqCst), 2, "another key is another answer");
        get("k").await.unwrap();
        assert_eq!(fetches.load(Ordering::SeqCst), 3, "a second has passed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_does_not_end_the_others_wait() {
        let answers = SharedAnswers::default();
        let never = std::future::pending::<Answer>();
        let left = answers.get_or_fetch(key("k"), never);
        assert!(tokio::time::timeout(Duration::from_millis(1), left).await.is_err());
        let ready = async { Ok(Bytes::from_static(b"{}")) };
        assert_eq!(answers.get_or_fetch(key("k"), ready).await.unwrap(), "{}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_answers_is_bounded_and_large_ones_are_not_kept() {
        let answers = SharedAnswers::default();
        let get = |token: String, size| {
            answers.get_or_fetch(key(&token), async move { Ok(Bytes::from(vec![0; size])) })
        };
        get("large".to_owned(), MAX_KEPT_BYTES + 1).await.unwrap();
        assert!(answers.0.lock().is_empty());
        for number in 0..MAX_ANSWERS {
            get(number.to_string(), 1).await.unwrap();
        }
        assert!(matches!(get("more".to_owned(), 1).await, Err(Reject::QueueFull)));
        tokio::time::sleep(LIFETIME).await;
        get("more".to_owned(), 1).await.unwrap();
        assert_eq!(answers.0.lock().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_credentials_leave_place_for_others() {
        let answers = SharedAnswers::default();
        let get = |path: &'static str, token: String, answer: Answer| {
            answers.get_or_fetch(key_of(path, &token), async { answer })
        };
        let (good, refused) = (|| Ok(Bytes::from_static(b"{}")), || Err(Reject::NoRoute));
        for number in 0..2 * MAX_ANSWERS {
            assert!(get("/server_info", number.to_string(), refused()).await.is_err());
        }
        assert_eq!(answers.0.lock().len(), MAX_ANSWERS);
        for number in 0..MAX_ANSWERS {
            get("/server_info", format!("good {number}"), good()).await.unwrap();
        }
        let more = get("/server_info", "more".to_owned(), good()).await;
        assert!(matches!(more, Err(Reject::QueueFull)), "engines accept made-up credentials");
        get("/v1/models", "more".to_owned(), good()).await.expect("another path has its own place");
    }
}
