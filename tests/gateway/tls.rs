//! HTTPS listeners: the certificate follows the name, the Secret and what was good before.

use std::time::Duration;

use router_tests::certificate::{Certificate, secret};
use router_tests::{Fleet, Gateway, Manifests, eventually};
use serde_json::Value;

use crate::{CHAT, chat};

const PORT: u16 = 8443;
/// A change of the manifests is read within a second, of an idle machine.
const SOON: Duration = Duration::from_secs(20);

/// The documents' Gateway with an HTTPS listener for each host, whose Secret has the host's name.
fn gateway(hosts: &[&str]) -> String {
    let listener = |host: &&str| {
        format!(
            "  - {{name: {name}, protocol: HTTPS, port: {PORT}, hostname: {host}, \
             tls: {{certificateRefs: [{{name: {name}}}]}}}}\n",
            name = host.replace('.', "-")
        )
    };
    let listeners: String = hosts.iter().map(listener).collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: inference-gateway}}\nspec:\n  gatewayClassName: ack-gateway\n  \
         listeners:\n{listeners}"
    )
}

/// A gateway that serves these hosts, each with its certificate.
async fn serve(manifests: &Manifests, hosts: &[&str], certificates: &[&Certificate]) -> Gateway {
    manifests.put("gateway.yaml", &gateway(hosts));
    for (host, certificate) in hosts.iter().zip(certificates) {
        let name = host.replace('.', "-");
        manifests.put(&format!("{name}.yaml"), &certificate.secret("default", &name));
    }
    Gateway::start(manifests).await
}

async fn asks(certificate: &Certificate, gateway: &Gateway, host: &str) -> Option<u16> {
    let address = gateway.address.port(PORT);
    let body = chat("over TLS").to_string();
    certificate.curl(address, host, CHAT, &["--data", &body]).await.status
}

async fn problems(gateway: &Gateway) -> Vec<String> {
    let fleet = gateway.fleet().await;
    let all = fleet["problems"].as_array().cloned().unwrap_or_default();
    let text = |problem: &Value, at: &str| problem[at].as_str().unwrap_or_default().to_owned();
    all.iter().map(|one| format!("{}: {}", text(one, "code"), text(one, "reason"))).collect()
}

#[tokio::test]
async fn a_request_over_tls_is_answered_in_both_versions_of_http() {
    let fleet = Fleet::start(1, 1).await;
    let certificate = Certificate::new("a.example");
    let gateway = serve(&fleet.manifests, &["a.example"], &[&certificate]).await;
    fleet.until_engines_known(&gateway).await;
    let body = chat("over TLS").to_string();
    for (word, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let address = gateway.address.port(PORT);
        let words = [word, "--data", &body];
        let seen = certificate.curl(address, "a.example", CHAT, &words).await;
        assert_eq!((seen.status, seen.version.as_str()), (Some(200), version), "{seen:?}");
        let answer: Value = serde_json::from_str(&seen.body).expect("JSON");
        assert_eq!(answer["object"], "chat.completion");
    }
    assert_eq!(problems(&gateway).await, Vec::<String>::new());
    let plain = router_tests::Client::new(gateway.address.port(PORT));
    let answer = plain.try_send(plain.json_request(CHAT, body)).await;
    assert!(answer.is_err(), "nothing is served in the clear there");
}

#[tokio::test]
async fn each_name_has_its_own_certificate_and_its_own_routes() {
    let fleet = Fleet::start(1, 1).await;
    let (a, b) = (Certificate::new("a.example"), Certificate::new("b.example"));
    let hosts = ["a.example", "b.example"];
    let gateway = serve(&fleet.manifests, &hosts, &[&a, &b]).await;
    fleet.until_engines_known(&gateway).await;
    assert_eq!(asks(&a, &gateway, "a.example").await, Some(200));
    assert_eq!(asks(&b, &gateway, "b.example").await, Some(200));
    assert_eq!(asks(&a, &gateway, "b.example").await, None, "b does not show a's certificate");
    assert_eq!(asks(&a, &gateway, "c.example").await, None, "no listener has this name");

    // A connection for a carries no requests for b. Without a body: curl takes the end of a stream
    // whose body it is still sending for an error, answer or not.
    let address = gateway.address.port(PORT);
    let seen = a.curl(address, "a.example", CHAT, &["--header", "Host: b.example"]).await;
    assert_eq!(seen.status, Some(421), "{seen:?}");
}

#[tokio::test]
async fn a_rotated_certificate_is_served_at_once_and_a_bad_one_never() {
    let fleet = Fleet::start(1, 1).await;
    let (old, new) = (Certificate::new("a.example"), Certificate::new("a.example"));
    let gateway = serve(&fleet.manifests, &["a.example"], &[&old]).await;
    fleet.until_engines_known(&gateway).await;
    assert_eq!(asks(&old, &gateway, "a.example").await, Some(200));

    fleet.manifests.put("a-example.yaml", &new.secret("default", "a-example"));
    eventually("the new certificate is shown", SOON, async || {
        (asks(&new, &gateway, "a.example").await == Some(200)).then_some(())
    })
    .await;
    assert_eq!(asks(&old, &gateway, "a.example").await, None);

    for (certificate, key, word) in [
        (new.certificate.as_str(), "no key", "tls.key holds no private key"),
        (new.certificate.as_str(), old.key.as_str(), "cannot be used"),
        ("no certificate", new.key.as_str(), "tls.crt holds no certificate"),
    ] {
        let broken = secret("default", "a-example", certificate, key);
        fleet.manifests.put("a-example.yaml", &broken);
        let problem = eventually("the bad Secret is named", SOON, async || {
            let problems = problems(&gateway).await;
            problems.into_iter().find(|one| one.contains(word))
        })
        .await;
        assert!(
            problem.starts_with("InvalidCertificateRef: Secret default/a-example"),
            "{problem}"
        );
        assert!(problem.ends_with("the previous certificate stays in use"), "{problem}");
        assert_eq!(asks(&new, &gateway, "a.example").await, Some(200), "{word}");
    }
    let log = gateway.log();
    let secrets = new.key.lines().chain(old.key.lines()).filter(|line| !line.starts_with("---"));
    for line in secrets {
        assert!(!log.contains(line), "a key is not logged");
    }
}

#[tokio::test]
async fn a_listener_whose_secret_is_missing_is_not_served_and_its_neighbour_is() {
    let fleet = Fleet::start(1, 1).await;
    let certificate = Certificate::new("a.example");
    let gateway = serve(&fleet.manifests, &["a.example", "b.example"], &[&certificate]).await;
    fleet.until_engines_known(&gateway).await;
    assert_eq!(asks(&certificate, &gateway, "a.example").await, Some(200));
    let listed = problems(&gateway).await;
    let missing = "InvalidCertificateRef: Secret default/b-example does not exist; this certificate is not used";
    assert_eq!(listed, [missing]);
    let redirect = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: moved}
spec:
  parentRefs: [{name: inference-gateway}]
  rules:
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}]
";
    fleet.manifests.put("moved.yaml", redirect);
    let address = gateway.address.port(PORT);
    let seen = eventually("the redirect is served", SOON, async || {
        let seen = certificate.curl(address, "a.example", "/moved", &["--include"]).await;
        (seen.status == Some(302)).then_some(seen)
    })
    .await;
    assert!(seen.body.contains(&format!("location: https://a.example:{PORT}/x")), "{seen:?}");
}
