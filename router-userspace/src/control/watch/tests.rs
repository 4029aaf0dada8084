//! Lists, gaps, lost deletes, kinds that are not there: each ends in the right index.

use router_core::fleet::Fleet;
use serde_json::{Value, json};

use super::*;
use crate::control::CONTROLLER_NAME;
use crate::control::index::default_gateway_labels;
use crate::control::objects::Object;

pub(super) fn present(kind: Kind, value: Value) -> WatchEvent {
    WatchEvent::Present(Box::new(ObservedObject::read(kind, value).unwrap()))
}

pub(super) fn pod(name: &str, version: u64, app: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "labels": {"app": app},
            "resourceVersion": version.to_string(),
        },
        "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]},
    })
}

pub(super) fn pool(name: &str, app: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}, "targetPorts": [{"number": 8000}]},
    })
}

pub(super) fn pods_of(app: &str) -> Watch {
    Watch::Pods { namespace: "default".into(), labels: [("app".into(), app.into())].into() }
}

/// A cluster with one Gateway of ours, and a route to pools `p` and `q`.
pub(super) struct Case {
    pub(super) index: Index,
    watched: WatchCache,
}

impl Case {
    pub(super) fn new() -> Case {
        Case::of(WatchCache::default())
    }

    fn of(watched: WatchCache) -> Case {
        let mut case = Case { index: Index::default(), watched };
        for kind in KINDS {
            case.list(&Watch::Kind(kind), Vec::new());
        }
        let gateway = json!({
            "metadata": {"name": "g", "namespace": "default"},
            "spec": {
                "gatewayClassName": "c",
                "listeners": [{"name": "l", "protocol": "HTTP", "port": 80}],
            },
        });
        let to = |name: &str| json!({"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name});
        let route = json!({
            "metadata": {"name": "r", "namespace": "default"},
            "spec": {"parentRefs": [{"name": "g"}], "rules": [{"backendRefs": [to("p"), to("q")]}]},
        });
        let class = json!({"metadata": {"name": "c"}, "spec": {"controllerName": CONTROLLER_NAME}});
        for (kind, value) in [
            (Kind::GatewayClass, class),
            (Kind::Gateway, gateway),
            (Kind::HttpRoute, route),
            (Kind::InferencePoolV1, pool("p", "a")),
            (Kind::InferencePoolV1, pool("q", "a")),
        ] {
            case.apply(&Watch::Kind(kind), present(kind, value));
        }
        case.watched.follow_references(&mut case.index);
        case
    }

    pub(super) fn apply(&mut self, watch: &Watch, change: WatchEvent) -> bool {
        self.watched.apply(&mut self.index, watch, change)
    }

    pub(super) fn list(&mut self, watch: &Watch, objects: Vec<Value>) {
        self.apply(watch, WatchEvent::Listing);
        for object in objects {
            self.apply(watch, present(watch.kind(), object));
        }
        self.apply(watch, WatchEvent::Listed);
    }

    fn pods(&self) -> Vec<String> {
        self.index.pods().filter_map(|pod| pod.metadata.name.clone()).collect()
    }
}

#[test]
fn nothing_has_begun_before_every_watch_has_answered() {
    let mut watched = WatchCache::default();
    let mut index = Index::default();
    for kind in KINDS {
        assert!(!watched.ready(), "{kind:?}");
        let watch = Watch::Kind(kind);
        // A kind that is not installed is an answer too.
        let absent = WatchEvent::Failed { failure: WatchFailure::Absent, reason: "404".to_owned() };
        watched.apply(&mut index, &watch, absent);
    }
    assert!(watched.ready());
    assert_eq!(index.build(&Fleet::default()).problems, []);
}

#[test]
fn pods_are_watched_once_for_pools_with_the_same_selector() {
    let case = Case::new();
    let pods: Vec<&Watch> = case.watched.watches().filter(|w| w.kind() == Kind::Pod).collect();
    assert_eq!(pods, [&pods_of("a")]);
    assert_eq!(pods[0].selector().as_deref(), Some("app=a"));
}

#[test]
fn a_delete_that_was_lost_shows_in_the_next_list() {
    let mut case = Case::new();
    let watch = pods_of("a");
    case.list(&watch, vec![pod("x", 1, "a", true), pod("y", 1, "a", true)]);
    case.apply(&watch, WatchEvent::Listing);
    case.apply(&watch, present(Kind::Pod, pod("x", 1, "a", true)));
    assert_eq!(case.pods(), ["x", "y"], "a list that is under way takes nothing away");
    case.apply(&watch, WatchEvent::Listed);
    case.index.forget_vanished(&[]);
    assert_eq!(case.pods(), ["x"]);
}

#[test]
fn a_list_that_breaks_off_takes_nothing_away() {
    let mut case = Case::new();
    let watch = pods_of("a");
    case.list(&watch, vec![pod("x", 1, "a", true)]);
    case.apply(&watch, WatchEvent::Listing);
    let failed = WatchEvent::Failed {
        failure: WatchFailure::Unavailable,
        reason: "connection refused".to_owned(),
    };
    assert!(case.apply(&watch, failed));
    assert_eq!(case.pods(), ["x"]);
    let problems = case.index.build(&Fleet::default()).problems;
    assert!(problems.iter().any(|p| p.reason.contains("connection refused")), "{problems:?}");
    case.list(&watch, vec![pod("x", 1, "a", true)]);
    let problems = case.index.build(&Fleet::default()).problems;
    assert!(!problems.iter().any(|p| p.code == "Unreadable"), "{problems:?}");
}

#[test]
fn a_change_of_what_is_never_read_is_no_news() {
    let mut case = Case::new();
    let watch = pods_of("a");
    case.list(&watch, vec![pod("x", 1, "a", true)]);
    let mut later = pod("x", 2, "a", true);
    later["metadata"]["managedFields"] = json!([{"manager": "kubelet"}]);
    later["metadata"]["annotations"] = json!({"example.com/seen": "now"});
    later["status"]["conditions"][0]["lastProbeTime"] = json!("2026-01-01T00:00:00Z");
    assert!(!case.apply(&watch, present(Kind::Pod, later)));
    assert!(case.apply(&watch, present(Kind::Pod, pod("x", 3, "a", false))));
}

#[test]
fn of_two_watches_the_newest_version_counts_whatever_comes_last() {
    let mut case = Case::new();
    case.apply(&Watch::Kind(Kind::InferencePoolV1), present(Kind::InferencePoolV1, pool("q", "b")));
    case.watched.follow_references(&mut case.index);
    let both = |version, ready| {
        let mut pod = pod("x", version, "a", ready);
        pod["metadata"]["labels"]["tier"] = json!("t");
        pod
    };
    case.list(&pods_of("a"), vec![both(7, true)]);
    case.list(&pods_of("b"), vec![both(5, false)]);
    let ready = |case: &Case| {
        let pod = case.index.pods().next().unwrap().clone();
        pod.status.unwrap().conditions.unwrap()[0].status.clone()
    };
    assert_eq!(ready(&case), "True");
    let gone = || WatchEvent::Gone(object_key(Kind::Pod, Some("default"), "x"));
    case.apply(&pods_of("a"), gone());
    assert_eq!(case.pods(), ["x"], "the other watch still holds it");
    case.apply(&pods_of("b"), gone());
    assert_eq!(case.pods(), Vec::<String>::new());
}

#[test]
fn a_pool_keeps_its_pods_until_those_of_its_new_selector_are_listed() {
    let mut case = Case::new();
    case.list(&pods_of("a"), vec![pod("x", 1, "a", true)]);
    for name in ["p", "q"] {
        let changed = present(Kind::InferencePoolV1, pool(name, "b"));
        case.apply(&Watch::Kind(Kind::InferencePoolV1), changed);
    }
    case.watched.follow_references(&mut case.index);
    assert_eq!(case.pods(), ["x"]);
    case.list(&pods_of("b"), vec![pod("y", 2, "b", true)]);
    assert!(case.watched.follow_references(&mut case.index));
    assert_eq!(case.pods(), ["y"]);
    assert!(!case.apply(&pods_of("a"), present(Kind::Pod, pod("x", 3, "a", true))), "a late event");
}

#[test]
fn a_selector_that_the_api_server_refuses_selects_no_pod_until_it_is_repaired() {
    let mut case = Case::new();
    case.list(&pods_of("a"), vec![pod("x", 1, "a", true)]);
    let edit = |case: &mut Case, app: &str| {
        for name in ["p", "q"] {
            let changed = present(Kind::InferencePoolV1, pool(name, app));
            case.apply(&Watch::Kind(Kind::InferencePoolV1), changed);
        }
        case.watched.follow_references(&mut case.index);
    };
    edit(&mut case, "no label may be this");
    assert_eq!(case.pods(), ["x"], "nothing is removed before the API server has answered");
    let refused =
        WatchEvent::Failed { failure: WatchFailure::Refused, reason: "unable to parse".into() };
    assert!(case.apply(&pods_of("no label may be this"), refused));
    assert!(case.watched.settled(), "a refusal counts as an answer");
    assert!(case.watched.follow_references(&mut case.index));
    assert_eq!(case.pods(), Vec::<String>::new());
    let reported = case.index.build(&Fleet::default()).problems;
    let reported = reported.iter().find(|problem| problem.code == "Unreadable").unwrap();
    assert!(reported.reason.contains("unable to parse"), "{reported}");

    edit(&mut case, "a");
    case.list(&pods_of("a"), vec![pod("x", 2, "a", true)]);
    case.watched.follow_references(&mut case.index);
    assert_eq!(case.pods(), ["x"]);
    let fleet = case.index.build(&Fleet::default());
    assert_eq!(fleet.problems, [], "a removed watch reports no problem");
}

#[test]
fn a_policy_that_was_never_valid_has_a_stand_in_that_is_no_last_valid_version() {
    let mut case = Case::new();
    let watch = Watch::Kind(Kind::BackendTlsPolicy);
    let broken = |service: &str| {
        json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": service}]},
        })
    };
    for service in ["a", "b"] {
        assert!(case.apply(&watch, present(Kind::BackendTlsPolicy, broken(service))));
        let name = ObjectName { namespace: "default".into(), name: "p".into() };
        let key = Key { kind: Kind::BackendTlsPolicy, name };
        let stored = case.index.stored(&Source::Cluster, &key);
        let Some(Object::UnreadBackendTlsPolicy(policy)) = stored else { panic!("{stored:?}") };
        assert_eq!(policy.spec.target_refs[0].name, service);
        let problems = case.index.build(&Fleet::default()).problems;
        let problem = problems.iter().find(|problem| problem.code == "Unparsable").unwrap();
        assert!(!problem.reason.contains("stays in effect"), "{problem}");
    }
}

