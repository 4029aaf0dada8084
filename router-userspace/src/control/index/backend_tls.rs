//! BackendTLSPolicy: which Services are reached over TLS, and whom the gateway trusts.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use gateway_api::backendtlspolicies::{
    BackendTlsPolicy, BackendTlsPolicyValidation as Validation,
    BackendTlsPolicyValidationSubjectAltNames as AltNameSpec,
    BackendTlsPolicyValidationSubjectAltNamesType as AltNameType,
};
use router_core::fleet::{AltName, BackendTls, ObjectName};

use super::super::objects::{Key, Kind, Object, kind_of, object_name};
use super::build::{Build, Subject, oldest_first};
use super::{Index, Source};
use crate::http_client::tls::{authorities, is_server_name};

/// Maximum number of watched ConfigMaps, in the order of their names. Further ones count as missing.
const MAX_CONFIG_MAPS: usize = 1_000;
/// The entry of a ConfigMap that holds the certificates of authorities.
pub(in crate::control) const AUTHORITIES: &str = "ca.crt";

/// The settings of a Service, or the policy that has none that are valid.
type ServiceTls = Result<Arc<BackendTls>, ObjectName>;

/// The TLS settings of Services.
#[derive(Debug, Default)]
pub(super) struct TlsPolicies {
    /// By the Service and the name of one of its ports.
    targets: HashMap<(ObjectName, Option<String>), ServiceTls>,
    /// By namespace, a policy whose targets could not be read: it may be for any Service.
    unread: HashMap<Arc<str>, ObjectName>,
}

impl TlsPolicies {
    /// The settings for a port of a Service: those of the port, else those of the Service.
    ///
    /// # Errors
    /// The policy is invalid. No request may reach the Service without the TLS that is wanted.
    pub(super) fn of_port(
        &self,
        service: &ObjectName,
        port: Option<&str>,
    ) -> Result<Option<Arc<BackendTls>>, (&'static str, String)> {
        let get = |section: Option<&str>| {
            self.targets.get(&(service.clone(), section.map(str::to_owned)))
        };
        match port.and_then(|port| get(Some(port))).or_else(|| get(None)) {
            None => match self.unread.get(&service.namespace) {
                Some(policy) => {
                    let reason = format!("the targets of BackendTLSPolicy {policy} cannot be read");
                    Err(("InvalidBackendTLS", reason))
                }
                None => Ok(None),
            },
            Some(Ok(tls)) => Ok(Some(Arc::clone(tls))),
            Some(Err(policy)) => {
                let reason = format!("BackendTLSPolicy {policy} of Service {service} is invalid");
                Err(("InvalidBackendTLS", reason))
            }
        }
    }
}

pub(super) fn read(build: &mut Build<'_>) -> TlsPolicies {
    let all = oldest_first(build.index, Kind::BackendTlsPolicy, |object| match object {
        Object::BackendTlsPolicy(policy) | Object::UnreadBackendTlsPolicy(policy) => {
            Some((&policy.metadata, object))
        }
        _ => None,
    });
    let mut policies = TlsPolicies::default();
    for (source, name, object) in all {
        let subject = Subject { source, kind: Kind::BackendTlsPolicy, name: &name };
        let (policy, tls) = match object {
            Object::BackendTlsPolicy(policy) => {
                (policy, validation(build, subject, &policy.spec.validation).map(Arc::new))
            }
            Object::UnreadBackendTlsPolicy(policy) => (policy, None),
            _ => continue,
        };
        if object.is_stand_in() && policy.spec.target_refs.is_empty() {
            policies.unread.entry(Arc::clone(&name.namespace)).or_insert_with(|| name.clone());
        }
        for (field, target) in targets(build, subject, policy) {
            if policies.targets.contains_key(&target) {
                let reason =
                    "another policy, older or first by name, has the same target and is used";
                build.add_problem(subject, field, "Conflicted", reason);
                continue;
            }
            policies.targets.insert(target, tls.clone().ok_or_else(|| name.clone()));
        }
    }
    policies
}

