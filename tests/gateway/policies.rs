//! Policies: who is chosen when several could serve.

use router_tests::Fleet;
use router_tests::gateway::pair;

use crate::{CHAT, chat, streamed};

async fn decodes_chosen(policy: &str, times: usize) -> Vec<usize> {
    let fleet = Fleet::start(2, 3).await;
    let gateway = fleet.gateway_with(&["--policy", policy]).await;
    for _ in 0..times {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    fleet.decode.iter().map(|decode| decode.legs().len()).collect()
}

#[tokio::test]
async fn round_robin_gives_everybody_the_same() {
    assert_eq!(decodes_chosen("round_robin", 9).await, [3, 3, 3]);
}

#[tokio::test]
async fn random_and_power_of_two_leave_nobody_out() {
    for policy in ["random", "power_of_two"] {
        let chosen = decodes_chosen(policy, 60).await;
        // Sixty draws miss one of three with a chance of 3 * (2/3)^60, that is never.
        assert!(chosen.iter().all(|count| *count > 0), "{policy}: {chosen:?}");
    }
}

#[tokio::test]
async fn least_load_avoids_the_busy_one() {
    let fleet = Fleet::start_with(1, 2, |config| config).await;
    let gateway = fleet.gateway_with(&["--policy", "least_load"]).await;
    let mut body = streamed("long");
    body["max_tokens"] = 100_000.into();
    body["ignore_eos"] = true.into();
    let mut busy = gateway.client.open(CHAT, &body).await;
    busy.next().await.expect("a first event");
    let taken = busy.headers["x-pd-router-decode"].to_str().expect("text").to_owned();
    for _ in 0..6 {
        let (_, decode) = pair(&gateway.client.post(CHAT, &chat("hi")).await.expect_status(200));
        assert_ne!(decode, taken);
    }
}

#[test]
fn an_unknown_policy_is_refused_by_name() {
    let words = ["gateway", "--manifests", ".", "--policy", "best"];
    let (status, printed) = router_tests::gateway::run_to_end(&words);
    assert!(!status.success());
    assert!(printed.contains("--policy") && printed.contains("least_load"), "{printed}");
}
