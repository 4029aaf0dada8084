//! [`AnswerReport`]: what an engine reports of a request in its answer: tokens, and times of its own.

use super::json::{JsonType, Raw, RawMember};
use crate::provenance::Measured;

/// Maximum size of an answer that is read, in bytes. A prefill's answer is one token; only logprobs of the
/// prompt make it longer.
pub(crate) const MAX_ANSWER: usize = 16 << 10;

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
        // Not checked as a whole: what is read of it is.
        let raw = Raw::trusted(answer.trim_ascii());
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
    let (mut meta, mut usage) = (None, None);
    for member in raw.members() {
        match member.key.bytes() {
            br#""meta_info""# => meta = Some(member.value),
            br#""usage""# => usage = Some(member.value),
            _ => {}
        }
    }
    let part = meta.or(usage).and_then(|part| Raw::parse(part.bytes()).ok());
    match part {
        Some(part) if meta.is_some() => of_meta_info(part),
        Some(part) => of_usage(part),
        None => AnswerReport::default(),
    }
}

/// `meta_info` of `/generate`. The engine adds its times, in seconds, with `--enable-metrics`; `e2e_latency`
/// always.
fn of_meta_info(meta: Raw<'_>) -> AnswerReport {
    let mut report = AnswerReport::default();
    let (mut began, mut finished) = (None, None);
    for RawMember { key, value } in meta.members() {
        match key.bytes() {
            br#""prompt_tokens""# => report.prompt_tokens = value.as_u64().into(),
            br#""cached_tokens""# => report.cached_tokens = value.as_u64().into(),
            br#""queue_time""# => report.queue_ms = ms(value).into(),
            br#""e2e_latency""# => report.total_ms = ms(value).into(),
            br#""forward_entry_time""# => began = ms(value),
            br#""prefill_finished_time""# => finished = ms(value),
            _ => {}
        }
    }
    let compute = began.zip(finished).map(|(began, finished)| finished - began);
    report.compute_ms = compute.filter(|ms| *ms >= 0.0).into();
    report
}

/// `usage` of chat and completions, of `/v1/responses`, and of `/v1/messages`. Where it has the names of
/// several endpoints, their order does not matter: `prompt_tokens` counts before `input_tokens`, and details
/// count before `cache_read_input_tokens`.
fn of_usage(usage: Raw<'_>) -> AnswerReport {
    let (mut prompt, mut input) = (None, None);
    let (mut prompt_cached, mut input_cached, mut cache_read) = (None, None, None);
    let cached = |details: Raw<'_>| details.get("cached_tokens").and_then(Raw::as_u64);
    for RawMember { key, value } in usage.members() {
        match key.bytes() {
            br#""prompt_tokens""# => prompt = value.as_u64(),
            br#""input_tokens""# => input = value.as_u64(),
            br#""prompt_tokens_details""# => prompt_cached = cached(value),
            br#""input_tokens_details""# => input_cached = cached(value),
            br#""cache_read_input_tokens""# => cache_read = value.as_u64(),
            _ => {}
        }
    }
    AnswerReport {
        prompt_tokens: prompt.or(input).into(),
        cached_tokens: prompt_cached.or(input_cached).or(cache_read).into(),
        ..AnswerReport::default()
    }
}

/// Milliseconds of a number of seconds that is not negative.
fn ms(raw: Raw<'_>) -> Option<f64> {
    let number = || std::str::from_utf8(raw.bytes()).ok()?.parse::<f64>().ok();
    let number = (raw.kind() == JsonType::Number).then(number).flatten()?;
    (number.is_finite() && number >= 0.0).then_some(number * 1e3)
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
            // Cut off, or broken where it is read.
            (r#"{"usage":{"prompt_tokens":7"#, (None, None)),
            (r#"{"usage":{"prompt_tokens":7,}}"#, (None, None)),
            (r#"{"text":"\"usage\":{\"prompt_tokens\":7}"}"#, (None, None)),
            (r#"{"tools":[{"usage":{"prompt_tokens":7}}]}"#, (None, None)),
        ] {
            assert_eq!(tokens(answer), want, "{answer}");
        }
    }

    #[test]
    fn the_order_of_names_of_several_endpoints_does_not_matter() {
        let members = [
            r#""prompt_tokens":7"#,
            r#""input_tokens":8"#,
            r#""prompt_tokens_details":{"cached_tokens":2}"#,
            r#""input_tokens_details":{"cached_tokens":3}"#,
            r#""cache_read_input_tokens":4"#,
        ];
        let of = |members: &[&str]| tokens(&format!(r#"{{"usage":{{{}}}}}"#, members.join(",")));
        let mut reversed = members;
        reversed.reverse();
        assert_eq!(of(&members), (Some(7), Some(2)));
        assert_eq!(of(&reversed), (Some(7), Some(2)));
        assert_eq!(of(&members[3..]), (None, Some(3)));
        assert_eq!(of(&reversed[..2]), (None, Some(3)));
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
