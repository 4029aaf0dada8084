//! A server for tests that counts its connections and ends them in a given way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::uri::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A server of requests without a body, or whose body ends with `}`.
pub(crate) struct TestServer {
    pub(crate) authority: Authority,
    connections: Arc<AtomicUsize>,
}

/// How a connection ends once each of its requests was answered.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum End {
    /// At once.
    Close,
    /// When the next request comes, which is not read.
    Reset,
    /// When the next request was sent and none of it has come: only the head of a request is read before it is
    /// answered, and the rest fills the connection.
    Unread,
}

impl TestServer {
    /// Answers the requests of each connection one after the other.
    pub(crate) async fn answering(answers: &'static [&'static str], end: End) -> TestServer {
        let listener = TcpSocket::new_v4().unwrap();
        listener.set_recv_buffer_size(4096).unwrap();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(16).unwrap();
        let authority = listener.local_addr().unwrap().to_string().parse().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer_each(stream, answers, end));
            }
        });
        TestServer { authority, connections }
    }

    /// The number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn answer_each(mut stream: TcpStream, answers: &[&str], end: End) {
    for answer in answers {
        let mut request = Vec::new();
        while !is_whole(&request, end) {
            if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
                return;
            }
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    match end {
        End::Close => {}
        // Bytes that were not read turn the close into a reset.
        End::Reset => _ = stream.peek(&mut [0]).await,
        End::Unread => {
            let before = unsent(&stream);
            while unsent(&stream) <= before {
                tokio::task::yield_now().await;
            }
            stream.shutdown().await.unwrap();
            // A close would reset it, since there is what was not read.
            std::future::pending::<()>().await;
        }
    }
}

/// Number of bytes that the other end has written and this kernel has not taken.
fn unsent(stream: &TcpStream) -> u64 {
    let text = |address: std::net::SocketAddr| match address {
        std::net::SocketAddr::V4(address) => {
            format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port())
        }
        std::net::SocketAddr::V6(_) => String::new(),
    };
    let ends = [text(stream.peer_addr().unwrap()), text(stream.local_addr().unwrap())].join(" ");
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let socket = sockets.lines().find(|line| line.contains(&ends)).unwrap_or_default();
    let queues = socket.split_whitespace().nth(4).unwrap_or_default();
    u64::from_str_radix(queues.split(':').next().unwrap_or_default(), 16).unwrap_or(0)
}

fn is_whole(request: &[u8], end: End) -> bool {
    let has_body = request.starts_with(b"POST");
    match end {
        End::Unread => request.windows(4).any(|end| end == b"\r\n\r\n"),
        _ => request.ends_with(if has_body { b"}" } else { b"\r\n\r\n" }),
    }
}
