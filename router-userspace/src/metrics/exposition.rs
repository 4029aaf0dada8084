//! The page that `/metrics` answers, of the gateway and of the agent.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    CounterValueEncoder, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet,
    GaugeValueEncoder, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::telemetry;

/// The content type of a page that [`encode`] made.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The registry in the OpenMetrics text format.
pub(crate) fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, registry);
    out
}

/// The value of a sample. Counts are written without a fraction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Count(u64),
    Real(f64),
}

impl From<u64> for Number {
    fn from(count: u64) -> Number {
        Number::Count(count)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Number {
        Number::Real(value)
    }
}

impl EncodeCounterValue for Number {
    fn encode(&self, encoder: &mut CounterValueEncoder<'_>) -> fmt::Result {
        match self {
            Number::Count(count) => EncodeCounterValue::encode(count, encoder),
            Number::Real(value) => EncodeCounterValue::encode(value, encoder),
        }
    }
}

impl EncodeGaugeValue for Number {
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> fmt::Result {
        match self {
            Number::Count(count) => EncodeGaugeValue::encode(count, encoder),
            Number::Real(value) => EncodeGaugeValue::encode(value, encoder),
        }
    }
}

/// Encodes a family of counters, or else of gauges, from its samples. The descriptor is encoded even
/// if there are no samples, so that a page lists every family.
pub(crate) fn encode_family<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, kind, help): (&str, MetricType, &str),
    samples: impl Iterator<Item = (L, Number)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, &format!("{help}."), None, kind)?;
    for (labels, number) in samples {
        encode_sample(family.encode_family(&labels)?, kind, number)?;
    }
    Ok(())
}

/// Encodes a family that has one sample and no labels.
pub(crate) fn encode_single(
    encoder: &mut DescriptorEncoder<'_>,
    (name, kind, help): (&str, MetricType, &str),
    number: Number,
) -> fmt::Result {
    encode_sample(encoder.encode_descriptor(name, &format!("{help}."), None, kind)?, kind, number)
}

fn encode_sample(mut sample: MetricEncoder<'_>, kind: MetricType, number: Number) -> fmt::Result {
    match kind {
        MetricType::Counter => sample.encode_counter::<NoLabelSet, _, u64>(&number, None),
        _ => sample.encode_gauge(&number),
    }
}

/// Counters that the process keeps for itself, read when they are scraped.
#[derive(Debug)]
pub(crate) struct ProcessCounters;

impl Collector for ProcessCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = [
            ("log_lines_lost", "Log lines that were not written", telemetry::lost_lines()),
            ("panics", "Panics of requests and of background tasks", telemetry::panics()),
        ];
        for (name, help, count) in counters {
            let family = (name, MetricType::Counter, help);
            encode_single(&mut encoder, family, Number::Count(count))?;
        }
        Ok(())
    }
}
