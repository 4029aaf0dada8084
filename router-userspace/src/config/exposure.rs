//! Flags that control how clients reach the Gateways of a cluster.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use router_core::fleet::ObjectName;

use crate::control::gateway_service::plan::TARGET_PORTS;

/// The labels of a gateway's pods, unless `--gateway-pod-labels` has others.
const GATEWAY_POD_LABELS: &str = "app.kubernetes.io/name=pd-router-gateway";

/// How clients reach the Gateways of a cluster.
#[derive(Clone, Debug, Args)]
pub struct ExposureFlags {
    /// Type of the Service that is created for each Gateway with --kubernetes, in the namespace of
    /// this pod.
    #[arg(long, value_enum, default_value_t = ServiceType::LoadBalancer)]
    pub gateway_service_type: ServiceType,
    /// Annotation of every Service that is created with --kubernetes. A Gateway's own
    /// spec.infrastructure.annotations take precedence. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub gateway_service_annotation: Vec<(String, String)>,
    /// Labels of this gateway's pods. The Services that are created with --kubernetes select them, and
    /// other gateways are found by them in this pod's namespace: each such pod is sent the token of
    /// --admin-token-file.
    #[arg(long, value_name = "KEY=VALUE,...", default_value = GATEWAY_POD_LABELS)]
    pub gateway_pod_labels: Labels,
    /// Existing Service in front of all Gateways with --kubernetes. No Services are created. Its
    /// ports must be the ports of the Gateways' listeners.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object_name)]
    pub gateway_service: Option<ObjectName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServiceType {
    #[value(name = "LoadBalancer")]
    LoadBalancer,
    #[value(name = "NodePort")]
    NodePort,
    #[value(name = "ClusterIP")]
    ClusterIp,
}

impl ServiceType {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::NodePort => "NodePort",
            ServiceType::ClusterIp => "ClusterIP",
        }
    }
}

/// Labels as the value of a flag: `KEY=VALUE,...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

impl std::str::FromStr for Labels {
    type Err = String;

    fn from_str(text: &str) -> Result<Labels, String> {
        text.split(',').map(pair).collect::<Result<_, _>>().map(Labels)
    }
}

impl Labels {
    /// The default of `--gateway-pod-labels`.
    pub(crate) fn of_gateways() -> Labels {
        GATEWAY_POD_LABELS.parse().expect("it has the form of the flag")
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.trim().split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` must be KEY=VALUE")),
    }
}

impl ExposureFlags {
    /// Checks what clap cannot.
    pub(super) fn check(&self, kubernetes: bool, admin_port: u16) -> Result<()> {
        if self.gateway_service.is_some() && !kubernetes {
            bail!("--gateway-service requires --kubernetes");
        }
        let makes_services = kubernetes && self.gateway_service.is_none();
        if makes_services && TARGET_PORTS.contains(&admin_port) {
            let (first, last) = TARGET_PORTS.into_inner();
            bail!(
                "--admin-listen uses port {admin_port}: ports {first} to {last} are reserved for Gateways"
            );
        }
        Ok(())
    }
}

/// Parses `NAMESPACE/NAME`.
fn object_name(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectName { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(format!("`{text}` must be NAMESPACE/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_pairs_with_commas_between() {
        let labels: Labels = "app=a, tier=b".parse().unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(labels.0, [pair("app", "a"), pair("tier", "b")].into());
        assert!("app".parse::<Labels>().is_err());
        assert_eq!(Labels::of_gateways().0.len(), 1);
    }
}
