//! A real API server and etcd for one test, each on a loopback address, and kubectl on them.
//!
//! There are no kubelets: a test creates pods and writes their status itself.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod as ApiPod, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::eventually::eventually;
use crate::folder::Folder;
use crate::loopback::Loopback;
use crate::manifests::Pod;

/// Folders of etcd's data: what it works on, and what it was at a snapshot.
const ETCD_DATA: &str = "etcd";
const SNAPSHOT: &str = "etcd-snapshot";
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
const API_PORT: u16 = 6443;
/// A busy machine starts an API server slowly.
const START: Duration = Duration::from_secs(120);
/// User who may do everything.
pub const ADMIN: &str = "admin";

/// A cluster of one API server. Ends with the test.
pub struct Cluster {
    address: Loopback,
    etcd: Option<Process>,
    api_server: Option<Process>,
    /// Dropped last: the logs of the others are in it.
    folder: Folder,
}

/// A child process, killed on drop; its output is in a file of the cluster's folder.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(folder: &Path, name: &str, command: &mut Command) -> Process {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log);
        let file = file.expect("opening a log");
        let errors = file.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        Process { child: child.unwrap_or_else(|error| panic!("starting {name}: {error}")), log }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            eprintln!("--- end of {}\n{tail}\n---", self.log.display());
        }
    }
}

/// A program that `cargo xtask test cluster` names.
fn program(variable: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!("{variable} is not set; run `cargo xtask test cluster`, which finds or builds it")
    })
}

impl Cluster {
    /// Starts etcd and the API server; ready to be used.
    ///
    /// # Panics
    /// One of them does not start in time.
    pub async fn start() -> Cluster {
        let folder = Folder::new("cluster");
        let address = Loopback::claim();
        let mut cluster = Cluster { address, etcd: None, api_server: None, folder };
        cluster.start_etcd();
        cluster.write_credentials();
        cluster.start_api_server().await;
        cluster
    }

