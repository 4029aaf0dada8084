//! RDMA devices that netlink does not list, from a sysfs of the test's own: this machine has none.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use netns::{Node, Topology};
use router_tests::agent::Agent;
use router_tests::node_manifests::prefill;
use serde_json::Value;

/// A name that no device of any machine has.
const UPSTREAM: &str = "erdma_test_1";
const SILENT: &str = "siw_test_1";

struct Tree {
    folder: router_tests::folder::Folder,
}

impl Tree {
    fn port(&self, device: &str) -> PathBuf {
        self.folder.path().join("class/infiniband").join(device).join("ports/1")
    }

    /// Whole or not at all: the agent may read at any time.
    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let new = path.with_extension("new");
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(&new, path).expect("a file");
    }

    fn device(&self, name: &str, rate: &str, counters: &[(&str, u64)]) {
        let port = self.port(name);
        Tree::write(&port.join("state"), "4: ACTIVE\n");
        Tree::write(&port.join("rate"), rate);
        self.counts(name, counters);
    }

    fn counts(&self, name: &str, counters: &[(&str, u64)]) {
        for (counter, value) in counters {
            let path = self.port(name).join("hw_counters").join(counter);
            Tree::write(&path, &format!("{value}\n"));
        }
    }
}

fn device<'v>(loads: &'v Value, name: &str) -> &'v Value {
    let devices = loads["rdma"]["devices"].as_array().expect("devices");
    devices.iter().find(|device| device["device"] == name).unwrap_or(&Value::Null)
}

#[test]
fn devices_have_their_speed_and_unknown_values_are_not_zero() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let tree = Tree { folder: router_tests::folder::Folder::new("rdma") };
    let counted = [("tx_bytes_cnt", 1_000), ("rx_bytes_cnt", 2_000), ("tx_bps_limit_drop_cnt", 7)];
    tree.device(UPSTREAM, "100 Gb/sec (4X EDR)\n", &counted);
    tree.device(SILENT, "2.5 Gb/sec (1X SDR)\n", &[]);
    let sysfs = tree.folder.path().to_str().expect("a path").to_owned();
    let flags = ["--sysfs", &sysfs];
    let agent = Agent::start_with(&node, &[prefill("p0", one.address)], &flags);
    let loads = agent.until("both devices", |loads| {
        device(loads, UPSTREAM)["counters"]["tx_bytes"] == 1_000
            && device(loads, SILENT).is_object()
    });
    let found = device(&loads, UPSTREAM);
    assert_eq!((&found["driver"], &found["read_method"]), (&"erdma".into(), &"sysfs".into()));
    assert_eq!(found["speed_bits_per_second"], 100_000_000_000_u64);
    assert_eq!(found["counters"]["tx_drops_bandwidth"], 7);
    let silent = device(&loads, SILENT);
    assert_eq!(
        (&silent["bytes_provenance"], &silent["counters"]["tx_bytes"]),
        (&"unknown".into(), &Value::Null)
    );
    assert_eq!(silent["speed_bits_per_second"], Value::Null, "a placeholder is no speed");
    let missing = loads["missing"].as_array().expect("a list");
    for name in [UPSTREAM, SILENT] {
        let said = missing.iter().any(|line| line.as_str().is_some_and(|line| line.contains(name)));
        assert!(said, "{name}: {missing:#?}");
    }

    // A device that moves has a rate, and its share of the link.
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = 1_000;
            while running.load(Ordering::Relaxed) {
                bytes += 100_000_000;
                tree.counts(UPSTREAM, &[("tx_bytes_cnt", bytes)]);
                std::thread::yield_now();
            }
        });
        let end = End(&running);
        agent.until("a rate", |loads| {
            let rates = &device(loads, UPSTREAM)["rates"];
            rates["tx_bytes"]["value"].as_f64() > Some(0.0)
                && rates["tx_utilisation"]["provenance"] == "exact"
                && rates["rx_bytes"]["value"] == 0.0
        });
        drop(end);
    });
    let page = agent.metrics();
    let line = |metric: &str, name: &str| {
        let start = format!("pd_agent_rdma_device_{metric}{{device=\"{name}\",");
        page.lines().any(|line| line.starts_with(&start))
    };
    assert!(line("transmit_bytes_total", UPSTREAM), "{page}");
    assert!(!line("transmit_bytes_total", SILENT), "unknown has no line");
    assert!(line("bytes_exact", SILENT));
}

/// Ends the thread that counts, also where the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
