//! The admin port: probes need no token, everything else does.

use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use http::{HeaderValue, Method};
use router_tests::folder::Folder;
use router_tests::{Client, Fleet, Gateway, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A token is read again within a second; this machine may be slow.
const SOON: Duration = Duration::from_secs(10);

/// The status that `path` answers with, and the challenge where there is one.
async fn ask(admin: &Client, path: &str, token: Option<&str>) -> (u16, String) {
    let mut request = admin.request(Method::GET, path, "");
    if let Some(token) = token {
        let value = HeaderValue::try_from(format!("Bearer {token}")).expect("a token in ASCII");
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    let answer = admin.send(request).await.answer().await;
    (answer.status.as_u16(), answer.header(WWW_AUTHENTICATE.as_str()).to_owned())
}

#[tokio::test]
async fn metrics_and_fleet_need_the_token_and_probes_do_not() {
    let folder = Folder::new("token");
    let file = folder.path().join("token");
    let fleet = Fleet::start(1, 1).await;
    // As a Secret that has no content yet.
    std::fs::write(&file, "").expect("writing the token");
    let flags = ["--admin-token-file", file.to_str().expect("UTF-8")];
    let gateway = Gateway::start_with(&fleet.manifests, &flags).await;
    let admin = &gateway.admin;
    let refused = (401, "Bearer".to_owned());
    let guarded = [
        "/metrics",
        "/fleet",
        "/fleet/loads/default/prefill-0",
        "/requests",
        "/requests/an-id",
        "/crashes",
    ];
    for path in guarded {
        assert_eq!(ask(admin, path, None).await, refused, "{path}");
        assert_eq!(ask(admin, path, Some("")).await, refused, "{path}");
    }
    for token in ["first", "second"] {
        std::fs::write(&file, format!("{token}\n")).expect("writing the token");
        eventually("the token is read", SOON, async || {
            (ask(admin, "/fleet", Some(token)).await.0 == 200).then_some(())
        })
        .await;
        assert_eq!(ask(admin, "/metrics", Some(token)).await.0, 200);
        assert_eq!(ask(admin, "/metrics", Some("another")).await, refused);
        assert_eq!(ask(admin, "/metrics", None).await, refused);
    }
    // The first token is no token any more.
    assert_eq!(ask(admin, "/fleet", Some("first")).await, refused);
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(admin, path, None).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn without_a_token_a_request_for_another_host_is_refused() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    for (host, status) in [("localhost:9901", 200), ("[::1]:9901", 200), ("evil.example", 401)] {
        let mut request = gateway.admin.request(Method::GET, "/fleet", "");
        request.headers_mut().insert(HOST, HeaderValue::from_static(host));
        let answer = gateway.admin.send(request).await.answer().await;
        assert_eq!(answer.status.as_u16(), status, "{host}");
        let says_why = answer.text().contains("no token is configured");
        assert_eq!(says_why, status == 401, "{host}");
    }
}

#[tokio::test]
async fn loads_of_one_worker_can_be_read_alone() {
    let fleet = Fleet::start(2, 1).await;
    let gateway = fleet.gateway().await;
    let all = gateway.admin.get("/fleet").await.expect_status(200).json();
    let loads = all["loads"].as_array().expect("a list");
    assert_eq!(loads.len(), 3);
    for load in loads {
        let name = load["worker"].as_str().expect("a name");
        let path = format!("/fleet/loads/{name}");
        let alone = gateway.admin.get(&path).await.expect_status(200).json();
        let alone = alone.as_array().expect("a list");
        assert_eq!(alone.len(), 1, "{name}");
        assert_eq!(alone[0]["worker"], load["worker"]);
        assert_eq!(alone[0]["pool"], load["pool"]);
    }
    for unknown in ["", "default/unknown", "prefill-0"] {
        gateway.admin.get(&format!("/fleet/loads/{unknown}")).await.expect_status(404);
    }
}

/// More connections than the admin port has slots.
const CROWD: usize = 80;

/// Probes must not wait for others' connections to time out, which takes 10 s.
async fn assert_probes_are_answered(gateway: &Gateway) {
    for path in ["/livez", "/readyz"].repeat(5) {
        let probe = timeout(Duration::from_secs(4), ask(&gateway.admin, path, None));
        let (status, _) = probe.await.expect("a probe was not answered in time");
        assert_eq!(status, 200, "{path}");
    }
}

#[tokio::test]
async fn probes_are_answered_beside_clients_that_are_idle() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let address = gateway.admin.address;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        crowd.push(tokio::spawn(async move {
            // Each connection is opened again when it is closed for another one.
            loop {
                let _ = socket.read(&mut [0]).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                let Ok(next) = TcpStream::connect(address).await else { break };
                socket = next;
            }
        }));
    }
    assert_probes_are_answered(&gateway).await;
    crowd.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn probes_are_answered_beside_clients_that_do_not_read() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let requests = "GET /livez HTTP/1.1\r\nhost: g\r\n\r\n".repeat(1000);
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut socket = TcpStream::connect(gateway.admin.address).await.expect("a connection");
        // What does not fit stays unsent, and the connection is closed at any time.
        let _ = timeout(Duration::from_millis(50), socket.write_all(requests.as_bytes())).await;
        crowd.push(socket);
    }
    assert_probes_are_answered(&gateway).await;
    drop(crowd);
}

#[tokio::test]
async fn a_connection_whose_client_reads_nothing_is_closed() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let requests = "GET /fleet HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
    let mut socket = TcpStream::connect(gateway.admin.address).await.expect("a connection");
    // The gateway stops reading while its answers are not read, so that the client's writes stop as well.
    let closed = timeout(Duration::from_secs(9), async {
        while socket.write_all(requests.as_bytes()).await.is_ok() {}
    });
    closed.await.expect("closed after 5 s, before the kernel does it after 10 s");
}