    fn start_etcd(&mut self) {
        let (client, peer) = (self.address.port(ETCD_PORT), self.address.port(ETCD_PEER_PORT));
        let mut etcd = Command::new(program("ETCD_BIN"));
        etcd.arg("--data-dir").arg(self.folder.path().join(ETCD_DATA));
        etcd.args(["--name", "test", "--unsafe-no-fsync", "--logger", "zap"])
            .args(["--listen-client-urls", &format!("http://{client}")])
            .args(["--advertise-client-urls", &format!("http://{client}")])
            .args(["--listen-peer-urls", &format!("http://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
            .args(["--initial-cluster", &format!("test=http://{peer}")]);
        self.etcd = Some(Process::start(self.folder.path(), "etcd", &mut etcd));
    }

    /// Stops the control plane, copies its data, and starts it again.
    ///
    /// # Panics
    /// Its data cannot be copied.
    pub async fn snapshot(&mut self) {
        self.change_data(ETCD_DATA, SNAPSHOT).await;
    }

    /// Stops the control plane, and starts it with the data of [`Cluster::snapshot`]: all later
    /// changes are lost, and resource versions go back.
    ///
    /// # Panics
    /// There is no snapshot.
    pub async fn restore(&mut self) {
        self.change_data(SNAPSHOT, ETCD_DATA).await;
    }

    /// Copies one folder of etcd's data over another while nothing runs.
    async fn change_data(&mut self, from: &str, to: &str) {
        self.api_server = None;
        self.etcd = None;
        let path = |name: &str| self.folder.path().join(name);
        let _ = std::fs::remove_dir_all(path(to));
        let copied = Command::new("cp").arg("-a").arg(path(from)).arg(path(to)).status();
        assert!(copied.expect("cp runs").success(), "copying etcd's data");
        self.start_etcd();
        self.start_api_server().await;
    }

    /// Starts the API server, also again after [`Cluster::stop_api_server`].
    pub async fn start_api_server(&mut self) {
        let file = |name: &str| self.folder.path().join(name);
        let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let etcd = self.address.port(ETCD_PORT);
        let mut command = Command::new(program("KUBE_APISERVER_BIN"));
        command
            .arg(format!("--etcd-servers=http://{etcd}"))
            .arg(format!("--bind-address={}", self.address.ip()))
            .arg(format!("--secure-port={API_PORT}"))
            .arg(flag("cert-dir", file("certificates")))
            .arg(flag("token-auth-file", file("tokens.csv")))
            .arg(flag("service-account-key-file", file("accounts.key")))
            .arg(flag("service-account-signing-key-file", file("accounts.key")))
            // As clusters do: an agent's first container mounts what the node lacks.
            .args(["--insecure-port=0", "--authorization-mode=RBAC", "--allow-privileged=true"])
            .args(["--service-account-issuer=https://kubernetes.default.svc"])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none"])
            .args(["--disable-admission-plugins=ServiceAccount"]);
        self.api_server = Some(Process::start(self.folder.path(), "kube-apiserver", &mut command));
        eventually("the API server is ready", START, async || {
            self.try_kubectl(&["get", "--raw", "/readyz"], "").ok()?;
            self.try_kubectl(&["get", "namespace", "default"], "").ok()
        })
        .await;
    }

    /// Kills the API server, as a crash would.
    pub fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    fn write_credentials(&self) {
        let tokens: String = self.users().map(|(user, group)| line(user, group)).concat();
        std::fs::write(self.folder.path().join("tokens.csv"), tokens).expect("writing tokens");
        let key = self.folder.path().join("accounts.key");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(key).output();
        assert!(made.expect("openssl runs").status.success(), "openssl makes no key");
        for (user, _) in self.users() {
            // A service account's kubeconfig is in its own namespace.
            let namespace = user.split(':').nth(2).unwrap_or("default");
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": {
                    "server": format!("https://{}", self.address.port(API_PORT)),
                    "insecure-skip-tls-verify": true,
                }}],
                "users": [{"name": "test", "user": {"token": token(user)}}],
                "contexts": [{"name": "test", "context": {
                    "cluster": "test", "user": "test", "namespace": namespace,
                }}],
            });
            std::fs::write(self.kubeconfig(user), config.to_string()).expect("a kubeconfig");
        }
    }

    /// Users with their groups: the administrator, and the service accounts of `deploy/`.
    fn users(&self) -> [(&'static str, &'static str); 3] {
        let accounts = "system:serviceaccounts";
        [(ADMIN, "system:masters"), (GATEWAY_ACCOUNT, accounts), (AGENT_ACCOUNT, accounts)]
    }

    /// The kubeconfig of a user.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.path().join(format!("kubeconfig-{}", user.replace(':', "-")))
    }

    /// Runs kubectl as the administrator, with `input` on its stdin.
    ///
    /// # Panics
    /// It fails; the message has what it printed on stderr.
    pub fn kubectl(&self, words: &[&str], input: &str) -> String {
        self.try_kubectl(words, input).unwrap_or_else(|error| panic!("kubectl {words:?}: {error}"))
    }

    /// Runs kubectl as the administrator, with `input` on its stdin; what it printed on stdout.
    ///
    /// # Errors
    /// It fails: what it printed on stderr.
    pub fn try_kubectl(&self, words: &[&str], input: &str) -> Result<String, String> {
        let mut child = Command::new(program("KUBECTL_BIN"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig(ADMIN))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting kubectl");
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        // It may end without having read everything.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("waiting for kubectl");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// A client of the administrator's, for what must be fast.
    ///
    /// # Panics
    /// The kubeconfig cannot be used.
    pub async fn client(&self) -> Client {
        let config = Kubeconfig::read_from(self.kubeconfig(ADMIN)).expect("the kubeconfig");
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("a usable kubeconfig")).expect("a client")
    }

    /// Creates a pod and gives it the status that a kubelet would.
    ///
    /// # Panics
    /// The API server refuses it.
    pub async fn put_pod(&self, client: &Client, pod: &Pod) {
        self.put_pod_on(client, "node", pod).await;
    }

    /// Creates a pod on a node and gives it the status that a kubelet would.
    ///
    /// # Panics
    /// The API server refuses it.
    pub async fn put_pod_on(&self, client: &Client, node: &str, pod: &Pod) {
        let pods: Api<ApiPod> = Api::default_namespaced(client.clone());
        let mut labels = serde_json::Map::new();
        for (name, value) in pod.all_labels() {
            labels.insert(name, value.into());
        }
        // On a node: else a delete would not wait for a kubelet.
        let value = json!({
            "metadata": {"name": pod.name, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "engine", "image": "none"}]},
        });
        let object: ApiPod = serde_json::from_value(value).expect("a pod");
        pods.create(&PostParams::default(), &object).await.expect("creating a pod");
        self.patch_pod(client, pod, pod.ready).await;
    }

    /// Sets a pod's address and whether it is ready.
    ///
    /// # Panics
    /// The API server refuses it.
    pub async fn patch_pod(&self, client: &Client, pod: &Pod, ready: bool) {
        let pods: Api<ApiPod> = Api::default_namespaced(client.clone());
        let ready = if ready { "True" } else { "False" };
        let status: Value = json!({"status": {
            "phase": "Running", "podIP": pod.ip.to_string(),
            "podIPs": [{"ip": pod.ip.to_string()}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        let patch = Patch::Strategic(&status);
        let patched = pods.patch_status(&pod.name, &PatchParams::default(), &patch).await;
        patched.expect("patching a pod's status");
    }

    /// Asks for a pod's end: it drains until [`Cluster::finish_pod`].
    ///
    /// # Panics
    /// The API server refuses it.
    pub async fn delete_pod(&self, client: &Client, name: &str) {
        let pods: Api<ApiPod> = Api::default_namespaced(client.clone());
        pods.delete(name, &DeleteParams::default()).await.expect("deleting a pod");
    }

    /// Removes a pod, as its kubelet does in the end.
    ///
    /// # Panics
    /// The API server refuses it.
    pub async fn finish_pod(&self, client: &Client, name: &str) {
        let pods: Api<ApiPod> = Api::default_namespaced(client.clone());
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(name, &now).await.expect("removing a pod");
    }

    /// Gives a Service the address that a cloud's load balancer would.
    ///
    /// # Panics
    /// The API server refuses it.
    pub async fn balance(&self, client: &Client, namespace: &str, name: &str, ip: IpAddr) {
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip.to_string()}]}}});
        let patch = Patch::Merge(&status);
        let patched = services.patch_status(name, &PatchParams::default(), &patch).await;
        patched.expect("patching a Service's status");
    }
}

/// The service account that `deploy/` runs the gateway as.
pub const GATEWAY_ACCOUNT: &str = "system:serviceaccount:pd-router-system:pd-router-gateway";

/// The service account that `deploy/` runs the agent as.
pub const AGENT_ACCOUNT: &str = "system:serviceaccount:pd-router-system:pd-router-agent";

fn token(user: &str) -> String {
    format!("token-of-{}", user.replace(':', "-"))
}

fn line(user: &str, group: &str) -> String {
    format!("{},{user},{user},\"{group}\"\n", token(user))
}
