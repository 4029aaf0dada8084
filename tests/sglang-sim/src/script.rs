//! Scripts: which failure to inject into which requests, and how often.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One injected failure: the requests that it applies to, and the action.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Script {
    #[serde(default, rename = "match")]
    pub matching: RequestMatch,
    pub action: Action,
    /// Number of requests it applies to. 0 is every one.
    #[serde(default = "once")]
    pub times: u32,
}

fn once() -> u32 {
    1
}

/// The requests that a script applies to. An empty match is every request that generates.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RequestMatch {
    /// The exact path. It may be one that does not generate (`/ready`, `/route`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Start with the nth matching request since the script was added, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u32>,
    /// Only bodies that contain this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
}

/// The injected failure. In JSON either its name, or an object with the name as its only key.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The engine dies as by SIGKILL before it answers.
    DieBeforeHead,
    /// The engine dies as by SIGKILL after this many events of the stream.
    DieMidStream { after: usize },
    /// The engine dies as by SIGKILL after this many events and half of the next one.
    DieMidEvent { after: usize },
    /// The connection is reset before the response head. The engine lives.
    DropBeforeHead,
    /// The connection is reset after this many events. The engine lives.
    DropMidStream { after: usize },
    /// Ports stay open and nothing answers. Thaws after `ms`, if given.
    Freeze { ms: Option<u64> },
    /// HTTP and the registry answer, requests hang. Thaws after `ms`, if given.
    FreezeScheduler { ms: Option<u64> },
    /// The leg never meets its peer and runs into its timeout.
    NeverRendezvous,
    /// Answers with this status and body at once.
    Status { status: u16, body: String },
    /// Answers 200 with a stream whose first event is an error, or 500 without a stream.
    FirstEventError { message: String },
    /// Prefill and token times are multiplied by this factor.
    Slow { factor: f64 },
    /// The engine dies, restarts after `down_ms`, and its registry is complete `registry_delay_ms` later.
    Restart { down_ms: u64, registry_delay_ms: u64 },
    /// A request that generates is retracted after this many tokens and ends with 503, as SGLang's decode
    /// does from 0.5.21 on when its KV pool is full and it cannot back the request up.
    Retract { after: usize },
    /// The request is read and never answered.
    HangHead,
    /// The request starts this long after it was read. Until then no abort finds it.
    Late { ms: u64 },
}

/// The parameters of an action in JSON.
#[derive(Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Parameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_delay_ms: Option<u64>,
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Action::from_json(&value).map_err(serde::de::Error::custom)
    }
}

impl Action {
    fn from_json(value: &serde_json::Value) -> Result<Action, String> {
        use serde_json::Value;
        let (name, argument) = match value {
            Value::String(name) => (name.as_str(), Value::Null),
            Value::Object(map) if map.contains_key("status") => {
                let status = map["status"].as_u64().and_then(|s| u16::try_from(s).ok());
                let body = match map.get("body") {
                    None => String::new(),
                    Some(Value::String(text)) => text.clone(),
                    Some(other) => other.to_string(),
                };
                let status = status.filter(|s| (200..=599).contains(s));
                return status
                    .map(|status| Action::Status { status, body })
                    .ok_or_else(|| "status must be a number from 200 to 599".into());
            }
            Value::Object(map) if map.len() == 1 => {
                let (name, argument) = map.iter().next().expect("the object has one key");
                (name.as_str(), argument.clone())
            }
            _ => return Err("action must be a name or an object with one name as its key".into()),
        };
        if name == "slow" {
            let factor = argument.as_f64().filter(|f| f.is_finite() && *f >= 0.0);
            let factor = factor.ok_or("slow must be a number that is not negative")?;
            return Ok(Action::Slow { factor });
        }
        let parameters: Option<Parameters> =
            serde_json::from_value(argument).map_err(|error| format!("{name}: {error}"))?;
        Action::named(name, parameters.unwrap_or_default())
    }

    fn named(name: &str, given: Parameters) -> Result<Action, String> {
        let after = given.after.unwrap_or(2);
        Ok(match name {
            "die_before_head" => Action::DieBeforeHead,
            "die_mid_stream" => Action::DieMidStream { after },
            "die_mid_event" => Action::DieMidEvent { after },
            "drop_before_head" => Action::DropBeforeHead,
            "drop_mid_stream" => Action::DropMidStream { after },
            "freeze" => Action::Freeze { ms: given.ms },
            "freeze_scheduler" => Action::FreezeScheduler { ms: given.ms },
            "never_rendezvous" => Action::NeverRendezvous,
            "first_event_error" => Action::FirstEventError {
                message: given.message.unwrap_or_else(|| "Scripted failure".into()),
            },
            "restart" => Action::Restart {
                down_ms: given.down_ms.unwrap_or(200),
                registry_delay_ms: given.registry_delay_ms.unwrap_or(0),
            },
            "retract" => Action::Retract { after },
            "hang_head" => Action::HangHead,
            "late" => Action::Late { ms: given.ms.unwrap_or(100) },
            other => return Err(format!("unknown action {other:?}")),
        })
    }

