//! The agent's loop: reads counters and publishes them at every tick, and applies port updates.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::api::server::{self, Server};
use super::bpf::maps::Maps;
use super::counters::sampler::Sampler;
use super::pods::control_ports::{self, ControlPorts};
use super::pods::listening_ports::{self, ListeningPorts};
use super::{Agent, FULL_READ_INTERVAL, PortUpdate, RECONCILE_INTERVAL};
use crate::control::POLL_INTERVAL;
use crate::feedback::publish::AgentUpdate;
use crate::token::Guard;

/// Maximum number of port updates that wait for the loop. When it is reached, their senders wait.
const MAX_PORT_UPDATES: usize = 64;

/// Maximum number of segments that are read at a tick. The ring holds about as many.
const MAX_SEGMENTS: usize = 1_280;

/// One moment as [`Instant`] and in nanoseconds of CLOCK_MONOTONIC: of three readings that with the least
/// time between the two, since the thread may be interrupted there.
fn both_clocks() -> (Instant, u64) {
    let read = |_| {
        let now = Instant::now();
        let ns = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        (now.elapsed(), now, u64::try_from(ns.as_nanos()).unwrap_or(u64::MAX))
    };
    let [first, second, third] = [0, 1, 2].map(read);
    let (_, now, ns) = first.min(second).min(third);
    (now, ns)
}

/// The moment of a time of the kernel, by one reading of both clocks.
fn instant_of(at_ns: u64, (now, now_ns): (Instant, u64)) -> Instant {
    now.checked_sub(Duration::from_nanos(now_ns.saturating_sub(at_ns))).unwrap_or(now)
}

impl Agent {
    /// Reads at every tick, and serves, until `shutdown` is ready.
    pub(super) async fn serve(&mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let guard = Guard::new(self.flags.token_file.as_deref(), self.flags.allow_unauthenticated);
        let address = self.flags.listen;
        if !server::may_listen(address, &guard) {
            bail!("--listen {address} is not a loopback address: --token-file is required");
        }
        self.read_all();
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("binding {address}"))?;
        info!(address = %listener.local_addr()?, "serving");
        let state = Arc::clone(&self.state);
        let snapshot = move || state.lock().loads();
        let publisher = self.publisher.clone();
        let ready = Arc::clone(&self.ready);
        let server = Server { guard, ready, snapshot, publisher }.serve(listener);
        let (control_sender, control) = mpsc::channel(MAX_PORT_UPDATES);
        let control_task = control_ports::watch(self.bootstrap_servers.subscribe(), control_sender);
        let (listening_sender, listening) = mpsc::channel(MAX_PORT_UPDATES);
        let listening_task =
            listening_ports::watch(self.host_network_pods.subscribe(), listening_sender);
        let forward_log = self.programs.log().context("opening the log of the programs")?;
        tokio::select! {
            () = shutdown => {}
            () = server => {}
            () = control_task => {}
            () = listening_task => {}
            () = self.tick_loop(control, listening, forward_log) => {}
        }
        info!("stopping; programs and counters stay for the next agent");
        Ok(())
    }

    async fn tick_loop(
        &mut self,
        mut control: mpsc::Receiver<ControlPorts>,
        mut listening: mpsc::Receiver<ListeningPorts>,
        mut forward_log: impl FnMut(),
    ) {
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            ticks
        };
        let (mut ticks, mut next_full_read) = (every(self.flags.sample_interval), Instant::now());
        let (mut source, mut reconcile) = (every(POLL_INTERVAL), every(RECONCILE_INTERVAL));
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    let now = Instant::now();
                    self.read_control();
                    if now >= next_full_read {
                        // At the next tick after it is due, so that it needs no timer of its own.
                        next_full_read = now.max(next_full_read + FULL_READ_INTERVAL);
                        self.read_counters();
                        self.publish();
                    } else {
                        self.read_requests();
                    }
                }
                _ = source.tick() => {
                    if let Some(pods) = self.source.poll() {
                        self.pods = Some(pods);
                        self.reconcile(false);
                    }
                }
                Some(ports) = control.recv() => self.apply_ports(PortUpdate::Control(ports)),
                Some(ports) = listening.recv() => self.apply_ports(PortUpdate::Listening(ports)),
                _ = reconcile.tick() => {
                    forward_log();
                    self.reconcile(false);
                    self.sweep();
                }
            }
        }
    }

    fn read_all(&mut self) {
        self.read(|sampler, maps| sampler.read_preexisting(maps));
        self.sweep();
        self.read_counters();
    }

    /// Reads every counter. Pods are read after their pairs, so that a pod's bytes include those of
    /// its pairs.
    fn read_counters(&mut self) {
        self.read(|sampler, maps| sampler.read_pairs(maps));
        self.read(|sampler, maps| sampler.read_pods(maps, self.registry.local()));
        let has_rdma = {
            let mut state = self.state.lock();
            state.observe_counters();
            state.has_rdma()
        };
        if has_rdma {
            self.read(|sampler, maps| sampler.queue_pairs.read(maps));
            self.state.lock().report_activity_to_rdma();
        }
    }

    /// Reads what the programs handed up of control messages, and passes what it shows of KV transfers to
    /// the publisher, which sends it with the next update.
    fn read_control(&mut self) {
        let Some(ring) = &mut self.control_ring else { return };
        let mut state = self.state.lock();
        let mut count = 0;
        while let Some(segment) = (count < MAX_SEGMENTS).then(|| ring.pop()).flatten() {
            state.rooms.observe(&segment);
            count += 1;
        }
        // One reading for all times, so that the difference of two is exact.
        let read_at @ (_, now_ns) = both_clocks();
        if count >= MAX_SEGMENTS {
            // The ring was full or nearly so: what did not fit into it is younger than what was read.
            state.rooms.lost_segments(now_ns);
        }
        let clock_us = |at_ns| self.publisher.clock_us(instant_of(at_ns, read_at));
        let rooms = state.room_records(clock_us);
        self.publisher.add_rooms(rooms);
    }

    /// Publishes a report of everything; the publisher sends what changed.
    fn publish(&self) {
        let (report, read) = {
            let state = self.state.lock();
            (state.report(), state.sampler.read)
        };
        self.publisher.tick(AgentUpdate::Full(report), read, Instant::now());
    }

    /// Reads the requests of the pods, and publishes the pods whose request counts changed.
    fn read_requests(&self) {
        let mut changed = Vec::new();
        self.read(|sampler, maps| {
            changed = sampler.read_requests(maps)?;
            Ok(())
        });
        let (records, read) = {
            let mut state = self.state.lock();
            state.observe_requests(&changed);
            (state.records(&changed), state.sampler.read)
        };
        self.publisher.tick(AgentUpdate::Pods(records), read, Instant::now());
    }

    fn sweep(&mut self) {
        let (offloaded, has_rdma) = {
            let state = self.state.lock();
            (state.offloaded_connections(), state.has_rdma())
        };
        self.read(|sampler, maps| sampler.sweep(maps, &offloaded));
        if !has_rdma {
            // Without RDMA devices, once a second is enough; with them, `read_counters` reads these.
            self.read(|sampler, maps| sampler.queue_pairs.read(maps));
        }
    }

    pub(super) fn read(&self, read: impl FnOnce(&mut Sampler, &Maps) -> io::Result<()>) {
        let mut state = self.state.lock();
        if let Err(error) = read(&mut state.sampler, &self.maps) {
            warn!(%error, "cannot read counters");
        }
    }
}
