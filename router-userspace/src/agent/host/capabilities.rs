//! Capabilities: reports which ones are missing, and drops those that the agent does not capability.
#![expect(unsafe_code, reason = "no library of this workspace sets capabilities")]

use std::io;

use tracing::warn;

/// A capability (capabilities(7)), and what does not work without it.
struct Capability {
    number: u32,
    name: &'static str,
    without: &'static str,
}

const REQUIRED: [Capability; 4] = [
    Capability { number: 39, name: "CAP_BPF", without: "loading any program" },
    Capability {
        number: 12,
        name: "CAP_NET_ADMIN",
        without: "packets (tc, XDP) and connections (sock_ops)",
    },
    Capability {
        number: 38,
        name: "CAP_PERFMON",
        without: "connections older than the agent (tracepoint)",
    },
    // Network namespaces of other processes are read through /proc.
    Capability {
        number: 19,
        name: "CAP_SYS_PTRACE",
        without: "connections older than the agent (/proc)",
    },
];
const DAC_READ_SEARCH: u32 = 2;
const SYS_ADMIN: u32 = 21;
/// Before Linux 5.8 there is no CAP_BPF: the last capability is below this, and bpf needs
/// CAP_SYS_ADMIN.
const BPF: u32 = 39;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// The lower and the upper 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;
static HEADER: Header = Header { version: VERSION_3, pid: 0 };

fn read_number(path: &str) -> io::Result<i64> {
    std::fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

fn has_cap_bpf() -> io::Result<bool> {
    Ok(read_number("/proc/sys/kernel/cap_last_cap")? >= i64::from(BPF))
}

/// Whether perf events capability CAP_SYS_ADMIN even with CAP_PERFMON: so they do if perf_event_paranoid is
/// above 2, and Debian's default is 3.
pub(in crate::agent) fn perf_events_need_sys_admin() -> bool {
    read_number("/proc/sys/kernel/perf_event_paranoid").is_ok_and(|level| level > 2)
}

fn sets() -> io::Result<[Sets; 2]> {
    let mut sets = [Sets::default(); 2];
    // SAFETY: both structs have the layout of capget(2), version 3.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const HEADER, &raw mut sets) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(sets)
}

/// Drops all capabilities that are not in `keep`.
fn keep_only(mut sets: [Sets; 2], keep: [u32; 2]) -> io::Result<()> {
    for (set, keep) in sets.iter_mut().zip(keep) {
        set.effective &= keep;
        set.permitted &= keep;
        set.inheritable = 0;
    }
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const HEADER, &raw const sets) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Raises the limit of locked memory. Before Linux 5.11 maps count against it, and most containers have
/// 64 KiB, which is too little for any map. It needs CAP_SYS_RESOURCE, which is dropped next.
fn raise_locked_memory() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid struct of the kernel's.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        let error = io::Error::last_os_error();
        warn!(%error, "cannot raise the limit of locked memory (CAP_SYS_RESOURCE); before Linux 5.11 maps fail");
    }
}

/// Drops the capabilities that are not needed, and returns which needed ones are missing. What only
/// attaching to the tracepoint needs stays until [`drop_attach_only`].
///
/// # Errors
/// The capabilities cannot be read or set.
pub(in crate::agent) fn reduce() -> io::Result<Vec<String>> {
    raise_locked_memory();
    let sets = sets()?;
    let has_cap_bpf = has_cap_bpf()?;
    let mut keep = [0u32; 2];
    let mut add = |number: u32| keep[(number / 32) as usize] |= 1 << (number % 32);
    REQUIRED.iter().for_each(|capability| add(capability.number));
    add(DAC_READ_SEARCH);
    if !has_cap_bpf || perf_events_need_sys_admin() {
        add(SYS_ADMIN);
    }
    let has = |number: u32| sets[(number / 32) as usize].effective & (1 << (number % 32)) != 0;
    let sys_admin_suffices = !has_cap_bpf && has(SYS_ADMIN);
    let missing = REQUIRED
        .iter()
        .filter(|capability| {
            !(has(capability.number) || sys_admin_suffices && capability.number >= 38)
        })
        .map(|capability| {
            format!(
                "{} is missing; without it, not possible: {}",
                capability.name, capability.without
            )
        })
        .collect();
    keep_only(sets, keep)?;
    Ok(missing)
}

/// Drops what only attaching to the tracepoint needed.
///
/// # Errors
/// The capabilities cannot be read or set.
pub(in crate::agent) fn drop_attach_only() -> io::Result<()> {
    if !has_cap_bpf()? {
        return Ok(());
    }
    let mut keep = [u32::MAX; 2];
    keep[(SYS_ADMIN / 32) as usize] &= !(1 << (SYS_ADMIN % 32));
    keep_only(sets()?, keep)
}
