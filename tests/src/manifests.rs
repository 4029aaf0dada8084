//! A directory of manifests, changed as an operator's tool would change it: whole files at once.

use std::net::IpAddr;
use std::path::Path;

use crate::folder::Folder;

/// The listener's port in [`Manifests::documents`], as in the documents.
pub const LISTENER_PORT: u16 = 8080;
/// The engines' HTTP port in the documents.
pub const ENGINE_PORT: u16 = 8000;
/// The bootstrap port in the documents.
pub const BOOTSTRAP_PORT: u16 = 34000;
/// The label that has a pod's role in the documents.
pub const ROLE_LABEL: &str = "rolebasedgroup.workloads.x-k8s.io/role";

/// A directory that a gateway watches; removed on drop.
#[derive(Debug)]
pub struct Manifests {
    folder: Folder,
}

/// A pod as the gateway reads it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub ip: IpAddr,
    pub role: String,
    pub ready: bool,
    pub deleting: bool,
    /// Part of the UID: a new one is a new pod at the same address.
    pub generation: u32,
    pub labels: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
}

impl Default for Manifests {
    fn default() -> Self {
        Manifests::new()
    }
}

impl Manifests {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Manifests {
        Manifests { folder: Folder::new("manifests") }
    }

    /// The documents' Gateway, HTTPRoute, InferencePool and policy, without pods.
    #[must_use]
    pub fn documents() -> Manifests {
        let manifests = Manifests::new();
        manifests.put("gateway.yaml", &gateway());
        manifests.put("route.yaml", &route("/", POOL));
        manifests.put("pool.yaml", &pool(POOL, "alibabacloud.com/inference_backend: sglang"));
        manifests
    }

    /// The documents' objects with a pool that has no split, without pods.
    #[must_use]
    pub fn single() -> Manifests {
        let manifests = Manifests::documents();
        let pool = pool(POOL, "alibabacloud.com/inference_backend: sglang");
        let profile = pool.find("    pd:").expect("the policy has a profile");
        manifests.put("pool.yaml", &format!("{}    single: {{}}\n", &pool[..profile]));
        manifests
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file in one step, so that no reader sees half of it.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn put(&self, file: &str, text: &str) {
        // A dot file is no manifest, and a rename inside one folder is atomic.
        let draft = self.path().join(format!(".{file}.draft"));
        std::fs::write(&draft, text).expect("writing a manifest");
        std::fs::rename(draft, self.path().join(file)).expect("renaming a manifest");
    }

    /// # Panics
    /// There is no such file.
    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.path().join(file)).expect("removing a manifest");
    }

    /// Writes `pod-NAME.yaml`.
    pub fn put_pod(&self, pod: &Pod) {
        self.put(&format!("pod-{}.yaml", pod.name), &pod.yaml());
    }

    /// Removes `pod-NAME.yaml`.
    pub fn remove_pod(&self, name: &str) {
        self.remove(&format!("pod-{name}.yaml"));
    }
}

/// The name of the pool in [`Manifests::documents`].
pub const POOL: &str = "qwen-inference-pool";

/// A Gateway with one HTTP listener.
#[must_use]
pub fn gateway() -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: inference-gateway
spec:
  gatewayClassName: ack-gateway
  listeners:
  - name: http-llm
    protocol: HTTP
    port: {LISTENER_PORT}
"
    )
}

/// An HTTPRoute named after its pool, from a path prefix to the pool.
#[must_use]
pub fn route(prefix: &str, pool: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: to-{pool}
spec:
  parentRefs:
  - name: inference-gateway
  rules:
  - matches:
    - path:
        type: PathPrefix
        value: {prefix}
    backendRefs:
    - name: {pool}
      kind: InferencePool
      group: inference.networking.x-k8s.io
"
    )
}

/// An InferencePool of one label, and its policy with the prefill/decode profile.
#[must_use]
pub fn pool(name: &str, label: &str) -> String {
    format!(
        "apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata:
  name: {name}
spec:
  targetPortNumber: {ENGINE_PORT}
  selector:
    {label}
---
apiVersion: inferenceextension.alibabacloud.com/v1alpha1
kind: InferenceTrafficPolicy
metadata:
  name: {name}-policy
spec:
  poolRef:
    name: {name}
  modelServerRuntime: sglang
  profile:
    pd:
      pdRoleLabelName: {ROLE_LABEL}
      kvTransfer:
        bootstrapPort: {BOOTSTRAP_PORT}
"
    )
}

impl Pod {
    /// A ready pod of the documents' pool.
    #[must_use]
    pub fn new(name: &str, role: &str, ip: IpAddr) -> Pod {
        Pod {
            name: name.into(),
            ip,
            role: role.into(),
            ready: true,
            deleting: false,
            generation: 1,
            labels: vec![("alibabacloud.com/inference_backend".into(), "sglang".into())],
            annotations: Vec::new(),
        }
    }

    /// Every label, the role's among them.
    #[must_use]
    pub fn all_labels(&self) -> Vec<(String, String)> {
        let role = (ROLE_LABEL.to_owned(), self.role.clone());
        self.labels.iter().cloned().chain([role]).collect()
    }

    fn yaml(&self) -> String {
        let pairs = |pairs: &[(String, String)]| -> String {
            pairs.iter().map(|(key, value)| format!("    {key}: \"{value}\"\n")).collect()
        };
        let annotations = match pairs(&self.annotations) {
            none if none.is_empty() => none,
            some => format!("  annotations:\n{some}"),
        };
        let deletion =
            if self.deleting { "  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n" } else { "" };
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  uid: {name}-{generation}
{deletion}  labels:
    {ROLE_LABEL}: {role}
{labels}{annotations}status:
  phase: Running
  podIP: {ip}
  conditions:
  - type: Ready
    status: \"{ready}\"
",
            name = self.name,
            generation = self.generation,
            role = self.role,
            labels = pairs(&self.labels),
            ip = self.ip,
            ready = if self.ready { "True" } else { "False" },
        )
    }
}
