//! HTTP/1.1 upgrades such as WebSocket: which a client may request, and the [`Tunnel`] after the
//! backend has agreed.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use router_core::fleet::Lease;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until, timeout};

use super::record::Record;
use super::reject::Reject;
use super::stream_watch::WatchLimits;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::leg::until;
use crate::http_client::received_body::ReceivedBody;

/// Size of the buffer of each direction, in bytes.
const BUFFER: usize = 16 << 10;
/// Time for one side to end after the other has ended.
const HALF_CLOSE_TIME: Duration = Duration::from_secs(10);

/// A client's request to change the protocol of its connection.
#[derive(Clone)]
pub(crate) struct UpgradeRequest {
    protocols: HeaderValue,
    client: OnUpgrade,
    slot: TunnelSlot,
}

impl UpgradeRequest {
    /// Takes the request out of a head, whose fields are still complete. `None` without an upgrade that
    /// may be passed on: other versions of HTTP, and TLS, would lead past the routes.
    pub(super) fn take(parts: &mut Parts, slot: &TunnelSlot) -> Option<UpgradeRequest> {
        let client = parts.extensions.remove::<OnUpgrade>()?;
        // An `Upgrade` that `Connection` does not name was meant for a hop before.
        let options = parts.headers.get_all(CONNECTION).into_iter();
        let mut options = options.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
        let is_named = options.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
        if parts.version != Version::HTTP_11 || !is_named {
            return None;
        }
        let values = parts.headers.get_all(UPGRADE).iter().filter_map(|value| value.to_str().ok());
        let protocols = values.flat_map(|value| value.split(',')).map(str::trim);
        let leads_past = |protocol: &str| {
            let name = protocol.split('/').next().unwrap_or_default();
            ["", "h2c", "h2", "http", "tls"].iter().any(|other| name.eq_ignore_ascii_case(other))
        };
        let protocols: Vec<&str> = protocols.filter(|protocol| !leads_past(protocol)).collect();
        let joined = HeaderValue::from_str(&protocols.join(", ")).ok();
        let protocols = joined.filter(|joined| !joined.is_empty())?;
        Some(UpgradeRequest { protocols, client, slot: slot.clone() })
    }

    /// Whether the client asks for WebSocket.
    pub(super) fn is_websocket(&self) -> bool {
        self.protocols.as_bytes().eq_ignore_ascii_case(b"websocket")
    }

    /// Adds the fields that ask a backend for the upgrade.
    pub(super) fn add_fields(&self, headers: &mut HeaderMap) {
        add_fields(headers, self.protocols.clone());
    }
}

fn add_fields(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocols);
}

/// A backend's agreement to an upgrade.
pub(crate) struct AgreedUpgrade {
    request: UpgradeRequest,
    protocol: HeaderValue,
    backend: OnUpgrade,
    lease: Lease,
    limits: WatchLimits,
}

impl AgreedUpgrade {
    /// `None` if the backend's 101 does not name the protocol.
    pub(super) fn new(
        request: UpgradeRequest,
        answer: &mut http::Response<ReceivedBody>,
        lease: Lease,
        limits: WatchLimits,
    ) -> Option<AgreedUpgrade> {
        let protocol = answer.headers().get(UPGRADE)?.clone();
        Some(AgreedUpgrade {
            request,
            protocol,
            backend: hyper::upgrade::on(answer),
            lease,
            limits,
        })
    }

    /// Leaves the tunnel to the connection, and adds the fields of a 101 to the response.
    pub(super) fn begin(self, gateway: Arc<Gateway>, mut record: Record, response: &mut HeaderMap) {
        record.set_status(StatusCode::SWITCHING_PROTOCOLS);
        add_fields(response, self.protocol);
        let UpgradeRequest { client, slot, .. } = self.request;
        let (backend, lease, limits) = (self.backend, self.lease, self.limits);
        *slot.0.lock() = Some(Tunnel { gateway, client, backend, lease, limits, record });
    }
}

/// Where a request leaves the tunnel of its connection; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct TunnelSlot(Arc<Mutex<Option<Tunnel>>>);

impl TunnelSlot {
    /// The tunnel that the connection has become.
    pub(crate) fn take(&self) -> Option<Tunnel> {
        self.0.lock().take()
    }
}

impl std::fmt::Debug for TunnelSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TunnelSlot")
    }
}

/// The two connections of an upgrade, of which each gets the bytes of the other.
pub(crate) struct Tunnel {
    gateway: Arc<Gateway>,
    client: OnUpgrade,
    backend: OnUpgrade,
    lease: Lease,
    limits: WatchLimits,
    /// Says that the client has left, unless it is completed.
    record: Record,
}

/// Why a tunnel has ended.
enum TunnelEnd {
    /// Both sides have closed it.
    Closed,
    ClientBroken,
    Failed(Reject),
}

