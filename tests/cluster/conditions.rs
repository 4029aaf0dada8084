//! Every condition and reason in the status of objects, as the API server has them: a table of cases,
//! each in a namespace of its own, in `golden/conditions.txt`. `UPDATE_GOLDEN=1` overwrites it.

use std::path::Path;
use std::time::Duration;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use router_tests::eventually;
use serde_json::{Value, json};

use crate::{ELECTED, Scene};

/// Time without change after which conditions count as final with `UPDATE_GOLDEN`.
const SETTLED: Duration = Duration::from_secs(5);

const WELL: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: pd-router
  listeners: [{name: l, protocol: HTTP, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g}]
  rules:
  - backendRefs: [{group: inference.networking.x-k8s.io, kind: InferencePool, name: p}]
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p}
spec: {selector: {app: a}, targetPortNumber: 8000}
---
apiVersion: inferenceextension.alibabacloud.com/v1alpha1
kind: InferenceTrafficPolicy
metadata: {name: t}
spec:
  poolRef: {name: p}
  profile: {pd: {pdRoleLabelName: role, kvTransfer: {bootstrapPort: 34000}}}
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {name: b}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]
  timeout: {http: {requestTimeout: 24h}}
"#;

/// A case: its namespace, what is replaced in [`WELL`] by what, and the labels of its ready pods.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

const BOTH: &[&str] = &["role=prefill", "role=decode"];
const ALIAS: &[&str] =
    &["rbg.workloads.x-k8s.io/role-name=prefill", "rbg.workloads.x-k8s.io/role-name=decode"];
const SERVICE: &str = "[{name: gone, port: 80}]";
const POOL_REF: &str = "[{group: inference.networking.x-k8s.io, kind: InferencePool, name: p}]";
const V1_REF: &str = "[{group: inference.networking.k8s.io, kind: InferencePool, name: p}]";
const REGEX: &str = "rules:
  - matches: [{path: {type: RegularExpression, value: /a(}}]
    backendRefs: [{group: inference.networking.x-k8s.io, kind: InferencePool, name: p}]
  - backendRefs:";
const PICKER: &str = "targetPortNumber: 8000, extensionRef: {name: epp}}";
const FILTER: &str = "rules:
  - filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}]
    backendRefs:";
const MIRROR: &str = "rules:
  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}}}]
    backendRefs:";

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("well", "", "", BOTH),
    ("listener-protocol", "protocol: HTTP,", "protocol: TCP,", BOTH),
    ("listener-without-secret", "protocol: HTTP,", "protocol: HTTPS, tls: {certificateRefs: [{name: s}]},", BOTH),
    ("listener-secret-of-others", "protocol: HTTP,", "protocol: HTTPS, tls: {certificateRefs: [{name: s, namespace: kube-system}]},", BOTH),
    ("listener-twice", "port: 80}", "port: 80}, {name: m, protocol: HTTP, port: 80}", BOTH),
    ("listener-both-protocols", "port: 80}", "port: 80}, {name: m, protocol: HTTPS, port: 80, hostname: a.b, tls: {certificateRefs: [{name: s}]}}", BOTH),
    ("listener-kinds", "port: 80}", "port: 80, allowedRoutes: {kinds: [{kind: TCPRoute}]}}", BOTH),
    ("gateway-parameters", "gatewayClassName: pd-router", "gatewayClassName: pd-router\n  infrastructure: {parametersRef: {group: a.b, kind: C, name: d}}", BOTH),
    ("route-section", "{name: g}]", "{name: g, sectionName: gone}]", BOTH),
    ("route-namespace", "{name: g}]", "{name: g, namespace: case-well}]", BOTH),
    ("route-hostname", "port: 80}", "port: 80, hostname: a.b}", BOTH),
    ("route-hostname-misses", "{name: g}]\n", "{name: g, sectionName: l}]\n  hostnames: [c.d]\n", BOTH),
    ("route-pool-gone", "name: p}]", "name: gone}]", BOTH),
    ("route-service-gone", POOL_REF, SERVICE, BOTH),
    ("route-kind", "kind: InferencePool, name: p}", "kind: Thing, name: p}", BOTH),
    ("route-grant", "name: p}]", "name: p, namespace: case-well}]", BOTH),
    ("route-regex", "rules:\n  - backendRefs:", REGEX, BOTH),
    ("route-all-regex", "rules:\n  - backendRefs:", "rules:\n  - matches: [{path: {type: RegularExpression, value: /a(}}]\n    backendRefs:", BOTH),
    ("route-filter", "rules:\n  - backendRefs:", FILTER, BOTH),
    ("route-mirror-gone", "rules:\n  - backendRefs:", MIRROR, BOTH),
    ("pool-v1", POOL_REF, V1_REF, BOTH),
    ("pool-picker", "targetPortNumber: 8000}", PICKER, BOTH),
    ("policy-pool-gone", "poolRef: {name: p}", "poolRef: {name: q}", BOTH),
    ("policy-default-port", ", kvTransfer: {bootstrapPort: 34000}", "", BOTH),
    ("policy-unknown-field", "{bootstrapPort: 34000}", "{bootstrapPort: 34000, transport: rdma}", BOTH),
    ("policy-runtime", "poolRef: {name: p}", "poolRef: {name: p}\n  modelServerRuntime: vllm", BOTH),
    ("pods-alias", "", "", ALIAS),
    ("pods-no-label", "", "", &["tier=a"]),
    ("pods-no-decode", "", "", &["role=prefill"]),
    ("pods-no-prefill", "", "", &["role=decode"]),
    ("pods-none", "", "", &[]),
    ("timeout-unread", "timeout:", "circuitBreaker: {maxPendingRequests: 1}\n  timeout:", BOTH),
    ("timeout-bad", "24h", "a day", BOTH),
    ("timeout-target", "kind: HTTPRoute, name: r}]", "kind: HTTPRoute, name: gone}]", BOTH),
    ("timeout-kind", "kind: HTTPRoute, name: r}]", "kind: GRPCRoute, name: r}]", BOTH),
];

