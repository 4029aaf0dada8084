//! [`IdleConnections`]: the kept connections of HTTP/1.1 that wait for a request, by server.
//!
//! It is made for requests that are small and many: a connection is free again with the end of its response,
//! mostly without a task, and one that is not free is never waited for.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::uri::Authority;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::OutgoingBody;
use super::watched_stream::ClosedUnread;

/// How long a connection whose response is whole may still take until it is free: the rest of a request that
/// was answered early is sent.
const UNTIL_FREE: Duration = Duration::from_secs(5);
/// Number of looks at idle connections within the time that they may be idle.
const LOOKS_PER_TIMEOUT: u32 = 4;
/// Bounds of the time between two looks.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Which idle connections are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleLimits {
    /// Maximum time that a connection is idle.
    pub timeout: Duration,
    /// Maximum number of idle connections to one server. With 0 none is kept.
    pub max_idle: usize,
}

/// An open connection.
pub(super) struct KeptConnection {
    pub requests: SendRequest<OutgoingBody>,
    pub closed_unread: ClosedUnread,
}

/// A connection whose response is being read.
pub(super) struct Borrowed {
    connection: KeptConnection,
    authority: Authority,
    idle: Arc<IdleConnections>,
}

impl Borrowed {
    /// The response was read to its end.
    pub(super) fn give_back(self) {
        let Borrowed { mut connection, authority, idle } = self;
        if idle.limits.max_idle == 0 || connection.requests.is_closed() {
            return;
        }
        if connection.requests.is_ready() {
            return idle.keep(&authority, connection);
        }
        // Its task has not come to it yet, or still sends the request.
        tokio::spawn(async move {
            if let Ok(Ok(())) = timeout(UNTIL_FREE, connection.requests.ready()).await {
                idle.keep(&authority, connection);
            }
        });
    }
}

impl fmt::Debug for Borrowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Borrowed").field(&self.authority).finish()
    }
}

/// The connections that wait for a request.
pub(super) struct IdleConnections {
    limits: IdleLimits,
    servers: Mutex<HashMap<Authority, Vec<IdleConnection>>>,
}

struct IdleConnection {
    connection: KeptConnection,
    since: Instant,
}

impl IdleConnection {
    fn is_usable(&self, timeout: Duration) -> bool {
        self.connection.requests.is_ready() && self.since.elapsed() < timeout
    }
}

impl IdleConnections {
    pub(super) fn new(limits: IdleLimits) -> IdleConnections {
        IdleConnections { limits, servers: Mutex::default() }
    }

    /// The connection of a response that is being read.
    pub(super) fn borrowed(
        self: &Arc<Self>,
        authority: &Authority,
        connection: KeptConnection,
    ) -> Borrowed {
        Borrowed { connection, authority: authority.clone(), idle: Arc::clone(self) }
    }

    /// A connection that can send a request now: the one that was used last.
    pub(super) fn take(&self, authority: &Authority) -> Option<KeptConnection> {
        let mut servers = self.servers.lock();
        let connections = servers.get_mut(authority)?;
        let is_usable = |idle: &IdleConnection| idle.is_usable(self.limits.timeout);
        let usable = std::iter::from_fn(|| connections.pop()).find(is_usable);
        usable.map(|idle| idle.connection)
    }

    fn keep(self: &Arc<Self>, authority: &Authority, connection: KeptConnection) {
        let mut servers = self.servers.lock();
        if servers.is_empty() {
            tokio::spawn(close_expired(Arc::downgrade(self), self.limits.timeout));
        }
        let connections = match servers.get_mut(authority) {
            Some(connections) => connections,
            None => servers.entry(authority.clone()).or_default(),
        };
        if connections.len() < self.limits.max_idle {
            connections.push(IdleConnection { connection, since: Instant::now() });
        }
    }

    /// Drops the connections to a server. The entry stays: [`close_expired`] runs as long as there is one.
    pub(super) fn forget(&self, authority: &Authority) {
        if let Some(connections) = self.servers.lock().get_mut(authority) {
            connections.clear();
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.servers.lock().values().map(Vec::len).sum()
    }

    /// Drops what has been idle for too long. Returns whether anything is left.
    fn close_expired(&self) -> bool {
        let mut servers = self.servers.lock();
        servers.retain(|_, connections| {
            connections.retain(|idle| idle.is_usable(self.limits.timeout));
            !connections.is_empty()
        });
        !servers.is_empty()
    }
}

/// Closes idle connections in time also where no request comes. Ends when there is none.
async fn close_expired(idle: Weak<IdleConnections>, longest: Duration) {
    let mut looks = interval((longest / LOOKS_PER_TIMEOUT).clamp(MIN_PAUSE, MAX_PAUSE));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once.
    looks.tick().await;
    loop {
        looks.tick().await;
        let Some(idle) = idle.upgrade() else { return };
        if !idle.close_expired() {
            return;
        }
    }
}
