//! What a reference, a parent, a policy and a grant must have to count, one fact at a time.

use router_core::fleet::{Fleet, Profile};

use super::super::golden;

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: any
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
";

fn route(spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\n\
         spec: {{{spec}}}\n---\n"
    )
}

/// A route to one backend.
fn route_to(backend: &str) -> String {
    route(&format!("parentRefs: [{{name: g}}], rules: [{{backendRefs: [{{{backend}}}]}}]"))
}

fn problems(fleet: &Fleet) -> String {
    let all: Vec<String> = fleet.problems.iter().map(ToString::to_string).collect();
    all.join("\n")
}

/// The first target of the first rule, as `/fleet` shows it.
fn target(fleet: &Fleet) -> String {
    let (_, _, rule) = fleet.listeners[0].rules().next().unwrap();
    serde_json::to_string(&rule.backends()[0].target).unwrap()
}

#[test]
fn a_grant_must_name_the_group_the_kind_the_namespace_and_may_name_the_object() {
    let pool = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\n\
                metadata: {name: p, namespace: models}\n\
                spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}\n---\n";
    let route = route_to(
        "group: inference.networking.k8s.io, kind: InferencePool, name: p, namespace: models",
    );
    let grant = |namespace: &str, from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
             metadata: {{name: grant, namespace: {namespace}}}\n\
             spec: {{from: [{{{from}}}], to: [{{{to}}}]}}\n"
        )
    };
    let from = "group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default";
    let to = "group: inference.networking.k8s.io, kind: InferencePool";
    for (grant, permitted) in [
        (grant("models", from, to), true),
        (grant("models", from, &format!("{to}, name: p")), true),
        (grant("models", from, &format!("{to}, name: other")), false),
        (grant("default", from, to), false),
        (grant("models", &from.replace("default", "elsewhere"), to), false),
        (grant("models", &from.replace("HTTPRoute", "GRPCRoute"), to), false),
        (grant("models", &from.replace("gateway.", "x."), to), false),
        (grant("models", from, "group: \"\", kind: Service"), false),
        (grant("models", from, &to.replace("k8s", "x-k8s")), false),
        (grant("models", from, &to.replace("InferencePool", "Pool")), false),
        (String::new(), false),
    ] {
        let fleet = golden::fleet(&format!("{GATEWAY}{pool}{route}{grant}"));
        let expected = if permitted { "\"pool models/p\"" } else { "\"500: no ReferenceGrant" };
        assert!(target(&fleet).starts_with(expected), "{grant}\n{}", target(&fleet));
    }
}

#[test]
fn a_parent_reference_must_fit_in_kind_name_namespace_section_and_port() {
    for (parent, attached) in [
        ("name: g", true),
        ("name: g, kind: Gateway, group: gateway.networking.k8s.io, namespace: default", true),
        ("name: g, sectionName: http, port: 80", true),
        ("name: g, sectionName: other", false),
        ("name: g, port: 81", false),
        ("name: g, namespace: elsewhere", false),
        ("name: g, kind: Service", false),
        ("name: other", false),
    ] {
        let route = route(&format!("parentRefs: [{{{parent}}}], rules: [{{}}]"));
        let fleet = golden::fleet(&format!("{GATEWAY}{route}"));
        assert_eq!(fleet.listeners[0].rules().count(), usize::from(attached), "{parent}");
        assert_eq!(problems(&fleet).contains("spec.parentRefs[0]"), !attached, "{parent}");
    }
}

#[test]
fn a_listener_that_is_named_twice_has_the_route_once() {
    let route = route("parentRefs: [{name: g}, {name: g, sectionName: http}], rules: [{}]");
    let fleet = golden::fleet(&format!("{GATEWAY}{route}"));
    assert_eq!(fleet.listeners[0].rules().count(), 1);
}

#[test]
fn a_path_that_no_request_can_have_drops_its_rule() {
    for path in ["relative", "/a//b", "/a/../b", "/./a", "/a?b", "/a#b"] {
        let rule = format!("{{matches: [{{path: {{value: \"{path}\"}}}}]}}");
        let route = route(&format!("parentRefs: [{{name: g}}], rules: [{rule}, {{}}]"));
        let fleet = golden::fleet(&format!("{GATEWAY}{route}"));
        assert_eq!(fleet.listeners[0].rules().count(), 1, "{path}");
        let text = problems(&fleet);
        let field = "spec.rules[0].matches[0].path.value";
        assert!(text.contains(field) && text.contains(path), "{text}");
    }
}

