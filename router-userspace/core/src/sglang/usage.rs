//! [`AnswerReport`]: what an engine reports of a request in its answer: tokens, and times of its own.

use super::json::{JsonType, Raw};
use crate::provenance::Measured;

/// Maximum size of an answer that is read, in bytes. A prefill's answer is one token; only logprobs of the
/// prompt make it longer.
const MAX_ANSWER: usize = 16 << 10;

/// What an engine reports of a request. Times are by the engine's own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct AnswerReport {
    pub prompt_tokens: Measured<u64>,
    /// Tokens of the prompt that were in the engine's cache.
    pub cached_tokens: Measured<u64>,
    /// Wait in the scheduler's queue.
    pub queue_ms: Measured<f64>,
    /// From the first forward pass of the prompt to its last one.
    pub compute_ms: Measured<f64>,
    /// From the arrival of the request at the engine to its answer.
    pub total_ms: Measured<f64>,
}

impl AnswerReport {
    /// Reads a whole answer of any endpoint: `meta_info` of `/generate`, `usage` of the others. An array of
    /// answers has the tokens of all, and no times. What is missing or malformed is unknown.
    ///
    /// ```
    /// use router_core::sglang::usage::AnswerReport;
    ///
    /// let answer = br#"{"usage":{"prompt_tokens":900,"prompt_tokens_details":{"cached_tokens":640}}}"#;
    /// let report = AnswerReport::of(answer);
    /// assert_eq!(report.cached_tokens.value(), Some(640));
    /// assert_eq!(report.queue_ms.value(), None);
    /// ```
    pub fn of(answer: &[u8]) -> AnswerReport {
        if answer.len() > MAX_ANSWER {
            return AnswerReport::default();
        }
        let Ok(raw) = Raw::parse(answer) else { return AnswerReport::default() };
        match raw.kind() {
            JsonType::Array => of_all(raw),
            _ => of_one(raw),
        }
    }
}

/// Sums of an array of answers; unknown if one of them is.
fn of_all(raw: Raw<'_>) -> AnswerReport {
    let mut each = raw.elements().map(of_one);
    let Some(first) = each.next() else { return AnswerReport::default() };
    let plus = |one: Measured<u64>, other: Measured<u64>| {
        Measured::from(one.value().zip(other.value()).map(|(one, other)| one.saturating_add(other)))
    };
    let add = |sum: AnswerReport, one: AnswerReport| AnswerReport {
        prompt_tokens: plus(sum.prompt_tokens, one.prompt_tokens),
        cached_tokens: plus(sum.cached_tokens, one.cached_tokens),
        ..AnswerReport::default()
    };
    let first = AnswerReport {
        prompt_tokens: first.prompt_tokens,
        cached_tokens: first.cached_tokens,
        ..AnswerReport::default()
    };
    each.fold(first, add)
}

fn of_one(raw: Raw<'_>) -> AnswerReport {
    // One walk: every request of a pair is read.
    let (mut meta, mut usage) = (None, None);
    for member in raw.members() {
        if member.is("meta_info") {
            meta = Some(member.value);
        } else if member.is("usage") {
            usage = Some(member.value);
        }
    }
    if let Some(meta) = meta {
        // The engine adds its times, in seconds, with `--enable-metrics`; `e2e_latency` always.
        let ms = |key| meta.get(key).and_then(seconds).map(|seconds| seconds * 1e3);
        let forward = (ms("forward_entry_time"), ms("prefill_finished_time"));
        let compute = forward.0.zip(forward.1).map(|(began, finished)| finished - began);
        return AnswerReport {
            prompt_tokens: count(meta, "prompt_tokens"),
            cached_tokens: count(meta, "cached_tokens"),
            queue_ms: ms("queue_time").into(),
            compute_ms: compute.filter(|ms| *ms >= 0.0).into(),
            total_ms: ms("e2e_latency").into(),
        };
    }
    let Some(usage) = usage else { return AnswerReport::default() };
    // Chat and completions; `/v1/responses`; `/v1/messages`.
    let details = |key| usage.get(key).map(|details| count(details, "cached_tokens"));
    AnswerReport {
        prompt_tokens: either(count(usage, "prompt_tokens"), || count(usage, "input_tokens")),
        cached_tokens: details("prompt_tokens_details")
            .or_else(|| details("input_tokens_details"))
            .unwrap_or_else(|| count(usage, "cache_read_input_tokens")),
        ..AnswerReport::default()
    }
}

