//! Flags of commands that serve nothing, and how any flag can be given as an environment variable.

use std::path::PathBuf;

use clap::{Arg, Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Flags of `pd-router check`.
#[derive(Debug, Args)]
pub struct CheckFlags {
    /// Directory of YAML or JSON manifests.
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
}

/// Flags of `pd-router completions`.
#[derive(Debug, Args)]
pub struct CompletionFlags {
    /// Shell that reads the script.
    #[arg(value_enum)]
    pub shell: Shell,
}

impl CompletionFlags {
    /// The script, for the shell to read.
    #[must_use]
    pub fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "pd-router", &mut script);
        script
    }
}

/// Version, commit, and whether the agent carries its eBPF programs.
pub(super) fn long_version() -> String {
    let ebpf = if cfg!(feature = "embed-ebpf") { "embedded" } else { "not embedded" };
    let (version, commit) = (env!("CARGO_PKG_VERSION"), crate::COMMIT);
    format!("{version}\ncommit: {commit}\neBPF programs: {ebpf}")
}

/// Flags of `pd-router crds`.
#[derive(Debug, Args)]
pub struct CrdFlags {
    /// Directory to write one YAML file per definition to, instead of printing them.
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// The command line. Flags can be given as environment variables as well: `--max-body` as
/// `PD_ROUTER_MAX_BODY`.
#[must_use]
pub fn command() -> clap::Command {
    let command = Cli::command();
    let names: Vec<String> =
        command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |subcommand| subcommand.mut_args(with_variable))
    })
}

fn with_variable(flag: Arg) -> Arg {
    // Kubernetes sets PD_ROUTER_PORT in the pods of a namespace with a Service of the name pd-router.
    let long = flag.get_long().filter(|long| *long != "port" && flag.get_env().is_none());
    let Some(long) = long else { return flag };
    let name = format!("PD_ROUTER_{}", long.to_ascii_uppercase().replace('-', "_"));
    flag.env(name).hide_env(true)
}
