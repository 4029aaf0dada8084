//! The chart's values: the schema knows each, and refuses what is none.

use serde_json::Value;

use crate::read;
use crate::rendering::helm;

/// The schema's properties must be those of the values, down to where the schema lets anything in.
fn compare(path: &str, values: &Value, schema: &Value, missing: &mut Vec<String>) {
    let (Value::Object(values), Some(Value::Object(known))) = (values, schema.get("properties"))
    else {
        return;
    };
    for (key, value) in values {
        match known.get(key) {
            Some(schema) => compare(&format!("{path}.{key}"), value, schema, missing),
            None => missing.push(format!("{path}.{key} is not in the schema")),
        }
    }
    for key in known.keys().filter(|key| !values.contains_key(*key) && *key != "global") {
        missing.push(format!("{path}.{key} has no default"));
    }
}

#[test]
fn the_schema_names_every_value_and_every_value_has_a_default() {
    let values: Value = serde_saphyr::from_str(&read("deploy/chart/values.yaml")).expect("YAML");
    let schema: Value =
        serde_json::from_str(&read("deploy/chart/values.schema.json")).expect("JSON");
    let mut missing = Vec::new();
    compare("", &values, &schema, &mut missing);
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn values_that_are_wrong_are_refused_with_their_names() {
    for (value, named) in [
        ("gateway.service.typ=NodePort", "typ"),
        ("gateway.service.type=Extern", "/gateway/service/type"),
        // Ports are those of the Gateways.
        ("gateway.service.ports={80}", "ports"),
        ("images.pullPolicy=Sometimes", "/images/pullPolicy"),
        ("gateway.autoscaling.minReplicas=0", "/gateway/autoscaling/minReplicas"),
        ("monitoring.interval=often", "/monitoring/interval"),
        ("tokenSecret=A_B", "/tokenSecret"),
    ] {
        let refused = helm(&["--set", value]).expect_err(value);
        assert!(refused.contains(named), "{value}: {refused}");
    }
}

#[test]
fn values_change_their_objects() {
    let objects = helm(&[
        "--set",
        "gateway.service.type=ClusterIP,gateway.service.annotations.size=small",
        "--set",
        "images.gateway=registry.example/pd-router:2,images.pullPolicy=Always",
        "--set",
        "tokenSecret=other,agent.extraArgs={--sample-interval=20},gateway.autoscaling.enabled=false",
        "--set",
        "images.pullSecrets[0].name=registry",
    ])
    .expect("good values");
    let object = |key: &str| &objects[key];
    let deployment = object("apps/v1 Deployment pd-router-system/pd-router-gateway");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(pod["containers"][0]["image"], "registry.example/pd-router:2");
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(pod["imagePullSecrets"][0]["name"], "registry");
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], "other");
    let arguments = pod["containers"][0]["args"].as_array().expect("arguments");
    for word in ["--gateway-service-type=ClusterIP", "--gateway-service-annotation=size=small"] {
        assert!(arguments.contains(&word.into()), "{word}: {arguments:?}");
    }
    let agent = object("apps/v1 DaemonSet pd-router-system/pd-router-agent");
    let arguments = agent["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
    assert!(arguments.expect("arguments").contains(&"--sample-interval=20".into()));

    let objects = helm(&["--set", "agent.enabled=false"]).expect("no agent");
    assert_eq!(objects.keys().filter(|key| key.contains("agent")).count(), 0);
}
