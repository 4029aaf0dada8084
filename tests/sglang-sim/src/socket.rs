//! Sockets that can freeze as after SIGSTOP and end with a reset as after SIGKILL.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Freezes and resets all sockets of one engine process.
#[derive(Debug)]
pub(crate) struct SocketControl {
    frozen: watch::Sender<bool>,
    reset: AtomicBool,
}

impl SocketControl {
    pub(crate) fn new() -> Arc<SocketControl> {
        Arc::new(SocketControl { frozen: watch::Sender::new(false), reset: AtomicBool::new(false) })
    }

    /// Stops all reading, writing and accepting. The kernel still acknowledges the peers' packets.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub(crate) fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    pub(crate) fn is_frozen(&self) -> bool {
        *self.frozen.borrow()
    }

    /// From now on, dropping a socket resets its connection.
    pub(crate) fn reset_on_drop(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Returns once the sockets are not frozen.
    pub(crate) async fn wait_until_thawed(&self) {
        let mut frozen = self.frozen.subscribe();
        // The sender lives as long as self, so this only returns when thawed.
        let _ = frozen.wait_for(|frozen| !frozen).await;
    }
}

type Wait = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// A TCP stream under a [`SocketControl`].
pub(crate) struct EngineSocket {
    stream: TcpStream,
    sockets: Arc<SocketControl>,
    /// When set, dropping this socket resets its connection.
    reset: Arc<AtomicBool>,
    read_wait: Wait,
    write_wait: Wait,
}

impl EngineSocket {
    pub(crate) fn new(stream: TcpStream, sockets: Arc<SocketControl>) -> EngineSocket {
        // Without it small frames wait for the peer's delayed ACK. A failure costs only time.
        let _ = stream.set_nodelay(true);
        let reset = Arc::new(AtomicBool::new(false));
        EngineSocket { stream, sockets, reset, read_wait: None, write_wait: None }
    }

    /// The flag that makes this connection end with a reset.
    pub(crate) fn reset(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.reset)
    }
}

impl Drop for EngineSocket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) || self.sockets.reset.load(Ordering::Relaxed) {
            // With a linger of zero, close sends RST. If setting it fails, the peer gets FIN.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

fn poll_thawed(
    sockets: &Arc<SocketControl>,
    wait: &mut Wait,
    context: &mut Context<'_>,
) -> Poll<()> {
    if wait.is_none() && !sockets.is_frozen() {
        return Poll::Ready(());
    }
    let sockets = Arc::clone(sockets);
    let pending =
        wait.get_or_insert_with(|| Box::pin(async move { sockets.wait_until_thawed().await }));
    ready!(pending.as_mut().poll(context));
    *wait = None;
    Poll::Ready(())
}

impl AsyncRead for EngineSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(poll_thawed(&this.sockets, &mut this.read_wait, context));
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for EngineSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(poll_thawed(&this.sockets, &mut this.write_wait, context));
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(poll_thawed(&this.sockets, &mut this.write_wait, context));
        Pin::new(&mut this.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.reset.load(Ordering::Relaxed) {
            // No FIN may precede the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
