//! The programs of a cluster: Kubernetes, etcd and CoreDNS built from Go modules, and what a node runs
//! from Debian's packages, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::golang::{self, Program};
use crate::{shell, steps, tools, workspace};

/// The version that `tests/kubernetes/control-plane` names.
pub(super) const KUBERNETES: &str = "1.34.4";
const KUBERNETES_MODULE: &str = "control-plane";
/// Debian's packages of a node.
const PACKAGES: [&str; 6] =
    ["containerd", "runc", "containernetworking-plugins", "conntrack", "ipset", "iptables"];
/// What making namespaces and credentials needs, and the package of each.
const TOOLS: [(&str, &str); 5] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("pivot_root", "util-linux"),
    ("ip", "iproute2"),
    ("openssl", "openssl"),
];
const UNPACKED: &str = "node-packages";

const CONTROL_PLANE: [Program; 6] = [
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
];

const fn kubernetes(name: &'static str, package: &'static str) -> Program {
    Program { name, package, is_test: false }
}

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    kubernetes: PathBuf,
    etcd: PathBuf,
    coredns: PathBuf,
}

impl Programs {
    /// The path of a program of Kubernetes, for a command line.
    pub(super) fn kubernetes(&self, name: &str) -> String {
        self.kubernetes.join(name).display().to_string()
    }

    pub(super) fn etcd(&self) -> String {
        self.etcd.join("etcd").display().to_string()
    }

    pub(super) fn coredns(&self) -> PathBuf {
        self.coredns.join("coredns")
    }
}

/// Finds all programs, or builds and fetches them, which takes some 20 minutes of CPU time once.
///
/// # Errors
/// This is not root or not Debian, there is no Go, or a program cannot be built.
pub(super) fn get(version: &str) -> Result<Programs> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster's namespaces, mounts and control groups need root");
    }
    for (tool, package) in TOOLS {
        if shell::which(tool).is_none() {
            tools::install_packages(&[package])?;
        }
    }
    unpack_packages()?;
    let single = |name: &'static str, package| {
        golang::build(
            &format!("go-{name}"),
            &golang::module(name),
            &[kubernetes(name, package)],
            &[],
        )
    };
    Ok(Programs {
        kubernetes: kubernetes_programs(version)?,
        etcd: single("etcd", "go.etcd.io/etcd/server/v3")?,
        coredns: single("coredns", "github.com/coredns/coredns")?,
    })
}

/// Where the packages of a node are unpacked.
///
/// # Errors
/// There is no cache folder.
pub(super) fn packages() -> Result<PathBuf> {
    Ok(workspace::cache()?.join(UNPACKED).join("root"))
}

/// Fetches those packages that are not installed, with what they depend on. None is installed, so that
/// no service of theirs starts.
fn unpack_packages() -> Result<()> {
    let unpack = |folder: &Path| {
        if shell::which("apt-get").is_none() {
            bail!("containerd and others come from Debian's packages, and this is not Debian");
        }
        steps::step(&format!("fetching {}", PACKAGES.join(" ")), || fetch_packages(folder))
    };
    workspace::kept(UNPACKED, &PACKAGES.join(" "), unpack).map(|_| ())
}

fn fetch_packages(folder: &Path) -> Result<()> {
    _ = fs::remove_dir_all(folder);
    let archives = folder.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let apt = |words: &[&str]| {
        let mut command = shell::command("apt-get");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=300", "-o"]);
        command.arg(format!("Dir::Cache::archives={}", archives.display())).args(words);
        shell::output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends", "--download-only"], &PACKAGES[..]]
        .concat())?;
    let root = folder.join("root");
    fs::create_dir_all(root.join("usr"))?;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            shell::output(shell::command("dpkg").arg("-x").arg(path).arg(&root))?;
        }
    }
    merge_usr(&root)?;
    fs::remove_dir_all(&archives).context("removing the packages' archives")
}

