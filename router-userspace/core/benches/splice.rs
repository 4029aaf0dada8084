//! Cost of parsing a request and injecting into it, compared with a round trip through
//! `serde_json::Value`, and cost of one streamed event of a response.
//!
//! Prints, for each body: nanoseconds, bytes of body a second and allocations, for each operation.
#![expect(unsafe_code, reason = "counting allocations takes a global allocator")]

mod measure;

use std::hint::black_box;

use bytes::Bytes;
use router_core::pair::Pair;
use router_core::sglang::{
    Attempt, BootstrapAddress, Endpoint, Request, Rid, Room, SplicedBody, fault, merge, sse,
};

fn main() {
    println!(
        "{:<22} {:>9} {:<16} {:>12} {:>9} {:>7}",
        "body", "bytes", "operation", "ns/op", "GB/s", "allocs"
    );
    events();
    for size in [1 << 10, 64 << 10, 1 << 20] {
        for (name, body) in [
            ("prose", chat(&prose(size), "")),
            ("code with escapes", chat(&code(size), "")),
            (
                "chinese, streamed",
                chat(&"预填充与解码分离。".repeat(size / 27), r#","stream":true"#),
            ),
            ("many turns", turns(size)),
            ("token ids", tokens(size)),
        ] {
            let endpoint = if name == "token ids" { Endpoint::Completions } else { Endpoint::Chat };
            let body = Bytes::from(body);
            let parsed = Request::parse(endpoint, body.clone()).expect("the body is good");
            measure(name, &body, "parse", || {
                black_box(Request::parse(endpoint, black_box(body.clone())).is_ok());
            });
            measure(name, &body, "inject", || {
                black_box(inject(&parsed));
            });
            measure(name, &body, "both", || {
                let request = Request::parse(endpoint, black_box(body.clone()));
                black_box(request.map(|request| inject(&request)).is_ok());
            });
            measure(name, &body, "serde_json::Value", || {
                black_box(round_trip(black_box(&body)));
            });
        }
    }
}

/// One chat event as the engine sends it: split off its chunk, looked at, merged as one of n.
fn events() {
    let event = concat!(
        r#"data: {"id":"00000000000000000000000000000007","object":"chat.completion.chunk","#,
        r#""created":1763712000,"model":"Qwen/Qwen3-32B","choices":[{"index":0,"delta":"#,
        r#"{"reasoning_content":null,"content":" token"},"logprobs":null,"finish_reason":null,"#,
        r#""matched_stop":null}]}"#,
        "\n\n"
    );
    let event = Bytes::from(event);
    let mut splitter = sse::Splitter::default();
    measure("event", &event, "split", || {
        splitter.push(event.clone());
        while black_box(splitter.next()).is_some() {}
    });
    measure("event", &event, "look for a fault", || {
        black_box(fault::event_fault(Endpoint::Chat, black_box(&event)));
    });
    let mut stream = merge::StreamMerger::new(Endpoint::Chat, 4);
    measure("event", &event, "merge, one of 4", || {
        black_box(stream.push(3, black_box(&event)).is_ok());
    });
}

fn inject(request: &Request) -> Pair<SplicedBody> {
    request.inject(&Attempt {
        bootstrap: &BootstrapAddress { host: String::new(), port: 8998 },
        rooms: &[Room::from_random(0x1234_5678_9abc_def0)],
        rids: &[Rid::from_random(7)],
        dp: Pair::default(),
    })
}

/// What a gateway does that reads the body into a tree: one tree, one text for both legs.
fn round_trip(body: &[u8]) -> Vec<u8> {
    let mut tree: serde_json::Value = serde_json::from_slice(body).expect("the body is good");
    tree["bootstrap_host"] = "".into();
    tree["bootstrap_port"] = 8998.into();
    tree["bootstrap_room"] = 0x1234_5678_9abc_def0_u64.into();
    tree["rid"] = "00000000000000000000000000000007".into();
    serde_json::to_vec(&tree).expect("a tree can be written")
}

fn measure(name: &str, body: &[u8], operation: &str, mut run: impl FnMut()) {
    let measure::Cost { ns, allocations } = measure::cost(|_| run());
    println!(
        "{name:<22} {:>9} {operation:<16} {ns:>12.0} {:>9.2} {allocations:>7.0}",
        body.len(),
        body.len() as f64 / ns,
    );
}

fn chat(content: &str, more: &str) -> String {
    format!(
        r#"{{"model":"Qwen/Qwen3-32B","messages":[{{"role":"system","content":"You are helpful."}},{{"role":"user","content":"{content}"}}],"temperature":0.70,"top_p":0.95,"max_tokens":512{more}}}"#
    )
}

fn prose(size: usize) -> String {
    "Prefill computes the prompt; decode writes the answer, token after token. ".repeat(size / 74)
}

fn code(size: usize) -> String {
    r#"fn main() {\n    println!(\"{}\", 42);\n}\n"#.repeat(size / 42)
}

fn turns(size: usize) -> String {
    let turn = r#"{"role":"user","content":"And what then? Say more."},{"role":"assistant","content":"More."}"#;
    let all = vec![turn; size / turn.len()].join(",");
    format!(r#"{{"model":"m","messages":[{all}],"stream":false}}"#)
}

fn tokens(size: usize) -> String {
    let ids: Vec<String> =
        (0..size / 6).map(|i| (10_000 + i * 7919 % 90_000).to_string()).collect();
    format!(r#"{{"model":"m","prompt":[{}],"max_tokens":16}}"#, ids.join(","))
}
