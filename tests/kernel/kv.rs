//! KV cache between simulated engines, pair by pair.

use std::collections::BTreeMap;

use netns::{Node, PodNetwork, Topology};
use router_tests::agent::count;

use crate::engines::{generate, page, two_pairs};

/// What the simulator sends ahead of each transfer's KV.
pub(crate) const FRAMING: u64 = 36;

#[test]
fn kv_bytes_of_every_pair_are_what_the_engines_moved() {
    let node = Node::new(Topology::Routed);
    let (agent, pods, engines) = two_pairs(&node);
    let [p0, p1, d0, d1] = &pods;
    for (prefill, decode, times) in [(p0, d0, 3), (p0, d1, 1), (p1, d1, 2)] {
        for time in 0..times {
            generate(&node, prefill.address, decode.address, 10 + time);
        }
    }
    let moved = [("p0", p0), ("p1", p1)].map(|(name, pod)| (name, sent_by(&node, pod)));
    drop(engines);
    let names: BTreeMap<String, &str> =
        [(d0, "d0"), (d1, "d1")].map(|(pod, name)| (pod.address.to_string(), name)).into();
    let loads = agent.until("all engines gone", |loads| {
        let pairs = loads["pairs"].as_array().expect("a list");
        pairs.iter().all(|pair| pair["open"] == 0)
    });
    let kv = loads["kv"].as_array().expect("kv");
    assert_eq!(kv.len(), 3, "{kv:#?}");
    for (prefill, sent) in moved {
        assert!(!sent.is_empty(), "{prefill} sent nothing");
        for (peer, bytes, transfers) in sent {
            let decode = names[&peer];
            let row = kv.iter().find(|row| {
                row["prefill"] == format!("default/{prefill}")
                    && row["decode"] == format!("default/{decode}")
            });
            let counted = count(&row.expect("a row for the pair")["bytes"]);
            assert!(bytes > 0);
            assert_eq!(counted, bytes + transfers * FRAMING, "{prefill} to {decode}");
        }
    }
    // Handshakes and control messages are a class of their own, requests another.
    let classes: Vec<&str> = loads["pairs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|p| p["class"].as_str())
        .collect();
    for class in ["engine", "bootstrap", "kv", "kv_control"] {
        assert!(classes.contains(&class), "{class} is not among {classes:?}");
    }
    assert!(!classes.contains(&"other"), "{classes:?}");
}

/// Peer, KV bytes and transfers, as the engine itself counts them.
pub(crate) fn sent_by(node: &Node, pod: &PodNetwork) -> Vec<(String, u64, u64)> {
    let kv = page(node, pod.address, "/sim/kv");
    let peers = kv["peers"].as_object().expect("peers");
    peers
        .iter()
        .filter(|(_, traffic)| traffic["sent_bytes"].as_u64().is_some_and(|bytes| bytes > 0))
        .map(|(peer, traffic)| {
            (peer.clone(), count(&traffic["sent_bytes"]), count(&traffic["sent_transfers"]))
        })
        .collect()
}
