//! The sockets of an engine behind one valve: all can freeze as after SIGSTOP, and all can end
//! with a reset as after SIGKILL.

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

/// Shared by every socket of one life of an engine.
#[derive(Debug)]
pub(crate) struct Valve {
    closed: watch::Sender<bool>,
    reset: AtomicBool,
}

impl Valve {
    pub(crate) fn new() -> Arc<Valve> {
        Arc::new(Valve { closed: watch::Sender::new(false), reset: AtomicBool::new(false) })
    }

    /// Stops all reading, writing and accepting; the kernel goes on for the sockets' peers.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(crate) fn open(&self) {
        self.closed.send_replace(false);
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// From now on a dropped socket resets its connection.
    pub(crate) fn reset_on_drop(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Returns once the valve is open.
    pub(crate) async fn passage(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives in self, so the only outcome is an open valve.
        let _ = closed.wait_for(|closed| !closed).await;
    }
}

type Wait = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// A TCP stream behind the valve.
pub(crate) struct Socket {
    stream: TcpStream,
    valve: Arc<Valve>,
    /// Set to end this one connection with a reset.
    cut: Arc<AtomicBool>,
    read_wait: Wait,
    write_wait: Wait,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, valve: Arc<Valve>) -> Socket {
        // Without it small frames wait for the peer's delayed ACK; failure costs only time.
        let _ = stream.set_nodelay(true);
        let cut = Arc::new(AtomicBool::new(false));
        Socket { stream, valve, cut, read_wait: None, write_wait: None }
    }

    /// The switch that makes this connection's end a reset.
    pub(crate) fn cut(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cut)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.cut.load(Ordering::Relaxed) || self.valve.reset.load(Ordering::Relaxed) {
            // A linger of zero makes close send RST; if it fails the peer gets FIN instead.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

fn poll_passage(valve: &Arc<Valve>, wait: &mut Wait, context: &mut Context<'_>) -> Poll<()> {
    if wait.is_none() && !valve.is_closed() {
        return Poll::Ready(());
    }
    let valve = Arc::clone(valve);
    let pending = wait.get_or_insert_with(|| Box::pin(async move { valve.passage().await }));
    ready!(pending.as_mut().poll(context));
    *wait = None;
    Poll::Ready(())
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(poll_passage(&this.valve, &mut this.read_wait, context));
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(poll_passage(&this.valve, &mut this.write_wait, context));
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(poll_passage(&this.valve, &mut this.write_wait, context));
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
        if this.cut.load(Ordering::Relaxed) {
            // A reset must not be preceded by a FIN.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
