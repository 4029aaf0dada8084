//! One data-parallel rank: its running slots, its queues, and the rooms of its legs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore, watch};

use crate::config::Config;
use crate::gauge::Gauge;
use crate::kv::control::TransferInfo;
use crate::prefix_cache::PrefixCache;

/// Maximum number of rooms that a decode has announced and that have no prefill leg yet.
const MAX_ROOMS: usize = 65_536;

/// The number of requests in each state.
#[derive(Debug, Default)]
pub(crate) struct RankGauges {
    pub(crate) running: Gauge,
    /// Waiting for a running slot.
    pub(crate) queued: Gauge,
    pub(crate) bootstrap: Gauge,
    pub(crate) inflight: Gauge,
    pub(crate) prealloc: Gauge,
    pub(crate) transfer: Gauge,
    /// KV tokens in use.
    pub(crate) tokens: Gauge,
    /// Prompt tokens of requests that have no KV yet.
    pub(crate) pending_tokens: Gauge,
}

/// One data-parallel rank of an engine.
#[derive(Debug)]
pub(crate) struct Rank {
    pub(crate) control: SocketAddr,
    pub(crate) running: Arc<Semaphore>,
    /// One forward pass at a time, in order of arrival.
    pub(crate) forward: tokio::sync::Mutex<()>,
    pub(crate) kv_tokens: Arc<Semaphore>,
    pub(crate) gauges: RankGauges,
    pub(crate) prefixes: Mutex<PrefixCache>,
    rooms: Mutex<HashMap<u64, RoomState>>,
    receivers: Mutex<HashMap<u64, Arc<TransferReceiver>>>,
}

/// A room on a prefill rank.
#[derive(Debug, Default)]
struct RoomState {
    legs: usize,
    transfer_info: Option<TransferInfo>,
    bootstrapped: bool,
    failed: Option<String>,
    changed: Arc<Notify>,
}

/// The state of a transfer on a decode.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TransferState {
    Waiting,
    Arrived,
    Failed(String),
}

/// A decode's wait for the KV of one room.
#[derive(Debug)]
pub(crate) struct TransferReceiver {
    pub(crate) bootstrap: String,
    /// The control address of the prefill rank.
    peer: SocketAddr,
    pub(crate) state: watch::Sender<TransferState>,
}

impl Rank {
    pub(crate) fn new(control: SocketAddr, config: &Config) -> Rank {
        Rank {
            control,
            running: Arc::new(Semaphore::new(config.max_running_requests)),
            forward: tokio::sync::Mutex::new(()),
            kv_tokens: Arc::new(Semaphore::new(config.max_total_tokens)),
            gauges: RankGauges::default(),
            prefixes: Mutex::new(PrefixCache::new(match config.prefix_cache {
                true => config.max_total_tokens,
                false => 0,
            })),
            rooms: Mutex::default(),
            receivers: Mutex::default(),
        }
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<u64, RoomState>> {
        self.rooms.lock()
    }

    fn receivers(&self) -> MutexGuard<'_, HashMap<u64, Arc<TransferReceiver>>> {
        self.receivers.lock()
    }

    /// Records where a decode wants the KV of a room. A second message for the same room replaces
    /// the first, so two requests in one room get each other's answers.
    pub(crate) fn add_transfer_info(&self, transfer_info: TransferInfo) {
        let mut rooms = self.rooms();
        if rooms.len() >= MAX_ROOMS {
            rooms.retain(|_, room_state| room_state.legs > 0);
        }
        let room_state = rooms.entry(transfer_info.room).or_default();
        room_state.bootstrapped = true;
        room_state.transfer_info = Some(transfer_info);
        room_state.changed.notify_waiters();
    }

    /// The decode has given up the room. Unknown rooms are ignored.
    pub(crate) fn fail_room(&self, room: u64, reason: &str) {
        if let Some(room_state) = self.rooms().get_mut(&room) {
            room_state.failed = Some(reason.into());
            room_state.changed.notify_waiters();
        }
    }

