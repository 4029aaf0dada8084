//! Kustomize and helm: the same objects, to the field.

use serde_json::Value;

use crate::rendering::{WAYS, helm, kustomize};

/// Paths at which two values differ.
fn differences(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
                let get = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or(Value::String("(absent)".into()))
                };
                differences(&format!("{path}.{key}"), &get(one), &get(other), found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differences(&format!("{path}[{index}]"), one, other, found);
            }
        }
        // 1 and 1.0 are the same to every reader of YAML and JSON.
        (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => {}
        _ if one == other => {}
        _ => found.push(format!("{path}: {one} / {other}")),
    }
}

#[test]
fn kustomize_and_helm_render_the_same_objects() {
    for way in &WAYS {
        let kustomized = kustomize(way.folder);
        let templated = helm(way.flags).expect(way.folder);
        assert!(kustomized.len() > 10, "{}: {} objects", way.folder, kustomized.len());
        let names: [Vec<_>; 2] = [kustomized.keys().collect(), templated.keys().collect()];
        assert_eq!(names[0], names[1], "{}", way.folder);
        let mut found = Vec::new();
        for (key, object) in &kustomized {
            differences(key, object, &templated[key], &mut found);
        }
        assert_eq!(found, Vec::<String>::new(), "{} (kustomize / helm)", way.folder);
    }
}

/// `helm install` creates them where they are missing.
#[test]
fn the_chart_brings_the_definitions_of_kustomize() {
    let mut charted = helm(&["--include-crds"]).expect("the chart");
    charted.retain(|key, _| key.split(' ').nth(1) == Some("CustomResourceDefinition"));
    let kustomized = kustomize("deploy/crds");
    assert_eq!(
        charted.keys().collect::<Vec<_>>(),
        kustomized.keys().collect::<Vec<_>>(),
        "helm / kustomize"
    );
    let mut found = Vec::new();
    for (key, object) in &kustomized {
        differences(key, object, &charted[key], &mut found);
    }
    assert_eq!(found, Vec::<String>::new(), "kustomize / helm");
}

#[test]
fn each_overlay_has_the_classes_and_definitions_that_it_should() {
    let named = |folder: &str, word: &str| -> Vec<String> {
        let all = kustomize(folder).into_keys();
        let found = all.filter(|key| key.split(' ').nth(1) == Some(word));
        found.map(|key| key.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    };
    // Where ACK's own component runs, its class and its definitions stay its own.
    for folder in ["deploy/base", "deploy/overlays/ack"] {
        assert_eq!(named(folder, "GatewayClass"), ["pd-router"], "{folder}");
    }
    for folder in ["deploy/overlays/documents", "deploy/overlays/local"] {
        assert_eq!(named(folder, "GatewayClass"), ["ack-gateway", "pd-router"], "{folder}");
    }
    // Applying a definition would replace another product's, and deleting it its objects.
    for way in &WAYS {
        assert_eq!(named(way.folder, "CustomResourceDefinition"), [""; 0], "{}", way.folder);
    }
    assert_eq!(named("deploy/crds", "CustomResourceDefinition").len(), 2);
    assert_eq!(named("deploy/overlays/documents", "PodMonitor"), [""; 0]);
    assert_eq!(named("tests/deploy/monitored", "PodMonitor").len(), 2);
    assert_eq!(named("deploy/overlays/local", "HorizontalPodAutoscaler"), [""; 0]);
}