/// The targets of a policy, each with the field that references it.
fn targets(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    policy: &BackendTlsPolicy,
) -> Vec<(String, (ObjectName, Option<String>))> {
    let mut found = Vec::new();
    for (position, target) in policy.spec.target_refs.iter().enumerate() {
        let field = format!("spec.targetRefs[{position}]");
        if (target.group.as_str(), target.kind.as_str()) != ("", "Service") {
            let named = kind_of(&target.group, &target.kind);
            let reason = format!("{named} is not supported; use Service");
            build.add_problem(subject, field, "Unsupported", reason);
            continue;
        }
        let namespace = Arc::clone(&subject.name.namespace);
        let name = ObjectName { namespace, name: target.name.as_str().into() };
        let key = Key { kind: Kind::Service, name: name.clone() };
        let Some(Object::Service(service)) = build.index.get(&key) else {
            let reason = format!("Service {name} does not exist");
            build.add_problem(subject, field, "TargetNotFound", reason);
            continue;
        };
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        if let Some(section) = &target.section_name
            && !ports.into_iter().any(|port| port.name.as_ref() == Some(section))
        {
            let reason = format!("Service {name} has no port {section:?}");
            build.add_problem(subject, field, "TargetNotFound", reason);
            continue;
        }
        found.push((field, (name, target.section_name.clone())));
    }
    found
}

/// What a policy asks for, or `None` if a part of it is invalid.
fn validation(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    spec: &Validation,
) -> Option<BackendTls> {
    let mut is_valid = true;
    if !is_server_name(&spec.hostname) {
        let reason = format!("{:?} is not a host name", spec.hostname);
        build.add_problem(subject, "spec.validation.hostname", "Invalid", reason);
        is_valid = false;
    }
    if let Some(known) = &spec.well_known_ca_certificates {
        let reason = format!("{known:?} is not supported; use caCertificateRefs");
        let field = "spec.validation.wellKnownCACertificates";
        build.add_problem(subject, field, "Invalid", reason);
        is_valid = false;
    }
    let mut alt_names = Vec::new();
    for (position, name) in spec.subject_alt_names.iter().flatten().enumerate() {
        match alt_name(name) {
            Ok(name) => alt_names.push(name),
            Err(reason) => {
                let field = format!("spec.validation.subjectAltNames[{position}]");
                build.add_problem(subject, field, "Invalid", reason);
                is_valid = false;
            }
        }
    }
    let trusted = trusted(build, subject, spec);
    if trusted.is_empty() && spec.well_known_ca_certificates.is_none() {
        let reason = "has no valid reference; the Services of the policy answer 500";
        let field = "spec.validation.caCertificateRefs";
        build.add_problem(subject, field, "NoValidCACertificate", reason);
        is_valid = false;
    }
    let hostname = spec.hostname.as_str().into();
    is_valid.then(|| BackendTls { hostname, alt_names, authorities: trusted.into() })
}

fn alt_name(spec: &AltNameSpec) -> Result<AltName, String> {
    match (&spec.r#type, &spec.hostname, &spec.uri) {
        (AltNameType::Hostname, Some(host), _) if is_server_name(host) => {
            Ok(AltName::Hostname(host.as_str().into()))
        }
        (AltNameType::Hostname, host, _) => {
            Err(format!("{:?} is not a host name", host.as_deref().unwrap_or_default()))
        }
        (AltNameType::Uri, _, Some(uri)) => Ok(AltName::Uri(uri.as_str().into())),
        (AltNameType::Uri, _, None) => Err("has no uri".to_owned()),
    }
}

