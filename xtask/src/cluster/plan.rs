//! What a cluster consists of: its machines, their addresses and the services that each runs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The machine with the API server; it has no kubelet.
pub(super) const CONTROL_PLANE: &str = "control-plane";
/// More nodes than this do not fit into the addresses of a cluster.
pub(super) const MAX_NODES: u8 = 100;

/// A cluster as its supervisor starts it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) addresses: Addresses,
    /// Kubernetes' version, with its `v`.
    pub(super) kubernetes: String,
    /// The control plane first, then the nodes.
    pub(super) machines: Vec<Machine>,
}

/// A machine: a set of namespaces, with services in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) services: Vec<Service>,
}

/// A process that is started again when it ends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Service {
    pub(super) name: String,
    /// The program and its arguments.
    pub(super) command: Vec<String>,
}

impl Plan {
    /// The nodes, without the control plane.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| machine.name != CONTROL_PLANE)
    }

    pub(super) fn read(folder: &Path) -> Result<Plan> {
        let text = std::fs::read(path(folder)).context("reading the cluster's plan")?;
        serde_json::from_slice(&text).context("the cluster's plan")
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        std::fs::write(path(folder), serde_json::to_vec(self)?)
            .context("writing the cluster's plan")
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("plan.json")
}

/// The addresses of a cluster. Each running cluster has a number of its own, so that programs that see
/// the whole machine, such as eBPF programs, can tell the pods of two clusters apart.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Addresses {
    pub(super) number: u8,
}

impl Addresses {
    /// Numbers from here on belong to the networks of other tests.
    pub(super) const MAX: u8 = 60;

    pub(super) fn control_plane(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, self.number, 1)
    }

    /// The address of a node, which counts from 1.
    pub(super) fn node(self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, self.number, 100 + node)
    }

    /// The pods of all nodes.
    pub(super) fn all_pods(self) -> String {
        format!("10.{}.0.0/17", self.number)
    }

    /// The pods of a node.
    pub(super) fn pods(self, node: u8) -> String {
        format!("10.{}.{node}.0/24", self.number)
    }

    pub(super) fn services(self) -> String {
        format!("10.{}.128.0/17", self.number)
    }

    /// The Service of the API server, which Kubernetes makes the first of the range.
    pub(super) fn api_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 128, 1)
    }

    pub(super) fn dns_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 128, 10)
    }
}

/// The name of a node, which counts from 1.
pub(super) fn node_name(node: u8) -> String {
    format!("node-{node}")
}

/// Checks a cluster's name, which becomes part of paths.
///
/// # Errors
/// It is empty, longer than 30 characters, or has other characters than a-z, 0-9 and `-`.
pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 30 || !name.chars().all(plain) {
        bail!("--name: 1 to 30 characters of a-z, 0-9 and `-` are allowed, not `{name}`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_two_clusters_and_of_pods_and_services_differ() {
        let [one, other] = [1, 2].map(|number| Addresses { number });
        assert_ne!(one.all_pods(), other.all_pods());
        assert_ne!(one.node(1), other.node(1));
        assert_ne!(one.node(MAX_NODES), one.control_plane());
        assert_eq!(one.pods(MAX_NODES), "10.1.100.0/24", "below the Services, which start at 128");
        assert_eq!(one.services(), "10.1.128.0/17");
    }

    #[test]
    fn a_name_that_is_no_folder_is_refused() {
        for good in ["default", "a-1"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "A", &"a".repeat(31)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
