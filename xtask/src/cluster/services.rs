//! The services of each machine, and the configuration that they read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::credentials::Credentials;
use super::plan::{Addresses, CONTROL_PLANE, Machine, Plan, Service, node_name};
use super::programs::Programs;

/// The image of a pod's first process.
pub(super) const PAUSE_IMAGE: &str = "localhost/pd-router-pause:1";
const CONTAINERD: &str = include_str!("config/containerd.toml");
const NETWORK: &str = include_str!("config/network.json");
const KUBELET: &str = include_str!("config/kubelet.yaml");
const KUBE_PROXY: &str = include_str!("config/kube-proxy.yaml");
const DNS: &str = include_str!("config/dns.yaml");

/// Writes the configuration of a cluster into its folder, and plans its machines.
pub(super) struct Planner<'a> {
    pub(super) folder: &'a Path,
    pub(super) addresses: Addresses,
    pub(super) programs: &'a Programs,
    pub(super) credentials: &'a Credentials,
}

impl Planner<'_> {
    /// The plan of a cluster with so many nodes.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn plan(&self, kubernetes: &str, nodes: u8) -> Result<Plan> {
        fs::create_dir_all(self.folder.join("config")).context("making the configuration")?;
        let mut machines = vec![self.control_plane()];
        for node in 1..=nodes {
            machines.push(self.node(node)?);
        }
        self.write("dns.yaml", DNS, 0)?;
        Ok(Plan { addresses: self.addresses, kubernetes: format!("v{kubernetes}"), machines })
    }

    /// The path of a file of the configuration.
    pub(super) fn config(folder: &Path, name: &str) -> String {
        folder.join("config").join(name).display().to_string()
    }

    /// Writes a file with its placeholders filled in, and returns its path.
    fn write(&self, name: &str, template: &str, node: u8) -> Result<String> {
        let text = template
            .replace("@CA@", &self.credentials.file("ca.crt"))
            .replace("@DNS_SERVICE@", &self.addresses.dns_service().to_string())
            .replace("@ALL_PODS@", &self.addresses.all_pods())
            .replace("@PODS@", &self.addresses.pods(node))
            .replace("@KUBE_PROXY@", &self.credentials.kubeconfig("kube-proxy"))
            .replace("@PAUSE_IMAGE@", PAUSE_IMAGE);
        let path = Self::config(self.folder, name);
        fs::write(&path, text).with_context(|| format!("writing {path}"))?;
        Ok(path)
    }

    fn control_plane(&self) -> Machine {
        let etcd = service(
            "etcd",
            &self.programs.etcd(),
            &[
                "--data-dir=/var/lib/etcd/data".into(),
                // Its data goes with the cluster.
                "--unsafe-no-fsync".into(),
                "--listen-client-urls=http://127.0.0.1:2379".into(),
                "--advertise-client-urls=http://127.0.0.1:2379".into(),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-cluster=default=http://127.0.0.1:2380".into(),
            ],
        );
        let services = vec![etcd, self.api_server(), self.controller_manager(), self.scheduler()];
        Machine { name: CONTROL_PLANE.to_owned(), services }
    }

    fn api_server(&self) -> Service {
        let (ip, secret) = (self.addresses.control_plane(), self.credentials);
        service(
            "kube-apiserver",
            &self.programs.kubernetes("kube-apiserver"),
            &[
                format!("--advertise-address={ip}"),
                "--secure-port=6443".into(),
                "--etcd-servers=http://127.0.0.1:2379".into(),
                format!("--service-cluster-ip-range={}", self.addresses.services()),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--allow-privileged=true".into(),
                "--kubelet-preferred-address-types=InternalIP".into(),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
                format!("--token-auth-file={}", secret.file("tokens.csv")),
                format!("--client-ca-file={}", secret.file("ca.crt")),
                format!("--tls-cert-file={}", secret.file("apiserver.crt")),
                format!("--tls-private-key-file={}", secret.file("apiserver.key")),
                format!("--kubelet-client-certificate={}", secret.file("kubelet-client.crt")),
                format!("--kubelet-client-key={}", secret.file("kubelet-client.key")),
                format!("--service-account-key-file={}", secret.file("service-accounts.pub")),
                format!(
                    "--service-account-signing-key-file={}",
                    secret.file("service-accounts.key")
                ),
            ],
        )
    }

    fn controller_manager(&self) -> Service {
        let secret = self.credentials;
        self.controller(
            "kube-controller-manager",
            &[
                "--use-service-account-credentials=true".into(),
                format!("--root-ca-file={}", secret.file("ca.crt")),
                format!("--cluster-signing-cert-file={}", secret.file("ca.crt")),
                format!("--cluster-signing-key-file={}", secret.file("ca.key")),
                format!(
                    "--service-account-private-key-file={}",
                    secret.file("service-accounts.key")
                ),
            ],
        )
    }

    fn scheduler(&self) -> Service {
        self.controller("kube-scheduler", &[])
    }

    /// A client of the API server in the control plane, alone of its kind.
    fn controller(&self, name: &str, more: &[String]) -> Service {
        let config = self.credentials.kubeconfig(name);
        let mut words = vec![
            format!("--kubeconfig={config}"),
            format!("--authentication-kubeconfig={config}"),
            format!("--authorization-kubeconfig={config}"),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
        ];
        words.extend_from_slice(more);
        service(name, &self.programs.kubernetes(name), &words)
    }

    fn node(&self, node: u8) -> Result<Machine> {
        let name = node_name(node);
        let containerd = self.write(&format!("{name}-containerd.toml"), CONTAINERD, node)?;
        let network = self.write(&format!("{name}-network.json"), NETWORK, node)?;
        let kubelet = self.write("kubelet.yaml", KUBELET, node)?;
        let proxy = self.write("kube-proxy.yaml", KUBE_PROXY, node)?;
        // containerd reads every file of a folder.
        let start = format!(
            "mkdir -p /etc/cni/net.d && ln -sf '{network}' /etc/cni/net.d/pods.conflist && \
             exec containerd --config '{containerd}'"
        );
        let services = vec![
            service("containerd", "sh", &["-c".into(), start]),
            service(
                "kubelet",
                &self.programs.kubernetes("kubelet"),
                &[
                    format!("--config={kubelet}"),
                    format!("--kubeconfig={}", self.credentials.kubeconfig(&name)),
                    format!("--hostname-override={name}"),
                    format!("--node-ip={}", self.addresses.node(node)),
                ],
            ),
            service(
                "kube-proxy",
                &self.programs.kubernetes("kube-proxy"),
                &[format!("--config={proxy}"), format!("--hostname-override={name}")],
            ),
        ];
        Ok(Machine { name, services })
    }
}

fn service(name: &str, program: &str, words: &[String]) -> Service {
    let command = [&[program.to_owned()], words].concat();
    Service { name: name.to_owned(), command }
}
