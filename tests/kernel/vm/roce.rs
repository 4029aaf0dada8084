//! RoCEv2 on the wire: what XDP counts of WRITEs and READs is what perftest moved, to the byte, also
//! where the wire loses packets and RDMA sends them again.

use router_tests::agent::Agent;
use serde_json::Value;

use super::found;
use super::rig::{CLIENT, Loss, Rig, SERVER, pod};

/// What one run of perftest moves.
const MESSAGES: u64 = 100;
const SIZE: u64 = 65_536;
const BYTES: u64 = MESSAGES * SIZE;

type Way = (&'static str, &'static str);
const THERE: Way = (CLIENT, SERVER);
const BACK: Way = (SERVER, CLIENT);

/// Few at once, so that what is under way stays within what the counting remembers. After a loss
/// that the receiver does not report, it waits 67 ms.
fn perftest(program: &str, device: &str, peer: &str) -> String {
    format!("{program} -d {device} -x 1 -F -n {MESSAGES} -s {SIZE} -t 8 -u 14 {peer}")
}

/// Sums of a counter over the queue pairs that one end sends to the other.
fn counted(rig: &Rig, way: Way, field: &str) -> u64 {
    let text = rig.node.netns.sh("bpftool -j map dump pinned /sys/fs/bpf/pd-router/QUEUE_PAIRS");
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

/// Runs perftest; by how much each counter then grew.
fn moved(rig: &Rig, program: &str, fields: &[(Way, &str)]) -> Vec<u64> {
    let all = || -> Vec<u64> { fields.iter().map(|(way, f)| counted(rig, *way, f)).collect() };
    let before = all();
    let server = perftest(program, "rxe1", "");
    rig.traffic((0, 1), &server, &perftest(program, "rxe0", SERVER));
    all().iter().zip(before).map(|(after, before)| after - before).collect()
}

/// An agent that counts by XDP on both ends of the wire.
fn agent(rig: &Rig) -> Agent<'_> {
    let pods = [pod(0, "p0", CLIENT, "prefill"), pod(1, "d0", SERVER, "decode")];
    let flags = ["--xdp", "native", "--uplink", "wa", "--uplink", "wb"];
    let agent = Agent::start_with(&rig.node, &pods, &flags);
    let loads = agent.loads();
    let interfaces = loads["interfaces"].as_array().expect("interfaces");
    for link in ["wa", "wb"] {
        let by = interfaces
            .iter()
            .find(|interface| interface["name"] == link)
            .map(|interface| &interface["counted_by"]);
        assert_eq!(by, Some(&"xdp native".into()), "{loads:#}");
    }
    agent
}

const WRITES: [(Way, &str); 3] =
    [(THERE, "writes"), (THERE, "write_bytes"), (THERE, "payload_bytes")];
const READS: [(Way, &str); 3] = [(THERE, "reads"), (THERE, "read_bytes"), (BACK, "payload_bytes")];

#[test]
fn writes_and_reads_by_xdp_are_what_perftest_moved() {
    let rig = Rig::new();
    let _agent = agent(&rig);
    assert_eq!(moved(&rig, "ib_write_bw", &WRITES), [MESSAGES, BYTES, BYTES]);
    found("RoCEv2 WRITE bytes by XDP", format!("{BYTES} of {BYTES}"));
    assert_eq!(moved(&rig, "ib_read_bw", &READS), [MESSAGES, BYTES, BYTES]);
    found("RoCEv2 READ bytes by XDP", format!("{BYTES} of {BYTES}"));
    // Connected by the connection manager, which rping needs: both ends' messages are seen.
    let before = [THERE, BACK].map(|way| counted(&rig, way, "messages"));
    let client = format!("rping -c -a {SERVER} -I {CLIENT} -C 10 -S 64");
    rig.traffic((0, 1), &format!("rping -s -a {SERVER} -C 10"), &client);
    for (way, before) in [THERE, BACK].into_iter().zip(before) {
        assert!(counted(&rig, way, "messages") >= before + 10, "rping's messages {way:?}");
    }
    found("rping", "seen both ways");
}

#[test]
fn retransmitted_messages_count_once() {
    let rig = Rig::new();
    let _agent = agent(&rig);
    let repeats = || counted(&rig, THERE, "repeated") + counted(&rig, BACK, "repeated");
    for (side, name) in [(Loss::BeforeCounting, "before"), (Loss::BehindCounting, "behind")] {
        let wire = rig.losing(side);
        let before = repeats();
        assert_eq!(moved(&rig, "ib_write_bw", &WRITES), [MESSAGES, BYTES, BYTES], "{name}");
        // One at a time: a READ request that another overtook may be taken for the rest of it.
        let reads = moved(&rig, "ib_read_bw --outs=1", &READS);
        assert_eq!(reads, [MESSAGES, BYTES, BYTES], "{name}");
        let (lost, repeated) = (wire.lost(), repeats() - before);
        assert!(lost > 0 && repeated > 0, "{lost} lost, {repeated} repeated");
        found(&format!("RoCEv2 bytes with loss {name} XDP"), "exact");
    }
}
