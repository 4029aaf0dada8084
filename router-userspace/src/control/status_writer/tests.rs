//! What a leader does while its API server refuses requests or does not answer them.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use http::{Method, Request, Response};
use kube::client::Body;
use prometheus_client::registry::Registry;
use router_core::fleet::{ObjectName, Problem};
use serde_json::Value;

use super::*;
use crate::control::objects::Kind;
use crate::metrics::Metrics;

/// An API server that refuses Services and never answers requests for objects with a status.
#[derive(Default)]
struct ApiServer {
    renewals: AtomicU32,
    /// Whether requests for Leases get no answer either.
    unreachable: AtomicBool,
    /// Whether requests for Services get no answer, instead of a refusal.
    services_hang: AtomicBool,
    unanswered: AtomicU32,
}

/// Counts a request until its sender drops it.
struct Unanswered(Arc<ApiServer>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ApiServer {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> (u16, Value) {
        let path = request.uri().path();
        let creates = *request.method() == Method::POST;
        let is_lease = path.contains("/leases");
        let reachable = !self.unreachable.load(Ordering::SeqCst);
        if is_lease && reachable && creates {
            self.renewals.fetch_add(1, Ordering::SeqCst);
            return (201, json!({"metadata": {}}));
        }
        if is_lease && reachable {
            return (404, refused(404, "NotFound"));
        }
        let services_hang = self.services_hang.load(Ordering::SeqCst);
        if path.ends_with("/services") && !services_hang {
            return match creates {
                true => (403, refused(403, "Forbidden")),
                false => (200, json!({"kind": "ServiceList", "metadata": {}, "items": []})),
            };
        }
        self.unanswered.fetch_add(1, Ordering::SeqCst);
        let _unanswered = Unanswered(self);
        std::future::pending().await
    }
}

fn refused(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

/// A replica that has to write one status and one Service.
struct Replica {
    server: Arc<ApiServer>,
    metrics: Metrics,
    problems: watch::Receiver<Vec<Problem>>,
    _desired: watch::Sender<Arc<DesiredState>>,
}

impl Replica {
    fn start() -> Replica {
        let server = Arc::new(ApiServer::default());
        let metrics = Metrics::new(&mut Registry::default());
        let (report, problems) = WriteReport::new(&metrics);
        let answering = Arc::clone(&server);
        let service = tower::service_fn(move |request| {
            let answer = Arc::clone(&answering).answer(request);
            async {
                let (code, body) = answer.await;
                let body = Body::from(body.to_string().into_bytes());
                let response = Response::builder().status(code).body(body);
                Ok::<_, Infallible>(response.expect("a response"))
            }
        });
        let client = Client::new(service, "own");
        let gateway = ObjectName { namespace: "n".into(), name: "g".into() };
        let template = ServiceTemplate {
            namespace: "own".into(),
            type_: "ClusterIP",
            annotations: BTreeMap::new(),
            selector: BTreeMap::new(),
        };
        let (desired, receiver) = watch::channel(Arc::default());
        desired.send_replace(Arc::new(DesiredState {
            statuses: vec![ObjectStatus {
                key: Key { kind: Kind::Gateway, name: gateway.clone() },
                patch: StatusPatch::Conditions(Vec::new()),
            }],
            gateway_services: vec![GatewayService {
                gateway,
                uid: "u-0000-1111".to_owned(),
                ports: vec![80],
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
            }],
            services: Vec::new(),
        }));
        tokio::spawn(run(client, receiver, Some(template), report));
        Replica { server, metrics, problems, _desired: desired }
    }

    /// Whether it leads, and how many requests it waits for.
    fn state(&self) -> (bool, u32) {
        (self.metrics.leader.get() == 1, self.server.unanswered.load(Ordering::SeqCst))
    }

    fn codes(&self) -> Vec<&str> {
        self.problems.borrow().iter().map(|problem| problem.code).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_renews_the_lease_while_a_write_hangs_until_that_is_a_problem() {
    let replica = Replica::start();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(replica.state(), (true, 1));
    assert!(replica.server.renewals.load(Ordering::SeqCst) >= 20);
    assert_eq!(replica.codes(), ["StatusNotWritten", "ServiceNotWritten"]);
    let reason = replica.problems.borrow()[0].reason.to_string();
    assert!(reason.contains("Gateway n/g") && reason.contains("no answer within 8 s"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn statuses_and_services_wait_for_their_answers_at_once() {
    let replica = Replica::start();
    replica.server.services_hang.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(replica.state(), (true, 2));
    assert!(replica.codes().is_empty());
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(replica.codes(), ["StatusNotWritten", "ServiceNotWritten"]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_refused_is_a_problem_until_the_lease_is_lost() {
    let replica = Replica::start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(replica.state(), (true, 1));
    assert_eq!(replica.codes(), ["ServiceNotWritten"]);
    let reason = replica.problems.borrow()[0].reason.to_string();
    assert!(reason.contains("Service own/") && reason.contains("Forbidden"), "{reason}");
    replica.server.unreachable.store(true, Ordering::SeqCst);
    // The last renewal was at three seconds, so the time to write is over at thirteen. Only the
    // request for the Lease is sent after that.
    tokio::time::sleep(Duration::from_millis(8_500)).await;
    assert_eq!(replica.state().1, 1);
    assert_eq!(replica.server.renewals.load(Ordering::SeqCst), 2);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!replica.state().0);
    assert_eq!(replica.codes(), ["NotLeading"]);
}
