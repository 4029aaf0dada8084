//! What of a document is not honoured: fields unknown to its type, fields known and not served,
//! values that a cluster would refuse.

use serde_json::Value;

use super::objects::Kind;

/// A complaint about one field of a document that was read.
#[derive(Debug)]
pub(super) struct Complaint {
    /// The field's path; `None` where the document as a whole is meant.
    pub(super) field: Option<String>,
    pub(super) code: &'static str,
    pub(super) reason: String,
}

/// Complaints of one document; more are not worth a report.
const MAX_COMPLAINTS: usize = 32;

/// Characters of a reason.
const MAX_REASON: usize = 400;

/// Fields that the type knows and that have no effect. `*` stands for any index.
const UNSERVED: [(Kind, &str, &str); 6] = [
    (Kind::Gateway, "spec.addresses", "the address is that of the Service or of the command"),
    (Kind::Gateway, "spec.allowedListeners", "ListenerSets are not read"),
    (Kind::Gateway, "spec.tls", "clients' certificates are not asked for"),
    (Kind::Gateway, "spec.listeners.*.tls.options", "there are none"),
    (Kind::Service, "spec.sessionAffinity", "requests are spread over all endpoints"),
    (Kind::Service, "spec.trafficDistribution", "requests are spread over all endpoints"),
];

/// Compares a document with what its type kept of it.
pub(super) fn unread(kind: Kind, original: &Value, kept: &Value) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    unknown(original, kept, &mut Vec::new(), &mut complaints);
    unserved(kind, original, &mut Vec::new(), &mut complaints);
    if kind == Kind::Pod {
        spaced_quantities(original, &mut Vec::new(), &mut complaints);
    }
    complaints.truncate(MAX_COMPLAINTS);
    complaints
}

/// Adds what would help to an error of the deserializer.
pub(super) fn explain(error: &str) -> String {
    let error = shortened(error);
    // Numbers and booleans in place of text are the usual trap of unquoted YAML.
    let unquoted =
        ["invalid type: boolean", "invalid type: integer", "invalid type: floating point"];
    if unquoted.iter().any(|start| error.starts_with(start)) && error.contains("string") {
        return format!("{error}; put the value in quotes");
    }
    error
}

/// An error may quote the value that it is about, which may be of any size.
pub(super) fn shortened(error: &str) -> String {
    match error.char_indices().nth(MAX_REASON) {
        Some((cut, _)) => format!("{} ...", &error[..cut]),
        None => error.to_owned(),
    }
}

fn dotted(path: &[String]) -> String {
    let mut text = String::new();
    for part in path {
        let index = part.parse::<usize>().is_ok();
        match (index, part.contains(['.', '/'])) {
            (true, _) => text.push_str(&format!("[{part}]")),
            (false, true) => text.push_str(&format!("[{part:?}]")),
            (false, false) if text.is_empty() => text.push_str(part),
            (false, false) => text.push_str(&format!(".{part}")),
        }
    }
    text
}

/// Calls `visit` for each child of a map or list, with the path to it.
fn each(
    value: &Value,
    path: &mut Vec<String>,
    mut visit: impl FnMut(&str, &Value, &mut Vec<String>),
) {
    match value {
        Value::Object(fields) => {
            for (name, child) in fields {
                path.push(name.clone());
                visit(name, child, path);
                path.pop();
            }
        }
        Value::Array(items) => {
            for (index, child) in items.iter().enumerate() {
                path.push(index.to_string());
                visit(&path[path.len() - 1].clone(), child, path);
                path.pop();
            }
        }
        _ => {}
    }
}

fn unknown(original: &Value, kept: &Value, path: &mut Vec<String>, out: &mut Vec<Complaint>) {
    let top = path.is_empty();
    each(original, path, |name, child, path| {
        let twin = match kept {
            Value::Array(items) => name.parse::<usize>().ok().and_then(|index| items.get(index)),
            other => other.get(name),
        };
        match twin {
            Some(twin) => unknown(child, twin, path, out),
            None if child.is_null() || (top && (name == "apiVersion" || name == "kind")) => {}
            None => out.push(Complaint {
                field: Some(dotted(path)),
                code: "UnknownField",
                reason: "is not known to pd-router and has no effect".to_owned(),
            }),
        }
    });
}

fn unserved(kind: Kind, value: &Value, path: &mut Vec<String>, out: &mut Vec<Complaint>) {
    for (of, pattern, why) in UNSERVED {
        if of != kind {
            continue;
        }
        let parts: Vec<&str> = pattern.split('.').collect();
        find(value, &parts, path, &mut |path, found| {
            if pattern == "spec.sessionAffinity" && found == "None" {
                return;
            }
            out.push(Complaint {
                field: Some(dotted(path)),
                code: "Unsupported",
                reason: format!("has no effect: {why}"),
            });
        });
    }
}

fn find(
    value: &Value,
    parts: &[&str],
    path: &mut Vec<String>,
    found: &mut impl FnMut(&[String], &Value),
) {
    let Some((part, rest)) = parts.split_first() else {
        if !value.is_null() {
            found(path, value);
        }
        return;
    };
    each(value, path, |name, child, path| {
        if *part == "*" || *part == name {
            find(child, rest, path, found);
        }
    });
}

/// `16 Gi`: a number and a unit with a space between, which a cluster refuses.
fn spaced_quantities(value: &Value, path: &mut Vec<String>, out: &mut Vec<Complaint>) {
    each(value, path, |name, child, path| {
        let quantity = name == "sizeLimit"
            || path.iter().any(|part| part == "resources")
                && path.iter().any(|part| part == "limits" || part == "requests");
        if quantity && let Some(text) = child.as_str() {
            if text.contains(char::is_whitespace) {
                let joined: String = text.split_whitespace().collect();
                out.push(Complaint {
                    field: Some(dotted(path)),
                    code: "InvalidQuantity",
                    reason: format!(
                        "{text:?} is no quantity: a cluster refuses the space; write {joined}"
                    ),
                });
            }
        } else {
            spaced_quantities(child, path, out);
        }
    });
}
