//! [`Listeners`]: one socket per port, opened and closed as Gateways are created and deleted.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
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

use super::activity::ConnectionActivity;
use super::tls;
use crate::config::GatewaySettings;
use crate::gateway::request::connection_info::ConnectionInfo;
use crate::gateway::request::handle::RequestService;
use crate::metrics::{Metrics, RequestLabels};

/// Maximum number of connections that wait in the kernel until they are accepted.
const BACKLOG: i32 = 4096;
/// Pause after accepting failed, for example because no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Minimum time between two warnings that accepting fails: it is retried twenty times a second.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);
/// Interval of TCP keepalive probes on idle connections.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Time that a connection that was accepted before its port closed has for its first request, which
/// may be on its way.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// The open sockets, by port.
pub(crate) struct Listeners {
    address: IpAddr,
    service: RequestService,
    permits: Arc<Semaphore>,
    server: auto::Builder<TokioExecutor>,
    idle_timeout: Duration,
    send_timeout: Duration,
    tasks: TaskTracker,
    /// Cancelled to close the port, and its connections once they are idle.
    open: HashMap<ListenPort, CancellationToken>,
}

impl Listeners {
    pub(crate) fn new(settings: &GatewaySettings, service: RequestService) -> Listeners {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.timeouts.header_timeout)
            .max_buf_size(settings.limits.max_header_bytes);
        server
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(
                u32::try_from(settings.limits.max_header_bytes).unwrap_or(u32::MAX),
            )
            .keep_alive_interval(Some(Duration::from_secs(30)));
        Listeners {
            address: settings.listen_address,
            service,
            permits: Arc::new(Semaphore::new(settings.limits.max_connections)),
            server,
            idle_timeout: settings.timeouts.header_timeout,
            send_timeout: settings.timeouts.send_timeout,
            tasks: TaskTracker::new(),
            open: HashMap::new(),
        }
    }

    /// Opens the ports of `ports` that are not open, and closes the open ones that are not in it.
    /// Connections of a closed port finish the requests that they serve.
    ///
    /// Returns the ports that could not be opened, and why; the next call retries them.
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

    /// Accepts no more connections and waits until every connection has finished the requests that it
    /// serves, for up to `limit`. Returns whether all have.
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
            permits: Arc::clone(&self.permits),
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
    service: RequestService,
    permits: Arc<Semaphore>,
    server: auto::Builder<TokioExecutor>,
    idle_timeout: Duration,
    send_timeout: Duration,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let mut warned: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer).await,
                Err(error) => {
                    if warned.is_none_or(|warned| warned.elapsed() >= ACCEPT_WARNING) {
                        warned = Some(Instant::now());
                        tracing::warn!(port = self.port, %error, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Connections in the kernel's backlog look established to their clients: they are served too.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.admit(stream, peer).await;
            }
        }
    }

    /// Serves a connection as soon as there is a permit for it. Until then no further connection is
    /// accepted, and the next ones stay in the kernel's backlog.
    async fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let permit = tokio::select! {
            biased;
            permit = Arc::clone(&self.permits).acquire_owned() => permit,
            () = self.closing.cancelled() => return,
        };
        let connection = self.serve(stream, peer);
        self.tasks.spawn(async move {
            connection.await;
            drop(permit);
        });
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) -> impl Future<Output = ()> + use<> {
        let connection = Connection {
            service: self.service.clone(),
            server: self.server.clone(),
            closing: self.closing.clone(),
            idle_timeout: self.idle_timeout,
            send_timeout: self.send_timeout,
            peer,
        };
        let (port, tls, limit) = (self.port, self.tls.clone(), self.idle_timeout);
        let trusted_proxy = self.service.trusts(peer.ip());
        let counted = ConnectionCount::new(&self.service.metrics().connections);
        async move {
            let _counted = counted;
            let info = ConnectionInfo::plain(port, peer.ip(), trusted_proxy);
            let Some(tls) = tls else { return connection.serve(stream, info).await };
            match tokio::time::timeout(limit, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let info = info.secured(stream.get_ref().1.server_name());
                    connection.serve(stream, info).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, port, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, port, error = "timeout", "TLS handshake failed"),
            }
        }
    }
}

