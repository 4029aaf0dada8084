//! Control messages between simulated engines, as the agent reads them.

use netns::{Node, Topology};
use router_tests::agent::{Agent, count};
use router_tests::node_manifests::{decode, prefill};
use serde_json::Value;

use crate::engines::{Engine, generate, two_pairs};

fn messages(loads: &Value, direction: &str, kind: &str) -> u64 {
    count(&loads["control"][direction][kind])
}

#[test]
fn every_transfer_is_seen_at_both_of_its_ends() {
    let node = Node::new(Topology::Routed);
    let (agent, pods, _engines) = two_pairs(&node);
    let [p0, p1, d0, d1] = &pods;
    let mut transfers = 0;
    for (prefill, decode, times) in [(p0, d0, 30), (p0, d1, 10), (p1, d1, 20), (p1, d0, 5)] {
        for time in 0..times {
            // Prompts of one page and of thousands, whose indices take several segments of a wire.
            generate(&node, prefill.address, decode.address, 1 + time * 40);
            transfers += 1;
        }
    }
    let loads = agent.until("every transfer has ended", |loads| {
        messages(loads, "received", "succeeded") >= transfers
            && count(&loads["control"]["open_rooms"]) == 0
    });
    let control = &loads["control"];
    for direction in ["sent", "received"] {
        for kind in ["indices", "succeeded"] {
            assert_eq!(messages(&loads, direction, kind), transfers, "{kind} {direction}");
        }
        for kind in ["failed", "aborts"] {
            assert_eq!(messages(&loads, direction, kind), 0, "{kind} {direction}");
        }
    }
    for skipped in ["unread", "dropped", "forgotten"] {
        assert_eq!(count(&control[skipped]), 0, "{skipped}: {control:#}");
    }
    assert_eq!(count(&loads["lost"]["control"]), 0);
}

#[test]
fn control_messages_on_ports_of_kv_are_seen_where_they_are_learned() {
    let node = Node::new(Topology::Routed);
    let (one, other) = (node.pod(2), node.pod(3));
    let named = [prefill("p0", one.address), decode("d0", other.address)];
    let agent = Agent::start_with(&node, &named, &["--kv-ports", "1-65535"]);
    let _engines = [Engine::start(&one, "prefill"), Engine::start(&other, "decode")];
    agent.until("ports are learned", |loads| {
        loads["learned_ports"].as_array().is_some_and(|ports| !ports.is_empty())
    });
    (0..5).for_each(|_| generate(&node, one.address, other.address, 10));
    // Decode's own ports are not learned: statuses to them count as KV.
    agent.until("indices", |loads| {
        messages(loads, "sent", "indices") == 5 && messages(loads, "received", "indices") == 5
    });
}
