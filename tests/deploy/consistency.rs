//! References between objects: the names, labels, ports and volumes exist.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::rendering::{ERDMA, LOCKED_MEMORY, Objects, WAYS, kustomize};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[name].as_array().into_iter().flatten()
}

fn of_kind<'a>(objects: &'a Objects, kind: &str) -> Vec<&'a Value> {
    objects.values().filter(|object| object["kind"] == kind).collect()
}

/// Deployments and DaemonSets.
fn workloads(objects: &Objects) -> Vec<&Value> {
    [of_kind(objects, "Deployment"), of_kind(objects, "DaemonSet")].concat()
}

/// Whether every label of `selector` is on the pods of a workload.
fn selects(selector: &Value, workload: &Value) -> bool {
    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    let selector = selector.as_object().expect("labels");
    !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
}

#[test]
fn selectors_match_the_labels_of_their_pods() {
    for way in &WAYS {
        let objects = kustomize(way.folder);
        let workloads = workloads(&objects);
        assert_eq!(workloads.len(), 2, "{}", way.folder);
        for workload in &workloads {
            assert!(selects(&workload["spec"]["selector"]["matchLabels"], workload));
        }
        let mut selectors = Vec::new();
        for (kind, pointer) in [
            ("Service", "/spec/selector"),
            ("PodDisruptionBudget", "/spec/selector/matchLabels"),
            ("NetworkPolicy", "/spec/podSelector/matchLabels"),
            ("PodMonitor", "/spec/selector/matchLabels"),
        ] {
            let all = of_kind(&objects, kind).into_iter();
            selectors.extend(all.map(|object| (kind, object.pointer(pointer).expect(kind))));
        }
        for (kind, selector) in selectors {
            let found = workloads.iter().filter(|workload| selects(selector, workload)).count();
            assert_eq!(found, 1, "{kind} {selector} of {}", way.folder);
        }
        for scaler in of_kind(&objects, "HorizontalPodAutoscaler") {
            let target = &scaler["spec"]["scaleTargetRef"];
            let named = |workload: &&&Value| {
                workload["kind"] == target["kind"] && workload["metadata"]["name"] == target["name"]
            };
            let target = workloads.iter().find(named).expect("what is scaled is there");
            assert_eq!(
                target["spec"]["replicas"],
                Value::Null,
                "a fixed number would fight with the autoscaler"
            );
            assert!(scaler["spec"]["minReplicas"].as_u64() >= Some(2));
        }
    }
}

#[test]
fn accounts_and_roles_that_are_named_exist_and_no_right_is_a_wildcard() {
    for way in &WAYS {
        let objects = kustomize(way.folder);
        let names = |kind: &str| -> BTreeSet<String> {
            let all = of_kind(&objects, kind).into_iter();
            all.map(|object| text(&object["metadata"]["name"]).to_owned()).collect()
        };
        let accounts = names("ServiceAccount");
        for workload in workloads(&objects) {
            let account = &workload["spec"]["template"]["spec"]["serviceAccountName"];
            assert!(accounts.contains(text(account)), "{account}");
        }
        for kind in ["Role", "ClusterRole"] {
            let roles = names(kind);
            for binding in of_kind(&objects, &format!("{kind}Binding")) {
                assert_eq!(binding["roleRef"]["kind"], kind);
                assert!(roles.contains(text(&binding["roleRef"]["name"])), "{binding}");
                for subject in list(binding, "subjects") {
                    assert!(accounts.contains(text(&subject["name"])), "{subject}");
                    assert_eq!(subject["namespace"], "pd-router-system");
                }
            }
            for role in of_kind(&objects, kind) {
                assert!(!role["rules"].to_string().contains('*'), "{role}");
            }
        }
        // An agent only looks.
        let agent = &objects["rbac.authorization.k8s.io/v1 ClusterRole /pd-router-agent"];
        for rule in list(agent, "rules") {
            assert_eq!(rule["verbs"], json!(["list", "watch"]));
        }
    }
}

#[test]
fn probes_hooks_and_mounts_name_existing_ports_and_volumes() {
    for way in &WAYS {
        for workload in workloads(&kustomize(way.folder)) {
            let pod = &workload["spec"]["template"]["spec"];
            let volumes: BTreeSet<&str> =
                list(pod, "volumes").map(|volume| text(&volume["name"])).collect();
            let containers = list(pod, "containers").chain(list(pod, "initContainers"));
            for container in containers {
                for mount in list(container, "volumeMounts") {
                    assert!(volumes.contains(text(&mount["name"])), "{mount}");
                }
                assert!(container["resources"]["limits"]["memory"].is_string(), "{container}");
                assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
            }
            for container in list(pod, "containers") {
                let ports: BTreeSet<&str> =
                    list(container, "ports").map(|port| text(&port["name"])).collect();
                for (probe, path) in [
                    ("startupProbe", "/livez"),
                    ("livenessProbe", "/livez"),
                    ("readinessProbe", "/readyz"),
                ] {
                    let get = &container[probe]["httpGet"];
                    assert_eq!(get["path"], path, "{probe}");
                    assert!(ports.contains(text(&get["port"])), "{probe}");
                }
            }
        }
    }
}

#[test]
fn a_gateway_has_a_day_to_drain_and_no_privileges() {
    for way in &WAYS {
        let objects = kustomize(way.folder);
        let deployment = &objects["apps/v1 Deployment pd-router-system/pd-router-gateway"];
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
        let sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        let sleep = sleep.expect("seconds");
        // --drain-timeout is 24 hours, and the end takes some seconds more.
        assert!(sleep >= 5 && grace >= 24 * 3600 + sleep + 5, "{grace} {sleep}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    }
}

#[test]
fn an_agent_has_the_privileges_that_it_needs_and_no_more() {
    for way in &WAYS {
        let objects = kustomize(way.folder);
        let agent = &objects["apps/v1 DaemonSet pd-router-system/pd-router-agent"];
        let pod = &agent["spec"]["template"]["spec"];
        assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&json!(true), &json!(true)));
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        // A privileged container must not forbid escalation: the API server refuses that.
        let (privileged, escalates) = match way.folder == ERDMA {
            true => (json!(true), Value::Null),
            false => (Value::Null, json!(false)),
        };
        assert_eq!(context["privileged"], privileged, "{}", way.folder);
        assert_eq!(context["allowPrivilegeEscalation"], escalates, "{}", way.folder);
        let mut needed = vec!["BPF", "NET_ADMIN", "PERFMON", "SYS_PTRACE"];
        if way.folder == LOCKED_MEMORY {
            needed.push("SYS_RESOURCE");
        }
        let capabilities = json!({"drop": ["ALL"], "add": needed});
        assert_eq!(context["capabilities"], capabilities);
        // What the privileged container mounts reaches the node, and the agent from there.
        let mounts = &pod["initContainers"][0];
        assert_eq!(mounts["securityContext"]["privileged"], true);
        for (container, propagation) in [(mounts, "Bidirectional"), (container, "HostToContainer")]
        {
            for name in ["bpf", "tracing", "run"] {
                let mount = list(container, "volumeMounts").find(|mount| mount["name"] == name);
                assert_eq!(mount.expect(name)["mountPropagation"], propagation, "{name}");
            }
        }
    }
}
