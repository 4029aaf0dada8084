//! Finds the object of the eBPF programs for a build that embeds it.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_EMBED_EBPF").is_none() {
        return;
    }
    println!("cargo::rerun-if-env-changed=PD_ROUTER_EBPF_OBJECT");
    let object = std::env::var_os("PD_ROUTER_EBPF_OBJECT").map_or_else(
        || {
            let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
            workspace.join("target/bpfel-unknown-none/ebpf/router-ebpf")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=PD_ROUTER_EMBEDDED_EBPF={}", object.display()),
        Err(error) => println!(
            "cargo::error=the eBPF object is not at {} ({error}): run `cargo xtask build-ebpf`",
            object.display()
        ),
    }
}