    /// The name in JSON and in the outcome of a request.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Action::DieBeforeHead => "die_before_head",
            Action::DieMidStream { .. } => "die_mid_stream",
            Action::DieMidEvent { .. } => "die_mid_event",
            Action::DropBeforeHead => "drop_before_head",
            Action::DropMidStream { .. } => "drop_mid_stream",
            Action::Freeze { .. } => "freeze",
            Action::FreezeScheduler { .. } => "freeze_scheduler",
            Action::NeverRendezvous => "never_rendezvous",
            Action::Status { .. } => "status",
            Action::FirstEventError { .. } => "first_event_error",
            Action::Slow { .. } => "slow",
            Action::Restart { .. } => "restart",
            Action::Retract { .. } => "retract",
            Action::HangHead => "hang_head",
            Action::Late { .. } => "late",
        }
    }
}

impl Serialize for Action {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde_json::json;
        let value = match self {
            Action::Status { status, body } => json!({"status": status, "body": body}),
            Action::Slow { factor } => json!({"slow": factor}),
            other => {
                let mut given = Parameters::default();
                match other {
                    Action::DieMidStream { after }
                    | Action::DieMidEvent { after }
                    | Action::DropMidStream { after }
                    | Action::Retract { after } => given.after = Some(*after),
                    Action::Freeze { ms } | Action::FreezeScheduler { ms } => given.ms = *ms,
                    Action::Late { ms } => given.ms = Some(*ms),
                    Action::FirstEventError { message } => given.message = Some(message.clone()),
                    Action::Restart { down_ms, registry_delay_ms } => {
                        (given.down_ms, given.registry_delay_ms) =
                            (Some(*down_ms), Some(*registry_delay_ms));
                    }
                    _ => return self.name().serialize(serializer),
                }
                json!({ self.name(): given })
            }
        };
        value.serialize(serializer)
    }
}

impl Script {
    /// Applies the action once, to the next request that generates.
    #[must_use]
    pub fn once(action: Action) -> Script {
        Script { matching: RequestMatch::default(), action, times: 1 }
    }

    /// Applies the action to every request that generates.
    #[must_use]
    pub fn always(action: Action) -> Script {
        Script { times: 0, ..Script::once(action) }
    }

    /// Restricts the script to requests to this path.
    #[must_use]
    pub fn on(mut self, path: &str) -> Script {
        self.matching.path = Some(path.into());
        self
    }

    /// Makes the script start with the nth matching request, from 1.
    #[must_use]
    pub fn nth(mut self, nth: u32) -> Script {
        self.matching.nth = Some(nth);
        self
    }
}

/// A duration from the milliseconds of a script.
pub(crate) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(json: &str) -> Result<Script, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn an_action_is_a_name_or_an_object_with_one_name() {
        let bare = script(r#"{"action": "die_mid_stream"}"#).unwrap();
        assert_eq!(bare.action, Action::DieMidStream { after: 2 });
        let given = script(r#"{"action": {"die_mid_stream": {"after": 7}}, "times": 3}"#).unwrap();
        assert_eq!(given.action, Action::DieMidStream { after: 7 });
        assert_eq!(given.times, 3);
        let status = script(r#"{"action": {"status": 503, "body": {"a": 1}}}"#).unwrap();
        assert_eq!(status.action, Action::Status { status: 503, body: r#"{"a":1}"#.into() });
        assert_eq!(
            script(r#"{"action": {"slow": 2.5}}"#).unwrap().action,
            Action::Slow { factor: 2.5 }
        );
        assert!(script(r#"{"action": "explode"}"#).is_err());
        assert!(script(r#"{"action": {"restart": {"down": 1}}}"#).is_err());
        assert!(script(r#"{"match": {"paht": "/x"}, "action": "freeze"}"#).is_err());
    }

    #[test]
    fn an_action_reads_back_as_it_was_written() {
        for action in [
            Action::DieBeforeHead,
            Action::DieMidEvent { after: 4 },
            Action::Freeze { ms: Some(5) },
            Action::Status { status: 503, body: "busy".into() },
            Action::Slow { factor: 3.0 },
            Action::Late { ms: 7 },
            Action::Retract { after: 0 },
            Action::Restart { down_ms: 1, registry_delay_ms: 2 },
        ] {
            let text = serde_json::to_string(&Script::once(action.clone())).unwrap();
            assert_eq!(script(&text).unwrap().action, action, "{text}");
        }
    }
}
