//! [`Stream`]: a connection to one agent, and what comes over it.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, Connection};
use hyper_util::rt::TokioIo;
use router_core::frame::{LENGTH_BYTES, first};
use tokio::net::TcpStream;

use super::ended::Ended;

const PATH: &str = "/v1/loads/stream";

/// The answer of an agent that is being read. The connection is its own and no pool's, and is
/// driven by whoever reads: no other task is woken for a frame.
pub(super) struct Stream {
    connection: Connection<TokioIo<TcpStream>, Empty<Bytes>>,
    body: Incoming,
}

impl Stream {
    /// Connects and asks; whoever calls says how long that may take.
    pub(super) async fn open(address: SocketAddr, mut headers: HeaderMap) -> Result<Self, Ended> {
        let unreachable = |error: &dyn std::error::Error| Ended::Unreachable(error.to_string());
        let socket = TcpStream::connect(address).await.map_err(|error| unreachable(&error))?;
        let (mut sender, mut connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|error| unreachable(&error))?;
        let host =
            HeaderValue::try_from(address.to_string()).map_err(|error| unreachable(&error))?;
        headers.insert(HOST, host);
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = http::Uri::from_static(PATH);
        *request.headers_mut() = headers;
        let mut answer = pin!(sender.send_request(request));
        let answer = poll_fn(|cx| {
            // It fails with the connection, and says why.
            let _ = Pin::new(&mut connection).poll(cx);
            answer.as_mut().poll(cx)
        });
        let answer = answer.await.map_err(|error| unreachable(&error))?;
        match answer.status() {
            StatusCode::OK => Ok(Stream { connection, body: answer.into_body() }),
            status => Err(Ended::Refused(status)),
        }
    }

    /// The next bytes.
    pub(super) async fn next(&mut self) -> Result<Bytes, Ended> {
        loop {
            let piece = poll_fn(|cx| self.poll_piece(cx)).await.ok_or(Ended::Over)?;
            let piece = piece.map_err(|error| Ended::Broken(error.to_string()))?;
            if let Ok(data) = piece.into_data() {
                return Ok(data);
            }
        }
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<hyper::body::Frame<Bytes>>>> {
        let here = Pin::new(&mut self.body).poll_frame(cx);
        if here.is_ready() {
            return here;
        }
        // What it has read is in the body then, and so is the error that ended it.
        let _ = Pin::new(&mut self.connection).poll(cx);
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

/// Cuts what comes into frames. Usually a piece is a frame, and nothing is copied.
#[derive(Default)]
pub(super) struct Frames {
    /// The begin of a frame whose end has not come.
    begun: BytesMut,
}

impl Frames {
    /// Hands every frame that is whole by now to `each`, its length not among its bytes.
    pub(super) fn take(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        let is_new = self.begun.is_empty();
        if !is_new {
            self.begun.extend_from_slice(piece);
        }
        let all = if is_new { piece } else { &self.begun };
        let mut taken = 0;
        while let Some(frame) = first(&all[taken..])? {
            each(frame)?;
            taken += LENGTH_BYTES + frame.len();
        }
        match is_new {
            true => self.begun.extend_from_slice(&piece[taken..]),
            false => self.begun.advance(taken),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use router_core::frame::{Frame, decode};

    use super::*;

    #[test]
    fn frames_are_whole_however_they_come() {
        let mut sent = BytesMut::new();
        for sequence in 1..=5 {
            Frame { sequence, ..Frame::default() }.encode(&mut sent);
        }
        for size in 1..=sent.len() {
            let (mut frames, mut heard) = (Frames::default(), Vec::new());
            for piece in sent.chunks(size) {
                let each = |bytes: &[u8]| {
                    heard.push(decode(bytes)?.sequence);
                    Ok(())
                };
                frames.take(piece, each).unwrap();
            }
            assert_eq!(heard, [1, 2, 3, 4, 5], "in pieces of {size} bytes");
            assert!(frames.begun.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_a_frame_ends_it() {
        let refused = Frames::default().take(&[0xff; 8], |_| Ok(()));
        assert!(matches!(refused, Err(Ended::Bad(_))));
    }
}
