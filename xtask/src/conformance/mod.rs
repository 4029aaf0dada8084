//! `cargo xtask conformance`: suites of others, unchanged, on a cluster with nodes.

mod page;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::binaries::Profile;
use crate::cluster::{self, Cluster};
use crate::golang::{self, Program};
use crate::steps::step;
use crate::{images, shell, workspace};

#[cfg(test)]
pub(crate) use page::EXAMPLE;
pub(crate) use page::{PAGE, REPORT, page};

/// The Go module of the suite.
const MODULE: &str = "gateway-api";
const SUITE: &str = "sigs.k8s.io/gateway-api/conformance";
const DEFINITIONS: &str = "sigs.k8s.io/gateway-api";
const PROGRAMS: [Program; 2] = [
    Program {
        name: "echo-basic",
        package: "sigs.k8s.io/gateway-api/conformance/echo-basic",
        is_test: false,
    },
    Program { name: "conformance", package: SUITE, is_test: true },
];
/// What is installed besides the definitions of others.
const KUSTOMIZATION: &str = "tests/kubernetes/conformance";
const PROFILE: &str = "GATEWAY-HTTP";
const GATEWAY_CLASS: &str = "pd-router";
/// The suite takes some ten minutes; without an end of its own a hanging one would hold a CI.
const TIMEOUT: &str = "60m";

/// Which suite to run, and how.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[arg(value_enum)]
    suite: Suite,
    /// Put the optimised gateway into the image, which takes minutes more to build.
    #[arg(long)]
    release: bool,
    /// Run this test alone, and write no report.
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
    /// Write nothing to docs/, and fail if the report differs from the committed one in more than its
    /// date.
    #[arg(long, conflicts_with = "test")]
    check: bool,
    /// Name of the cluster. It is started if it does not run, and then taken down at the end.
    #[arg(long, default_value = "conformance")]
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// The Gateway API's suite, profile GATEWAY-HTTP, with the features that the GatewayClass lists.
    Gateway,
    /// No suite: write the page again from the report that is there.
    Page,
}

/// Runs the suite on a cluster and writes its report and the page that shows it.
///
/// # Errors
/// The cluster cannot be started, or a test of the suite fails; the report is written then too.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    if flags.suite == Suite::Page {
        return write_page();
    }
    let ran = cluster::is_up(&flags.name)?;
    cluster::up(&flags.name, 2)?;
    let result = on(&Cluster::get(&flags.name)?, flags);
    // After a failure the cluster is the evidence, or its logs if no one is there to look at it.
    if !ran && (result.is_ok() || flags.check) {
        let down = cluster::down(&flags.name, flags.check && result.is_ok());
        return result.and(down);
    }
    result
}

fn on(cluster: &Cluster, flags: &Flags) -> Result<()> {
    let module = golang::module(MODULE);
    let programs = golang::build("go-gateway-api", &module, &PROGRAMS, &[])?;
    let profile = if flags.release { Profile::Reproducible } else { Profile::Dev };
    let gateway = images::make(images::Name::Gateway, profile)?;
    step("loading images into the nodes", || {
        cluster::load(cluster, &gateway)?;
        load_backends(cluster, &golang::source(&module, SUITE)?, &programs)
    })?;
    step("installing definitions and pd-router", || install(cluster, &module))?;
    let report = match flags.check {
        true => workspace::target().join("images/conformance.yaml"),
        false => workspace::root().join(REPORT),
    };
    if flags.test.is_none() {
        // One of an earlier run must not stand for this one.
        _ = fs::remove_file(&report);
    }
    let mut suite = cluster.command(&programs.join("conformance").display().to_string())?;
    suite.current_dir(workspace::root());
    // The other tests of the program are of its flags, and read files beside its source.
    suite.args(["-test.v", "-test.run", "^TestConformance$", "-test.timeout", TIMEOUT]);
    suite.args(["-gateway-class", GATEWAY_CLASS]);
    suite.args(["-conformance-profiles", PROFILE]);
    match &flags.test {
        Some(test) => _ = suite.args(["-run-test", test]),
        None => {
            suite.args(["-organization", "pd-router", "-project", "pd-router"]);
            suite.args(["-url", "unpublished", "-contact", "SECURITY.md"]);
            suite.args(["-version", concat!("v", env!("CARGO_PKG_VERSION"))]);
            suite.arg("-report-output").arg(&report);
        }
    }
    let ran = step("running the suite", || shell::run(&mut suite));
    if flags.check {
        return ran.and_then(|()| check(&report));
    }
    if flags.test.is_none() && report.is_file() {
        write_page()?;
    }
    ran
}

