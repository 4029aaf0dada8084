//! One worker, and one request: where its time went and why its pair was chosen.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use router_core::timeline::TimelinePart;
use serde_json::Value;

use super::super::report::text;
use super::super::screen::Screen;
use super::super::text::{health, lasting, milliseconds, or_dash};
use super::{BAD, BOLD, DIM, lines};

/// Width of the bars, in characters.
const BAR: usize = 40;
/// The terms of an estimate, as `/requests/ID` names them.
const TERMS: [(&str, &str); 7] = [
    ("wait_ms", "prefill's queue"),
    ("admission_ms", "decode's capacity"),
    ("prefill_ms", "prefill"),
    ("transfer_ms", "KV transfer"),
    ("itl_ms", "one decode step"),
    ("queue_cost_ms", "delay of later prompts"),
    ("affinity_bonus_ms", "affinity, subtracted"),
];

/// Draws one worker, with the requests on it.
pub(super) fn worker(frame: &mut Frame<'_>, area: Rect, screen: &Screen, pool: &str, name: &str) {
    let pools = screen.report.iter().flat_map(|report| &report.pools);
    let of_pool = pools.filter(|one| one.name == pool).flat_map(|one| &one.workers);
    let Some(one) = of_pool.into_iter().find(|worker| worker.name == name) else {
        return lines(frame, area, vec![Line::raw(format!("{name} has left the pool"))]);
    };
    let fact = |title: &str, value: String| {
        Line::from(vec![Span::styled(format!("{title:18}"), DIM), Span::raw(value)])
    };
    let mut shown = vec![
        Line::styled(format!("{name}  {}  of {pool}", one.role), BOLD),
        fact("health", format!("{}, pod {}", health(one), one.phase)),
        fact("for", or_dash(one.health_for_ms, lasting)),
        fact("reason", one.health_reason.clone().unwrap_or_else(|| "-".to_owned())),
        fact("requests", one.requests.to_string()),
        fact("requests of others", or_dash(one.others_requests, |count| format!("{count:.0}"))),
        fact("score", or_dash(one.score, |score| format!("{score:.2}"))),
        fact("load reported", or_dash(one.load_age_ms, |ms| format!("{ms:.0} ms ago"))),
        Line::raw(""),
        Line::styled("its requests, failed and slow ones first", DIM),
    ];
    let is_on = |on: &Option<String>| on.as_deref() == Some(name);
    let requests = screen.report.iter().flat_map(|report| &report.requests);
    for request in requests.filter(|one| is_on(&one.prefill) || is_on(&one.worker)).take(20) {
        let waited = milliseconds(Some(request.waited_ms));
        let style = if request.is_failed() { BAD } else { ratatui::style::Style::new() };
        shown
            .push(Line::styled(format!("{waited:>11}  {}  {}", request.reason, request.id), style));
    }
    lines(frame, area, shown);
}

/// Draws one request, as `/requests/ID` has it.
pub(super) fn request(frame: &mut Frame<'_>, area: Rect, request: &Value) {
    let name = |key: &str| request[key].as_str().unwrap_or("-").to_owned();
    let result = format!("{} {}  {}", request["status"], name("reason"), text(&request["detail"]));
    let mut shown = vec![
        Line::styled(name("id"), BOLD),
        Line::raw(format!("{} -> {}   {result}", name("prefill"), name("worker"))),
    ];
    shown.extend(waterfall(request));
    for retry in request["retries"].as_array().into_iter().flatten() {
        let took = milliseconds(retry["duration_ms"].as_f64());
        let why =
            format!("retried after {took}: {} {}", text(&retry["reason"]), text(&retry["detail"]));
        shown.push(Line::styled(why, BAD));
    }
    shown.push(Line::raw(""));
    shown.extend(choice(&request["choice"]));
    lines(frame, area, shown);
}

