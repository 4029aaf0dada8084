//! [`WatchedStream`]: a connection that notes whether its server closed it before it read what was sent.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use nix::libc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::Service;

/// Whether the server closed a connection before it read what was sent last; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct ClosedUnread(Arc<AtomicBool>);

impl ClosedUnread {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
    /// Bytes written since the last ones were read: those of the request that waits for its response.
    written: u64,
    closed_unread: ClosedUnread,
}

impl WatchedStream {
    fn new(stream: TcpStream) -> WatchedStream {
        WatchedStream { stream, written: 0, closed_unread: ClosedUnread::default() }
    }

    /// The server has closed its side. A kernel acknowledges with that what it has received before: if nothing
    /// of the request was, it came after the close, and no process can have read it. A reset acknowledges
    /// nothing, so it does not tell.
    fn closed(&self) {
        let unacknowledged = unacknowledged(&self.stream).unwrap_or(0);
        if self.written > 0 && unacknowledged >= self.written {
            self.closed_unread.0.store(true, Ordering::Relaxed);
        }
    }

    fn wrote(&mut self, wrote: &Poll<io::Result<usize>>) {
        match wrote {
            Poll::Ready(Ok(bytes)) => self.written += *bytes as u64,
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
        if buf.filled().len() > before {
            self.written = 0;
        } else if read.is_ok() && buf.remaining() > 0 {
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
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a connection.
    async fn connection() -> (WatchedStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (WatchedStream::new(stream), server)
    }

    async fn ends(client: &mut WatchedStream) -> bool {
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        client.closed_unread.is_set()
    }

    #[tokio::test]
    async fn a_close_after_the_request_was_read_may_follow_from_it() {
        let (mut client, mut server) = connection().await;
        client.write_all(b"request").await.unwrap();
        server.read_exact(&mut [0; 7]).await.unwrap();
        drop(server);
        assert!(!ends(&mut client).await);
    }

    #[tokio::test]
    async fn a_close_after_a_part_of_the_request_was_read_may_follow_from_it() {
        let (mut client, mut server) = connection().await;
        // More than the buffers of both ends take.
        let piece = vec![0; 1 << 20];
        while let Ok(bytes) = client.stream.try_write(&piece) {
            client.written += bytes as u64;
        }
        server.shutdown().await.unwrap();
        assert!(!ends(&mut client).await);
    }

    #[tokio::test]
    async fn a_close_before_any_of_the_request_came_cannot() {
        let (mut client, mut server) = connection().await;
        SockRef::from(&client.stream).set_send_buffer_size(8 << 20).unwrap();
        // The server takes no more than its buffer has: what is written after it stays here.
        let piece = vec![0; 1 << 20];
        while unacknowledged(&client.stream).unwrap() < piece.len() as u64 {
            client.write_all(&piece).await.unwrap();
        }
        server.write_all(b"response").await.unwrap();
        client.read_exact(&mut [0; 8]).await.unwrap();
        client.write_all(b"request").await.unwrap();
        server.shutdown().await.unwrap();
        assert!(ends(&mut client).await);
    }
}
