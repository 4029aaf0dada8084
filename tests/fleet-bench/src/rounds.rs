//! Interleaved rounds: in each, every router gets the same requests of a cell, one router after the
//! other, before engines whose caches were emptied. The order rotates from round to round.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::agent::{Agent, AgentFlags};
use crate::client::Client;
use crate::engines::{Counted, EngineFlags, Engines};
use crate::load::{self, Load};
use crate::record::{self, Run};
use crate::routers::{Gateways, Router, RouterFlags};
use crate::site::Site;
use crate::table;
use crate::workload::{Cell, Request, WorkFlags, Workloads};

const ANSWER: Duration = Duration::from_secs(60);
/// No round has these requests.
const WARM_UP_ROUND: u32 = 1_000_000;
/// Time that starting gateways, emptying caches and late responses take of a run, for --deadline.
const AROUND: Duration = Duration::from_secs(8);

/// Which runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Runs")]
pub(crate) struct RoundFlags {
    /// Load of a run: WORKLOAD:RATE in requests per second. `docs` asks questions about 40 shared
    /// documents by Zipf's law, `trace` replays --trace. May be repeated.
    #[arg(long = "cell", value_name = "WORKLOAD:RATE", default_value = "docs:4")]
    cells: Vec<Cell>,
    /// Number of rounds.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    rounds: u32,
    /// Number of the first round. Each number has requests of its own.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    first_round: u32,
    /// Duration of a run, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 25.0)]
    seconds: f64,
    /// Beginning of a run that is not counted, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    warm_up: f64,
    /// Load of each cell before the first run, in seconds, through the first router. Engines compile and
    /// tune what they need for its lengths meanwhile. It is not recorded.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    engine_warm_up: f64,
    /// Start no run that would end later than this many seconds after the beginning. Without this flag
    /// all runs take place.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// Time for one response, in seconds. A request that takes longer is an error.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    request_timeout: u64,
    /// Keep what engines have cached between runs.
    #[arg(long)]
    keep_caches: bool,
    /// Model name of the requests. The default is the first that an engine lists.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// File that gets a line of JSON for each run. Runs that it has already are not repeated.
    #[arg(long, value_name = "FILE", default_value = "fleet.jsonl")]
    out: PathBuf,
    /// Folder for the logs of all processes and for agent.json. The default is a temporary folder.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// Everything that `fleet-bench run` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    engines: EngineFlags,
    #[command(flatten)]
    routers: RouterFlags,
    #[command(flatten)]
    agent: AgentFlags,
    #[command(flatten)]
    work: WorkFlags,
    #[command(flatten)]
    runs: RoundFlags,
}

/// What all runs share. Fields are dropped in their order: the processes before their networks.
struct Bench {
    agent: Option<Agent>,
    /// What the engines had counted when the agent started.
    before_agent: Counted,
    engines: Engines,
    site: Site,
    workloads: Workloads,
    client: Client,
    model: String,
    flags: Flags,
}

/// Brings the fleet up, takes the runs that are not in the file yet, and prints their table.
///
/// # Errors
/// A flag is wrong, a process ends early, or an engine does not answer. Failed requests are no error:
/// the table counts them.
pub(crate) fn run(flags: Flags) -> Result<()> {
    let start = Instant::now();
    let given = flags.engines.given();
    flags.routers.check(!given.0.is_empty())?;
    let workloads = Workloads::new(&flags.work, &flags.runs.cells)?;
    flags.runs.cells.iter().try_for_each(|cell| workloads.check(cell, flags.runs.seconds))?;
    let mut runs = record::read(&flags.runs.out)?;
    let logs = match &flags.runs.logs {
        Some(logs) => logs.clone(),
        None => std::env::temp_dir().join(format!("fleet-bench-{}", std::process::id())),
    };
    std::fs::create_dir_all(&logs).with_context(|| format!("--logs {}", logs.display()))?;
    println!("logs: {}", logs.display());
    let must_start = given.0.is_empty() && flags.routers.need_engines();
    let site = match must_start {
        true => Site::new(flags.engines.to_start(), &logs)?,
        false => Site::loopback(0, &logs)?,
    };
    // Before any thread of the load generator starts: they inherit this thread's network.
    site.enter()?;
    crate::runtime()?.block_on(async {
        crate::end_on_signals()?;
        let mut bench = Bench::up(flags, site, given, workloads, must_start).await?;
        let taken = bench.take_all(&mut runs, start).await;
        let reported = bench.report().await;
        table::print(&runs);
        taken.and(reported)
    })
}

impl Bench {
    async fn up(
        flags: Flags,
        site: Site,
        given: Engines,
        workloads: Workloads,
        must_start: bool,
    ) -> Result<Bench> {
        let client = Client::new(None);
        let model = flags.runs.model.clone().unwrap_or_default();
        let mut bench = Bench {
            agent: None,
            before_agent: Counted::default(),
            engines: given,
            site,
            workloads,
            client,
            model,
            flags,
        };
        let wants_agent = bench.flags.routers.routers.iter().any(Router::needs_agent);
        if must_start {
            bench.engines = bench.flags.engines.start(&bench.site)?;
        }
        if wants_agent && bench.flags.agent.agent_first {
            bench.start_agent().await?;
        }
        let limit = bench.flags.engines.timeout();
        bench.engines.until_ready(&bench.client, limit).await?;
        if wants_agent && !bench.flags.agent.agent_first {
            bench.start_agent().await?;
        }
        bench.warm_up_all().await?;
        Ok(bench)
    }