/// A part inside the engines, and its name in a line.
const INSIDE: [(&str, &str); 3] = [
    ("decode_admitted", "admitted"),
    ("handover", "handover"),
    ("decode_first_step", "first step"),
];

/// The known parts inside the engines, which follow each other. `~` is estimated.
fn inside(request: &Value) -> Option<Line<'static>> {
    let known = INSIDE.iter().filter_map(|(key, name)| {
        let measured = &request["inner_parts_ms"][key];
        let time = milliseconds(Some(measured["value"].as_f64()?));
        let mark = if measured["provenance"] == "estimated" { "~" } else { "" };
        Some(format!("{name} {mark}{}", time.trim_start()))
    });
    let known: Vec<String> = known.collect();
    (!known.is_empty()).then(|| Line::styled(format!("  inside: {}", known.join(", ")), DIM))
}

/// A bar for each part: `=` is exact, `~` estimated, and a part that is unknown has none.
fn waterfall(request: &Value) -> Vec<Line<'static>> {
    let value = |part: &Value| part["value"].as_f64();
    let duration = request["duration_ms"].as_f64().unwrap_or(0.0);
    let whole = value(&request["ttft_ms"]).unwrap_or(duration).max(0.001);
    let cells = |ms: f64| ((ms / whole * BAR as f64).round() as usize).min(BAR);
    let (mut rows, mut from) = (Vec::new(), 0.0);
    for part in TimelinePart::ALL {
        let measured = &request["parts_ms"][part.as_str()];
        let known = value(measured);
        let (start, end) = (cells(from), cells(from + known.unwrap_or(0.0)));
        from += known.unwrap_or(0.0);
        let glyph = if measured["provenance"] == "estimated" { "~" } else { "=" };
        // The answer can be a thousand times as long as the rest.
        let bar = match (known, part) {
            (Some(_), TimelinePart::Done) => String::new(),
            (Some(_), _) => " ".repeat(start) + &glyph.repeat((end - start).max(1)),
            (None, _) => "unknown".to_owned(),
        };
        let predicted = request["predicted_ms"][part.as_str()].as_f64();
        let predicted = predicted.filter(|_| part != TimelinePart::Done);
        let predicted = predicted.map(|ms| format!("   predicted {ms:.1} ms")).unwrap_or_default();
        let time = milliseconds(known);
        let row = format!("{:10}  {time:>11}  {bar:41}{predicted}", part.as_str());
        let failed = request["ended_in"] == part.as_str() && request["reason"] != "ok";
        rows.push(match failed {
            true => Line::styled(format!("{}   it failed here", row.trim_end()), BAD),
            false => Line::raw(row.trim_end().to_owned()),
        });
        if part == TimelinePart::Prefill {
            rows.extend(inside(request));
        }
    }
    rows
}

/// The terms of the pair taken beside those of the runner-up.
fn choice(choice: &Value) -> Vec<Line<'static>> {
    let [taken, other] = ["chosen", "runner_up"].map(|key| &choice[key]);
    if taken.is_null() {
        return vec![Line::styled("nothing was predicted for its pair", DIM)];
    }
    let pair = |scored: &Value| match scored.is_null() {
        true => "none".to_owned(),
        false => {
            format!("{} -> {}", text(&scored["pair"]["prefill"]), text(&scored["pair"]["decode"]))
        }
    };
    let mut rows = vec![
        Line::from(vec![Span::styled("taken      ", DIM), Span::raw(pair(taken))]),
        Line::from(vec![Span::styled("runner-up  ", DIM), Span::raw(pair(other))]),
        Line::styled(format!("{:24}{:>12}{:>12}", "predicted", "taken", "runner-up"), DIM),
    ];
    for (key, title) in TERMS {
        let [taken, other] =
            [taken, other].map(|scored| milliseconds(scored["estimate"][key].as_f64()));
        rows.push(Line::raw(format!("{title:24}{taken:>12}{other:>12}")));
    }
    rows
}
