//! `cargo xtask setup`: what a fresh machine lacks, found or installed through ordinary clients.

use anyhow::{Context, Result, bail};

use crate::{ebpf, python, shell};

/// A program that building or testing needs, and the Debian packages that bring it.
struct Need {
    program: &'static str,
    packages: &'static [&'static str],
    purpose: &'static str,
}

const NEEDS: [Need; 3] = [
    Need { program: "cc", packages: &["gcc", "libc6-dev"], purpose: "crates that build C" },
    Need { program: "curl", packages: &["curl"], purpose: "the documents' request" },
    Need {
        program: "python3",
        packages: &["python3", "python3-venv"],
        purpose: "the official client's tests",
    },
];

/// Finds or installs each need, and says in one line what was chosen.
///
/// # Errors
/// Something is missing and cannot be installed here.
pub(crate) fn run() -> Result<()> {
    for need in &NEEDS {
        let path = match shell::which(need.program) {
            Some(path) => path,
            None => {
                install(need.packages)
                    .with_context(|| format!("{} is missing ({})", need.program, need.purpose))?;
                shell::which(need.program)
                    .with_context(|| format!("{} is still missing", need.program))?
            }
        };
        println!("{}: {} ({})", need.program, path.display(), need.purpose);
    }
    println!("venv: {} (openai's Python client)", python::venv()?.display());
    if let Err(error) = ebpf::setup() {
        // The gateway and every pure room build and test without it.
        println!("kernel half: cannot be built here: {error:#}");
    }
    match shell::which("cargo-nextest") {
        Some(path) => println!("test runner: {}", path.display()),
        None => println!("test runner: cargo test (cargo-nextest is used where it is installed)"),
    }
    Ok(())
}

/// Installs Debian packages where this is Debian and root; says what to do where not.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if shell::which("apt-get").is_none() || !nix::unistd::geteuid().is_root() {
        bail!("install it first (Debian: apt-get install {})", packages.join(" "));
    }
    // Two chores at once wait for each other on apt's own locks.
    let apt = |words: &[&str]| {
        let mut command = shell::command("apt-get");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).args(words);
        shell::run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    println!("installing {}", packages.join(" "));
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], packages].concat())
}
