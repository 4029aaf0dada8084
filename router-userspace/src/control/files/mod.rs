//! The source that reads a directory of manifests, and sees when they change.
//!
//! Signatures of files are compared rather than events awaited: that works on every file system,
//! and on a mounted ConfigMap, whose files change by swapping a symlink. A change is read when
//! the directory has been the same for two looks, so that a file is not read half written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use router_core::fleet::Problem;

use super::document::{self, Content, Document};
use super::index::{Index, Source};
use super::objects::{Key, Object};

/// Bytes of one file; a larger one is not read.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Files of the directory; the ones beyond, by name, are not read.
pub const MAX_FILES: usize = 1_000;
/// Looks that a directory which keeps changing is waited for.
const MAX_WAITS: u32 = 3;

/// What tells one state of a file from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &std::fs::Metadata) -> Signature {
        Signature {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file that was read: its state then, and what the index holds of it.
#[derive(Debug)]
struct Loaded {
    signature: Signature,
    objects: Vec<(Source, Key)>,
}

/// A directory of `*.yaml`, `*.yml` and `*.json` files. Directories in it are not entered.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    loaded: BTreeMap<Arc<str>, Loaded>,
    seen: BTreeMap<Arc<str>, Signature>,
    waited: u32,
    first: bool,
    /// Why the directory itself could not be read at the last look.
    unreadable: Option<String>,
}

impl Directory {
    /// Opens a directory; nothing is read yet.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Directory> {
        let path = path.into();
        std::fs::read_dir(&path)?;
        Ok(Directory {
            path,
            loaded: BTreeMap::new(),
            seen: BTreeMap::new(),
            waited: 0,
            first: true,
            unreadable: None,
        })
    }

    /// Looks at the directory, and reads what has changed and settled into `index`, all of it or
    /// nothing. Returns whether the index has changed. Blocks on the file system.
    pub fn poll(&mut self, index: &mut Index) -> bool {
        let found = match scan(&self.path) {
            Ok(found) => found,
            Err(error) => return self.lost(index, &error),
        };
        let back = self.unreadable.take().is_some();
        let (found, left_out) = found;
        let unchanged = found.len() == self.loaded.len()
            && found.iter().all(|(name, signature)| {
                self.loaded.get(name).is_some_and(|loaded| loaded.signature == *signature)
            });
        if unchanged && !self.first && !back {
            self.waited = 0;
            return false;
        }
        let settled = self.first || self.seen == found || self.waited >= MAX_WAITS;
        if !settled {
            self.seen = found;
            self.waited += 1;
            return false;
        }
        (self.first, self.waited) = (false, 0);
        self.load(index, &found);
        self.name_left_out(index, left_out);
        self.seen = found;
        true
    }

    /// The directory cannot be read: what was read of it goes on, and the problem is named.
    fn lost(&mut self, index: &mut Index, error: &io::Error) -> bool {
        let reason = format!("cannot be read: {error}; what was read before goes on");
        if self.unreadable.as_ref() == Some(&reason) {
            return false;
        }
        let name = self.name();
        index.report(&name, vec![problem(&name, "Unreadable", reason.clone())]);
        self.unreadable = Some(reason);
        true
    }

    fn name(&self) -> Arc<str> {
        self.path.to_string_lossy().into()
    }

    fn name_left_out(&self, index: &mut Index, left_out: usize) {
        let reason = || format!("has {left_out} files more than the {MAX_FILES} that are read");
        let name = self.name();
        let problems = (left_out > 0).then(|| problem(&name, "TooMany", reason()));
        index.report(&name, problems.into_iter().collect());
    }

    fn load(&mut self, index: &mut Index, found: &BTreeMap<Arc<str>, Signature>) {
        let gone: Vec<Arc<str>> =
            self.loaded.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in gone {
            for (source, key) in self.loaded.remove(&name).into_iter().flat_map(|l| l.objects) {
                index.remove(&source, &key);
            }
            index.report(&name, Vec::new());
        }
        for (name, signature) in found {
            let known = self.loaded.get(name);
            if known.is_some_and(|loaded| loaded.signature == *signature) {
                continue;
            }
            let old = self.loaded.remove(name).map(|loaded| loaded.objects).unwrap_or_default();
            let objects = match read(&self.path.join(&**name)) {
                Ok(text) => replace(index, name, &text, &old),
                // Gone since the look: the next one sees it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    remove(index, &old);
                    index.report(name, Vec::new());
                    continue;
                }
                Err(error) => {
                    let kept = if old.is_empty() { "" } else { "; what was read before goes on" };
                    let reason = format!("cannot be read: {error}{kept}");
                    index.report(name, vec![problem(name, "Unreadable", reason)]);
                    old
                }
            };
            self.loaded.insert(Arc::clone(name), Loaded { signature: *signature, objects });
        }
    }
}

