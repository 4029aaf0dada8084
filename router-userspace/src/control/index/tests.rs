//! What holds of every build: order does not matter, workers outlive fleets, engine info changes which engines fit.

use proptest::prelude::*;
use router_core::fleet::{Member, Weight, WorkerLimits};

use super::super::document::{self, Content};
use super::super::golden;
use super::*;

/// Every object of the golden cases, each with its own source.
fn everything() -> Vec<(Source, Object)> {
    let cases = [
        include_str!("../golden/document.yaml"),
        include_str!("../golden/pods.yaml"),
        include_str!("../golden/routes.yaml"),
        include_str!("../golden/references.yaml"),
        include_str!("../golden/services.yaml"),
        include_str!("../golden/multi-node.yaml"),
    ];
    let mut objects = Vec::new();
    for (number, text) in cases.into_iter().enumerate() {
        let file: Arc<str> = format!("{number}.yaml").into();
        for document in document::read(&file, text) {
            let name = Arc::clone(&file);
            // Items of one List share a position; here each needs its own.
            let position = u32::try_from(objects.len()).unwrap();
            let source = Source::File { name, document: position };
            if let Content::Object(object) = document.content {
                objects.push((source, *object));
            }
        }
    }
    objects
}

fn text(fleet: &Fleet) -> String {
    serde_json::to_string_pretty(fleet).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_order_of_the_objects_never_changes_the_fleet(
        order in Just(everything()).prop_shuffle(),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let build = |objects: &[(Source, Object)]| {
            let mut index = Index::default();
            for (source, object) in objects {
                index.apply(source.clone(), object.clone());
            }
            index
        };
        let mut shuffled = build(&order);
        prop_assert_eq!(
            text(&build(&everything()).build(&Fleet::default())),
            text(&shuffled.build(&Fleet::default()))
        );
        // Removing is the same as never having applied.
        let mut rest = everything();
        for at in removed {
            let (source, object) = rest.remove(at.index(rest.len()));
            shuffled.remove(&source, &object.key());
        }
        prop_assert_eq!(
            text(&build(&rest).build(&Fleet::default())),
            text(&shuffled.build(&Fleet::default()))
        );
    }
}

const POOL: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: pool}
spec: {selector: {app: a}, targetPortNumber: 8000}
---
";

