//! Reliability cases that users of routers have reported.

use std::time::Duration;

use router_tests::fleet::SOON;
use router_tests::reliability::{
    CROWD, behind_cancelled, crowd, death, slow_prefill, small_decode, twelve_pairs,
};
use router_tests::{Fleet, Gateway, eventually};
use serde_json::Value;

/// Waits until the gateway counts no request at any worker, and no engine that lives has one.
async fn nothing_is_left(fleet: &Fleet, gateway: &Gateway) {
    eventually("no lease is left", SOON, async || {
        let page = gateway.fleet().await;
        let members = page["pools"][0]["members"].as_array()?;
        let requests = |member: &Value| member["worker"]["usage"]["requests"].as_u64();
        members.iter().all(|member| requests(member) == Some(0)).then_some(())
    })
    .await;
    fleet.idle().await;
}

#[tokio::test]
async fn a_decode_that_takes_four_at_a_time_serves_all_of_64() {
    let fleet = small_decode().await;
    let gateway = fleet.gateway().await;
    let served = crowd(gateway.client).await;
    assert_eq!((served.served, served.failed), (CROWD, 0));
    nothing_is_left(&fleet, &gateway).await;
}

#[tokio::test]
async fn a_short_request_does_not_wait_for_long_ones_that_were_cancelled() {
    let fleet = slow_prefill().await;
    let gateway = fleet.gateway().await;
    let took = behind_cancelled(gateway.client, &fleet).await.expect("the short one is served");
    // The ten long ones would take 6.5 s.
    assert!(took < Duration::from_secs(3), "{took:?}");
    nothing_is_left(&fleet, &gateway).await;
}

#[tokio::test]
async fn a_decode_that_dies_under_load_fails_no_request() {
    let fleet = twelve_pairs().await;
    let gateway = fleet.gateway().await;
    let served = death(gateway.client, &fleet).await;
    assert!(served.served > 48, "{served:?}");
    assert_eq!(served.failed, 0, "{served:?}");
}
