//! Commands that serve nothing, and how flags are given.

use std::process::{Command, Output};

use router_tests::folder::Folder;
use router_tests::gateway::program;

fn ran(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("running pd-router");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn pd_router(words: &[&str]) -> (Option<i32>, String, String) {
    ran(Command::new(program()).args(words))
}

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec: {gatewayClassName: c, listeners: [{name: http, port: 8080, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]}]}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p}
spec: {selector: {matchLabels: {app: a}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: e, port: {number: 9002}}}
";

#[test]
fn manifests_are_checked_without_a_gateway() {
    let folder = Folder::new("check");
    let path = folder.path().to_str().expect("UTF-8").to_owned();
    std::fs::write(folder.path().join("a.yaml"), GATEWAY).expect("written");
    let (_, out, _) = pd_router(&["check", "--manifests", &path]);
    assert!(out.contains("port 8080: HTTP, listener http, 1 rules\n"), "{out}");
    assert!(out.contains("pool default/p: "), "{out}");
    let broken = GATEWAY.replace("targetPorts: [{number: 8000}]", "targetPorts: [{number: many}]");
    std::fs::write(folder.path().join("a.yaml"), broken).expect("written");
    let (code, out, error) = pd_router(&["check", "--manifests", &path]);
    assert_eq!(code, Some(1), "{out}{error}");
    let problem = "problem: a.yaml document 3, InferencePool default/p, spec.targetPorts";
    assert!(out.contains(problem), "{out}");
    assert!(error.contains(" problem"), "{error}");
    let (code, _, error) = pd_router(&["check", "--manifests", "/nowhere"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("--manifests /nowhere: No such file"), "{error}");
}

#[test]
fn the_example_has_no_problem() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/qwen3-32b");
    let (code, out, error) = pd_router(&["check", "--manifests", example]);
    assert_eq!((code, &*error), (Some(0), ""), "{out}");
    assert!(out.contains("pool default/qwen-inference-pool: can serve\n"), "{out}");
}

#[test]
fn a_flag_may_be_a_variable_and_counts_before_it() {
    let gateway = || {
        let mut command = Command::new(program());
        command.args(["gateway", "--manifests", "/nowhere"]).env("PD_ROUTER_MAX_BODY", "0");
        command
    };
    let (code, _, error) = ran(&mut gateway());
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("--max-body is 0"), "{error}");
    let (_, _, error) = ran(gateway().args(["--max-body", "64Mi"]));
    assert!(error.contains("--manifests /nowhere: "), "{error}");
    let (code, _, error) = ran(gateway().env("PD_ROUTER_MAX_QUEUED", "many"));
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--max-queued"), "{error}");
    // Kubernetes sets this one for a Service.
    let service = "tcp://10.0.0.1:80";
    let (_, _, error) = ran(gateway().args(["--max-body", "1"]).env("PD_ROUTER_PORT", service));
    assert!(error.contains("--manifests /nowhere: "), "{error}");
}

#[test]
fn every_command_is_completed_and_the_version_names_what_was_built() {
    let (code, script, _) = pd_router(&["completions", "bash"]);
    assert_eq!(code, Some(0));
    for word in ["gateway", "agent", "check", "--max-body-memory"] {
        assert!(script.contains(word), "{word}");
    }
    let (_, version, _) = pd_router(&["--version"]);
    for line in ["pd-router 0.", "\ncommit: ", "\neBPF programs: "] {
        assert!(version.contains(line), "{version}");
    }
    let (code, _, error) = pd_router(&["agent"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("--kubernetes") && error.contains("--manifests"), "{error}");
}
