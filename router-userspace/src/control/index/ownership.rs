//! Ownership: which objects of a cluster this controller serves. These are Gateways of its classes,
//! routes to such a Gateway, and pools of such a route. Objects of files and flags are always served.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use gateway_api::httproutes::{HttpRoute, HttpRouteParentRefs};
use router_core::fleet::ObjectName;

use super::super::objects::{
    GATEWAY_GROUP, Key, Kind, Object, POOL_GROUP_V1, POOL_GROUP_V1ALPHA2, object_name,
};
use super::{Index, Source};

/// The `spec.controllerName` of the GatewayClasses that pd-router serves.
pub const CONTROLLER_NAME: &str = "pd-router.io/gateway-controller";

/// Returns the Gateways, routes and pools of a cluster that other controllers serve.
pub(super) fn not_owned(index: &Index) -> HashSet<Key> {
    let mut not_owned = HashSet::new();
    let classes: BTreeSet<&str> = index
        .of_kind(Kind::GatewayClass)
        .filter_map(|(_, object)| match object {
            Object::GatewayClass(class) if class.spec.controller_name == CONTROLLER_NAME => {
                class.metadata.name.as_deref()
            }
            _ => None,
        })
        .collect();
    for object in of_cluster(index, Kind::Gateway) {
        let Object::Gateway(gateway) = object else { continue };
        if !classes.contains(gateway.spec.gateway_class_name.as_str()) {
            not_owned.insert(object.key());
        }
    }
    for object in of_cluster(index, Kind::HttpRoute) {
        let Object::HttpRoute(route) = object else { continue };
        let parents = route.spec.parent_refs.as_deref().unwrap_or_default();
        let ours = |parent: &HttpRouteParentRefs| {
            is_owned_parent(index, &not_owned, &object_name(&route.metadata), parent)
        };
        if !parents.iter().any(ours) {
            not_owned.insert(object.key());
        }
    }
    let named: HashSet<Key> = index
        .of_kind(Kind::HttpRoute)
        .filter_map(|(_, object)| match object {
            Object::HttpRoute(route) if !not_owned.contains(&object.key()) => Some(route),
            _ => None,
        })
        .flat_map(pools)
        .collect();
    for kind in [Kind::InferencePoolV1Alpha2, Kind::InferencePoolV1] {
        let others = of_cluster(index, kind).map(Object::key).filter(|key| !named.contains(key));
        not_owned.extend(others.collect::<Vec<_>>());
    }
    not_owned
}

/// Whether a parent of `route` is an existing Gateway of this controller.
pub(super) fn is_owned_parent(
    index: &Index,
    not_owned: &HashSet<Key>,
    route: &ObjectName,
    parent: &HttpRouteParentRefs,
) -> bool {
    let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    let key = Key { kind: Kind::Gateway, name: parent_name(route, parent) };
    (group, kind) == (GATEWAY_GROUP, "Gateway")
        && index.get(&key).is_some()
        && !not_owned.contains(&key)
}

/// The name of a parent of `route`.
pub(super) fn parent_name(route: &ObjectName, parent: &HttpRouteParentRefs) -> ObjectName {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    ObjectName { namespace: namespace.into(), name: parent.name.as_str().into() }
}

