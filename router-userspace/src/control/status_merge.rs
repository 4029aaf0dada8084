//! Merges a wanted status into an object's current status. Does no I/O.

use serde_json::{Value, json};

use super::index::{CONTROLLER_NAME, StatusPatch};

/// Returns the new status as a merge patch, in which null removes a field, or `None` if nothing
/// changes. `now` becomes the transition time of conditions that change.
pub(super) fn merged(old: &Value, wanted: &StatusPatch, now: &str) -> Option<Value> {
    let mut new = if old.is_object() { old.clone() } else { json!({}) };
    match wanted {
        StatusPatch::Conditions(conditions) => {
            new["conditions"] = merged_conditions(&old["conditions"], conditions, now);
        }
        StatusPatch::Class { conditions, features } => {
            new["conditions"] = merged_conditions(&old["conditions"], conditions, now);
            new["supportedFeatures"] = features.iter().map(|name| json!({"name": name})).collect();
        }
        StatusPatch::Gateway { conditions, listeners, addresses } => {
            let address = |value: &String| {
                let ip = value.parse::<std::net::IpAddr>().is_ok();
                json!({"type": if ip { "IPAddress" } else { "Hostname" }, "value": value})
            };
            // Null rather than an empty list, so that kubectl's jsonpath prints nothing.
            new["addresses"] = match addresses.is_empty() {
                true => Value::Null,
                false => addresses.iter().map(address).collect(),
            };
            new["conditions"] = merged_conditions(&old["conditions"], conditions, now);
            let listener = |listener: &Value| {
                let mut listener = listener.clone();
                let before = named(&old["listeners"], &listener["name"]);
                let wanted = listener["conditions"].as_array().cloned().unwrap_or_default();
                listener["conditions"] = merged_conditions(&before["conditions"], &wanted, now);
                listener
            };
            new["listeners"] = listeners.iter().map(listener).collect();
        }
        StatusPatch::Parents(ours) | StatusPatch::Ancestors(ours) => {
            let list =
                if matches!(wanted, StatusPatch::Parents(_)) { "parents" } else { "ancestors" };
            let others = |entry: &Value| entry["controllerName"] != CONTROLLER_NAME;
            let merged = merged_parents(&old[list], ours, others, now);
            let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
            // A status without entries of ours is not written if there are none to add.
            if none(&old[list]) && none(&merged) {
                return None;
            }
            new[list] = merged;
        }
        StatusPatch::Parent { ours, other_gateways } => {
            let others = |entry: &Value| is_of_another(entry, other_gateways);
            let merged = merged_parents(&old["parent"], ours, others, now);
            let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
            if none(&old["parent"]) && none(&merged) {
                return None;
            }
            // A pool without a parent gets the placeholder that its definition sets by default.
            new["parent"] = match none(&merged) {
                true => merged_parents(&old["parent"], &[placeholder_parent()], |_| false, NEVER),
                false => merged,
            };
        }
    }
    if new["addresses"].is_null() && old["addresses"].is_null() {
        new.as_object_mut().and_then(|status| status.remove("addresses"));
    }
    (new != *old).then_some(new)
}

/// Whether an entry without a controller name belongs to another controller: its parent is one of
/// `other_gateways`, or not a Gateway. An entry of a deleted Gateway belongs to no one.
fn is_of_another(entry: &Value, other_gateways: &[String]) -> bool {
    let text = |at: &str| entry["parentRef"][at].as_str();
    let name = text("name").unwrap_or_default();
    match (text("kind").unwrap_or("Gateway"), text("namespace")) {
        ("Status", _) => false,
        ("Gateway", Some(namespace)) => other_gateways.contains(&format!("{namespace}/{name}")),
        ("Gateway", None) => {
            other_gateways.iter().any(|known| known.ends_with(&format!("/{name}")))
        }
        _ => true,
    }
}

const NEVER: &str = "1970-01-01T00:00:00Z";

/// The default parent of an InferencePool v1alpha2.
fn placeholder_parent() -> Value {
    json!({
        "parentRef": {"kind": "Status", "name": "default"},
        "conditions": [{
            "type": "Accepted", "status": "Unknown", "reason": "Pending",
            "message": "Waiting for controller",
        }],
    })
}

fn named(list: &Value, name: &Value) -> Value {
    let mut all = list.as_array().into_iter().flatten();
    all.find(|entry| entry["name"] == *name).cloned().unwrap_or_default()
}

/// Merges conditions: a condition keeps its transition time while its status stays the same, and
/// types that are not in `wanted` are kept.
fn merged_conditions(old: &Value, wanted: &[Value], now: &str) -> Value {
    let empty = Vec::new();
    let old = old.as_array().unwrap_or(&empty);
    let ours = |kind: &Value| wanted.iter().any(|condition| condition["type"] == *kind);
    let mut all: Vec<Value> =
        old.iter().filter(|condition| !ours(&condition["type"])).cloned().collect();
    for condition in wanted {
        let same = |known: &&Value| {
            known["type"] == condition["type"] && known["status"] == condition["status"]
        };
        let since = old.iter().find(same).and_then(|known| known["lastTransitionTime"].as_str());
        let mut condition = condition.clone();
        condition["lastTransitionTime"] = since.unwrap_or(now).into();
        all.push(condition);
    }
    all.sort_by(|a, b| a["type"].as_str().cmp(&b["type"].as_str()));
    Value::Array(all)
}

