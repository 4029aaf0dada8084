//! The directory of manifests that names a node's pods.

use std::net::IpAddr;
use std::path::Path;

use crate::folder::Folder;

/// The engines' port, and the prefills' bootstrap port.
pub const ENGINE: u16 = 8000;
pub const BOOTSTRAP: u16 = 34000;
pub const NODE: &str = "node-1";

/// One pod of the manifests.
#[derive(Clone, Debug)]
pub struct PodEntry {
    pub name: &'static str,
    pub uid: String,
    pub address: IpAddr,
    /// Its address of the other family.
    pub other_address: Option<IpAddr>,
    pub role: &'static str,
    pub node: &'static str,
    pub host_network: bool,
}

pub fn prefill(name: &'static str, address: IpAddr) -> PodEntry {
    named(name, address, "prefill")
}

pub fn decode(name: &'static str, address: IpAddr) -> PodEntry {
    named(name, address, "decode")
}

fn named(name: &'static str, address: IpAddr, role: &'static str) -> PodEntry {
    PodEntry {
        name,
        uid: format!("uid-{name}"),
        address,
        other_address: None,
        role,
        node: NODE,
        host_network: false,
    }
}

/// A directory that is removed with the test.
#[derive(Debug)]
pub struct NodeManifests(Folder);

impl NodeManifests {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "making one creates a folder")]
    pub fn new() -> NodeManifests {
        NodeManifests(Folder::new("kernel"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes the pods, all at once.
    pub fn write(&self, pods: &[PodEntry]) {
        let mut text = format!(
            "apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: pool, namespace: default}}
spec:
  selector: {{matchLabels: {{app: engine}}}}
  targetPorts: [{{number: {ENGINE}}}]
---
apiVersion: inferenceextension.alibabacloud.com/v1alpha1
kind: InferenceTrafficPolicy
metadata: {{name: policy, namespace: default}}
spec:
  poolRef: {{name: pool}}
  profile: {{pd: {{pdRoleLabelName: role, kvTransfer: {{bootstrapPort: {BOOTSTRAP}}}}}}}
"
        );
        for PodEntry { name, uid, address, other_address, role, node, host_network } in pods {
            let other = other_address.map(|other| format!(", {{ip: \"{other}\"}}"));
            let all = format!("[{{ip: \"{address}\"}}{}]", other.unwrap_or_default());
            text += &format!(
                "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, uid: {uid}, labels: {{app: engine, role: {role}}}}}
spec: {{nodeName: {node}, hostNetwork: {host_network}, containers: []}}
status: {{podIP: \"{address}\", podIPs: {all}, phase: Running, conditions: [{{type: Ready, status: \"True\"}}]}}
"
            );
        }
        let next = self.0.path().join(".next");
        std::fs::write(&next, text).expect("writing the manifests");
        std::fs::rename(next, self.0.path().join("fleet.yaml")).expect("showing the manifests");
    }
}
