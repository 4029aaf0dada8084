//! Readiness that is not believed: what the [`ReadinessGuard`](router_core::fleet::ReadinessGuard) is
//! asked, and what its decision changes.

use std::collections::HashSet;
use std::sync::Arc;

use router_core::fleet::{Member, ObjectName, Phase, ReadinessObservation, Role, Verdict, Worker};

use super::super::objects::{Key, Kind};
use super::build::{Build, Subject};
use super::pods::PodView;
use super::{Index, Source};

const REASON: &str = "most of its engines, or of one role, lost their readiness in Kubernetes at once while they \
                      answer the gateway, as after a restart of the API server; they get requests \
                      until Kubernetes reports them as ready again or they stop answering";

/// What is known of a pod, whose engines are `members`.
pub(super) fn observation(
    build: &Build<'_>,
    pod: &PodView<'_>,
    role: Role,
    members: &[Member],
) -> ReadinessObservation {
    let answers = |member: &Member| member.worker.health.verdict() == Verdict::Up;
    ReadinessObservation {
        uid: Arc::clone(&pod.summary.uid),
        role,
        phase: pod.phase(build.index),
        restarts: pod.summary.restarts,
        serves: *pod.source == Source::Cluster && pod.summary.runs && members.iter().all(answers),
    }
}

/// Makes members ready again whose readiness was lost together with that of most others.
pub(super) fn distrust_members(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    pods: &[ReadinessObservation],
    members: &mut [Member],
) {
    let distrusted = judge(build, subject, &subject.to_string(), pods);
    for member in members.iter_mut().filter(|member| distrusted.contains(&member.worker.key.uid)) {
        member.phase = Phase::Ready;
        build.distrusted.push(Arc::clone(&member.worker));
    }
}

/// The endpoints of a Service's port that are ready, or distrusted to be not ready.
pub(super) fn ready_endpoints(
    build: &mut Build<'_>,
    service: &ObjectName,
    port: u16,
    endpoints: Vec<(Arc<Worker>, Phase)>,
) -> Vec<Arc<Worker>> {
    let observed: Vec<ReadinessObservation> = endpoints
        .iter()
        .map(|(worker, phase)| ReadinessObservation {
            uid: Arc::clone(&worker.key.uid),
            role: Role::Unified,
            phase: *phase,
            restarts: 0,
            serves: worker.health.verdict() == Verdict::Up,
        })
        .collect();
    let subject = Subject { source: &Source::Cluster, kind: Kind::Service, name: service };
    let distrusted = judge(build, subject, &format!("{subject} port {port}"), &observed);
    let mut ready = Vec::new();
    for (worker, phase) in endpoints {
        let kept = phase != Phase::Ready && distrusted.contains(&worker.key.uid);
        if kept {
            build.distrusted.push(Arc::clone(&worker));
        }
        if kept || phase == Phase::Ready {
            ready.push(worker);
        }
    }
    ready
}

/// The UIDs of the pods that stay candidates.
fn judge(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    group: &str,
    pods: &[ReadinessObservation],
) -> HashSet<Arc<str>> {
    let judged = build.guard.judge(group, build.now_ms, pods);
    let distrusted: HashSet<Arc<str>> = pods
        .iter()
        .zip(judged)
        .filter(|(_, distrusted)| *distrusted)
        .map(|(pod, _)| Arc::clone(&pod.uid))
        .collect();
    if !distrusted.is_empty() {
        build.add_problem(subject, "", "ReadinessDistrusted", REASON);
    }
    distrusted
}

impl Index {
    /// Marks a pod of a cluster that a new list does not have and whose deletion was not observed. It
    /// stays until [`forget_vanished`](Index::forget_vanished). Returns whether the index has changed.
    pub(in crate::control) fn vanish(&mut self, source: &Source, key: &Key) -> bool {
        let stored = self.objects.get(key).and_then(|sources| sources.get(source));
        let was_ready = stored
            .and_then(|stored| stored.summary.as_ref())
            .is_some_and(|summary| summary.phase == Phase::Ready);
        if !was_ready || *source != Source::Cluster {
            return self.remove(source, key);
        }
        self.vanished.insert(key.name.clone())
    }

    /// Removes vanished pods that are not `distrusted` to be gone, or whose address another pod has.
    /// Returns whether the index has changed.
    pub(in crate::control) fn forget_vanished(&mut self, distrusted: &[Arc<Worker>]) -> bool {
        if self.vanished.is_empty() {
            return false;
        }
        let kept: HashSet<&str> = distrusted.iter().map(|worker| &*worker.key.uid).collect();
        let address = |view: &PodView<'_>| view.summary.address.as_ref().ok().copied();
        let in_use: HashSet<std::net::IpAddr> = self
            .pod_views()
            .filter(|view| !self.has_vanished(&view.summary.name))
            .filter_map(|view| address(&view))
            .collect();
        let gone: Vec<ObjectName> = self
            .pod_views()
            .filter(|view| self.has_vanished(&view.summary.name))
            .filter(|view| {
                !kept.contains(&*view.summary.uid)
                    || address(view).is_none_or(|address| in_use.contains(&address))
            })
            .map(|view| view.summary.name.clone())
            .collect();
        for name in &gone {
            self.remove(&Source::Cluster, &Key { kind: Kind::Pod, name: name.clone() });
        }
        !gone.is_empty()
    }

