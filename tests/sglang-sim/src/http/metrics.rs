//! `GET /metrics`: the families that a router reads, under the version's names.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use http::{Response, StatusCode};

use crate::config::Role;
use crate::process::Process;
use crate::rank::Rank;
use crate::stats::Histogram;

use super::{Reply, plain};

/// The page under construction.
struct Page {
    text: String,
    model: String,
    engine: &'static str,
    old: bool,
    ranks: usize,
}

impl Page {
    fn describe(&mut self, name: &str, kind: &str) {
        let words = name.replace('_', " ");
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP sglang:{name} The engine's {words}.");
        let _ = writeln!(self.text, "# TYPE sglang:{name} {kind}");
    }

    /// Labels of a scheduler, with the DP rank if there are several.
    fn scheduler(&self, rank: usize) -> String {
        let moe = if self.old { "" } else { ",moe_ep_rank=\"0\"" };
        let dp = if self.ranks > 1 { format!("dp_rank=\"{rank}\",") } else { String::new() };
        let (engine, model) = (self.engine, &self.model);
        format!(
            "{dp}engine_type=\"{engine}\",model_name=\"{model}\"{moe},pp_rank=\"0\",tp_rank=\"0\""
        )
    }

    fn tokenizer(&self) -> String {
        format!("engine_type=\"{}\",model_name=\"{}\"", self.engine, self.model)
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let point = if value.fract() == 0.0 { ".0" } else { "" };
        let _ = writeln!(self.text, "sglang:{name}{{{labels}}} {value}{point}");
    }

    fn counter(&mut self, name: &str, labels: &str, value: u64) {
        self.describe(name, "counter");
        self.sample(name, labels, value as f64);
    }

    /// A counter that the engine shows only once it counts something, such as failures.
    fn rare(&mut self, name: &str, labels: &str, value: u64) {
        if value > 0 {
            self.counter(name, labels, value);
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let (cells, count, sum) = histogram.read();
        if count == 0 {
            return;
        }
        self.describe(name, "histogram");
        self.sample(&format!("{name}_sum"), labels, sum);
        let mut below = 0;
        for (bound, cell) in histogram.bounds.iter().zip(cells) {
            below += cell;
            let bound = format!("{labels},le=\"{bound:?}\"");
            self.sample(&format!("{name}_bucket"), &bound, below as f64);
        }
        self.sample(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), count as f64);
        self.sample(&format!("{name}_count"), labels, count as f64);
    }
}

type GaugeSource = (&'static str, Box<dyn Fn(&Rank) -> f64>);

fn sources(process: &Process) -> Vec<GaugeSource> {
    fn count(read: impl Fn(&Rank) -> usize + 'static) -> Box<dyn Fn(&Rank) -> f64> {
        Box::new(move |rank| read(rank) as f64)
    }
    let old = process.is_0_4();
    let capacity = process.config.max_total_tokens.max(1);
    let slots = process.config.max_running_requests.max(1);
    let mut sources: Vec<GaugeSource> = vec![
        ("num_running_reqs", count(|rank| rank.gauges.running.now())),
        ("num_queue_reqs", count(|rank| rank.gauges.queued.now())),
        ("num_used_tokens", count(|rank| rank.gauges.tokens.now())),
        ("token_usage", Box::new(move |rank| rank.gauges.tokens.now() as f64 / capacity as f64)),
        ("gen_throughput", Box::new(|_| 0.0)),
        ("cache_hit_rate", Box::new(|_| 0.0)),
        ("num_decode_prealloc_queue_reqs", count(|rank| rank.gauges.prealloc.now())),
        ("num_decode_transfer_queue_reqs", count(|rank| rank.gauges.transfer.now())),
    ];
    let inflight = count(|rank| rank.gauges.inflight.now());
    let bootstrap = count(|rank| rank.gauges.bootstrap.now());
    if old {
        // The spelling of 0.4.
        sources.push(("num_prefill_infight_queue_reqs", inflight));
        sources.push(("num_prefill_prealloc_queue_reqs", bootstrap));
        return sources;
    }
    let page = f64::from(process.config.page_size);
    let context = process.config.context_length as f64;
    sources.extend::<[GaugeSource; 9]>([
        ("num_prefill_inflight_queue_reqs", inflight),
        ("num_prefill_bootstrap_queue_reqs", bootstrap),
        ("max_total_num_tokens", Box::new(move |_| capacity as f64)),
        ("page_size", Box::new(move |_| page)),
        ("context_len", Box::new(move |_| context)),
        ("kv_used_tokens", count(|rank| rank.gauges.tokens.now())),
        (
            "kv_available_tokens",
            count(move |rank| capacity.saturating_sub(rank.gauges.tokens.now())),
        ),
        (
            "pending_prealloc_token_usage",
            Box::new(move |rank| rank.gauges.pending_tokens.now() as f64 / capacity as f64),
        ),
        ("utilization", Box::new(move |rank| rank.gauges.running.now() as f64 / slots as f64)),
    ]);
    sources
}

pub(crate) fn answer(process: &Process) -> Response<Reply> {
    let mut page = Page {
        text: String::with_capacity(8 << 10),
        model: process.config.model_name().replace('\\', "\\\\").replace('"', "\\\""),
        engine: process.role().engine_type(),
        old: process.is_0_4(),
        ranks: process.ranks.len(),
    };
    for (name, read) in sources(process) {
        page.describe(name, "gauge");
        for (number, rank) in process.ranks.iter().enumerate() {
            let labels = page.scheduler(number);
            page.sample(name, &labels, read(rank));
        }
    }
    let stats = &process.stats;
    let scheduler = page.scheduler(0);
    if !page.old && process.config.disaggregated() {
        page.histogram("kv_transfer_bootstrap_ms", &scheduler, &stats.bootstrap_ms);
        page.histogram("kv_transfer_alloc_ms", &scheduler, &stats.alloc_ms);
        if process.role() == Role::Prefill {
            page.histogram("kv_transfer_latency_ms", &scheduler, &stats.transfer_ms);
            page.histogram("kv_transfer_speed_gb_s", &scheduler, &stats.transfer_gb_s);
            page.histogram("kv_transfer_total_mb", &scheduler, &stats.transfer_mb);
        }
    }
    let failed = stats.bootstrap_failures.load(Relaxed);
    page.rare("num_bootstrap_failed_reqs_total", &scheduler, failed);
    let failed = stats.transfer_failures.load(Relaxed);
    page.rare("num_transfer_failed_reqs_total", &scheduler, failed);

    let labels = page.tokenizer();
    if process.role() != Role::Prefill {
        page.histogram("time_to_first_token_seconds", &labels, &stats.ttft);
        page.histogram("inter_token_latency_seconds", &labels, &stats.itl);
    }
    page.histogram("e2e_request_latency_seconds", &labels, &stats.e2e);
    page.rare("num_aborted_requests_total", &labels, stats.aborted.load(Relaxed));
    page.counter("prompt_tokens_total", &labels, stats.prompt_tokens.load(Relaxed));
    page.rare("cached_tokens_total", &labels, stats.cached_tokens.load(Relaxed));
    page.counter("generation_tokens_total", &labels, stats.generation_tokens.load(Relaxed));
    page.counter("num_requests_total", &labels, stats.requests.load(Relaxed));
    plain(StatusCode::OK, page.text)
}
