//! Data-parallel ranks: each is a candidate of its own, and a request reaches the rank it is for.

use std::collections::BTreeMap;

use router_tests::fleet::SOON;
use router_tests::{Fleet, eventually};
use sglang_sim::{Config, Role, Version};

use crate::{CHAT, chat, streamed};

/// A fleet of one prefill and one decode with these numbers of ranks.
async fn ranked(version: Version, prefill: usize, decode: usize) -> Fleet {
    let sized = move |config: Config| {
        let dp_size = if config.role == Role::Prefill { prefill } else { decode };
        Config { dp_size, version, ..config.instant() }
    };
    Fleet::start_with(1, 1, sized).await
}

/// How often each value came.
fn tally(values: impl Iterator<Item = u64>) -> BTreeMap<u64, usize> {
    values.fold(BTreeMap::new(), |mut seen, value| {
        *seen.entry(value).or_default() += 1;
        seen
    })
}

#[tokio::test]
async fn the_room_steers_prefill_and_a_field_steers_decode() {
    let fleet = ranked(Version::V0_5, 4, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..8 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let (prefill, decode) = (fleet.prefill[0].legs(), fleet.decode[0].legs());
    let by_room = tally(prefill.iter().map(|leg| leg.rooms[0] % 4));
    assert_eq!(by_room, BTreeMap::from([(0, 2), (1, 2), (2, 2), (3, 2)]));
    assert!(prefill.iter().all(|leg| leg.json()["routed_dp_rank"].is_null()));
    let named = decode.iter().map(|leg| leg.json()["routed_dp_rank"].as_u64().expect("a rank"));
    assert_eq!(tally(named), BTreeMap::from([(0, 4), (1, 4)]));
}

#[tokio::test]
async fn an_old_pair_takes_both_ranks_from_one_room() {
    let fleet = ranked(Version::V0_4_10, 4, 6).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..12 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let decode = fleet.decode[0].legs();
    assert!(decode.iter().all(|leg| leg.json()["routed_dp_rank"].is_null()));
    let each = |count: u64, times| (0..count).map(|rank| (rank, times)).collect();
    let by_room = |count| tally(decode.iter().map(|leg| leg.rooms[0] % count));
    assert_eq!((by_room(4), by_room(6)), (each(4, 3), each(6, 2)));
}

#[tokio::test]
async fn a_busy_rank_is_avoided() {
    for version in [Version::V0_5, Version::V0_4_10] {
        let fleet = ranked(version, 2, 2).await;
        let gateway = fleet.gateway_with(&["--policy", "least_load"]).await;
        let mut body = streamed("long");
        body["max_tokens"] = 100_000.into();
        body["ignore_eos"] = true.into();
        let mut busy = gateway.client.open(CHAT, &body).await;
        busy.next().await.expect("a first event");
        for _ in 0..6 {
            gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        }
        let ranks: Vec<u64> = fleet.decode[0]
            .legs()
            .iter()
            .map(|leg| leg.json()["routed_dp_rank"].as_u64().unwrap_or(leg.rooms[0] % 2))
            .collect();
        let taken = ranks[0];
        assert!(ranks[1..].iter().all(|rank| *rank != taken), "{version:?}: {ranks:?}");
    }
}

#[tokio::test]
async fn a_rank_that_another_gateway_has_filled_gets_nothing() {
    let sized = |config: Config| Config { dp_size: 2, max_running_requests: 1, ..config.instant() };
    let fleet = Fleet::start_with(1, 1, sized).await;
    let other = fleet.gateway_with(&["--policy", "random"]).await;
    let mut body = streamed("long");
    body["max_tokens"] = 100_000.into();
    body["ignore_eos"] = true.into();
    let mut busy = other.client.open(CHAT, &body).await;
    busy.next().await.expect("a first event");
    let gateway =
        fleet.gateway_with(&["--policy", "random", "--engine-load-interval", "50ms"]).await;
    eventually("the gateway knows the engine's load", SOON, async || {
        let loads = gateway.admin.get("/fleet").await.expect_status(200).json()["loads"].take();
        let loads = loads.as_array().expect("a list").iter();
        let running = loads.filter_map(|load| load["engine"]["running"].as_u64());
        (running.max() == Some(1)).then_some(())
    })
    .await;
    for _ in 0..6 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let legs = fleet.decode[0].legs();
    let ranks: Vec<u64> =
        legs.iter().filter_map(|leg| leg.json()["routed_dp_rank"].as_u64()).collect();
    assert_eq!(ranks.len(), 7);
    assert!(ranks[1..].iter().all(|rank| *rank != ranks[0]), "{ranks:?}");
}

#[tokio::test]
async fn a_full_rank_gets_nothing_until_it_has_capacity() {
    let sized = |config: Config| Config { dp_size: 2, max_running_requests: 2, ..config.instant() };
    let fleet = Fleet::start_with(1, 1, sized).await;
    // The limit is what engines report at their start; this one's ranks would take more.
    let flags = ["--policy", "random", "--engine-load-interval", "1h"];
    let gateway = fleet.gateway_with(&flags).await;
    let mut body = streamed("long");
    body["max_tokens"] = 100_000.into();
    body["ignore_eos"] = true.into();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = gateway.client.open(CHAT, &body).await;
        stream.next().await.expect("a first event: the other rank has room");
        streams.push(stream);
    }
    let third = chat("hi");
    let waits = gateway.client.post(CHAT, &third);
    tokio::pin!(waits);
    eventually("the third waits", SOON, async || {
        tokio::select! {
            biased;
            _ = &mut waits => panic!("answered without room"),
            queued = gateway.metric("pd_router_requests_queued", &[]) => {
                (queued == 1.0).then_some(())
            }
        }
    })
    .await;
    drop(streams);
    waits.await.expect_status(200);
}