    pub(super) fn has_vanished(&self, pod: &ObjectName) -> bool {
        self.vanished.contains(pod)
    }
}

#[cfg(test)]
mod tests {
    use router_core::fleet::{Fleet, ReadinessGuard};
    use serde_json::{Value, json};

    use super::super::super::watch::ObservedObject;
    use super::super::CONTROLLER_NAME;
    use super::*;
    use crate::certificates::Certificates;
    use crate::control::document::Content;

    struct Case {
        index: Index,
        fleet: Fleet,
        guard: ReadinessGuard,
    }

    fn pod(at: u8, ready: bool) -> Value {
        let ready = if ready { "True" } else { "False" };
        json!({
            "metadata": {
                "name": format!("p{at}"), "namespace": "default", "uid": format!("u{at}"),
                "labels": {"app": "a"},
            },
            "status": {
                "podIP": format!("10.0.0.{at}"),
                "conditions": [{"type": "Ready", "status": ready}],
                "containerStatuses": [{
                    "name": "engine", "image": "", "imageID": "", "ready": true,
                    "restartCount": 0, "state": {"running": {}},
                }],
            },
        })
    }

    fn key(at: u8) -> Key {
        super::super::super::watch::object_key(Kind::Pod, Some("default"), &format!("p{at}"))
    }

    impl Case {
        /// A pool of four pods that are ready and whose engines answer.
        fn new() -> Case {
            Case::with_ports(&[8000])
        }

        /// A pool of four ready pods, each with an engine that answers on each of these ports.
        fn with_ports(ports: &[u16]) -> Case {
            let ports: Vec<Value> = ports.iter().map(|port| json!({"number": port})).collect();
            let mut case = Case {
                index: Index::default(),
                fleet: Fleet::default(),
                guard: ReadinessGuard::new(50),
            };
            for (kind, name, spec) in [
                (Kind::GatewayClass, "c", json!({"controllerName": CONTROLLER_NAME})),
                (
                    Kind::Gateway,
                    "g",
                    json!({
                        "gatewayClassName": "c",
                        "listeners": [{"name": "l", "protocol": "HTTP", "port": 80}],
                    }),
                ),
                (
                    Kind::HttpRoute,
                    "r",
                    json!({
                        "parentRefs": [{"name": "g"}],
                        "rules": [{"backendRefs": [{
                            "group": "inference.networking.k8s.io", "kind": "InferencePool",
                            "name": "pool",
                        }]}],
                    }),
                ),
                (
                    Kind::InferencePoolV1,
                    "pool",
                    json!({
                        "selector": {"matchLabels": {"app": "a"}}, "targetPorts": ports,
                    }),
                ),
            ] {
                let metadata = json!({"name": name, "namespace": "default"});
                case.apply(kind, json!({"metadata": metadata, "spec": spec}));
            }
            (1..=4).for_each(|at| case.apply(Kind::Pod, pod(at, true)));
            case.build();
            for worker in case.fleet.workers() {
                worker.health.probe_passed(0);
            }
            case
        }

        fn apply(&mut self, kind: Kind, value: Value) {
            let observed = ObservedObject::read(kind, value).unwrap();
            let Content::Object(object) = observed.content else {
                panic!("{:?}", observed.problems)
            };
            self.index.apply(Source::Cluster, *object);
        }

        fn build(&mut self) {
            let none = Certificates::default();
            (self.fleet, _) = self.index.build_guarded(&self.fleet, &none, &mut self.guard, 1_000);
        }

        fn ready(&mut self) -> Vec<String> {
            self.build();
            if self.index.forget_vanished(&self.fleet.distrusted) {
                self.build();
            }
            let members = self.fleet.members();
            let ready = members.filter(|(_, member)| member.phase == Phase::Ready);
            ready.map(|(_, member)| member.worker.name.to_string()).collect()
        }

        fn problems(&self) -> Vec<&str> {
            self.fleet.problems.iter().map(|problem| problem.code).collect()
        }
    }

    #[test]
    fn a_pool_whose_pods_are_all_marked_at_once_stays_ready_and_has_a_problem() {
        let mut case = Case::new();
        (1..=4).for_each(|at| case.apply(Kind::Pod, pod(at, false)));
        assert_eq!(case.ready().len(), 4);
        assert_eq!(case.problems(), ["ReadinessDistrusted"]);
        assert_eq!(case.fleet.distrusted.len(), 4);
        let text = serde_json::to_value(&case.fleet).unwrap();
        assert_eq!(text["distrusted"][0], "default/p1");
        // An engine that stops answering leaves, and one that is reported as ready is trusted.
        case.fleet.distrusted[3].health.unreachable();
        assert_eq!(case.ready(), ["default/p1", "default/p2", "default/p3"]);
        (1..=4).for_each(|at| case.apply(Kind::Pod, pod(at, true)));
        assert_eq!(case.ready().len(), 4);
        assert!(case.problems().is_empty() && case.fleet.distrusted.is_empty());
    }

