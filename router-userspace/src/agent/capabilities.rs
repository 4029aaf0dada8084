//! Privileges: which this process has, and giving up those that it does not need.
#![expect(unsafe_code, reason = "no library of this workspace sets capabilities")]

use std::io;

use tracing::warn;

/// A capability (capabilities(7)), and what is lost without it.
struct Need {
    number: u32,
    name: &'static str,
    loses: &'static str,
}

const NEEDS: [Need; 4] = [
    Need { number: 39, name: "CAP_BPF", loses: "loading any program" },
    Need {
        number: 12,
        name: "CAP_NET_ADMIN",
        loses: "packets (tc, XDP) and connections (sock_ops)",
    },
    Need {
        number: 38,
        name: "CAP_PERFMON",
        loses: "connections older than the agent (tracepoint)",
    },
    // Network namespaces of other processes are read through /proc.
    Need { number: 19, name: "CAP_SYS_PTRACE", loses: "connections older than the agent (/proc)" },
];
const DAC_READ_SEARCH: u32 = 2;
const SYS_ADMIN: u32 = 21;
/// Kernels whose last capability is below this know no CAP_BPF and ask for CAP_SYS_ADMIN.
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

fn number_in(path: &str) -> io::Result<i64> {
    std::fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

fn knows_bpf() -> io::Result<bool> {
    Ok(number_in("/proc/sys/kernel/cap_last_cap")? >= i64::from(BPF))
}

/// Whether events are closed to all without CAP_SYS_ADMIN, CAP_PERFMON or not: 3 is Debian's own
/// degree, and Debian's default.
pub(super) fn events_are_closed() -> bool {
    number_in("/proc/sys/kernel/perf_event_paranoid").is_ok_and(|degree| degree > 2)
}

fn sets() -> io::Result<[Sets; 2]> {
    let mut sets = [Sets::default(); 2];
    // SAFETY: both structs have the layout of capget(2), version 3.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const HEADER, &raw mut sets) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(sets)
}

/// Gives up all but what `keep` has.
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

/// Before Linux 5.11 maps count against the limit of locked memory, which containers have at 64 KiB
/// mostly: no map fits there. Only CAP_SYS_RESOURCE may raise it, which is given up next.
fn raise_locked_memory() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid struct of the kernel's.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        let error = io::Error::last_os_error();
        let lost = "before Linux 5.11 the kernel then refuses the maps";
        warn!("the limit of locked memory cannot be raised (CAP_SYS_RESOURCE): {error}; {lost}");
    }
}

/// Gives up what is not needed, and says what is missing. What only attaching to the tracepoint
/// needs stays until [`attached`].
///
/// # Errors
/// The kernel's.
pub(super) fn reduce() -> io::Result<Vec<String>> {
    raise_locked_memory();
    let sets = sets()?;
    let knows_bpf = knows_bpf()?;
    let mut keep = [0u32; 2];
    let mut add = |number: u32| keep[(number / 32) as usize] |= 1 << (number % 32);
    NEEDS.iter().for_each(|need| add(need.number));
    add(DAC_READ_SEARCH);
    if !knows_bpf || events_are_closed() {
        add(SYS_ADMIN);
    }
    let has = |number: u32| sets[(number / 32) as usize].effective & (1 << (number % 32)) != 0;
    let stands_in = !knows_bpf && has(SYS_ADMIN);
    let missing = NEEDS
        .iter()
        .filter(|need| !(has(need.number) || stands_in && need.number >= 38))
        .map(|need| format!("{} is missing, and with it: {}", need.name, need.loses))
        .collect();
    keep_only(sets, keep)?;
    Ok(missing)
}

/// Gives up what only attaching needed.
///
/// # Errors
/// The kernel's.
pub(super) fn attached() -> io::Result<()> {
    if !knows_bpf()? {
        return Ok(());
    }
    let mut keep = [u32::MAX; 2];
    keep[(SYS_ADMIN / 32) as usize] &= !(1 << (SYS_ADMIN % 32));
    keep_only(sets()?, keep)
}
