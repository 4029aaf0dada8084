//! A real agent on a real API server. Needs root and BPF, as agents do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use router_tests::cluster::{AGENT_ACCOUNT, GATEWAY_ACCOUNT};
use router_tests::folder::Folder;
use router_tests::loopback::Loopback;
use router_tests::manifests::{LISTENER_PORT, Pod};
use router_tests::{Answer, Client, Cluster, Gateway, eventually};
use serde_json::{Value, json};

use crate::{NAMESPACE, SOON, apply_documents, deploy, install_definitions};

const NODE: &str = "node-1";
const TOKEN: &str = "a-token";

/// An agent with no more rights in the cluster than `deploy/` gives it.
struct Agent {
    child: Child,
    client: Client,
    folder: Folder,
    pins: String,
    address: Loopback,
}

fn program() -> PathBuf {
    let path = std::env::var_os("PD_ROUTER_BIN").map(PathBuf::from);
    path.expect("PD_ROUTER_BIN names the built pd-router: run `cargo xtask test cluster`")
}

impl Agent {
    fn start(cluster: &Cluster) -> Agent {
        let (folder, address) = (Folder::new("agent"), Loopback::claim());
        let token = folder.path().join("token");
        std::fs::write(&token, TOKEN).expect("writing the token");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let listen = address.port(9911);
        // The bpf file system keeps names with dots for itself.
        let own = address.ip().to_string().replace('.', "-");
        let pins = format!("/sys/fs/bpf/pd-router-cluster-{own}");
        let child = Command::new(program())
            .args(["agent", "--kubernetes", "--node-name", NODE, "--pin-dir", &pins])
            .args(["--listen", &listen.to_string(), "--token-file"])
            .arg(&token)
            // The machine's own interfaces are left alone.
            .args(["--uplink", "no-such-interface", "--log-format", "json"])
            .env("KUBECONFIG", cluster.kubeconfig(AGENT_ACCOUNT))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("starting the agent");
        Agent { child, client: Client::new(listen), folder, pins, address }
    }

    /// Its own pod, as the DaemonSet would make it.
    async fn put_own_pod(&self, client: &kube::Client, namespace: &str) {
        let pods: Api<ApiPod> = Api::namespaced(client.clone(), namespace);
        let labels =
            json!({"app.kubernetes.io/name": "pd-router", "app.kubernetes.io/component": "agent"});
        let port = json!({"name": "loads", "containerPort": 9911});
        let object = json!({
            "metadata": {"name": "pd-router-agent-x", "labels": labels},
            "spec": {"nodeName": NODE, "containers": [
                {"name": "agent", "image": "none", "ports": [port]},
            ]},
        });
        let object: ApiPod = serde_json::from_value(object).expect("a pod");
        pods.create(&PostParams::default(), &object).await.expect("creating a pod");
        let ip = self.address.ip().to_string();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        let (how, change) = (PatchParams::default(), Patch::Strategic(&status));
        let patched = pods.patch_status("pd-router-agent-x", &how, &change).await;
        patched.expect("patching a pod's status");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("the log")
    }

    async fn ask(&self, path: &str, token: Option<&str>) -> Option<Answer> {
        let mut request = self.client.request(Method::GET, path, "");
        if let Some(token) = token {
            let value = HeaderValue::try_from(format!("Bearer {token}")).expect("ASCII");
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Some(self.client.try_send(request).await.ok()?.answer().await)
    }

    /// `/readyz` as the kubelet reads it, without a token.
    async fn readiness(&self) -> Option<(u16, String)> {
        let answer = self.ask("/readyz", None).await?;
        Some((answer.status.as_u16(), answer.text()))
    }

    /// The pods of its node with their roles.
    async fn pods(&self) -> Option<BTreeMap<String, Value>> {
        let loads = self.ask("/v1/loads", Some(TOKEN)).await?.expect_status(200).json();
        let pods = loads["pods"].as_array()?.iter();
        Some(pods.map(|pod| (pod["pod"].to_string(), pod["role"].clone())).collect())
    }

    async fn knows(&self, what: &str, wanted: &[(&str, Value)]) {
        let named = |(name, role): &(&str, Value)| (format!("\"default/{name}\""), role.clone());
        let wanted: BTreeMap<String, Value> = wanted.iter().map(named).collect();
        eventually(what, SOON, async || (self.pods().await? == wanted).then_some(())).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let cleaned =
            Command::new(program()).args(["agent", "--cleanup", "--pin-dir", &self.pins]).output();
        if std::thread::panicking() {
            eprintln!("--- log of the agent\n{}--- {cleaned:?}", self.log());
        }
    }
}

fn pod(name: &str, role: &str) -> (Pod, Loopback) {
    let address = Loopback::claim();
    (Pod::new(name, role, address.ip()), address)
}

// kubectl blocks a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_knows_its_nodes_pods_and_outlives_an_api_server_that_is_away() {
    let mut cluster = Cluster::start().await;
    install_definitions(&cluster).await;
    deploy(&cluster).await;
    apply_documents(&cluster);
    let client = cluster.client().await;
    let (prefill, _a) = pod("prefill-0", "prefill");
    let (decode, _b) = pod("decode-0", "decode");
    let (bystander, _c) = pod("bystander", "neither");
    let (elsewhere, _d) = pod("decode-1", "decode");
    for (node, pod) in
        [(NODE, &prefill), (NODE, &bystander), ("node-2", &elsewhere), (NODE, &decode)]
    {
        cluster.put_pod_on(&client, node, pod).await;
    }
    let agent = Agent::start(&cluster);
    let all = [
        ("prefill-0", "prefill".into()),
        ("decode-0", "decode".into()),
        ("bystander", Value::Null),
    ];
    agent.knows("the agent knows its node's pods", &all).await;
    for token in [None, Some("another")] {
        let refused = agent.ask("/v1/loads", token).await.expect("an answer");
        assert_eq!(refused.status, 401, "{token:?}");
    }
    assert_eq!(agent.readiness().await, Some((200, "ok\n".to_owned())));

