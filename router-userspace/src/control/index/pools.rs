//! Builds a [`Pool`] from an InferencePool, its InferenceTrafficPolicy and its pods.

use std::net::SocketAddr;
use std::sync::Arc;

use router_core::fleet::{
    EngineInfo, Excluded, Member, ObjectName, Pool, Profile, Role, WorkerKey,
};

use super::super::objects::{
    InferencePool, InferenceTrafficPolicy, Kind, Object, POOL_GROUP_V1, POOL_GROUP_V1ALPHA2,
    PoolSpec, object_name,
};
use super::Source;
use super::bootstrap::{self, BootstrapPorts, PolicyMismatches};
use super::build::{Build, Subject, created};
use super::pods::PodView;
use super::readiness;

/// The default label of a pod's role, which RoleBasedGroup sets up to v0.6.
pub(in crate::control) const DEFAULT_ROLE_LABEL: &str = "rolebasedgroup.workloads.x-k8s.io/role";
/// The role label of RoleBasedGroup since v0.7. It is read if no pod of the pool has the configured
/// label.
const ALIAS_ROLE_LABEL: &str = "rbg.workloads.x-k8s.io/role-name";

/// An InferenceTrafficPolicy with its source and name.
struct NamedPolicy<'a> {
    source: &'a Source,
    name: ObjectName,
    policy: &'a InferenceTrafficPolicy,
}

impl NamedPolicy<'_> {
    fn subject(&self) -> Subject<'_> {
        Subject { source: self.source, kind: Kind::InferenceTrafficPolicy, name: &self.name }
    }

    fn targets(&self, pool: &ObjectName, kind: Kind) -> bool {
        let group = match kind {
            Kind::InferencePoolV1 => POOL_GROUP_V1,
            _ => POOL_GROUP_V1ALPHA2,
        };
        let wanted = &self.policy.spec.pool_ref;
        self.name.namespace == pool.namespace
            && *wanted.name == *pool.name
            && wanted.group.as_deref().is_none_or(|named| named == group)
            && wanted.kind.as_deref().is_none_or(|named| named == "InferencePool")
    }
}

/// Where the role and the bootstrap port of a pool's pods are read from.
struct RoleSource {
    label: String,
    /// The policy's port.
    bootstrap_port: Option<u16>,
}

pub(super) fn build(build: &mut Build<'_>) -> Vec<Arc<Pool>> {
    let index = build.index;
    let policies = policies(build);
    let mut used = vec![false; policies.len()];
    let mut pools = Vec::new();
    for kind in [Kind::InferencePoolV1Alpha2, Kind::InferencePoolV1] {
        for (source, object) in index.of_kind(kind) {
            let Object::InferencePool(spec) = object else { continue };
            let name = object_name(&spec.metadata);
            let mut targeting = (0..policies.len()).filter(|&at| policies[at].targets(&name, kind));
            let first = targeting.next();
            first.into_iter().for_each(|at| used[at] = true);
            if build.not_owned.contains(&object.key()) {
                targeting.for_each(|at| used[at] = true);
                continue;
            }
            for at in targeting {
                used[at] = true;
                let first = first.map(|at| policies[at].name.to_string()).unwrap_or_default();
                let reason = format!(
                    "InferencePool {name} already has policy {first}, which is older or first by name; this policy is ignored"
                );
                build.add_problem(policies[at].subject(), "spec.poolRef", "Conflicted", reason);
            }
            let subject = Subject { source, kind, name: &name };
            let pool = Arc::new(pool(build, subject, spec, first.map(|at| &policies[at])));
            build.pools.insert((kind, name.clone()), Arc::clone(&pool));
            pools.push(pool);
        }
    }
    for (policy, _) in policies.iter().zip(used).filter(|(_, used)| !used) {
        let reason = format!("InferencePool {} does not exist", policy.policy.spec.pool_ref.name);
        build.add_problem(policy.subject(), "spec.poolRef", "TargetNotFound", reason);
    }
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    pools
}

/// All policies, oldest first, then by name.
fn policies<'a>(build: &Build<'a>) -> Vec<NamedPolicy<'a>> {
    let all = build.index.of_kind(Kind::InferenceTrafficPolicy);
    let mut policies: Vec<NamedPolicy<'a>> = all
        .filter_map(|(source, object)| match object {
            Object::InferenceTrafficPolicy(policy) => {
                Some(NamedPolicy { source, name: object_name(&policy.metadata), policy })
            }
            _ => None,
        })
        .collect();
    policies.sort_by_key(|policy| {
        let age = created(&policy.policy.metadata);
        (age.is_none(), age, policy.name.clone())
    });
    policies
}

