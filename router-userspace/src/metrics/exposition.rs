//! The page that `/metrics` answers, of the gateway and of the agent.

use std::fmt::{self, Write};

use http::HeaderMap;
use http::header::ACCEPT;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    CounterValueEncoder, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet,
    GaugeValueEncoder, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::process;
use crate::telemetry;

const OPEN_METRICS: &str = "application/openmetrics-text";

/// The registry, and its content type: OpenMetrics for a client that accepts it, as Prometheus does, else
/// the text format of Prometheus.
pub(crate) fn page(registry: &Registry, request: &HeaderMap) -> (&'static str, String) {
    let page = encode(registry);
    let accepted = request.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = accepted.flat_map(|value| value.split(',')).map(str::trim);
    match types.any(|kind| kind.split(';').next() == Some(OPEN_METRICS)) {
        true => ("application/openmetrics-text; version=1.0.0; charset=utf-8", page),
        false => ("text/plain; version=0.0.4; charset=utf-8", prometheus_text(&page)),
    }
}

/// The registry in the OpenMetrics text format.
pub(crate) fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, registry);
    out
}

/// A page of OpenMetrics without exemplars in the text format of Prometheus (version 0.0.4), which knows
/// neither units nor an end, and names a family of counters as its samples.
fn prometheus_text(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = text.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|text| text.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let help = help.take().filter(|(of, _)| *of == name).map_or("", |(_, text)| text);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
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
        let build = [[("version", env!("CARGO_PKG_VERSION")), ("commit", crate::COMMIT)]];
        let family = ("build_info", MetricType::Gauge, "1, with the version that runs as labels");
        encode_family(&mut encoder, family, build.iter().map(|build| (&build[..], 1.into())))
    }
}

/// What exporters of Prometheus publish about their process, under the usual names.
#[derive(Debug)]
pub(crate) struct ProcessUse;

impl Collector for ProcessUse {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, kind, help, value) in process::usage() {
            if let Some(value) = value {
                encode_single(&mut encoder, (name, kind, help), Number::Real(value))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Unit;

    use super::*;

    fn accepting(kinds: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for kind in kinds {
            headers.append(ACCEPT, kind.parse().unwrap());
        }
        headers
    }

    fn registry() -> Registry {
        let (mut registry, counter) = (Registry::with_prefix("a"), <Counter>::default());
        counter.inc_by(2);
        registry.register("hits", "Hits", counter);
        registry.register_with_unit("age", "Age # of it", Unit::Seconds, <Gauge>::default());
        registry
    }

    #[test]
    fn a_client_that_accepts_open_metrics_gets_it_and_all_others_text() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for accepted in [&[prometheus][..], &["text/html", "application/openmetrics-text"]] {
            let (kind, page) = page(&registry(), &accepting(accepted));
            assert!(kind.starts_with(OPEN_METRICS) && page.ends_with("# EOF\n"), "{accepted:?}");
        }
        for accepted in [&[][..], &["*/*"], &["text/plain;version=0.0.4"]] {
            let (kind, page) = page(&registry(), &accepting(accepted));
            assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accepted:?}");
            assert_eq!(
                page,
                "# HELP a_hits_total Hits.\n# TYPE a_hits_total counter\na_hits_total 2\n\
                 # HELP a_age_seconds Age # of it.\n# TYPE a_age_seconds gauge\na_age_seconds 0\n"
            );
        }
    }

    #[test]
    fn the_process_and_its_version_are_named_as_usual() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessUse));
        registry.sub_registry_with_prefix("a").register_collector(Box::new(ProcessCounters));
        let (_, page) = page(&registry, &HeaderMap::new());
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_start_time_seconds",
        ] {
            let line = page.lines().find(|line| line.starts_with(&format!("{name} ")));
            let value = line.and_then(|line| line.split_once(' ')?.1.parse::<f64>().ok());
            assert!(value.is_some_and(|value| value > 0.0), "{name}: {page}");
        }
        assert!(page.contains("a_build_info{version=\"0."), "{page}");
    }
}