/// Runs the suite as a part of ci.
///
/// # Errors
/// As [`run`], or the committed report is not what comes out.
pub(crate) fn check_gateway() -> Result<()> {
    // Two at once do not meet.
    let name = format!("conformance-{}", std::process::id());
    run(&Flags { suite: Suite::Gateway, release: false, test: None, check: true, name })
}

/// Compares a report with the committed one; only their dates may differ.
fn check(report: &Path) -> Result<()> {
    let read = |path: &Path| {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok::<_, anyhow::Error>(
            text.lines().filter(|line| !line.starts_with("date: ")).collect::<String>(),
        )
    };
    if read(report)? != read(&workspace::root().join(REPORT))? {
        bail!(
            "{} is not what {REPORT} says: run `cargo xtask conformance gateway`",
            report.display()
        );
    }
    Ok(())
}

fn write_page() -> Result<()> {
    let root = workspace::root();
    let report = fs::read_to_string(root.join(REPORT)).context("reading the report")?;
    fs::write(root.join(PAGE), page(&report)?).context("writing the page")?;
    println!("{PAGE} is made from {REPORT}");
    Ok(())
}

/// Loads the suite's own backends, under each name that its manifests use.
fn load_backends(cluster: &Cluster, source: &Path, programs: &Path) -> Result<()> {
    let mut names = Vec::new();
    for folder in ["base", "tests"] {
        for entry in fs::read_dir(source.join(folder)).context("the suite's manifests")? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "yaml") {
                names.extend(image_names(&fs::read_to_string(&path)?));
            }
        }
    }
    names.sort();
    names.dedup();
    let (dns, echo): (Vec<&str>, Vec<&str>) =
        names.iter().map(String::as_str).partition(|name| name.contains("/coredns:"));
    if let Some(other) = echo.iter().find(|name| !name.contains("/echo-basic:")) {
        bail!("the suite uses an image that is not known here: {other}");
    }
    let archive = workspace::target().join("images/backend.tar");
    let coredns = cluster::coredns()?;
    let all: [(&[&str], PathBuf); 2] = [(&echo, programs.join("echo-basic")), (&dns, coredns)];
    for (names, program) in all {
        cluster::program_image(names, &program, "0:0")?.write(&archive)?;
        cluster::load(cluster, &archive)?;
    }
    fs::remove_file(&archive).context("removing the archive")
}

/// The images that a manifest names.
fn image_names(manifest: &str) -> Vec<String> {
    let lines = manifest.lines().map(|line| line.trim().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix("image: ")).map(str::to_owned).collect()
}

/// The folder with the Gateway API's standard definitions, of the suite's version.
///
/// # Errors
/// There is no Go, or the module cannot be fetched.
pub(crate) fn definitions() -> Result<PathBuf> {
    Ok(golang::source(&golang::module(MODULE), DEFINITIONS)?.join("config/crd/standard"))
}

fn install(cluster: &Cluster, module: &Path) -> Result<()> {
    let definitions = golang::source(module, DEFINITIONS)?.join("config/crd");
    cluster.kubectl(&["apply", "--server-side", "-k", &definitions.display().to_string()])?;
    cluster.kubectl(&["apply", "--server-side", "-k", "deploy/crds"])?;
    let namespaced = ["--namespace", "pd-router-system"];
    let class = format!("gatewayclass/{GATEWAY_CLASS}");
    // A gateway of an earlier run would write the features that it has into the class.
    let gone = ["delete", "--ignore-not-found", "--cascade=foreground"];
    let deployment = ["deployment/pd-router-gateway"];
    cluster.kubectl(&[&gone[..], &deployment, &namespaced].concat())?;
    cluster.kubectl(&[&gone[..], &[&class]].concat())?;
    cluster.kubectl(&["apply", "-k", KUSTOMIZATION])?;
    let rollout = ["rollout", "status", "deployment/pd-router-gateway", "--timeout=240s"];
    cluster.kubectl(&[&rollout[..], &namespaced].concat())?;
    cluster.kubectl(&["wait", "--for=condition=Accepted", &class, "--timeout=120s"]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_manifest_are_found() {
        let manifest =
            "spec:\n  containers:\n  - image: a/b:1\n    name: x\n  - name: y\n    image: c:2\n";
        assert_eq!(image_names(manifest), ["a/b:1", "c:2"]);
    }
}