fn pool(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    spec: &InferencePool,
    policy: Option<&NamedPolicy<'_>>,
) -> Pool {
    let roles = policy.and_then(|policy| roles(build, policy));
    if spec.selector().is_empty() {
        let reason = "is empty: the pool selects no pods";
        build.add_problem(subject, "spec.selector", "EmptySelector", reason);
    }
    if matches!(&spec.spec, PoolSpec::V1(v1) if v1.target_ports.is_empty()) {
        let reason = "is empty: the pool has no workers";
        build.add_problem(subject, "spec.targetPorts", "Invalid", reason);
    }
    let pods = std::mem::take(&mut build.pods);
    let selected: Vec<&PodView<'_>> = pods
        .get(&subject.name.namespace)
        .map(|pods| pods.iter().filter(|pod| pod.selected_by(spec.selector())).collect())
        .unwrap_or_default();
    let mut roles = roles;
    if let (Some(roles), Some(policy)) = (&mut roles, policy) {
        choose_label(build, roles, policy, subject.name, &selected);
    }
    let mut members = Vec::new();
    let mut unfit = Vec::new();
    let mut observed = Vec::new();
    let mut mismatches = PolicyMismatches::default();
    for pod in &selected {
        let ports = spec.ports(pod.pod);
        match members_of(build, pod, roles.as_ref(), &ports, &mut mismatches) {
            Ok(of_pod) => {
                let role = of_pod.first().map_or(Role::Unified, |member| member.role);
                observed.push(readiness::observation(build, pod, role, &of_pod));
                members.extend(of_pod);
            }
            Err(reason) => {
                unfit.push(Excluded { worker: Arc::clone(&pod.summary.full_name), reason })
            }
        }
    }
    drop(selected);
    build.pods = pods;
    readiness::distrust_members(build, subject, &observed, &mut members);
    let port = roles.as_ref().and_then(|roles| roles.bootstrap_port);
    if let (Some(policy), Some(port)) = (policy, port) {
        mismatches.report(build, policy.subject(), port);
    }
    let profile = if roles.is_some() { Profile::Pd } else { Profile::Single };
    if profile == Profile::Single {
        bootstrap::report_missing_policy(build, subject, &members);
    }
    let mut pool = Pool::new(subject.name.clone(), profile, members);
    if let Some(reason) = pool.allocation_mismatch() {
        build.add_problem(subject, "", "DecodeAllocationMismatch", reason);
    }
    pool.selection = selection(spec, roles.as_ref()).into();
    pool.rate_estimators = build.experience(subject.name);
    if let Some(before) = build.previous.pool(subject.name) {
        pool.history = Arc::clone(&before.history);
    }
    pool.excluded.extend(unfit);
    let runtime = policy.and_then(|policy| policy.policy.spec.model_server_runtime.as_deref());
    pool.runtime = runtime.unwrap_or("sglang").into();
    pool.h2c = h2c(build, subject, spec.app_protocol());
    pool
}

/// How the pool's pods are selected, in words.
fn selection(spec: &InferencePool, roles: Option<&RoleSource>) -> String {
    let labels: Vec<String> =
        spec.selector().iter().map(|(name, value)| format!("{name}={value}")).collect();
    let role = roles.map_or(String::new(), |roles| format!(", role label {}", roles.label));
    format!("selector {}{role}", labels.join(","))
}

/// Returns the role source if the policy has profile `pd`, and reports its invalid fields.
fn roles(build: &mut Build<'_>, policy: &NamedPolicy<'_>) -> Option<RoleSource> {
    let spec = &policy.policy.spec;
    let profile = spec.profile.as_ref()?;
    if profile.pd.is_some() && profile.single.is_some() {
        let reason = "pd and single are mutually exclusive; pd is used";
        build.add_problem(policy.subject(), "spec.profile", "Invalid", reason);
    }
    let pd = profile.pd.as_ref()?;
    let runtime = spec.model_server_runtime.as_deref().unwrap_or("sglang");
    if runtime != "sglang" {
        let reason = format!(
            "{runtime:?} is not supported with profile.pd; use sglang. Routes to the pool get 500"
        );
        build.add_problem(policy.subject(), "spec.modelServerRuntime", "Unsupported", reason);
    }
    let port = pd.kv_transfer.as_ref().and_then(|kv| kv.bootstrap_port);
    Some(RoleSource {
        label: pd.pd_role_label_name.clone().unwrap_or_else(|| DEFAULT_ROLE_LABEL.to_owned()),
        bootstrap_port: port.map(|port| port.get()),
    })
}

