//! The started fleet as manifests, which gateways and the agent read.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::engines::{BOOTSTRAP_PORT, Engine, Engines, PORT, Role};

/// Writes the fleet's manifests into a folder; the listener of gateways has this port.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(folder: &Path, engines: &Engines, listener: u16) -> Result<PathBuf> {
    let manifests = folder.join("fleet");
    std::fs::create_dir_all(&manifests).context("a folder for manifests")?;
    let file = manifests.join("fleet.yaml");
    std::fs::write(&file, text(engines, listener))
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(manifests)
}

fn text(engines: &Engines, listener: u16) -> String {
    let mut text = format!(
        "apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: fleet}}
spec:
  selector: {{matchLabels: {{app: engine}}}}
  targetPorts: [{{number: {PORT}}}]
---
apiVersion: inferenceextension.alibabacloud.com/v1alpha1
kind: InferenceTrafficPolicy
metadata: {{name: fleet}}
spec:
  poolRef: {{name: fleet}}
  profile: {{pd: {{pdRoleLabelName: role, kvTransfer: {{bootstrapPort: {BOOTSTRAP_PORT}}}}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: fleet}}
spec:
  gatewayClassName: pd-router
  listeners: [{{name: http, protocol: HTTP, port: {listener}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: fleet}}
spec:
  parentRefs: [{{name: fleet}}]
  rules:
  - backendRefs: [{{name: fleet, kind: InferencePool, group: inference.networking.k8s.io}}]
"
    );
    for Engine { name, role, ip, .. } in &engines.0 {
        let Some(ip) = ip else { continue };
        let (role, port) =
            (role.name(), if *role == Role::Prefill { BOOTSTRAP_PORT } else { PORT });
        // Writing to a string cannot fail.
        _ = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, uid: {name}-{ip}, labels: {{app: engine, role: {role}}}}}
spec: {{containers: [{{name: engine, ports: [{{containerPort: {port}}}]}}]}}
status: {{podIP: \"{ip}\", phase: Running, conditions: [{{type: Ready, status: \"True\"}}]}}
"
        );
    }
    text
}
