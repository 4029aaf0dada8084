//! [`Responses`]: which engine has a response of `/v1/responses`. An engine keeps the conversation in
//! its own memory, so a request that continues it has to go there.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use router_core::fleet::{Phase, Pool, Profile, Worker};
use router_core::sglang::{Invalid, Request};

/// Maximum number of response ids that are kept; the oldest is removed first.
const MAX_IDS: usize = 65_536;

/// The engines of the latest responses, by response id.
#[derive(Debug, Default)]
pub(crate) struct Responses(Mutex<KnownResponses>);

#[derive(Debug, Default)]
struct KnownResponses {
    /// Weak: the responses of a removed worker are gone with it.
    workers: HashMap<Arc<str>, Weak<Worker>>,
    oldest: VecDeque<Arc<str>>,
}

impl Responses {
    /// Remembers which worker gave the response of this id.
    pub(crate) fn remember(&self, id: Arc<str>, worker: &Arc<Worker>) {
        let mut known = self.0.lock();
        if known.workers.insert(Arc::clone(&id), Arc::downgrade(worker)).is_none() {
            known.oldest.push_back(id);
        }
        if known.oldest.len() > MAX_IDS
            && let Some(oldest) = known.oldest.pop_front()
        {
            known.workers.remove(&oldest);
        }
    }

    fn worker_of(&self, id: &str) -> Option<Arc<Worker>> {
        let known = self.0.lock();
        known.workers.get(id).and_then(Weak::upgrade)
    }

    /// The only worker that can serve a request that continues a response. `None` if the request
    /// continues no response.
    ///
    /// # Errors
    /// No worker can serve the request; the message says why.
    pub(crate) fn only_worker(
        &self,
        pool: &Pool,
        request: &Request,
    ) -> Result<Option<Arc<Worker>>, Invalid> {
        let Some(id) = request.previous_response_id() else { return Ok(None) };
        if pool.profile == Profile::Pd {
            // Decode's engine keeps the whole earlier response and prefill's only its first
            // token: continued there, the two would compute from different prompts.
            return Err(refused(
                "cannot be served by a prefill/decode pair: only the decode engine has the \
                 earlier response",
            ));
        }
        let serving = pool.serving(request.model()).flat_map(|compatible| &compatible.unified);
        let ready: Vec<&Arc<Worker>> = serving
            .map(|&id| &pool.members[id])
            .filter(|member| member.phase == Phase::Ready)
            .map(|member| &member.worker)
            .collect();
        // With one engine, or none, there is no choice: the engine answers itself.
        if ready.len() <= 1 {
            return Ok(None);
        }
        let Some(worker) = self.worker_of(id) else {
            return Err(refused(
                "names a response that no engine is known to have: it is too old, was given before \
                 this gateway started or by another gateway, or its engine was removed",
            ));
        };
        if !ready.iter().any(|other| Arc::ptr_eq(other, &worker)) {
            return Err(refused("names a response whose engine does not take requests any more"));
        }
        Ok(Some(worker))
    }
}

fn refused(why: &str) -> Invalid {
    Invalid {
        message: format!("'previous_response_id' {why}; send the conversation as 'input'"),
        param: Some("previous_response_id"),
    }
}

#[cfg(test)]
mod tests {
    use router_core::fleet::WorkerKey;

    use super::*;

    fn worker(port: u16) -> Arc<Worker> {
        let key = WorkerKey { uid: "uid".into(), address: ([127, 0, 0, 1], port).into() };
        Arc::new(Worker::new(key, "ns/pod"))
    }

    #[test]
    fn the_oldest_ids_are_removed_first() {
        let (responses, worker) = (Responses::default(), worker(1));
        for number in 0..=MAX_IDS {
            responses.remember(number.to_string().into(), &worker);
        }
        assert!(responses.worker_of("0").is_none());
        assert!(responses.worker_of("1").is_some());
        assert!(responses.worker_of(&MAX_IDS.to_string()).is_some());
        let known = responses.0.lock();
        assert_eq!((known.workers.len(), known.oldest.len()), (MAX_IDS, MAX_IDS));
    }

    #[test]
    fn a_removed_worker_is_not_kept_alive() {
        let (responses, gone) = (Responses::default(), worker(1));
        responses.remember("a".into(), &gone);
        drop(gone);
        assert!(responses.worker_of("a").is_none());
        let next = worker(2);
        responses.remember("a".into(), &next);
        assert!(responses.worker_of("a").is_some_and(|found| Arc::ptr_eq(&found, &next)));
    }
}
