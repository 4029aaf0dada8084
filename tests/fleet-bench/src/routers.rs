//! The routers that are compared: a policy of pd-router, any program by its command, or an endpoint
//! that exists.

use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::agent::Agent;
use crate::client::{self, Client};
use crate::engines::Engines;
use crate::manifests;
use crate::process::{self, Process};
use crate::site::{MAX_GATEWAYS, Site, free_ports};
use crate::template::fill;

/// Time for a router to serve its first request.
const START: Duration = Duration::from_secs(60);
const FIRST_ANSWER: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Which routers.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Routers")]
pub(crate) struct RouterFlags {
    /// Router to compare; the first is the reference of all ratios. A policy of pd-router, as in
    /// `predicted`; with `+agent` its gateways subscribe to an agent. NAME=COMMAND starts another router
    /// by a shell command in which {ip}, {port}, {admin_port} and {engines} are replaced, the last by
    /// `--prefill URL BOOTSTRAP_PORT ... --decode URL ...`. NAME=http://HOST:PORT,... are endpoints that
    /// exist. May be repeated.
    #[arg(
        long = "router",
        value_name = "ROUTER",
        default_values = ["predicted", "least_load", "round_robin"]
    )]
    pub(crate) routers: Vec<Router>,
    /// Number of gateways of each router. Requests are spread over them, and each knows only its own.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(crate) gateways: usize,
    /// Path of pd-router.
    #[arg(long, value_name = "FILE", env = "PD_ROUTER_BIN")]
    pub(crate) pd_router: Option<PathBuf>,
    /// Further flags of `pd-router gateway`.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    gateway_flags: String,
}

/// One router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Router {
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Policy { policy: String, agent: bool },
    Command(String),
    Endpoints(Vec<String>),
}

impl FromStr for Router {
    type Err = String;

    fn from_str(text: &str) -> Result<Router, String> {
        let Some((name, value)) = text.split_once('=') else {
            let (policy, agent) = match text.split_once('+') {
                None => (text, false),
                Some((policy, "agent")) => (policy, true),
                Some((_, more)) => return Err(format!("`+{more}`: only +agent is known")),
            };
            let kind = Kind::Policy { policy: policy.to_owned(), agent };
            return Ok(Router { name: text.to_owned(), kind });
        };
        if name.is_empty() || value.is_empty() {
            return Err(format!("`{text}` is not NAME=COMMAND or NAME=URL"));
        }
        let kind = if value.starts_with("http://") {
            let urls = value.split(',').map(|url| url.trim_end_matches('/').to_owned());
            Kind::Endpoints(urls.collect())
        } else {
            Kind::Command(value.to_owned())
        };
        Ok(Router { name: name.to_owned(), kind })
    }
}

impl Router {
    pub(crate) fn needs_agent(&self) -> bool {
        matches!(self.kind, Kind::Policy { agent: true, .. })
    }

    fn is_pd_router(&self) -> bool {
        matches!(self.kind, Kind::Policy { .. })
    }

    fn needs_engines(&self) -> bool {
        !matches!(self.kind, Kind::Endpoints(_))
    }
}

impl RouterFlags {
    /// # Errors
    /// A flag does not fit another, by name.
    pub(crate) fn check(&self, engines_are_given: bool) -> Result<()> {
        if self.gateways == 0 || self.gateways > MAX_GATEWAYS {
            bail!("--gateways: 1 to {MAX_GATEWAYS}");
        }
        for (at, router) in self.routers.iter().enumerate() {
            if self.routers[..at].iter().any(|before| before.name == router.name) {
                bail!("--router: `{}` is there twice", router.name);
            }
            if router.needs_agent() && engines_are_given {
                bail!("--router {}: an agent needs engines that are started here", router.name);
            }
        }
        if self.pd_router.is_none() && self.routers.iter().any(Router::is_pd_router) {
            bail!("--pd-router is missing");
        }
        Ok(())
    }

    /// The number of a router; 0 is the reference.
    pub(crate) fn position(&self, router: &Router) -> usize {
        self.routers.iter().position(|other| other == router).unwrap_or_default()
    }

    /// Whether engines must be started or given.
    pub(crate) fn need_engines(&self) -> bool {
        self.routers.iter().any(Router::needs_engines)
    }

    /// Starts the gateways of a router. They are not ready yet.
    ///
    /// # Errors
    /// A program does not start.
    pub(crate) fn start(
        &self,
        router: &Router,
        site: &Site,
        engines: &Engines,
        agent: Option<&Agent>,
    ) -> Result<Gateways> {
        if let Kind::Endpoints(urls) = &router.kind {
            return Ok(Gateways { urls: urls.clone(), processes: Vec::new() });
        }
        let mut gateways = Gateways { urls: Vec::new(), processes: Vec::new() };
        for number in 0..self.gateways {
            let ip = site.gateway_ip(number);
            let [port, admin_port] = free_ports(ip)?;
            let (ip, admin) = (ip.to_string(), admin_port.to_string());
            let command = match &router.kind {
                Kind::Command(template) => {
                    let (port, engines) = (port.to_string(), engines.as_flags());
                    let mut command = Command::new("sh");
                    command.arg("-c").arg(fill(
                        template,
                        &[
                            ("ip", &ip),
                            ("port", &port),
                            ("admin_port", &admin),
                            ("engines", &engines),
                        ],
                    ));
                    command
                }
                Kind::Policy { policy, agent: wants_agent } => {
                    let agent = agent.filter(|_| *wants_agent);
                    self.policy(policy, site, engines, (&ip, port, &admin), agent)?
                }
                Kind::Endpoints(_) => bail!("`{}` is not started", router.name),
            };
            let name = format!("{}-{number}", router.name.replace(['/', ' '], "_"));
            gateways.processes.push(site.start_here(&name, command)?);
            gateways.urls.push(format!("http://{ip}:{port}"));
        }
        Ok(gateways)
    }

