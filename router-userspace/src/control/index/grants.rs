//! ReferenceGrant: whether a route may name a backend, or a Gateway a Secret, of another namespace.

use router_core::fleet::ObjectName;

use super::super::objects::{GATEWAY_GROUP, Kind, Object};
use super::Index;

/// Whether an object of the Gateway API, of this kind and namespace, may name `to`, an object of
/// `group` and `kind`.
pub(super) fn permits(
    index: &Index,
    (from_kind, from): (&str, &str),
    group: &str,
    kind: &str,
    to: &ObjectName,
) -> bool {
    if from == &*to.namespace {
        return true;
    }
    index.of_kind(Kind::ReferenceGrant).any(|(_, object)| {
        let Object::ReferenceGrant(grant) = object else { return false };
        let spec = &grant.spec;
        grant.metadata.namespace.as_deref().unwrap_or("default") == &*to.namespace
            && spec.from.iter().any(|allowed| {
                allowed.group == GATEWAY_GROUP
                    && allowed.kind == from_kind
                    && allowed.namespace == from
            })
            && spec.to.iter().any(|allowed| {
                allowed.group == group
                    && allowed.kind == kind
                    && allowed.name.as_deref().is_none_or(|name| name == &*to.name)
            })
    })
}