/// The authorities of all valid references, in PEM.
fn trusted(build: &mut Build<'_>, subject: Subject<'_>, spec: &Validation) -> String {
    let mut all = String::new();
    for (position, reference) in spec.ca_certificate_refs.iter().flatten().enumerate() {
        let field = format!("spec.validation.caCertificateRefs[{position}]");
        if (reference.group.as_str(), reference.kind.as_str()) != ("", "ConfigMap") {
            let named = kind_of(&reference.group, &reference.kind);
            let reason = format!("{named} is not supported; use a ConfigMap");
            build.add_problem(subject, field, "InvalidKind", reason);
            continue;
        }
        let namespace = Arc::clone(&subject.name.namespace);
        let name = ObjectName { namespace, name: reference.name.as_str().into() };
        match authorities_of(build.index, &name) {
            Ok(pem) => {
                all.push_str(pem);
                all.push('\n');
            }
            Err(reason) => {
                build.add_problem(subject, field, "InvalidCACertificateRef", reason);
            }
        }
    }
    all
}

fn authorities_of<'i>(index: &'i Index, name: &ObjectName) -> Result<&'i str, String> {
    let key = Key { kind: Kind::ConfigMap, name: name.clone() };
    let Some(Object::ConfigMap(map)) = index.get(&key) else {
        return Err(format!("ConfigMap {name} does not exist"));
    };
    let pem = map.data.as_ref().and_then(|data| data.get(AUTHORITIES));
    let pem = pem.ok_or_else(|| format!("ConfigMap {name} has no entry {AUTHORITIES}"))?;
    authorities(pem)
        .map_err(|reason| format!("{AUTHORITIES} of ConfigMap {name} cannot be used: {reason}"))?;
    Ok(pem)
}

/// The ConfigMaps to watch: those that policies of a cluster name.
pub(super) fn config_maps(index: &Index) -> BTreeSet<ObjectName> {
    let mut names = BTreeSet::new();
    for (source, object) in index.of_kind(Kind::BackendTlsPolicy) {
        let Object::BackendTlsPolicy(policy) = object else { continue };
        if *source != Source::Cluster {
            continue;
        }
        let namespace = object_name(&policy.metadata).namespace;
        let references = policy.spec.validation.ca_certificate_refs.iter().flatten();
        names.extend(references.filter(|one| one.kind == "ConfigMap").map(|one| ObjectName {
            namespace: Arc::clone(&namespace),
            name: one.name.as_str().into(),
        }));
    }
    names.into_iter().take(MAX_CONFIG_MAPS).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::golden;

    const OBJECTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec: {gatewayClassName: any, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: s, port: 443}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{name: a, port: 443}, {name: b, port: 80}]}