#[test]
fn an_object_that_breaks_keeps_its_last_good_version_and_says_so() {
    let mut case = Case::new();
    let watch = Watch::Kind(Kind::InferencePoolV1);
    let mut broken = pool("p", "a");
    broken["spec"]["targetPorts"] = json!([{"number": "many"}]);
    assert!(case.apply(&watch, present(Kind::InferencePoolV1, broken)));
    let fleet = case.index.build(&Fleet::default());
    assert_eq!(fleet.pools.len(), 2);
    let reported = fleet.problems.iter().find(|problem| problem.code == "Unparsable").unwrap();
    assert!(reported.to_string().contains("cluster, InferencePool default/p, spec.targetPorts"));
    assert!(reported.reason.contains("the last valid version stays in effect"), "{reported}");
    case.apply(&watch, WatchEvent::Gone(object_key(Kind::InferencePoolV1, Some("default"), "p")));
    assert!(case.index.build(&Fleet::default()).problems.iter().all(|p| p.code != "Unparsable"));
}

/// As a node's agent looks at a cluster.
fn node_case(peers: bool) -> Case {
    let mut case = Case { index: Index::default(), watched: WatchCache::of_node("n", peers) };
    for kind in AGENT_KINDS {
        case.list(&Watch::Kind(kind), Vec::new());
    }
    case.list(&Watch::Node("n".into()), vec![pod("own", 1, "a", true)]);
    // No route leads to it, and it still defines the roles of its pods.
    case.apply(&Watch::Kind(Kind::InferencePoolV1), present(Kind::InferencePoolV1, pool("p", "a")));
    case.watched.follow_references(&mut case.index);
    case
}

