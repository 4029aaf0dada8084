//! The input of a leg, and its outputs.

use std::sync::Arc;

use serde_json::{Value, json};

/// The bootstrap host that disables the transfer. SGLang's own probes use it.
const FAKE_HOST: &str = "2.2.2.2";

/// The input of one leg.
#[derive(Clone, Debug)]
pub(crate) struct LegSpec {
    pub(crate) rid: String,
    /// Index in the batch.
    pub(crate) index: usize,
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) room: Option<Room>,
    pub(crate) bootstrap_host: Option<String>,
    pub(crate) bootstrap_port: Option<u16>,
    pub(crate) routed_rank: Option<u64>,
    pub(crate) prefill_rank: Option<u64>,
    pub(crate) max_new_tokens: usize,
    pub(crate) ignore_eos: bool,
    pub(crate) stop: Vec<String>,
    /// The index of the sample, from 0 to n - 1.
    pub(crate) sample: u64,
    /// Factor on all times.
    pub(crate) slow_factor: f64,
    /// The leg runs into its timeout, because of a script or because n > 1 in a pair.
    pub(crate) never_rendezvous: bool,
    /// The number of tokens after which the request is retracted, because of a script.
    pub(crate) retract_after: Option<usize>,
}

/// A bootstrap room as the engine's buffers hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Number(u64),
    /// 2^63 and more overflow prefill's metadata buffer.
    Overflow(u128),
}

impl LegSpec {
    pub(super) fn number(&self) -> Option<u64> {
        match self.room {
            Some(Room::Number(room)) => Some(room),
            _ => None,
        }
    }

    pub(super) fn room_text(&self) -> String {
        match self.room {
            Some(Room::Number(room)) => room.to_string(),
            Some(Room::Overflow(room)) => room.to_string(),
            None => "None".into(),
        }
    }

    pub(super) fn is_fake(&self) -> bool {
        self.bootstrap_host.as_deref() == Some(FAKE_HOST)
    }
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finish {
    /// At the end of the text or at a stop string.
    Stop(Value),
    Length(usize),
    Abort {
        message: String,
        status: Option<u16>,
    },
}

impl Finish {
    pub(crate) fn abort(status: u16, message: impl Into<String>) -> Finish {
        Finish::Abort { message: message.into(), status: Some(status) }
    }

    /// `finish_reason` in `meta_info`.
    pub(crate) fn json(&self) -> Value {
        match self {
            Finish::Stop(matched) => json!({"type": "stop", "matched": matched}),
            Finish::Length(length) => json!({"type": "length", "length": length}),
            Finish::Abort { message, status } => json!({
                "type": "abort", "message": message, "status_code": status, "err_type": null,
            }),
        }
    }

    /// `finish_reason` in the OpenAI shapes.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Finish::Stop(_) => "stop",
            Finish::Length(_) => "length",
            Finish::Abort { .. } => "abort",
        }
    }

    /// `matched_stop` in the OpenAI shapes.
    pub(crate) fn matched(&self) -> Value {
        match self {
            Finish::Stop(matched) => matched.clone(),
            _ => Value::Null,
        }
    }
}

/// One output of a leg: a token, its end, or both.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) index: usize,
    pub(crate) token: Option<Token>,
    pub(crate) finish: Option<Finish>,
}

/// One generated token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) id: u32,
    /// The text that this token completes.
    pub(crate) text: String,
    pub(crate) logprob: f64,
}
