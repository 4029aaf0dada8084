//! Every kind of bad document, and its problems.

use std::time::Duration;

use router_core::fleet::ListenPort;

use super::super::golden::fleet;
use super::*;

fn scalar(text: &str) -> Value {
    let document = format!("v: {text}");
    let parsed: Value = serde_saphyr::from_str_with_options(&document, options()).unwrap();
    parsed["v"].clone()
}

#[test]
fn scalars_mean_what_they_mean_to_kubectl() {
    for (text, expected) in [
        ("0777", Value::from(511)),
        ("0o777", 511.into()),
        ("'0777'", "0777".into()),
        ("yes", true.into()),
        ("off", false.into()),
        ("\"yes\"", "yes".into()),
        ("24h", "24h".into()),
        ("12:30", "12:30".into()),
        ("2024-01-01", "2024-01-01".into()),
        ("~", Value::Null),
    ] {
        assert_eq!(scalar(text), expected, "{text}");
    }
}

fn problems(text: &str) -> Vec<String> {
    fleet(text).problems.iter().map(ToString::to_string).collect()
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n";
const POOL: &str = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferencePool\nmetadata:\n  name: pool\n";
const POLICY: &str = "apiVersion: inferenceextension.alibabacloud.com/v1alpha1\nkind: InferenceTrafficPolicy\nmetadata:\n  name: policy\nspec:\n  poolRef:\n    name: pool\n";

/// A document and what its one problem says, field and reason.
fn assert_problem(document: &str, expected: &[&str]) {
    let problems = problems(document);
    let [problem] = problems.as_slice() else { panic!("{document}\n{problems:#?}") };
    for part in expected {
        assert!(problem.contains(part), "{document}\n{problem}\nlacks {part}");
    }
}

#[test]
fn a_document_that_does_not_parse_is_named_with_field_and_reason() {
    let at = "case.yaml document 1";
    assert_problem("a: [1\n", &[at, "invalid YAML", "line 1"]);
    assert_problem("a: 1\na: 2\n", &[at, "invalid YAML", "duplicate", "line 2"]);
    assert_problem("just text\n", &[at, "apiVersion and kind are required"]);
    assert_problem("- a\n- b\n", &[at, "apiVersion and kind are required"]);
    assert_problem("apiVersion: v1\nkind: Pod\n", &[at, "metadata.name", "a Pod is required"]);
    let labels = |value: &str| format!("{POD}  labels:\n    app: {value}\n");
    assert_problem(
        &labels("yes"),
        &[at, "Pod default/p", "metadata.labels.app", "boolean", "quotes"],
    );
    assert_problem(&labels("0777"), &["metadata.labels.app", "integer `511`", "quotes"]);
    assert_problem(&format!("{POD}spec: []\n"), &["Pod default/p", "spec"]);
    let port =
        |port: &str| format!("{POOL}spec:\n  selector:\n    a: b\n  targetPortNumber: {port}\n");
    assert_problem(
        &port("0"),
        &["InferencePool default/pool", "spec.targetPortNumber", "nonzero u16"],
    );
    assert_problem(&port("70000"), &["spec.targetPortNumber", "70000"]);
    assert_problem(&port("http"), &["spec.targetPortNumber", "\"http\""]);
    assert_problem(
        &format!("{POOL}spec:\n  targetPortNumber: 1\n"),
        &["spec", "missing field `selector`"],
    );
    let version = POOL.replace("v1alpha2", "v1alpha1");
    assert_problem(&version, &["InferencePool default/pool", "apiVersion", "v1alpha1"]);
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r\nspec:\n  parentRefs:\n  - name: g\n  rules:\n  - matches:\n    - path:\n        type: Prefix\n        value: /\n";
    assert_problem(
        route,
        &["HTTPRoute default/r", "spec.rules[0].matches[0].path.type", "PathPrefix"],
    );
}

#[test]
fn a_field_that_has_no_effect_is_named_and_the_rest_is_served() {
    let pool = format!("{POOL}spec:\n  selector:\n    a: b\n  targetPortNumber: 1\n---\n");
    let policy = |rest: &str| format!("{pool}{POLICY}{rest}");
    assert_problem(
        &policy("  profile:\n    single:\n      trafficPolicy: {}\n"),
        &["document 2", "spec.profile.single.trafficPolicy", "has no effect"],
    );
    assert_problem(
        &policy("  modelServerRuntim: sglang\n"),
        &["spec.modelServerRuntim", "unknown"],
    );
    assert_problem(
        &format!("{POD}spec:\n  containers: []\n  nodeNam: x\n"),
        &["spec.nodeNam", "unknown"],
    );
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: g\nspec:\n  gatewayClassName: c\n  addresses:\n  - value: 10.0.0.1\n  listeners:\n  - name: http\n    port: 80\n    protocol: HTTP\n";
    assert_problem(gateway, &["Gateway default/g", "spec.addresses", "has no effect"]);
    assert_eq!(fleet(gateway).ports(), [ListenPort { number: 80, secure: false }]);
    let backend = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r\nspec:\n  parentRefs: []\n  rules:\n  - retry: {attempts: 3}\n";
    let text = problems(backend).join("\n");
    assert!(text.contains("spec.rules[0].retry: is unknown to pd-router"), "{text}");
}

#[test]
fn a_null_is_not_an_unknown_field() {
    assert_eq!(
        problems(&format!("{POD}  creationTimestamp: null\nspec: null\nextra: ~\n")),
        [""; 0]
    );
}

#[test]
fn a_quantity_with_a_space_gets_a_hint() {
    let pod = format!(
        "{POD}spec:\n  containers:\n  - name: c\n    resources:\n      limits:\n        memory: \"16 Gi\"\n        nvidia.com/gpu: \"2\"\n"
    );
    assert_problem(
        &pod,
        &["Pod default/p", "spec.containers[0].resources.limits.memory", "\"16 Gi\"", "write 16Gi"],
    );
    let shm = format!(
        "{POD}spec:\n  containers: []\n  volumes:\n  - name: d\n    emptyDir:\n      sizeLimit: 15 Gi\n"
    );
    assert_problem(&shm, &["spec.volumes[0].emptyDir.sizeLimit", "write 15Gi"]);
}

#[test]
fn an_invalid_document_does_not_affect_the_others() {
    let text = format!(
        "{POD}---\na: [\n---\n# only a comment\n---\n{}",
        POD.replace("name: p", "name: q")
    );
    let documents = read(&"f.yaml".into(), &text);
    let keys: Vec<_> =
        documents.iter().map(|d| (d.position, d.key.as_ref().map(Key::to_string))).collect();
    let pod = |name: &str| Some(format!("Pod default/{name}"));
    assert_eq!(keys, [(1, pod("p")), (2, None), (3, pod("q"))]);
    assert!(documents[1].problems[0].reason.contains("line 6"), "{:?}", documents[1].problems);
}

#[test]
fn the_key_of_invalid_yaml_is_guessed_from_its_lines() {
    let text = "apiVersion: v1\nkind: Pod # a pod\nmetadata:\n  labels:\n    name: wrong\n  name: \"p\"\n  namespace: ns\nspec: {\n";
    let documents = read(&"f.yaml".into(), text);
    assert_eq!(documents[0].key.as_ref().map(Key::to_string).as_deref(), Some("Pod ns/p"));
}

#[test]
fn separators_in_blocks_and_windows_line_ends_are_handled() {
    let pod = format!("{POD}  annotations:\n    note: |\n      a\n      ---\n      b\n")
        .replace('\n', "\r\n");
    let documents = read(&"f.yaml".into(), &format!("---\r\n{pod}--- # next\r\n{pod}"));
    assert_eq!(documents.len(), 2);
    assert!(documents.iter().all(|d| matches!(d.content, Content::Object(_))), "{documents:#?}");
}

#[test]
fn lists_are_unpacked_and_name_their_items() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: v1, kind: Pod, metadata: {name: b, labels: {x: 1}}}\n- {apiVersion: v1, kind: Secret}\n";
    let documents = read(&"f.yaml".into(), text);
    assert_eq!(documents.len(), 3);
    let problem = documents[1].problems[0].to_string();
    assert!(problem.contains("document 1, Pod default/b, items[1].metadata.labels.x"), "{problem}");
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    assert_problem(&text, &["invalid YAML"]);
}