fn pod(name: &str, uid: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: {uid}, labels: {{app: a}}}}\n\
         status: {{podIP: {ip}, conditions: [{{type: Ready, status: \"True\"}}]}}\n---\n"
    )
}

fn fleet_after(previous: &Fleet, pods: &str) -> Fleet {
    golden::index("case.yaml", &format!("{POOL}{pods}")).build(previous)
}

fn member(fleet: &Fleet) -> &Member {
    &fleet.pools[0].members[0]
}

#[test]
fn a_worker_and_its_leases_outlive_the_fleet_that_named_it() {
    let first = fleet_after(&Fleet::default(), &pod("p", "u", "10.0.0.1"));
    let weight = Weight { requests: 1, ..Weight::default() };
    let lease = member(&first).worker.try_lease(weight, WorkerLimits::NONE, None).unwrap();
    let second = fleet_after(&first, &pod("p", "u", "10.0.0.1"));
    assert!(Arc::ptr_eq(&member(&first).worker, &member(&second).worker));
    assert_eq!(member(&second).worker.usage().requests, 1);
    assert_eq!((first.generation, second.generation), (1, 2));
    drop(lease);
    assert_eq!(member(&second).worker.usage().requests, 0);
}

#[test]
fn the_same_address_with_a_new_uid_is_a_new_worker_and_so_is_a_new_address() {
    let first = fleet_after(&Fleet::default(), &pod("p", "u", "10.0.0.1"));
    for other in [pod("p", "other", "10.0.0.1"), pod("p", "u", "10.0.0.2")] {
        let second = fleet_after(&first, &other);
        assert!(!Arc::ptr_eq(&member(&first).worker, &member(&second).worker), "{other}");
    }
}

#[test]
fn a_pod_of_two_pools_is_one_worker() {
    let second_pool = POOL.replace("name: pool", "name: second");
    let fleet = fleet_after(&Fleet::default(), &(second_pool + &pod("p", "u", "10.0.0.1")));
    let [a, b] = fleet.pools.as_slice() else { panic!("{fleet:?}") };
    assert!(Arc::ptr_eq(&a.members[0].worker, &b.members[0].worker));
}

#[test]
fn engine_info_changes_which_engines_fit() {
    let pods = pod("a", "u-a", "10.0.0.1") + &pod("b", "u-b", "10.0.0.2");
    let mut index = golden::index("case.yaml", &format!("{POOL}{pods}"));
    let before = index.build(&Fleet::default());
    assert_eq!(before.pools[0].compatible_sets.len(), 1);
    let set = |index: &mut Index, uid: &str, last: u8, model: &str| {
        let model_path = Some(model.to_owned());
        let info = EngineInfo { model_path, ..EngineInfo::default() };
        index.set_engine_info(
            WorkerKey { uid: uid.into(), address: ([10, 0, 0, last], 8000).into() },
            info,
        )
    };
    assert!(set(&mut index, "u-a", 1, "qwen"));
    assert!(set(&mut index, "u-b", 2, "llama"));
    assert!(!set(&mut index, "u-b", 2, "llama"), "unchanged info are no change");
    let after = index.build(&before);
    assert_eq!(after.pools[0].compatible_sets.len(), 2);
    assert_eq!(after.pools[0].serving(Some("qwen")).next().unwrap().unified, [0]);
}

#[test]
fn the_first_of_two_sources_counts_and_the_other_is_named() {
    let mut index = golden::index("b.yaml", &pod("p", "second", "10.0.0.2"));
    let Object::Pod(first) = golden::object(&pod("p", "first", "10.0.0.1")) else { panic!() };
    let source = Source::File { name: "a.yaml".into(), document: 3 };
    index.apply(source.clone(), Object::Pod(first));
    let Object::InferencePool(pool) = golden::object(POOL) else { panic!() };
    index.apply(Source::Flags, Object::InferencePool(pool));
    let fleet = index.build(&Fleet::default());
    assert_eq!(&*member(&fleet).worker.key.uid, "first");
    let problem = fleet.problems[0].to_string();
    assert!(
        problem.contains("b.yaml document 1, Pod default/p: is also in a.yaml document 3"),
        "{problem}"
    );
    index.remove(&source, &golden::object(&pod("p", "first", "10.0.0.1")).key());
    let fleet = index.build(&fleet);
    assert_eq!(&*member(&fleet).worker.key.uid, "second");
    assert!(fleet.problems.is_empty());
}

#[test]
fn of_conflicting_policies_the_older_is_used_and_the_conflict_reported() {
    let policy = |name: &str, created: &str, label: &str| {
        format!(
            "apiVersion: inferenceextension.alibabacloud.com/v1alpha1\nkind: InferenceTrafficPolicy\n\
             metadata: {{name: {name}, creationTimestamp: \"{created}\"}}\n\
             spec: {{poolRef: {{name: pool}}, profile: {{pd: {{pdRoleLabelName: {label}}}, single: {{}}}}}}\n---\n"
        )
    };
    let young = policy("a-young", "2026-02-01T00:00:00Z", "young");
    let old = policy("z-old", "2026-01-01T00:00:00Z", "old");
    let fleet = fleet_after(&Fleet::default(), &(young + &old + &pod("p", "u", "10.0.0.1")));
    let problems: Vec<String> = fleet.problems.iter().map(ToString::to_string).collect();
    assert!(
        problems[0].contains(
            "a-young, spec.poolRef: InferencePool default/pool already has policy default/z-old"
        ),
        "{problems:#?}"
    );
    assert!(problems[1].contains("pd and single are mutually exclusive"), "{problems:#?}");
    assert!(problems[2].contains("no pod of pool default/pool has label old"), "{problems:#?}");
    assert_eq!(fleet.pools[0].excluded[0].reason, "has no label old");
}

#[test]
fn routes_to_a_pd_pool_of_an_unsupported_runtime_answer_500() {
    let text = include_str!("../golden/document.yaml")
        .replace("modelServerRuntime: sglang", "modelServerRuntime: vllm");
    let fleet = golden::fleet(&text);
    let backends: Vec<String> = fleet.listeners[0]
        .rules()
        .map(|(_, _, rule)| serde_json::to_string(&rule.backends()[0].target).unwrap())
        .collect();
    assert!(
        backends[0]
            .starts_with("\"500: InferencePool default/qwen-inference-pool has runtime vllm"),
        "{backends:?}"
    );
    assert!(
        fleet.problems[0].to_string().contains("spec.modelServerRuntime"),
        "{:?}",
        fleet.problems
    );
}

#[test]
fn an_empty_selector_selects_nothing() {
    let fleet = fleet_after(&Fleet::default(), &pod("p", "u", "10.0.0.1"));
    assert_eq!(fleet.pools[0].members.len(), 1);
    let text = format!("{}{}", POOL.replace("{app: a}", "{}"), pod("p", "u", "10.0.0.1"));
    let fleet = golden::fleet(&text);
    assert!(fleet.pools[0].members.is_empty());
    assert!(fleet.problems[0].to_string().contains("spec.selector: is empty"));
}

#[test]
fn pods_over_the_limit_are_ignored_and_reported() {
    let mut index = golden::index("case.yaml", POOL);
    let Object::Pod(template) = golden::object(&pod("p", "u", "10.0.0.1")) else { panic!() };
    for number in 0..build::MAX_PODS + 5 {
        let mut pod = template.clone();
        pod.metadata.name = Some(format!("p-{number:05}"));
        pod.metadata.uid = Some(format!("u-{number}"));
        index.apply(Source::Cluster, Object::Pod(pod));
        let model_path = Some("qwen".to_owned());
        let max_total_num_tokens = Some(u64::try_from(number).unwrap());
        let info = EngineInfo { model_path, max_total_num_tokens, ..EngineInfo::default() };
        let uid = format!("u-{number}").into();
        index.set_engine_info(WorkerKey { uid, address: ([10, 0, 0, 1], 8000).into() }, info);
    }
    let fleet = index.build(&Fleet::default());
    assert_eq!(fleet.pools[0].members.len(), build::MAX_PODS);
    assert_eq!(fleet.pools[0].compatible_sets.len(), 1);
    let problem = fleet.problems[0].to_string();
    assert!(
        problem.contains("Pod default/p-10000: is the first of 5 pods over the limit"),
        "{problem}"
    );
}

#[test]
fn a_pod_of_two_pools_has_its_problem_once() {
    let split = |name: &str| {
        format!(
            "{}apiVersion: inferenceextension.alibabacloud.com/v1alpha1\nkind: InferenceTrafficPolicy\n\
             metadata: {{name: {name}}}\nspec: {{poolRef: {{name: {name}}}, profile: {{pd: {{pdRoleLabelName: role}}}}}}\n---\n",
            POOL.replace("name: pool", &format!("name: {name}"))
        )
    };
    let pod = pod("p", "u", "10.0.0.1")
        .replace("{app: a}", "{app: a, role: prefill}, annotations: {sglang.ai/bootstrap-port: x}");
    let fleet = golden::fleet(&(split("one") + &split("two") + &pod));
    let problems: Vec<String> = fleet.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].contains("\"x\" is not a port; it is ignored"), "{problems:#?}");
}