    async fn start_agent(&mut self) -> Result<()> {
        let program = self.flags.routers.pd_router.as_ref().context("--pd-router is missing")?;
        let mut agent = Agent::start(&self.flags.agent, program, &self.site, &self.engines)?;
        agent.until_ready(&self.client).await?;
        println!("the agent is ready");
        self.agent = Some(agent);
        // Before the engines are up there is nothing to count.
        self.before_agent = self.engines.counted(&self.client).await.unwrap_or_default();
        Ok(())
    }

    /// Asks through the first router for the model's name and the number of tokens of a word, and warms
    /// the engines up.
    async fn warm_up_all(&mut self) -> Result<()> {
        let routers = &self.flags.routers;
        let mut gateways = routers.start(&routers.routers[0], &self.site, &self.engines, None)?;
        if self.model.is_empty() {
            let url = self.engines.0.first().map_or(&gateways.urls[0], |engine| &engine.url);
            self.model = self.client.model(url, ANSWER).await?;
        }
        gateways.until_ready(&self.client, &self.model).await?;
        let words = &mut self.workloads.words;
        words.measure(&self.client, &gateways.urls[0], &self.model, ANSWER).await?;
        println!("model {}, {:.3} tokens a word", self.model, words.tokens_per_word);
        self.warm_up(&gateways).await
    }

    async fn warm_up(&self, gateways: &Gateways) -> Result<()> {
        let flags = &self.flags.runs;
        let limit = Duration::from_secs(flags.request_timeout);
        for cell in &flags.cells {
            let requests = self.workloads.requests(cell, WARM_UP_ROUND, flags.engine_warm_up);
            let urls = &gateways.urls;
            let load = load::run(&self.client, urls, &self.model, &requests, limit).await?;
            let answered = load.samples.iter().filter(|sample| sample.error.is_none()).count();
            let took = load.wall.as_secs_f64();
            println!("warm-up, {cell}: {answered} of {} answered, {took:.1} s", requests.len());
        }
        Ok(())
    }

    /// Takes the runs that are not there yet and adds each to the file.
    async fn take_all(&mut self, runs: &mut Vec<Run>, start: Instant) -> Result<()> {
        let RoundFlags { cells, rounds, first_round, seconds, deadline, .. } =
            self.flags.runs.clone();
        let routers = self.flags.routers.routers.clone();
        for round in first_round..first_round + rounds {
            for cell in &cells {
                let requests = self.workloads.requests(cell, round, seconds);
                let mut order: Vec<&Router> = routers.iter().collect();
                order.rotate_left(round as usize % routers.len());
                for router in order {
                    let key = (round, cell.to_string());
                    let is_there = |run: &Run| {
                        run.router == router.name && (run.round, &run.cell) == (key.0, &key.1)
                    };
                    if runs.iter().any(is_there) {
                        continue;
                    }
                    let end = start.elapsed() + Duration::from_secs_f64(seconds) + AROUND;
                    if deadline.is_some_and(|deadline| end.as_secs() > deadline) {
                        println!("--deadline: no run from round {round}, {cell}, {}", router.name);
                        return Ok(());
                    }
                    let run = self.take(router, cell, round, &requests).await?;
                    run.append_to(&self.flags.runs.out)?;
                    println!("{}", table::one_line(&run));
                    runs.push(run);
                }
            }
        }
        Ok(())
    }

    async fn take(
        &mut self,
        router: &Router,
        cell: &Cell,
        round: u32,
        requests: &[Request],
    ) -> Result<Run> {
        if !self.flags.runs.keep_caches {
            self.engines.empty_caches(&self.client).await?;
        }
        let routers = &self.flags.routers;
        let mut gateways = routers.start(router, &self.site, &self.engines, self.agent.as_ref())?;
        gateways.until_ready(&self.client, &self.model).await?;
        let (counted, cpu) = (self.engines.counted(&self.client).await, gateways.cpu());
        let limit = Duration::from_secs(self.flags.runs.request_timeout);
        let load = load::run(&self.client, &gateways.urls, &self.model, requests, limit).await?;
        let cpu = cpu.and_then(|before| Some(gateways.cpu()?.saturating_sub(before)));
        // Engines of another make may count nothing; the table then has no share.
        let counted = match (counted, self.engines.counted(&self.client).await) {
            (Ok(before), Ok(after)) => after.since(&before),
            _ => Counted::default(),
        };
        gateways.live().and_then(|()| self.engines.live())?;
        if let Some(agent) = &mut self.agent {
            agent.lives()?;
        }
        Ok(self.record(router, cell, round, load, &gateways, cpu, counted))
    }

    #[expect(clippy::too_many_arguments, reason = "what one run has")]
    fn record(
        &self,
        router: &Router,
        cell: &Cell,
        round: u32,
        load: Load,
        gateways: &Gateways,
        cpu: Option<Duration>,
        counted: Counted,
    ) -> Run {
        let requests = load.samples.len().max(1) as f64;
        Run {
            round,
            cell: cell.to_string(),
            router: router.name.clone(),
            position: self.flags.routers.position(router),
            gateways: gateways.urls.len(),
            warm_up_s: self.flags.runs.warm_up,
            wall_s: load.wall.as_secs_f64(),
            late_ms: load.late.as_secs_f64() * 1e3,
            gateway_cpu_ms: cpu.map(|cpu| cpu.as_secs_f64() * 1e3 / requests),
            gateway_peak_mib: gateways.peak_mib(),
            prompt_tokens: counted.prompt_tokens,
            cached_tokens: counted.cached_tokens,
            requests: load.samples,
        }
    }

    /// What the agent counted, if there is one.
    async fn report(&mut self) -> Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        let counted = self.engines.counted(&self.client).await?.since(&self.before_agent);
        agent.report(&self.site.logs, counted.kv_bytes).await
    }
}
