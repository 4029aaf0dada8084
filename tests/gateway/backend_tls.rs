//! BackendTLSPolicy: a Service is reached over TLS, and only if its certificate is the wanted one.

use std::process::Stdio;

use router_tests::fleet::SOON;
use router_tests::folder::Folder;
use router_tests::loopback::Loopback;
use router_tests::manifests::{ENGINE_PORT, Manifests, gateway};
use router_tests::{Gateway, eventually};
use tokio::process::{Child, Command};

const HOST: &str = "abc.example.com";
const IDENTITY: &str = "spiffe://abc.example.com/test-identity";

/// An authority, and a server of `openssl` with a certificate of it. Killed on drop.
struct TlsServer {
    address: Loopback,
    /// The authority's certificate, in PEM.
    authority: String,
    _folder: Folder,
    _server: Child,
}

async fn openssl(folder: &Folder, arguments: &str) {
    let mut command = Command::new("openssl");
    let made = command.args(arguments.split(' ')).current_dir(folder.path()).output().await;
    let made = made.expect("openssl runs");
    assert!(made.status.success(), "{arguments}: {made:?}");
}

impl TlsServer {
    async fn start() -> TlsServer {
        let folder = Folder::new("backend-tls");
        let key = "-nodes -days 30 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";
        let of_authority = "-subj /CN=authority -keyout ca.key -out ca.crt";
        openssl(&folder, &format!("req -x509 {key} {of_authority}")).await;
        let of_server = "-CA ca.crt -CAkey ca.key -subj /CN=server -keyout tls.key -out tls.crt";
        let names = format!("subjectAltName=DNS:{HOST},URI:{IDENTITY}");
        let extensions = format!("-addext {names} -addext basicConstraints=critical,CA:FALSE");
        openssl(&folder, &format!("req -x509 {key} {of_server} {extensions}")).await;
        let authority = std::fs::read_to_string(folder.path().join("ca.crt")).expect("a file");
        let address = Loopback::claim();
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-www", "-cert", "tls.crt", "-key", "tls.key", "-accept"])
            .arg(address.port(ENGINE_PORT).to_string())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl runs");
        TlsServer { address, authority, _folder: folder, _server: server }
    }

    /// The Service `secret` of this server and a route to it.
    fn manifests(&self) -> Manifests {
        let manifests = Manifests::new();
        manifests.put("gateway.yaml", &gateway());
        let ip = self.address.ip();
        manifests.put(
            "service.yaml",
            &format!(
                "apiVersion: v1
kind: Service
metadata: {{name: secret}}
spec: {{ports: [{{name: btls, port: 443, targetPort: {ENGINE_PORT}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: secret-1, labels: {{kubernetes.io/service-name: secret}}}}
addressType: IPv4
ports: [{{name: btls, port: {ENGINE_PORT}}}]
endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: secret}}
spec:
  parentRefs: [{{name: inference-gateway}}]
  rules: [{{backendRefs: [{{name: secret, port: 443}}]}}]
"
            ),
        );
        manifests
    }

    fn trust(&self, manifests: &Manifests) {
        let lines: Vec<String> = self.authority.lines().map(|line| format!("    {line}")).collect();
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: authority}}\ndata:\n  ca.crt: |\n{}\n",
            lines.join("\n")
        );
        manifests.put("authority.yaml", &map);
    }
}

fn put_policy(manifests: &Manifests, validation: &str) {
    let policy = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: secret}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: secret, sectionName: btls}}]
  validation:
    caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: authority}}]
    {validation}
"
    );
    manifests.put("policy.yaml", &policy);
}

async fn until_answered(gateway: &Gateway, status: u16, why: &str) -> String {
    eventually(why, SOON, async || {
        let answer = gateway.client.get("/").await;
        (answer.status.as_u16() == status).then(|| answer.text())
    })
    .await
}

#[tokio::test]
async fn a_service_gets_requests_over_tls_if_its_certificate_has_a_wanted_name() {
    let server = TlsServer::start().await;
    let manifests = server.manifests();
    server.trust(&manifests);
    put_policy(&manifests, &format!("hostname: {HOST}"));
    let gateway = Gateway::start_with(&manifests, &[]).await;
    let page = until_answered(&gateway, 200, "the certificate has the host name").await;
    assert!(page.contains("s_server"), "{page}");

    put_policy(&manifests, "hostname: mismatch.example.com");
    until_answered(&gateway, 502, "the certificate has another host name").await;
    let names =
        format!("hostname: other.test\n    subjectAltNames: [{{type: URI, uri: \"{IDENTITY}\"}}]");
    put_policy(&manifests, &names);
    until_answered(&gateway, 200, "the certificate has the URI, which counts alone").await;
    put_policy(&manifests, &names.replace("abc.", "def."));
    until_answered(&gateway, 502, "the certificate has another URI").await;
    let host =
        "subjectAltNames: [{type: URI, uri: \"spiffe://x/y\"}, {type: Hostname, hostname: HOST}]";
    put_policy(&manifests, &format!("hostname: other.test\n    {}", host.replace("HOST", HOST)));
    until_answered(&gateway, 200, "one of several names is enough").await;
}

#[tokio::test]
async fn a_service_whose_policy_is_invalid_gets_nothing_in_plain_text() {
    let (server, other) = (TlsServer::start().await, TlsServer::start().await);
    let manifests = server.manifests();
    put_policy(&manifests, &format!("hostname: {HOST}"));
    let gateway = Gateway::start_with(&manifests, &[]).await;
    until_answered(&gateway, 500, "there is no authority").await;
    let problems = gateway.fleet().await["problems"].to_string();
    assert!(problems.contains("NoValidCACertificate"), "{problems}");
    server.trust(&manifests);
    until_answered(&gateway, 200, "the authority is there").await;
    other.trust(&manifests);
    until_answered(&gateway, 502, "another authority is trusted").await;
}
