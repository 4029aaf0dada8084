//! Each condition and its reason, as a table of cases.

use router_core::fleet::ListenPort;

use super::super::super::golden;
use super::super::Exposure;
use super::*;

const CLASS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: c, generation: 3}
spec: {controllerName: pd-router.io/gateway-controller}
";
const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, generation: 4}
spec: {gatewayClassName: c, listeners: [{name: l, protocol: HTTP, port: 80}]}
";
const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, generation: 5}
spec:
  parentRefs: [{name: g}, {name: of-others}]
  rules: [{backendRefs: [{group: inference.networking.x-k8s.io, kind: InferencePool, name: p}]}]
";
const POOL: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p, generation: 6}
spec: {selector: {app: a}, targetPortNumber: 8000}
";
const POLICY: &str = "
apiVersion: inferenceextension.alibabacloud.com/v1alpha1
kind: InferenceTrafficPolicy
metadata: {name: t, generation: 7}
spec: {poolRef: {name: p}, profile: {pd: {pdRoleLabelName: role, kvTransfer: {bootstrapPort: 34000}}}}
";

fn pod(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: a, {labels}}}}}\n\
         status: {{podIP: 10.0.0.1, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

/// The statuses of a cluster that holds these documents.
fn statuses(documents: &[&str]) -> Vec<ObjectStatus> {
    let mut index = Index::default();
    for text in documents {
        index.apply(Source::Cluster, golden::object(text));
    }
    let fleet = index.build(&Fleet::default());
    index.statuses(&fleet)
}

/// `Type=Status/Reason` of every condition of the objects of this kind.
fn conditions_of(statuses: &[ObjectStatus], kind: Kind) -> Vec<String> {
    let standing = statuses.iter().find(|standing| standing.key.kind == kind).unwrap();
    let conditions: Vec<Value> = match &standing.patch {
        StatusPatch::Conditions(conditions) | StatusPatch::Class { conditions, .. } => {
            conditions.clone()
        }
        StatusPatch::Gateway { conditions, listeners, .. } => {
            let of_listeners = listeners.iter().flat_map(|l| l["conditions"].as_array().unwrap());
            conditions.iter().chain(of_listeners).cloned().collect()
        }
        StatusPatch::Parents(entries)
        | StatusPatch::Ancestors(entries)
        | StatusPatch::Parent { ours: entries, .. } => {
            entries.iter().flat_map(|e| e["conditions"].as_array().unwrap()).cloned().collect()
        }
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let spelled =
        |c: &Value| format!("{}={}/{}", text(&c["type"]), text(&c["status"]), text(&c["reason"]));
    conditions.iter().map(spelled).collect()
}

#[test]
fn accepted_objects_get_conditions_with_the_observed_generation() {
    let prefill = pod("prefill-0", "role: prefill");
    let decode = pod("decode-0", "role: decode");
    let all = statuses(&[CLASS, GATEWAY, ROUTE, POOL, POLICY, &prefill, &decode]);
    assert_eq!(conditions_of(&all, Kind::GatewayClass), ["Accepted=True/Accepted"]);
    assert_eq!(
        conditions_of(&all, Kind::Gateway),
        [
            "Accepted=True/Accepted",
            "Programmed=False/AddressNotAssigned",
            "Accepted=True/Accepted",
            "ResolvedRefs=True/ResolvedRefs",
            "Conflicted=False/NoConflicts",
            "Programmed=True/Programmed",
        ]
    );
    let resolved = ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"];
    assert_eq!(
        conditions_of(&all, Kind::HttpRoute),
        resolved,
        "the other parent has its own controller"
    );
    assert_eq!(conditions_of(&all, Kind::InferencePoolV1Alpha2), resolved);
    assert_eq!(
        conditions_of(&all, Kind::InferenceTrafficPolicy),
        ["Accepted=True/Accepted", "Ready=True/Ready"]
    );
    let gateway = all.iter().find(|standing| standing.key.kind == Kind::Gateway).unwrap();
    let StatusPatch::Gateway { listeners, .. } = &gateway.patch else { panic!("{gateway:?}") };
    assert_eq!(listeners[0]["attachedRoutes"], 1);
    assert_eq!(listeners[0]["supportedKinds"][0]["kind"], "HTTPRoute");
    assert_eq!(listeners[0]["conditions"][0]["observedGeneration"], 4);
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: s, namespace: own, labels: {pd-router.io/gateway-uid: u}}
spec: {type: LoadBalancer, ports: [{port: 80, targetPort: 20080}]}
";
const BALANCED: &str = "status: {loadBalancer: {ingress: [{ip: 192.0.2.7}]}}\n";

#[test]
fn a_gateway_is_programmed_once_its_service_leads_here_and_has_an_address() {
    let gateway = GATEWAY.replace("{name: g,", "{name: g, uid: u,");
    let balanced = SERVICE.to_owned() + BALANCED;
    for (services, expected) in [
        (&[][..], "Programmed=False/Pending"),
        (&[SERVICE][..], "Programmed=False/AddressNotAssigned"),
        (&[balanced.as_str()][..], "Programmed=True/Programmed"),
    ] {
        let mut index = Index::with_exposure(Exposure::Each { namespace: "own".into() });
        for text in [CLASS, &gateway].iter().copied().chain(services.iter().copied()) {
            index.apply(Source::Cluster, golden::object(text));
        }
        let fleet = index.build(&Fleet::default());
        assert_eq!(
            fleet.ports(),
            services.first().map(|_| ListenPort { number: 20_080, secure: false }).as_slice()
        );
        let all = index.statuses(&fleet);
        let conditions = conditions_of(&all, Kind::Gateway);
        assert_eq!(conditions[1], expected, "{conditions:?}");
        assert_eq!(fleet.problems, [], "waiting for a Service is no problem");
    }
}

/// A text of the good documents, its replacement, the object that it concerns, and the condition that follows.
#[rustfmt::skip]
const WRONG: [(&str, &str, Kind, &str); 16] = [
    ("protocol: HTTP", "protocol: HTTPS", Kind::Gateway, "ResolvedRefs=False/InvalidCertificateRef"),
    ("protocol: HTTP", "protocol: HTTPS", Kind::Gateway, "Programmed=False/Invalid"),
    ("protocol: HTTP", SECRET, Kind::Gateway, "ResolvedRefs=False/InvalidCertificateRef"),
    ("protocol: HTTP", OTHERS_SECRET, Kind::Gateway, "ResolvedRefs=False/RefNotPermitted"),
    ("port: 80}", BOTH_PROTOCOLS, Kind::Gateway, "Conflicted=True/ProtocolConflict"),
    ("gatewayClassName: c,", PARAMETERS, Kind::Gateway, "Accepted=False/InvalidParameters"),
    ("protocol: HTTP", "protocol: TCP", Kind::Gateway, "Accepted=False/UnsupportedProtocol"),
    ("protocol: HTTP", "protocol: TCP", Kind::Gateway, "Accepted=False/ListenersNotValid"),
    ("port: 80", TCP_ROUTES, Kind::Gateway, "ResolvedRefs=False/InvalidRouteKinds"),
    ("port: 80}", SAME_PORT, Kind::Gateway, "Conflicted=True/HostnameConflict"),
    ("{name: g},", "{name: g, sectionName: gone},", Kind::HttpRoute, "Accepted=False/NoMatchingParent"),
    ("port: 80", TCP_ROUTES, Kind::HttpRoute, "Accepted=False/NotAllowedByListeners"),
    ("name: p}]", "name: gone}]", Kind::HttpRoute, "ResolvedRefs=False/BackendNotFound"),
    ("name: p}]", "name: p, namespace: elsewhere}]", Kind::HttpRoute, "ResolvedRefs=False/RefNotPermitted"),
    ("kind: InferencePool, name: p}", "kind: Thing, name: p}", Kind::HttpRoute, "ResolvedRefs=False/InvalidKind"),
    ("poolRef: {name: p}", "poolRef: {name: q}", Kind::InferenceTrafficPolicy, "Accepted=False/TargetNotFound"),
];
const TCP_ROUTES: &str = "port: 80, allowedRoutes: {kinds: [{kind: TCPRoute}]}";
const SECRET: &str = "protocol: HTTPS, tls: {certificateRefs: [{name: s}]}";
const OTHERS_SECRET: &str = "protocol: HTTPS, tls: {certificateRefs: [{name: s, namespace: o}]}";
const BOTH_PROTOCOLS: &str = "port: 80}, {name: m, protocol: HTTPS, port: 80, hostname: h.example}";
const PARAMETERS: &str = "gatewayClassName: c, \
    infrastructure: {parametersRef: {group: \"\", kind: ConfigMap, name: x}},";
const SAME_PORT: &str = "port: 80}, {name: m, protocol: HTTP, port: 80}";

#[test]
fn a_listener_lists_the_kinds_that_it_serves_and_counts_routes_without_a_certificate() {
    for (protocol, kinds, routes) in
        [("protocol: HTTP", 1, 1), ("protocol: TCP", 0, 0), (SECRET, 1, 1)]
    {
        let gateway = GATEWAY.replace("protocol: HTTP", protocol);
        let all = statuses(&[CLASS, &gateway, ROUTE, POOL]);
        let status = all.iter().find(|status| status.key.kind == Kind::Gateway).unwrap();
        let StatusPatch::Gateway { listeners, .. } = &status.patch else { panic!("{status:?}") };
        assert_eq!(listeners[0]["supportedKinds"].as_array().unwrap().len(), kinds, "{protocol}");
        assert_eq!(listeners[0]["attachedRoutes"], routes, "{protocol}");
    }
}

#[test]
fn a_class_lists_the_features_of_the_gateway_api_that_pass_sorted() {
    let all = statuses(&[CLASS]);
    let StatusPatch::Class { features, .. } = &all[0].patch else { panic!("{all:?}") };
    assert!(features.is_sorted_by(|a, b| a < b), "{features:?}");
    let status =
        super::super::super::status_merge::merged(&Value::Null, &all[0].patch, "").unwrap();
    assert_eq!(status["supportedFeatures"][0], json!({"name": "BackendTLSPolicy"}));
    assert_eq!(status["supportedFeatures"].as_array().unwrap().len(), features.len());
}

#[test]
fn faults_get_the_reasons_of_the_specifications() {
    for (good, wrong, kind, expected) in WRONG {
        let documents = [CLASS, GATEWAY, ROUTE, POOL, POLICY].map(|text| text.replace(good, wrong));
        let all = statuses(&documents.each_ref().map(String::as_str));
        let conditions = conditions_of(&all, kind);
        assert!(
            conditions.iter().any(|condition| condition == expected),
            "{wrong}: {expected}: {conditions:?}"
        );
    }
}

#[test]
fn a_policy_names_what_the_pods_of_its_pool_lack() {
    for (labels, expected) in [
        ("tier: t", "Accepted=False/RoleLabelMissing"),
        ("rbg.workloads.x-k8s.io/role-name: decode", "Accepted=True/RoleLabelAlias"),
        ("role: prefill", "Ready=False/NoDecode"),
        ("role: decode", "Ready=False/NoPrefill"),
    ] {
        let all = statuses(&[CLASS, GATEWAY, ROUTE, POOL, POLICY, &pod("pod-0", labels)]);
        let conditions = conditions_of(&all, Kind::InferenceTrafficPolicy);
        assert!(
            conditions.iter().any(|condition| condition == expected),
            "{labels}: {conditions:?}"
        );
    }
}

#[test]
fn a_policy_without_a_bootstrap_port_names_the_default() {
    let policy = POLICY.replace(", kvTransfer: {bootstrapPort: 34000}", "");
    let all = statuses(&[CLASS, GATEWAY, ROUTE, POOL, &policy]);
    let conditions = conditions_of(&all, Kind::InferenceTrafficPolicy);
    assert_eq!(conditions[0], "Accepted=True/DefaultBootstrapPort");
}

#[test]
fn objects_of_other_controllers_get_no_condition() {
    let class = CLASS.replace("pd-router.io", "example.com");
    let all = statuses(&[&class, GATEWAY, ROUTE, POOL]);
    let kinds: Vec<Kind> = all.iter().map(|standing| standing.key.kind).collect();
    assert_eq!(kinds, [Kind::HttpRoute, Kind::InferencePoolV1Alpha2]);
    assert_eq!(
        all[0].patch,
        StatusPatch::Parents(Vec::new()),
        "entries of this controller are removed"
    );
    let other_gateways = vec!["default/g".to_owned()];
    assert_eq!(all[1].patch, StatusPatch::Parent { ours: Vec::new(), other_gateways });
}
