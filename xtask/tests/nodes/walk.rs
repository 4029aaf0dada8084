//! A cluster with two nodes on which docs/operate/install.md is followed, command by command.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::page;
use crate::site::Site;

/// Time for what a cluster does by itself.
const SOON: Duration = Duration::from_secs(120);
pub(crate) const SYSTEM: &str = "pd-router-system";
/// Time that a load balancer takes to be ready, and kube-proxy no longer.
const BALANCER_TIME: Duration = Duration::from_secs(4);
const MODEL: &str = "/models/Qwen3-32B";

/// How pd-router is installed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Kustomize,
    Helm,
}

/// A cluster on which the page is followed, in a folder that is beside a checkout.
pub(crate) struct Walk {
    pub(crate) site: Arc<Site>,
    folder: tempfile::TempDir,
}

impl Walk {
    pub(crate) fn start(test: &str) -> Walk {
        let site = Arc::new(Site::new(test));
        site.done(&["up"], &["--nodes", "2"]);
        let folder = tempfile::tempdir().expect("a folder");
        let bin = folder.path().join("bin");
        let checkout = folder.path().join("pd-router");
        fs::create_dir_all(&bin).expect("a folder");
        fs::create_dir_all(&checkout).expect("a folder");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
        let copied = Command::new("cp").arg("-r").arg(root.join("deploy")).arg(&checkout).status();
        assert!(copied.expect("starting cp").success());
        // A rolling update needs room for one gateway more, and nodes have two CPUs here.
        for file in ["base/gateway.yaml", "chart/values.yaml"] {
            let path = checkout.join("deploy").join(file);
            let text = fs::read_to_string(&path).expect("a file");
            let smaller = text.replacen("cpu: \"1\"\n", "cpu: 50m\n", 1);
            assert_ne!(text, smaller, "{file} requests another CPU");
            fs::write(path, smaller).expect("a file");
        }
        let helm = format!("exec {}", variable("HELM_BIN").display());
        let curl = format!("exec {}", path_of("curl").display());
        for (program, action) in [("kubectl", "kubectl"), ("curl", &curl), ("helm", &helm)] {
            let (action, inner) = action.split_once(' ').unwrap_or((action, ""));
            let xtask = env!("CARGO_BIN_EXE_xtask");
            let command = format!("{xtask} cluster {action} --name {} -- {inner}", site.name);
            let path = bin.join(program);
            fs::write(&path, format!("#!/bin/sh\nexec {command} \"$@\"\n")).expect("a script");
            fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a script");
        }
        Walk { site, folder }
    }

