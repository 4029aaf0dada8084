//! Which buckets of the histograms count which times.

use std::path::Path;
use std::time::Duration;

use netns::{Node, Topology};
use pd_router::agent::bpf::maps::Maps;
use router_common::flow::PodHttp;
use router_common::histogram::{bucket, floor_us};
use router_tests::agent::{Agent, count, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{joined, listen};

use crate::requests::{CHUNKED, by_packets, pass};
use crate::watch::Watch;

/// What stands between a packet's timestamp and the program's clock, on a busy machine too.
const APART: Duration = Duration::from_millis(1);

/// The buckets that the times were counted in, smallest first.
fn counted(buckets: &[u64]) -> Vec<usize> {
    let each = buckets.iter().enumerate();
    each.flat_map(|(index, times)| std::iter::repeat_n(index, *times as usize)).collect()
}

/// Each time as the wire had it is within the bounds of the bucket that counted it.
fn fits(what: &str, buckets: &[u64], mut times: Vec<Duration>) {
    times.sort_unstable();
    let counted = counted(buckets);
    assert_eq!(counted.len(), times.len(), "{what}: {counted:?} are not as many as {times:?}");
    let us = |time: Duration| u64::try_from(time.as_micros()).expect("a short time");
    for (index, time) in counted.iter().zip(&times) {
        let possible = bucket(us(time.saturating_sub(APART)))..=bucket(us(*time + APART));
        assert!(
            possible.contains(index),
            "{what}: {time:?} was counted from {} us on",
            floor_us(*index)
        );
    }
}

#[test]
fn each_time_is_counted_in_the_bucket_that_holds_it() {
    const FIRST: [u64; 4] = [9, 36, 70, 280];
    const NEXT: [u64; 5] = [6, 18, 22, 45, 150];
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let watch = Watch::start(&node, &one.link);
    let (client, server) = joined(&node.outside, &listener);
    let sleep = |ms| std::thread::sleep(Duration::from_millis(ms));
    for first in FIRST {
        pass(&client, &server, b"POST /generate HTTP/1.1\r\n\r\n");
        sleep(first);
        pass(&server, &client, CHUNKED);
        pass(&server, &client, b"5\r\nhello\r\n");
        for next in NEXT {
            sleep(next);
            pass(&server, &client, b"5\r\nhello\r\n");
        }
        sleep(1);
        pass(&server, &client, b"0\r\n\r\n");
    }
    agent.until("all over", |loads| count(&pod(loads, "p0")["finished"]) == FIRST.len() as u64);
    let (ttft, itl) = by_packets(&watch.stop());
    assert_eq!((ttft.len(), itl.len()), (FIRST.len(), FIRST.len() * (NEXT.len() + 1)));
    let http: PodHttp = node.netns.run(|| {
        let maps = Maps::open(Path::new("/sys/fs/bpf/pd-router")).expect("the agent's maps");
        let (_, known) = maps.pods.all(10).expect("reading").remove(0);
        maps.pod_http.get(&known.id).expect("reading").expect("an entry")
    });
    fits("ttft", &http.ttft_us, ttft);
    fits("itl", &http.itl_us, itl);
}