/// Puts the documents of a file in the place of what the index held of it. A document that does
/// not parse keeps its last good version.
fn replace(
    index: &mut Index,
    name: &Arc<str>,
    text: &str,
    old: &[(Source, Key)],
) -> Vec<(Source, Key)> {
    let documents = document::read(name, text);
    let good = documents.iter().filter(|d| matches!(d.content, Content::Object(_)));
    let mut present: BTreeSet<Key> = good.filter_map(|d| d.key.clone()).collect();
    let mut problems = Vec::new();
    let mut entries: Vec<(Source, Object)> = Vec::new();
    for document in documents {
        let Document { position, key, content, problems: mut own } = document;
        let source = Source::File { name: Arc::clone(name), document: position };
        match content {
            Content::Object(object) => entries.push((source, *object)),
            Content::Foreign => {}
            Content::Broken => {
                // Once only, and not beside a good version of the same object.
                let kept: Vec<Object> = last_good(old, key.as_ref(), position)
                    .filter(|(_, key)| present.insert(key.clone()))
                    .filter_map(|(source, key)| index.held(source, key))
                    .collect();
                if !kept.is_empty() {
                    for problem in &mut own {
                        let reason = format!("{}; its last good version is kept", problem.reason);
                        problem.reason = reason.into();
                    }
                }
                entries.extend(kept.into_iter().map(|object| (source.clone(), object)));
            }
        }
        problems.extend(own);
    }
    remove(index, old);
    let objects = entries.iter().map(|(source, object)| (source.clone(), object.key())).collect();
    for (source, object) in entries {
        index.apply(source, object);
    }
    index.report(name, problems);
    objects
}

fn remove(index: &mut Index, objects: &[(Source, Key)]) {
    for (source, key) in objects {
        index.remove(source, key);
    }
}

/// The same object before: by its name where that could be read, else by its place in the file,
/// where a `List` has several.
fn last_good<'o>(
    old: &'o [(Source, Key)],
    key: Option<&Key>,
    position: u32,
) -> impl Iterator<Item = &'o (Source, Key)> {
    old.iter().filter(move |(source, known)| match key {
        Some(key) => known == key,
        None => source.document() == Some(position),
    })
}

fn problem(source: &Arc<str>, code: &'static str, reason: String) -> Problem {
    let source = Arc::clone(source);
    Problem { source, document: None, object: None, field: None, code, reason: reason.into() }
}

/// The manifests of a directory by name, and how many are beyond the limit.
fn scan(path: &Path) -> io::Result<(BTreeMap<Arc<str>, Signature>, usize)> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(path)? {
        // A name that is not UTF-8 has no manifest's ending either way.
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let ending = Path::new(&name).extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) && !name.starts_with('.') {
            names.insert(name);
        }
    }
    let left_out = names.len().saturating_sub(MAX_FILES);
    let mut found = BTreeMap::new();
    for name in names.into_iter().take(MAX_FILES) {
        // Follows symlinks; one that leads nowhere, or a file that has gone, is not there. Any
        // other failure is no reason to forget the file: reading it will say what is wrong.
        let signature = match std::fs::metadata(path.join(&name)) {
            Ok(metadata) if metadata.is_file() => Signature::of(&metadata),
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => Signature::default(),
        };
        found.insert(name.into(), signature);
    }
    Ok((found, left_out))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE_BYTES) {
        return Err(io::Error::other(format!("is larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod documents;
#[cfg(test)]
pub(crate) mod tests;