    /// Adds a prefill leg to its room.
    pub(crate) fn enter_room(self: &Arc<Self>, room: u64) -> RoomGuard {
        self.rooms().entry(room).or_default().legs += 1;
        RoomGuard { rank: Arc::clone(self), room }
    }

    pub(crate) fn expect_transfer(
        self: &Arc<Self>,
        room: u64,
        bootstrap: String,
        peer: SocketAddr,
    ) -> ReceiverGuard {
        let state = watch::Sender::new(TransferState::Waiting);
        let receiver = Arc::new(TransferReceiver { bootstrap, peer, state });
        self.receivers().insert(room, Arc::clone(&receiver));
        ReceiverGuard { rank: Arc::clone(self), room, receiver }
    }

    pub(crate) fn transfer_finished(&self, room: u64, arrived: bool) {
        let receiver = self.receivers().get(&room).cloned();
        if let Some(receiver) = receiver {
            receiver.state.send_replace(if arrived {
                TransferState::Arrived
            } else {
                let reason = "Failed to get kvcache from prefill instance, it might be dead";
                TransferState::Failed(reason.into())
            });
        }
    }

    /// Fails all waiting transfers from one prefill, or from one rank of it.
    pub(crate) fn fail_receivers(&self, bootstrap: &str, peer: Option<SocketAddr>) {
        let reason =
            format!("Losing connection with prefill instance (bootstrap_addr: {bootstrap})");
        let affected = |r: &&Arc<TransferReceiver>| {
            r.bootstrap == bootstrap && peer.is_none_or(|peer| peer == r.peer)
        };
        for receiver in self.receivers().values().filter(affected) {
            receiver.state.send_if_modified(|state| {
                let waiting = *state == TransferState::Waiting;
                if waiting {
                    *state = TransferState::Failed(reason.clone());
                }
                waiting
            });
        }
    }
}

/// A prefill leg in its room, removed on drop.
#[derive(Debug)]
pub(crate) struct RoomGuard {
    rank: Arc<Rank>,
    pub(crate) room: u64,
}

impl RoomGuard {
    /// Returns once a decode has sent its transfer info, or the reason why the room failed.
    pub(crate) async fn bootstrapped(&self) -> Result<(), String> {
        loop {
            let changed = {
                let rooms = self.rank.rooms();
                let room_state = rooms.get(&self.room).expect("a room with a leg is not removed");
                if let Some(reason) = &room_state.failed {
                    return Err(reason.clone());
                }
                if room_state.bootstrapped {
                    return Ok(());
                }
                Arc::clone(&room_state.changed).notified_owned()
            };
            changed.await;
        }
    }

    /// Returns only when the room fails.
    pub(crate) async fn failure(&self) -> String {
        loop {
            let changed = {
                let rooms = self.rank.rooms();
                let room_state = rooms.get(&self.room).expect("a room with a leg is not removed");
                if let Some(reason) = &room_state.failed {
                    return reason.clone();
                }
                Arc::clone(&room_state.changed).notified_owned()
            };
            changed.await;
        }
    }

    /// Takes the transfer info. Only one leg of a room gets it.
    pub(crate) fn take_transfer_info(&self) -> Option<TransferInfo> {
        self.rank.rooms().get_mut(&self.room)?.transfer_info.take()
    }
}

impl Drop for RoomGuard {
    fn drop(&mut self) {
        let mut rooms = self.rank.rooms();
        if let Some(room_state) = rooms.get_mut(&self.room) {
            room_state.legs -= 1;
            if room_state.legs == 0 {
                rooms.remove(&self.room);
            }
        }
    }
}

/// The registration of a [`TransferReceiver`], removed on drop unless another has replaced it.
#[derive(Debug)]
pub(crate) struct ReceiverGuard {
    rank: Arc<Rank>,
    room: u64,
    pub(crate) receiver: Arc<TransferReceiver>,
}

impl Drop for ReceiverGuard {
    fn drop(&mut self) {
        let mut receivers = self.rank.receivers();
        if receivers.get(&self.room).is_some_and(|current| Arc::ptr_eq(current, &self.receiver)) {
            receivers.remove(&self.room);
        }
    }
}