#[test]
fn an_agent_watches_its_own_node_and_the_pods_of_pools_unless_flags_disable_it() {
    let of_pods = |case: &Case| -> Vec<Watch> {
        case.watched.watches().filter(|watch| watch.kind() == Kind::Pod).cloned().collect()
    };
    let own = Watch::Node("n".into());
    assert_eq!(own.fields().as_deref(), Some("spec.nodeName=n"));
    assert_eq!(of_pods(&node_case(false)), std::slice::from_ref(&own));
    let mut case = node_case(true);
    assert_eq!(of_pods(&case), [pods_of("a"), own.clone()]);

    // A pod over both watches is there as long as one of them holds it.
    case.list(&pods_of("a"), vec![pod("own", 1, "a", true), pod("other", 2, "a", true)]);
    assert_eq!(case.pods(), ["other", "own"]);
    let members = |case: &Case| case.index.build(&Fleet::default()).members().count();
    assert_eq!(members(&case), 2);
    let key = |name: &str| object_key(Kind::Pod, Some("default"), name);
    assert!(!case.apply(&pods_of("a"), WatchEvent::Gone(key("own"))));
    assert_eq!(case.pods(), ["other", "own"]);
    assert!(case.apply(&own, WatchEvent::Gone(key("own"))));
    assert_eq!(case.pods(), ["other"]);

    // A failure forgets nothing.
    let away = WatchEvent::Failed { failure: WatchFailure::Unavailable, reason: "refused".into() };
    case.apply(&pods_of("a"), away);
    assert_eq!(case.pods(), ["other"]);
}

