//! Which engine has a response of `/v1/responses`: it keeps the conversation in its own memory, so
//! that a request which continues it goes there.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use router_core::fleet::{Phase, Pool, Profile, Worker};
use router_core::sglang::{Endpoint, Invalid, Request, response};

use super::reject::Reject;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::dispatch::Begun;
use crate::gateway::upstream::first_event::Opened;

/// Names that are remembered; the oldest is forgotten first.
const MAX_REMEMBERED: usize = 65_536;

/// The engines of the latest responses, by name.
#[derive(Debug, Default)]
pub(crate) struct Responses(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    /// Weak: a worker that has left has taken its responses along.
    workers: HashMap<Arc<str>, Weak<Worker>>,
    oldest: VecDeque<Arc<str>>,
}

impl Responses {
    /// Remembers who gave the answer that has begun.
    pub(crate) fn learn(&self, endpoint: Endpoint, begun: &Begun) {
        if endpoint != Endpoint::Responses {
            return;
        }
        let id = match &begun.opened {
            Opened::Whole { body, .. } => response::id(body),
            Opened::Stream { first, .. } => first.iter().find_map(|e| response::event_id(e)),
        };
        if let Some(id) = id {
            self.remember(id.into(), begun.flight.worker());
        }
    }

    fn remember(&self, id: Arc<str>, worker: &Arc<Worker>) {
        // Both collections are whole whatever panics.
        let mut memory = self.0.lock();
        if memory.workers.insert(Arc::clone(&id), Arc::downgrade(worker)).is_none() {
            memory.oldest.push_back(id);
        }
        if memory.oldest.len() > MAX_REMEMBERED
            && let Some(oldest) = memory.oldest.pop_front()
        {
            memory.workers.remove(&oldest);
        }
    }

    fn worker_of(&self, id: &str) -> Option<Arc<Worker>> {
        let memory = self.0.lock();
        memory.workers.get(id).and_then(Weak::upgrade)
    }
}

impl Gateway {
    /// The only engine that can serve a request which continues a response; `None` where the
    /// request continues nothing.
    ///
    /// # Errors
    /// A 400 that says why nobody can.
    pub(crate) fn continues(
        &self,
        pool: &Pool,
        request: &Request,
    ) -> Result<Option<Arc<Worker>>, Reject> {
        let Some(id) = request.previous_response_id() else { return Ok(None) };
        if pool.profile == Profile::Pd {
            // Decode's engine keeps the whole earlier response and prefill's only its first
            // token: continued there, the two would compute from different prompts.
            return Err(refused(
                "cannot be served by a prefill/decode pair: only the decode engine has the \
                 earlier response",
            ));
        }
        let serving = pool.serving(request.model()).flat_map(|fit| &fit.unified);
        let ready: Vec<&Arc<Worker>> = serving
            .map(|&seat| &pool.members[seat])
            .filter(|member| member.phase == Phase::Ready)
            .map(|member| &member.worker)
            .collect();
        // One engine, or none at all: what it has is its own to say.
        if ready.len() <= 1 {
            return Ok(None);
        }
        let Some(worker) = self.responses.worker_of(id) else {
            return Err(refused(
                "names a response that no engine is known to have: it was given long ago, or \
                 before this gateway started, or by another gateway, or its engine has left",
            ));
        };
        if !ready.iter().any(|other| Arc::ptr_eq(other, &worker)) {
            return Err(refused("names a response whose engine does not take requests any more"));
        }
        Ok(Some(worker))
    }
}

fn refused(why: &str) -> Reject {
    Reject::Invalid(Invalid {
        message: format!("'previous_response_id' {why}; send the conversation as 'input'"),
        param: Some("previous_response_id"),
    })
}

#[cfg(test)]
mod tests {
    use router_core::fleet::WorkerKey;

    use super::*;

    fn worker(port: u16) -> Arc<Worker> {
        let key = WorkerKey { uid: "uid".into(), port };
        Arc::new(Worker::new(key, "ns/pod", ([127, 0, 0, 1], port).into()))
    }

    #[test]
    fn the_oldest_names_are_forgotten_first() {
        let (responses, worker) = (Responses::default(), worker(1));
        for number in 0..=MAX_REMEMBERED {
            responses.remember(number.to_string().into(), &worker);
        }
        assert!(responses.worker_of("0").is_none());
        assert!(responses.worker_of("1").is_some());
        assert!(responses.worker_of(&MAX_REMEMBERED.to_string()).is_some());
        let memory = responses.0.lock();
        assert_eq!((memory.workers.len(), memory.oldest.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
    }

    #[test]
    fn a_worker_that_has_left_is_not_held() {
        let (responses, gone) = (Responses::default(), worker(1));
        responses.remember("a".into(), &gone);
        drop(gone);
        assert!(responses.worker_of("a").is_none());
        let next = worker(2);
        responses.remember("a".into(), &next);
        assert!(responses.worker_of("a").is_some_and(|found| Arc::ptr_eq(&found, &next)));
    }
}
