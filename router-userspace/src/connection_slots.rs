//! [`ConnectionSlots`]: limits the open connections of a port that serves probes, without letting a new
//! connection wait.
//!
//! A client that holds connections and sends nothing, or reads nothing, must not keep the kubelet's probes
//! out: when all slots are taken, the connection whose last request is the oldest is closed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Time after which a peer that acknowledges nothing, or reads nothing, is disconnected by the kernel.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Age up to which closing a connection for another one means that clients reconnect at once.
const YOUNG: Duration = Duration::from_millis(100);
/// Pause before the next connection is accepted then, so that each one has time to be served.
const PAUSE: Duration = Duration::from_millis(1);

/// The open connections of one port.
#[derive(Debug)]
pub(crate) struct ConnectionSlots {
    limit: usize,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    /// The number of the next use.
    next: u64,
    /// The connections that may be closed for another one, by the number of their last use.
    recent: BTreeMap<u64, ClosableConnection>,
    /// The last use of the connections that serve a stream.
    streaming: HashSet<u64>,
}

#[derive(Clone, Debug)]
struct ClosableConnection {
    since: Instant,
    close: CancellationToken,
}

/// The slot of one connection, until dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    open: ClosableConnection,
    last_use: AtomicU64,
}

impl ConnectionSlots {
    pub(crate) fn new(limit: usize) -> Arc<ConnectionSlots> {
        Arc::new(ConnectionSlots { limit, state: Mutex::default() })
    }

    /// Takes a slot for a new connection; the least recently used one is closed if all are taken.
    /// `None` if all of them serve streams.
    pub(crate) async fn admit(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let closed = self.make_space()?;
        if closed.is_some_and(|closed| closed.since.elapsed() < YOUNG) {
            sleep(PAUSE).await;
        }
        let open = ClosableConnection { since: Instant::now(), close: CancellationToken::new() };
        let last_use = AtomicU64::new(self.state.lock().insert(open.clone()));
        Some(ConnectionSlot { slots: Arc::clone(self), open, last_use })
    }

    /// Closes a connection if all slots are taken. `None` if there is none to close.
    #[expect(clippy::option_option, reason = "there was space, one was closed, or none can be")]
    fn make_space(&self) -> Option<Option<ClosableConnection>> {
        let mut state = self.state.lock();
        if state.recent.len() + state.streaming.len() < self.limit {
            return Some(None);
        }
        let (_, oldest) = state.recent.pop_first()?;
        oldest.close.cancel();
        Some(Some(oldest))
    }
}

impl SlotState {
    fn insert(&mut self, open: ClosableConnection) -> u64 {
        let number = self.next;
        self.next += 1;
        self.recent.insert(number, open);
        number
    }

    fn remove(&mut self, number: u64) -> bool {
        self.recent.remove(&number).is_some() || self.streaming.remove(&number)
    }
}

impl ConnectionSlot {
    /// A request has come.
    pub(crate) fn used(&self) {
        let mut state = self.slots.state.lock();
        if state.remove(self.last_use.load(Ordering::Relaxed)) {
            self.last_use.store(state.insert(self.open.clone()), Ordering::Relaxed);
        }
    }

    /// The connection serves a stream, and is not closed for another one before its next request.
    pub(crate) fn streams(&self) {
        let mut state = self.slots.state.lock();
        let number = self.last_use.load(Ordering::Relaxed);
        if state.remove(number) {
            state.streaming.insert(number);
        }
    }

    /// Runs a connection until it ends, or is closed for another one. Returns `None` then.
    pub(crate) async fn run<T>(&self, connection: impl Future<Output = T>) -> Option<T> {
        self.open.close.run_until_cancelled(connection).await
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.state.lock().remove(self.last_use.load(Ordering::Relaxed));
    }
}

/// Sends without delay, and lets the kernel disconnect a peer that reads or acknowledges nothing.
pub(crate) fn set_options(stream: &TcpStream) {
    let timeout = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
    for error in [stream.set_nodelay(true), timeout].into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "setsockopt failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closed(slot: &ConnectionSlot) -> bool {
        slot.open.close.is_cancelled()
    }

    #[tokio::test]
    async fn the_connection_with_the_oldest_request_is_closed_for_a_new_one() {
        let slots = ConnectionSlots::new(3);
        let streaming = slots.admit().await.unwrap();
        streaming.used();
        streaming.streams();
        let asks = slots.admit().await.unwrap();
        let idle = slots.admit().await.unwrap();
        asks.used();
        let new = slots.admit().await.unwrap();
        assert!(is_closed(&idle));
        assert!(!is_closed(&asks) && !is_closed(&streaming));
        drop((idle, asks));
        let last = slots.admit().await.unwrap();
        assert!(!is_closed(&new), "a slot was free");
        last.used();
        last.streams();
        new.used();
        new.streams();
        assert!(slots.admit().await.is_none(), "streams are not closed");
        drop(new);
        assert!(slots.admit().await.is_some());
    }
}
