//! Agents that die, are cut off, come back, or send nonsense: no request fails.

use std::net::IpAddr;

use router_tests::site::crowd::{Crowd, none_failed};
use router_tests::site::{Site, SiteGateway, wait};

use crate::liar::{LIES, Liar, Lie};

const ENGINES: &str = "--prefill-tokens-per-second 100000 --inter-token-ms 2";

fn site() -> Site {
    let mut site = Site::new();
    for role in ["prefill", "prefill", "decode", "decode"] {
        site.engine(role, false, ENGINES);
    }
    site
}

/// Waits until the reported load of an engine is stale.
fn stale(gateway: &SiteGateway) {
    wait("loads are stale", || {
        let age = gateway.load_of("prefill-0")["load"]["age_ms"].as_f64()?;
        (age >= 300.0).then_some(())
    });
}

/// Drops all packets between the machine outside and the agent. Engines stay reachable through the
/// same interface.
fn cut_off(site: &Site) {
    let IpAddr::V4(agent) = site.agent_address().ip() else { panic!("IPv4") };
    // tc's cheapest filter, which every kernel has that the agent runs on: a word of the frame (30
    // is where it goes to, 26 where it comes from) is the agent, and 2 is TC_ACT_SHOT.
    let filter =
        |word: u32| format!("4,32 0 0 {word},21 0 1 {},6 0 0 2,6 0 0 4294967295", agent.to_bits());
    let (to, from) = (filter(30), filter(26));
    site.node.outside.sh(&format!(
        "tc qdisc add dev eth0 clsact
         tc filter add dev eth0 egress bpf direct-action bytecode '{to}'
         tc filter add dev eth0 ingress bpf direct-action bytecode '{from}'"
    ));
}

fn joined_again(site: &Site) {
    site.node.outside.sh("tc qdisc del dev eth0 clsact");
}

#[test]
fn an_agent_that_is_killed_cut_off_and_restarted_fails_no_request() {
    let mut site = site();
    site.agent("");
    let flag = format!("--agent {}", site.agent_address());
    let gateways = [site.gateway(&flag), site.gateway(&flag)];
    gateways.iter().for_each(|gateway| gateway.until_loads_fresh(4));
    let crowd = Crowd::start(&gateways, 2);
    crowd.until_more(40);

    site.kill_agent();
    gateways.iter().for_each(stale);
    crowd.until_more(40);
    site.restart_agent();
    gateways.iter().for_each(|gateway| gateway.until_loads_fresh(4));

    // Cut off without a reset: connections stay open and nothing arrives.
    cut_off(&site);
    gateways.iter().for_each(stale);
    crowd.until_more(40);
    // A new agent that was never reachable is no different.
    site.kill_agent();
    site.restart_agent();
    crowd.until_more(40);
    gateways.iter().for_each(stale);
    joined_again(&site);
    gateways.iter().for_each(|gateway| gateway.until_loads_fresh(4));
    crowd.until_more(40);
    none_failed(&crowd.end());
}

#[test]
fn agents_that_lie_flood_or_stay_silent_fail_no_request_and_the_real_one_counts() {
    let mut site = site();
    site.agent("");
    let uids: Vec<String> =
        site.engines.iter().map(|engine| format!("{}-1", engine.name)).collect();
    let mut flags = format!("--agent {}", site.agent_address());
    let liars: Vec<(Lie, Liar)> = LIES
        .into_iter()
        .zip(8_000..)
        .map(|(lie, port)| {
            let at = ([127, 0, 0, 9], port).into();
            // Agents whose frames are valid report pods that no pool has.
            let uids = if lie == Lie::Nonsense { uids.clone() } else { vec!["unknown".to_owned()] };
            (lie, Liar::start(&site.node.outside, at, lie, uids))
        })
        .collect();
    for (_, liar) in &liars {
        flags += &format!(" --agent {}", liar.address);
    }
    let gateway = site.gateway(&flags);
    gateway.until_loads_fresh(4);
    let crowd = Crowd::start(std::slice::from_ref(&gateway), 3);
    for (lie, liar) in &liars {
        wait(&format!("{lie:?} is left and tried again"), || {
            let visits = liar.visits.load(std::sync::atomic::Ordering::Relaxed);
            (visits >= 2).then_some(())
        });
    }
    crowd.until_more(60);
    gateway.until_loads_fresh(4);
    none_failed(&crowd.end());
    for reason in ["bad_frame", "rate_limit", "timeout", "unknown_pod"] {
        let name = format!("pd_router_feedback_errors_total{{reason=\"{reason}\"}}");
        assert!(gateway.metric(&name) > 0.0, "{reason}");
    }
    let load = gateway.load_of("prefill-0");
    assert!(load["kernel"]["in_flight"].as_u64() < Some(1_000), "a lie was believed: {load:#}");
    assert!(gateway.metric("pd_router_agents ") >= 1.0 + LIES.len() as f64);
}