";

    fn policy(name: &str, section: &str, validation: &str) -> String {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\n\
             metadata: {{name: {name}}}\nspec: {{targetRefs: [{{group: \"\", kind: Service, \
             name: s{section}}}], validation: {{{validation}}}}}\n"
        )
    }

    /// The first target, and the problems as field and code.
    fn outcome(policies: &str) -> (String, Vec<(String, &'static str)>) {
        let fleet = golden::fleet(&format!("{OBJECTS}{policies}"));
        let (_, _, rule) = fleet.listeners[0].rules().next().expect("a rule");
        let target = serde_json::to_string(&rule.backends()[0].target).expect("JSON");
        let field = |field: &Option<std::sync::Arc<str>>| field.as_deref().unwrap_or("").to_owned();
        let problems = fleet.problems.iter().filter(|one| !one.reason.contains("its share"));
        (target, problems.map(|one| (field(&one.field), one.code)).collect())
    }

    #[test]
    fn a_service_whose_policy_is_invalid_is_not_reached() {
        let missing =
            "hostname: a.test, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: m}]";
        let (target, problems) = outcome(&policy("p", "", missing));
        assert!(
            target.contains("500: BackendTLSPolicy default/p of Service default/s"),
            "{target}"
        );
        let expected = [
            ("spec.validation.caCertificateRefs".to_owned(), "NoValidCACertificate"),
            ("spec.validation.caCertificateRefs[0]".to_owned(), "InvalidCACertificateRef"),
        ];
        assert_eq!(problems, expected);
        let system = "hostname: a.test, wellKnownCACertificates: System";
        let (target, problems) = outcome(&policy("p", ", sectionName: a", system));
        assert!(target.contains("500: "), "{target}");
        let field = "spec.validation.wellKnownCACertificates".to_owned();
        assert_eq!(problems, [(field, "Invalid")]);
        let kind = "hostname: a.test, caCertificateRefs: [{group: \"\", kind: Secret, name: m}]";
        assert_eq!(outcome(&policy("p", "", kind)).1[1].1, "InvalidKind");
    }

    #[test]
    fn a_service_whose_policy_cannot_be_read_is_not_reached() {
        let whole = policy("p", "", "hostname: a.test");
        let of_service = "500: BackendTLSPolicy default/p of Service default/s is invalid";
        let of_namespace = "500: the targets of BackendTLSPolicy default/p cannot be read";
        for (broken, code, reason) in [
            (whole.replace("hostname: a.test", "hostname: [a]"), "Unparsable", of_service),
            (whole.replace("validation: {hostname: a.test}", "x: y"), "Unparsable", of_service),
            (whole.replace("k8s.io/v1", "k8s.io/v1alpha3"), "UnsupportedVersion", of_service),
            (whole.replace("name: s}", "nam: s}"), "Unparsable", of_namespace),
            (whole.replace("a.test}}", "a.test}"), "Unparsable", of_namespace),
        ] {
            assert_ne!(broken, whole);
            let (target, problems) = outcome(&broken.replace("{name: p}", "\n  name: p"));
            assert!(target.contains(reason), "{broken}: {target}");
            assert!(problems.iter().any(|one| one.1 == code), "{broken}: {problems:?}");
        }
        let elsewhere = whole.replace("{name: p}", "{name: p, namespace: other}");
        let (target, _) = outcome(&elsewhere.replace("name: s}", "nam: s}"));
        assert_eq!(target, "\"service default/s:443\"");
    }

    #[test]
    fn a_policy_for_another_port_changes_nothing() {
        let missing =
            "hostname: a.test, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: m}]";
        let (target, _) = outcome(&policy("p", ", sectionName: b", missing));
        assert_eq!(target, "\"service default/s:443\"");
    }

    #[test]
    fn a_policy_for_a_port_that_does_not_exist_is_a_problem() {
        let system = "hostname: a.test, wellKnownCACertificates: System";
        let (_, problems) = outcome(&policy("p", ", sectionName: typo", system));
        let expected = ("spec.targetRefs[0]".to_owned(), "TargetNotFound");
        assert!(problems.contains(&expected), "{problems:?}");
    }

    #[test]
    fn a_port_of_another_protocol_with_the_same_number_is_not_the_routes() {
        let both = "ports: [{name: q, port: 443, protocol: UDP}, {name: a, port: 443";
        let objects = OBJECTS.replace("ports: [{name: a, port: 443", both);
        let system = "hostname: a.test, wellKnownCACertificates: System";
        let policy = policy("p", ", sectionName: a", system);
        let fleet = golden::fleet(&format!("{objects}{policy}"));
        let (_, _, rule) = fleet.listeners[0].rules().next().expect("a rule");
        let target = serde_json::to_string(&rule.backends()[0].target).expect("JSON");
        assert!(target.contains("500: "), "{target}");
    }

    #[test]
    fn the_first_of_two_policies_for_one_target_is_used() {
        let system = "hostname: a.test, wellKnownCACertificates: System";
        let (target, problems) =
            outcome(&(policy("second", "", system) + &policy("first", "", system)));
        assert!(target.contains("BackendTLSPolicy default/first"), "{target}");
        assert!(
            problems.contains(&("spec.targetRefs[0]".to_owned(), "Conflicted")),
            "{problems:?}"
        );
    }
}