    fn policy(
        &self,
        policy: &str,
        site: &Site,
        engines: &Engines,
        (ip, port, admin_port): (&str, u16, &str),
        agent: Option<&Agent>,
    ) -> Result<Command> {
        let program = self.pd_router.as_ref().context("--pd-router is missing")?;
        let mut command = Command::new(program);
        command.args(["gateway", "--policy", policy, "--explain-headers", "--log", "warn"]);
        command.args(["--admin-listen", &format!("{ip}:{admin_port}")]);
        if engines.0.iter().any(|engine| engine.ip.is_some()) {
            // A folder for each gateway: its listener has a port of its own.
            let folder = site.logs.join(format!("gateway-{port}"));
            let folder = manifests::write(&folder, engines, port)?;
            command.args(["--listen-address", ip, "--manifests"]).arg(folder);
        } else {
            command.arg("--pd-disaggregation").args(engines.as_flags().split(' '));
            command.args(["--host", ip, "--port", &port.to_string()]);
        }
        if let Some(agent) = agent {
            command.args(["--agent", &agent.address.to_string(), "--agent-token-file"]);
            command.arg(&agent.token_file);
        }
        command.args(self.gateway_flags.split_whitespace());
        Ok(command)
    }
}

/// The gateways of one router. Dropping them ends those that were started.
#[derive(Debug)]
pub(crate) struct Gateways {
    pub(crate) urls: Vec<String>,
    processes: Vec<Process>,
}

impl Gateways {
    /// Waits until every gateway serves a request.
    ///
    /// # Errors
    /// One ended, or does not serve in time: with the end of its log.
    pub(crate) async fn until_ready(&mut self, client: &Client, model: &str) -> Result<()> {
        let start = Instant::now();
        for number in 0..self.urls.len() {
            loop {
                if let Some(process) = self.processes.get_mut(number) {
                    process.lives()?;
                }
                let body = client::chat(model, "Ready?", 2);
                let (_, result) = client.stream(&self.urls[number], body, FIRST_ANSWER).await;
                let Err(error) = result else { break };
                if start.elapsed() > START {
                    let tail = self.processes.get(number).map(Process::tail).unwrap_or_default();
                    bail!("{} does not serve: {error:#}; {tail}", self.urls[number]);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// CPU time of all of them; none if they are not ours.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        (!self.processes.is_empty()).then(|| self.processes.iter().map(Process::cpu).sum())
    }

    pub(crate) fn peak_mib(&self) -> Option<u64> {
        self.processes.iter().map(Process::peak_mib).max()
    }

    /// # Errors
    /// One has ended.
    pub(crate) fn live(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::lives)
    }
}

impl Drop for Gateways {
    fn drop(&mut self) {
        process::terminate(self.processes.iter());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_is_a_policy_a_command_or_endpoints() {
        let router = |text: &str| text.parse::<Router>().unwrap();
        assert!(!router("predicted").needs_agent());
        assert!(router("predicted+agent").needs_agent());
        let peer = router("peer=python3 -m peer --policy=x {engines}");
        assert_eq!(peer.name, "peer");
        assert_eq!(peer.kind, Kind::Command("python3 -m peer --policy=x {engines}".to_owned()));
        let urls = vec!["http://a:1".to_owned(), "http://b:2".to_owned()];
        assert_eq!(router("x=http://a:1/,http://b:2").kind, Kind::Endpoints(urls));
        assert!("predicted+agents".parse::<Router>().unwrap_err().contains("+agent"));
        assert!("=x".parse::<Router>().is_err());
    }

    #[test]
    fn flags_that_do_not_fit_are_named() {
        let flags = |routers: &[&str]| RouterFlags {
            routers: routers.iter().map(|text| text.parse().unwrap()).collect(),
            gateways: 1,
            pd_router: None,
            gateway_flags: String::new(),
        };
        let error = |flags: RouterFlags, given: bool| flags.check(given).unwrap_err().to_string();
        assert!(error(flags(&["predicted"]), false).contains("--pd-router"));
        assert!(error(flags(&["x=a", "x=b"]), false).contains("twice"));
        assert!(error(flags(&["predicted+agent"]), true).contains("agent"));
        assert!(
            error(RouterFlags { gateways: 0, ..flags(&["x=a"]) }, false).contains("--gateways")
        );
        flags(&["x=http://a:1"]).check(true).unwrap();
    }
}