/// The pools that a route references.
pub(super) fn pools(route: &HttpRoute) -> Vec<Key> {
    let own = object_name(&route.metadata).namespace;
    let pool =
        |group: &Option<String>, kind: &Option<String>, namespace: &Option<String>, name: &str| {
            let kind = match (group.as_deref()?, kind.as_deref()?) {
                (POOL_GROUP_V1ALPHA2, "InferencePool") => Kind::InferencePoolV1Alpha2,
                (POOL_GROUP_V1, "InferencePool") => Kind::InferencePoolV1,
                _ => return None,
            };
            let namespace = namespace.as_deref().unwrap_or(&own).into();
            Some(Key { kind, name: ObjectName { namespace, name: name.into() } })
        };
    let mut pools = Vec::new();
    for rule in route.spec.rules.iter().flatten() {
        let of_rule = rule.filters.iter().flatten().filter_map(|one| one.request_mirror.as_ref());
        let of_rule = of_rule.map(|mirror| &mirror.backend_ref);
        pools.extend(of_rule.filter_map(|to| pool(&to.group, &to.kind, &to.namespace, &to.name)));
        for backend in rule.backend_refs.iter().flatten() {
            pools.extend(pool(&backend.group, &backend.kind, &backend.namespace, &backend.name));
            let own =
                backend.filters.iter().flatten().filter_map(|one| one.request_mirror.as_ref());
            let own = own.map(|mirror| &mirror.backend_ref);
            pools.extend(own.filter_map(|to| pool(&to.group, &to.kind, &to.namespace, &to.name)));
        }
    }
    pools
}

/// Which pods the pools of a cluster select: namespaces with labels.
pub(super) fn selections(index: &Index) -> BTreeSet<(Arc<str>, BTreeMap<String, String>)> {
    let not_owned = not_owned(index);
    let kinds = [Kind::InferencePoolV1Alpha2, Kind::InferencePoolV1];
    kinds
        .into_iter()
        .flat_map(|kind| index.of_kind(kind))
        .filter(|(source, _)| matches!(source, Source::Cluster | Source::Node))
        .map(|(_, object)| object)
        .filter(|object| !not_owned.contains(&object.key()))
        .filter_map(|object| match object {
            Object::InferencePool(pool) if !pool.selector().is_empty() => {
                Some((object_name(&pool.metadata).namespace, pool.selector().clone()))
            }
            _ => None,
        })
        .collect()
}

fn of_cluster(index: &Index, kind: Kind) -> impl Iterator<Item = &Object> {
    let all = index.of_kind(kind);
    all.filter(|(source, _)| **source == Source::Cluster).map(|(_, object)| object)
}

#[cfg(test)]
mod tests {
    use super::super::super::golden;
    use super::*;

    const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec: {gatewayClassName: c, listeners: [{name: l, protocol: HTTP, port: 80}]}
";
    const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g}, {name: of-others}]
  rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]}]
";
    const POOL: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p}
spec: {selector: {matchLabels: {app: a}}, targetPorts: [{number: 8000}]}
";

    fn index(controller: &str, documents: &[&str]) -> Index {
        let class = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
             metadata: {{name: c}}\nspec: {{controllerName: {controller}}}\n"
        );
        let mut index = Index::default();
        for text in documents.iter().copied().chain([class.as_str()]) {
            index.apply(Source::Cluster, golden::object(text));
        }
        index
    }

    #[test]
    fn a_gateway_of_our_class_brings_its_routes_and_their_pools() {
        let index = index(CONTROLLER_NAME, &[GATEWAY, ROUTE, POOL]);
        assert_eq!(not_owned(&index), HashSet::new());
        let labels = [("app".to_owned(), "a".to_owned())].into();
        assert_eq!(selections(&index), [("default".into(), labels)].into());
        let fleet = index.build(&Default::default());
        assert_eq!((fleet.listeners.len(), fleet.pools.len()), (1, 1));
        assert_eq!(fleet.problems, []);
    }

    #[test]
    fn what_belongs_to_another_controller_is_neither_served_nor_complained_about() {
        let index = index("example.com/other", &[GATEWAY, ROUTE, POOL]);
        assert_eq!(not_owned(&index).len(), 3);
        assert_eq!(selections(&index), BTreeSet::new());
        let fleet = index.build(&Default::default());
        assert_eq!((fleet.listeners.len(), fleet.pools.len()), (0, 0));
        assert_eq!(fleet.problems, []);
    }

    #[test]
    fn a_pool_that_no_route_names_is_left_alone() {
        let index = index(CONTROLLER_NAME, &[GATEWAY, POOL]);
        assert_eq!(selections(&index), BTreeSet::new());
        assert_eq!(index.build(&Default::default()).pools.len(), 0);
    }
}
