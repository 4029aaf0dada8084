//! [`Toolchain`]: a compiler with the standard library's source and unstable flags, for the eBPF programs
//! and the fuzz targets. rustup's nightly with rust-src is the usual one; Debian's rustc-web is another.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{shell, tools};

/// A compiler that can build core for another target.
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// A stable compiler needs leave for `-Z`.
    stable: bool,
}

impl Toolchain {
    /// Finds one, or installs Debian's.
    ///
    /// # Errors
    /// There is none, and it cannot be installed here.
    pub(crate) fn get() -> Result<Toolchain> {
        if let Some(toolchain) = Toolchain::find() {
            return Ok(toolchain);
        }
        tools::install_packages(&["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"])
            .context("this needs `rustup toolchain install nightly -c rust-src`")?;
        Toolchain::find().context("there is still no compiler with the standard library's source")
    }

    pub(crate) fn find() -> Option<Toolchain> {
        let rustup = |tool: &str| {
            let found = shell::output(
                shell::command("rustup").args(["which", "--toolchain"]).args(["nightly", tool]),
            );
            found.ok().map(|path| PathBuf::from(path.trim()))
        };
        let nightly = rustup("rustc").zip(rustup("cargo"));
        let nightly = nightly.map(|(rustc, cargo)| (cargo, rustc, false));
        let debian = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"), true);
        nightly
            .into_iter()
            .chain([debian])
            .map(|(cargo, rustc, stable)| Toolchain { cargo, rustc, stable })
            .find(|toolchain| toolchain.cargo.is_file() && has_source(&toolchain.rustc))
    }

    pub(crate) fn cargo(&self) -> &Path {
        &self.cargo
    }

    pub(crate) fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// A command that runs this cargo, or a program that runs it.
    ///
    /// # Errors
    /// The paths of its programs cannot be put into `PATH`.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = shell::command(program);
        command.env("RUSTC", &self.rustc).env("PATH", self.path()?).env_remove("RUSTUP_TOOLCHAIN");
        if self.stable {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        Ok(command)
    }

    /// The toolchain's own folder first, so that its cargo and clippy are found and not rustup's.
    fn path(&self) -> Result<OsString> {
        let own = self.cargo.parent().context("cargo stands in a folder")?.to_owned();
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(own).chain(std::env::split_paths(&rest));
        std::env::join_paths(folders).context("putting PATH together")
    }

    /// The major version of its LLVM.
    ///
    /// # Errors
    /// The compiler does not tell it.
    pub(crate) fn llvm_version(&self) -> Result<String> {
        let mut version = shell::command(&self.rustc);
        let version = shell::output(version.arg("-vV").env_remove("RUSTUP_TOOLCHAIN"))?;
        let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        match line.and_then(|version| version.split('.').next()) {
            Some(major) => Ok(major.to_owned()),
            None => bail!("{} does not name its LLVM", self.rustc.display()),
        }
    }
}

fn has_source(rustc: &Path) -> bool {
    let sysroot = shell::output(
        shell::command(rustc).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN"),
    );
    sysroot.is_ok_and(|sysroot| {
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").exists()
    })
}
