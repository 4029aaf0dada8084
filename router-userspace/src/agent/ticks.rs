//! Reads and tells at every tick, serves, and hears what is learned in the meantime.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::maps::Maps;
use super::owners::{self, Listening};
use super::sampler::Sampler;
use super::{Agent, FOLLOW_EVERY, News, RATES_EVERY, learn, server};
use crate::control::POLL_INTERVAL;
use crate::feedback::publish::AgentUpdate;
use crate::token::Guard;

/// News that wait for the next tick; their tellers wait beyond that.
const MAX_NEWS: usize = 64;

impl Agent {
    /// Reads at every tick, and serves, until `shutdown`.
    pub(super) async fn serve(&mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let guard = Guard::new(self.flags.token_file.as_deref(), self.flags.without_token);
        let address = self.flags.listen;
        if !server::may_listen(address, &guard) {
            bail!("--listen {address} is not loopback: --token-file is needed");
        }
        self.read_all();
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("binding {address}"))?;
        info!(address = %listener.local_addr()?, "serving");
        let view = Arc::clone(&self.view);
        let snapshot = move || view.lock().loads();
        let publisher = self.publisher.clone();
        let ready = Arc::clone(&self.ready);
        let server = server::Server { guard, ready, snapshot, publisher }.serve(listener);
        let (controls, told) = mpsc::channel(MAX_NEWS);
        let learn = learn::learn(self.bootstraps.subscribe(), controls);
        let (listening, found) = mpsc::channel(MAX_NEWS);
        let look = owners::look(self.hosted.subscribe(), listening);
        let log = self.programs.log().context("reading what the programs tell")?;
        tokio::select! {
            () = shutdown => {}
            () = server => {}
            () = learn => {}
            () = look => {}
            () = self.ticks(told, found, log) => {}
        }
        info!("ending; programs and counters stay for the next agent");
        Ok(())
    }

    async fn ticks(
        &mut self,
        mut told: mpsc::Receiver<learn::Told>,
        mut found: mpsc::Receiver<Listening>,
        mut log: impl FnMut(),
    ) {
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            ticks
        };
        let (mut ticks, mut whole) = (every(self.flags.tick), Instant::now());
        let (mut source, mut follow) = (every(POLL_INTERVAL), every(FOLLOW_EVERY));
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    let now = Instant::now();
                    if now >= whole {
                        // At the tick that follows, so that nothing wakes for it alone.
                        whole = now.max(whole + RATES_EVERY);
                        self.read_whole();
                        self.publish();
                    } else {
                        self.read_requests();
                    }
                }
                _ = source.tick() => {
                    if let Some(pods) = self.source.poll() {
                        self.pods = Some(pods);
                        self.follow(false);
                    }
                }
                Some(told) = told.recv() => self.heard(News::Controls(told)),
                Some(found) = found.recv() => self.heard(News::Listening(found)),
                _ = follow.tick() => {
                    log();
                    self.follow(false);
                    self.sweep();
                }
            }
        }
    }

    fn read_all(&mut self) {
        self.read(|sampler, maps| sampler.read_seeds(maps));
        self.sweep();
        self.read_whole();
    }

    /// Reads everything: the pods after their pairs, so that what a pair has moved its pod has counted.
    fn read_whole(&mut self) {
        self.read(|sampler, maps| sampler.read_pairs(maps));
        self.read(|sampler, maps| sampler.read_pods(maps, self.registry.local()));
        let has_rdma = {
            let mut view = self.view.lock();
            view.read_all();
            view.has_rdma()
        };
        if has_rdma {
            self.read(|sampler, maps| sampler.queue_pairs.read(maps));
            self.view.lock().tell_rdma();
        }
    }

    /// Tells the gateways what changed.
    fn publish(&self) {
        let (report, read) = {
            let view = self.view.lock();
            (view.report(), view.sampler.read)
        };
        self.publisher.tick(AgentUpdate::Full(report), read, Instant::now());
    }

    /// Reads the pods' requests, and tells the gateways of those that have others than before.
    fn read_requests(&self) {
        let mut changed = Vec::new();
        self.read(|sampler, maps| {
            changed = sampler.read_requests(maps)?;
            Ok(())
        });
        let (records, read) = {
            let mut view = self.view.lock();
            view.read_requests(&changed);
            (view.records(&changed), view.sampler.read)
        };
        self.publisher.tick(AgentUpdate::Pods(records), read, Instant::now());
    }

    fn sweep(&mut self) {
        let (taken, has_rdma) = {
            let view = self.view.lock();
            (view.taken(), view.has_rdma())
        };
        self.read(|sampler, maps| sampler.sweep(maps, &taken));
        if !has_rdma {
            // Nobody needs them more often; else every reading of the pairs has them.
            self.read(|sampler, maps| sampler.queue_pairs.read(maps));
        }
    }

    pub(super) fn read(&self, read: impl FnOnce(&mut Sampler, &Maps) -> io::Result<()>) {
        let mut view = self.view.lock();
        if let Err(error) = read(&mut view.sampler, &self.maps) {
            warn!(%error, "the counters cannot be read");
        }
    }
}
