//! Where the demo's fleet lives: on loopback, or each pod in a network namespace of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netns::{Namespace, route_pod};

use super::EXAMPLE;
use crate::{shell, workspace};

/// Roles and addresses of the example's pods.
const LOOPBACK: [(&str, &str); 3] =
    [("prefill", "127.0.0.11"), ("prefill", "127.0.0.12"), ("decode", "127.0.0.21")];
/// Roles and addresses of the same pods behind the demo's own node, from the range for benchmarks (RFC 2544).
const PODS: [(&str, &str); 3] =
    [("prefill", "198.18.78.11"), ("prefill", "198.18.78.12"), ("decode", "198.18.78.21")];
const NET: &str = "198.18.78.0/24";
const OUTSIDE: &str = "198.18.77.1";
const NODE: &str = "198.18.77.2";
/// The demo's end of the wire to its node.
const LINK: &str = "pdr-demo";

/// Where the fleet runs. Dropping it removes its namespaces and links.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) manifests: PathBuf,
    pub(super) engines: [(&'static str, &'static str); 3],
    node: Option<Namespace>,
    pods: Vec<Namespace>,
}

impl Site {
    /// The example as it is, on loopback.
    pub(super) fn loopback() -> Site {
        let manifests = PathBuf::from(EXAMPLE);
        Site { manifests, engines: LOOPBACK, node: None, pods: Vec::new() }
    }

    /// A node with three pods, each behind a veth, and a link to it from this machine.
    ///
    /// # Errors
    /// Namespaces or interfaces cannot be made.
    pub(super) fn namespaces() -> Result<Site> {
        let node = Namespace::try_new().context("making a network namespace")?;
        sh(&format!(
            "ip link del {LINK} 2>/dev/null || true
             ip link add {LINK} type veth peer name up0 netns {}
             ip addr add {OUTSIDE}/24 dev {LINK}
             ip link set {LINK} up",
            node.path()
        ))?;
        node.try_sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             ip addr add {NODE}/24 dev up0
             ip link set up0 up
             ip route add default via {OUTSIDE} dev up0"
        ))?;
        sh(&format!("ip route add {NET} via {NODE} dev {LINK}"))?;
        let mut pods = Vec::new();
        for (number, (_, address)) in PODS.iter().enumerate() {
            let pod = Namespace::try_new().context("making a network namespace")?;
            let link = format!("veth{number}");
            let path = pod.path();
            node.try_sh(&format!("ip link add {link} type veth peer name eth0 netns {path}"))?;
            route_pod((&node, &link), &pod, address.parse().context("a pod's address")?)?;
            pods.push(pod);
        }
        Ok(Site { manifests: moved()?, engines: PODS, node: Some(node), pods })
    }

    /// The namespace of the node, if there is one.
    pub(super) fn node(&self) -> Option<&Namespace> {
        self.node.as_ref()
    }

    /// The command that starts the engine of this number.
    pub(super) fn command(&self, engine: usize, program: &Path) -> Vec<String> {
        match self.pods.get(engine) {
            Some(pod) => inside(pod, program),
            None => vec![program.display().to_string()],
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.node.is_some() {
            // The kernel removes it with the node's namespace, but that may take a while.
            _ = sh(&format!("ip link del {LINK}"));
        }
    }
}

/// The command that starts a program in a namespace.
pub(super) fn inside(netns: &Namespace, program: &Path) -> Vec<String> {
    vec!["nsenter".to_owned(), format!("--net={}", netns.path()), program.display().to_string()]
}

/// Runs a script in this machine's own network.
fn sh(script: &str) -> Result<()> {
    shell::output(shell::command("sh").args(["-ec", script])).map(drop)
}

/// A copy of the example in which the pods have the namespaces' addresses.
fn moved() -> Result<PathBuf> {
    let folder = workspace::cache()?.join("demo");
    _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let example = workspace::root().join(EXAMPLE);
    for entry in std::fs::read_dir(&example).with_context(|| example.display().to_string())? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|e| e == "yaml"))
        else {
            continue;
        };
        let mut text = std::fs::read_to_string(&path)?;
        for ((_, from), (_, to)) in LOOPBACK.iter().zip(PODS) {
            text = text.replace(from, to);
        }
        std::fs::write(folder.join(name), text)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_of_the_example_has_every_pod_at_its_new_address() {
        let folder = moved().unwrap();
        let pods = std::fs::read_to_string(folder.join("pods.yaml")).unwrap();
        for ((_, from), (_, to)) in LOOPBACK.iter().zip(PODS) {
            assert!(!pods.contains(from) && pods.contains(&format!("podIP: {to}")), "{pods}");
        }
    }
}