#[test]
fn what_an_agent_needs_of_a_pod_is_kept() {
    let mut value = pod("p", 1, "a", true);
    value["spec"] = json!({"nodeName": "n", "hostNetwork": true, "containers": [], "volumes": []});
    let mut case = node_case(false);
    case.apply(&Watch::Node("n".into()), present(Kind::Pod, value));
    let named = |pod: &&k8s_openapi::api::core::v1::Pod| pod.metadata.name.as_deref() == Some("p");
    let spec = case.index.pods().find(named).unwrap().spec.clone().unwrap();
    assert_eq!((spec.node_name.as_deref(), spec.host_network), (Some("n"), Some(true)));
}

#[test]
fn a_gateway_asks_the_agents_and_gateways_of_its_own_namespace_and_no_other() {
    let agent = |namespace: &str, name: &str| {
        let mut value = pod(name, 1, "a", true);
        value["metadata"]["namespace"] = namespace.into();
        for (label, value_of) in AGENT_LABELS {
            value["metadata"]["labels"][label] = value_of.into();
        }
        value["spec"] = json!({"nodeName": "n", "containers": [
            {"name": "agent", "ports": [{"name": "loads", "containerPort": 9912}]},
        ]});
        value
    };
    let mut case = Case::of(WatchCache::of_gateway("system", &default_gateway_labels()));
    let labels = AGENT_LABELS.map(|(name, value)| (name.into(), value.into())).into();
    let own = Watch::Pods { namespace: "system".into(), labels };
    assert!(case.watched.watches().any(|watch| *watch == own));
    case.list(&own, vec![agent("system", "one")]);
    // A pod of a pool with the labels of an agent.
    case.list(&pods_of("a"), vec![agent("default", "impostor")]);
    let gateway = |namespace: &str, name: &str| {
        let mut value = agent(namespace, name);
        value["metadata"]["labels"] = json!(default_gateway_labels());
        value["status"]["podIP"] = format!("10.0.0.{}", name.len()).into();
        value["spec"]["containers"][0]["ports"][0] =
            json!({"name": "admin", "containerPort": 9902});
        value
    };
    let labels = default_gateway_labels();
    let gateways = Watch::Pods { namespace: "system".into(), labels: labels.clone() };
    assert!(case.watched.watches().any(|watch| *watch == gateways));
    case.list(&gateways, vec![gateway("system", "two")]);
    case.list(&pods_of("b"), vec![gateway("default", "impostor-too")]);
    case.index = std::mem::take(&mut case.index).with_gateways(labels);
    let gateways = case.index.build(&Fleet::default()).gateways;
    assert_eq!(gateways, [std::net::SocketAddr::from(([10, 0, 0, 3], 9902))]);
    let agents = case.index.build(&Fleet::default()).agents;
    let reported: Vec<String> = agents.iter().map(|agent| agent.name.to_string()).collect();
    assert_eq!(reported, ["system/one"]);
    assert_eq!(agents[0].address.port(), 9912);
    assert_eq!(agents[0].node.as_deref(), Some("n"));
}
