//! The files that are checked, as plain data: a path and a text each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use super::blank::blank;

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) path: String,
    /// From 1; 0 for the file as a whole.
    pub(super) line: usize,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(path: &str, line: usize, message: impl Into<String>) -> Problem {
        Problem { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// One file's text, and for Rust the same with comments and literals blanked out.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) text: String,
    pub(super) code: String,
}

/// Every text file of the workspace by its path from the root, with `/` between folders.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) files: BTreeMap<String, Source>,
    /// Pictures and the like, to which links lead.
    binary: BTreeSet<String>,
}

/// Folders of the programs and libraries.
const PRODUCT: [&str; 3] = ["router-userspace/", "router-common/", "router-ebpf/"];
/// Parts of the paths of what stands among them and does not ship.
const UNSHIPPED: [&str; 9] = [
    "/build.rs",
    "/benches/",
    "/tests/",
    "/fuzz/",
    "/laws/",
    "/laws.rs",
    "/golden/",
    "/golden.rs",
    "/tests.rs",
];

/// Folders without sources of this project.
const SKIPPED: [&str; 5] = ["target", ".git", "node_modules", "__pycache__", "corpus"];

impl Tree {
    pub(super) fn read(root: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.read_folder(root, "")?;
        Ok(tree)
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in files {
            tree.add((*path).to_owned(), (*text).to_owned());
        }
        tree
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let entries =
            std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if kind.is_dir() {
                self.read_folder(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() {
                match std::fs::read_to_string(entry.path()) {
                    Ok(text) => self.add(path, text),
                    // Not UTF-8: a picture or a captured body, which no rule is about.
                    Err(_) => _ = self.binary.insert(path),
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: String, text: String) {
        let code = if path.ends_with(".rs") { blank(&text) } else { String::new() };
        self.files.insert(path, Source { text, code });
    }

    /// The Rust files.
    pub(super) fn rust(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.ending(".rs")
    }

    /// The Rust files of programs and libraries, without their tests, benches, build scripts and fuzz
    /// targets.
    pub(super) fn shipped(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.rust().filter(|(path, _)| {
            PRODUCT.iter().any(|folder| path.starts_with(folder))
                && !UNSHIPPED.iter().any(|part| path.contains(part))
        })
    }

    /// Files whose path ends so.
    pub(super) fn ending<'a>(
        &'a self,
        end: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Source)> + 'a {
        self.files
            .iter()
            .filter(move |(path, _)| path.ends_with(end))
            .map(|(path, source)| (path.as_str(), source))
    }

    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(|source| source.text.as_str())
    }

    /// Whether a file or a folder of that path exists.
    pub(super) fn exists(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.files.contains_key(path)
            || self.binary.contains(path)
            || self.files.keys().any(|file| file.starts_with(&folder))
    }
}
