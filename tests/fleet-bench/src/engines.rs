//! The engines: started by a command or given by address; ready, emptied, and what they count.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::client::Client;
use crate::process::{self, Process};
use crate::site::Site;
use crate::template::fill;

pub(crate) const PORT: u16 = 30000;
pub(crate) const BOOTSTRAP_PORT: u16 = 8998;
/// Time for an engine to answer a short question; it may be computing.
const ANSWER: Duration = Duration::from_secs(10);
/// Time for running requests to end, which must be before caches can be emptied.
const IDLE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Which engines.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engines")]
pub(crate) struct EngineFlags {
    /// Number of prefill engines to start.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    prefills: usize,
    /// Number of decode engines to start.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    decodes: usize,
    /// Shell command that starts an engine and stays in the foreground. It runs in the engine's network
    /// namespace. {name}, {role} (prefill or decode), {ip}, {port}, {bootstrap_port} and {gpu} are
    /// replaced. Without this flag engines are simulated.
    #[arg(long, value_name = "COMMAND")]
    engine_command: Option<String>,
    /// Number of GPUs that {gpu} numbers from 0. Engines of a role are spread over them; with as many
    /// GPUs as engines each has its own.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    gpus: usize,
    /// Time for all engines to answer /health, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    engine_timeout: u64,
    /// Path of sglang-sim, for simulated engines.
    #[arg(long, value_name = "FILE", env = "SGLANG_SIM_BIN")]
    sglang_sim: Option<PathBuf>,
    /// Flags of the simulated engines.
    #[arg(
        long,
        value_name = "FLAGS",
        allow_hyphen_values = true,
        default_value = "--prefill-tokens-per-second 60000 --inter-token-ms 4 --prefix-cache"
    )]
    sim_flags: String,
    /// A prefill engine that exists, and its bootstrap port (8998 if omitted). May be repeated. No
    /// engine is started then.
    #[arg(long, value_name = "URL[=BOOTSTRAP_PORT]", requires = "decode")]
    prefill: Vec<Address>,
    /// A decode engine that exists. May be repeated.
    #[arg(long, value_name = "URL", requires = "prefill")]
    decode: Vec<Address>,
}

/// The URL of an engine that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    url: String,
    bootstrap_port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let (url, port) = text.split_once('=').unwrap_or((text, "8998"));
        if !url.starts_with("http://") {
            return Err(format!("`{url}` does not begin with http://"));
        }
        let bootstrap_port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
        Ok(Address { url: url.trim_end_matches('/').to_owned(), bootstrap_port })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Prefill,
    Decode,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }
}

/// One engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) url: String,
    pub(crate) bootstrap_port: u16,
    /// Address of the pod, for engines that were started.
    pub(crate) ip: Option<IpAddr>,
    process: Option<Process>,
}

/// All engines, prefills first. Dropping it ends those that were started.
#[derive(Debug, Default)]
pub(crate) struct Engines(pub(crate) Vec<Engine>);

/// What the engines have counted since they started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    /// By the prefills; none if one of them does not count it.
    pub(crate) prompt_tokens: Option<f64>,
    pub(crate) cached_tokens: Option<f64>,
    /// KV cache that prefills sent.
    pub(crate) kv_bytes: Option<f64>,
}

impl Counted {
    /// What was counted after `before`.
    pub(crate) fn since(&self, before: &Counted) -> Counted {
        // A counter that is not there yet, of an engine that had no request, is 0.
        let since = |now: Option<f64>, before: Option<f64>| Some(now? - before.unwrap_or_default());
        Counted {
            prompt_tokens: since(self.prompt_tokens, before.prompt_tokens),
            // An engine shows this counter once it has found something.
            cached_tokens: since(
                self.cached_tokens.or(self.prompt_tokens.map(|_| 0.0)),
                before.cached_tokens,
            ),
            kv_bytes: since(self.kv_bytes, before.kv_bytes),
        }
    }
}

impl EngineFlags {
    /// Number of engines to start.
    pub(crate) fn to_start(&self) -> usize {
        if self.prefill.is_empty() { self.prefills + self.decodes } else { 0 }
    }

