//! [`Http1Client`]: sends requests over kept-alive connections of HTTP/1.1.

use std::fmt;
use std::sync::Arc;

use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use tower::{BoxError, Service, ServiceExt};

use super::OutgoingBody;
use super::idle_connections::{IdleConnections, IdleLimits, KeptConnection};
use super::received_body::ReceivedBody;
use super::watched_stream::Watched;

/// Maximum size of what was read of one connection and is not taken yet, and of the head of a response, in
/// bytes; and the size from which no further piece of a body waits to be written. hyper's own is 400 KB, which
/// a client that does not read its response would keep for as long as it likes.
const MAX_BUFFER: usize = 64 << 10;
/// Why a request got no head of a response.
#[derive(Debug)]
pub(super) enum Http1Error {
    /// No connection was made.
    Connect(BoxError),
    /// The connection ended; the server may have begun with the request.
    Broken(hyper::Error),
    /// The server had closed the kept connection before it read the request.
    Unread(hyper::Error),
}

/// Sends requests over connections that `C` makes; cheap to clone.
#[derive(Clone)]
pub(super) struct Http1Client<C> {
    connector: C,
    scheme: Scheme,
    idle: Arc<IdleConnections>,
}

impl<C> Http1Client<C>
where
    C: Service<Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    C::Response: Read + Write + Watched + Unpin + Send + 'static,
{
    /// `scheme` is that of the addresses that `connector` gets.
    pub(super) fn new(connector: C, scheme: Scheme, limits: IdleLimits) -> Http1Client<C> {
        let idle = Arc::new(IdleConnections::new(limits));
        Http1Client { connector, scheme, idle }
    }

    /// Sends a request, whose URI is its path, and waits for the head of the response.
    ///
    /// A kept connection may have been closed by its server: as long as nothing of the request was sent, it
    /// is sent on another connection. If it was, the caller may send it again: no kept connection is left then.
    ///
    /// # Errors
    /// No connection could be made, or it ended before the head came.
    pub(super) async fn send(
        &self,
        authority: &Authority,
        mut request: Request<OutgoingBody>,
    ) -> Result<Response<ReceivedBody>, Http1Error> {
        request.headers_mut().entry(HOST).or_insert_with(|| host(authority, &self.scheme));
        // Ends: each turn but the last takes a closed connection out of the idle ones.
        while let Some(mut connection) = self.idle.take(authority) {
            connection.closed_unread.begin();
            match connection.requests.try_send_request(request).await {
                Ok(response) => return Ok(self.received(authority, connection, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        return Err(self.broke_again(authority, &connection, error.into_error()));
                    }
                },
            }
        }
        let mut connection = Box::pin(self.connect(authority)).await?;
        let sent = connection.requests.try_send_request(request).await;
        let response = sent.map_err(|error| Http1Error::Broken(error.into_error()))?;
        Ok(self.received(authority, connection, response))
    }

    /// The error of a connection that has served a request before.
    fn broke_again(
        &self,
        authority: &Authority,
        connection: &KeptConnection,
        error: hyper::Error,
    ) -> Http1Error {
        if !connection.closed_unread.is_set() {
            return Http1Error::Broken(error);
        }
        // The others have been idle for longer.
        self.idle.forget(authority);
        Http1Error::Unread(error)
    }

    fn received(
        &self,
        authority: &Authority,
        connection: KeptConnection,
        response: Response<Incoming>,
    ) -> Response<ReceivedBody> {
        let borrowed = self.idle.borrowed(authority, connection);
        response.map(|body| ReceivedBody::new(body, Some(borrowed)))
    }

    async fn connect(&self, authority: &Authority) -> Result<KeptConnection, Http1Error> {
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(authority.clone());
        let uri = uri.path_and_query("/").build();
        let uri = uri.map_err(|error| Http1Error::Connect(error.into()))?;
        let io = self.connector.clone().oneshot(uri).await;
        let io = io.map_err(|error| Http1Error::Connect(error.into()))?;
        let closed_unread = io.closed_unread();
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_BUFFER);
        let (requests, connection) = builder.handshake(io).await.map_err(Http1Error::Broken)?;
        // Ends with the connection, or once no request can be sent on it.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a server failed");
            }
        });
        Ok(KeptConnection { requests, closed_unread })
    }
}

impl<C> fmt::Debug for Http1Client<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Client").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

