//! The first root of a guest: programs and libraries, the same for all, then a kernel's modules.

use anyhow::Result;

use super::LIMIT;
use super::build::Programs;
use super::cpio::Archive;
use super::debian::{Kernel, Store};
use super::modules;

const INIT: &[u8] = include_bytes!("init.sh");

/// What the shell and the tests call and busybox is; `ip` and others are the real ones.
const APPLETS: [&str; 14] = [
    "cat", "chmod", "cp", "insmod", "ls", "mkdir", "mount", "reboot", "rm", "sleep", "true",
    "umount", "uname", "kill",
];

/// Programs, libraries, tests and their arguments.
///
/// # Errors
/// A file cannot be read.
pub(super) fn base(store: &Store, programs: &Programs, arguments: &[String]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp", "run", "root", "guest/modules"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.tree(&store.tools, &is_needed)?;
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "/bin/busybox");
    }
    archive.link("bin/sh", "dash");
    archive.file("init", 0o755, INIT);
    archive.file("guest/pd-router", 0o755, &programs.pd_router);
    archive.file("guest/sglang-sim", 0o755, &programs.sglang_sim);
    archive.file("guest/tests", 0o755, &programs.tests);
    archive.file("guest/router-ebpf", 0o644, &programs.object);
    archive.file("guest/limit", 0o644, LIMIT.as_secs().to_string().as_bytes());
    let lines: String = arguments.iter().map(|word| format!("{word}\n")).collect();
    archive.file("guest/arguments", 0o644, lines.as_bytes());
    Ok(archive.finish())
}

/// The whole for one kernel.
///
/// # Errors
/// A module is missing or cannot be unpacked.
pub(super) fn with_modules(base: &[u8], kernel: &Kernel, xz: &std::path::Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for (number, module) in modules::wanted(&kernel.modules, xz)?.iter().enumerate() {
        // Loaded in the order of their names.
        let path = format!("guest/modules/{number:03}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.bytes);
    }
    Ok([base, &archive.finish()].concat())
}

/// Of Debian's packages: programs and libraries, without what only an installed system uses.
fn is_needed(path: &str) -> bool {
    const LEFT_OUT: [&str; 10] = [
        "etc",
        "usr/share",
        "var",
        "usr/lib/tmpfiles.d",
        "usr/lib/systemd",
        "gconv",
        "perl",
        "security",
        "engines-3",
        "ossl-modules",
    ];
    // A shell of our own choice stands there.
    path != "bin/sh"
        && !LEFT_OUT.iter().any(|left_out| {
            path == *left_out || path.rsplit_once('/').is_some_and(|(_, name)| name == *left_out)
        })
        || path == "etc"
        || path.starts_with("etc/libibverbs.d")
}