impl Tunnel {
    /// Relays until both sides have ended, a limit is reached, or the drain timeout is exceeded.
    pub(crate) async fn run(self) {
        let Tunnel { gateway, client, backend, lease, limits, mut record } = self;
        let activity = Mutex::new(Instant::now());
        let fault = |kind| Fault { leg: None, worker: Arc::clone(lease.worker()), kind };
        let relayed = async {
            let Ok(client) = client.await else { return TunnelEnd::ClientBroken };
            match backend.await {
                Ok(backend) => relay(client, backend, &activity, fault).await,
                Err(error) => TunnelEnd::Failed(fault(FaultKind::Broken(error.to_string())).into()),
            }
        };
        let end = tokio::select! {
            end = relayed => end,
            () = idle(&activity, limits.idle) => {
                let waited_for = "a byte of an upgraded connection";
                let kind = FaultKind::Timeout { waited_for, limit: limits.idle };
                TunnelEnd::Failed(fault(kind).into())
            }
            () = until(limits.deadline) => TunnelEnd::Failed(Reject::Deadline),
            () = gateway.dispatch.drain_exceeded.cancelled() => {
                TunnelEnd::Failed(Reject::Draining)
            }
        };
        match end {
            TunnelEnd::Closed => gateway.forwarded(lease.worker(), true),
            TunnelEnd::ClientBroken => return,
            TunnelEnd::Failed(reject) => {
                // A backend may have nothing to send for as long as it likes.
                if let Reject::Fault(fault) = &reject
                    && !fault.is_timeout()
                {
                    gateway.blame_forwarded(fault);
                }
                record.fail(reject.reason(), reject.detail());
            }
        }
        record.finish();
    }
}

/// Resolves once no byte has come for `limit`.
async fn idle(activity: &Mutex<Instant>, limit: Duration) {
    loop {
        let due = *activity.lock() + limit;
        if Instant::now() >= due {
            return;
        }
        sleep_until(due).await;
    }
}

/// Relays both directions.
async fn relay(
    client: Upgraded,
    backend: Upgraded,
    activity: &Mutex<Instant>,
    fault: impl Fn(FaultKind) -> Fault,
) -> TunnelEnd {
    let (client_read, client_write) = split(TokioIo::new(client));
    let (backend_read, backend_write) = split(TokioIo::new(backend));
    let upload = pump(client_read, backend_write, activity);
    let download = pump(backend_read, client_write, activity);
    tokio::pin!(upload, download);
    let (upload, download) = tokio::select! {
        done = &mut upload => {
            let other = rest_of(download, &done).await;
            (Some(done), other)
        }
        done = &mut download => {
            let other = rest_of(upload, &done).await;
            (other, Some(done))
        }
    };
    let of_backend = match (upload, download) {
        (Some(Err(PumpError::Write(error))), _) | (_, Some(Err(PumpError::Read(error)))) => error,
        (Some(Err(_)), _) | (_, Some(Err(_))) => return TunnelEnd::ClientBroken,
        _ => return TunnelEnd::Closed,
    };
    TunnelEnd::Failed(fault(FaultKind::Broken(of_backend.to_string())).into())
}

/// Waits for the other direction after one has ended: for [`HALF_CLOSE_TIME`] after an end, and not at all
/// where reading failed, since the connection is gone. Where writing failed, there may still be bytes to
/// read, such as the reason.
async fn rest_of(
    other: impl Future<Output = Result<(), PumpError>>,
    ended: &Result<(), PumpError>,
) -> Option<Result<(), PumpError>> {
    match ended {
        Err(PumpError::Read(_)) => None,
        Ok(()) | Err(PumpError::Write(_)) => timeout(HALF_CLOSE_TIME, other).await.ok(),
    }
}

enum PumpError {
    Read(std::io::Error),
    Write(std::io::Error),
}

/// Passes bytes on until the end, which is passed on too.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Mutex<Instant>,
) -> Result<(), PumpError> {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    loop {
        buffer.clear();
        let length = from.read_buf(&mut buffer).await.map_err(PumpError::Read)?;
        if length == 0 {
            return to.shutdown().await.map_err(PumpError::Write);
        }
        *activity.lock() = Instant::now();
        to.write_all(&buffer).await.map_err(PumpError::Write)?;
        to.flush().await.map_err(PumpError::Write)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_and_their_end_are_passed_on() {
        let (mut client, from) = tokio::io::duplex(4);
        let (to, mut backend) = tokio::io::duplex(4);
        let activity = Mutex::new(Instant::now());
        let sent = async {
            client.write_all(b"more than a buffer of four").await.unwrap();
            drop(client);
        };
        let mut received = Vec::new();
        let (passed, (), _) =
            tokio::join!(pump(from, to, &activity), sent, backend.read_to_end(&mut received));
        assert!(passed.is_ok());
        assert_eq!(received, b"more than a buffer of four");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_waited_for_after_a_connection_broke_while_it_was_read() {
        let broken = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let began = Instant::now();
        assert!(rest_of(std::future::pending(), &Err(PumpError::Read(broken()))).await.is_none());
        assert_eq!(began.elapsed(), Duration::ZERO);
        let written = Err(PumpError::Write(broken()));
        assert!(matches!(rest_of(async { Ok(()) }, &written).await, Some(Ok(()))));
        assert!(rest_of(std::future::pending(), &Ok(())).await.is_none());
        assert_eq!(began.elapsed(), HALF_CLOSE_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_is_idle_once_no_byte_came_for_its_limit() {
        let activity = Mutex::new(Instant::now());
        let (limit, second) = (Duration::from_secs(10), Duration::from_secs(1));
        assert!(timeout(9 * second, idle(&activity, limit)).await.is_err());
        *activity.lock() = Instant::now();
        assert!(timeout(9 * second, idle(&activity, limit)).await.is_err());
        assert!(timeout(2 * second, idle(&activity, limit)).await.is_ok());
    }
}
