//! Frames there and back, and bytes that are none.

use proptest::prelude::*;

use super::*;
use crate::provenance::{Measured, Provenance};

fn value(max: f32) -> impl Strategy<Value = Measured<f32>> {
    let provenance = prop_oneof![
        Just(Provenance::Unknown),
        Just(Provenance::Estimated),
        Just(Provenance::Exact)
    ];
    (0.0..=max, provenance).prop_map(|(value, provenance)| Measured { value, provenance })
}

fn pod() -> impl Strategy<Value = PodRecord> {
    let counts = (any::<u64>(), 0u32..5_000, 0u32..1_000_000, 0u64..1 << 40);
    let values = prop::collection::vec(value(1e10), 11);
    (counts, values, value(1.0))
        .prop_map(|((pod, in_flight, age_us, waiting_bytes), v, score)| PodRecord {
            pod,
            age_us,
            in_flight,
            waiting: in_flight / 2,
            streaming: in_flight / 3,
            waiting_bytes,
            request_bytes: pod,
            kv_tx_bytes: waiting_bytes,
            ttft: LatencyRecord {
                mean_us: v[0].value,
                p99_us: v[1].value.min(1e9),
                samples: in_flight,
            },
            itl: LatencyRecord::default(),
            tx_bytes_per_s: v[0],
            rx_bytes_per_s: v[1],
            retransmits_per_s: v[2],
            kv_tx_bytes_per_s: v[3],
            kv_rx_bytes_per_s: v[4],
            rdma_tx_bytes_per_s: v[5],
            rdma_rx_bytes_per_s: v[6],
            link_bytes_per_s: v[7],
            link_tx_used_bytes_per_s: v[8],
            link_rx_used_bytes_per_s: v[9],
            score,
        })
        .prop_map(|mut pod| {
            pod.ttft.mean_us = pod.ttft.mean_us.min(1e9);
            pod
        })
}

fn pair() -> impl Strategy<Value = PairRecord> {
    let key = (any::<u64>(), any::<u64>(), 0usize..5).prop_map(|(pod, peer, class)| {
        use Class::{Bootstrap, Engine, Kv, KvControl, Other};
        PairId { pod, peer, class: [Other, Engine, Bootstrap, Kv, KvControl][class] }
    });
    (key, 0u32..1_000_000, 0.0f32..1e10, value(1e9), value(1e10)).prop_map(
        |(key, age_us, rate, rtt_us, transfer_bytes_per_s)| PairRecord {
            key,
            age_us,
            open: age_us % 7,
            tx_bytes_per_s: rate,
            rx_bytes_per_s: rate / 2.0,
            retransmits_per_s: 0.0,
            rtt_us,
            transfer_bytes_per_s,
            transfer_us: age_us,
        },
    )
}

fn rooms_of(rooms: &[u64]) -> Vec<RoomRecord> {
    let outcomes = [RoomOutcome::Open, RoomOutcome::SuccessOfSeen, RoomOutcome::Aborted];
    let sides = [RoomSide::Prefill, RoomSide::Decode];
    let of = |(at, room): (usize, &u64)| RoomRecord {
        room: *room,
        pod: room / 2,
        side: sides[at % 2],
        outcome: outcomes[at % 3],
        admitted_us: room >> 12,
        ended_us: at as u64,
    };
    rooms.iter().enumerate().map(of).collect()
}

fn frame() -> impl Strategy<Value = Frame> {
    let lists = (
        prop::collection::vec(pod(), 0..20),
        prop::collection::vec(pair(), 0..20),
        prop::collection::vec(("[a-zé]{0,20}", value(1e10), value(1.0)), 0..4),
        prop::collection::vec(any::<u64>(), 0..5),
    );
    let body = (0u8..3, "[a-z0-9.-]{0,60}", lists);
    (any::<[u64; 3]>(), 0u32..1_000_000, body).prop_map(|(numbers, read_age_us, body)| {
        let (kind, node, (pods, pairs, devices, gone_pods)) = body;
        let devices = devices.into_iter().map(|(name, rate, utilisation)| DeviceRecord {
            name,
            kind: DeviceKind::Rdma,
            tx_bytes_per_s: rate,
            utilisation,
            ..DeviceRecord::default()
        });
        let devices = devices.collect();
        let gone_pairs = pairs.iter().map(|pair| pair.key.clone()).collect();
        let body = match kind {
            0 => Body::Heartbeat,
            1 => Body::Full(LoadReport { node, pods, pairs, devices }),
            _ => {
                let rooms = rooms_of(&gone_pods);
                Body::Delta(Delta { pods, pairs, devices, gone_pods, gone_pairs, rooms })
            }
        };
        let [instance, sequence, sent_us] = numbers;
        Frame { instance, sequence, sent_us, read_age_us, body }
    })
}

