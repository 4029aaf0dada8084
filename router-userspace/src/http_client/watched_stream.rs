//! [`WatchedStream`]: a connection that notes whether its server closed it before it read what was sent.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use nix::libc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::Service;

/// Whether the server closed a connection before it read the last request on it; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct ClosedUnread(Arc<Progress>);

/// What was written of a connection.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes so far, and those before the last request.
    written: AtomicU64,
    before: AtomicU64,
    closed_unread: AtomicBool,
}

impl ClosedUnread {
    /// A request begins with the next byte.
    pub(super) fn begin(&self) {
        self.0.before.store(self.0.written.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.closed_unread.load(Ordering::Relaxed)
    }
}

/// A connection whose [`ClosedUnread`] can be asked for.
pub(super) trait Watched {
    fn closed_unread(&self) -> ClosedUnread;
}

/// A TCP connection to a server.
#[derive(Debug)]
pub(crate) struct WatchedStream {
    stream: TcpStream,
    closed_unread: ClosedUnread,
}

impl WatchedStream {
    fn new(stream: TcpStream) -> WatchedStream {
        WatchedStream { stream, closed_unread: ClosedUnread::default() }
    }

    /// The server has closed its side. A kernel acknowledges with that what it has received before: if nothing
    /// of the request was, it came after the close, and no process can have read it. A reset acknowledges
    /// nothing, so it does not tell.
    fn closed(&self) {
        let Progress { written, before, closed_unread } = &*self.closed_unread.0;
        let of_request = written.load(Ordering::Relaxed) - before.load(Ordering::Relaxed);
        // Acknowledged is what was written first.
        if of_request > 0 && unacknowledged(&self.stream).unwrap_or(0) >= of_request {
            closed_unread.store(true, Ordering::Relaxed);
        }
    }

    fn wrote(&self, wrote: &Poll<io::Result<usize>>) {
        match wrote {
            Poll::Ready(Ok(bytes)) => {
                self.closed_unread.0.written.fetch_add(*bytes as u64, Ordering::Relaxed);
            }
            // The reset of a connection whose other side was closed before.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => self.closed(),
            _ => {}
        }
    }
}

/// The number of bytes that were written and not acknowledged.
#[expect(unsafe_code, reason = "SIOCOUTQ is an ioctl, which writes to an integer")]
fn unacknowledged(stream: &TcpStream) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ for a socket, writes one int to the address that it gets, and
    // `bytes` outlives the call.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if failed == 0 { Ok(bytes.unsigned_abs().into()) } else { Err(io::Error::last_os_error()) }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if read.is_ok() && buf.filled().len() == before && buf.remaining() > 0 {
            self.closed();
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(&wrote);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.wrote(&wrote);
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for WatchedStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Watched for TokioIo<WatchedStream> {
    fn closed_unread(&self) -> ClosedUnread {
        self.inner().closed_unread.clone()
    }
}

impl Watched for MaybeHttpsStream<TokioIo<WatchedStream>> {
    fn closed_unread(&self) -> ClosedUnread {
        match self {
            MaybeHttpsStream::Http(stream) => stream.closed_unread(),
            MaybeHttpsStream::Https(stream) => stream.inner().get_ref().0.inner().closed_unread(),
        }
    }
}

/// Makes [`WatchedStream`]s; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct WatchedConnector(pub(super) HttpConnector);

impl Service<Uri> for WatchedConnector {
    type Response = TokioIo<WatchedStream>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connected = self.0.call(uri);
        Box::pin(async move { Ok(TokioIo::new(WatchedStream::new(connected.await?.into_inner()))) })
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    use super::*;

    /// Both ends of a connection. The server takes a few KB that it has not read.
    async fn connection() -> (WatchedStream, TcpStream) {
        let listener = TcpSocket::new_v4().unwrap();
        listener.set_recv_buffer_size(4096).unwrap();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(1).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (WatchedStream::new(stream), server)
    }

    /// Writes more than the server takes: what follows stays unacknowledged.
    async fn fill(client: &mut WatchedStream) {
        SockRef::from(&client.stream).set_send_buffer_size(128 << 10).unwrap();
        client.write_all(&[0; 64 << 10]).await.unwrap();
    }

    async fn ends(client: &mut WatchedStream) -> bool {
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        client.closed_unread.is_set()
    }

    #[tokio::test]
    async fn a_close_after_the_request_was_read_may_follow_from_it() {
        let (mut client, mut server) = connection().await;
        client.closed_unread.begin();
        client.write_all(b"request").await.unwrap();
        server.read_exact(&mut [0; 7]).await.unwrap();
        drop(server);
        assert!(!ends(&mut client).await);
    }

    #[tokio::test]
    async fn a_close_after_a_part_of_the_request_was_read_may_follow_from_it() {
        let (mut client, mut server) = connection().await;
        client.closed_unread.begin();
        fill(&mut client).await;
        server.shutdown().await.unwrap();
        assert!(!ends(&mut client).await);
    }

    #[tokio::test]
    async fn a_close_after_the_response_has_begun_may_follow_from_the_request() {
        let (mut client, mut server) = connection().await;
        client.closed_unread.begin();
        client.write_all(b"head").await.unwrap();
        server.read_exact(&mut [0; 4]).await.unwrap();
        fill(&mut client).await;
        server.write_all(b"103 wait").await.unwrap();
        client.read_exact(&mut [0; 8]).await.unwrap();
        client.write_all(b"rest").await.unwrap();
        server.shutdown().await.unwrap();
        assert!(!ends(&mut client).await);
    }

    #[tokio::test]
    async fn a_close_before_any_of_the_request_came_cannot() {
        let (mut client, mut server) = connection().await;
        fill(&mut client).await;
        client.closed_unread.begin();
        client.write_all(b"request").await.unwrap();
        server.shutdown().await.unwrap();
        assert!(ends(&mut client).await);
    }
}
