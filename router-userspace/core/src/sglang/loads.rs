//! The load that engines report, in the three formats of their versions.

use serde_json::Value;

use crate::fleet::{EngineLoad, MAX_RANKS};

/// The load that an engine reports.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineLoadReport {
    /// The sum over all ranks.
    pub all: EngineLoad,
    /// Each data-parallel rank, if there are several and the engine reports them separately.
    pub ranks: Vec<EngineLoad>,
}

/// The endpoints that report load, the most detailed one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadEndpoint {
    /// From 0.5.10.
    Loads,
    /// If `--enable-metrics` is set.
    Metrics,
    /// Up to 0.5.20.
    GetLoad,
}

impl LoadEndpoint {
    pub const ALL: [LoadEndpoint; 3] =
        [LoadEndpoint::Loads, LoadEndpoint::Metrics, LoadEndpoint::GetLoad];

    /// Path and query of the `GET`.
    pub fn query(self) -> &'static str {
        match self {
            LoadEndpoint::Loads => "/v1/loads?include=core,disagg",
            LoadEndpoint::Metrics => "/metrics",
            LoadEndpoint::GetLoad => "/get_load",
        }
    }

    /// Parses an answer. `None` if it contains no load.
    ///
    /// ```
    /// use router_core::sglang::loads::LoadEndpoint;
    ///
    /// let load = LoadEndpoint::Loads.read(br#"{"loads":[{"num_running_reqs":2,"num_waiting_reqs":1,
    ///     "num_used_tokens":50,"max_total_num_tokens":1000,"max_running_requests":48,
    ///     "disaggregation":{"mode":"decode","decode_prealloc_queue_reqs":3}}]}"#).unwrap().all;
    /// assert_eq!((load.running, load.queued, load.prealloc_queue), (Some(2), Some(1), Some(3)));
    /// assert_eq!(load.max_running_requests, Some(48));
    /// let old = LoadEndpoint::GetLoad.read(br#"{"load": 70}"#).unwrap().all;
    /// assert_eq!(old.total_tokens, Some(70));
    /// ```
    pub fn read(self, answer: &[u8]) -> Option<EngineLoadReport> {
        let load = match self {
            LoadEndpoint::Loads => {
                let answer: Value = serde_json::from_slice(answer).ok()?;
                of_ranks(answer.get("loads")?.as_array()?, loads)
            }
            LoadEndpoint::Metrics => whole_engine(metrics(std::str::from_utf8(answer).ok()?)),
            LoadEndpoint::GetLoad => get_load(&serde_json::from_slice(answer).ok()?)?,
        };
        (!load.all.is_empty()).then_some(load)
    }
}

fn whole_engine(all: EngineLoad) -> EngineLoadReport {
    EngineLoadReport { all, ranks: Vec::new() }
}

/// Parses a list with one entry per rank. `read` sums up some of its entries.
fn of_ranks(list: &[Value], read: impl Fn(&[Value]) -> EngineLoad) -> EngineLoadReport {
    let number = |one: &Value| one.get("dp_rank").and_then(count);
    let entry = |rank: usize| list.iter().position(|one| number(one) == Some(rank as u64));
    let several = (2..=MAX_RANKS as usize).contains(&list.len());
    let each = |rank| entry(rank).map(|at| read(&list[at..=at]));
    let ranks = several.then(|| (0..list.len()).map(each).collect::<Option<Vec<_>>>()).flatten();
    EngineLoadReport { all: read(list), ranks: ranks.unwrap_or_default() }
}

/// The sum over all ranks that report a number, `None` if none does.
fn sum(ranks: &[Value], place: &[&str]) -> Option<u64> {
    let reported = ranks.iter().filter_map(|rank| {
        place.iter().try_fold(rank, |value, key| value.get(key)).and_then(count)
    });
    reported.fold(None, |sum, number| Some(sum.unwrap_or(0).saturating_add(number)))
}

/// A count as engines write it: sometimes as a float, and -1 if unknown.
fn count(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().and_then(count_from_float))
}

fn count_from_float(number: f64) -> Option<u64> {
    // Beyond 2^53 a float is not exact.
    (0.0..=9e15).contains(&number).then_some(number as u64)
}

