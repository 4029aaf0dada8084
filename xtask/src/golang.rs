//! Programs of Go modules: `tests/kubernetes` holds a go.mod and go.sum for each, which name every
//! version and checksum. They are built once into the user's cache folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{shell, steps, workspace};

/// The Go modules, below the workspace.
const MODULES: &str = "tests/kubernetes";

/// A program of a module.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The path of its package.
    pub(crate) package: &'static str,
    /// Whether it is the test program of the package.
    pub(crate) is_test: bool,
}

/// A Go module of this workspace.
pub(crate) fn module(name: &str) -> PathBuf {
    workspace::root().join(MODULES).join(name)
}

/// Builds programs of `module` without cgo and without symbols, and returns their folder, which is
/// called `name` in the cache. They are built again when a version or `variables` change; `variables`
/// are strings of Go packages that the linker sets.
///
/// # Errors
/// There is no Go, the module proxy cannot be reached, or a program does not build.
pub(crate) fn build(
    name: &str,
    module: &Path,
    programs: &[Program],
    variables: &[String],
) -> Result<PathBuf> {
    let read = |file: &str| {
        let path = module.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let wanted = format!("{}\n{}\n{programs:?}\n{variables:?}", read("go.mod")?, read("go.sum")?);
    workspace::kept(name, &wanted, |folder| {
        std::fs::create_dir_all(folder.join("bin")).context("making a folder of programs")?;
        for program in programs {
            steps::step(&format!("building {}", program.name), || {
                build_one(module, program, variables, &folder.join("bin").join(program.name))
            })?;
        }
        Ok(())
    })
    .map(|folder| folder.join("bin"))
}

fn build_one(module: &Path, program: &Program, variables: &[String], to: &Path) -> Result<()> {
    let mut flags = String::from("-s -w");
    for variable in variables {
        flags.push_str(" -X ");
        flags.push_str(variable);
    }
    let mut go = command(module)?;
    match program.is_test {
        true => go.args(["test", "-c"]),
        false => go.arg("build"),
    };
    go.args(["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]);
    shell::run(go.arg(to).arg(program.package).env("CGO_ENABLED", "0"))
}

/// The Go command, run in the module's folder.
///
/// # Errors
/// There is no Go.
pub(crate) fn command(module: &Path) -> Result<std::process::Command> {
    let Some(go) = shell::which("go") else {
        bail!("install Go 1.26 or later first (https://go.dev/doc/install)");
    };
    // The build yields to everything else on the machine.
    let mut command = shell::command("nice");
    command.args(["-n", "19"]).arg(go).current_dir(module);
    Ok(command)
}

/// Where the source of the module at `path` is, of the version that `module` names.
///
/// # Errors
/// As [`build`].
pub(crate) fn source(module: &Path, path: &str) -> Result<PathBuf> {
    let printed = shell::output(command(module)?.args(["list", "-m", "-f", "{{.Dir}}", path]))?;
    let folder = PathBuf::from(printed.trim());
    if !folder.is_dir() {
        shell::run(command(module)?.args(["mod", "download", path]))?;
    }
    Ok(folder)
}
