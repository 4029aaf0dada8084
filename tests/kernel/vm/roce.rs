//! RoCEv2 on the wire: what XDP counts of WRITEs and READs is what perftest moved, to the byte.

use serde_json::Value;

use super::found;
use super::rig::{CLIENT, Rig, SERVER, pod};
use crate::agent::Agent;

/// What one run of perftest moves.
const MESSAGES: u64 = 100;
const SIZE: u64 = 65_536;
/// Runs until one in which the wire lost nothing: a busy machine may drop, and RDMA then repeats.
const RUNS: usize = 8;

/// Few at once and patient, so that nothing is sent twice.
fn perftest(program: &str, device: &str, peer: &str) -> String {
    format!("{program} -d {device} -x 1 -F -n {MESSAGES} -s {SIZE} -t 8 -u 20 {peer}")
}

/// Sums of a counter over the queue pairs that one end sends to the other.
fn counted(rig: &Rig, way: (&str, &str), field: &str) -> u64 {
    let text = rig.node.space.sh("bpftool -j map dump pinned /sys/fs/bpf/pd-router/QUEUE_PAIRS");
    let entries: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let mapped = |address: &str| -> Value {
        let v4: std::net::Ipv4Addr = address.parse().expect("an address");
        v4.to_ipv6_mapped().octets().to_vec().into()
    };
    let (from, to) = (mapped(way.0), mapped(way.1));
    let entries = entries.iter().map(|entry| &entry["formatted"]);
    let ours =
        entries.filter(|entry| entry["key"]["source"] == from && entry["key"]["destination"] == to);
    ours.map(|entry| entry["value"][field].as_u64().expect("a count")).sum()
}

fn repeated(rig: &Rig) -> u64 {
    const SIGNS: [&str; 3] = ["duplicate_request", "out_of_seq_request", "completer_retry_err"];
    let of = |device| {
        let all = rig.statistic(device);
        SIGNS.iter().map(|sign| all[sign].as_u64().expect("a counter")).sum::<u64>()
    };
    of("rxe0") + of("rxe1")
}

/// Runs perftest until nothing was repeated; by how much each counter then grew.
fn moved(rig: &Rig, program: &str, fields: &[((&str, &str), &str)]) -> Vec<u64> {
    for _ in 0..RUNS {
        let all = || -> Vec<u64> { fields.iter().map(|(way, f)| counted(rig, *way, f)).collect() };
        let (before, repeats) = (all(), repeated(rig));
        let server = perftest(program, "rxe1", "");
        rig.traffic((0, 1), &server, &perftest(program, "rxe0", SERVER));
        if repeated(rig) == repeats {
            return all().iter().zip(before).map(|(after, before)| after - before).collect();
        }
    }
    panic!("the wire lost packets in each of {RUNS} runs");
}

#[test]
fn writes_and_reads_by_xdp_are_what_perftest_moved() {
    let rig = Rig::new();
    let pods = [pod(0, "p0", CLIENT, "prefill"), pod(1, "d0", SERVER, "decode")];
    let flags = ["--xdp", "native", "--uplink", "wa", "--uplink", "wb"];
    let agent = Agent::start_with(&rig.node, &pods, &flags);
    let loads = agent.loads();
    let devices = loads["devices"].as_array().expect("devices");
    for link in ["wa", "wb"] {
        let by = devices.iter().find(|device| device["name"] == link).map(|device| &device["by"]);
        assert_eq!(by, Some(&"xdp native".into()), "{loads:#}");
    }
    let (there, back) = ((CLIENT, SERVER), (SERVER, CLIENT));
    let writes = [(there, "writes"), (there, "write_bytes"), (there, "payload_bytes")];
    let bytes = MESSAGES * SIZE;
    assert_eq!(moved(&rig, "ib_write_bw", &writes), [MESSAGES, bytes, bytes]);
    found("RoCEv2 WRITE bytes by XDP", format!("{bytes} of {bytes}"));
    let reads = [(there, "reads"), (there, "read_bytes"), (back, "payload_bytes")];
    assert_eq!(moved(&rig, "ib_read_bw", &reads), [MESSAGES, bytes, bytes]);
    found("RoCEv2 READ bytes by XDP", format!("{bytes} of {bytes}"));
    // Connected by the connection manager, which rping needs: both ends' messages are seen.
    let before = [there, back].map(|way| counted(&rig, way, "messages"));
    let client = format!("rping -c -a {SERVER} -I {CLIENT} -C 10 -S 64");
    rig.traffic((0, 1), &format!("rping -s -a {SERVER} -C 10"), &client);
    for (way, before) in [there, back].into_iter().zip(before) {
        assert!(counted(&rig, way, "messages") >= before + 10, "rping's messages {way:?}");
    }
    found("rping", "seen both ways");
}