proptest! {
    #[test]
    fn a_frame_comes_back_from_its_bytes_however_they_are_cut(
        frames in prop::collection::vec(frame(), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut all = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut all));
        let at = cut.index(all.len() + 1);
        let mut stream = BytesMut::from(&all[..at]);
        let mut read = Vec::new();
        for piece in [&all[at..], &[]] {
            while let Some(bytes) = split_frame(&mut stream).unwrap() {
                read.push(decode(&bytes).unwrap());
            }
            stream.extend_from_slice(piece);
        }
        prop_assert_eq!(read, frames);
        prop_assert!(stream.is_empty());
    }

    #[test]
    fn bytes_that_are_no_frame_are_refused_and_never_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        frame in frame(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        crate::laws::frame(&bytes);
        crate::laws::frame(&[&[VERSION, 1][..], &bytes].concat());
        let mut stream = BytesMut::new();
        frame.encode(&mut stream);
        for (at, byte) in flips {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        crate::laws::frame(&stream);
    }
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out[4..].to_vec()
}

#[test]
fn what_is_wrong_is_named() {
    let pod = PodRecord { score: Measured::exact(0.5), ..PodRecord::default() };
    let report = LoadReport { pods: vec![pod], ..LoadReport::default() };
    let good = encoded(&Frame { body: Body::Full(report), ..Frame::default() });
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        decode(&bad).unwrap_err()
    };
    assert_eq!(with(0, &[9]), FrameError::Version(9));
    assert_eq!(with(1, &[9]), FrameError::Unknown { field: "kind of frame", value: 9 });
    // The score is the last field of the only pod, before two empty lists.
    let score = good.len() - 8 - 4;
    assert_eq!(with(score, &1.5f32.to_le_bytes()), FrameError::OutOfRange("score"));
    assert_eq!(with(score, &f32::NAN.to_le_bytes()), FrameError::OutOfRange("score"));
    let many = u32::MAX.to_le_bytes();
    let limit = MAX_PAIRS;
    let count = u32::MAX as usize;
    assert_eq!(with(good.len() - 8, &many), FrameError::TooMany { field: "pairs", count, limit });
    assert_eq!(decode(&good[..good.len() - 1]).unwrap_err(), FrameError::Truncated("devices"));
    assert_eq!(decode(&[&good[..], &[0]].concat()).unwrap_err(), FrameError::Trailing(1));
    let mut long = BytesMut::from(&many[..]);
    assert_eq!(split_frame(&mut long), Err(FrameError::TooLong(count)));
}

#[test]
fn what_was_never_measured_is_sent_as_unknown_and_limits_hold_at_the_sender_too() {
    let broken = PodRecord {
        itl: LatencyRecord { mean_us: f32::NAN, ..LatencyRecord::default() },
        tx_bytes_per_s: Measured::exact(f32::INFINITY),
        score: Measured::exact(3.0),
        ..PodRecord::default()
    };
    let report = LoadReport {
        node: "é".repeat(300),
        pods: vec![broken; MAX_PODS + 5],
        ..LoadReport::default()
    };
    let Body::Full(read) =
        decode(&encoded(&Frame { body: Body::Full(report), ..Frame::default() })).unwrap().body
    else {
        panic!("a full report")
    };
    assert_eq!((read.node.len(), read.pods.len()), (252, MAX_PODS));
    assert_eq!(read.pods[0].itl.mean_us, 0.0);
    assert_eq!(read.pods[0].tx_bytes_per_s, Measured::unknown());
    assert_eq!(read.pods[0].score, Measured::exact(1.0));
    assert_eq!(Measured::<f32>::unknown().value(), None);
}
