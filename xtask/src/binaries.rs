//! The programs that cargo builds for tests and the demo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace};

/// The programs that tests and the demo run as processes.
#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) pd_router: PathBuf,
    pub(crate) sglang_sim: PathBuf,
    pub(crate) fleet_bench: PathBuf,
}

/// Builds the gateway, the simulated engine and the fleet benchmark; prints cargo's own progress.
///
/// # Errors
/// The build fails, or cargo names no executable.
pub(crate) fn build() -> Result<Binaries> {
    build_profile("dev")
}

/// As [`build`], with the optimised profile.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_release() -> Result<Binaries> {
    build_profile("release")
}

fn build_profile(profile: &str) -> Result<Binaries> {
    let mut build = shell::command(workspace::cargo());
    build.args(["build", "--bin", "pd-router", "--bin", "sglang-sim", "--bin", "fleet-bench"]);
    build.args(["--profile", profile]);
    let messages = built(&mut build).context("building pd-router, sglang-sim and fleet-bench")?;
    let find = |name| {
        executable(&messages, name).with_context(|| format!("cargo built no executable {name}"))
    };
    Ok(Binaries {
        pd_router: find("pd-router")?,
        sglang_sim: find("sglang-sim")?,
        fleet_bench: find("fleet-bench")?,
    })
}

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As tests run it.
    Dev,
    /// Optimised, in a folder of its own, and without paths of this machine in it: the same tree makes
    /// the same program wherever it is.
    Reproducible,
}

impl Profile {
    /// A command that builds with it.
    fn command(self) -> Result<Command> {
        let mut build = shell::command(workspace::cargo());
        build.arg("build");
        if self == Profile::Reproducible {
            let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
            let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
            let home = home.context("no cargo folder: neither CARGO_HOME nor HOME is set")?;
            let flags = [
                format!("--remap-path-prefix={}=/cargo", home.display()),
                format!("--remap-path-prefix={}=/pd-router", workspace::root().display()),
            ];
            build.args(["--locked", "--release"]);
            build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
            build.env("CARGO_TARGET_DIR", workspace::target().join("reproducible"));
        }
        Ok(build)
    }
}

/// Builds one program.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_program(profile: Profile, name: &str) -> Result<PathBuf> {
    let mut build = profile.command()?;
    // Both: features then unify as in other builds, and nothing is built twice.
    build.args(["--bin", "pd-router", "--bin", "sglang-sim"]);
    let messages = built(&mut build).context("building pd-router and sglang-sim")?;
    executable(&messages, name).with_context(|| format!("cargo built no executable {name}"))
}

/// Builds the gateway once more, with the object of the eBPF programs in it. It stands where no other build
/// puts its own, and shares everything with them but itself.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_carrier(object: &Path) -> Result<PathBuf> {
    build_agent(Profile::Dev, object)
}

/// As [`build_carrier`], with a profile.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_agent(profile: Profile, object: &Path) -> Result<PathBuf> {
    let mut build = profile.command()?;
    build.args(["--bin", "pd-router", "--features", "pd-router/embed-ebpf"]);
    let messages = built(build.env("PD_ROUTER_EBPF_OBJECT", object))
        .context("building pd-router with the eBPF object in it")?;
    let made = executable(&messages, "pd-router").context("cargo built no executable")?;
    let carrier = made.with_file_name("pd-router-carrier");
    std::fs::copy(&made, &carrier).with_context(|| format!("copying {}", made.display()))?;
    Ok(carrier)
}

/// Cargo's messages of a build.
fn built(build: &mut Command) -> Result<String> {
    let output = build
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo failed");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The executable of the program `name` among cargo's JSON messages, one a line.
pub(crate) fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = message.get("target")?;
        let is_library = target.get("kind")?.as_array()?.iter().any(|kind| kind == "lib");
        (!is_library && target.get("name")? == name)
            .then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_the_same_name_is_not_the_executable() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"pd-router","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"pd-router","kind":["bin"]},"executable":"/t/debug/pd-router"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "pd-router"), Some(PathBuf::from("/t/debug/pd-router")));
        assert_eq!(executable(messages, "sglang-sim"), None);
    }
}
