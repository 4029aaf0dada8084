//! Which of a kernel's modules a guest needs, in the order in which they can be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

/// What the tests use of a kernel beyond what is built in.
const WANTED: [&str; 14] = [
    "veth",
    "bridge",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_netem",
    "cls_matchall",
    "act_gact",
    "inet_diag",
    "tcp_diag",
    "ib_uverbs",
    "rdma_ucm",
    "rdma_rxe",
];
/// rdma_rxe needs it before 6.16. Newer kernels do not have it.
const IF_THERE: [&str; 1] = ["crc32_generic"];

/// One module, ready to be loaded.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// Reads the wanted modules and what they need, each after what it needs.
///
/// # Errors
/// The kernel has neither such a module nor has it built in, or it cannot be unpacked.
pub(super) fn wanted(folder: &Path, xz: &Path) -> Result<Vec<Module>> {
    let mut search = Search {
        files: files(folder)?,
        built_in: built_in(folder)?,
        seen: BTreeSet::new(),
        found: Vec::new(),
        xz,
    };
    for name in IF_THERE {
        if search.files.contains_key(name) {
            search.visit(name)?;
        }
    }
    for name in WANTED {
        search.visit(name)?;
    }
    Ok(search.found)
}

struct Search<'a> {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    seen: BTreeSet<String>,
    found: Vec<Module>,
    xz: &'a Path,
}

impl Search<'_> {
    fn visit(&mut self, name: &str) -> Result<()> {
        if self.built_in.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).with_context(|| format!("no module {name}"))?.clone();
        let bytes = unpacked(&path, self.xz)?;
        for needed in needs(&bytes).with_context(|| format!("reading {}", path.display()))? {
            self.visit(&needed)?;
        }
        self.found.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// Every module below the folder, by its name.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

/// A file's name without its ending, as the kernel spells it.
fn module_name(file: &str) -> Option<String> {
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz").then(|| name.replace('-', "_"))
}

fn built_in(folder: &Path) -> Result<BTreeSet<String>> {
    let path = folder.join("modules.builtin");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let names = text.lines().filter_map(|line| module_name(line.rsplit('/').next()?));
    Ok(names.collect())
}

fn unpacked(path: &Path, xz: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|ending| ending == "ko") {
        return std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    }
    let mut command = shell::command(xz);
    let output = command.args(["xz", "-dc"]).arg(path).output().context("starting xz")?;
    if !output.status.success() {
        bail!("{} cannot be unpacked: {}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// Names of the modules that a module depends on: `depends=` in its .modinfo section.
fn needs(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let rest = &module[at..];
    let end = rest.iter().position(|byte| *byte == 0)?;
    let names = std::str::from_utf8(&rest[..end]).ok()?;
    Some(names.split(',').filter(|name| !name.is_empty()).map(|n| n.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"ELF\0license=GPL\0depends=ib_core,ip6-udp-tunnel\0retpoline=Y\0";
        assert_eq!(needs(module).unwrap(), ["ib_core", "ip6_udp_tunnel"]);
        assert_eq!(needs(b"ELF\0license=GPL\0depends=\0").unwrap(), [""; 0]);
        assert_eq!(needs(b"ELF"), None);
    }

    #[test]
    fn dashes_in_file_names_are_underscores_in_module_names() {
        assert_eq!(module_name("crc32c-intel.ko.xz").as_deref(), Some("crc32c_intel"));
        assert_eq!(module_name("veth.ko").as_deref(), Some("veth"));
        assert_eq!(module_name("modules.builtin"), None);
    }
}
