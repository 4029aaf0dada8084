//! Cost of encoding and decoding a load frame of 16 pods and 100 pairs: a full frame and a delta.
#![expect(unsafe_code, reason = "counting allocations takes a global allocator")]

mod measure;

use std::hint::black_box;

use bytes::BytesMut;
use router_core::frame::{
    Body, Class, Delta, Frame, LatencyRecord, LoadReport, PairId, PairRecord, PodRecord, decode,
    split_frame,
};
use router_core::provenance::Measured;

fn main() {
    println!("{:<40} {:>7} {:>9} {:>7}", "operation", "bytes", "us/op", "allocs");
    let pods: Vec<PodRecord> = (1..=16).map(pod).collect();
    let pairs: Vec<PairRecord> = (1..=100).map(pair).collect();
    let node = "gpu-node-17.example".to_owned();
    let full = LoadReport { node, pods: pods.clone(), pairs: pairs.clone(), devices: Vec::new() };
    both("all: 16 pods, 100 pairs", Body::Full(full));
    let delta = |pods: &[PodRecord], pairs: &[PairRecord]| {
        let (pods, pairs) = (pods.to_vec(), pairs.to_vec());
        Body::Delta(Delta { pods, pairs, ..Delta::default() })
    };
    both("changes: 16 pods, 100 pairs", delta(&pods, &pairs));
    both("changes: 4 pods, 8 pairs", delta(&pods[..4], &pairs[..8]));
    both("heartbeat", Body::Heartbeat);
}

fn both(name: &str, body: Body) {
    let frame = Frame { instance: 1, sequence: 2, sent_us: 3, read_age_us: 40, body };
    let mut out = BytesMut::with_capacity(1 << 16);
    measure(&format!("encode {name}"), &frame, || {
        out.clear();
        black_box(&frame).encode(&mut out);
    });
    out.clear();
    frame.encode(&mut out);
    let bytes = split_frame(&mut out).ok().flatten().expect("the frame is whole");
    measure(&format!("decode {name}"), &frame, || {
        black_box(decode(black_box(&bytes)).is_ok());
    });
}

fn measure(name: &str, frame: &Frame, mut operation: impl FnMut()) {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    let measure::Cost { ns, allocations } = measure::cost(|_| operation());
    println!("{name:<40} {:>7} {:>9.2} {allocations:>7.2}", out.len(), ns / 1000.0);
}

fn pod(pod: u64) -> PodRecord {
    PodRecord {
        pod,
        age_us: 900,
        in_flight: 40,
        waiting: 3,
        streaming: 37,
        waiting_bytes: 90_000,
        ttft: LatencyRecord { mean_us: 9e5, p99_us: 2e6, samples: 12 },
        itl: LatencyRecord { mean_us: 2e4, p99_us: 4e4, samples: 900 },
        tx_bytes_per_s: Measured::exact(4e9),
        score: Measured::exact(0.4),
        ..PodRecord::default()
    }
}

fn pair(at: u64) -> PairRecord {
    PairRecord {
        key: PairId { pod: at % 16 + 1, peer: at, class: Class::Kv },
        age_us: 900,
        open: 4,
        tx_bytes_per_s: 1e9,
        rtt_us: Measured::exact(80.0),
        transfer_bytes_per_s: Measured::exact(9e9),
        ..PairRecord::default()
    }
}
