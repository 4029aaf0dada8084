//! Admission: a request takes its places at once, or waits in its line for somebody's lease
//! to end.
//!
//! A prefill that is sent before its decode has room only runs down its bootstrap clock, so the
//! wait is here. Lines are first come first served, one for each pool and model, so that a
//! full model does not hold up another.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use router_core::fleet::{EngineRates, ObjectName, OnRelease, Pool, Worker, WorkerKey};
use router_core::schedule::{AgentTrust, Draw};
use router_core::sglang::Request;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::explain::Choice;
use super::placer::{Ask, NoSeat, Scratch, Seating, Seats, Taken};
use crate::config::LimitFlags;
use crate::gateway::fleet_handle::FleetHandle;
use crate::gateway::request::reject::Reject;
use crate::scheduler_view::{Lesson, SchedulerView};

/// One pool's model: who waits for the same workers waits in the same line. A request that only
/// one worker can serve waits in a line for that one.
type LineKey = (ObjectName, Option<Arc<str>>, Option<WorkerKey>);

/// Room that others leave is told by agents and engines alone, and to nobody: the first of a line
/// looks so often itself, which is how often frames come.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    turn: Arc<Notify>,
}

/// Who waits, and what a choice needs, under one lock.
#[derive(Debug, Default)]
struct Lines {
    waiting: HashMap<LineKey, VecDeque<Waiter>>,
    scratch: Scratch,
}

/// Gives requests their places, in order.
pub(crate) struct Admission {
    fleet: Arc<FleetHandle>,
    view: SchedulerView,
    limits: LimitFlags,
    queue_timeout: Duration,
    turn: AtomicU64,
    waiting: AtomicUsize,
    lines: Mutex<Lines>,
    /// The last choice that was predicted, to be looked at.
    last: Mutex<Option<Arc<Choice>>>,
    /// Called by every lease that ends.
    released: OnRelease,
}

impl Admission {
    pub(crate) fn new(
        fleet: Arc<FleetHandle>,
        view: SchedulerView,
        limits: LimitFlags,
        queue_timeout: Duration,
    ) -> Arc<Admission> {
        Arc::new_cyclic(|admission: &Weak<Admission>| Admission {
            released: released(admission.clone()),
            fleet,
            view,
            limits,
            queue_timeout,
            turn: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            lines: Mutex::default(),
            last: Mutex::default(),
        })
    }

    /// Places for `ask` in the pool: at once, or after a wait.
    ///
    /// # Errors
    /// Nobody ready, another model, the line full, or the deadline (the queue's or the
    /// request's, whichever is first).
    pub(crate) async fn admit(
        self: &Arc<Self>,
        pool: &Pool,
        ask: &Ask,
        deadline: Option<Instant>,
    ) -> Result<Seats, Reject> {
        let since = Instant::now();
        let seating = self.seating(pool, ask, AgentTrust::Trusted);
        let place = {
            let mut lines = self.lock();
            // Usually nobody waits anywhere, and no line has to be named.
            let line_is_empty = lines.waiting.is_empty()
                || lines.waiting.get(&line_key(pool, ask)).is_none_or(VecDeque::is_empty);
            let taken = if line_is_empty {
                seating.take(&self.released, &mut lines.scratch)
            } else {
                Err(NoSeat::Full)
            };
            match taken {
                Err(NoSeat::Full) => self.join(&mut lines.waiting, line_key(pool, ask))?,
                taken => {
                    drop(lines);
                    let seats = taken.map(|taken| self.seats(&seating, taken));
                    return seats.map_err(|why| refused(why, &pool.name, ask));
                }
            }
        };
        let queue_deadline = since + self.queue_timeout;
        let until = deadline.map_or(queue_deadline, |deadline| deadline.min(queue_deadline));
        // Only the first of a line is called.
        if timeout_at(until, place.turn.notified()).await.is_ok() {
            loop {
                if let Some(seats) = place.try_again(ask, since) {
                    return seats;
                }
                let again = Instant::now() + LOOK_AGAIN;
                let called = timeout_at(until.min(again), place.turn.notified()).await;
                if called.is_err() && Instant::now() >= until {
                    break;
                }
            }
        }
        Err(match deadline {
            Some(deadline) if deadline <= queue_deadline => Reject::Deadline,
            _ => Reject::QueueTimeout(self.queue_timeout),
        })
    }

    /// What the answer that these places give is to teach.
    pub(crate) fn lesson(&self, pool: &Pool, seats: &Seats) -> Option<Lesson> {
        let worker = Arc::clone(seats.leases().last()?.worker());
        Some(Lesson { view: self.view.clone(), pool: Arc::clone(&pool.rate_estimators), worker })
    }

    /// The blocks of a request's prompt, as far as the policy wants them.
    pub(crate) fn blocks(&self, request: &Request) -> Vec<u64> {
        self.view.blocks(request)
    }

