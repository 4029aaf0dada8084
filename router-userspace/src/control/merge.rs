//! A status as it is, and what an object is to be told -> the status as it should be. Pure.

use serde_json::{Value, json};

use super::index::{CONTROLLER_NAME, Told};

/// The new status, as a merge patch has it (null is none any more), or `None` where the old one
/// says it all. `now` is when conditions change that do.
pub(super) fn merged(old: &Value, told: &Told, now: &str) -> Option<Value> {
    let mut new = if old.is_object() { old.clone() } else { json!({}) };
    match told {
        Told::Conditions(conditions) => {
            new["conditions"] = merged_conditions(&old["conditions"], conditions, now);
        }
        Told::Gateway { conditions, listeners, addresses } => {
            let address = |value: &String| {
                let ip = value.parse::<std::net::IpAddr>().is_ok();
                json!({"type": if ip { "IPAddress" } else { "Hostname" }, "value": value})
            };
            // None rather than an empty list: kubectl's jsonpath then prints nothing.
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
        Told::Parents(ours) | Told::Ancestors(ours) => {
            let list = if matches!(told, Told::Parents(_)) { "parents" } else { "ancestors" };
            let others = |entry: &Value| entry["controllerName"] != CONTROLLER_NAME;
            let merged = merged_parents(&old[list], ours, others, now);
            let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
            // Of whom we have said nothing, we say nothing.
            if none(&old[list]) && none(&merged) {
                return None;
            }
            new[list] = merged;
        }
        Told::Parent { ours, of_others } => {
            let others = |entry: &Value| of_another(entry, of_others);
            let merged = merged_parents(&old["parent"], ours, others, now);
            let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
            if none(&old["parent"]) && none(&merged) {
                return None;
            }
            // Without a parent, the definition's own placeholder says that nobody has looked.
            new["parent"] = match none(&merged) {
                true => merged_parents(&old["parent"], &[nobody()], |_| false, NEVER),
                false => merged,
            };
        }
    }
    if new["addresses"].is_null() && old["addresses"].is_null() {
        new.as_object_mut().and_then(|status| status.remove("addresses"));
    }
    (new != *old).then_some(new)
}

/// Whether an entry that names no controller is another's: of a Gateway of theirs, or of something
/// that is no Gateway. One of a Gateway that is gone is nobody's.
fn of_another(entry: &Value, of_others: &[String]) -> bool {
    let text = |at: &str| entry["parentRef"][at].as_str();
    let name = text("name").unwrap_or_default();
    match (text("kind").unwrap_or("Gateway"), text("namespace")) {
        ("Status", _) => false,
        ("Gateway", Some(namespace)) => of_others.contains(&format!("{namespace}/{name}")),
        ("Gateway", None) => of_others.iter().any(|known| known.ends_with(&format!("/{name}"))),
        _ => true,
    }
}

const NEVER: &str = "1970-01-01T00:00:00Z";

/// What InferencePool v1alpha2 says of a pool without a parent.
fn nobody() -> Value {
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

/// Conditions keep their time while their status stays; types that are not ours stay as they are.
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
        // The API server has filled in defaults: what it has is kept.
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

/// Who an entry is about: of `parents`, and of `ancestors`.
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
    fn what_is_told_already_is_not_written_again() {
        let told = Told::Conditions(vec![condition("True")]);
        let first = merged(&Value::Null, &told, EARLY).unwrap();
        assert_eq!(first["conditions"][0]["lastTransitionTime"], EARLY);
        assert_eq!(merged(&first, &told, LATE), None);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let first = merged(&Value::Null, &Told::Conditions(vec![condition("True")]), EARLY);
        let first = first.unwrap();
        let mut other_reason = condition("True");
        other_reason["reason"] = "S".into();
        let second = merged(&first, &Told::Conditions(vec![other_reason]), LATE).unwrap();
        assert_eq!(second["conditions"][0]["lastTransitionTime"], EARLY);
        let third = merged(&second, &Told::Conditions(vec![condition("False")]), LATE);
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
        let told = Told::Parents(vec![entry("b", CONTROLLER_NAME)]);
        let new = merged(&old, &told, LATE).unwrap();
        assert_eq!(new["parents"][0], theirs);
        assert_eq!(new["parents"][1]["parentRef"]["name"], "b");
        assert_eq!(new["parents"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_pool_without_a_parent_waits_for_a_controller() {
        let entry = json!({"parentRef": {"namespace": "n", "name": "g"},
            "conditions": [condition("True")]});
        let old = json!({"parent": [nobody()]});
        let told = |ours: &[Value]| Told::Parent { ours: ours.to_vec(), of_others: Vec::new() };
        let new = merged(&old, &told(std::slice::from_ref(&entry)), LATE).unwrap();
        assert_eq!(new["parent"].as_array().unwrap().len(), 1);
        assert_eq!(new["parent"][0]["parentRef"]["name"], "g");
        let back = merged(&new, &told(&[]), LATE).unwrap();
        assert_eq!(back["parent"][0]["parentRef"]["kind"], "Status");
        assert_eq!(merged(&back, &told(&[]), LATE), None);
    }

    #[test]
    fn a_pool_that_others_serve_or_nobody_does_is_not_touched() {
        let told = Told::Parent { ours: Vec::new(), of_others: vec!["n/theirs".to_owned()] };
        assert_eq!(merged(&Value::Null, &told, LATE), None);
        for parent in [
            json!({"kind": "Gateway", "namespace": "n", "name": "theirs"}),
            json!({"name": "theirs"}),
            json!({"group": "example.com", "kind": "Router", "name": "g"}),
        ] {
            let old = json!({"parent": [{"parentRef": parent, "conditions": []}]});
            assert_eq!(merged(&old, &told, LATE), None, "{old}");
        }
        let gone = json!({"parent": [{"parentRef": {"namespace": "n", "name": "gone"}}]});
        assert!(merged(&gone, &told, LATE).is_some());
    }

    #[test]
    fn the_addresses_of_a_gateway_come_and_go() {
        let told = |addresses: &[&str]| Told::Gateway {
            conditions: vec![condition("True")],
            listeners: vec![json!({"name": "l", "conditions": [condition("True")]})],
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let waiting = merged(&Value::Null, &told(&[]), EARLY).unwrap();
        assert_eq!(waiting.get("addresses"), None);
        let ready = merged(&waiting, &told(&["192.0.2.1", "lb.example.com"]), LATE).unwrap();
        assert_eq!(ready["addresses"][0], json!({"type": "IPAddress", "value": "192.0.2.1"}));
        assert_eq!(ready["addresses"][1]["type"], "Hostname");
        let lost = merged(&ready, &told(&[]), LATE).unwrap();
        assert_eq!(lost.get("addresses"), Some(&Value::Null));
        assert_eq!(ready["listeners"][0]["conditions"][0]["lastTransitionTime"], EARLY);
    }
}