fn either(one: Measured<u64>, other: impl FnOnce() -> Measured<u64>) -> Measured<u64> {
    if one.value().is_some() { one } else { other() }
}

fn count(object: Raw<'_>, key: &str) -> Measured<u64> {
    object.get(key).and_then(Raw::as_u64).into()
}

/// A number of seconds that is not negative.
fn seconds(raw: Raw<'_>) -> Option<f64> {
    let number = || std::str::from_utf8(raw.bytes()).ok()?.parse::<f64>().ok();
    let number = (raw.kind() == JsonType::Number).then(number).flatten()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(answer: &str) -> (Option<u64>, Option<u64>) {
        let report = AnswerReport::of(answer.as_bytes());
        (report.prompt_tokens.value(), report.cached_tokens.value())
    }

    #[test]
    fn tokens_are_read_of_every_endpoint() {
        for (answer, want) in [
            (r#"{"meta_info":{"prompt_tokens":7,"cached_tokens":4}}"#, (Some(7), Some(4))),
            (r#"{"usage":{"prompt_tokens":7,"prompt_tokens_details":null}}"#, (Some(7), None)),
            (
                r#"{"usage":{"input_tokens":7,"input_tokens_details":{"cached_tokens":2}}}"#,
                (Some(7), Some(2)),
            ),
            (r#"{"usage":{"input_tokens":7,"cache_read_input_tokens":3}}"#, (Some(7), Some(3))),
            (
                r#"[{"meta_info":{"prompt_tokens":7,"cached_tokens":4}},
                    {"meta_info":{"prompt_tokens":5,"cached_tokens":1}}]"#,
                (Some(12), Some(5)),
            ),
            (r#"[{"meta_info":{"prompt_tokens":7}},{}]"#, (None, None)),
            (r#"{"usage":{"prompt_tokens":-7}}"#, (None, None)),
            (
                r#"[{"meta_info":{"prompt_tokens":18446744073709551615}},
                    {"meta_info":{"prompt_tokens":5}}]"#,
                (Some(u64::MAX), None),
            ),
            ("[]", (None, None)),
            ("{}", (None, None)),
            ("no json", (None, None)),
        ] {
            assert_eq!(tokens(answer), want, "{answer}");
        }
    }

    #[test]
    fn times_are_milliseconds_of_the_engines_own_clock() {
        let answer = br#"{"meta_info":{"queue_time":0.25,"e2e_latency":1.5,
            "forward_entry_time":1700000000.25,"prefill_finished_time":1700000000.75}}"#;
        let report = AnswerReport::of(answer);
        assert_eq!(report.queue_ms, Measured::exact(250.0));
        assert_eq!(report.compute_ms, Measured::exact(500.0));
        assert_eq!(report.total_ms, Measured::exact(1500.0));
        let none =
            br#"{"meta_info":{"queue_time":null,"e2e_latency":"1.5","forward_entry_time":2.0,
            "prefill_finished_time":1.0}}"#;
        assert_eq!(AnswerReport::of(none), AnswerReport::default());
    }

    #[test]
    fn a_long_answer_is_not_read() {
        let long =
            format!(r#"{{"usage":{{"prompt_tokens":7}},"text":"{}"}}"#, "x".repeat(MAX_ANSWER));
        assert_eq!(tokens(&long), (None, None));
    }
}
