//! Reports of pages that are written here.

use serde_json::json;

use super::*;

fn known(ms: f64) -> Value {
    json!({"value": ms, "provenance": "exact"})
}

fn fleet() -> Value {
    json!({
        "version": "0.2.0",
        "policy": "predicted",
        "queued": 2,
        "fleet": {
            "pools": [{"name": "default/pool", "members": [
                {"role": "prefill", "phase": "ready", "worker":
                    {"name": "default/p0", "health": "up", "usage": {"requests": 3}}},
                {"role": "decode", "phase": "ready", "worker":
                    {"name": "default/d0", "health": "down", "usage": {"requests": 0}}},
            ]}],
            "problems": [{"code": "NotLeading", "source": "cluster", "reason": "no lease"}],
        },
        "loads": [{"worker": "default/p0", "pool": "default/pool",
            "health": {"verdict": "up", "for_ms": 90_000, "reason": null},
            "load": {"others_requests": 4.0, "age_ms": 12.5},
            "kernel": {"score": known(0.25)}}],
    })
}

fn requests() -> Value {
    let unknown = json!({"value": null, "provenance": "unknown"});
    let request = |pool: &str, ms: f64, first_byte: &Value| {
        let parts = json!({"prefill": known(ms), "first_byte": first_byte});
        json!({"pool": pool, "ttft_ms": known(ms), "parts_ms": parts, "reason": "ok",
            "started_ms": 95_000, "duration_ms": 1000.0})
    };
    let no_stream = json!({"pool": "default/pool", "ttft_ms": unknown, "parts_ms": {},
        "reason": "decode_broken", "started_ms": 89_000, "duration_ms": 1000.0});
    json!({"kept": 4, "now_ms": 100_000, "complete_since_ms": null, "requests": [
        request("default/pool", 10.0, &unknown),
        request("default/pool", 30.0, &known(5.0)),
        request("default/another", 99.0, &known(99.0)),
        no_stream,
    ]})
}

fn pages() -> GatewayPages {
    let failures = json!({"requests": [{"id": "abc", "pool": "default/pool",
        "started_ms": 1000, "reason": "decode_broken", "detail": "reset", "ended_in": "prefill",
        "prefill": "default/p0", "worker": "default/d0"}]});
    let address = "127.0.0.1:9901".to_owned();
    GatewayPages {
        address,
        fleet: Ok(fleet()),
        requests: Some(requests()),
        failures: Some(failures),
    }
}

pub(in crate::top) fn example() -> TopReport {
    TopReport::of(&[pages()])
}

#[test]
fn parts_are_those_of_the_pools_own_streams() {
    let report = example();
    let pool = &report.pools[0];
    assert_eq!((pool.ttft.known, pool.ttft.mean_ms), (2, Some(20.0)));
    let of = |name: &str| &pool.parts.iter().find(|part| part.part == name).unwrap().stats;
    assert_eq!(
        of("first_byte"),
        &DurationStats { known: 1, mean_ms: Some(5.0), p50_ms: Some(5.0), p99_ms: Some(5.0) }
    );
    assert_eq!((of("queued").known, of("queued").mean_ms), (0, None));
}

#[test]
fn what_no_agent_reports_is_none() {
    let workers = &example().pools[0].workers;
    assert_eq!((workers[0].score, workers[0].others_requests), (Some(0.25), Some(4.0)));
    assert_eq!((workers[1].score, workers[1].load_age_ms), (None, None));
    assert_eq!((workers[0].health_for_ms, workers[1].health_for_ms), (Some(90_000), None));
}

#[test]
fn a_gateway_that_keeps_no_requests_has_no_parts() {
    let mut pages = pages();
    (pages.requests, pages.failures) = (None, None);
    let report = TopReport::of(&[pages]);
    assert_eq!((report.kept, report.pools[0].ttft.known), (None, 0));
    assert_eq!(report.window, None);
}

#[test]
fn requests_older_than_the_oldest_that_is_complete_count_for_no_statistics() {
    // The slow request of 89 s ago was kept by another ring than the others.
    let mut page = requests();
    page["complete_since_ms"] = 95_500.0.into();
    page["requests"][3]["started_ms"] = 10_000.into();
    let report = TopReport::of(&[GatewayPages { requests: Some(page), ..pages() }]);
    let window = report.window.unwrap();
    assert_eq!((window.requests, window.failed, window.seconds), (3, 0, 4.5));
    assert_eq!(window.per_second, Some(3.0 / 4.5));
}

#[test]
fn failures_that_are_kept_for_longer_are_listed_once_and_count_for_no_statistics() {
    let mut pages = pages();
    let page = pages.requests.as_mut().unwrap();
    page["requests"][3]["id"] = "recent".into();
    let recent = page["requests"][3].clone();
    // Of the failures, one is in the window as well.
    let failures = pages.failures.as_mut().unwrap();
    failures["requests"].as_array_mut().unwrap().push(recent);
    let report = TopReport::of(&[pages]);
    let failed: Vec<&str> =
        report.requests.iter().filter(|one| one.is_failed()).map(|one| &*one.id).collect();
    assert_eq!((failed, report.requests.len()), (vec!["recent", "abc"], 5));
    let window = report.window.unwrap();
    assert_eq!((window.requests, window.failed), (4, 1));
}

#[test]
fn replicas_are_added_up_over_the_time_that_all_of_them_know() {
    let mut second = fleet();
    second["fleet"]["pools"][0]["members"][0]["worker"]["usage"]["requests"] = 4.into();
    second["fleet"]["pools"][0]["members"][0]["worker"]["health"] = "failing".into();
    second["loads"][0]["health"] = json!({"for_ms": 7, "reason": "five errors"});
    // The first one's 4 others are the second's requests.
    second["loads"][0]["load"]["others_requests"] = 3.0.into();
    let mut page = requests();
    page["now_ms"] = 700_000.into();
    for request in page["requests"].as_array_mut().unwrap() {
        request["started_ms"] = 698_000.into();
    }
    let silent = GatewayPages {
        address: "b".to_owned(),
        fleet: Err("refused".to_owned()),
        requests: None,
        failures: None,
    };
    let second = GatewayPages { fleet: Ok(second), requests: Some(page), ..pages() };
    let report = TopReport::of(&[pages(), second, silent]);
    let worker = &report.pools[0].workers[0];
    assert_eq!((worker.requests, worker.others_requests), (7, Some(0.0)));
    assert_eq!((worker.health.as_str(), worker.up_at, worker.known_at), ("failing", 1, 2));
    assert_eq!(worker.health_reason.as_deref(), Some("five errors"));
    assert_eq!((report.queued, report.kept), (4, Some(8)));
    let errors: Vec<Option<&str>> =
        report.gateways.iter().map(|gateway| gateway.error.as_deref()).collect();
    assert_eq!(errors, [None, None, Some("refused")]);
    // The second one knows of one second; their clocks are not compared.
    let window = report.window.unwrap();
    assert_eq!((window.seconds, window.requests), (1.0, 4));
    assert_eq!(report.problems.len(), 1, "both have the same");
}
