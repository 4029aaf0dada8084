//! Finds the fields of a document that have no effect: unknown fields, unsupported fields, and values
//! that a cluster would refuse.

use serde_json::Value;

use super::objects::Kind;

/// A problem of one field of a valid document.
#[derive(Debug)]
pub(super) struct FieldProblem {
    /// The field's path, or `None` for the whole document.
    pub(super) field: Option<String>,
    pub(super) code: &'static str,
    pub(super) reason: String,
}

/// Maximum number of field problems per document.
const MAX_FIELD_PROBLEMS: usize = 32;

/// Maximum number of characters in a reason.
const MAX_REASON: usize = 400;

/// Fields that are valid and have no effect. `*` stands for any index.
const UNSUPPORTED: [(Kind, &str, &str); 6] = [
    (Kind::Gateway, "spec.addresses", "addresses are those of the Service or of the host"),
    (Kind::Gateway, "spec.allowedListeners", "ListenerSet is not supported"),
    (Kind::Gateway, "spec.tls", "client certificates are not supported"),
    (Kind::Gateway, "spec.listeners.*.tls.options", "no options are supported"),
    (Kind::Service, "spec.sessionAffinity", "requests are spread over all endpoints"),
    (Kind::Service, "spec.trafficDistribution", "requests are spread over all endpoints"),
];

/// Compares a document with the fields that its type keeps.
pub(super) fn without_effect(kind: Kind, original: &Value, kept: &Value) -> Vec<FieldProblem> {
    let mut field_problems = Vec::new();
    unknown(original, kept, &mut Vec::new(), &mut field_problems);
    unsupported(kind, original, &mut Vec::new(), &mut field_problems);
    if kind == Kind::Pod {
        spaced_quantities(original, &mut Vec::new(), &mut field_problems);
    }
    field_problems.truncate(MAX_FIELD_PROBLEMS);
    field_problems
}

/// Adds a hint to an error of the deserializer.
pub(super) fn explain(error: &str) -> String {
    let error = shortened(error);
    // Unquoted numbers and booleans in place of strings are a common mistake in YAML.
    let unquoted =
        ["invalid type: boolean", "invalid type: integer", "invalid type: floating point"];
    if unquoted.iter().any(|start| error.starts_with(start)) && error.contains("string") {
        return format!("{error}; put the value in quotes");
    }
    error
}

/// Limits the length of an error, which may quote a value of any size.
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

fn unknown(original: &Value, kept: &Value, path: &mut Vec<String>, out: &mut Vec<FieldProblem>) {
    let top = path.is_empty();
    each(original, path, |name, child, path| {
        let twin = match kept {
            Value::Array(items) => name.parse::<usize>().ok().and_then(|index| items.get(index)),
            other => other.get(name),
        };
        match twin {
            Some(twin) => unknown(child, twin, path, out),
            None if child.is_null() || (top && (name == "apiVersion" || name == "kind")) => {}
            None => out.push(FieldProblem {
                field: Some(dotted(path)),
                code: "UnknownField",
                reason: "is unknown to pd-router and has no effect".to_owned(),
            }),
        }
    });
}

fn unsupported(kind: Kind, value: &Value, path: &mut Vec<String>, out: &mut Vec<FieldProblem>) {
    for (of, pattern, why) in UNSUPPORTED {
        if of != kind {
            continue;
        }
        let parts: Vec<&str> = pattern.split('.').collect();
        find(value, &parts, path, &mut |path, found| {
            if pattern == "spec.sessionAffinity" && found == "None" {
                return;
            }
            out.push(FieldProblem {
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

/// Finds quantities with a space before the unit, such as `16 Gi`, which a cluster refuses.
fn spaced_quantities(value: &Value, path: &mut Vec<String>, out: &mut Vec<FieldProblem>) {
    each(value, path, |name, child, path| {
        let quantity = name == "sizeLimit"
            || path.iter().any(|part| part == "resources")
                && path.iter().any(|part| part == "limits" || part == "requests");
        if quantity && let Some(text) = child.as_str() {
            if text.contains(char::is_whitespace) {
                let joined: String = text.split_whitespace().collect();
                out.push(FieldProblem {
                    field: Some(dotted(path)),
                    code: "InvalidQuantity",
                    reason: format!("{text:?} is not a valid quantity; write {joined}"),
                });
            }
        } else {
            spaced_quantities(child, path, out);
        }
    });
}