#[test]
fn a_cors_filter_that_cannot_be_read_breaks_its_rule() {
    for (field, value) in [
        ("allowOrigins[0]", "allowOrigins: [shop.example]"),
        ("allowMethods", "allowMethods: [\"GET POST\"]"),
        ("exposeHeaders", "exposeHeaders: [\"a b\"]"),
        ("maxAge", "maxAge: 0"),
    ] {
        let rule = format!("{{filters: [{{type: CORS, cors: {{{value}}}}}]}}");
        let route = route(&format!("parentRefs: [{{name: g}}], rules: [{rule}]"));
        let fleet = golden::fleet(&format!("{GATEWAY}{route}"));
        let text = problems(&fleet);
        assert!(text.contains(&format!("spec.rules[0].filters[0].cors.{field}")), "{text}");
        assert!(target(&fleet).starts_with("\"500: "), "{value}: {}", target(&fleet));
    }
}

#[test]
fn of_two_listeners_in_conflict_the_older_gateways_is_served() {
    let created = |name: &str, time: &str| {
        let metadata = format!("{{name: {name}, creationTimestamp: \"{time}\"}}");
        GATEWAY.replace("{name: g}", &metadata)
    };
    let text = created("a", "2026-02-01T00:00:00Z") + &created("z", "2026-01-01T00:00:00Z");
    let fleet = golden::fleet(&text);
    assert_eq!(fleet.listeners.len(), 1);
    assert_eq!(fleet.listeners[0].gateway.to_string(), "default/z");
    let text = problems(&fleet);
    assert!(
        text.contains("Gateway default/a, spec.listeners[0].port: an earlier listener"),
        "{text}"
    );
}

#[test]
fn of_two_timeouts_for_one_gateway_the_older_policy_is_used_unless_they_are_equal() {
    let policy = |name: &str, time: &str, limit: &str| {
        format!(
            "apiVersion: gateway.envoyproxy.io/v1alpha1\nkind: BackendTrafficPolicy\n\
             metadata: {{name: {name}, creationTimestamp: \"{time}\"}}\nspec:\n\
             \x20 targetRef: {{group: gateway.networking.k8s.io, kind: Gateway, name: g}}\n\
             \x20 timeout: {{http: {{requestTimeout: {limit}}}}}\n---\n"
        )
    };
    let base = GATEWAY.to_owned() + &route("parentRefs: [{name: g}], rules: [{}]");
    for (young, conflict) in [("1m", true), ("2m", false)] {
        let text = base.clone()
            + &policy("a", "2026-02-01T00:00:00Z", young)
            + &policy("z", "2026-01-01T00:00:00Z", "2m");
        let fleet = golden::fleet(&text);
        let (_, _, rule) = fleet.listeners[0].rules().next().unwrap();
        assert_eq!(rule.timeouts.request, Some(std::time::Duration::from_secs(120)));
        let text = problems(&fleet);
        let named = text.contains("BackendTrafficPolicy default/a, spec.targetRef: another");
        assert_eq!(named, conflict, "{text}");
    }
}

#[test]
fn a_service_port_must_exist_and_be_the_clusters() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n\
                   spec: {ports: [{port: 80}], selector: {a: b}}\n---\n";
    for (reference, expected) in [
        ("name: s, port: 80", "service default/s:80"),
        ("name: s, port: 81", "500: Service default/s has no port 81"),
        ("name: s", "500: port is required for Service default/s"),
        ("name: s, port: 0", "500: port is required for Service default/s"),
    ] {
        let route = route_to(reference);
        let fleet = golden::fleet(&format!("{GATEWAY}{service}{route}"));
        assert_eq!(target(&fleet), format!("\"{expected}\""), "{reference}");
    }
    let external = service.replace("{ports", "{type: ExternalName, externalName: a.b, ports");
    let fleet = golden::fleet(&format!("{GATEWAY}{external}{}", route_to("name: s, port: 80")));
    assert!(target(&fleet).contains("ExternalName"), "{}", target(&fleet));
}

#[test]
fn a_policy_targets_pools_of_its_namespace_and_group() {
    let pool = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferencePool\n\
                metadata: {name: p}\nspec: {selector: {a: b}, targetPortNumber: 1}\n---\n";
    for (namespace, more, split) in [
        ("default", "", true),
        ("default", ", group: inference.networking.x-k8s.io", true),
        ("default", ", group: inference.networking.k8s.io", false),
        ("default", ", kind: Service", false),
        ("elsewhere", "", false),
    ] {
        let policy = format!(
            "apiVersion: inferenceextension.alibabacloud.com/v1alpha1\n\
             kind: InferenceTrafficPolicy\nmetadata: {{name: t, namespace: {namespace}}}\n\
             spec: {{poolRef: {{name: p{more}}}, profile: {{pd: {{}}}}}}\n"
        );
        let fleet = golden::fleet(&format!("{pool}{policy}"));
        assert_eq!(fleet.pools[0].profile == Profile::Pd, split, "{policy}");
        let lost = problems(&fleet).contains("InferencePool p does not exist");
        assert_eq!(lost, !split, "{policy}");
    }
}
