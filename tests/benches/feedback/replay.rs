//! Publishers that replay the stream of a real agent for pods of their own.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use netns::Namespace;
use router_core::frame::{
    Body, Delta, Frame, LoadReport, PairRecord, PodRecord, decode, pod_id, split_frame,
};
use router_tests::site::{TOKEN, enter};

/// An agent's stream: the full frame, and the later frames with their times after it.
pub(crate) struct Recording {
    report: LoadReport,
    frames: Vec<(Duration, Frame)>,
    takes: Duration,
}

/// Subscribes to a real agent from the namespace `from` and records for `takes`.
pub(crate) fn record(from: &Namespace, agent: SocketAddr, takes: Duration) -> Recording {
    let path = from.path();
    let recorded = std::thread::spawn(move || {
        enter(&path);
        let mut stream = TcpStream::connect(agent).expect("the agent");
        // A response to HTTP/1.0 is not chunked.
        let request = format!(
            "GET /v1/loads/stream HTTP/1.0\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("asking");
        let mut bytes = BytesMut::new();
        let mut piece = [0; 1 << 16];
        let mut headless = false;
        let (mut start, mut report, mut frames) = (Instant::now(), None, Vec::new());
        while report.is_none() || start.elapsed() < takes {
            let read = stream.read(&mut piece).expect("the agent's stream");
            assert!(read > 0, "the agent ended its stream");
            bytes.extend_from_slice(&piece[..read]);
            if !headless {
                let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                    continue;
                };
                let head = bytes.split_to(end + 4);
                assert!(head.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&head));
                headless = true;
            }
            while let Some(frame) = split_frame(&mut bytes).expect("a frame") {
                let frame = decode(&frame).expect("a frame");
                match frame.body {
                    Body::Full(full) if report.is_none() => {
                        (start, report) = (Instant::now(), Some(full));
                    }
                    _ => frames.push((start.elapsed(), frame)),
                }
            }
        }
        Recording { report: report.expect("a report comes first"), frames, takes }
    });
    recorded.join().expect("the recorder")
}

impl Recording {
    pub(crate) fn frames_a_second(&self) -> f64 {
        self.frames.len() as f64 / self.takes.as_secs_f64()
    }

    pub(crate) fn pods_a_second(&self) -> f64 {
        let pods = self.frames.iter().map(|(_, frame)| match &frame.body {
            Body::Delta(delta) => delta.pods.len(),
            Body::Full(report) => report.pods.len(),
            Body::Heartbeat => 0,
        });
        pods.sum::<usize>() as f64 / self.takes.as_secs_f64()
    }

    /// The recording with the names of other pods. Records of pods without a new name are left out.
    fn of(&self, names: &HashMap<u64, u64>) -> (LoadReport, Vec<(Duration, Body)>) {
        let report = LoadReport {
            node: self.report.node.clone(),
            pods: pods(&self.report.pods, names),
            pairs: pairs(&self.report.pairs, names),
            devices: self.report.devices.clone(),
        };
        let bodies = self.frames.iter().map(|(at, frame)| {
            let body = match &frame.body {
                Body::Heartbeat => Body::Heartbeat,
                Body::Full(_) => Body::Full(report.clone()),
                Body::Delta(delta) => Body::Delta(Delta {
                    pods: pods(&delta.pods, names),
                    pairs: pairs(&delta.pairs, names),
                    devices: delta.devices.clone(),
                    ..Delta::default()
                }),
            };
            (*at, body)
        });
        (report.clone(), bodies.collect())
    }
}

fn pods(pods: &[PodRecord], names: &HashMap<u64, u64>) -> Vec<PodRecord> {
    let known = pods.iter().filter_map(|record| {
        names.get(&record.pod).map(|pod| PodRecord { pod: *pod, ..record.clone() })
    });
    known.collect()
}

fn pairs(pairs: &[PairRecord], names: &HashMap<u64, u64>) -> Vec<PairRecord> {
    let known = pairs.iter().filter_map(|record| {
        let mut own = record.clone();
        own.key.pod = *names.get(&record.key.pod)?;
        own.key.peer = names.get(&record.key.peer).copied().unwrap_or(record.key.peer);
        Some(own)
    });
    known.collect()
}

/// Publishes until dropped.
pub(crate) struct Publisher {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// Frames that all publishers have sent.
pub(crate) type Sent = Arc<AtomicU64>;

/// Serves at `address` in `space` what was recorded of the pods with the UIDs `of`, as of `own`.
pub(crate) fn publish(
    netns: &Namespace,
    address: SocketAddr,
    recording: &Recording,
    (of, own): (&[String], &[String]),
    sent: &Sent,
) -> Publisher {
    let names = of.iter().zip(own).map(|(of, own)| (pod_id(of), pod_id(own))).collect();
    let (report, bodies) = recording.of(&names);
    let (stop, takes, sent) = (Arc::new(AtomicBool::new(false)), recording.takes, Arc::clone(sent));
    let listener = netns.run(move || TcpListener::bind(address).expect("binding"));
    let newcomers: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let came = Arc::clone(&newcomers);
    // It ends with the program: an accept is not interrupted.
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            came.lock().expect("no thread panics while it holds the list").push(stream);
        }
    });
    let instance = u64::from(address.port()) << 32 | u64::from(address_bits(address));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let start = Instant::now();
        let frame = |sequence, body| {
            let sent_us = start.elapsed().as_micros() as u64;
            let mut bytes = BytesMut::new();
            Frame { instance, sequence, sent_us, read_age_us: 500, body }.encode(&mut bytes);
            bytes
        };
        let (mut sequence, mut listening): (u64, Vec<TcpStream>) = (1, Vec::new());
        // Publishers begin apart, as agents do.
        let mut round = start + takes.mul_f64(f64::from(address_bits(address) % 101) / 101.0);
        while !stopped.load(Ordering::Relaxed) {
            for (at, body) in &bodies {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let newcomers = std::mem::take(
                    &mut *newcomers.lock().expect("no thread panics while it holds the list"),
                );
                for mut stream in newcomers {
                    if welcome(&mut stream, &frame(sequence, Body::Full(report.clone()))).is_ok() {
                        listening.push(stream);
                    }
                }
                std::thread::sleep((round + *at).saturating_duration_since(Instant::now()));
                sequence += 1;
                let bytes = frame(sequence, body.clone());
                listening.retain_mut(|stream| stream.write_all(&bytes).is_ok());
                sent.fetch_add(listening.len() as u64, Ordering::Relaxed);
            }
            round += takes;
        }
    });
    Publisher { address, stop, thread: Some(thread) }
}

fn address_bits(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_bits(),
        SocketAddr::V6(_) => 0,
    }
}

fn welcome(stream: &mut TcpStream, report: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = [0; 4096];
    let _ = stream.read(&mut asked)?;
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.pd-router.loads\r\n\r\n")?;
    stream.write_all(report)
}
