//! The documents' request as docs/operate/install.md has it, from another machine, by the address of the
//! Gateway's Service alone: what kube-proxy does on a node is done by the kernel, with rules made of
//! Services and pods as its own are. Needs root: the node and the client's machine are network
//! namespaces.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use netns::Namespace;
use router_tests::cluster::{ADMIN, GATEWAY_ACCOUNT};
use router_tests::manifests::LISTENER_PORT;
use router_tests::{Cluster, Fleet, Gateway, eventually};
use serde_json::json;

use crate::{ELECTED, NAMESPACE, Scene, chat, root, serves};

/// What `deploy/` calls the gateway.
const GATEWAY: &str = "pd-router-gateway";
/// Requests of one client, each on a connection of its own.
const REQUESTS: u64 = 10;

/// A node on which the test itself runs, and a machine whose only route leads through it.
struct Site {
    node: Namespace,
    client: Namespace,
}

impl Site {
    fn new() -> Site {
        let (node, client) = (Namespace::new(), Namespace::new());
        // Replicas listen on addresses of loopback, as pods of the node's own network may; the API
        // server wants a node to have a way out.
        node.sh(&format!(
            "ip link add client type veth peer name eth0 netns {}
             ip link set client up
             ip addr add 192.0.2.1/24 dev client
             ip route add default via 192.0.2.2
             echo 1 > /proc/sys/net/ipv4/conf/client/route_localnet",
            client.path()
        ));
        client.sh("ip link set eth0 up
             ip addr add 192.0.2.2/24 dev eth0
             ip route add default via 192.0.2.1");
        Site { node, client }
    }
}

/// The chains of one Service's port: where connections to it go, to each of the pods in turn.
fn chains(name: &str, cluster_ip: &str, port: &ServicePort, pods: &[IpAddr]) -> Option<String> {
    let Some(IntOrString::Int(target)) = port.target_port else { return None };
    let name = format!("{name}-{}", port.port);
    let mut text = String::new();
    for (at, pod) in pods.iter().enumerate() {
        let to = format!("meta l4proto tcp dnat to {pod}:{target}");
        writeln!(text, "chain {name}-{at} {{ {to}; }}").ok()?;
    }
    let turns: Vec<String> = (0..pods.len()).map(|at| format!("{at} : goto {name}-{at}")).collect();
    let turns = format!("numgen inc mod {} vmap {{ {} }}", pods.len(), turns.join(", "));
    writeln!(
        text,
        "chain {name} {{ type nat hook prerouting priority dstnat;
            ip daddr {cluster_ip} tcp dport {} {turns}; }}",
        port.port
    )
    .ok()?;
    Some(text)
}

/// Makes the rules of this node's kernel those of the Services, and of the pods that they select.
async fn proxy(scene: &Scene) {
    let pods: Api<Pod> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let mut rules = "table ip services\ndelete table ip services\ntable ip services {\n".to_owned();
    for service in scene.services().await {
        let Service { metadata, spec: Some(spec), .. } = service else { continue };
        let selector = spec.selector.unwrap_or_default();
        let selector: Vec<String> =
            selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let selected = ListParams::default().labels(&selector.join(","));
        let selected = pods.list(&selected).await.expect("listing pods");
        let ip = |pod: Pod| pod.status?.pod_ip?.parse::<IpAddr>().ok();
        let selected: Vec<IpAddr> = selected.items.into_iter().filter_map(ip).collect();
        let name = metadata.name.expect("a name");
        let cluster_ip = spec.cluster_ip.expect("an address");
        for port in spec.ports.iter().flatten().filter(|_| !selected.is_empty()) {
            rules += &chains(&name, &cluster_ip, port, &selected).unwrap_or_default();
        }
    }
    rules += "}\n";
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    let mut stdin = nft.stdin.take().expect("stdin is a pipe");
    stdin.write_all(rules.as_bytes()).expect("writing rules");
    drop(stdin);
    assert!(nft.wait().expect("nft ends").success(), "{rules}");
}

