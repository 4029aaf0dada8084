//! `cargo xtask cluster`: a Kubernetes with nodes on this machine, without a container engine. Each
//! machine of it is a set of namespaces, so that what it does goes with its last process. What stays is
//! said in decision 11.

mod cgroups;
mod credentials;
mod images;
mod init;
mod plan;
mod programs;
mod services;
mod state;
mod supervisor;
mod up;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::{shell, workspace};
pub(crate) use images::{load, program_image};
use plan::Plan;

const DEFAULT_NAME: &str = "default";

/// A cluster and what to do with it.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start a cluster. The first time it builds Kubernetes, which takes some 20 minutes of CPU time.
    Up {
        #[command(flatten)]
        name: Name,
        /// Number of nodes.
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(plan::MAX_NODES)))]
        nodes: u8,
        /// Version of Kubernetes. For any but the default one Go resolves the dependencies, without a committed go.sum.
        #[arg(long, value_name = "VERSION", default_value = programs::KUBERNETES)]
        kubernetes: String,
    },
    /// End a cluster and remove its processes, mounts, interfaces, control groups and files, all but
    /// its logs. A cluster that is not there is no error.
    Down {
        #[command(flatten)]
        name: Name,
        /// Remove its logs too.
        #[arg(long)]
        logs: bool,
    },
    /// List the clusters that run, and their nodes.
    Status,
    /// Run kubectl on a cluster, in the network of its first node.
    Kubectl {
        #[command(flatten)]
        name: Name,
        /// Arguments of kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run a command in the network of a cluster's first node, where Services have their addresses.
    Exec {
        #[command(flatten)]
        name: Name,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<String>,
    },
    /// Load an image into every node, from an archive as `docker save` or `cargo xtask images` write.
    Load {
        #[command(flatten)]
        name: Name,
        archive: PathBuf,
    },
    /// Hold a cluster. `up` runs this.
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        name: Name,
    },
    /// Be process 1 of a machine. A supervisor runs this.
    #[command(hide = true)]
    Init { folder: PathBuf, machine: String },
}

#[derive(Debug, Args)]
struct Name {
    /// Name of the cluster. Clusters of different names do not meet.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

/// Does what the flags say.
///
/// # Errors
/// Each action's own.
pub(crate) fn run(flags: Flags) -> Result<()> {
    match flags.action {
        Action::Up { name, nodes, kubernetes } => up::run(checked(&name)?, nodes, &kubernetes),
        Action::Down { name, logs } => down(checked(&name)?, logs),
        Action::Status => status(),
        Action::Kubectl { name, words } => {
            Err(Cluster::get(checked(&name)?)?.kubectl_command()?.args(words).exec())
                .context("starting kubectl")
        }
        Action::Exec { name, words } => {
            Err(Cluster::get(checked(&name)?)?.command(&words[0])?.args(&words[1..]).exec())
                .with_context(|| format!("starting {}", words[0]))
        }
        Action::Load { name, archive } => images::load(&Cluster::get(checked(&name)?)?, &archive),
        Action::Supervise { name } => supervisor::run(checked(&name)?),
        Action::Init { folder, machine } => init::run(&folder, &machine),
    }
}

/// Builds or fetches what a cluster consists of, so that `up` takes seconds.
///
/// # Errors
/// As the action `up`.
pub(crate) fn ready() -> Result<()> {
    programs::get(programs::KUBERNETES).map(|_| ())
}

/// Whether a cluster of that name runs.
///
/// # Errors
/// The name is none, or the cluster is being started or removed.
pub(crate) fn is_up(name: &str) -> Result<bool> {
    plan::check_name(name)?;
    Ok(Cluster::find(name)?.is_some())
}

/// Starts a cluster with so many nodes, or does nothing where it runs.
///
/// # Errors
/// As the action `up`.
pub(crate) fn up(name: &str, nodes: u8) -> Result<()> {
    up::run(name, nodes, programs::KUBERNETES)
}

/// Where the program of CoreDNS is.
///
/// # Errors
/// As the action `up`.
pub(crate) fn coredns() -> Result<PathBuf> {
    Ok(programs::get(programs::KUBERNETES)?.coredns())
}

fn checked(name: &Name) -> Result<&str> {
    plan::check_name(&name.name)?;
    Ok(&name.name)
}

/// Ends a cluster and removes what it had, its logs only if `logs` says so.
///
/// # Errors
/// Something cannot be removed.
pub(crate) fn down(name: &str, logs: bool) -> Result<()> {
    match state::remove(name)? {
        true => println!("the cluster {name} is down"),
        false => println!("no cluster {name} runs"),
    }
    if logs { state::forget(name) } else { Ok(()) }
}

fn status() -> Result<()> {
    for name in state::names()? {
        let cluster = match Cluster::find(&name) {
            Ok(Some(cluster)) => cluster,
            Ok(None) => continue,
            Err(error) => {
                println!("{error:#}");
                continue;
            }
        };
        println!("{name}: Kubernetes {}", cluster.plan.kubernetes);
        print!("{}", cluster.kubectl(&["get", "nodes", "--output=wide"])?);
    }
    Ok(())
}

/// A cluster that runs.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: PathBuf,
    plan: Plan,
}

impl Cluster {
    /// The cluster of that name, where one runs.
    ///
    /// # Errors
    /// Its plan cannot be read: it is being started.
    fn find(name: &str) -> Result<Option<Cluster>> {
        if state::supervisor(name)?.is_none() {
            return Ok(None);
        }
        let folder = state::folder(name)?;
        let plan = Plan::read(&folder)
            .with_context(|| format!("the cluster {name} is being started or removed"))?;
        Ok(Some(Cluster { folder, plan }))
    }

    /// As [`Cluster::find`], and none is an error.
    ///
    /// # Errors
    /// No cluster of that name runs.
    pub(crate) fn get(name: &str) -> Result<Cluster> {
        let Some(cluster) = Cluster::find(name)? else {
            bail!("no cluster {name} runs: start it with `cargo xtask cluster up --name {name}`");
        };
        Ok(cluster)
    }

    /// The process 1 of a machine, for a command line.
    fn process(&self, machine: &str) -> Result<String> {
        let path = self.folder.join("machines").join(machine).join("pid");
        std::fs::read_to_string(path).with_context(|| format!("the process of {machine}"))
    }

    /// A command in the network of the first node, with this machine's files.
    ///
    /// # Errors
    /// The cluster is being started or removed.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let node = self.plan.nodes().next().context("a cluster without nodes")?;
        let network = format!("--net=/proc/{}/ns/net", self.process(&node.name)?);
        let mut command = Command::new("nsenter");
        command.arg(network).arg(program).env("KUBECONFIG", self.kubeconfig());
        Ok(command)
    }

    /// The kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("credentials").join(format!("{}.kubeconfig", credentials::ADMIN))
    }

    /// kubectl of the cluster's own version.
    fn kubectl_command(&self) -> Result<Command> {
        self.command(&self.folder.join("kubectl").display().to_string())
    }

    /// Runs kubectl in the repository's root and returns what it printed on stdout.
    ///
    /// # Errors
    /// It fails; the message has what it printed on stderr.
    pub(crate) fn kubectl(&self, words: &[&str]) -> Result<String> {
        shell::output(self.kubectl_command()?.args(words).current_dir(workspace::root()))
    }

    /// The last lines of a service's log.
    fn log_end(&self, machine: &str, service: &str) -> String {
        let logs = state::logs(&self.folder, machine);
        supervisor::log_end(&logs.join(format!("{service}.log")))
    }
}
