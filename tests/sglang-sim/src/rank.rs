//! One data-parallel rank: its slots, its queues, and the rooms in which legs meet.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, Semaphore, watch};

use crate::config::Config;
use crate::count::Count;
use crate::kv::control::Invitation;

/// Rooms to which a decode has invited and no prefill leg has come, at most.
const LONELY_ROOMS: usize = 65_536;

/// How many requests are where.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) running: Count,
    /// Waiting for a running slot.
    pub(crate) queued: Count,
    pub(crate) bootstrap: Count,
    pub(crate) inflight: Count,
    pub(crate) prealloc: Count,
    pub(crate) transfer: Count,
    /// KV tokens in use.
    pub(crate) tokens: Count,
    /// Prompt tokens of requests that have no KV yet.
    pub(crate) pending_tokens: Count,
}

/// A rank of an engine.
#[derive(Debug)]
pub(crate) struct Rank {
    pub(crate) control: SocketAddr,
    pub(crate) running: Arc<Semaphore>,
    /// One forward pass at a time, in order of arrival.
    pub(crate) forward: tokio::sync::Mutex<()>,
    pub(crate) kv_tokens: Arc<Semaphore>,
    pub(crate) counts: Counts,
    meetings: Mutex<HashMap<u64, Meeting>>,
    receivers: Mutex<HashMap<u64, Arc<Receiver>>>,
}

/// A room as a prefill rank sees it.
#[derive(Debug, Default)]
struct Meeting {
    legs: usize,
    invitation: Option<Invitation>,
    bootstrapped: bool,
    failed: Option<String>,
    changed: Arc<Notify>,
}

/// Where a transfer stands, as a decode sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Transfer {
    Waiting,
    Arrived,
    Failed(String),
}

/// A decode's wait for one room.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) bootstrap: String,
    /// The control address of the prefill rank.
    peer: SocketAddr,
    pub(crate) state: watch::Sender<Transfer>,
}

impl Rank {
    pub(crate) fn new(control: SocketAddr, config: &Config) -> Rank {
        Rank {
            control,
            running: Arc::new(Semaphore::new(config.max_running_requests)),
            forward: tokio::sync::Mutex::new(()),
            kv_tokens: Arc::new(Semaphore::new(config.max_total_tokens)),
            counts: Counts::default(),
            meetings: Mutex::default(),
            receivers: Mutex::default(),
        }
    }

    fn meetings(&self) -> MutexGuard<'_, HashMap<u64, Meeting>> {
        self.meetings.lock().expect("no code panics while it holds the meetings")
    }

    fn receivers(&self) -> MutexGuard<'_, HashMap<u64, Arc<Receiver>>> {
        self.receivers.lock().expect("no code panics while it holds the receivers")
    }

    /// A decode has invited to a room. A second invitation to a live room replaces the first,
    /// which is how two requests with one room get each other's answers.
    pub(crate) fn invite(&self, invitation: Invitation) {
        let mut meetings = self.meetings();
        if meetings.len() >= LONELY_ROOMS {
            meetings.retain(|_, meeting| meeting.legs > 0);
        }
        let meeting = meetings.entry(invitation.room).or_default();
        meeting.bootstrapped = true;
        meeting.invitation = Some(invitation);
        meeting.changed.notify_waiters();
    }

    /// The decode no longer wants the room; an unknown one is none of ours.
    pub(crate) fn fail_room(&self, room: u64, reason: &str) {
        if let Some(meeting) = self.meetings().get_mut(&room) {
            meeting.failed = Some(reason.into());
            meeting.changed.notify_waiters();
        }
    }

    /// A prefill leg enters its room.
    pub(crate) fn enter(self: &Arc<Self>, room: u64) -> Attendance {
        self.meetings().entry(room).or_default().legs += 1;
        Attendance { rank: Arc::clone(self), room }
    }

    pub(crate) fn expect(
        self: &Arc<Self>,
        room: u64,
        bootstrap: String,
        peer: SocketAddr,
    ) -> Expectation {
        let state = watch::Sender::new(Transfer::Waiting);
        let receiver = Arc::new(Receiver { bootstrap, peer, state });
        self.receivers().insert(room, Arc::clone(&receiver));
        Expectation { rank: Arc::clone(self), room, receiver }
    }

    pub(crate) fn transferred(&self, room: u64, arrived: bool) {
        let receiver = self.receivers().get(&room).cloned();
        if let Some(receiver) = receiver {
            receiver.state.send_replace(if arrived {
                Transfer::Arrived
            } else {
                let reason = "Failed to get kvcache from prefill instance, it might be dead";
                Transfer::Failed(reason.into())
            });
        }
    }

    /// Fails every wait for rooms of one prefill, or of one rank of it.
    pub(crate) fn lose(&self, bootstrap: &str, peer: Option<SocketAddr>) {
        let reason =
            format!("Losing connection with prefill instance (bootstrap_addr: {bootstrap})");
        let theirs =
            |r: &&Arc<Receiver>| r.bootstrap == bootstrap && peer.is_none_or(|peer| peer == r.peer);
        for receiver in self.receivers().values().filter(theirs) {
            receiver.state.send_if_modified(|state| {
                let waiting = *state == Transfer::Waiting;
                if waiting {
                    *state = Transfer::Failed(reason.clone());
                }
                waiting
            });
        }
    }
}

/// A prefill leg in its room; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Attendance {
    rank: Arc<Rank>,
    pub(crate) room: u64,
}

impl Attendance {
    /// Returns once a decode has invited, or with the reason why the room failed.
    pub(crate) async fn bootstrapped(&self) -> Result<(), String> {
        loop {
            let changed = {
                let meetings = self.rank.meetings();
                let meeting = meetings.get(&self.room).expect("a room with a leg stays");
                if let Some(reason) = &meeting.failed {
                    return Err(reason.clone());
                }
                if meeting.bootstrapped {
                    return Ok(());
                }
                Arc::clone(&meeting.changed).notified_owned()
            };
            changed.await;
        }
    }

    /// Returns only when the room fails.
    pub(crate) async fn failure(&self) -> String {
        loop {
            let changed = {
                let meetings = self.rank.meetings();
                let meeting = meetings.get(&self.room).expect("a room with a leg stays");
                if let Some(reason) = &meeting.failed {
                    return reason.clone();
                }
                Arc::clone(&meeting.changed).notified_owned()
            };
            changed.await;
        }
    }

    /// The invitation, which only one leg gets.
    pub(crate) fn take_invitation(&self) -> Option<Invitation> {
        self.rank.meetings().get_mut(&self.room)?.invitation.take()
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut meetings = self.rank.meetings();
        if let Some(meeting) = meetings.get_mut(&self.room) {
            meeting.legs -= 1;
            if meeting.legs == 0 {
                meetings.remove(&self.room);
            }
        }
    }
}

/// A decode's entry for a room; gone when dropped, unless another took its place.
#[derive(Debug)]
pub(crate) struct Expectation {
    rank: Arc<Rank>,
    room: u64,
    pub(crate) receiver: Arc<Receiver>,
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut receivers = self.rank.receivers();
        if receivers.get(&self.room).is_some_and(|now| Arc::ptr_eq(now, &self.receiver)) {
            receivers.remove(&self.room);
        }
    }
}
