//! Renderings: the objects that kustomize or helm makes, by what identifies them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::root;

/// Objects by `apiVersion kind namespace/name`.
pub(crate) type Objects = BTreeMap<String, Value>;

/// One way to install, in both tools.
pub(crate) struct Way {
    /// The folder of the kustomization.
    pub(crate) folder: &'static str,
    /// Flags of helm that render the same objects.
    pub(crate) flags: &'static [&'static str],
}

const DOCUMENTS: &str = "deploy/chart/values-documents.yaml";
const ACK: &str = "deploy/chart/values-ack.yaml";

/// Where the agent has the node's devices.
pub(crate) const ERDMA: &str = "tests/deploy/erdma";

/// Where the agent may raise the limit of locked memory.
pub(crate) const LOCKED_MEMORY: &str = "tests/deploy/locked-memory";

/// Every way to install.
pub(crate) const WAYS: [Way; 7] = [
    Way { folder: "deploy/base", flags: &[] },
    Way { folder: "deploy/overlays/documents", flags: &["--values", DOCUMENTS] },
    Way { folder: "deploy/overlays/ack", flags: &["--values", ACK] },
    Way { folder: "deploy/overlays/local", flags: &["--values", "deploy/chart/values-local.yaml"] },
    Way { folder: ERDMA, flags: &["--values", ACK, "--set", "agent.erdmaDevice=true"] },
    Way {
        folder: LOCKED_MEMORY,
        flags: &[
            "--values",
            ACK,
            "--set",
            "agent.capabilities={BPF,NET_ADMIN,PERFMON,SYS_PTRACE,SYS_RESOURCE}",
        ],
    },
    Way {
        folder: "tests/deploy/monitored",
        flags: &["--values", DOCUMENTS, "--set", "monitoring.enabled=true"],
    },
];

pub(crate) fn program(variable: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!("{variable} is not set; run `cargo xtask test deploy`, which finds or fetches it")
    })
}

/// What `kubectl kustomize` makes of a folder.
pub(crate) fn kustomize(folder: &str) -> Objects {
    let mut command = Command::new(program("KUBECTL_BIN"));
    objects(&output(command.arg("kustomize").arg(root().join(folder))).expect(folder))
}

/// What `helm template` makes of the chart, without its definitions, or its error about the flags.
pub(crate) fn helm(flags: &[&str]) -> Result<Objects, String> {
    let mut command = Command::new(program("HELM_BIN"));
    command.current_dir(root()).args(["template", "pd-router", "deploy/chart"]);
    // A kustomization brings its namespace; helm makes it where it installs.
    command.args(["--namespace", "pd-router-system", "--set", "createNamespace=true"]);
    output(command.args(flags)).map(|text| objects(&text))
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).expect("UTF-8")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn objects(text: &str) -> Objects {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let mut objects = Objects::new();
    for object in all.into_iter().filter(|object| !object.is_null()) {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let key = format!(
            "{} {} {}/{}",
            text("/apiVersion"),
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name")
        );
        assert!(objects.insert(key.clone(), object).is_none(), "{key} twice");
    }
    objects
}
