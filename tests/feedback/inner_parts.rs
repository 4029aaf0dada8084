//! The parts of a request inside the engines, as an agent sees them, against delays that are injected.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use router_tests::manifests::ENGINE_PORT;
use router_tests::site::crowd::prompt;
use router_tests::site::{Site, SiteGateway, ask, enter, post, wait};
use serde_json::{Value, json};

/// The injected delays in milliseconds.
const ADMISSION: f64 = 40.0;
const TRANSFER: f64 = 60.0;
const FIRST_STEP: f64 = 25.0;
const DELAYS: [(&str, f64); 4] = [
    ("decode_admitted", ADMISSION),
    ("handover", TRANSFER),
    ("transfer", TRANSFER),
    ("decode_first_step", FIRST_STEP),
];
/// What the median of a part may be above its delay: sending, computing and scheduling, on few CPUs and with
/// debug builds.
const SLACK_MS: f64 = 20.0;
const CLIENTS: usize = 4;
const REQUESTS: usize = 75;
/// Every so many requests may be dropped by the engine that is asked first; this many their clients leave.
const RETRIED_EVERY: usize = 15;
const LEFT: usize = 10;
const DROPPED: &str = "dropped at first";

fn site() -> Site {
    let mut site = Site::new();
    let prefill = format!("--instant --kv-bytes-per-token 64 --kv-transfer-ms {TRANSFER}");
    let decode = format!(
        "--instant --kv-bytes-per-token 64 --decode-admission-ms {ADMISSION} \
         --decode-first-step-ms {FIRST_STEP}"
    );
    for _ in 0..2 {
        site.engine("prefill", false, &prefill);
        site.engine("decode", false, &decode);
    }
    site
}

/// The agent's clock is compared with the gateway's.
fn until_clocks_are_compared(gateway: &SiteGateway) {
    wait("the clocks are compared", || {
        let fleet: Value = serde_json::from_str(&gateway.get("/fleet")?).ok()?;
        let agents = fleet["agents"].as_array()?;
        let error = agents.first()?["clock_error_ms"].as_f64()?;
        (error < 5.0).then_some(())
    });
}

fn request(id: &str, text: &str) -> Vec<u8> {
    let body = json!({
        "text": format!("{} {text}", prompt(400)),
        "stream": true,
        "sampling_params": {"max_new_tokens": 3, "ignore_eos": true},
    });
    let with_id = format!("POST /generate HTTP/1.1\r\nx-request-id: {id}");
    let whole = String::from_utf8(post("/generate", &body.to_string())).expect("text");
    whole.replacen("POST /generate HTTP/1.1", &with_id, 1).into_bytes()
}

/// Sends `count` requests from each client, which are all answered; returns their ids.
fn send(gateway: &SiteGateway, phase: &str, count: usize) -> Vec<String> {
    let threads: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (gateway, phase) = (gateway.clone(), phase.to_owned());
            std::thread::spawn(move || {
                enter(&gateway.outside);
                let mut answered = Vec::new();
                for number in 0..count {
                    let id = format!("{phase}-{client}-{number}");
                    let text = if number % RETRIED_EVERY == 0 { DROPPED } else { "whole" };
                    let answer = ask(gateway.address, &request(&id, text));
                    let (head, body) = answer.expect("an answer");
                    assert!(head.starts_with("HTTP/1.1 200 "), "{head}\n{body}");
                    answered.push(id);
                }
                answered
            })
        })
        .collect();
    threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
}

/// Sends requests that their clients leave while the engines work; returns their ids.
fn leave(gateway: &SiteGateway, count: usize) -> Vec<String> {
    let send = |number| {
        let id = format!("left-{number}");
        let (outside, address) = (gateway.outside.clone(), gateway.address);
        let bytes = request(&id, "left");
        let sent = std::thread::spawn(move || {
            enter(&outside);
            let mut stream = TcpStream::connect(address).expect("connecting");
            stream.write_all(&bytes).expect("sending");
            stream
        });
        let stream = sent.join().expect("a client");
        wait("the request is in flight", || {
            (gateway.metric("pd_router_requests_in_flight ") >= 1.0).then_some(())
        });
        drop(stream);
        wait("the request has ended", || {
            (gateway.metric("pd_router_requests_in_flight ") == 0.0).then_some(())
        });
        id
    };
    (0..count).map(send).collect()
}

/// Lets a prefill drop some of these requests.
fn drop_some(site: &Site) {
    let script = json!({
        "match": {"body_contains": DROPPED},
        "action": "drop_before_head",
        "times": CLIENTS * 2,
    });
    // Not both of them: a request is tried twice.
    let prefill = site.engines.iter().find(|engine| engine.role == "prefill").expect("a prefill");
    let at = SocketAddr::new(prefill.pod.address, ENGINE_PORT);
    let body = script.to_string();
    let asked = site.node.outside.run(move || ask(at, &post("/sim/script", &body)));
    let (head, body) = asked.expect("the engine answers");
    assert!(head.starts_with("HTTP/1.1 2"), "{head}\n{body}");
}

