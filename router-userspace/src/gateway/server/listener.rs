//! Listeners: one socket a port, opened and closed as Gateways come and go.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::gauge::Gauge;
use router_core::fleet::ListenPort;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::Visits;
use super::tls;
use crate::config::Settings;
use crate::gateway::request::handle::{Arrival, Service};

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 4096;
/// After the system refused a connection (no descriptors left), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks whether a quiet client is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// For the first request of a connection that was accepted before its port closed: it may be on
/// its way.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// The open sockets, by port.
pub(crate) struct Listeners {
    address: IpAddr,
    service: Service,
    room: Arc<Semaphore>,
    server: auto::Builder<TokioExecutor>,
    idle_timeout: Duration,
    send_timeout: Duration,
    tasks: TaskTracker,
    /// By port and whether clients speak TLS there. Cancelled to close the port and end its
    /// connections once they are idle.
    open: HashMap<ListenPort, CancellationToken>,
}

impl Listeners {
    pub(crate) fn new(settings: &Settings, service: Service) -> Listeners {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.timeouts.header_timeout)
            .max_buf_size(settings.limits.max_head);
        server
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(settings.limits.max_head).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(Duration::from_secs(30)));
        Listeners {
            address: settings.listen_address,
            service,
            room: Arc::new(Semaphore::new(settings.limits.max_connections)),
            server,
            idle_timeout: settings.timeouts.header_timeout,
            send_timeout: settings.timeouts.send_timeout,
            tasks: TaskTracker::new(),
            open: HashMap::new(),
        }
    }

    /// Opens what `ports` names and is not open, closes what it no longer names. Connections of
    /// a closed port finish what they serve.
    ///
    /// Returns the ports that could not be opened, and why; they are tried again at the next call.
    pub(crate) fn reconcile(&mut self, ports: &[ListenPort]) -> Vec<(u16, io::Error)> {
        self.open.retain(|port, closing| {
            let keep = ports.contains(port);
            if !keep {
                tracing::info!(port = port.number, "listener closed");
                closing.cancel();
            }
            keep
        });
        let mut failed = Vec::new();
        for &port in ports {
            if self.open.contains_key(&port) {
                continue;
            }
            match bind(SocketAddr::new(self.address, port.number), self.send_timeout) {
                Ok(listener) => {
                    let ListenPort { number, secure } = port;
                    tracing::info!(address = %self.address, port = number, secure, "listener opened");
                    let closing = CancellationToken::new();
                    self.open.insert(port, closing.clone());
                    self.tasks.spawn(self.acceptor(port, closing).run(listener));
                }
                Err(error) => failed.push((port.number, error)),
            }
        }
        failed
    }

    /// The ports that are open.
    pub(crate) fn ports(&self) -> Vec<ListenPort> {
        self.open.keys().copied().collect()
    }

    /// Accepts nothing more and waits until every connection has finished what it serves, or
    /// `limit` is over. Returns whether all did.
    pub(crate) async fn drain(&self, limit: Duration) -> bool {
        for closing in self.open.values() {
            closing.cancel();
        }
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }

    fn acceptor(&self, port: ListenPort, closing: CancellationToken) -> Acceptor {
        Acceptor {
            port: port.number,
            tls: port.secure.then(|| tls::acceptor(self.service.fleet(), port.number)),
            closing,
            service: self.service.clone(),
            room: Arc::clone(&self.room),
            server: self.server.clone(),
            idle_timeout: self.idle_timeout,
            send_timeout: self.send_timeout,
            tasks: self.tasks.clone(),
        }
    }
}

