//! The alert rules: what they name exists, and each fires in Prometheus' own evaluator.

use std::collections::BTreeSet;
use std::process::Command;

use router_tests::folder::Folder;
use serde_json::Value;

use crate::dashboard::{assert_metrics_exist, samples};
use crate::read;
use crate::rendering::{kustomize, program};

/// The rules as a rule file of Prometheus.
fn groups() -> Value {
    let objects = kustomize("tests/deploy/monitored");
    let rule = objects.values().find(|object| object["kind"] == "PrometheusRule");
    rule.expect("a PrometheusRule")["spec"].clone()
}

fn alerts(groups: &Value) -> Vec<&Value> {
    let groups = groups["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")).collect()
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().expect("a name")
}

#[test]
fn every_metric_of_an_alert_exists() {
    let (groups, samples) = (groups(), samples());
    for alert in alerts(&groups) {
        let expression = alert["expr"].as_str().expect("an expression");
        assert_metrics_exist(&samples, name(alert), expression);
    }
}

#[test]
fn every_alert_has_a_section_that_it_links() {
    let groups = groups();
    let document = read("docs/operate/alerts.md");
    let sections = document.lines().filter_map(|line| line.strip_prefix("## "));
    let alerts = alerts(&groups);
    assert_eq!(
        alerts.iter().map(|alert| name(alert)).collect::<Vec<_>>(),
        sections.collect::<Vec<_>>()
    );
    for alert in alerts {
        let anchor = name(alert).to_lowercase();
        let runbook = &alert["annotations"]["runbook"];
        assert_eq!(*runbook, format!("docs/operate/alerts.md#{anchor}"));
    }
}

#[test]
fn every_alert_fires_in_prometheus() {
    let groups = groups();
    let cases: Value =
        serde_saphyr::from_str(&read("tests/deploy/alerts.test.yaml")).expect("YAML");
    let tested: BTreeSet<&str> = cases["tests"]
        .as_array()
        .expect("tests")
        .iter()
        .flat_map(|case| case["alert_rule_test"].as_array().expect("alerts"))
        .filter(|test| test["exp_alerts"].as_array().is_some_and(|expected| !expected.is_empty()))
        .map(|test| test["alertname"].as_str().expect("a name"))
        .collect();
    assert_eq!(alerts(&groups).into_iter().map(name).collect::<BTreeSet<_>>(), tested);
    let folder = Folder::new("alerts");
    // JSON is YAML.
    std::fs::write(folder.path().join("rules.yaml"), groups.to_string()).expect("written");
    let cases = folder.path().join("alerts.test.yaml");
    std::fs::write(&cases, read("tests/deploy/alerts.test.yaml")).expect("written");
    for words in [["check", "rules", "rules.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        let mut promtool = Command::new(program("PROMTOOL_BIN"));
        let output = promtool.args(words).current_dir(folder.path()).output().expect("promtool");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{words:?}: {text}");
    }
}
