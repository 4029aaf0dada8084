//! `cargo xtask images`: the images of `deploy/` as archives, made without a container engine.

pub(crate) mod archive;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::binaries::{self, Profile};
use crate::steps::step;
use crate::{ebpf, shell, tools, workspace};
use archive::{Entry, Image};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Time of an image that is of no commit.
const NO_TIME: &str = "1970-01-01T00:00:00Z";
/// What the C library reads to resolve names and users.
const PASSWD: &str =
    "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
const NSSWITCH: &str = "hosts: files dns\n";

/// Which images to make.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Images to make. Without it all are made.
    #[arg(value_enum)]
    images: Vec<Name>,
    /// Put in the programs that tests run, which are not optimised. Their digest depends on where the
    /// workspace is.
    #[arg(long)]
    dev: bool,
}

/// An image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// The gateway.
    Gateway,
    /// The agent, with the eBPF programs in it.
    Agent,
    /// The simulated engine.
    SglangSim,
}

impl Name {
    const ALL: [Name; 3] = [Name::Gateway, Name::Agent, Name::SglangSim];

    /// The name in `deploy/`, without its tag.
    fn repository(self) -> &'static str {
        match self {
            Name::Gateway => "pd-router",
            Name::Agent => "pd-router-agent",
            Name::SglangSim => "sglang-sim",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Name::Gateway | Name::Agent => "pd-router",
            Name::SglangSim => "sglang-sim",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Name::Gateway => {
                "Inference gateway for SGLang engines that run prefill and decode apart"
            }
            Name::Agent => "Node agent of pd-router: what engines do on the network, with eBPF",
            Name::SglangSim => "An engine without a model that behaves like SGLang",
        }
    }

    /// The agent loads eBPF programs; the others need no rights.
    fn user(self) -> &'static str {
        match self {
            Name::Agent => "0:0",
            Name::Gateway | Name::SglangSim => "65532:65532",
        }
    }
}

/// Makes the images in `target/images` and prints file, name and digest of each.
///
/// # Errors
/// A program does not build, or a file cannot be written.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let names = if flags.images.is_empty() { &Name::ALL[..] } else { &flags.images[..] };
    let profile = if flags.dev { Profile::Dev } else { Profile::Reproducible };
    for name in names {
        make(*name, profile)?;
    }
    Ok(())
}

/// Makes an image and returns its archive.
///
/// # Errors
/// As [`run`].
pub(crate) fn make(name: Name, profile: Profile) -> Result<PathBuf> {
    let repository = name.repository();
    step(&format!("making the image {repository}:{VERSION}"), || {
        let program = build(name, profile)?;
        let folder = workspace::target().join("images");
        fs::create_dir_all(&folder).context("making the folder of images")?;
        let archive = folder.join(format!("{repository}.tar"));
        let digest = image(name, &program)?.write(&archive)?;
        println!("{} {repository}:{VERSION}@{digest}", archive.display());
        Ok(archive)
    })
}

fn build(name: Name, profile: Profile) -> Result<PathBuf> {
    match name {
        Name::Agent => binaries::build_agent(profile, &ebpf::build()?),
        Name::Gateway | Name::SglangSim => binaries::build_program(profile, name.program()),
    }
}

/// The image of a program, without its symbols and with the shared libraries that it names.
fn image(name: Name, program: &Path) -> Result<Image> {
    let mut files = vec![
        ("etc/passwd".to_owned(), 0o644, PASSWD.into()),
        ("etc/group".to_owned(), 0o644, GROUP.into()),
        ("etc/nsswitch.conf".to_owned(), 0o644, NSSWITCH.into()),
        (format!("usr/local/bin/{}", name.program()), 0o755, stripped(program)?),
    ];
    let printed = shell::output(shell::command("ldd").arg(program))?;
    for library in libraries(&printed) {
        let content = fs::read(library).with_context(|| format!("reading {library}"))?;
        files.push((library.trim_start_matches('/').to_owned(), 0o755, content));
    }
    files.sort();
    let (created, revision) = commit()?;
    let mut labels = BTreeMap::from([
        ("title", name.repository().to_owned()),
        ("description", name.description().to_owned()),
        ("version", VERSION.to_owned()),
        ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
    ]);
    if let Some(revision) = revision {
        labels.insert("revision", revision);
    }
    let label = |(key, value)| (format!("org.opencontainers.image.{key}"), value);
    Ok(Image {
        names: vec![format!("docker.io/library/{}:{VERSION}", name.repository())],
        entrypoint: format!("/usr/local/bin/{}", name.program()),
        user: name.user(),
        created,
        labels: labels.into_iter().map(label).collect(),
        entries: with_folders(files),
    })
}

/// The program without symbols, a fifth of its size.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    if shell::which("strip").is_none() {
        tools::install_packages(&["binutils"])?;
    }
    let to = workspace::target().join("images").join("stripped");
    shell::output(shell::command("strip").args(["--strip-all", "-o"]).arg(&to).arg(program))?;
    let content = fs::read(&to).context("reading the stripped program")?;
    fs::remove_file(&to)?;
    Ok(content)
}

/// The files that `ldd` lists: libraries, and the loader that the program names itself.
fn libraries(printed: &str) -> Vec<&str> {
    let path = |line: &'_ str| {
        let start = line.find('/')?;
        line[start..].split_whitespace().next().map(|path| (start, path.len()))
    };
    printed
        .lines()
        .filter_map(|line| path(line).map(|(start, length)| &line[start..start + length]))
        .collect()
}

/// Files in their order, each folder once before what is in it.
fn with_folders(files: Vec<(String, u32, Vec<u8>)>) -> Vec<Entry> {
    let mut folders = BTreeSet::from([("tmp/".to_owned(), 0o1777)]);
    for (path, ..) in &files {
        for (end, _) in path.match_indices('/') {
            folders.insert((path[..=end].to_owned(), 0o755));
        }
    }
    let folders = folders.into_iter().map(|(path, mode)| Entry::Folder { path, mode });
    let files = files.into_iter().map(|(path, mode, content)| Entry::File { path, mode, content });
    folders.chain(files).collect()
}

/// Time and id of the commit that the tree is, or none where the tree differs from it.
fn commit() -> Result<(String, Option<String>)> {
    let git = |words: &[&str]| shell::output(shell::command("git").args(words).env("TZ", "UTC"));
    let Ok(changed) = git(&["status", "--porcelain"]) else {
        return Ok((NO_TIME.to_owned(), None));
    };
    if !changed.is_empty() {
        return Ok((NO_TIME.to_owned(), None));
    }
    let shown = git(&["log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%cd %H"])?;
    let Some((created, revision)) = shown.trim().split_once(' ') else {
        bail!("git names no commit");
    };
    Ok((created.to_owned(), Some(revision.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd() {
        let printed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                       \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(printed), expected);
    }

    #[test]
    fn a_static_program_has_no_libraries() {
        assert_eq!(libraries("\tstatically linked\n"), Vec::<&str>::new());
    }

    #[test]
    fn folders_come_once_and_before_their_files() {
        let files = ["lib/a", "lib/b/c"].map(|path| (path.to_owned(), 0o644, Vec::new()));
        let paths: Vec<String> = with_folders(files.into())
            .into_iter()
            .map(|entry| match entry {
                Entry::Folder { path, .. } | Entry::File { path, .. } => path,
            })
            .collect();
        assert_eq!(paths, ["lib/", "lib/b/", "tmp/", "lib/a", "lib/b/c"]);
    }
}
