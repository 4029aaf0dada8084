//! Tests that need a machine of their own, with modules, cgroups and RDMA devices:
//! `cargo xtask test kernels` boots one for every kernel. Findings go into its matrix.

mod abilities;
mod attribution;
mod cgroups;
mod recorded;
mod rig;
mod roce;
mod writer;

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Reports a finding about this kernel to the host, which puts it into the matrix.
fn found(what: &str, how: impl Display) {
    report(&format!("{what} = {how}"));
}

/// Prints a value on the host that belongs in a document rather than in the matrix.
fn shown(what: &str, value: &serde_json::Value) {
    report(&format!("{what}: {value}"));
}

fn report(line: &str) {
    let path = std::env::var("PD_ROUTER_FINDINGS");
    let path = path.expect("PD_ROUTER_FINDINGS: run `cargo xtask test kernels`");
    let mut host = OpenOptions::new().append(true).open(path).expect("a line to the host");
    host.write_all(format!("\n@ {line}\n").as_bytes()).expect("writing to the host");
}

/// The kernel's version: 5.10.0-46-amd64 is (5, 10).
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse().unwrap_or(0));
    (numbers.next().expect("a number"), numbers.next().expect("another"))
}
