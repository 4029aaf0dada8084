//! The state of one engine process, from start to kill: tasks, sockets, and all that a restart
//! loses.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Role, Version};
use crate::discovery::KnownPrefills;
use crate::gauge::Gauge;
use crate::kv::control::{self, Message, Outboxes};
use crate::kv::data::{ConnectionPool, KvSlots};
use crate::rank::Rank;
use crate::recorder::Recorder;
use crate::registry::BootstrapRegistry;
use crate::socket::SocketControl;
use crate::stats::Stats;
use crate::supervisor::Supervisor;

/// The state of one engine process.
pub(crate) struct Process {
    pub(crate) config: Arc<Config>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) stats: Stats,
    pub(crate) supervisor: Weak<Supervisor>,
    pub(crate) sockets: Arc<SocketControl>,
    pub(crate) ranks: Vec<Arc<Rank>>,
    pub(crate) outboxes: Outboxes,
    pub(crate) pool: ConnectionPool,
    pub(crate) slots: Arc<KvSlots>,
    /// The data port of a decode.
    pub(crate) data: Option<SocketAddr>,
    pub(crate) bootstrap: Option<SocketAddr>,
    pub(crate) registry: BootstrapRegistry,
    /// The prefills that a decode knows.
    pub(crate) prefills: KnownPrefills,
    pub(crate) http: Gauge,
    /// Response texts by id, for `previous_response_id`.
    pub(crate) responses: Mutex<HashMap<String, String>>,
    role: Mutex<Role>,
    scheduler_frozen: watch::Sender<bool>,
    ready_at: Instant,
    legs: Mutex<BTreeMap<String, CancellationToken>>,
    next_rank: AtomicUsize,
    draining: AtomicBool,
    token: CancellationToken,
    tasks: TaskTracker,
}

/// What a new process is built from.
pub(crate) struct ProcessParts {
    pub(crate) config: Arc<Config>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) supervisor: Weak<Supervisor>,
    pub(crate) ranks: Vec<Arc<Rank>>,
    pub(crate) data: Option<SocketAddr>,
    pub(crate) bootstrap: Option<SocketAddr>,
    /// Additional time until the registry is complete.
    pub(crate) registry_delay: Duration,
}

impl Process {
    pub(crate) fn new(parts: ProcessParts) -> Arc<Process> {
        let ready_at = Instant::now() + parts.config.start_delay;
        Arc::new(Process {
            stats: Stats::default(),
            supervisor: parts.supervisor,
            sockets: SocketControl::new(),
            outboxes: Outboxes::default(),
            pool: ConnectionPool::default(),
            slots: Arc::default(),
            data: parts.data,
            bootstrap: parts.bootstrap,
            registry: BootstrapRegistry::new(ready_at + parts.registry_delay),
            prefills: KnownPrefills::new(&parts.config),
            http: Gauge::default(),
            responses: Mutex::default(),
            role: Mutex::new(parts.config.role),
            scheduler_frozen: watch::Sender::new(false),
            ready_at,
            legs: Mutex::default(),
            next_rank: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            token: CancellationToken::new(),
            tasks: TaskTracker::new(),
            recorder: parts.recorder,
            ranks: parts.ranks,
            config: parts.config,
        })
    }

    /// Runs a task until it or this process ends.
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

    /// Ends as by SIGKILL: every socket is closed with a reset.
    pub(crate) fn kill(&self) {
        self.sockets.reset_on_drop();
        self.token.cancel();
        self.recorder.notify();
    }

    /// Ends without resets.
    pub(crate) fn end(&self) {
        self.draining.store(true, Relaxed);
        self.token.cancel();
    }

    /// Returns once all tasks of an ended process have dropped their sockets.
    pub(crate) async fn tasks_finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(crate) async fn ended(&self) {
        self.token.cancelled().await;
    }

    /// The role that the engine has now.
    pub(crate) fn role(&self) -> Role {
        *self.role.lock()
    }

    /// Changes the role of an engine that holds no request. Returns whether it did.
    pub(crate) fn switch_role(&self, role: Role) -> bool {
        let legs = self.legs();
        let is_idle = legs.is_empty();
        if is_idle {
            *self.role.lock() = role;
        }
        is_idle
    }

    pub(crate) fn is_0_4(&self) -> bool {
        self.config.version == Version::V0_4_10
    }

    pub(crate) fn is_started(&self) -> bool {
        Instant::now() >= self.ready_at
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_started() && !self.draining.load(Relaxed)
    }

    /// Returns once the scheduler runs: started and not frozen.
    pub(crate) async fn wait_for_scheduler(&self) {
        if !self.is_started() {
            sleep_until(self.ready_at).await;
        }
        if *self.scheduler_frozen.borrow() {
            let mut frozen = self.scheduler_frozen.subscribe();
            // The sender lives as long as self.
            let _ = frozen.wait_for(|frozen| !frozen).await;
        }
    }

    pub(crate) fn freeze_scheduler(&self, frozen: bool) {
        self.scheduler_frozen.send_replace(frozen);
    }

    /// The next rank, round robin.
    pub(crate) fn next_rank(&self) -> usize {
        self.next_rank.fetch_add(1, Relaxed) % self.ranks.len()
    }

    fn legs(&self) -> MutexGuard<'_, BTreeMap<String, CancellationToken>> {
        self.legs.lock()
    }

    /// Registers a leg under its request id. `None` if a leg with this id runs.
    pub(crate) fn register_leg(self: &Arc<Self>, rid: &str) -> Option<LegGuard> {
        let mut legs = self.legs();
        if legs.contains_key(rid) {
            return None;
        }
        let aborted = CancellationToken::new();
        legs.insert(rid.to_owned(), aborted.clone());
        Some(LegGuard { process: Arc::clone(self), rid: rid.to_owned(), aborted })
    }

    /// Aborts all requests whose id starts with `rid`, if a request with exactly this id exists, as
    /// the engine does. Returns the ids of the aborted legs.
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

    /// Handles a control message to one of the ranks.
    pub(crate) fn handle_message(self: &Arc<Self>, rank: usize, message: Message) {
        let rank = &self.ranks[rank];
        match message {
            Message::Registration | Message::AbortAcknowledged => {}
            Message::TransferInfo(transfer_info) => rank.add_transfer_info(transfer_info),
            Message::Status { room, status } => {
                rank.transfer_finished(room, status == control::SUCCESS)
            }
            Message::Abort { room, reply } => {
                rank.fail_room(room, "Failed due to an unknown reason from another rank");
                if let Some(reply) = reply {
                    self.outboxes.send(self, reply, control::abort_acknowledged(room));
                }
            }
        }
    }
}

/// A registered leg, removed on drop.
pub(crate) struct LegGuard {
    process: Arc<Process>,
    rid: String,
    /// Cancelled when the request is aborted.
    pub(crate) aborted: CancellationToken,
}

impl Drop for LegGuard {
    fn drop(&mut self) {
        self.process.legs().remove(&self.rid);
        self.process.recorder.notify();
    }
}