fn loads(ranks: &[Value]) -> EngineLoad {
    let queue = |prefill: &str, decode: &str| {
        let parts = [prefill, decode].map(|name| sum(ranks, &["disaggregation", name]));
        parts.into_iter().flatten().reduce(u64::saturating_add)
    };
    let usages = ranks.iter().filter_map(|rank| rank.get("token_usage")?.as_f64());
    EngineLoad {
        running: sum(ranks, &["num_running_reqs"]),
        queued: sum(ranks, &["num_waiting_reqs"]),
        prealloc_queue: queue("prefill_bootstrap_queue_reqs", "decode_prealloc_queue_reqs"),
        transfer_queue: queue("prefill_inflight_queue_reqs", "decode_transfer_queue_reqs"),
        used_tokens: sum(ranks, &["num_used_tokens"]),
        total_tokens: sum(ranks, &["num_total_tokens"]),
        token_usage: most(usages),
        max_total_num_tokens: sum(ranks, &["max_total_num_tokens"]),
        max_running_requests: sum(ranks, &["max_running_requests"]),
    }
}

/// The highest usage of all ranks.
fn most(usages: impl Iterator<Item = f64>) -> Option<f64> {
    usages.filter(|usage| (0.0..=1e3).contains(usage)).reduce(f64::max)
}

fn get_load(answer: &Value) -> Option<EngineLoadReport> {
    if let Some(tokens) = answer.get("load").and_then(count) {
        return Some(whole_engine(EngineLoad {
            total_tokens: Some(tokens),
            ..EngineLoad::default()
        }));
    }
    Some(of_ranks(answer.as_array()?, |ranks| {
        let (all, queued) = (sum(ranks, &["num_reqs"]), sum(ranks, &["num_waiting_reqs"]));
        EngineLoad {
            // `num_reqs` includes the waiting ones.
            running: all.map(|all| all.saturating_sub(queued.unwrap_or(0))),
            queued,
            total_tokens: sum(ranks, &["num_tokens"]),
            ..EngineLoad::default()
        }
    }))
}