    /// Runs a command as a user in the checkout, and returns what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        eprintln!("$ {script}");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
        let path = std::env::var("PATH").expect("a PATH");
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", script])
            .current_dir(self.folder.path().join("pd-router"))
            .env("PATH", format!("{}:{path}", self.folder.path().join("bin").display()))
            .env("BACKEND_TRAFFIC_POLICY", root.join("tests/cluster/backendtrafficpolicies.yaml"));
        let output = bash.output().expect("starting bash");
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{script}\n{stdout}\n{stderr}");
        stdout
    }

    pub(crate) fn json(&self, script: &str) -> Value {
        let text = self.sh(script);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{script}: {error}\n{text}"))
    }

    fn load_images(&self) {
        for image in ["GATEWAY_IMAGE", "AGENT_IMAGE", "SGLANG_SIM_IMAGE"] {
            self.site.done(&["load"], &[&variable(image).display().to_string()]);
        }
    }

    /// Follows the page to its end. Images come from archives, as the page offers, and the pods of the
    /// RoleBasedGroup from a file of simulated engines, since there is neither its controller nor a GPU.
    pub(crate) fn follow(&self, by: By) {
        let (mut ran, mut answer) = (0, String::new());
        for page::Block { language, text } in page::blocks() {
            let skipped = match by {
                By::Kustomize => text.starts_with("helm "),
                // The chart brings the definitions.
                By::Helm => {
                    text.starts_with("kubectl apply -k") || text.starts_with("kubectl create -k")
                }
            };
            match &*language {
                "yaml" => self.write(&text),
                "sh" if skipped => {}
                "sh" if text.starts_with("docker ") => self.load_images(),
                "sh" => {
                    self.before(&text);
                    answer = self.sh(&text);
                    ran += 1;
                }
                other => panic!("a block of {other}: {text}"),
            }
        }
        assert_eq!(ran, if by == By::Kustomize { 7 } else { 6 }, "commands of the page");
        assert!(answer.contains("\"choices\":[{"), "the last command's output: {answer}");
    }

    /// What the page says in words.
    fn before(&self, command: &str) {
        if command.contains("aliyun/erdma") {
            let resources = json!({"aliyun/erdma": "1"});
            let patch = json!({"status": {"capacity": resources, "allocatable": resources}});
            for node in ["node-1", "node-2"] {
                self.sh(&format!(
                    "kubectl patch node {node} --subresource=status --type=merge -p '{patch}'"
                ));
            }
        }
        if command.contains("llm-model.yaml") {
            self.sh("sed -i 's/<your-[a-z-]*>/mine/' deploy/examples/qwen3-32b/llm-model.yaml");
            let engines = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nodes/engines.yaml");
            self.sh(&format!("kubectl apply -f {}", engines.display()));
            self.sh(&format!(
                "kubectl wait --for=create --timeout=60s -n {SYSTEM} daemonset/pd-router-agent"
            ));
            self.sh("kubectl wait --for=condition=Established --timeout=60s crd/rolebasedgroups.workloads.x-k8s.io");
        }
    }

    /// Writes a file that the page shows; its first line is its name.
    fn write(&self, text: &str) {
        let name = text.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a name");
        let path = self.folder.path().join("pd-router").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// The address of the Gateway.
    pub(crate) fn address(&self) -> String {
        self.sh("kubectl get gateway/inference-gateway -o jsonpath='{.status.addresses[0].value}'")
    }

    pub(crate) fn token(&self) -> String {
        self.sh(&format!(
            "kubectl get secret pd-router-token -n {SYSTEM} -o jsonpath={{.data.token}} | base64 -d"
        ))
    }

    /// Names and addresses of the ready pods with a label.
    pub(crate) fn pods(&self, namespace: &str, label: &str) -> Vec<(String, String)> {
        let list = self.json(&format!("kubectl get pods -n {namespace} -l {label} -o json"));
        let is_ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let ready = json!(["Ready", "True"]);
            pod["metadata"]["deletionTimestamp"].is_null()
                && conditions.into_iter().any(|one| json!([one["type"], one["status"]]) == ready)
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = list["items"].as_array().expect("a list").iter().filter(is_ready);
        pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))).collect()
    }

    pub(crate) fn get(&self, url: &str, token: &str) -> Value {
        self.json(&format!("curl -sSf -m 10 -H 'Authorization: Bearer {token}' {url}"))
    }

    /// Repeats until it holds.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut(&Walk) -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Starts a steady load through the load balancer, which ends after so many seconds.
    pub(crate) fn load(&self, seconds: u32) -> Load {
        let mut command = self.site.command(&["exec"], &["--"]);
        let url = format!("http://{}:8080", self.address());
        command.arg(variable("FLEET_BENCH_BIN")).args([
            "load",
            "--cell",
            "docs:10",
            "--warm-up",
            "0",
        ]);
        command.args(["--seconds", &seconds.to_string(), "--url", &url, "--model", MODEL]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("starting the load");
        Load(std::thread::spawn(move || {
            let output = child.wait_with_output().expect("waiting for the load");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{text}\n{errors}");
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{errors}"))
        }))
    }
}

/// A load that runs.
pub(crate) struct Load(JoinHandle<Value>);

impl Load {
    pub(crate) fn result(self) -> Value {
        self.0.join().expect("the load's thread")
    }
}

/// Gives Services of type LoadBalancer an address, as a cloud does: their own within the cluster, since
/// nothing outside leads to it.
pub(crate) struct LoadBalancer {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LoadBalancer {
    pub(crate) fn start(site: &Arc<Site>) -> LoadBalancer {
        let (ends, site) = (Arc::new(AtomicBool::new(false)), Arc::clone(site));
        let ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut seen: BTreeMap<String, Instant> = BTreeMap::new();
            while !ended.load(Ordering::Relaxed) {
                let get = ["get", "services", "-n", SYSTEM, "-o", "json"];
                let kubectl = |words: &[&str]| site.command(&["kubectl"], words).output();
                let list = kubectl(&get).expect("starting kubectl");
                let list: Value = serde_json::from_slice(&list.stdout).unwrap_or_default();
                let services = list["items"].as_array().into_iter().flatten();
                for service in services.filter(|service| {
                    service["spec"]["type"] == "LoadBalancer"
                        && service["status"]["loadBalancer"]["ingress"].is_null()
                }) {
                    let name = service["metadata"]["name"].as_str().expect("a name");
                    let since = seen.entry(name.to_owned()).or_insert_with(Instant::now);
                    if since.elapsed() < BALANCER_TIME {
                        continue;
                    }
                    let ingress = json!({"ingress": [{"ip": service["spec"]["clusterIP"]}]});
                    let patch = json!({"status": {"loadBalancer": ingress}}).to_string();
                    let patch = ["--subresource=status", "--type=merge", "-p", &patch];
                    let command = ["patch", "service", name, "-n", SYSTEM];
                    kubectl(&[&command[..], &patch].concat()).expect("starting kubectl");
                }
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        LoadBalancer { ends, thread: Some(thread) }
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Where a program of this machine is.
fn path_of(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("a PATH");
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program));
    found.find(|path| path.is_file()).unwrap_or_else(|| panic!("{program} is missing"))
}

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set; run `cargo xtask test nodes`"))
        .into()
}
