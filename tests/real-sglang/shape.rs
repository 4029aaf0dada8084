//! The shape of an answer: what two models with different outputs have in common.

use serde_json::{Map, Value};

/// Fields whose text is part of the protocol.
const LITERAL: [&str; 6] = ["object", "role", "type", "code", "param", "finish_reason"];

/// Replaces every text and number by its type, and every list by one element of each shape.
pub(crate) fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let shaped = fields.iter().map(|(name, value)| {
                let literal = LITERAL.contains(&name.as_str()) && !value.is_object();
                (name.clone(), if literal { value.clone() } else { shape(value) })
            });
            Value::Object(shaped.collect::<Map<_, _>>())
        }
        Value::Array(items) => {
            let mut shapes: Vec<Value> = Vec::new();
            for item in items.iter().map(shape) {
                if !shapes.contains(&item) {
                    shapes.push(item);
                }
            }
            Value::Array(shapes)
        }
        Value::String(_) => "text".into(),
        Value::Number(number) if number.is_f64() => "fraction".into(),
        Value::Number(_) => "integer".into(),
        other => other.clone(),
    }
}

/// The differences between two shapes, one line each.
pub(crate) fn differences(real: &Value, simulated: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(String::new(), real, simulated, &mut found);
    found
}

fn compare(place: String, real: &Value, simulated: &Value, found: &mut Vec<String>) {
    match (real, simulated) {
        (Value::Object(left), Value::Object(right)) => {
            let names: std::collections::BTreeSet<&String> =
                left.keys().chain(right.keys()).collect();
            for name in names {
                let place = format!("{place}.{name}");
                match (left.get(name), right.get(name)) {
                    (Some(left), Some(right)) => compare(place, left, right, found),
                    (Some(_), None) => found.push(format!("{place} is the engine's alone")),
                    _ => found.push(format!("{place} is the simulator's alone")),
                }
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                compare(format!("{place}[{index}]"), left, right, found);
            }
        }
        (real, simulated) if real == simulated => {}
        (real, simulated) => found.push(format!("{place} is {real}, simulated {simulated}")),
    }
}

/// The words of an error message without numbers and addresses, which differ between runs.
pub(crate) fn words(text: &str) -> String {
    let plain = |word: &str| !word.contains(|c: char| c.is_ascii_digit());
    text.split_whitespace().filter(|word| plain(word)).collect::<Vec<_>>().join(" ")
}