fn merged_parents(
    old: &Value,
    ours: &[Value],
    others: impl Fn(&Value) -> bool,
    now: &str,
) -> Value {
    let empty = Vec::new();
    let old = old.as_array().unwrap_or(&empty);
    let mut all: Vec<Value> = old.iter().filter(|entry| others(entry)).cloned().collect();
    for entry in ours {
        let mut entry = entry.clone();
        let before = old.iter().find(|known| !others(known) && same_parent(known, &entry));
        let before = before.map(|known| known["conditions"].clone()).unwrap_or_default();
        let wanted = entry["conditions"].as_array().cloned().unwrap_or_default();
        entry["conditions"] = merged_conditions(&before, &wanted, now);
        // Keeps the defaults that the API server has filled in.
        if let Some(known) = old.iter().find(|known| !others(known) && same_parent(known, &entry)) {
            for reference in REFERENCES {
                if !known[reference].is_null() {
                    entry[reference] = known[reference].clone();
                }
            }
        }
        all.push(entry);
    }
    Value::Array(all)
}

/// The field that names the object of an entry, in `parents` and in `ancestors`.
const REFERENCES: [&str; 2] = ["parentRef", "ancestorRef"];

fn same_parent(a: &Value, b: &Value) -> bool {
    let fields = ["namespace", "name", "sectionName", "port"];
    REFERENCES.iter().all(|at| fields.iter().all(|field| a[*at][*field] == b[*at][*field]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-02-02T00:00:00Z";

    fn condition(status: &str) -> Value {
        json!({"type": "Accepted", "status": status, "reason": "R", "message": ""})
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let wanted = StatusPatch::Conditions(vec![condition("True")]);
        let first = merged(&Value::Null, &wanted, EARLY).unwrap();
        assert_eq!(first["conditions"][0]["lastTransitionTime"], EARLY);
        assert_eq!(merged(&first, &wanted, LATE), None);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let first = merged(&Value::Null, &StatusPatch::Conditions(vec![condition("True")]), EARLY);
        let first = first.unwrap();
        let mut other_reason = condition("True");
        other_reason["reason"] = "S".into();
        let second = merged(&first, &StatusPatch::Conditions(vec![other_reason]), LATE).unwrap();
        assert_eq!(second["conditions"][0]["lastTransitionTime"], EARLY);
        let third = merged(&second, &StatusPatch::Conditions(vec![condition("False")]), LATE);
        assert_eq!(third.unwrap()["conditions"][0]["lastTransitionTime"], LATE);
    }

    #[test]
    fn parents_of_other_controllers_stay() {
        let entry = |name: &str, controller: &str| {
            json!({"parentRef": {"name": name}, "controllerName": controller,
                "conditions": [condition("True")]})
        };
        let theirs = entry("a", "example.com/other");
        let old = json!({"parents": [theirs, entry("gone", CONTROLLER_NAME)]});
        let wanted = StatusPatch::Parents(vec![entry("b", CONTROLLER_NAME)]);
        let new = merged(&old, &wanted, LATE).unwrap();
        assert_eq!(new["parents"][0], theirs);
        assert_eq!(new["parents"][1]["parentRef"]["name"], "b");
        assert_eq!(new["parents"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_pool_without_a_parent_waits_for_a_controller() {
        let entry = json!({"parentRef": {"namespace": "n", "name": "g"},
            "conditions": [condition("True")]});
        let old = json!({"parent": [placeholder_parent()]});
        let wanted = |ours: &[Value]| StatusPatch::Parent {
            ours: ours.to_vec(),
            other_gateways: Vec::new(),
        };
        let new = merged(&old, &wanted(std::slice::from_ref(&entry)), LATE).unwrap();
        assert_eq!(new["parent"].as_array().unwrap().len(), 1);
        assert_eq!(new["parent"][0]["parentRef"]["name"], "g");
        let back = merged(&new, &wanted(&[]), LATE).unwrap();
        assert_eq!(back["parent"][0]["parentRef"]["kind"], "Status");
        assert_eq!(merged(&back, &wanted(&[]), LATE), None);
    }

    #[test]
    fn a_pool_without_a_gateway_of_ours_is_not_written() {
        let wanted =
            StatusPatch::Parent { ours: Vec::new(), other_gateways: vec!["n/theirs".to_owned()] };
        assert_eq!(merged(&Value::Null, &wanted, LATE), None);
        for parent in [
            json!({"kind": "Gateway", "namespace": "n", "name": "theirs"}),
            json!({"name": "theirs"}),
            json!({"group": "example.com", "kind": "Router", "name": "g"}),
        ] {
            let old = json!({"parent": [{"parentRef": parent, "conditions": []}]});
            assert_eq!(merged(&old, &wanted, LATE), None, "{old}");
        }
        let gone = json!({"parent": [{"parentRef": {"namespace": "n", "name": "gone"}}]});
        assert!(merged(&gone, &wanted, LATE).is_some());
    }

    #[test]
    fn addresses_are_added_and_removed() {
        let wanted = |addresses: &[&str]| StatusPatch::Gateway {
            conditions: vec![condition("True")],
            listeners: vec![json!({"name": "l", "conditions": [condition("True")]})],
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let waiting = merged(&Value::Null, &wanted(&[]), EARLY).unwrap();
        assert_eq!(waiting.get("addresses"), None);
        let ready = merged(&waiting, &wanted(&["192.0.2.1", "lb.example.com"]), LATE).unwrap();
        assert_eq!(ready["addresses"][0], json!({"type": "IPAddress", "value": "192.0.2.1"}));
        assert_eq!(ready["addresses"][1]["type"], "Hostname");
        let lost = merged(&ready, &wanted(&[]), LATE).unwrap();
        assert_eq!(lost.get("addresses"), Some(&Value::Null));
        assert_eq!(ready["listeners"][0]["conditions"][0]["lastTransitionTime"], EARLY);
    }
}
