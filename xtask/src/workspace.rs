//! Where things are: the workspace, the user's cache folder, the binaries that cargo built.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace")
}

/// `~/.cache/pd-router`, made if missing; what is in it can be deleted at any time.
///
/// # Errors
/// No home folder is known, or the folder cannot be made.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| Path::new(path).is_absolute())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .context("no cache folder: neither XDG_CACHE_HOME nor HOME is set")?;
    let folder = base.join("pd-router");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Where cargo puts what it builds: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub(crate) fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").filter(|name| !name.is_empty());
    root().join(named.unwrap_or_else(|| "target".into()))
}

/// The cargo that runs this chore.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The programs that tests and the demo run as processes.
#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) pd_router: PathBuf,
    pub(crate) sglang_sim: PathBuf,
}

/// Builds the gateway and the simulated engine; prints cargo's own progress.
///
/// # Errors
/// The build fails, or cargo names no executable.
pub(crate) fn build_binaries() -> Result<Binaries> {
    build("dev")
}

/// As [`build_binaries`], with the optimised profile.
///
/// # Errors
/// As [`build_binaries`].
pub(crate) fn build_release_binaries() -> Result<Binaries> {
    build("release")
}

fn build(profile: &str) -> Result<Binaries> {
    let mut build = shell::command(cargo());
    build.args(["build", "--bin", "pd-router", "--bin", "sglang-sim", "--profile", profile]);
    let messages = built(&mut build).context("building pd-router and sglang-sim")?;
    let find = |name| {
        executable(&messages, name).with_context(|| format!("cargo built no executable {name}"))
    };
    Ok(Binaries { pd_router: find("pd-router")?, sglang_sim: find("sglang-sim")? })
}

/// Builds the gateway once more, with the object of the eBPF programs in it. It stands where no other build
/// puts its own, and shares everything with them but itself.
///
/// # Errors
/// As [`build_binaries`].
pub(crate) fn build_carrier(object: &Path) -> Result<PathBuf> {
    let mut build = shell::command(cargo());
    build.args(["build", "--bin", "pd-router", "--features", "pd-router/embed-ebpf"]);
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