/// The v1 pool of the case that names one.
const V1_POOL: &str = "
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p}
spec: {selector: {matchLabels: {app: a}}, targetPorts: [{number: 8000}]}
";

fn namespace(case: &str) -> String {
    format!("case-{case}")
}

/// Everything of a case, with its namespace in every object.
fn documents((case, from, to, _): &Case) -> String {
    assert!(from.is_empty() || WELL.contains(from), "{case}: {from} is not in the documents");
    let mut text = if from.is_empty() { WELL.to_owned() } else { WELL.replacen(from, to, 1) };
    if *case == "pool-v1" {
        text.push_str(V1_POOL);
    }
    let named = format!("metadata: {{namespace: {}, ", namespace(case));
    let made = format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n---",
        namespace(case)
    );
    made + &text.replace("metadata: {", &named)
}

async fn put_pods(scene: &Scene, (case, _, _, pods): &Case) {
    use k8s_openapi::api::core::v1::Pod;
    let api: Api<Pod> = Api::namespaced(scene.client.clone(), &namespace(case));
    for (at, label) in pods.iter().enumerate() {
        let (key, value) = label.split_once('=').expect("KEY=VALUE");
        let name = format!("pod-{at}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "a", key: value}},
            "spec": {"nodeName": "node", "containers": [{"name": "engine", "image": "none"}]},
        });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        api.create(&kube::api::PostParams::default(), &pod).await.expect("creating a pod");
        let status = json!({"status": {
            "phase": "Running", "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patch = Patch::Strategic(&status);
        let patched = api.patch_status(&name, &PatchParams::default(), &patch).await;
        patched.expect("patching a pod's status");
    }
}

/// ` Type=Status/Reason` for each condition, sorted; ours alone.
fn spelled(conditions: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = conditions.as_array().into_iter().flatten();
    let mut all: Vec<String> = all
        .map(|c| format!(" {}={}/{}", text(&c["type"]), text(&c["status"]), text(&c["reason"])))
        .collect();
    all.sort();
    all.concat()
}

/// The conditions of one object, one line for each of its parts.
fn lines(kind: &str, object: &DynamicObject) -> Vec<String> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let status = object.data.get("status").cloned().unwrap_or_default();
    let mut parts = vec![(String::new(), status["conditions"].clone())];
    for (list, what) in [
        ("listeners", "listener"),
        ("parents", "parent"),
        ("parent", "parent"),
        ("ancestors", "ancestor"),
    ] {
        for part in status[list].as_array().into_iter().flatten() {
            let reference =
                ["parentRef", "ancestorRef"].iter().find_map(|at| part[*at]["name"].as_str());
            let named = part["name"].as_str().or(reference).unwrap_or_default();
            parts.push((format!(", {what} {named}"), part["conditions"].clone()));
        }
    }
    let parts = parts.iter().filter(|(_, conditions)| !conditions.is_null());
    parts
        .map(|(part, conditions)| {
            for condition in conditions.as_array().into_iter().flatten() {
                let seen = condition["observedGeneration"].as_i64();
                assert!(seen.is_none() || seen <= generation, "{kind} {name}: {condition}");
            }
            format!("  {kind} {name}{part}:{}", spelled(conditions))
        })
        .collect()
}

/// The conditions of every object of every case.
async fn conditions_of_all(scene: &Scene) -> String {
    const KINDS: [(&str, &str, &str); 6] = [
        ("gateway.networking.k8s.io/v1", "Gateway", "gateways"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"),
        ("inference.networking.x-k8s.io/v1alpha2", "InferencePool", "inferencepools"),
        ("inference.networking.k8s.io/v1", "InferencePool", "inferencepools"),
        (
            "inferenceextension.alibabacloud.com/v1alpha1",
            "InferenceTrafficPolicy",
            "inferencetrafficpolicies",
        ),
        ("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy", "backendtrafficpolicies"),
    ];
    let mut objects = Vec::new();
    for (api_version, kind, plural) in KINDS {
        let all = scene.everywhere(api_version, kind, plural);
        let list = all.list(&Default::default()).await.expect("listing");
        objects.extend(list.items.into_iter().map(|object| (kind, object)));
    }
    let mut text = String::new();
    for (case, ..) in CASES {
        text.push_str(&format!("{case}\n"));
        let namespace = namespace(case);
        for (kind, object) in &objects {
            if object.metadata.namespace.as_deref() == Some(namespace.as_str()) {
                lines(kind, object).iter().for_each(|line| text.push_str(&format!("{line}\n")));
            }
        }
    }
    text
}

// kubectl blocks a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_gets_its_conditions() {
    let scene = Scene::start().await;
    let gateway = scene.replica().await;
    let all: String = CASES.iter().map(documents).collect::<Vec<_>>().join("\n");
    // The old API server does not know every rule of newer definitions; ours are checked.
    scene.cluster.kubectl(&["create", "--validate=false", "-f", "-"], &all);
    for case in CASES {
        put_pods(&scene, case).await;
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/golden/conditions.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let mut last = (String::new(), std::time::Instant::now());
        let text = eventually("conditions no longer change", 2 * ELECTED, async || {
            let now = conditions_of_all(&scene).await;
            if now != last.0 {
                last = (now.clone(), std::time::Instant::now());
            }
            (last.1.elapsed() > SETTLED && now.contains("Programmed=True")).then_some(now)
        })
        .await;
        std::fs::write(&golden, text).expect("writing the table");
        return;
    }
    let expected = std::fs::read_to_string(&golden).expect("the table of conditions");
    let mut now = String::new();
    let deadline = std::time::Instant::now() + 2 * ELECTED;
    eventually(
        "all conditions are as in the table, or the time is over",
        3 * ELECTED,
        async || {
            now = conditions_of_all(&scene).await;
            (now == expected || std::time::Instant::now() > deadline).then_some(())
        },
    )
    .await;
    assert_eq!(now, expected, "not as in {}", golden.display());

    // A status is written once: nothing is written while nothing changes.
    let versions = async || {
        let gateways = scene.everywhere("gateway.networking.k8s.io/v1", "Gateway", "gateways");
        let list = gateways.list(&Default::default()).await.expect("listing");
        list.items.iter().map(|one| one.metadata.resource_version.clone()).collect::<Vec<_>>()
    };
    let before = versions().await;
    // A change that concerns no condition makes a new fleet and writes no status.
    let generation = async || gateway.fleet().await["generation"].as_u64();
    let was = generation().await;
    let services = scene.api("v1", "Service", "services");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "quiet"},
        "spec": {"ports": [{"port": 80}]},
    });
    let service: DynamicObject = serde_json::from_value(service).expect("a Service");
    services.create(&Default::default(), &service).await.expect("creating a Service");
    eventually("a further fleet", ELECTED, async || (generation().await > was).then_some(())).await;
    assert_eq!(versions().await, before);
}