/// Moves what packages have beside `/usr` below it, where Debian has had it since version 12, and makes
/// the links that an installation of iptables would have made.
fn merge_usr(root: &Path) -> Result<()> {
    let script = "
        for folder in bin sbin lib lib64; do
            if [ -d $folder ]; then cp -a $folder usr/; rm -r $folder; fi
        done
        if [ -e usr/sbin/xtables-nft-multi ]; then
            for name in iptables ip6tables; do
                for end in '' -save -restore; do ln -s xtables-nft-multi usr/sbin/$name$end; done
            done
        fi";
    shell::output(shell::command("sh").args(["-euc", script]).current_dir(root)).map(|_| ())
}

/// Builds Kubernetes of that version, from the committed go.sum where that is its version.
fn kubernetes_programs(version: &str) -> Result<PathBuf> {
    let parts: Vec<&str> = version.split('.').collect();
    let [major, minor, patch] = parts[..] else {
        bail!("--kubernetes: a version such as {KUBERNETES} is expected, not `{version}`");
    };
    if [major, minor, patch].iter().any(|part| part.parse::<u16>().is_err()) {
        bail!("--kubernetes: a version such as {KUBERNETES} is expected, not `{version}`");
    }
    let module = match version == KUBERNETES {
        true => golang::module(KUBERNETES_MODULE),
        false => other_module(version)?,
    };
    let variables = [
        format!("k8s.io/component-base/version.gitVersion=v{version}"),
        format!("k8s.io/component-base/version.gitMajor={major}"),
        format!("k8s.io/component-base/version.gitMinor={minor}"),
    ];
    golang::build(&format!("go-kubernetes-{version}"), &module, &CONTROL_PLANE, &variables)
}

/// A module for a version that is not committed: as the committed one, with the staging modules that
/// Kubernetes' own go.mod of that version replaces by folders.
fn other_module(version: &str) -> Result<PathBuf> {
    let name = format!("kubernetes-{version}-module");
    workspace::kept(&name, version, |folder| {
        fs::create_dir_all(folder)?;
        let committed = golang::module(KUBERNETES_MODULE);
        let asked = format!("k8s.io/kubernetes@v{version}");
        let mut download = golang::command(&committed)?;
        let printed = shell::output(download.args(["mod", "download", "-json", &asked]))?;
        let printed: serde_json::Value = serde_json::from_str(&printed)?;
        let path = printed["GoMod"].as_str().context("Go names no go.mod")?;
        let upstream = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        fs::write(folder.join("go.mod"), module_text(version, &upstream))?;
        steps::step(&format!("resolving Kubernetes {version}"), || {
            shell::output(golang::command(folder)?.args(["mod", "tidy"])).map(|_| ())
        })
    })
}

/// The go.mod that builds a version of Kubernetes; `upstream` is its own.
fn module_text(version: &str, upstream: &str) -> String {
    let (_, behind) = version.split_once('.').unwrap_or(("", version));
    let go = upstream.lines().find(|line| line.starts_with("go ")).unwrap_or("go 1.26.0");
    let tools: String =
        CONTROL_PLANE.iter().map(|program| format!("tool {}\n", program.package)).collect();
    let staging = upstream.lines().filter_map(|line| line.split_once(" => ./staging/"));
    let replaced: String = staging
        .map(|(module, _)| module.trim().trim_start_matches("replace "))
        .map(|module| format!("replace {module} => {module} v0.{behind}\n"))
        .collect();
    format!("module kubernetes\n{go}\n{tools}require k8s.io/kubernetes v{version}\n{replaced}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_module_is_of_the_version_that_is_the_default() {
        let text = fs::read_to_string(golang::module(KUBERNETES_MODULE).join("go.mod")).unwrap();
        assert!(text.contains(&format!("\tk8s.io/kubernetes v{KUBERNETES} ")), "{text}");
        for program in CONTROL_PLANE {
            assert!(text.contains(&format!("\t{}\n", program.package)), "{}", program.package);
        }
    }

    #[test]
    fn staging_modules_of_another_version_are_replaced_by_modules() {
        let upstream = "go 1.25.0\n\treplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let text = module_text("1.36.1", upstream);
        assert!(text.contains("\ngo 1.25.0\n") && text.contains("k8s.io/kubernetes v1.36.1\n"));
        assert!(text.contains("\nreplace k8s.io/api => k8s.io/api v0.36.1\n"), "{text}");
    }
}