    cluster.delete_pod(&client, &bystander.name).await;
    cluster.finish_pod(&client, &bystander.name).await;
    agent.knows("a pod that is gone is forgotten", &all[..2]).await;

    cluster.stop_api_server();
    eventually("the agent misses the API server", SOON, async || {
        agent.log().contains("watch failed, retrying").then_some(())
    })
    .await;
    agent.knows("pods that were known stay known", &all[..2]).await;
    // An agent that has read its pods stays ready; a new one is live and not ready.
    assert_eq!(agent.readiness().await, Some((200, "ok\n".to_owned())));
    let second = Agent::start(&cluster);
    let unready = eventually("the second agent answers", SOON, async || second.readiness().await);
    assert_eq!(unready.await, (503, "pods have not been read yet\n".to_owned()));
    assert_eq!(second.ask("/livez", None).await.expect("an answer").status, 200);
    cluster.start_api_server().await;
    eventually("the second agent is ready", SOON, async || {
        (second.readiness().await?.0 == 200).then_some(())
    })
    .await;
    second.knows("it is ready with what it has read", &all[..2]).await;
    let (late, _e) = pod("decode-2", "decode");
    cluster.put_pod_on(&cluster.client().await, NODE, &late).await;
    let with_late = [all[0].clone(), all[1].clone(), ("decode-2", "decode".into())];
    agent.knows("what happens after the outage is seen", &with_late).await;
}

/// The agents of a gateway's `/fleet`.
async fn agents(gateway: &Gateway) -> Vec<Value> {
    let fleet = gateway.admin.get("/fleet").await.expect_status(200).json();
    fleet["agents"].as_array().cloned().expect("a list of agents")
}

// kubectl blocks a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_find_agents_by_label_and_need_their_token() {
    let cluster = Cluster::start().await;
    install_definitions(&cluster).await;
    deploy(&cluster).await;
    let client = cluster.client().await;
    let agent = Agent::start(&cluster);
    let kubeconfig = cluster.kubeconfig(GATEWAY_ACCOUNT);
    let wrong = agent.folder.path().join("wrong");
    std::fs::write(&wrong, "another").expect("writing a token");
    let start = |token: PathBuf| {
        let flags = ["--agent-token-file", token.to_str().expect("UTF-8")];
        Gateway::in_cluster(&kubeconfig, LISTENER_PORT, &flags)
    };
    let (accepted, refused) = (start(agent.folder.path().join("token")), start(wrong));
    for gateway in [&accepted, &refused] {
        gateway.wait_until_ready().await;
        assert_eq!(agents(gateway).await, [Value::Null; 0]);
    }
    // A user who may create pods in another namespace may label them as agents.
    agent.put_own_pod(&client, "default").await;
    agent.put_own_pod(&client, NAMESPACE).await;
    let wanted = (json!(format!("{NAMESPACE}/pd-router-agent-x")), json!(NODE));
    let one = async |gateway: &Gateway| {
        let all = agents(gateway).await;
        let [one] = all.as_slice() else { return None };
        assert_eq!((one["name"].clone(), one["node"].clone()), wanted);
        Some(one.clone())
    };
    eventually("the gateway with the right token is connected", SOON, async || {
        (one(&accepted).await?["connected"] == true).then_some(())
    })
    .await;
    eventually("the other is refused", SOON, async || {
        let agent = one(&refused).await?;
        assert_eq!(agent["connected"], false, "{agent}");
        agent["last_error"].as_str()?.contains("401").then_some(())
    })
    .await;

    let pods: Api<ApiPod> = Api::namespaced(client.clone(), NAMESPACE);
    let now = kube::api::DeleteParams {
        grace_period_seconds: Some(0),
        ..kube::api::DeleteParams::default()
    };
    pods.delete("pd-router-agent-x", &now).await.expect("removing the agent's pod");
    eventually("a deleted agent is removed", SOON, async || {
        agents(&accepted).await.is_empty().then_some(())
    })
    .await;
}
