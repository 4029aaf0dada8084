//! Simulated engines on addresses of their own, and the manifests that name them.

use std::time::Duration;

use sglang_sim::{Abort, Action, Config, Received, Role, Script};

use crate::eventually::eventually;
use crate::gateway::Gateway;
use crate::loopback::Loopback;
use crate::manifests::{BOOTSTRAP_PORT, ENGINE_PORT, Manifests, Pod};

/// Bound for what would take the engine's timeout of 300 s if it did not work.
pub const SOON: Duration = Duration::from_secs(3);

/// One engine and its pod.
pub struct Engine {
    pub pod: Pod,
    pub address: Loopback,
    pub sim: sglang_sim::Engine,
}

/// Prefills and decodes of one pool, or ordinary servers. Dropping it ends them.
pub struct Fleet {
    pub manifests: Manifests,
    pub prefill: Vec<Engine>,
    pub decode: Vec<Engine>,
    pub unified: Vec<Engine>,
}

impl Fleet {
    /// Engines that answer at once, in the documents' pool.
    pub async fn start(prefills: usize, decodes: usize) -> Fleet {
        Fleet::start_with(prefills, decodes, Config::instant).await
    }

    /// Engines with settings that `change` makes.
    pub async fn start_with(
        prefills: usize,
        decodes: usize,
        change: impl Fn(Config) -> Config,
    ) -> Fleet {
        let mut fleet = Fleet::empty(Manifests::documents());
        for _ in 0..prefills {
            fleet.add(Role::Prefill, &change).await;
        }
        for _ in 0..decodes {
            fleet.add(Role::Decode, &change).await;
        }
        fleet
    }

    /// Ordinary servers that answer at once, in a pool without a split.
    pub async fn start_single(servers: usize) -> Fleet {
        let mut fleet = Fleet::empty(Manifests::single());
        for _ in 0..servers {
            fleet.add(Role::Unified, Config::instant).await;
        }
        fleet
    }

    fn empty(manifests: Manifests) -> Fleet {
        Fleet { manifests, prefill: Vec::new(), decode: Vec::new(), unified: Vec::new() }
    }

    /// Starts one more engine and writes its pod; `prefill-0`, `prefill-1`, ...
    pub async fn add(&mut self, role: Role, change: impl Fn(Config) -> Config) {
        let list = match role {
            Role::Prefill => &mut self.prefill,
            Role::Decode => &mut self.decode,
            Role::Unified => &mut self.unified,
        };
        let name = format!("{}-{}", role.engine_type(), list.len());
        let engine = Engine::start(&name, role, change).await;
        self.manifests.put_pod(&engine.pod);
        list.push(engine);
    }

    /// A gateway on this fleet.
    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(&[]).await
    }

    /// A gateway on this fleet, with further flags.
    pub async fn gateway_with(&self, flags: &[&str]) -> Gateway {
        let gateway = Gateway::start_with(&self.manifests, flags).await;
        self.until_engines_known(&gateway).await;
        gateway
    }

    pub fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.prefill.iter().chain(&self.decode).chain(&self.unified)
    }

    /// Waits until the gateway has read `/server_info` of every engine: only then does it know which
    /// engines fit together.
    pub async fn until_engines_known(&self, gateway: &Gateway) {
        let engines = self.engines().count();
        eventually("the gateway knows every engine", SOON, async || {
            let fleet = gateway.fleet().await.to_string();
            (fleet.matches("page_size").count() >= engines).then_some(())
        })
        .await;
    }

    /// Waits until no engine holds a request.
    pub async fn idle(&self) {
        for engine in self.engines() {
            engine.idle().await;
        }
    }
}

impl Engine {
    /// Starts an engine on an address of its own, with the documents' ports unless `change` sets others.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(name: &str, role: Role, change: impl Fn(Config) -> Config) -> Engine {
        let address = Loopback::claim();
        let mut config = Config::new(role);
        (config.host, config.port) = (address.ip(), ENGINE_PORT);
        config.bootstrap_port = BOOTSTRAP_PORT;
        let config = change(config);
        let sim = sglang_sim::Engine::start(config).await.expect("starting an engine");
        let role = match role {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Unified => "unified",
        };
        Engine { pod: Pod::new(name, role, address.ip()), address, sim }
    }

    /// Applies the action to the next request that generates.
    pub fn once(&self, action: Action) {
        self.sim.script(Script::once(action));
    }

    /// Applies the action to every request that generates, until [`Engine::heal`].
    pub fn always(&self, action: Action) {
        self.sim.script(Script::always(action));
    }

    pub fn script(&self, script: Script) {
        self.sim.script(script);
    }

    /// Ends all scripts and thaws what is frozen.
    pub fn heal(&self) {
        self.sim.clear_scripts();
    }

    /// The requests that generate, in the order of arrival.
    #[must_use]
    pub fn legs(&self) -> Vec<Received> {
        let generates = |path: &str| {
            [
                "/generate",
                "/v1/chat/completions",
                "/v1/completions",
                "/v1/responses",
                "/v1/messages",
            ]
            .contains(&path)
        };
        self.sim.received().into_iter().filter(|leg| generates(leg.path())).collect()
    }

    /// Everything that arrived, probes included.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.sim.received()
    }

    #[must_use]
    pub fn aborts(&self) -> Vec<Abort> {
        self.sim.aborts()
    }

    /// Number of requests that it has now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.sim.occupancy().legs
    }

    /// Waits until `count` requests that generate have arrived, and returns them.
    pub async fn legs_arrived(&self, count: usize) -> Vec<Received> {
        let what = format!("{count} requests at {}", self.pod.name);
        eventually(&what, Duration::from_secs(30), async || {
            let legs = self.legs();
            (legs.len() >= count).then_some(legs)
        })
        .await
    }

    /// Waits until the leg has been aborted by its name, well before a mere disconnect is noticed.
    pub async fn abort_arrived(&self, leg: &Received) {
        self.abort_arrived_within(leg, SOON).await;
    }

    /// As [`Engine::abort_arrived`], for aborts that are due later.
    pub async fn abort_arrived_within(&self, leg: &Received, limit: Duration) {
        let what = format!("an abort of {:?} at {}", leg.rids, self.pod.name);
        eventually(&what, limit, async || {
            let aborts = self.aborts();
            leg.rids.iter().all(|rid| aborts.iter().any(|abort| abort.rid == *rid)).then_some(())
        })
        .await;
    }

    /// Waits until it is idle and every leg that it got was aborted. A leg whose peer failed at once
    /// may never have been sent.
    pub async fn until_aborted(&self) {
        self.idle().await;
        for leg in self.legs() {
            self.abort_arrived(&leg).await;
        }
    }

    /// Waits until it holds no request.
    pub async fn idle(&self) {
        let what = format!("{} is idle", self.pod.name);
        eventually(&what, SOON, async || (self.held() == 0).then_some(())).await;
    }
}
