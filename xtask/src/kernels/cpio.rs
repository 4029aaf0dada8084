//! A cpio archive of the kind that the kernel unpacks into its first root ("newc",
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

/// An archive that grows. Paths are from the root, without a slash in front.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    /// A folder and those above it.
    pub(super) fn folder(&mut self, path: &str) {
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return;
        }
        self.above(path);
        self.entry(path, FOLDER | 0o755, (0, 0), b"");
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.above(path);
        self.entry(path, FILE | mode & 0o777, (0, 0), contents);
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.above(path);
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// A character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.above(path);
        self.entry(path, DEVICE | 0o600, (major, minor), b"");
    }

    /// Adds everything below `root` whose path from there is `wanted`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn tree(&mut self, root: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        self.branch(root, "", wanted)
    }

    fn branch(&mut self, root: &Path, below: &str, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let folder = root.join(below);
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if !wanted(&path) {
                continue;
            }
            let kind = entry.file_type()?;
            let reading = || format!("reading {}", entry.path().display());
            if kind.is_dir() {
                self.folder(&path);
                self.branch(root, &path, wanted)?;
            } else if kind.is_symlink() {
                let target = std::fs::read_link(entry.path()).with_context(reading)?;
                self.link(&path, &target.to_string_lossy());
            } else {
                let mode = entry.metadata()?.permissions().mode();
                self.file(&path, mode, &std::fs::read(entry.path()).with_context(reading)?);
            }
        }
        Ok(())
    }

    /// The finished archive; another may follow it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    fn above(&mut self, path: &str) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("no file of four gigabytes");
        let name = u32::try_from(path.len() + 1).expect("a path");
        // inode, mode, owner, group, links, time, size, the file's and the device's numbers, the
        // name's length, no checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_files_and_entries_are_aligned_to_four_bytes() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o755, b"hello");
        archive.link("a/d", "b/c");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let at: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert!(at.iter().all(|at| at % 4 == 0), "{at:?}");
        let names: Vec<&str> =
            at.iter().filter_map(|at| text.get(at + 110..)?.split('\0').next()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", "TRAILER!!!"]);
        assert_eq!(bytes.len() % 4, 0);
    }
}