/// A replica, and its pod as the Deployment would make it.
async fn replica(scene: &Scene, name: &str) -> Gateway {
    let kubeconfig = scene.cluster.kubeconfig(GATEWAY_ACCOUNT);
    let flags = ["--gateway-service-type=ClusterIP"];
    let gateway = Gateway::in_cluster(&kubeconfig, LISTENER_PORT, &flags);
    let deployments: Api<Deployment> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let deployment = deployments.get(GATEWAY).await.expect("the Deployment");
    let template = deployment.spec.expect("its spec").template;
    let labels = template.metadata.and_then(|metadata| metadata.labels);
    let pod = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": "node", "containers": [{"name": "gateway", "image": "none"}]},
    });
    let pod: Pod = serde_json::from_value(pod).expect("a pod");
    let pods: Api<Pod> = Api::namespaced(scene.client.clone(), NAMESPACE);
    pods.create(&PostParams::default(), &pod).await.expect("creating a pod");
    let ip = gateway.address.ip().to_string();
    let status = Patch::Strategic(json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}}));
    let patched = pods.patch_status(name, &PatchParams::default(), &status).await;
    patched.expect("patching a pod's status");
    gateway
}

/// The commands of a step of docs/operate/install.md, as they stand there.
fn step(number: u8) -> String {
    let page = std::fs::read_to_string(root().join("docs/operate/install.md")).expect("the page");
    let mut steps = page.split("\n## ");
    let step = steps.find(|step| step.starts_with(&format!("{number}. "))).expect("the step");
    let rest = step.split_once("```sh\n").expect("commands").1;
    rest.split_once("```").expect("the end of commands").0.to_owned()
}

/// Runs commands as the administrator's shell would, in the workspace.
fn shell(cluster: &Cluster, commands: &str) -> String {
    let kubectl = std::env::var_os("KUBECTL_BIN").map(PathBuf::from).expect("KUBECTL_BIN is set");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = kubectl.parent().map(Path::to_path_buf);
    let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)));
    let output = Command::new("sh")
        .args(["-euc", commands])
        .current_dir(root())
        .env("PATH", path.expect("folders"))
        .env("KUBECONFIG", cluster.kubeconfig(ADMIN))
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{commands}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The documents' request, sent from the client's machine.
fn curl(client: &Namespace, address: &str, message: &str) -> Option<String> {
    let (url, body) =
        (format!("http://{address}:{LISTENER_PORT}/v1/chat/completions"), chat(message));
    let output = client.run(move || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--connect-timeout", "2", "--max-time", "20", &url]);
        curl.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
        curl.output().expect("curl runs")
    });
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn requests(gateway: &Gateway) -> f64 {
    gateway.metric("pd_router_requests_total", &[]).await
}

async fn follows(client: &Namespace) {
    let scene = Scene::start().await;
    let replicas = [replica(&scene, "gateway-0").await, replica(&scene, "gateway-1").await];
    let fleet = Fleet::start(1, 1).await;
    for engine in fleet.engines() {
        scene.cluster.put_pod(&scene.client, &engine.pod).await;
    }
    let commands = step(6);
    let (before, request) = commands.split_at(commands.find("curl ").expect("a request"));
    let printed = shell(&scene.cluster, &format!("{before}\necho $GATEWAY_IP"));
    let address = printed.lines().last().expect("an address");
    for gateway in &replicas {
        serves(gateway, &fleet).await;
    }
    let services = scene.services().await;
    let spec = services[0].spec.as_ref().expect("a spec");
    assert_eq!(spec.cluster_ip.as_deref(), Some(address));

    assert_eq!(curl(client, address, "there are no rules yet"), None);
    proxy(&scene).await;
    eventually("every replica listens", ELECTED, async || {
        curl(client, address, "to the one").and_then(|_| curl(client, address, "to the other"))
    })
    .await;
    let answer = client.sh(&format!("GATEWAY_IP={address}\n{request}"));
    assert!(answer.contains("chat.completion"), "{answer}");
    for turn in 0..REQUESTS {
        curl(client, address, &format!("turn {turn}")).expect("an answer");
    }
    for gateway in &replicas {
        assert!(requests(gateway).await >= REQUESTS as f64 / 2.0);
    }

    // A replica goes: first from the rules.
    let pods: Api<Pod> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete("gateway-0", &now).await.expect("removing a pod");
    proxy(&scene).await;
    let [gone, stays] = replicas;
    drop(gone);
    let before = requests(&stays).await;
    for turn in 0..REQUESTS {
        curl(client, address, &format!("turn {turn} by the other")).expect("an answer");
    }
    assert!(requests(&stays).await >= before + REQUESTS as f64);
}

#[test]
fn the_documents_request_from_another_machine_reaches_every_replica_by_the_services_address() {
    let Site { node, client } = Site::new();
    node.run(move || {
        // Its threads and processes are started in the node's network.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(follows(&client));
    });
}