    #[test]
    fn one_pod_that_is_marked_leaves_at_once() {
        let mut case = Case::new();
        case.apply(Kind::Pod, pod(2, false));
        assert_eq!(case.ready(), ["default/p1", "default/p3", "default/p4"]);
        assert!(case.problems().is_empty());
    }

    #[test]
    fn pods_that_restart_or_are_deleted_leave_even_all_at_once() {
        let mut waiting = pod(1, false);
        waiting["status"]["containerStatuses"][0]["state"] = json!({"waiting": {}});
        let mut restarted = pod(2, false);
        restarted["status"]["containerStatuses"][0]["restartCount"] = 1.into();
        let mut deleted = pod(3, false);
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let mut failed = pod(4, false);
        failed["status"]["phase"] = "Failed".into();
        let mut case = Case::new();
        for pod in [waiting, restarted, deleted, failed] {
            case.apply(Kind::Pod, pod);
        }
        assert_eq!(case.ready(), [""; 0]);
    }

    #[test]
    fn pods_that_most_vanish_from_a_list_stay_until_they_stop_answering() {
        let mut case = Case::new();
        (1..=3).for_each(|at| assert!(case.index.vanish(&Source::Cluster, &key(at))));
        assert_eq!(case.ready().len(), 4);
        assert_eq!(case.problems(), ["ReadinessDistrusted"]);
        // Another pod has the address of the first, the second is back, and the third is down.
        let mut other = pod(1, true);
        other["metadata"]["name"] = "p9".into();
        other["metadata"]["uid"] = "u9".into();
        case.apply(Kind::Pod, other);
        case.apply(Kind::Pod, pod(2, true));
        let third = case.fleet.members().find(|(_, member)| &*member.worker.name == "default/p3");
        third.unwrap().1.worker.health.unreachable();
        assert_eq!(case.ready(), ["default/p2", "default/p4", "default/p9"]);
        assert_eq!(case.fleet.pools[0].members.len(), 3, "what is not kept is gone");
        // A single pod that vanishes is believed to be gone.
        case.index.vanish(&Source::Cluster, &key(2));
        assert_eq!(case.ready(), ["default/p4", "default/p9"]);
    }

    #[test]
    fn pods_of_several_ports_that_vanish_stay_until_one_of_their_engines_stops_answering() {
        let mut case = Case::with_ports(&[8000, 8001]);
        (1..=3).for_each(|at| assert!(case.index.vanish(&Source::Cluster, &key(at))));
        assert_eq!(case.ready().len(), 8);
        let one =
            case.fleet.members().find(|(_, member)| &*member.worker.name == "default/p3:8001");
        one.unwrap().1.worker.health.unreachable();
        let ready = case.ready();
        assert_eq!(ready.len(), 6);
        assert!(!ready.iter().any(|name| name.starts_with("default/p3")), "{ready:?}");
    }

    /// The four pods behind a Service without slices, at this port.
    fn with_service(target_port: u16) -> Case {
        let mut case = Case::new();
        let metadata = |name: &str| json!({"name": name, "namespace": "default"});
        let ports = json!([{"port": 80, "targetPort": target_port}]);
        case.apply(
            Kind::Service,
            json!({"metadata": metadata("s"), "spec": {"selector": {"app": "a"}, "ports": ports}}),
        );
        case.apply(
            Kind::HttpRoute,
            json!({"metadata": metadata("s"), "spec": {
                "parentRefs": [{"name": "g"}],
                "rules": [{
                    "matches": [{"path": {"value": "/s"}}],
                    "backendRefs": [{"name": "s", "port": 80}],
                }],
            }}),
        );
        case.build();
        assert_eq!(case.fleet.services[0].endpoints.len(), 4);
        case
    }

    #[test]
    fn pods_that_most_vanish_stay_endpoints_of_a_service_without_slices_if_they_answered() {
        // Nothing has asked port 9000 yet; the pool's probes have asked 8000.
        for (port, endpoints) in [(9000, 1), (8000, 4)] {
            let mut case = with_service(port);
            (1..=3).for_each(|at| assert!(case.index.vanish(&Source::Cluster, &key(at))));
            assert_eq!(case.ready().len(), 4, "the pool keeps them");
            assert_eq!(case.fleet.services[0].endpoints.len(), endpoints, "port {port}");
        }
    }

    #[test]
    fn pods_that_are_not_ready_are_no_endpoints_and_their_successors_are_at_the_same_address() {
        let mut case = with_service(8000);
        case.apply(Kind::Pod, pod(2, false));
        let mut successor = pod(2, true);
        successor["metadata"]["name"] = "p9".into();
        successor["metadata"]["uid"] = "u9".into();
        case.build();
        assert_eq!(case.fleet.services[0].endpoints.len(), 3);
        case.apply(Kind::Pod, successor);
        case.build();
        let endpoints = &case.fleet.services[0].endpoints;
        let names: Vec<&str> = endpoints.iter().map(|worker| &*worker.name).collect();
        assert_eq!(names, ["default/p1", "default/p9", "default/p3", "default/p4"]);
    }
}