    /// What is believed of a pool's engines together.
    pub(crate) fn rates(&self, pool: &Pool) -> EngineRates {
        self.view.rates(pool)
    }

    /// The last choice that was predicted.
    pub(crate) fn last_choice(&self) -> Option<Arc<Choice>> {
        self.last.lock().clone()
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets the first of every line look again. Called when a lease ends, a worker comes back,
    /// or the fleet changes.
    pub(crate) fn wake(&self) {
        // Sequentially consistent with the increment in `join`: either the joiner's look at the
        // workers comes after the lease ended, or this sees that somebody waits.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        for line in self.lock().waiting.values() {
            if let Some(first) = line.front() {
                first.turn.notify_one();
            }
        }
    }

    /// To be taken under the lock of the lines: since leases are taken nowhere else, a worker that
    /// had room when looked at still has it when leased.
    fn seating<'a>(&'a self, pool: &'a Pool, ask: &'a Ask, patience: AgentTrust) -> Seating<'a> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let draw = Draw { chance: rand::random(), turn };
        Seating { pool, ask, view: &self.view, draw, limits: &self.limits, patience }
    }

    /// What follows from places that were taken, without the lock.
    fn seats(&self, seating: &Seating<'_>, taken: Taken) -> Seats {
        let seats = seating.seats(taken);
        if let Seats::Pair { choice: Some(choice), .. } = &seats {
            *self.last.lock() = Some(Arc::clone(choice));
        }
        seats
    }

    fn join(
        self: &Arc<Self>,
        lines: &mut HashMap<LineKey, VecDeque<Waiter>>,
        key: LineKey,
    ) -> Result<Place, Reject> {
        let in_pool: usize =
            lines.iter().filter(|(line, _)| line.0 == key.0).map(|(_, line)| line.len()).sum();
        if in_pool >= self.limits.max_queued {
            return Err(Reject::QueueFull);
        }
        let ticket = self.turn.fetch_add(1, Ordering::Relaxed);
        let turn = Arc::new(Notify::new());
        // The first of a line looks once more after it is counted: a lease may have ended
        // between its first look and now.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let line = lines.entry(key.clone()).or_default();
        if line.is_empty() {
            turn.notify_one();
        }
        line.push_back(Waiter { ticket, turn: Arc::clone(&turn) });
        Ok(Place { admission: Arc::clone(self), key, ticket, turn })
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Nothing that can panic runs under the lock; the lines are whole in any case.
        self.lines.lock()
    }
}

/// A place in a line; dropping it leaves the line and lets the next one look.
struct Place {
    admission: Arc<Admission>,
    key: LineKey,
    ticket: u64,
    turn: Arc<Notify>,
}

impl Place {
    /// `None`: still full, wait on.
    fn try_again(&self, ask: &Ask, since: Instant) -> Option<Result<Seats, Reject>> {
        let waited_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let patience = AgentTrust::after(waited_ms, self.admission.view.poll_ms);
        let fleet = self.admission.fleet.load();
        let Some(pool) = fleet.pool(&self.key.0) else {
            return Some(Err(Reject::NobodyReady(self.key.0.clone())));
        };
        let seating = self.admission.seating(pool, ask, patience);
        // Under the lock, so that nobody who came later takes the place.
        let taken = seating.take(&self.admission.released, &mut self.admission.lock().scratch);
        match taken {
            Ok(taken) => Some(Ok(self.admission.seats(&seating, taken))),
            // Nobody is ready for the moment: a rollout; the deadline decides.
            Err(NoSeat::Full | NoSeat::Nobody) => None,
            Err(NoSeat::NoModel) => Some(Err(refused(NoSeat::NoModel, &self.key.0, ask))),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.admission.lock();
        if let Some(line) = lines.waiting.get_mut(&self.key) {
            line.retain(|waiter| waiter.ticket != self.ticket);
            match line.front() {
                Some(next) => next.turn.notify_one(),
                None => {
                    lines.waiting.remove(&self.key);
                }
            }
        }
        self.admission.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

fn released(admission: Weak<Admission>) -> OnRelease {
    Arc::new(move |worker: &Worker| {
        if let Some(admission) = admission.upgrade() {
            worker.lease_history.record(admission.view.clock.now_ms(), worker.usage());
            admission.wake();
        }
    })
}

fn line_key(pool: &Pool, ask: &Ask) -> LineKey {
    let fit = pool.serving(ask.model.as_deref()).next();
    let only = ask.only.as_ref().map(|worker| worker.key.clone());
    (pool.name.clone(), fit.and_then(|fit| fit.models.first().cloned()), only)
}

fn refused(why: NoSeat, pool: &ObjectName, ask: &Ask) -> Reject {
    match why {
        NoSeat::NoModel => Reject::ModelNotFound(ask.model.clone().unwrap_or_default()),
        NoSeat::Full | NoSeat::Nobody => Reject::NobodyReady(pool.clone()),
    }
}

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod tests;
