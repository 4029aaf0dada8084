//! [`RequestSummary`]: what is kept of a request that has ended, and its JSON.

use std::sync::Arc;

use router_core::fleet::ObjectName;
use router_core::inner_parts::{InnerMoments, InnerParts};
use router_core::pair::Pair;
use router_core::provenance::Measured;
use router_core::schedule::Estimate;
use router_core::sglang::usage::AnswerReport;
use router_core::timeline::Timeline;
use serde::{Serialize, Serializer};

use super::attempt_marks::AttemptMarks;
use crate::gateway::placement::explain::ChoiceExplanation;

/// Maximum number of retries that are kept of one request.
pub(crate) const MAX_RETRIES: usize = 8;
/// Maximum length of the text of an error that is kept, in bytes.
const MAX_DETAIL: usize = 256;

/// A request that has ended.
#[derive(Debug, Serialize)]
pub(crate) struct RequestSummary {
    /// Its place in the order in which requests ended.
    #[serde(skip)]
    pub number: u64,
    /// `x-request-id`. A copy: the client's own may share the memory of a whole connection's buffer.
    pub id: Box<str>,
    /// When its head arrived, in milliseconds since 1970.
    pub started_ms: u64,
    pub pool: ObjectName,
    pub endpoint: &'static str,
    pub route: Option<Arc<str>>,
    pub status: u16,
    /// `ok`, or why it failed.
    pub reason: &'static str,
    pub detail: Option<Box<str>>,
    pub attempts: u32,
    /// The attempts before the last one.
    pub retries: Vec<FailedAttempt>,
    /// The workers of the last attempt.
    #[serde(flatten)]
    pub workers: AttemptedWorkers,
    /// The data-parallel ranks that the last attempt was assigned to.
    pub ranks: Pair<Option<u32>>,
    pub duration_ms: f64,
    /// Time to first token; unknown without a stream.
    pub ttft_ms: Measured<f64>,
    /// The part in which it ended.
    pub ended_in: &'static str,
    #[serde(rename = "parts_ms")]
    pub timeline: Timeline,
    /// What happens inside the engines.
    #[serde(flatten)]
    pub inner: InnerSource,
    #[serde(rename = "predicted_ms", serialize_with = "predicted")]
    pub explanation: Option<Arc<ChoiceExplanation>>,
    pub prompt_bytes: u64,
    /// What prefill reported in its answer.
    pub prefill_report: AnswerReport,
    /// Events of the streamed answer.
    pub events: u64,
    /// Bytes of those events.
    pub event_bytes: u64,
}

/// What the parts inside the engines are computed from. Agents may report after the request has ended.
#[derive(Debug, Default)]
pub(crate) struct InnerSource {
    /// The moments but those of the transfer.
    pub moments: InnerMoments,
    /// The marks of the last attempt, which have the transfer.
    pub marks: Option<Arc<AttemptMarks>>,
}

impl InnerSource {
    /// The moments as they are known now.
    pub(crate) fn moments(&self) -> InnerMoments {
        let transfer = self.marks.as_ref().and_then(|marks| marks.transfer());
        InnerMoments { transfer, ..self.moments }
    }
}

/// The parts inside the engines as they are known now.
#[derive(Serialize)]
struct InnerJson {
    inner_parts_ms: InnerParts,
    /// How far off a part can be that is measured between the gateway and an agent.
    agent_clock_error_ms: Option<f64>,
}

impl Serialize for InnerSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let moments = self.moments();
        let by_clock = moments.transfer.filter(|seen| seen.admitted_us.or(seen.ended_us).is_some());
        let agent_clock_error_ms = by_clock.map(|seen| f64::from(seen.clock_error_us) / 1e3);
        let inner_parts_ms = InnerParts::of(&moments);
        InnerJson { inner_parts_ms, agent_clock_error_ms }.serialize(serializer)
    }
}

/// The workers of an attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct AttemptedWorkers {
    pub prefill: Option<Arc<str>>,
    /// The decode worker, or the one that serves alone.
    pub worker: Option<Arc<str>>,
}

/// An attempt that failed and was retried.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FailedAttempt {
    pub reason: &'static str,
    pub detail: Box<str>,
    #[serde(flatten)]
    pub workers: AttemptedWorkers,
    /// From its begin, in the queue, to its failure.
    pub duration_ms: f64,
}

impl RequestSummary {
    pub(crate) fn is_failed(&self) -> bool {
        self.reason != "ok"
    }

    /// For how long its client waited: the time to first token, or the duration without one.
    pub(crate) fn waited_ms(&self) -> f64 {
        self.ttft_ms.value().unwrap_or(self.duration_ms)
    }