/// One connection, from its first byte of HTTP.
struct Connection {
    service: RequestService,
    server: auto::Builder<TokioExecutor>,
    closing: CancellationToken,
    idle_timeout: Duration,
    send_timeout: Duration,
    peer: SocketAddr,
}

impl Connection {
    /// Serves requests until either side ends the connection.
    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        info: ConnectionInfo,
    ) {
        let activity = ConnectionActivity::new();
        let (unread, tunnel) = (Arc::clone(info.unread()), info.tunnel().clone());
        let requests = Arc::clone(&activity);
        let service = self.service.clone();
        let answer = service_fn(move |request: http::Request<Incoming>| {
            let (service, guard, info) = (service.clone(), requests.begin(), info.clone());
            let version = request.version();
            async move {
                let answer = service.handle(&info, request).await;
                Ok::<_, std::convert::Infallible>(guard.track(answer, version))
            }
        });
        let connection = self.server.serve_connection_with_upgrades(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        let closing = port_closed_or_idle(&activity, self.closing, self.idle_timeout);
        // The task is woken for every part of an answer: the set polls only what has woken it.
        let mut limits = FuturesUnordered::<Pin<Box<dyn Future<Output = ()> + Send + '_>>>::new();
        limits.push(Box::pin(closing));
        limits.push(Box::pin(activity.drop_stalled(self.send_timeout)));
        limits.push(Box::pin(unread.linger()));
        let ended = loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => break ended,
                // Only the first one resolves.
                Some(()) = limits.next() => connection.as_mut().graceful_shutdown(),
            }
        };
        drop(limits);
        if let Err(error) = ended {
            report_failure(&*error, self.peer, self.service.metrics());
        }
        if let Some(tunnel) = tunnel.take() {
            tunnel.run().await;
        }
    }
}

/// Resolves when a connection is to end after the requests that it serves: its port closes, or its
/// client has sent no request for `idle_timeout`. hyper has such a timeout for HTTP/1.1, but not while
/// it detects the protocol, and not for HTTP/2.
async fn port_closed_or_idle(
    activity: &ConnectionActivity,
    closing: CancellationToken,
    idle_timeout: Duration,
) {
    let idle = async {
        loop {
            let idle_since = activity.idle_since().unwrap_or_else(Instant::now);
            if idle_since.elapsed() >= idle_timeout {
                return;
            }
            tokio::time::sleep_until(idle_since + idle_timeout).await;
        }
    };
    if closing.run_until_cancelled(idle).await.is_none() {
        // Running requests are served whether or not one came in this time.
        let _ = tokio::time::timeout(FIRST_REQUEST, activity.first_request()).await;
    }
}

/// Logs the end of a failed connection. A head that hyper could not read never became a request: it is
/// logged and counted here as one. hyper has answered it with a status and no body, except over HTTP/2,
/// where it resets the stream and reports nothing.
fn report_failure(error: &(dyn std::error::Error + 'static), peer: SocketAddr, metrics: &Metrics) {
    let refused = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse());
    let Some(refused) = refused else {
        tracing::debug!(%peer, error, "connection failed");
        return;
    };
    let (status, reason) = match refused.is_parse_too_large() {
        true => (431, "head_too_large"),
        false => (400, "bad_head"),
    };
    tracing::info!(%peer, endpoint = "other", status, reason, detail = %refused, "request");
    metrics
        .requests
        .get_or_create(&RequestLabels { endpoint: "other", code: status, reason })
        .inc();
}

/// Counts a connection until dropped.
struct ConnectionCount(Gauge);

impl ConnectionCount {
    fn new(connections: &Gauge) -> ConnectionCount {
        connections.inc();
        ConnectionCount(connections.clone())
    }
}

impl Drop for ConnectionCount {
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
    // A client that has vanished, or never reads, keeps its leases: the body of its answer is not
    // polled then, so that only the kernel can detect it.
    socket.set_tcp_user_timeout(Some(send_timeout))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
