//! What is there after docs/operate/install.md was followed, and after pd-router was removed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::walk::{By, LoadBalancer, SYSTEM, Walk};

const MODEL: &str = "/models/Qwen3-32B";

#[test]
fn the_page_leads_to_an_answer_and_kernels_count_what_engines_say() {
    let walk = Walk::start("install");
    let _cloud = LoadBalancer::start(&walk.site);
    walk.follow(By::Kustomize);
    let address = walk.address();
    let streamed = walk.sh(&format!(
        "curl -sSN -m 20 http://{address}:8080/v1/chat/completions -H 'Content-Type: application/json' \
         -d '{{\"model\": \"{MODEL}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}], \
         \"max_tokens\": 5, \"stream\": true}}'"
    ));
    assert!(streamed.trim_end().ends_with("data: [DONE]"), "{streamed}");

    let token = walk.token();
    let gateways = "app.kubernetes.io/name=pd-router-gateway";
    walk.until("two gateways hear two agents each", |walk| {
        let gateways = walk.pods(SYSTEM, gateways);
        gateways.len() == 2
            && gateways.iter().all(|(_, address)| {
                let fleet = walk.get(&format!("http://{address}:9901/fleet"), &token);
                let agents = fleet["agents"].as_array().expect("a list");
                agents.iter().filter(|agent| agent["connected"] == true).count() == 2
            })
    });

    let run = walk.load(10).result();
    let requests = run["requests"].as_array().expect("a list");
    let failed: Vec<_> = requests.iter().filter(|one| one["error"].is_string()).collect();
    assert!(requests.len() > 50 && failed.is_empty(), "{} requests, {failed:?}", requests.len());
    counts_agree(&walk, &token);

    // Nothing of others goes with it, and nothing that users made.
    walk.sh("kubectl delete -k ../my-overlay");
    let left =
        walk.sh("kubectl get crd -o name; kubectl get gateway,httproute,xinfpool,itp -o name");
    for name in [
        "gateways.gateway.networking.k8s.io",
        "inferencepools.inference.networking.x-k8s.io",
        "inferencetrafficpolicies.inferenceextension.alibabacloud.com",
        "gateway.gateway.networking.k8s.io/inference-gateway",
        "httproute.gateway.networking.k8s.io/inference-route",
        "qwen-inference-pool",
        "inference-policy",
    ] {
        assert!(left.contains(name), "{name} is gone: {left}");
    }
}

/// Compares what the agents of both nodes count with what the engines say of themselves.
fn counts_agree(walk: &Walk, token: &str) {
    let agents = walk.pods(SYSTEM, "app.kubernetes.io/component=agent");
    let engines = walk.pods("default", "alibabacloud.com/inference_backend=sglang");
    assert_eq!((agents.len(), engines.len()), (2, 3));
    let loads = |walk: &Walk| -> Vec<Value> {
        agents
            .iter()
            .map(|(_, at)| walk.get(&format!("http://{at}:9911/v1/loads"), token))
            .collect()
    };
    let of_engine = |loads: &[Value], kind: &str, name: &str| -> Vec<Value> {
        let all = loads.iter().flat_map(|one| one[kind].as_array().expect("a list").clone());
        all.filter(|one| one["pod"] == format!("default/{name}")).collect()
    };
    for (name, address) in &engines {
        // The requests for an engine's records are not in them.
        let mut asked = 0;
        let mut received = || -> u64 {
            let list = walk.json(&format!("curl -sSf http://{address}:8000/sim/received"));
            asked += 1;
            list.as_array().expect("a list").len() as u64 + asked
        };
        walk.until("the kernel's count of requests is the engine's", |walk| {
            let before = received();
            let counted = of_engine(&loads(walk), "pods", name);
            let after = received() - 1;
            let counted = counted.first().and_then(|one| one["started"].as_u64());
            counted.is_some_and(|counted| (before..=after).contains(&counted))
        });
    }
    let names: BTreeMap<_, _> =
        engines.iter().map(|(name, address)| (address.as_str(), name)).collect();
    let mut pairs = 0;
    for (prefill, address) in engines.iter().filter(|(name, _)| name.contains("prefill")) {
        let sent = walk.json(&format!("curl -sSf http://{address}:8000/sim/kv"));
        for (peer, transfers) in sent["peers"].as_object().expect("peers") {
            let sent = transfers["sent_bytes"].as_u64().expect("bytes");
            let decode = format!("default/{}", names[peer.as_str()]);
            let kv = of_engine(&loads(walk), "pairs", prefill);
            let kv = kv.iter().find(|pair| pair["class"] == "kv" && pair["peer"] == decode);
            let counted = kv.and_then(|pair| pair["tx_bytes"].as_u64()).expect("a pair of KV");
            // Each transfer has a head of some 36 bytes.
            let heads = 64 * transfers["sent_transfers"].as_u64().expect("a number");
            assert!(
                (sent..=sent + heads).contains(&counted),
                "{prefill} to {decode}: {counted}, {sent}"
            );
            pairs += 1;
        }
    }
    assert_eq!(pairs, 2, "one pair within a node, one between nodes");
}

#[test]
fn helm_installs_upgrades_rolls_back_and_leaves_definitions() {
    let walk = Walk::start("helm");
    let _cloud = LoadBalancer::start(&walk.site);
    walk.follow(By::Helm);
    let values = "--namespace pd-router-system --reuse-values --wait --timeout 3m";
    walk.sh(&format!(
        "helm upgrade pd-router deploy/chart {values} --set gateway.extraArgs={{--policy=kv}}"
    ));
    let arguments = "kubectl get deployment pd-router-gateway -n pd-router-system -o json";
    assert!(walk.sh(arguments).contains("--policy=kv"));
    walk.sh("helm rollback pd-router 1 --namespace pd-router-system --wait --timeout 3m");
    assert!(!walk.sh(arguments).contains("--policy=kv"));
    walk.sh("helm uninstall pd-router --namespace pd-router-system");
    let left = walk.sh("kubectl get crd,gateway,xinfpool -o name");
    assert!(
        left.contains("inferencetrafficpolicies") && left.contains("qwen-inference-pool"),
        "{left}"
    );
}
