//! Brings the maps and the interfaces up to the pods: at the start, and at every change.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use router_common::flow::Settings;
use router_common::maps::LAYOUT;
use tokio::sync::watch;
use tracing::{info, warn};

use super::attach::{self, Plan};
use super::loads::Names;
use super::rdma::netlink::KernelNetlink;
use super::rdma::{HostPaths, Rdma, RdmaWatcher};
use super::registry::Entry;
use super::{Agent, News, capabilities, learn, seed};

impl Agent {
    /// Settings, pods, programs, older connections: in the order in which nothing counts twice.
    pub(super) fn start(&mut self, cgroup: io::Result<PathBuf>) {
        let settings = |sock_ops| Settings {
            layout: LAYOUT,
            sock_ops,
            kv_first: self.flags.kv_ports.0,
            kv_last: self.flags.kv_ports.1,
        };
        // The tracepoint must not count what sock_ops is about to.
        let with = settings(1);
        let without = settings(0);
        self.told(with);
        self.pods = self.source.poll();
        self.follow(false);
        let sock_ops =
            cgroup.context("no cgroup2").and_then(|cgroup| self.programs.attach_sock_ops(&cgroup));
        if let Err(error) = sock_ops {
            self.told(without);
            self.missing.push(format!(
                "sock_ops: {error:#}; bytes, round trips and retransmits per peer are not counted"
            ));
        }
        if let Err(error) = self.programs.attach_sock_state() {
            let closed = if capabilities::events_are_closed() {
                " (kernel.perf_event_paranoid is over 2 here, which asks for CAP_SYS_ADMIN)"
            } else {
                ""
            };
            self.missing.push(format!(
                "inet_sock_set_state: {error:#}{closed}; ends of older connections are not seen"
            ));
        }
        if let Err(error) = capabilities::attached() {
            self.missing.push(format!("privileges are left that are not needed: {error}"));
        }
        let paths = HostPaths { sysfs: self.flags.sysfs.clone(), ..HostPaths::default() };
        let speeds = self.flags.rdma_speed.clone();
        let mut rdma = Rdma::new(Box::new(KernelNetlink::default()), &paths, speeds);
        rdma.page_bytes(self.flags.kv_page_bytes);
        match RdmaWatcher::start(rdma) {
            Ok(watcher) => {
                self.view.lock().rdma = Some(watcher);
            }
            Err(error) => self.missing.push(format!("RDMA: no thread can be had: {error}")),
        }
        self.follow(true);
        for missing in &self.missing {
            warn!("{missing}");
        }
    }

    fn told(&mut self, settings: Settings) {
        if let Err(error) = self.maps.settings.set(&0, &settings) {
            self.missing.push(format!("settings cannot be written: {error}"));
        }
    }

    /// Brings the maps and the interfaces up to the pods; `seeds` once the programs count.
    pub(super) fn follow(&mut self, seeds: bool) {
        let Some(pods) = &self.pods else { return };
        let plan = match attach::plan(&self.flags, pods) {
            Ok(plan) => plan,
            Err(error) => {
                warn!(%error, "interfaces are unknown");
                Plan::default()
            }
        };
        let unseen: Vec<String> = plan.unseen.iter().cloned().chain(self.apart()).collect();
        if unseen != self.unseen {
            unseen.iter().for_each(|unseen| warn!("{unseen}"));
            self.unseen = unseen;
        }
        self.attachments.follow(&plan, &self.flags, &mut self.programs, &self.maps);
        let fresh = match self.registry.sync(&self.maps, plan.placed) {
            Ok(fresh) => fresh,
            Err(error) => {
                warn!(%error, "the maps cannot be told the pods");
                return;
            }
        };
        if seeds || !fresh.is_empty() {
            match seed::seed(&self.maps, &self.registry) {
                Ok(0) => {}
                Ok(count) => info!(count, "connections older than the programs"),
                Err(error) => warn!(%error, "older connections are unknown"),
            }
            self.read(|sampler, maps| sampler.read_seeds(maps));
        }
        let mut entries: Vec<Entry> = self.registry.entries().cloned().collect();
        entries.sort_by_key(|entry| entry.id);
        let names = Names {
            entries,
            learned: self.registry.learned.clone(),
            devices: self.attachments.devices.clone(),
            missing: self.missing.iter().chain(&self.unseen).cloned().collect(),
            node: self.flags.node_name.clone(),
        };
        self.ask_for(&names.entries);
        let mut view = self.view.lock();
        view.shows(names, &self.flags.link_speed);
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Local pods whose sockets move bytes and whose packets nobody sees: they come and go past
    /// the node's interfaces.
    fn apart(&self) -> Vec<String> {
        let view = self.view.lock();
        let sampler = &view.sampler;
        let moves = |id: u32| {
            // What a pod says to itself passes no interface.
            let own = sampler.pairs.iter().filter(|(key, _)| key.pod == id && key.peer != id);
            own.map(|(_, pair)| pair.stats.tx_bytes + pair.stats.rx_bytes).sum::<u64>() > 0
        };
        let unseen = |id| {
            let traffic = sampler.pods.get(&id).map(|pod| pod.traffic);
            traffic.is_some_and(|traffic| traffic.rx_packets + traffic.tx_packets == 0)
        };
        let local = self.registry.entries().filter(|entry| entry.placed.local);
        local
            .filter(|entry| !entry.placed.pod.host_network && unseen(entry.id) && moves(entry.id))
            .map(|entry| {
                format!(
                    "{}: its connections move bytes and no interface of the node shows a packet \
                     of it (one of its own?): requests and latencies are not counted",
                    entry.placed.pod.name
                )
            })
            .collect()
    }

    /// Says whose ports are to be learned: prefills' where a pod is here to talk to them, and
    /// those of this node's pods that have the host's network.
    fn ask_for(&mut self, entries: &[Entry]) {
        let mut local = entries.iter().filter(|entry| entry.placed.local).peekable();
        let known = entries.iter().map(|entry| &entry.placed.pod);
        let bootstraps = if local.peek().is_some() { learn::bootstraps(known) } else { Vec::new() };
        let hosted = local.filter(|entry| entry.placed.pod.host_network);
        let hosted: Vec<_> = hosted.map(|entry| Arc::clone(&entry.placed.pod.uid)).collect();
        replace(&self.bootstraps, bootstraps);
        replace(&self.hosted, hosted);
        let learned = &mut self.registry.learned;
        learned.controls.retain(|uid, _| entries.iter().any(|entry| entry.placed.pod.uid == *uid));
    }

    pub(super) fn heard(&mut self, news: News) {
        let learned = &mut self.registry.learned;
        match news {
            News::Controls(told) => _ = learned.controls.insert(told.uid, told.controls),
            News::Listening(listening) => learned.listening = listening,
        }
        self.follow(false);
    }
}

/// Tells those who watch, if there is anything new.
fn replace<T: PartialEq>(place: &watch::Sender<T>, next: T) {
    place.send_if_modified(|last| {
        let modified = *last != next;
        *last = next;
        modified
    });
}
