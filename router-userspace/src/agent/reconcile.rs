//! Makes the maps and the attached programs match the pods: at the start, and at every change.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, anyhow};
use router_common::flow::{CLASS_ENGINE, PairKey, ProgramSettings};
use router_common::maps::LAYOUT;
use tokio::sync::watch;
use tracing::{info, warn};

use super::attachments;
use super::counters::coverage::{Moved, PodBytes};
use super::host::capabilities;
use super::host::netlink::InterfaceCounters;
use super::node_info::NodeInfo;
use super::pods::registered_pod::RegisteredPod;
use super::pods::{control_ports, existing_connections};
use super::rdma::netlink::KernelNetlink;
use super::rdma::{HostPaths, Rdma, RdmaWatcher};
use super::{Agent, PortUpdate};

/// Length of an Ethernet header without tags.
const ETHERNET_BYTES: u64 = 14;

impl Agent {
    /// Writes the settings and the pods, attaches the programs, then enters the connections that
    /// existed before. In this order no connection is counted twice.
    pub(super) fn start(&mut self, cgroup: io::Result<PathBuf>) {
        let cgroup = cgroup.context("no cgroup2");
        let directory = || cgroup.as_ref().map_err(|error| anyhow!("{error:#}"));
        // First, so that no packet of a pod is seen on its interface alone.
        let at_sockets = directory().and_then(|cgroup| self.programs.attach_cgroup_skb(cgroup));
        self.registry.set_at_sockets(at_sockets.is_ok());
        let settings = |sock_ops| ProgramSettings {
            layout: LAYOUT,
            sock_ops,
            kv_first: self.flags.kv_ports.0,
            kv_last: self.flags.kv_ports.1,
            generation: 0,
            cgroup_skb: at_sockets.is_ok().into(),
        };
        // Written before sock_ops is attached: the tracepoint must not count the same connections.
        let with_sock_ops = settings(1);
        let without_sock_ops = settings(0);
        if let Err(error) = at_sockets {
            self.programs.detach_cgroup_skb();
            self.missing.push(format!(
                "cgroup_skb: {error:#}; requests are counted on interfaces: those whose packets pass \
                 no interface of the node are not"
            ));
        }
        self.write_settings(with_sock_ops);
        self.pods = self.source.poll();
        self.reconcile(false);
        let sock_ops = directory().and_then(|cgroup| self.programs.attach_sock_ops(cgroup));
        if let Err(error) = sock_ops {
            self.programs.detach_sock_ops();
            self.write_settings(without_sock_ops);
            self.missing.push(format!(
                "sock_ops: {error:#}; bytes, round trips and retransmits per peer are not counted"
            ));
        }
        if let Err(error) = self.programs.attach_sock_state() {
            let hint = if capabilities::perf_events_need_sys_admin() {
                " (kernel.perf_event_paranoid is above 2, which requires CAP_SYS_ADMIN)"
            } else {
                ""
            };
            self.missing.push(format!(
                "inet_sock_set_state: {error:#}{hint}; ends of older connections are not counted"
            ));
        }
        if let Err(error) = capabilities::drop_attach_only() {
            self.missing.push(format!("privileges that are not needed cannot be dropped: {error}"));
        }
        self.start_rdma();
        self.reconcile(true);
        for missing in &self.missing {
            warn!(missing, "not measured");
        }
    }

    fn start_rdma(&mut self) {
        let paths = HostPaths { sysfs: self.flags.sysfs.clone(), ..HostPaths::default() };
        let speeds = self.flags.rdma_speed.clone();
        let mut rdma = Rdma::new(Box::new(KernelNetlink::default()), &paths, speeds);
        rdma.set_page_bytes(self.flags.kv_page_bytes);
        match RdmaWatcher::start(rdma) {
            Ok(watcher) => {
                self.state.lock().rdma = Some(watcher);
            }
            Err(error) => self.missing.push(format!("RDMA: cannot start its thread: {error}")),
        }
    }

    fn write_settings(&mut self, mut settings: ProgramSettings) {
        // Sockets that were looked up under other settings are looked up again.
        let before = self.maps.settings.get(&0).ok().flatten().unwrap_or_default();
        settings.generation = before.generation.wrapping_add(1);
        if let Err(error) = self.maps.settings.set(&0, &settings) {
            self.missing.push(format!("settings cannot be written: {error}"));
        }
    }