fn kept(gateway: &SiteGateway, id: &str) -> Value {
    wait(&format!("{id} is kept"), || {
        serde_json::from_str(&gateway.get(&format!("/requests/{id}"))?).ok()
    })
}

fn inner(request: &Value, name: &str) -> Option<f64> {
    request["inner_parts_ms"][name]["value"].as_f64()
}

fn part(request: &Value, name: &str) -> f64 {
    request["parts_ms"][name]["value"].as_f64().unwrap_or(0.0)
}

/// Each part is its delay at least, as far as the clocks are known; all together they are what the gateway
/// measured with its own clock.
fn assert_parts(request: &Value) {
    let error = request["agent_clock_error_ms"].as_f64().expect("the clocks are compared");
    assert!(error < 10.0, "{request:#}");
    for (name, delay) in DELAYS {
        let ms = inner(request, name).unwrap_or_else(|| panic!("no {name}: {request:#}"));
        let provenance = if name == "handover" { "exact" } else { "estimated" };
        assert_eq!(request["inner_parts_ms"][name]["provenance"], provenance);
        // The leg of decode may be admitted while that of prefill is still written.
        let before = if name == "decode_admitted" { part(request, "sent") } else { 0.0 };
        let may_lack = if name == "handover" { 0.0 } else { error };
        assert!(ms >= delay - before - may_lack - 0.2, "{name}: {ms} ms: {request:#}");
    }
    let inside = ["decode_admitted", "handover", "decode_first_step"];
    let sum: f64 = inside.iter().filter_map(|name| inner(request, name)).sum();
    let measured = part(request, "prefill") + part(request, "first_byte");
    let differ = sum - measured;
    assert!(differ.abs() <= 2.0 * error + 0.5 + part(request, "sent"), "{differ} ms: {request:#}");
}

/// Waits until an agent's report of the request has come: it may come after the answer.
fn reported(gateway: &SiteGateway, id: &str) -> Value {
    wait(&format!("the parts of {id}"), || {
        Some(kept(gateway, id)).filter(|request| inner(request, "decode_first_step").is_some())
    })
}

#[test]
fn parts_inside_the_engines_are_the_delays_that_were_injected() {
    let mut site = site();
    site.agent("");
    let gateway = site.gateway(&format!("--agent {}", site.agent_address()));
    gateway.until_loads_fresh(4);
    until_clocks_are_compared(&gateway);
    // Handshakes of every pair, which are a part of the first admissions.
    send(&gateway, "warm", 8);
    drop_some(&site);
    let answered = send(&gateway, "r", REQUESTS);
    let requests: Vec<Value> = answered.iter().map(|id| reported(&gateway, id)).collect();
    requests.iter().for_each(assert_parts);
    let retried = requests.iter().filter(|request| request["attempts"] != 1).count();
    assert!(retried > 0, "no request was retried");
    for (name, delay) in DELAYS {
        let mut all: Vec<f64> =
            requests.iter().filter_map(|request| inner(request, name)).collect();
        all.sort_by(f64::total_cmp);
        let median = all[all.len() / 2];
        println!("{name}: median {median:.2} ms of {delay} ms, most {:.2} ms", all[all.len() - 1]);
        assert!(median <= delay + SLACK_MS, "{name}: {median} ms: {all:?}");
    }
    for id in &leave(&gateway, LEFT) {
        let request = kept(&gateway, id);
        assert_eq!(request["reason"], "client_gone", "{request:#}");
        assert_eq!(inner(&request, "decode_first_step"), None, "it has no first event");
    }
    let series = "pd_router_inner_part_seconds_count{pool=\"default/qwen-inference-pool\"";
    let counted = gateway.metric(&format!("{series},part=\"handover\""));
    assert!(counted >= requests.len() as f64, "{counted}");
    let pairs: BTreeMap<String, usize> = requests.iter().fold(BTreeMap::new(), |mut pairs, one| {
        *pairs.entry(format!("{} {}", one["prefill"], one["worker"])).or_default() += 1;
        pairs
    });
    assert!(pairs.len() > 1, "{pairs:?}");
}

#[test]
fn without_an_agent_the_parts_are_unknown_and_with_it_known_again() {
    let mut site = site();
    site.agent("");
    let gateway = site.gateway(&format!("--agent {}", site.agent_address()));
    gateway.until_loads_fresh(4);
    until_clocks_are_compared(&gateway);
    send(&gateway, "first", 2);
    reported(&gateway, "first-0-0");
    site.kill_agent();
    let answered = send(&gateway, "away", 5);
    for id in &answered {
        let request = kept(&gateway, id);
        for (name, _) in DELAYS {
            let unknown = json!({"value": null, "provenance": "unknown"});
            assert_eq!(request["inner_parts_ms"][name], unknown, "{id} {name}");
        }
        assert_eq!(request["agent_clock_error_ms"], Value::Null);
    }
    site.restart_agent();
    gateway.until_loads_fresh(4);
    until_clocks_are_compared(&gateway);
    let answered = send(&gateway, "again", 5);
    answered.iter().for_each(|id| assert_parts(&reported(&gateway, id)));
}
