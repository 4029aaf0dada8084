//! `pd-router check`: what a gateway would make of a directory of manifests, without starting one.

use std::fmt::Write;

use anyhow::{Result, bail};
use router_core::fleet::Fleet;

use crate::config::CheckFlags;
use crate::control;
use crate::stdout::print;

/// Prints the ports, the pools and every problem.
///
/// # Errors
/// The directory cannot be read, or there is a problem.
pub fn run(flags: &CheckFlags) -> Result<()> {
    let fleet = control::read_manifests(&flags.manifests)?;
    print(&report(&fleet))?;
    match fleet.problems.len() {
        0 => Ok(()),
        1 => bail!("--manifests {}: 1 problem", flags.manifests.display()),
        count => bail!("--manifests {}: {count} problems", flags.manifests.display()),
    }
}

fn report(fleet: &Fleet) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for listener in &fleet.listeners {
        let protocol = if listener.secure() { "HTTPS" } else { "HTTP" };
        let rules = listener.rules().count();
        let port = listener.socket_port;
        _ = writeln!(out, "port {port}: {protocol}, listener {}, {rules} rules", listener.name);
    }
    for pool in &fleet.pools {
        let ready = if pool.can_serve() { "can serve".to_owned() } else { pool.shortage() };
        _ = writeln!(out, "pool {}: {ready}", pool.name);
    }
    for problem in &fleet.problems {
        _ = writeln!(out, "problem: {problem}");
    }
    out
}