    /// When it ended, in milliseconds since 1970.
    pub(crate) fn ended_ms(&self) -> f64 {
        self.started_ms as f64 + self.duration_ms
    }

    /// The memory that it takes. Names of workers and pools are shared with the fleet.
    pub(crate) fn bytes(&self) -> usize {
        let of_retry = |retry: &FailedAttempt| size_of::<FailedAttempt>() + retry.detail.len();
        size_of::<RequestSummary>()
            + self.id.len()
            + self.detail.as_ref().map_or(0, |detail| detail.len())
            + self.retries.iter().map(of_retry).sum::<usize>()
            + self.explanation.as_ref().map_or(0, |_| size_of::<ChoiceExplanation>())
            + self.inner.marks.as_ref().map_or(0, |_| size_of::<AttemptMarks>())
    }
}

/// The beginning of an error's text, as far as it is kept.
pub(crate) fn shortened(detail: &str) -> Box<str> {
    let mut end = detail.len().min(MAX_DETAIL);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    detail[..end].into()
}

/// The predicted milliseconds of the chosen pair, by the names of the parts.
#[derive(Serialize)]
struct PredictedParts {
    prefill: f32,
    prefill_queued: f32,
    decode_admitted: f32,
    prefill_compute: f32,
    transfer: f32,
    done: f32,
}

fn predicted<S: Serializer>(
    explanation: &Option<Arc<ChoiceExplanation>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let parts = explanation.as_ref().map(|explanation| {
        let estimate: Estimate = explanation.chosen.estimate;
        PredictedParts {
            prefill: estimate.ttft_ms(),
            prefill_queued: estimate.wait_ms,
            decode_admitted: estimate.admission_ms,
            prefill_compute: estimate.prefill_ms,
            transfer: estimate.transfer_ms,
            done: estimate.itl_ms * estimate.output_tokens,
        }
    });
    parts.serialize(serializer)
}

#[cfg(test)]
pub(in crate::gateway) mod tests {
    use router_core::timeline::Moments;

    use super::*;

    /// A stream with this time to first token.
    pub(in crate::gateway) fn summary(
        id: &str,
        reason: &'static str,
        ttft_ms: f64,
    ) -> RequestSummary {
        RequestSummary {
            number: 0,
            id: id.into(),
            started_ms: 0,
            pool: ObjectName { namespace: "default".into(), name: "pool".into() },
            endpoint: "/generate",
            route: None,
            status: 200,
            reason,
            detail: None,
            attempts: 1,
            retries: Vec::new(),
            workers: AttemptedWorkers::default(),
            ranks: Pair::default(),
            duration_ms: 1000.0,
            ttft_ms: Measured::exact(ttft_ms),
            ended_in: "done",
            timeline: Timeline::of(&Moments::default()),
            inner: InnerSource::default(),
            explanation: None,
            prompt_bytes: 0,
            prefill_report: AnswerReport::default(),
            events: 0,
            event_bytes: 0,
        }
    }

    #[test]
    fn what_is_not_known_is_null_in_json() {
        let json = serde_json::to_value(summary("a", "ok", 1.5)).unwrap();
        let unknown = serde_json::json!({"value": null, "provenance": "unknown"});
        assert_eq!(json["inner_parts_ms"]["transfer"], unknown);
        assert_eq!(json["agent_clock_error_ms"], serde_json::Value::Null);
        assert_eq!(json["parts_ms"]["prefill"], unknown);
        assert_eq!(json["predicted_ms"], serde_json::Value::Null);
        assert_eq!(json["ttft_ms"]["value"], 1.5);
        assert!(json.get("number").is_none());
    }

    #[test]
    fn a_long_error_is_cut_between_two_characters() {
        assert_eq!(&*shortened("short"), "short");
        let long = "é".repeat(MAX_DETAIL);
        assert_eq!(shortened(&format!("x{long}")).len(), MAX_DETAIL - 1);
    }

    #[test]
    fn the_sizes_of_all_that_grows_count() {
        let small = summary("a", "ok", 1.0);
        let mut grown = summary("aaa", "ok", 1.0);
        grown.detail = Some("12345".into());
        let detail = "1234567".into();
        let workers = AttemptedWorkers::default();
        grown.retries.push(FailedAttempt { reason: "x", detail, workers, duration_ms: 1.0 });
        let more = 2 + 5 + 7 + size_of::<FailedAttempt>();
        assert_eq!(grown.bytes(), small.bytes() + more);
    }
}
