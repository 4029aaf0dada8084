//! EndpointSlices as API servers of today send them, replayed: lines of a watch, one event each.

use router_core::fleet::Fleet;
use serde_json::{Value, json};

use super::*;
use crate::control::CONTROLLER_NAME;

/// A Gateway, and a route to port 80 of a Service `s` whose name for it is `http`.
const BEFORE: &str = r#"
{"type":"ADDED","object":{"kind":"GatewayClass","metadata":{"name":"c"},"spec":{"controllerName":"CONTROLLER"}}}
{"type":"ADDED","object":{"kind":"Gateway","metadata":{"name":"g","namespace":"default"},"spec":{"gatewayClassName":"c","listeners":[{"name":"l","protocol":"HTTP","port":80}]}}}
{"type":"ADDED","object":{"kind":"HTTPRoute","metadata":{"name":"r","namespace":"default"},"spec":{"parentRefs":[{"name":"g"}],"rules":[{"backendRefs":[{"name":"s","port":80}]}]}}}
{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"s","namespace":"default","resourceVersion":"10"},"spec":{"clusterIP":"None","ports":[{"name":"http","port":80,"targetPort":"web"}],"selector":{"app":"a"}}}}
"#;

/// The endpoints of Service `s` after a watch has sent these lines.
fn endpoints(lines: &str) -> Vec<String> {
    let mut index = Index::default();
    let mut watched = WatchCache::default();
    for kind in KINDS {
        let watch = Watch::Kind(kind);
        watched.apply(&mut index, &watch, WatchEvent::Listing);
        watched.apply(&mut index, &watch, WatchEvent::Listed);
    }
    let before = BEFORE.replace("CONTROLLER", CONTROLLER_NAME);
    for line in before.lines().chain(lines.lines()).filter(|line| !line.is_empty()) {
        let mut event: Value = serde_json::from_str(line).unwrap();
        let object = event["object"].take();
        let kind = match object["kind"].as_str().unwrap() {
            "GatewayClass" => Kind::GatewayClass,
            "Gateway" => Kind::Gateway,
            "HTTPRoute" => Kind::HttpRoute,
            "Service" => Kind::Service,
            "EndpointSlice" => Kind::EndpointSlice,
            other => panic!("{other}"),
        };
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let change = match event["type"].as_str().unwrap() {
            "DELETED" => WatchEvent::Gone(object_key(kind, Some("default"), &name)),
            "RELIST" => WatchEvent::Listing,
            _ => WatchEvent::Present(Box::new(ObservedObject::read(kind, object).unwrap())),
        };
        watched.apply(&mut index, &Watch::Kind(kind), change);
    }
    let fleet = index.build(&Fleet::default());
    let endpoints = fleet.services[0].endpoints.iter();
    endpoints.map(|worker| format!("{} {}", worker.name, worker.address())).collect()
}

/// A line that adds or changes a slice; an endpoint is an address, a pod's name or none, and its
/// conditions.
fn slice(name: &str, family: &str, port: Value, endpoints: &[(&str, &str, Value)]) -> String {
    let endpoint = |(address, pod, conditions): &(&str, &str, Value)| {
        let mut endpoint = json!({"addresses": [address], "conditions": conditions});
        if !pod.is_empty() {
            endpoint["targetRef"] =
                json!({"kind": "Pod", "name": pod, "namespace": "default", "uid": pod});
        }
        endpoint
    };
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {
            "name": name, "namespace": "default", "generateName": "s-",
            "labels": {"kubernetes.io/service-name": "s",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
        },
        "endpoints": endpoints,
        "ports": [port],
    });
    format!("{}\n", json!({"type": "ADDED", "object": object}))
}

fn web() -> Value {
    json!({"name": "http", "port": 8080, "protocol": "TCP"})
}

fn ready() -> Value {
    json!({"ready": true, "serving": true, "terminating": false})
}

#[test]
fn a_headless_service_leads_to_the_pods_of_its_slices() {
    let lines =
        slice("s-1", "IPv4", web(), &[("10.0.0.1", "a", ready()), ("10.0.0.2", "b", ready())]);
    assert_eq!(endpoints(&lines), ["default/a 10.0.0.1:8080", "default/b 10.0.0.2:8080"]);
}

#[test]
fn a_slice_that_somebody_wrote_by_hand_needs_no_pods() {
    let lines = slice("by-hand", "IPv4", web(), &[("192.0.2.9", "", json!({}))]);
    assert_eq!(endpoints(&lines), ["192.0.2.9:8080 192.0.2.9:8080"]);
}

#[test]
fn endpoints_that_are_not_ready_or_are_ending_get_nothing() {
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    let all = [
        ("10.0.0.1", "a", ready()),
        ("10.0.0.2", "b", json!({"ready": false})),
        ("10.0.0.3", "c", ending),
        // What is not said is taken for ready.
        ("10.0.0.4", "d", json!({})),
    ];
    let lines = slice("s-1", "IPv4", web(), &all);
    assert_eq!(endpoints(&lines), ["default/a 10.0.0.1:8080", "default/d 10.0.0.4:8080"]);
}

#[test]
fn an_endpoint_that_moves_between_slices_stands_once() {
    let lines =
        slice("s-1", "IPv4", web(), &[("10.0.0.1", "a", ready()), ("10.0.0.2", "b", ready())])
            + &slice(
                "s-2",
                "IPv4",
                web(),
                &[("10.0.0.2", "b", ready()), ("10.0.0.3", "c", ready())],
            );
    assert_eq!(
        endpoints(&lines),
        ["default/a 10.0.0.1:8080", "default/b 10.0.0.2:8080", "default/c 10.0.0.3:8080"]
    );
}

#[test]
fn both_families_of_addresses_are_reached() {
    let lines = slice("s-4", "IPv4", web(), &[("10.0.0.1", "a", ready())])
        + &slice("s-6", "IPv6", web(), &[("fd00::1", "a", ready())]);
    assert_eq!(endpoints(&lines), ["default/a 10.0.0.1:8080", "default/a [fd00::1]:8080"]);
}

#[test]
fn ports_meet_by_their_names() {
    let admin = json!({"name": "admin", "port": 9000, "protocol": "TCP"});
    let lines = slice("s-1", "IPv4", admin, &[("10.0.0.1", "a", ready())]);
    assert_eq!(endpoints(&lines), Vec::<String>::new());
}

#[test]
fn the_last_word_about_a_slice_counts() {
    let both =
        slice("s-1", "IPv4", web(), &[("10.0.0.1", "a", ready()), ("10.0.0.2", "b", ready())]);
    let one = slice("s-1", "IPv4", web(), &[("10.0.0.1", "a", ready())]);
    assert_eq!(endpoints(&(both.clone() + &one)), ["default/a 10.0.0.1:8080"]);
    let empty = slice("s-1", "IPv4", web(), &[]);
    assert_eq!(endpoints(&(both.clone() + &empty)), Vec::<String>::new());
    let gone = r#"{"type":"DELETED","object":{"kind":"EndpointSlice","metadata":{"name":"s-1"}}}"#;
    assert_eq!(endpoints(&(both.clone() + gone)), Vec::<String>::new());
    // A list that has begun and not ended takes nothing away.
    let relist = r#"{"type":"RELIST","object":{"kind":"EndpointSlice","metadata":{"name":""}}}"#;
    assert_eq!(endpoints(&(both + relist)).len(), 2);
}