    /// The engines that exist, if the flags name any.
    pub(crate) fn given(&self) -> Engines {
        let engine = |role: Role, address: &Address| Engine {
            name: address.url.clone(),
            role,
            url: address.url.clone(),
            bootstrap_port: address.bootstrap_port,
            ip: None,
            process: None,
        };
        let prefills = self.prefill.iter().map(|address| engine(Role::Prefill, address));
        let decodes = self.decode.iter().map(|address| engine(Role::Decode, address));
        Engines(prefills.chain(decodes).collect())
    }

    /// Starts all engines at once; they are not ready yet.
    ///
    /// # Errors
    /// A program does not start, or there is none.
    pub(crate) fn start(&self, site: &Site) -> Result<Engines> {
        let mut engines = Engines::default();
        for number in 0..self.prefills + self.decodes {
            let (role, at, of) = match number.checked_sub(self.prefills) {
                None => (Role::Prefill, number, self.prefills),
                Some(at) => (Role::Decode, at, self.decodes),
            };
            let name = format!("{}{at}", if role == Role::Prefill { 'p' } else { 'd' });
            let ip = site.engine_ip(number);
            let gpu = self.gpu(number, at, of);
            let command = self.command(&name, role, ip, gpu)?;
            let process = Some(site.start_engine(number, &name, command)?);
            let (url, ip) = (format!("http://{ip}:{PORT}"), Some(ip));
            let bootstrap_port = BOOTSTRAP_PORT;
            engines.0.push(Engine { name, role, url, bootstrap_port, ip, process });
        }
        Ok(engines)
    }

    /// The GPU of an engine that is the `at`-th of `of` of its role.
    fn gpu(&self, number: usize, at: usize, of: usize) -> usize {
        let gpus = self.gpus.max(1);
        if self.prefills + self.decodes <= gpus { number } else { at * gpus.min(of) / of }
    }

    fn command(&self, name: &str, role: Role, ip: IpAddr, gpu: usize) -> Result<Command> {
        let template = match (&self.engine_command, &self.sglang_sim) {
            (Some(template), _) => template.clone(),
            (None, Some(sim)) => format!(
                "exec {} --role {{role}} --host {{ip}} --port {{port}} \
                 --bootstrap-port {{bootstrap_port}} {}",
                sim.display(),
                self.sim_flags
            ),
            (None, None) => {
                bail!("give --engine-command, or --sglang-sim for simulated engines");
            }
        };
        let script = fill(
            &template,
            &[
                ("name", name),
                ("role", role.name()),
                ("ip", &ip.to_string()),
                ("port", &PORT.to_string()),
                ("bootstrap_port", &BOOTSTRAP_PORT.to_string()),
                ("gpu", &gpu.to_string()),
            ],
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        Ok(command)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.engine_timeout)
    }
}

