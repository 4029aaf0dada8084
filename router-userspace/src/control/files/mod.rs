//! The directory source: reads manifests and polls for changes.
//!
//! File signatures are compared instead of using inotify. This works on every file system, and with
//! a mounted ConfigMap, whose files change when a symlink is swapped. A change is read when two
//! consecutive polls see the same signatures, so that a half-written file is not read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use router_core::fleet::Problem;

use super::document::{self, Content, Document};
use super::index::{Index, Source};
use super::objects::{Key, Object};

/// Maximum size of a file in bytes. A larger file is not read.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Maximum number of files, in the order of their names. The rest is not read.
pub const MAX_FILES: usize = 1_000;
/// Maximum number of polls to wait for a directory that keeps changing.
const MAX_WAITS: u32 = 3;

/// File metadata that changes whenever the file changes.
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

/// A file that has been read: its signature, and its objects in the index.
#[derive(Debug)]
struct LoadedFile {
    signature: Signature,
    objects: Vec<(Source, Key)>,
}

/// A directory of `*.yaml`, `*.yml` and `*.json` files. Subdirectories are ignored.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    loaded: BTreeMap<Arc<str>, LoadedFile>,
    /// The signatures at the last poll.
    last_poll: BTreeMap<Arc<str>, Signature>,
    waited: u32,
    first: bool,
    /// Why the directory could not be read at the last poll.
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
            last_poll: BTreeMap::new(),
            waited: 0,
            first: true,
            unreadable: None,
        })
    }

    /// Polls the directory. Once changes have settled, all of them are applied to `index` together.
    /// Returns whether the index has changed. Blocks on the file system.
    pub fn poll(&mut self, index: &mut Index) -> bool {
        let found = match scan(&self.path) {
            Ok(found) => found,
            Err(error) => return self.report_unreadable(index, &error),
        };
        let back = self.unreadable.take().is_some();
        let (found, ignored) = found;
        let unchanged = found.len() == self.loaded.len()
            && found.iter().all(|(name, signature)| {
                self.loaded.get(name).is_some_and(|loaded| loaded.signature == *signature)
            });
        if unchanged && !self.first && !back {
            self.waited = 0;
            return false;
        }
        let settled = self.first || self.last_poll == found || self.waited >= MAX_WAITS;
        if !settled {
            self.last_poll = found;
            self.waited += 1;
            return false;
        }
        (self.first, self.waited) = (false, 0);
        self.load(index, &found);
        self.report_ignored(index, ignored);
        self.last_poll = found;
        true
    }

    /// Reports that the directory cannot be read. Objects read before stay in effect.
    fn report_unreadable(&mut self, index: &mut Index, error: &io::Error) -> bool {
        let reason = format!("cannot be read: {error}; objects read before stay in effect");
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

    fn report_ignored(&self, index: &mut Index, ignored: usize) {
        let reason =
            || format!("has {ignored} files over the limit of {MAX_FILES}; they are ignored");
        let name = self.name();
        let problems = (ignored > 0).then(|| problem(&name, "TooMany", reason()));
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
                // Deleted since the scan.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    remove(index, &old);
                    index.report(name, Vec::new());
                    continue;
                }
                Err(error) => {
                    let kept =
                        if old.is_empty() { "" } else { "; objects read before stay in effect" };
                    let reason = format!("cannot be read: {error}{kept}");
                    index.report(name, vec![problem(name, "Unreadable", reason)]);
                    old
                }
            };
            self.loaded.insert(Arc::clone(name), LoadedFile { signature: *signature, objects });
        }
    }
}

/// Replaces the objects of a file in the index. An invalid document keeps its last valid version.
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
    let valid = LastValid::new(old);
    for document in documents {
        let Document { position, key, content, problems: mut own } = document;
        let source = Source::File { name: Arc::clone(name), document: position };
        match content {
            Content::Object(object) => entries.push((source, *object)),
            Content::Unhandled => {}
            Content::Broken(stand_in) => {
                // Only once, and not if the file has a valid version of the same object.
                let mut is_first = |object: &Object| present.insert(object.key());
                let mut kept: Vec<Object> = valid
                    .objects(key.as_ref(), position)
                    .iter()
                    .filter_map(|(source, key)| index.stored(source, key))
                    .filter(|object| !object.is_stand_in() && is_first(object))
                    .collect();
                if !kept.is_empty() {
                    for problem in &mut own {
                        let reason =
                            format!("{}; the last valid version stays in effect", problem.reason);
                        problem.reason = reason.into();
                    }
                } else {
                    kept.extend(stand_in.map(|object| *object).filter(is_first));
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

/// The objects of a file before it changed, so that a broken document finds its last valid version
/// without a search of all.
struct LastValid<'o> {
    by_key: HashMap<&'o Key, Vec<&'o (Source, Key)>>,
    by_position: HashMap<u32, Vec<&'o (Source, Key)>>,
}

impl<'o> LastValid<'o> {
    fn new(old: &'o [(Source, Key)]) -> LastValid<'o> {
        let mut valid = LastValid { by_key: HashMap::new(), by_position: HashMap::new() };
        for object in old {
            valid.by_key.entry(&object.1).or_default().push(object);
            if let Some(position) = object.0.document() {
                valid.by_position.entry(position).or_default().push(object);
            }
        }
        valid
    }

    /// The previous objects of a document: by key if it could be read, else by position in the file.
    /// A `List` has several.
    fn objects(&self, key: Option<&Key>, position: u32) -> &[&'o (Source, Key)] {
        let found = match key {
            Some(key) => self.by_key.get(key),
            None => self.by_position.get(&position),
        };
        found.map_or(&[], Vec::as_slice)
    }
}

fn problem(source: &Arc<str>, code: &'static str, reason: String) -> Problem {
    let source = Arc::clone(source);
    Problem { source, document: None, object: None, field: None, code, reason: reason.into() }
}

/// Returns the manifest files of a directory by name, and how many are over the limit.
fn scan(path: &Path) -> io::Result<(BTreeMap<Arc<str>, Signature>, usize)> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(path)? {
        // A file whose name is not UTF-8 is ignored.
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let ending = Path::new(&name).extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) && !name.starts_with('.') {
            names.insert(name);
        }
    }
    let ignored = names.len().saturating_sub(MAX_FILES);
    let mut found = BTreeMap::new();
    for name in names.into_iter().take(MAX_FILES) {
        // Follows symlinks. Dangling symlinks and deleted files are ignored. After any other error
        // the file stays in the list, and reading it reports the error.
        let signature = match std::fs::metadata(path.join(&name)) {
            Ok(metadata) if metadata.is_file() => Signature::of(&metadata),
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => Signature::default(),
        };
        found.insert(name.into(), signature);
    }
    Ok((found, ignored))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE_BYTES) {
        return Err(io::Error::other(format!(
            "is larger than the limit of {MAX_FILE_BYTES} bytes"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod documents;
#[cfg(test)]
pub(crate) mod tests;
