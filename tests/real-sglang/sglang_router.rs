//! sglang-router in front of the same pair: prints how its answers differ, without judging them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use router_tests::loopback::Loopback;
use router_tests::manifests::{BOOTSTRAP_PORT, ENGINE_PORT};
use router_tests::{Client, eventually};
use tokio::process::{Child, Command};

use crate::answer::{Answer, send};
use crate::comparison::matches;
use crate::requests::{self, RequestCase};
use crate::testbed::{TestBed, env_path};

const PORT: u16 = 8080;
const START: Duration = Duration::from_secs(60);
/// Time after which an answer counts as missing. The engines answer each request in seconds.
const LIMIT: Duration = Duration::from_secs(10);

/// The result of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Same,
    Different,
    /// This status instead of the reference's.
    Status(u16),
    Broken,
    None,
}

impl Outcome {
    fn name(self) -> String {
        let name = match self {
            Outcome::Same => "the reference's answer",
            Outcome::Different => "another answer",
            Outcome::Status(status) => return format!("status {status} instead"),
            Outcome::Broken => "a broken stream",
            Outcome::None => "no answer in 10 s",
        };
        name.to_owned()
    }
}

/// Sends the table through both routers and prints the differences.
pub(crate) async fn table(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&[]).await;
    let address = Loopback::claim();
    let _router = start(testbed, &address).await;
    let clients = [gateway.client, Client::new(address.port(PORT))];
    let mut counts = [BTreeMap::new(), BTreeMap::new()];
    println!("  | request | pd-router | sglang-router 0.3.2 |\n  |---|---|---|");
    for case in &requests::table() {
        let expected = send(&testbed.reference(), case).await;
        let mut outcomes = [Outcome::None; 2];
        for (place, client) in clients.iter().enumerate() {
            outcomes[place] = send_one(*client, case, &expected).await;
            *counts[place].entry(outcomes[place]).or_insert(0) += 1;
        }
        if outcomes != [Outcome::Same; 2] {
            println!("  | {} | {} | {} |", case.name, outcomes[0].name(), outcomes[1].name());
        }
    }
    for (name, counts) in ["pd-router", "sglang-router 0.3.2"].iter().zip(&counts) {
        let counts: Vec<String> =
            counts.iter().map(|(outcome, count)| format!("{count} {}", outcome.name())).collect();
        println!("  {name}: {}", counts.join(", "));
    }
    times(clients).await;
}

async fn send_one(client: Client, case: &RequestCase, expected: &Answer) -> Outcome {
    let owned = case.clone();
    let mut asked = tokio::spawn(async move { send(&client, &owned).await });
    match tokio::time::timeout(LIMIT, &mut asked).await {
        Ok(Ok(got)) if matches(&got, expected) => Outcome::Same,
        Ok(Ok(got)) if got.status == expected.status => Outcome::Different,
        Ok(Ok(got)) => Outcome::Status(got.status.as_u16()),
        // The reader panicked on a malformed event stream.
        Ok(Err(_)) => Outcome::Broken,
        Err(_) => {
            asked.abort();
            Outcome::None
        }
    }
}

/// Prints the median of thirty times to the whole answer, alternating between the routers.
async fn times(clients: [Client; 2]) {
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..30 {
        for (client, times) in clients.iter().zip(&mut times) {
            let body = requests::generate(&format!("every prompt {number} waits"), 8);
            let start = Instant::now();
            client.post("/generate", &body).await.expect_status(200);
            times.push(start.elapsed());
        }
    }
    let middle = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_millis()
    };
    let [ours, theirs] = &mut times;
    println!("  8 tokens, median of 30: {} ms and {} ms", middle(ours), middle(theirs));
}

async fn start(testbed: &TestBed, address: &Loopback) -> Child {
    let url = |ip| format!("http://{}", SocketAddr::new(ip, ENGINE_PORT));
    let mut command = Command::new(env_path("PD_ROUTER_PEER_PYTHON"));
    command
        .args(["-m", "sglang_router.launch_router", "--policy", "round_robin"])
        .args(["--pd-disaggregation", "--prefill", &url(testbed.prefill.ip())])
        .args([&BOOTSTRAP_PORT.to_string(), "--decode", &url(testbed.decode.ip())])
        .args(["--host", &address.ip().to_string(), "--port", &PORT.to_string()])
        .args(["--prometheus-port", "29555", "--log-level", "error"])
        .args(["--worker-startup-check-interval", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let router = command.spawn().expect("starting sglang-router");
    let client = Client::new(address.port(PORT));
    let case = requests::generate("ready", 1);
    eventually("sglang-router serves", START, async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let request = client.json_request("/generate", case.to_string());
        client.try_send(request).await.ok().filter(|answer| answer.status.is_success()).map(|_| ())
    })
    .await;
    router
}
