//! Where the demo's fleet lives: on loopback, or each pod in a network namespace of its own.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::EXAMPLE;
use crate::{shell, workspace};

/// Roles and addresses of the example's pods.
const LOOPBACK: [(&str, &str); 3] =
    [("prefill", "127.0.0.11"), ("prefill", "127.0.0.12"), ("decode", "127.0.0.21")];
/// The same behind the demo's own node, from the range for benchmarks (RFC 2544).
const PODS: [(&str, &str); 3] =
    [("prefill", "198.18.78.11"), ("prefill", "198.18.78.12"), ("decode", "198.18.78.21")];
const NET: &str = "198.18.78.0/24";
const OUTSIDE: &str = "198.18.77.1";
const NODE: &str = "198.18.77.2";
/// The demo's end of the wire to its node.
const LINK: &str = "pdr-demo";

/// A place for the fleet. Whatever was made for it goes with it.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) manifests: PathBuf,
    pub(super) engines: [(&'static str, &'static str); 3],
    node: Option<Space>,
    pods: Vec<Space>,
}

impl Site {
    /// The example as it is.
    pub(super) fn loopback() -> Site {
        let manifests = PathBuf::from(EXAMPLE);
        Site { manifests, engines: LOOPBACK, node: None, pods: Vec::new() }
    }

    /// A node with three pods, each behind a veth, and a wire to it from here.
    ///
    /// # Errors
    /// Namespaces or interfaces cannot be made.
    pub(super) fn namespaces() -> Result<Site> {
        let node = Space::new()?;
        let pid = node.process.id();
        run(&mut sh(&format!(
            "ip link del {LINK} 2>/dev/null || true
             ip link add {LINK} type veth peer name up0 netns {pid}
             ip addr add {OUTSIDE}/24 dev {LINK}
             ip link set {LINK} up"
        )))?;
        node.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             ip addr add {NODE}/24 dev up0
             ip link set up0 up
             ip route add default via {OUTSIDE} dev up0"
        ))?;
        run(&mut sh(&format!("ip route add {NET} via {NODE} dev {LINK}")))?;
        let mut pods = Vec::new();
        for (number, (_, address)) in PODS.iter().enumerate() {
            let pod = Space::new()?;
            let pid = pod.process.id();
            node.sh(&format!(
                "ip link add veth{number} type veth peer name eth0 netns {pid}
                 ip addr add 169.254.1.1/32 dev veth{number}
                 ip link set veth{number} up
                 ip route add {address}/32 dev veth{number}"
            ))?;
            pod.sh(&format!(
                "ip addr add {address}/32 dev eth0
                 ip link set eth0 up
                 ip route add 169.254.1.1 dev eth0
                 ip route add default via 169.254.1.1 dev eth0"
            ))?;
            pods.push(pod);
        }
        Ok(Site { manifests: moved()?, engines: PODS, node: Some(node), pods })
    }

    /// The namespace of the node, if there is one.
    pub(super) fn node(&self) -> Option<&Space> {
        self.node.as_ref()
    }

    /// How to start the engine of this number.
    pub(super) fn command(&self, engine: usize, program: &Path) -> Vec<String> {
        match self.pods.get(engine) {
            Some(pod) => pod.enter(program),
            None => vec![program.display().to_string()],
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.node.is_some() {
            // It would go with the node's namespace, but that may take the kernel a while.
            _ = run(&mut sh(&format!("ip link del {LINK}")));
        }
    }
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

/// A network namespace, held by a process that ends with this one, however that ends: it reads a
/// pipe of ours. The namespace and its interfaces, wires out of it included, go with it.
#[derive(Debug)]
pub(super) struct Space {
    process: Child,
}

impl Space {
    fn new() -> Result<Space> {
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-ec", "ip link set lo up; echo; exec cat >/dev/null"]);
        // Not in the terminal's group: Ctrl-C is for us, and what is in here is put away first.
        let mut process = holder
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare, for a network namespace")?;
        let stdout = process.stdout.take().context("stdout is a pipe")?;
        let space = Space { process };
        // The line says that the namespace is there.
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("waiting for a namespace")?;
        if line.is_empty() {
            bail!("no network namespace can be made");
        }
        Ok(space)
    }

    /// The words that start a program in here.
    pub(super) fn enter(&self, program: &Path) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/ns/net", self.process.id());
        vec!["nsenter".to_owned(), namespace, program.display().to_string()]
    }

    fn sh(&self, script: &str) -> Result<()> {
        let words = self.enter(Path::new("sh"));
        run(Command::new(&words[0]).args(&words[1..]).args(["-ec", script]))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    command
}

fn run(command: &mut Command) -> Result<()> {
    shell::output(command).map(drop)
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
