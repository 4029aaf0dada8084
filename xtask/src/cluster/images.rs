//! Images that nodes have: those that every cluster needs, and those that are loaded.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Cluster;
use super::programs::Programs;
use super::services::PAUSE_IMAGE;
use crate::images::archive::{Entry, Image};
use crate::{shell, workspace};

const PAUSE_SOURCE: &str = "tests/kubernetes/pause.c";

/// Loads the image of a pod's first process and that of CoreDNS into every node.
///
/// # Errors
/// There is no C compiler, or a node does not take an image.
pub(super) fn load_base(cluster: &Cluster, programs: &Programs) -> Result<()> {
    let pause = cluster.folder.join("pause");
    let mut compile = shell::command("cc");
    compile.args(["-static", "-Os", "-s", "-o"]).arg(&pause).arg(PAUSE_SOURCE);
    shell::output(compile.current_dir(workspace::root()))?;
    for (name, program) in
        [(PAUSE_IMAGE, &pause), ("localhost/pd-router-coredns:1", &programs.coredns())]
    {
        let archive = cluster.folder.join("image.tar");
        program_image(&[name], program, "0:0")?.write(&archive)?;
        load(cluster, &archive)?;
        fs::remove_file(&archive)?;
    }
    fs::remove_file(&pause).context("removing the program")
}

/// An image with one static program and `/tmp`.
///
/// # Errors
/// The program cannot be read.
pub(crate) fn program_image(names: &[&str], program: &Path, user: &'static str) -> Result<Image> {
    let content = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let name = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
    Ok(Image {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        entrypoint: format!("/{name}"),
        user,
        created: "1970-01-01T00:00:00Z".to_owned(),
        labels: BTreeMap::new(),
        entries: vec![
            Entry::Folder { path: "tmp/".to_owned(), mode: 0o1777 },
            Entry::File { path: name, mode: 0o755, content },
        ],
    })
}

/// Loads an archive, of Docker's or of the OCI's layout, into every node.
///
/// # Errors
/// The archive cannot be read, or a node does not take it.
pub(crate) fn load(cluster: &Cluster, archive: &Path) -> Result<()> {
    for machine in cluster.plan.nodes() {
        let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
        let mut import = Command::new("nsenter");
        import.args(["--mount", "--pid", "--net", "--target", &cluster.process(&machine.name)?]);
        import.args(["ctr", "--namespace", "k8s.io", "images", "import", "-"]);
        let output =
            import.current_dir("/").stdin(Stdio::from(file)).output().context("nsenter")?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{} does not load {}: {}", machine.name, archive.display(), stderr.trim());
        }
    }
    Ok(())
}