    /// Makes the maps and the attached programs match the pods. With `enter_existing`, connections
    /// that are older than the programs are entered even if no pod is new; the programs must be
    /// attached by then.
    pub(super) fn reconcile(&mut self, enter_existing: bool) {
        self.must_enter_existing |= enter_existing;
        let Some(pods) = &self.pods else { return };
        let plan = match attachments::plan(&self.flags, pods) {
            Ok(plan) => plan,
            // An empty plan would detach every program and delete every pod's counters. The next
            // reconciliation tries again.
            Err(error) => {
                warn!(%error, "cannot list interfaces; nothing is changed");
                return;
            }
        };
        let mut uncounted = plan.uncounted_pods.clone();
        uncounted.extend(self.pods_bypassing_interfaces());
        uncounted.extend(self.compare_sources());
        if uncounted != self.uncounted_pods {
            uncounted.iter().for_each(|reason| warn!(reason, "pod not counted"));
            self.uncounted_pods = uncounted;
        }
        self.attachments.reconcile(&plan, &self.flags, &mut self.programs, &self.maps);
        let new_pods = match self.registry.sync(&self.maps, plan.placed) {
            Ok(new_pods) => new_pods,
            Err(error) => {
                warn!(%error, "cannot write pods to the maps");
                return;
            }
        };
        if std::mem::take(&mut self.must_enter_existing) || !new_pods.is_empty() {
            match existing_connections::enter(&self.maps, &self.registry) {
                Ok(0) => {}
                Ok(count) => info!(count, "existing connections entered"),
                // The next reconciliation tries again.
                Err(error) => {
                    self.must_enter_existing = true;
                    warn!(%error, "cannot enter existing connections");
                }
            }
            self.read(|sampler, maps| sampler.read_preexisting(maps));
        }
        let mut pods: Vec<RegisteredPod> = self.registry.pods().cloned().collect();
        pods.sort_by_key(|pod| pod.id);
        let node = NodeInfo {
            pods,
            learned_ports: self.registry.learned_ports.clone(),
            interfaces: self.attachments.interfaces.clone(),
            missing: self.missing.iter().chain(&self.uncounted_pods).cloned().collect(),
            name: self.flags.node_name.clone(),
        };
        self.request_ports(&node.pods);
        self.state.lock().set_node(node, &self.flags.link_speed);
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Local pods whose sockets move bytes while no interface of the node shows their packets.
    fn pods_bypassing_interfaces(&self) -> Vec<String> {
        let state = self.state.lock();
        let sampler = &state.sampler;
        let has_socket_bytes = |id: u32| {
            // A pod's connections to itself pass no interface.
            let own = sampler.pairs.iter().filter(|(key, _)| key.pod == id && key.peer != id);
            own.map(|(_, pair)| pair.stats.tx_bytes + pair.stats.rx_bytes).sum::<u64>() > 0
        };
        let has_no_packets = |id| {
            let traffic = sampler.pods.get(&id).map(|pod| pod.traffic);
            traffic.is_some_and(|traffic| traffic.rx_packets + traffic.tx_packets == 0)
        };
        let local = self.registry.pods().filter(|pod| pod.placed.local);
        local
            .filter(|pod| {
                !pod.placed.pod.host_network && has_no_packets(pod.id) && has_socket_bytes(pod.id)
            })
            .map(|pod| {
                let requests = match pod.by_interface {
                    true => "requests and latencies are not counted either",
                    false => "its requests are counted at its sockets",
                };
                format!(
                    "{}: its connections move bytes, but no interface of the node shows its packets \
                     (an interface of its own?): packets are not counted, {requests}",
                    pod.placed.pod.name
                )
            })
            .collect()
    }

    /// Compares what the sockets of local pods report with what the programs saw. Returns the pods that
    /// no program sees, and decides which pods have no sockets on this node.
    fn compare_sources(&mut self) -> Vec<String> {
        let now = Instant::now();
        let local: Vec<RegisteredPod> =
            self.registry.pods().filter(|pod| pod.placed.local).cloned().collect();
        let (mut reasons, mut unseen) = (Vec::new(), HashSet::new());
        // Connections without space in the map are reported when they close.
        let reports_at_end = self.state.lock().sampler.losses.connections > 0;
        for pod in &local {
            let Some(bytes) = self.pod_bytes(pod) else { continue };
            let verdict = self.coverage.observe(pod.id, &bytes, reports_at_end, now);
            if let Some((count, cause)) = verdict.unseen {
                unseen.insert(pod.id);
                reasons.push(format!(
                    "{}: its sockets moved {count} bytes that no program saw; {}: its requests and \
                     latencies are unknown",
                    pod.placed.pod.name,
                    cause.describe()
                ));
            }
            let has_none = match pod.by_interface {
                true => bytes.sent.seen_at_sockets == 0,
                false => verdict.has_no_sockets,
            };
            self.registry.set_without_sockets(&pod.placed.pod.uid, has_none);
        }
        self.coverage.retain(self.registry.local());
        self.state.lock().sampler.unseen = unseen;
        reasons
    }

    /// What independent sources say of the bytes of a pod. `None` until they have been read.
    fn pod_bytes(&mut self, pod: &RegisteredPod) -> Option<PodBytes> {
        let ifindex = pod.placed.ifindex;
        let is_own = ifindex != 0 && !pod.placed.pod.host_network;
        let link = if is_own { self.netlink.counters(ifindex).ok().flatten() } else { None };
        let state = self.state.lock();
        let traffic = state.sampler.pods.get(&pod.id)?.traffic;
        // Connections to itself pass no interface, but requests to its own engine count.
        let counts =
            |key: &PairKey| key.pod == pod.id && (key.peer != pod.id || key.class == CLASS_ENGINE);
        let pairs = state.sampler.pairs.iter().filter(|(key, _)| counts(key));
        let (sent, received) = pairs.fold((0, 0), |(sent, received), (_, pair)| {
            (sent + pair.stats.tx_bytes, received + pair.stats.rx_bytes)
        });
        // The host's end receives what the pod sends, and counts Ethernet headers as well.
        let sent_on_link = |link: InterfaceCounters| {
            link.rx_bytes.saturating_sub(ETHERNET_BYTES * link.rx_packets)
        };
        Some(PodBytes {
            sent: Moved {
                sockets: sent,
                seen_at_sockets: traffic.socket_tx_payload,
                seen_on_interface: traffic.tx_payload,
            },
            received: Moved {
                sockets: received,
                seen_at_sockets: traffic.socket_rx_payload,
                seen_on_interface: traffic.rx_payload,
            },
            interface: link.map(|link| (sent_on_link(link), traffic.tx_bytes)),
            by_interface: pod.by_interface,
        })
    }

    /// Sets which ports the tasks look for: control ports of every prefill if a pod of this node can
    /// connect to them, and listening ports of this node's host-network pods.
    fn request_ports(&mut self, pods: &[RegisteredPod]) {
        let mut local = pods.iter().filter(|pod| pod.placed.local).peekable();
        let known = pods.iter().map(|pod| &pod.placed.pod);
        let servers = match local.peek() {
            Some(_) => control_ports::bootstrap_servers(known),
            None => Vec::new(),
        };
        let host_network = local.filter(|pod| pod.placed.pod.host_network);
        let host_network = host_network.map(|pod| Arc::clone(&pod.placed.pod.uid)).collect();
        send_if_changed(&self.bootstrap_servers, servers);
        send_if_changed(&self.host_network_pods, host_network);
        let control = &mut self.registry.learned_ports.control;
        control.retain(|uid, _| pods.iter().any(|pod| pod.placed.pod.uid == *uid));
    }

    pub(super) fn apply_ports(&mut self, update: PortUpdate) {
        let learned = &mut self.registry.learned_ports;
        match update {
            PortUpdate::Control(ports) => _ = learned.control.insert(ports.uid, ports.addresses),
            PortUpdate::Listening(ports) => learned.listening = ports,
        }
        self.reconcile(false);
    }
}

/// Replaces the watched value, and wakes its receivers if it changed.
fn send_if_changed<T: PartialEq>(sender: &watch::Sender<T>, next: T) {
    sender.send_if_modified(|last| {
        let modified = *last != next;
        *last = next;
        modified
    });
}
