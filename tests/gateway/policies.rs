//! Policies: who is chosen when several could serve.

use std::time::Duration;

use router_tests::fleet::SOON;
use router_tests::gateway::pair;
use router_tests::{Fleet, eventually};
use sglang_sim::Action;

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
async fn round_robin_chooses_every_worker_equally_often() {
    assert_eq!(decodes_chosen("round_robin", 9).await, [3, 3, 3]);
}

#[tokio::test]
async fn random_and_power_of_two_choose_every_worker() {
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

#[tokio::test]
async fn a_prefill_is_free_once_it_has_answered_though_decode_still_computes_a_whole_answer() {
    let fleet = Fleet::start_with(2, 1, |config| config).await;
    let gateway = fleet.gateway_with(&["--policy", "predicted"]).await;
    let mut body = chat(&"long ".repeat(20_000));
    body["max_tokens"] = 100_000.into();
    body["ignore_eos"] = true.into();
    let client = router_tests::Client::new(gateway.client.address);
    let decoding = tokio::spawn(async move { client.post(CHAT, &body).await });
    fleet.decode[0].legs_arrived(1).await;
    eventually("both prefills are idle", Duration::from_secs(20), async || {
        let usages = prefill_requests(&gateway).await;
        let held = fleet.prefill.iter().any(|prefill| prefill.held() > 0);
        (!held && usages == [0, 0]).then_some(())
    })
    .await;
    // The gateway polls engines once a second, and their last reports may still count the request.
    eventually("both prefills report that they are idle", Duration::from_secs(20), async || {
        let page = gateway.admin.get("/fleet").await.expect_status(200).json();
        let loads = page["loads"].as_array().expect("loads").clone();
        let of_prefill = |load: &&serde_json::Value| load["worker"].to_string().contains("prefill");
        let is_idle = |load: &&serde_json::Value| load["engine"]["running"] == 0;
        let idle = loads.iter().filter(of_prefill).filter(is_idle).count();
        (idle == 2).then_some(())
    })
    .await;
    assert!(!decoding.is_finished(), "the answer is complete already");
    let mut prefills = Vec::new();
    for _ in 0..20 {
        prefills.push(pair(&gateway.client.post(CHAT, &chat("hi")).await.expect_status(200)).0);
    }
    assert!(!decoding.is_finished(), "the answer is complete already");
    let first = prefills.iter().filter(|name| **name == prefills[0]).count();
    // Of 20 fair draws, fewer than three for one of the two come once in 2,500 runs.
    assert!((3..=17).contains(&first), "{prefills:?}");
    decoding.abort();
}

/// The requests that the gateway counts at each prefill.
async fn prefill_requests(gateway: &router_tests::Gateway) -> Vec<u64> {
    let fleet = gateway.fleet().await;
    let members = fleet["pools"][0]["members"].as_array().expect("members").clone();
    let prefills = members.iter().filter(|member| member["role"] == "prefill");
    prefills.filter_map(|member| member["worker"]["usage"]["requests"].as_u64()).collect()
}

#[test]
fn an_unknown_policy_is_refused_by_name() {
    let words = ["gateway", "--manifests", ".", "--policy", "best"];
    let (status, printed) = router_tests::gateway::run_to_end(&words);
    assert!(!status.success());
    assert!(printed.contains("--policy") && printed.contains("least_load"), "{printed}");
}

#[tokio::test]
async fn a_predicted_choice_is_explained_in_a_header_and_in_fleet() {
    let fleet = Fleet::start(2, 1).await;
    let gateway = fleet.gateway_with(&["--policy", "predicted"]).await;
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let choice = answer.headers["x-pd-router-choice"].to_str().expect("text").to_owned();
    let (prefill, decode) = pair(&answer);
    assert!(choice.starts_with(&format!("{prefill} {decode} ttft=")), "{choice}");
    let (taken, runner_up) = choice.split_once("; not ").expect("a runner-up");
    for term in [" wait=", " admission=", " prefill=", " transfer=", " itl="] {
        assert!(taken.contains(term) && runner_up.contains(term), "{term}: {choice}");
    }
    assert!(!runner_up.starts_with(&prefill), "the other prefill: {choice}");
    let last = gateway.admin.get("/fleet").await.expect_status(200).json()["last_choice"].take();
    assert_eq!(last["chosen"]["pair"]["prefill"], prefill);
    assert!(last["runner_up"]["estimate"]["prefill_ms"].is_f64(), "{last}");
}

#[tokio::test]
async fn a_restarted_engine_has_nothing_cached() {
    // A decode notices that its prefill has gone long before a real one is back.
    let fleet = Fleet::start_with(1, 1, |mut config| {
        config.timing.heartbeat_interval = Duration::from_millis(50);
        config
    })
    .await;
    let gateway = fleet
        .gateway_with(&[
            "--policy",
            "predicted",
            "--probe-interval",
            "100ms",
            "--max-attempts",
            "1",
        ])
        .await;
    let talk = chat(&"and so on ".repeat(3_000));
    let cached = async || {
        gateway.client.post(CHAT, &talk).await.expect_status(200);
        let fleet = gateway.admin.get("/fleet").await.expect_status(200).json();
        fleet["last_choice"]["chosen"]["estimate"]["cached_bytes"].as_f64().expect("a number")
    };
    assert_eq!(cached().await, 0.0);
    assert!(cached().await > 20_000.0, "the prefill was sent all of it before");
    fleet.prefill[0].once(Action::Restart { down_ms: 700, registry_delay_ms: 0 });
    gateway.client.post(CHAT, &chat("hi")).await;
    for up in [1.0, 2.0] {
        eventually(&format!("{up} engines are up"), SOON, async || {
            (gateway.metric("pd_router_worker_up", &[]).await == up).then_some(())
        })
        .await;
    }
    assert_eq!(cached().await, 0.0);
    assert!(cached().await > 20_000.0);
}

#[tokio::test]
async fn a_conversation_stays_on_its_prefill() {
    let fleet = Fleet::start(4, 1).await;
    let gateway = fleet.gateway_with(&["--policy", "predicted"]).await;
    let mut kept = 0;
    for number in 0..3 {
        let mut talk = chat(&format!("{number} {}", "and so on ".repeat(3_000)));
        let first = pair(&gateway.client.post(CHAT, &talk).await.expect_status(200)).0;
        for turn in 0..6 {
            let more = serde_json::json!({"role": "user", "content": format!("more of {turn}")});
            talk["messages"].as_array_mut().expect("a list").push(more);
            let answer = gateway.client.post(CHAT, &talk).await.expect_status(200);
            kept += usize::from(pair(&answer).0 == first);
        }
    }
    // A queue of the moment may outweigh what is cached.
    assert!(kept >= 12, "{kept} of 18 turns");
}