/// The value of `Host`: the port is left out where it is that of the scheme.
fn host(authority: &Authority, scheme: &Scheme) -> HeaderValue {
    let default = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    let host = match authority.port_u16() {
        Some(port) if port == default => authority.host(),
        _ => authority.as_str(),
    };
    // An authority has no character that a field value must not have.
    HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::connect::HttpConnector;
    use tokio::net::TcpListener;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::http_client::test_server::{End, OK, TestServer};
    use crate::http_client::watched_stream::WatchedConnector;
    use crate::http_client::whole;

    const LONG: Duration = Duration::from_secs(60);

    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    const EMPTY: &str = "HTTP/1.1 204 No Content\r\n\r\n";
    const LAST: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    const ENDLESS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";

    fn client(max_idle: usize, timeout: Duration) -> Http1Client<WatchedConnector> {
        let connector = WatchedConnector(HttpConnector::new());
        Http1Client::new(connector, Scheme::HTTP, IdleLimits { timeout, max_idle })
    }

    async fn get(
        client: &Http1Client<WatchedConnector>,
        server: &TestServer,
    ) -> Result<Response<ReceivedBody>, Http1Error> {
        client.send(&server.authority, Request::new(whole(Bytes::new()))).await
    }

    /// The number of connections that wait for a request, once it is no other than `want`.
    async fn idle(client: &Http1Client<WatchedConnector>, want: usize) {
        let idle = || client.idle.count();
        let until = Instant::now() + Duration::from_secs(10);
        while idle() != want {
            assert!(Instant::now() < until, "{} connections are idle, not {want}", idle());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_connection_is_used_again_however_its_response_ends() {
        let server = TestServer::answering(&[OK, CHUNKED, EMPTY, OK, OK], End::Close).await;
        let client = client(8, LONG);
        for want in ["ok", "ok", "", "ok"] {
            let body = get(&client, &server).await.unwrap().into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), want);
            idle(&client, 1).await;
        }
        assert_eq!(server.connections(), 1);
    }

    #[tokio::test]
    async fn a_connection_whose_response_was_not_read_to_its_end_is_closed() {
        let server = TestServer::answering(&[ENDLESS, OK], End::Close).await;
        let client = client(8, LONG);
        drop(get(&client, &server).await.unwrap());
        idle(&client, 0).await;
        drop(get(&client, &server).await.unwrap());
        assert_eq!(server.connections(), 2);
    }

    #[tokio::test]
    async fn a_request_that_meets_a_closed_connection_is_sent_on_another() {
        let server = TestServer::answering(&[OK], End::Close).await;
        let client = client(8, LONG);
        for connections in 1..=5 {
            let body = get(&client, &server).await.unwrap().into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
            assert_eq!(server.connections(), connections);
        }
    }

    #[tokio::test]
    async fn what_no_process_of_the_server_can_have_read_is_unread() {
        let server = TestServer::answering(&[OK], End::Unread).await;
        let client = client(8, LONG);
        let ask = || {
            let mut request = Request::new(whole(Bytes::from(vec![b'x'; 12 << 10])));
            *request.method_mut() = http::Method::POST;
            client.send(&server.authority, request)
        };
        ask().await.unwrap().into_body().collect().await.unwrap();
        idle(&client, 1).await;
        let unread = ask().await;
        assert!(matches!(unread, Err(Http1Error::Unread(_))), "{unread:?}");
        assert_eq!(client.idle.count(), 0);
        ask().await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(server.connections(), 2);
    }

    #[tokio::test]
    async fn a_response_that_breaks_off_is_not_asked_for_again() {
        for end in [End::Close, End::Reset] {
            let server = TestServer::answering(&[OK, "HTTP/1.1 200"], end).await;
            let client = client(8, LONG);
            get(&client, &server).await.unwrap().into_body().collect().await.unwrap();
            idle(&client, 1).await;
            let broken = get(&client, &server);
            let broken = timeout(Duration::from_millis(200), broken).await;
            assert!(!matches!(broken, Ok(Ok(_) | Err(Http1Error::Unread(_)))), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_its_server_closes_is_not_kept() {
        let server = TestServer::answering(&[LAST], End::Close).await;
        let client = client(8, LONG);
        let body = get(&client, &server).await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
        idle(&client, 0).await;
    }

    #[tokio::test]
    async fn as_many_connections_are_kept_as_may_be_idle() {
        let server = TestServer::answering(&[OK, OK], End::Close).await;
        let client = client(2, LONG);
        let all = futures_util::future::join_all((0..4).map(|_| get(&client, &server))).await;
        for response in all {
            response.unwrap().into_body().collect().await.unwrap();
        }
        idle(&client, 2).await;
        assert_eq!(server.connections(), 4);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_in_time_without_another_request() {
        let server = TestServer::answering(&[OK, OK], End::Close).await;
        let client = client(8, Duration::from_millis(40));
        get(&client, &server).await.unwrap().into_body().collect().await.unwrap();
        idle(&client, 0).await;
        get(&client, &server).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(server.connections(), 2);
    }

    #[tokio::test]
    async fn errors_tell_whether_a_connection_was_made() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = closed.local_addr().unwrap().to_string().parse().unwrap();
        drop(closed);
        let client = client(8, LONG);
        let refused = client.send(&authority, Request::new(whole(Bytes::new()))).await;
        assert!(matches!(refused, Err(Http1Error::Connect(_))), "{refused:?}");
        let silent = TestServer::answering(&[], End::Close).await;
        let broken = get(&client, &silent).await;
        assert!(matches!(broken, Err(Http1Error::Broken(_))), "{broken:?}");
    }

    #[test]
    fn the_host_names_a_port_that_is_not_the_schemes_own() {
        for (authority, scheme, want) in [
            ("10.0.0.1:8000", Scheme::HTTP, "10.0.0.1:8000"),
            ("10.0.0.1:80", Scheme::HTTP, "10.0.0.1"),
            ("10.0.0.1:80", Scheme::HTTPS, "10.0.0.1:80"),
            ("[fd00::1]:443", Scheme::HTTPS, "[fd00::1]"),
            ("[fd00::1]", Scheme::HTTP, "[fd00::1]"),
        ] {
            assert_eq!(host(&authority.parse().unwrap(), &scheme), want);
        }
    }
}
