//! One life of an engine, from start to kill: its tasks, its sockets and everything that a dead
//! process forgets.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Version};
use crate::core::Core;
use crate::count::Count;
use crate::kv::control::{self, Message, Outboxes};
use crate::kv::data::{Pool, Slots};
use crate::ledger::Ledger;
use crate::meters::Meters;
use crate::peers::Peers;
use crate::rank::Rank;
use crate::registry::Registry;
use crate::valve::Valve;

/// Everything that lives as long as the process would.
pub(crate) struct Life {
    pub(crate) config: Arc<Config>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) meters: Meters,
    pub(crate) core: Weak<Core>,
    pub(crate) valve: Arc<Valve>,
    pub(crate) ranks: Vec<Arc<Rank>>,
    pub(crate) outboxes: Outboxes,
    pub(crate) pool: Pool,
    pub(crate) slots: Arc<Slots>,
    /// Decode's data port.
    pub(crate) data: Option<SocketAddr>,
    pub(crate) bootstrap: Option<SocketAddr>,
    pub(crate) registry: Registry,
    /// What a decode knows of prefills.
    pub(crate) peers: Peers,
    pub(crate) http: Count,
    /// Answers kept for `previous_response_id`.
    pub(crate) responses: Mutex<HashMap<String, String>>,
    scheduler_frozen: watch::Sender<bool>,
    ready_at: Instant,
    legs: Mutex<BTreeMap<String, CancellationToken>>,
    next_rank: AtomicUsize,
    draining: AtomicBool,
    token: CancellationToken,
    tasks: TaskTracker,
}

/// The parts that a life is made of.
pub(crate) struct Seed {
    pub(crate) config: Arc<Config>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) core: Weak<Core>,
    pub(crate) ranks: Vec<Arc<Rank>>,
    pub(crate) data: Option<SocketAddr>,
    pub(crate) bootstrap: Option<SocketAddr>,
    /// Extra time until the registry is full.
    pub(crate) empty: Duration,
}

impl Life {
    pub(crate) fn new(seed: Seed) -> Arc<Life> {
        let ready_at = Instant::now() + seed.config.start_delay;
        Arc::new(Life {
            meters: Meters::default(),
            core: seed.core,
            valve: Valve::new(),
            outboxes: Outboxes::default(),
            pool: Pool::default(),
            slots: Arc::default(),
            data: seed.data,
            bootstrap: seed.bootstrap,
            registry: Registry::new(ready_at + seed.empty),
            peers: Peers::new(&seed.config),
            http: Count::default(),
            responses: Mutex::default(),
            scheduler_frozen: watch::Sender::new(false),
            ready_at,
            legs: Mutex::default(),
            next_rank: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            token: CancellationToken::new(),
            tasks: TaskTracker::new(),
            ledger: seed.ledger,
            ranks: seed.ranks,
            config: seed.config,
        })
    }

    /// Runs a task until it ends or this life does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Ends as SIGKILL does: every socket is closed with a reset, nothing is said.
    pub(crate) fn die(&self) {
        self.valve.reset_on_drop();
        self.token.cancel();
        self.ledger.notify();
    }

    /// Ends without resets.
    pub(crate) fn end(&self) {
        self.draining.store(true, Relaxed);
        self.token.cancel();
    }

    /// Returns once all tasks of an ended life have let go of their sockets.
    pub(crate) async fn gone(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(crate) async fn over(&self) {
        self.token.cancelled().await;
    }

    pub(crate) fn is_old(&self) -> bool {
        self.config.version == Version::V0_4_10
    }

    pub(crate) fn is_started(&self) -> bool {
        Instant::now() >= self.ready_at
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_started() && !self.draining.load(Relaxed)
    }

    /// Returns once the scheduler runs: not frozen, and started.
    pub(crate) async fn turn(&self) {
        if !self.is_started() {
            sleep_until(self.ready_at).await;
        }
        if *self.scheduler_frozen.borrow() {
            let mut frozen = self.scheduler_frozen.subscribe();
            // The sender lives in self.
            let _ = frozen.wait_for(|frozen| !frozen).await;
        }
    }

    pub(crate) fn freeze_scheduler(&self, frozen: bool) {
        self.scheduler_frozen.send_replace(frozen);
    }

    /// Round robin over the ranks.
    pub(crate) fn any_rank(&self) -> usize {
        self.next_rank.fetch_add(1, Relaxed) % self.ranks.len()
    }

    fn legs(&self) -> MutexGuard<'_, BTreeMap<String, CancellationToken>> {
        self.legs.lock().expect("no code panics while it holds the legs")
    }

    /// Takes in a leg under its request id; `None` if one with the same id runs.
    pub(crate) fn admit(self: &Arc<Self>, rid: &str) -> Option<Admission> {
        let mut legs = self.legs();
        if legs.contains_key(rid) {
            return None;
        }
        let aborted = CancellationToken::new();
        legs.insert(rid.to_owned(), aborted.clone());
        Some(Admission { life: Arc::clone(self), rid: rid.to_owned(), aborted })
    }

    /// Aborts by prefix, if a request with exactly this id is known, as the engine does.
    /// Returns the ids of the legs that it struck.
    pub(crate) fn abort(&self, rid: &str, all: bool) -> Vec<String> {
        let legs = self.legs();
        if !all && !legs.contains_key(rid) {
            return Vec::new();
        }
        let range = if all { legs.range(String::new()..) } else { legs.range(rid.to_owned()..) };
        range
            .take_while(|(id, _)| all || id.starts_with(rid))
            .map(|(id, aborted)| {
                aborted.cancel();
                id.clone()
            })
            .collect()
    }

    pub(crate) fn leg_count(&self) -> usize {
        self.legs().len()
    }

    /// Acts on a control message that reached one of the ranks.
    pub(crate) fn control(self: &Arc<Self>, rank: usize, message: Message) {
        let rank = &self.ranks[rank];
        match message {
            Message::Registration | Message::AbortAcknowledged => {}
            Message::Invitation(invitation) => rank.invite(invitation),
            Message::Status { room, status } => rank.transferred(room, status == control::SUCCESS),
            Message::Abort { room, reply } => {
                rank.fail_room(room, "Failed due to an unknown reason from another rank");
                if let Some(reply) = reply {
                    self.outboxes.send(self, reply, control::abort_acknowledged(room));
                }
            }
        }
    }
}

/// A leg's place among the live ones; given up when dropped.
pub(crate) struct Admission {
    life: Arc<Life>,
    rid: String,
    /// Cancelled when somebody aborts the request.
    pub(crate) aborted: CancellationToken,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.life.legs().remove(&self.rid);
        self.life.ledger.notify();
    }
}
