//! A server for tests that counts its connections and ends them in a given way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::uri::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
}

impl TestServer {
    /// Answers the requests of each connection one after the other.
    pub(crate) async fn answering(answers: &'static [&'static str], end: End) -> TestServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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
        while !is_whole(&request) {
            if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
                return;
            }
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    if end == End::Reset {
        // Bytes that were not read turn the close into a reset.
        _ = stream.peek(&mut [0]).await;
    }
}

fn is_whole(request: &[u8]) -> bool {
    let has_body = request.starts_with(b"POST");
    request.ends_with(if has_body { b"}" } else { b"\r\n\r\n" })
}