#[test]
fn json_is_read() {
    let text = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}"#;
    assert!(problems(text).is_empty());
}

#[test]
fn other_kinds_are_accepted_without_a_problem() {
    let other_kind = "apiVersion: workloads.x-k8s.io/v1alpha1\nkind: RoleBasedGroup\nspec: 30 Gi\n";
    assert!(problems(other_kind).is_empty());
    assert!(problems("").is_empty());
    assert!(problems("# nothing\n---\n---\n").is_empty());
}

#[test]
fn documents_over_the_limit_are_ignored_and_reported() {
    let text = "kind: X\napiVersion: x/v1\n---\n".repeat(MAX_DOCUMENTS + 3);
    let documents = read(&"f.yaml".into(), &text);
    assert_eq!(documents.len(), MAX_DOCUMENTS + 1);
    let last = &documents[MAX_DOCUMENTS].problems[0];
    assert_eq!((last.code, last.document), ("TooMany", Some(10_000)));
}

#[test]
fn the_reason_for_a_huge_value_is_short() {
    let text = format!("{POOL}spec:\n  selector: {}\n", "x".repeat(100_000));
    let documents = read(&"f.yaml".into(), &text);
    let reason = &documents[0].problems[0].reason;
    assert!(reason.len() < 500 && reason.starts_with("invalid type: string"), "{reason}");
}