/// Parses the Prometheus gauges of all versions.
fn metrics(page: &str) -> EngineLoad {
    let mut load = EngineLoad::default();
    for line in page.lines() {
        let Some(rest) = line.strip_prefix("sglang:") else { continue };
        let Some((series, value)) = rest.rsplit_once(' ') else { continue };
        let name = series.split('{').next().unwrap_or_default();
        let Ok(number) = value.parse::<f64>() else { continue };
        // Every tensor-parallel rank may report the same values, so only rank 0 counts.
        if let Some((_, after)) = series.split_once("tp_rank=\"")
            && !after.starts_with("0\"")
        {
            continue;
        }
        let field = match name {
            "num_running_reqs" => &mut load.running,
            "num_queue_reqs" => &mut load.queued,
            // The name up to 0.5.10, the later name, and the name on a decode.
            "num_prefill_prealloc_queue_reqs"
            | "num_prefill_bootstrap_queue_reqs"
            | "num_decode_prealloc_queue_reqs" => &mut load.prealloc_queue,
            // 0.4.10 has the misspelt name.
            "num_prefill_infight_queue_reqs"
            | "num_prefill_inflight_queue_reqs"
            | "num_decode_transfer_queue_reqs" => &mut load.transfer_queue,
            "num_used_tokens" => &mut load.used_tokens,
            "max_total_num_tokens" => &mut load.max_total_num_tokens,
            "token_usage" => {
                load.token_usage = most(load.token_usage.into_iter().chain([number]));
                continue;
            }
            _ => continue,
        };
        if let Some(number) = count_from_float(number) {
            *field = Some(field.unwrap_or(0).saturating_add(number));
        }
    }
    load
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_old_and_new_engines_are_parsed() {
        let old = "# TYPE sglang:num_queue_reqs gauge\n\
            sglang:num_running_reqs{engine_type=\"prefill\",tp_rank=\"0\"} 3.0\n\
            sglang:num_running_reqs{engine_type=\"prefill\",tp_rank=\"1\"} 3.0\n\
            sglang:num_queue_reqs{tp_rank=\"0\"} 1.0\n\
            sglang:num_prefill_infight_queue_reqs{tp_rank=\"0\"} 2.0\n\
            sglang:num_prefill_prealloc_queue_reqs{tp_rank=\"0\"} 4.0\n\
            sglang:token_usage{tp_rank=\"0\"} 0.25\n";
        let load = LoadEndpoint::Metrics.read(old.as_bytes()).unwrap().all;
        assert_eq!((load.running, load.queued), (Some(3), Some(1)));
        assert_eq!((load.prealloc_queue, load.transfer_queue), (Some(4), Some(2)));
        assert_eq!((load.requests(), load.token_usage), (Some(10), Some(0.25)));
        let new = "sglang:num_prefill_bootstrap_queue_reqs{dp_rank=\"0\",tp_rank=\"0\"} 1.0\n\
            sglang:num_prefill_bootstrap_queue_reqs{dp_rank=\"1\",tp_rank=\"0\"} 2.0\n\
            sglang:max_total_num_tokens{tp_rank=\"0\"} 20000.0\n";
        let load = LoadEndpoint::Metrics.read(new.as_bytes()).unwrap().all;
        assert_eq!((load.prealloc_queue, load.max_total_num_tokens), (Some(3), Some(20_000)));
    }

    #[test]
    fn ranks_are_summed_and_unknown_is_not_zero() {
        let list = br#"[{"dp_rank":0,"num_reqs":3,"num_waiting_reqs":1,"num_tokens":90},
            {"dp_rank":1,"num_reqs":1,"num_waiting_reqs":0,"num_tokens":-1}]"#;
        let EngineLoadReport { all: load, ranks } = LoadEndpoint::GetLoad.read(list).unwrap();
        let requests: Vec<_> = ranks.iter().map(EngineLoad::requests).collect();
        assert_eq!(requests, [Some(3), Some(1)]);
        assert_eq!((load.running, load.queued, load.total_tokens), (Some(3), Some(1), Some(90)));
        assert_eq!(load.max_total_num_tokens, None);
    }

    #[test]
    fn ranks_are_separate_only_if_their_numbers_are_distinct() {
        let read = |ranks: &str| {
            let ranks = format!("{{\"loads\": [{ranks}]}}");
            LoadEndpoint::Loads.read(ranks.as_bytes()).unwrap()
        };
        let rank = |number: &str, running: u64| {
            format!("{{\"dp_rank\": {number}, \"num_running_reqs\": {running}}}")
        };
        let turned = read(&[rank("1", 7), rank("0", 2)].join(","));
        let running: Vec<_> = turned.ranks.iter().map(|rank| rank.running).collect();
        assert_eq!((turned.all.running, running), (Some(9), vec![Some(2), Some(7)]));
        for twice in ["0", "7", "null"] {
            let odd = read(&[rank("0", 7), rank(twice, 2)].join(","));
            assert_eq!((odd.all.running, odd.ranks.len()), (Some(9), 0), "{twice}");
        }
        assert!(read(&rank("0", 7)).ranks.is_empty(), "a single rank is not listed");
    }

    #[test]
    fn counts_of_any_size_are_added() {
        let most = br#"{"loads":[{"num_running_reqs":18446744073709551615,"num_waiting_reqs":2}]}"#;
        let load = LoadEndpoint::Loads.read(most).unwrap().all;
        assert_eq!(load.requests(), Some(u64::MAX));
    }

    #[test]
    fn malformed_answers_give_none() {
        let nonsense: [&[u8]; 6] =
            [b"", b"{}", b"{\"loads\": 7}", b"[1,2]", b"\xff\xfe", b"sglang:num_running_reqs NaN"];
        for answer in nonsense {
            for form in LoadEndpoint::ALL {
                assert_eq!(form.read(answer), None, "{form:?} of {answer:?}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_answers_do_not_panic(answer: Vec<u8>, text: String) {
            for form in LoadEndpoint::ALL {
                let _ = form.read(&answer);
                let _ = form.read(text.as_bytes());
            }
        }
    }
}