/// Accepts the connections of one port.
struct Acceptor {
    port: u16,
    tls: Option<TlsAcceptor>,
    closing: CancellationToken,
    service: Service,
    room: Arc<Semaphore>,
    server: auto::Builder<TokioExecutor>,
    idle_timeout: Duration,
    send_timeout: Duration,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer).await,
                Err(error) => {
                    tracing::warn!(port = self.port, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Clients whose connections wait in the kernel's backlog believe that they are served.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.admit(stream, peer).await;
            }
        }
    }

    /// Serves a connection as soon as there is room for it. Until then no further one is
    /// accepted, and the next ones stay in the kernel's backlog.
    async fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let permit = tokio::select! {
            biased;
            permit = Arc::clone(&self.room).acquire_owned() => permit,
            () = self.closing.cancelled() => return,
        };
        let connection = self.serve(stream, peer);
        self.tasks.spawn(async move {
            connection.await;
            drop(permit);
        });
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) -> impl Future<Output = ()> + use<> {
        let conversation = Conversation {
            service: self.service.clone(),
            server: self.server.clone(),
            closing: self.closing.clone(),
            idle_timeout: self.idle_timeout,
            send_timeout: self.send_timeout,
            peer,
        };
        let (port, tls, limit) = (self.port, self.tls.clone(), self.idle_timeout);
        let counted = Counted::new(&self.service.metrics().connections);
        async move {
            let _counted = counted;
            let Some(tls) = tls else {
                return conversation.hold(stream, Arrival::plain(port)).await;
            };
            match tokio::time::timeout(limit, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let arrival = Arrival::secure(port, stream.get_ref().1.server_name());
                    conversation.hold(stream, arrival).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, port, %error, "no TLS with this client"),
                Err(_) => tracing::debug!(%peer, port, "TLS with this client took too long"),
            }
        }
    }
}

/// One connection, from its first byte that is HTTP.
struct Conversation {
    service: Service,
    server: auto::Builder<TokioExecutor>,
    closing: CancellationToken,
    idle_timeout: Duration,
    send_timeout: Duration,
    peer: SocketAddr,
}

impl Conversation {
    /// Answers what is asked until either side is done.
    async fn hold(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, to: Arrival) {
        let visits = Visits::new();
        let visited = Arc::clone(&visits);
        let service = self.service;
        let answer = service_fn(move |request: http::Request<Incoming>| {
            let (service, visit, to) = (service.clone(), visited.begin(), to.clone());
            let version = request.version();
            async move {
                let answer = service.handle(&to, request).await;
                Ok::<_, std::convert::Infallible>(visit.with(answer, version))
            }
        });
        let connection = self.server.serve_connection(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        let served = async {
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = over(&visits, self.closing, self.idle_timeout) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        };
        let ended = tokio::select! {
            ended = served => ended,
            () = visits.drop_untaken(self.send_timeout) => return,
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer, error, "connection ended early");
        }
    }
}

/// Resolves when a connection is to end after what it serves: its port closes, or its client has
/// asked nothing for a while. The latter is hyper's to see for HTTP/1.1, but not while it does not
/// know the protocol, and never for HTTP/2.
async fn over(visits: &Visits, closing: CancellationToken, idle_timeout: Duration) {
    let idle = async {
        loop {
            let idle_since = visits.idle_since().unwrap_or_else(Instant::now);
            if idle_since.elapsed() >= idle_timeout {
                return;
            }
            tokio::time::sleep_until(idle_since + idle_timeout).await;
        }
    };
    if closing.run_until_cancelled(idle).await.is_none() {
        // No matter whether it came: what runs is served in any case.
        let _ = tokio::time::timeout(FIRST_REQUEST, visits.any()).await;
    }
}

/// Counts a connection until dropped.
struct Counted(Gauge);

impl Counted {
    fn new(connections: &Gauge) -> Counted {
        connections.inc();
        Counted(connections.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Opens a port. Connections inherit the options of the socket that accepts them.
fn bind(address: SocketAddr, send_timeout: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for old connections to time out.
    socket.set_reuse_address(true)?;
    // A small head must not wait for the delayed ACK of the one before.
    socket.set_tcp_nodelay(true)?;
    // A client that has vanished, or never reads, holds its engines' places: the body of its answer
    // is not even polled then, so that only the kernel can tell.
    socket.set_tcp_user_timeout(Some(send_timeout))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