#[test]
fn a_document_that_is_nested_deeply_is_read_or_refused() {
    for depth in [100, 1_000, 10_000, 100_000] {
        let text = format!("{POD}x: {}{}\n", "[".repeat(depth), "]".repeat(depth));
        let documents = read(&"f.yaml".into(), &text);
        assert_eq!(documents[0].problems.len(), 1, "{depth}");
    }
}

#[test]
fn empty_pieces_are_not_parsed_and_null_documents_count_towards_the_limit() {
    let separators = "---\n".repeat(100_000);
    assert_eq!(read(&"f.yaml".into(), &(separators + POD)).len(), 1);
    let nulls = read(&"f.yaml".into(), &"--- ~\n".repeat(MAX_DOCUMENTS + 5));
    let [document] = nulls.as_slice() else { panic!("{} documents", nulls.len()) };
    assert_eq!(document.problems[0].code, "TooMany");
}

#[test]
fn line_numbers_of_messages_are_those_of_the_file() {
    let message = "duplicate key at line 2, column 1 (defined at line 13); a line of text";
    let moved = "duplicate key at line 102, column 1 (defined at line 113); a line of text";
    assert_eq!(with_file_lines(message, 100), moved);
    assert_eq!(with_file_lines("no location", 100), "no location");
    let text = "a: [\n---\n".repeat(3);
    let reasons: Vec<String> = read(&"f.yaml".into(), &text)
        .iter()
        .map(|document| document.problems[0].reason.to_string())
        .collect();
    for (reason, line) in reasons.iter().zip([1, 3, 5]) {
        assert!(reason.contains(&format!("line {line},")), "{line}: {reason}");
    }
}

/// The processor time of this thread: what other processes do meanwhile does not count.
fn thread_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("Linux has this clock").into()
}

#[test]
fn the_time_for_broken_documents_grows_with_their_number_and_not_its_square() {
    let file: Arc<str> = "case.yaml".into();
    let time_of = |documents: usize| {
        let text = "---\napiVersion: v1\nkind: [Pod\n".repeat(documents);
        let started = thread_time();
        assert_eq!(read(&file, &text).len(), documents);
        thread_time() - started
    };
    // Sixteen times as many take 16 times as long, or 256 times if each is read from the start of the file.
    // The shortest of some runs is the one that was disturbed least.
    let shortest = |documents| (0..3).map(|_| time_of(documents)).min().unwrap_or_default();
    let (few, many) = (shortest(250), shortest(4000));
    assert!(many < 80 * few, "{few:?} for 250, {many:?} for 4,000");
}