/// Uses RoleBasedGroup's newer label if no pod of the pool has the configured one.
fn choose_label(
    build: &mut Build<'_>,
    roles: &mut RoleSource,
    policy: &NamedPolicy<'_>,
    pool: &ObjectName,
    selected: &[&PodView<'_>],
) {
    let present = |label: &str| selected.iter().any(|pod| pod.label(label).is_some());
    if selected.is_empty() || present(&roles.label) {
        return;
    }
    let field = "spec.profile.pd.pdRoleLabelName";
    let named = &roles.label;
    if present(ALIAS_ROLE_LABEL) {
        let reason = format!(
            "no pod of pool {pool} has label {named}; {ALIAS_ROLE_LABEL}, which newer versions of \
             RoleBasedGroup set, is used instead"
        );
        build.add_problem(policy.subject(), field, "RoleLabelAlias", reason);
        roles.label = ALIAS_ROLE_LABEL.to_owned();
    } else {
        let reason = format!("no pod of pool {pool} has label {named}: the pool has no workers");
        build.add_problem(policy.subject(), field, "RoleLabelMissing", reason);
    }
}

/// The members of a selected pod, one per port, or the reason why it has none.
fn members_of(
    build: &mut Build<'_>,
    pod: &PodView<'_>,
    roles: Option<&RoleSource>,
    ports: &[u16],
    mismatches: &mut PolicyMismatches,
) -> Result<Vec<Member>, String> {
    let labelled = match roles {
        None => Role::Unified,
        Some(roles) => match pod.label(&roles.label) {
            Some("prefill") => Role::Prefill,
            Some("decode") => Role::Decode,
            Some(other) => {
                return Err(format!("role {other:?} ({}) must be prefill or decode", roles.label));
            }
            None => return Err(format!("has no label {}", roles.label)),
        },
    };
    let ip = pod.summary.address.clone()?;
    let summary = pod.summary;
    let of_policy = roles.and_then(|roles| roles.bootstrap_port);
    let key =
        |port| WorkerKey { uid: Arc::clone(&summary.uid), address: SocketAddr::new(ip, port) };
    let infos = ports.iter().map(|&port| build.index.engine_info.get(&key(port)).cloned());
    let engines: Vec<_> = infos.map(|info| (role_of(labelled, info.as_deref()), info)).collect();
    let any_prefill = engines.iter().any(|(role, _)| *role == Role::Prefill);
    let configured = any_prefill.then(|| BootstrapPorts::read(build, pod, ports.len(), of_policy));
    let mut members = Vec::with_capacity(ports.len());
    for (at, (&port, (role, info))) in ports.iter().zip(engines).enumerate() {
        let key = key(port);
        let configured = configured.as_ref().filter(|_| role == Role::Prefill);
        let bootstrap = configured.and_then(|configured| {
            configured.of_engine(build, pod, (at, port), info.as_deref(), mismatches)
        });
        // Workers of one pod need names that differ.
        let name = match ports.len() {
            1 => Arc::clone(&summary.full_name),
            _ => format!("{}:{port}", summary.full_name).into(),
        };
        members.push(Member {
            worker: build.worker(key, &name),
            role,
            phase: pod.phase(build.index),
            bootstrap: bootstrap.map(|port| SocketAddr::new(ip, port)),
            group: summary.group.clone(),
            engine_info: info,
            node: summary.node.clone(),
        });
    }
    Ok(members)
}

/// The role of an engine: its label's, unless it can change its role and has taken the other.
fn role_of(labelled: Role, info: Option<&EngineInfo>) -> Role {
    match labelled {
        Role::Unified => labelled,
        Role::Prefill | Role::Decode => {
            info.and_then(EngineInfo::switched_role).unwrap_or(labelled)
        }
    }
}

fn h2c(build: &mut Build<'_>, subject: Subject<'_>, app_protocol: Option<&str>) -> bool {
    match app_protocol {
        None | Some("http") => false,
        Some("kubernetes.io/h2c") => true,
        Some(other) => {
            let reason = format!("{other:?} is not supported; http is used");
            build.add_problem(subject, "spec.appProtocol", "Unsupported", reason);
            false
        }
    }
}
