//! Every metric that the dashboard queries exists, and every row is documented.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::read;

/// Names as they stand in samples, of every metric that docs/reference/metrics.md names.
pub(crate) fn samples() -> BTreeSet<String> {
    let document = read("docs/reference/metrics.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `pd_"));
    let mut names = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let name = format!("pd_{}", cells[0]);
        let endings: &[&str] = match cells[1] {
            "histogram" => &["_bucket", "_sum", "_count"],
            "counter" => &["_total"],
            "gauge" => &[""],
            other => panic!("{name} is a {other}"),
        };
        names.extend(endings.iter().map(|ending| format!("{name}{ending}")));
    }
    names
}

fn expressions(panels: &Value, found: &mut BTreeMap<String, String>) {
    for panel in panels.as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression").to_owned();
            found.insert(expression, panel["title"].to_string());
        }
        expressions(&panel["panels"], found);
    }
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/dashboards/pd-router.json")).expect("JSON");
    let mut found = BTreeMap::new();
    expressions(&dashboard["panels"], &mut found);
    assert!(found.len() > 15, "{found:?}");
    let samples = samples();
    for (expression, panel) in found {
        assert_metrics_exist(&samples, &panel, &expression);
    }
}

pub(crate) fn assert_metrics_exist(samples: &BTreeSet<String>, place: &str, expression: &str) {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: Vec<&str> = words.filter(|word| word.starts_with("pd_")).collect();
    assert!(!named.is_empty(), "{place}: {expression}");
    for name in named {
        assert!(samples.contains(name), "{place}: {name} is not in docs/reference/metrics.md");
    }
}

#[test]
fn every_row_of_the_dashboard_is_documented_in_its_order() {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/dashboards/pd-router.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows = panels.iter().filter(|panel| panel["type"] == "row");
    let rows: Vec<&str> = rows.map(|row| row["title"].as_str().expect("a title")).collect();
    let document = read("docs/operate/monitoring.md");
    let table = document.split("| row | shows |").nth(1).expect("the table of the rows");
    let table = table.lines().skip(2).take_while(|line| line.starts_with("| "));
    let documented: Vec<&str> =
        table.map(|line| line.split(" | ").next().unwrap_or(line)).collect();
    let documented: Vec<&str> =
        documented.iter().map(|cell| cell.trim_matches(['|', ' '])).collect();
    assert_eq!(documented, rows, "docs/operate/monitoring.md against the dashboard");
}
