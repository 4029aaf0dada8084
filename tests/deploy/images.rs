//! Images: of this version everywhere, small, and the gateway's without root.

use std::collections::BTreeSet;

use crate::read;
use crate::rendering::{WAYS, kustomize};

/// The lines of a Dockerfile, with their continuations and without comments.
fn instructions(path: &str) -> Vec<String> {
    let text = read(path).replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn every_place_names_the_same_version() {
    let version = env!("CARGO_PKG_VERSION");
    for way in &WAYS {
        let all = kustomize(way.folder);
        let mut images = BTreeSet::new();
        for object in all.values() {
            let pod = &object["spec"]["template"]["spec"];
            for list in [&pod["containers"], &pod["initContainers"]] {
                let containers = list.as_array().into_iter().flatten();
                images.extend(containers.filter_map(|c| c["image"].as_str().map(str::to_owned)));
            }
        }
        let wanted = [format!("pd-router-agent:{version}"), format!("pd-router:{version}")];
        assert_eq!(images, wanted.into(), "{}", way.folder);
    }
    let chart = read("deploy/chart/Chart.yaml");
    assert!(chart.contains(&format!("\nversion: {version}\nappVersion: {version}\n")), "{chart}");
}

#[test]
fn images_are_built_in_stages_and_end_in_one_without_a_shell() {
    let toolchain = read("Cargo.toml");
    let toolchain = toolchain.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let toolchain = toolchain.expect("a toolchain").trim_matches('"');
    for (path, last, embeds) in [
        ("deploy/images/gateway.Dockerfile", "gcr.io/distroless/cc-debian12:nonroot", false),
        ("deploy/images/agent.Dockerfile", "gcr.io/distroless/cc-debian12", true),
    ] {
        let lines = instructions(path);
        let stages: Vec<&String> = lines.iter().filter(|line| line.starts_with("FROM ")).collect();
        assert_eq!(stages.len(), 2, "{path}");
        assert_eq!(*stages[0], format!("FROM rust:{toolchain}-bookworm AS build"), "{path}");
        assert_eq!(*stages[1], format!("FROM {last}"), "{path}");
        let builds = lines.iter().find(|line| line.contains("cargo build")).expect("a build");
        assert!(builds.contains("--locked") && builds.contains("--release"), "{builds}");
        assert_eq!(builds.contains("--features embed-ebpf"), embeds, "{builds}");
        let last = lines.last().expect("an entry point");
        assert_eq!(last, r#"ENTRYPOINT ["/usr/local/bin/pd-router"]"#, "{path}");
    }
}