impl Engines {
    /// Waits until every engine answers `/health`.
    ///
    /// # Errors
    /// An engine ended, or is not ready in time: with the end of its log.
    pub(crate) async fn until_ready(&mut self, client: &Client, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let mut waiting: Vec<usize> = (0..self.0.len()).collect();
        while !waiting.is_empty() {
            let mut still = Vec::new();
            for number in waiting {
                let engine = &mut self.0[number];
                if let Some(process) = &mut engine.process {
                    process.lives()?;
                }
                match client.get(&format!("{}/health", engine.url), ANSWER).await {
                    Ok(_) => {
                        let took = start.elapsed().as_secs_f64();
                        println!("{} is ready after {took:.1} s", engine.name);
                    }
                    Err(error) if start.elapsed() > limit => {
                        let tail = engine.process.as_ref().map(Process::tail).unwrap_or_default();
                        bail!("--engine-timeout: {} is not ready: {error:#}; {tail}", engine.name);
                    }
                    Err(_) => still.push(number),
                }
            }
            waiting = still;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// # Errors
    /// An engine has ended.
    pub(crate) fn live(&mut self) -> Result<()> {
        let mut processes = self.0.iter_mut().filter_map(|engine| engine.process.as_mut());
        processes.try_for_each(Process::lives)
    }

    /// Empties the caches of all engines, as soon as they are idle.
    ///
    /// # Errors
    /// An engine still refuses after [`IDLE`].
    pub(crate) async fn empty_caches(&self, client: &Client) -> Result<()> {
        for engine in &self.0 {
            let url = format!("{}/flush_cache", engine.url);
            let start = Instant::now();
            while let Err(error) = client.post(&url, bytes::Bytes::new(), ANSWER).await {
                if start.elapsed() > IDLE {
                    return Err(error.context("emptying a cache (--keep-caches does without)"));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// What the engines count in `/metrics`.
    ///
    /// # Errors
    /// A prefill does not answer.
    pub(crate) async fn counted(&self, client: &Client) -> Result<Counted> {
        let mut pages = String::new();
        for engine in self.0.iter().filter(|engine| engine.role == Role::Prefill) {
            let page = client.get(&format!("{}/metrics", engine.url), ANSWER).await;
            pages.push_str(&page.context("the metrics of a prefill (--enable-metrics)")?);
            pages.push('\n');
        }
        Ok(Counted {
            prompt_tokens: sum(&pages, "sglang:prompt_tokens_total"),
            cached_tokens: sum(&pages, "sglang:cached_tokens_total"),
            // SGLang's megabytes are of 2^20 bytes.
            kv_bytes: sum(&pages, "sglang:kv_transfer_total_mb_sum")
                .map(|mb| mb * f64::from(1 << 20)),
        })
    }

    /// The flags of sglang-router and pd-router that name the engines.
    pub(crate) fn as_flags(&self) -> String {
        let mut flags = String::new();
        for Engine { role, url, bootstrap_port, .. } in &self.0 {
            // Writing to a string cannot fail.
            _ = match role {
                Role::Prefill => write!(flags, "--prefill {url} {bootstrap_port} "),
                Role::Decode => write!(flags, "--decode {url} "),
            };
        }
        flags.trim_end().to_owned()
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        process::terminate(self.0.iter().filter_map(|engine| engine.process.as_ref()));
    }
}

/// The sum of a metric's samples; none if there is no sample.
fn sum(page: &str, name: &str) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
    });
    values.reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        engines: EngineFlags,
    }

    fn flags(words: &str) -> EngineFlags {
        Cli::parse_from(["x"].into_iter().chain(words.split_whitespace())).engines
    }

    #[test]
    fn engines_of_a_role_are_spread_over_the_gpus() {
        let gpus = |words: &str| -> Vec<usize> {
            let flags = flags(words);
            let decodes = (0..flags.decodes).map(|at| (flags.prefills + at, at, flags.decodes));
            let prefills = (0..flags.prefills).map(|at| (at, at, flags.prefills));
            prefills.chain(decodes).map(|(number, at, of)| flags.gpu(number, at, of)).collect()
        };
        assert_eq!(gpus("--gpus 1"), [0, 0, 0, 0]);
        assert_eq!(gpus("--gpus 2"), [0, 1, 0, 1]);
        assert_eq!(gpus("--gpus 4"), [0, 1, 2, 3]);
        assert_eq!(gpus("--gpus 2 --prefills 4 --decodes 1"), [0, 0, 1, 1, 0]);
    }

    #[test]
    fn given_engines_are_named_as_routers_take_them() {
        let engines = flags("--prefill http://a:1 --prefill http://b:1=9 --decode http://c:1/");
        assert_eq!(engines.to_start(), 0);
        let wanted = "--prefill http://a:1 8998 --prefill http://b:1 9 --decode http://c:1";
        assert_eq!(engines.given().as_flags(), wanted);
        assert!("a:1".parse::<Address>().unwrap_err().contains("http://"));
    }

    #[test]
    fn samples_of_a_metric_add_up() {
        let page = "# HELP a x\na{l=\"} 9\"} 2.0\na{l=\"2\"} 3.5\nab{l=\"2\"} 9\nb 1\n";
        assert_eq!((sum(page, "a"), sum(page, "b"), sum(page, "c")), (Some(5.5), Some(1.0), None));
    }
}
