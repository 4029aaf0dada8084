//! What the Gateway API's own tests of grants for Secrets, and of headers, demand, case by case.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use router_core::fleet::Fleet;
use router_core::route::{Head, find};

use super::super::golden;

/// A grant in `namespace`, from whom to what.
fn grant(namespace: &str, from: &str, to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {{name: grant, namespace: {namespace}}}\n\
         spec: {{from: [{{{from}}}], to: [{{{to}}}]}}\n---\n"
    )
}

#[test]
fn a_gateway_may_name_a_secret_elsewhere_by_a_grant_to_secrets_or_to_that_secret_alone() {
    const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: infra}
spec:
  gatewayClassName: any
  listeners:
  - name: https
    port: 443
    protocol: HTTPS
    tls: {certificateRefs: [{name: certificate, namespace: secrets}]}
---
";
    let from = "group: gateway.networking.k8s.io, kind: Gateway, namespace: infra";
    let to = "group: \"\", kind: Secret";
    for (grants, permitted) in [
        (grant("secrets", from, to), true),
        (grant("secrets", from, &format!("{to}, name: certificate")), true),
        (grant("secrets", from, &format!("{to}, name: another")), false),
        (grant("secrets", from, "group: \"\", kind: Service"), false),
        (grant("secrets", from, "group: example.com, kind: Secret"), false),
        (grant("secrets", &from.replace("infra", "elsewhere"), to), false),
        (grant("secrets", &from.replace("Gateway", "HTTPRoute"), to), false),
        (grant("infra", from, to), false),
        (String::new(), false),
    ] {
        let fleet = golden::fleet(&format!("{grants}{GATEWAY}"));
        let field = "spec.listeners[0].tls.certificateRefs[0]";
        let found: Vec<(&str, &str)> = (fleet.problems.iter())
            .filter(|problem| problem.field.as_deref() == Some(field))
            .map(|problem| (problem.code, &*problem.reason))
            .collect();
        // A reference that is allowed leads to a Secret that does not exist.
        let expected = match permitted {
            true => ("InvalidCertificateRef", "Secret secrets/certificate does not exist"),
            false => ("RefNotPermitted", "no ReferenceGrant allows this Gateway"),
        };
        let [(code, reason)] = found[..] else { panic!("{grants}\n{found:?}") };
        assert!(code == expected.0 && reason.starts_with(expected.1), "{grants}\n{found:?}");
        assert!(fleet.listeners.is_empty(), "{grants}");
    }
}

/// Where each request of the Gateway API's test HTTPRouteHeaderMatching leads.
#[test]
fn headers_match_by_all_of_a_match_and_by_any_match_of_a_rule() {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let manifests = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec: {gatewayClassName: any, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: header-matching}
spec:
  parentRefs: [{name: g}]
  rules:
  - matches: [{headers: [{name: version, value: one}]}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{headers: [{name: version, value: two}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{headers: [{name: version, value: two}, {name: color, value: orange}]}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{headers: [{name: color, value: blue}]}, {headers: [{name: color, value: green}]}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{headers: [{name: color, value: red}]}, {headers: [{name: color, value: yellow}]}]
    backendRefs: [{name: v2, port: 80}]
---
";
    let fleet = golden::fleet(&(service("v1") + &service("v2") + manifests));
    assert_eq!(fleet.problems, []);
    for (headers, expected) in [
        (&[("Version", "one")][..], Some("v1")),
        (&[("Version", "two")], Some("v2")),
        (&[("Version", "two"), ("Color", "orange")], Some("v1")),
        (&[("Color", "blue")], Some("v1")),
        (&[("Color", "green")], Some("v1")),
        (&[("Color", "red")], Some("v2")),
        (&[("Color", "yellow")], Some("v2")),
        // Matches of one header are as specific as each other: the earlier rule.
        (&[("Version", "one"), ("Color", "red")], Some("v1")),
        (&[("Color", "purple")], None),
        (&[("Version", "three")], None),
        (&[("Version", "onetwo")], None),
        (&[], None),
    ] {
        assert_eq!(backend(&fleet, headers).as_deref(), expected, "{headers:?}");
    }
}

/// The name of the Service that a request with these headers leads to.
fn backend(fleet: &Fleet, headers: &[(&str, &str)]) -> Option<String> {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let headers: HeaderMap = headers.iter().map(pair).collect();
    let head =
        Head { method: &Method::GET, host: Some("any"), path: "/", query: None, headers: &headers };
    let found = find(fleet, 80, &head, 0)?;
    let target = serde_json::to_value(found.target).unwrap();
    let target = target.as_str().unwrap();
    Some(target.strip_prefix("service default/")?.strip_suffix(":80")?.to_owned())
}
