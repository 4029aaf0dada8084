//! The directory of manifests that names a node's pods.

use std::net::IpAddr;
use std::path::Path;

use router_tests::folder::Folder;

/// The engines' port, and the prefills' bootstrap port.
pub(crate) const ENGINE: u16 = 8000;
pub(crate) const BOOTSTRAP: u16 = 34000;
pub(crate) const NODE: &str = "node-1";

/// One pod of the manifests.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: &'static str,
    pub(crate) uid: String,
    pub(crate) address: IpAddr,
    pub(crate) role: &'static str,
    pub(crate) node: &'static str,
    pub(crate) host_network: bool,
}

pub(crate) fn prefill(name: &'static str, address: IpAddr) -> Named {
    named(name, address, "prefill")
}

pub(crate) fn decode(name: &'static str, address: IpAddr) -> Named {
    named(name, address, "decode")
}

fn named(name: &'static str, address: IpAddr, role: &'static str) -> Named {
    Named { name, uid: format!("uid-{name}"), address, role, node: NODE, host_network: false }
}

/// A directory that goes with the test.
#[derive(Debug)]
pub(crate) struct Manifests(Folder);

impl Manifests {
    pub(crate) fn new() -> Manifests {
        Manifests(Folder::new("kernel"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes the pods, all at once.
    pub(crate) fn write(&self, pods: &[Named]) {
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
        for Named { name, uid, address, role, node, host_network } in pods {
            text += &format!(
                "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, uid: {uid}, labels: {{app: engine, role: {role}}}}}
spec: {{nodeName: {node}, hostNetwork: {host_network}, containers: []}}
status: {{podIP: \"{address}\", phase: Running, conditions: [{{type: Ready, status: \"True\"}}]}}
"
            );
        }
        let next = self.0.path().join(".next");
        std::fs::write(&next, text).expect("writing the manifests");
        std::fs::rename(next, self.0.path().join("fleet.yaml")).expect("showing the manifests");
    }
}
