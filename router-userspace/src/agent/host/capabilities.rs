//! Capabilities: reports which ones are missing, and drops those that the agent does not need.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// The capabilities that the agent needs, and what it cannot do without each.
const REQUIRED: [(Capability, &str); 4] = [
    (Capability::CAP_BPF, "loading any program"),
    (Capability::CAP_NET_ADMIN, "packets (tc, XDP) and connections (sock_ops)"),
    (Capability::CAP_PERFMON, "connections older than the agent (tracepoint)"),
    // Network namespaces of other processes are read through /proc.
    (Capability::CAP_SYS_PTRACE, "connections older than the agent (/proc)"),
];

fn read_number(path: &str) -> io::Result<i64> {
    std::fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// Whether the kernel has CAP_BPF and CAP_PERFMON (Linux 5.8). Before, CAP_SYS_ADMIN stands for both.
fn has_cap_bpf() -> io::Result<bool> {
    let last = read_number("/proc/sys/kernel/cap_last_cap")?;
    Ok(last >= i64::from(Capability::CAP_BPF.index()))
}

/// Whether perf events require CAP_SYS_ADMIN even with CAP_PERFMON. They do if perf_event_paranoid is
/// above 2; Debian's default is 3.
pub(in crate::agent) fn perf_events_need_sys_admin() -> bool {
    read_number("/proc/sys/kernel/perf_event_paranoid").is_ok_and(|level| level > 2)
}

fn read(set: CapSet) -> io::Result<CapsHashSet> {
    caps::read(None, set).map_err(io::Error::other)
}

/// Drops all capabilities that `keep` refuses, and all inheritable ones.
fn retain(keep: impl Fn(&Capability) -> bool) -> io::Result<()> {
    // The effective set first: it must stay a subset of the permitted one.
    for set in [CapSet::Effective, CapSet::Permitted] {
        let mut kept = read(set)?;
        kept.retain(&keep);
        caps::set(None, set, &kept).map_err(io::Error::other)?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)
}

/// Raises the limit of locked memory, and returns what is missing. Before Linux 5.11 maps count against
/// it, and most containers have 64 KiB, which is too little for any map. It needs CAP_SYS_RESOURCE,
/// which is dropped next. Newer kernels do not need it.
fn raise_locked_memory() -> Option<String> {
    let error = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).err()?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    maps_lock_memory(&release).then(|| {
        format!(
            "CAP_SYS_RESOURCE is missing, needed for maps before Linux 5.11: the limit of locked \
             memory cannot be raised ({error})"
        )
    })
}

/// Whether maps count against the limit of locked memory on this kernel release.
fn maps_lock_memory(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (5, 11),
        _ => false,
    }
}

/// Drops the capabilities that are not needed, and returns which needed ones are missing. What only
/// attaching to the tracepoint needs stays until [`drop_attach_only`].
///
/// # Errors
/// The capabilities cannot be read or set.
pub(in crate::agent) fn reduce() -> io::Result<Vec<String>> {
    let locked_memory = raise_locked_memory();
    let effective = read(CapSet::Effective)?;
    let has_cap_bpf = has_cap_bpf()?;
    let needs_sys_admin = !has_cap_bpf || perf_events_need_sys_admin();
    let sys_admin_suffices = !has_cap_bpf && effective.contains(&Capability::CAP_SYS_ADMIN);
    let is_available = |capability: Capability| {
        let is_new = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
        effective.contains(&capability) || sys_admin_suffices && is_new
    };
    let missing = REQUIRED
        .iter()
        .filter(|(capability, _)| !is_available(*capability))
        .map(|(capability, purpose)| format!("{capability} is missing, needed for {purpose}"))
        .chain(locked_memory)
        .collect();
    retain(|capability| {
        REQUIRED.iter().any(|(required, _)| required == capability)
            || *capability == Capability::CAP_DAC_READ_SEARCH
            || needs_sys_admin && *capability == Capability::CAP_SYS_ADMIN
    })?;
    Ok(missing)
}

/// Drops what only attaching to the tracepoint needed.
///
/// # Errors
/// The capabilities cannot be read or set.
pub(in crate::agent) fn drop_attach_only() -> io::Result<()> {
    if has_cap_bpf()? {
        return retain(|capability| *capability != Capability::CAP_SYS_ADMIN);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_count_against_locked_memory_before_5_11() {
        for (release, locks) in [
            ("5.10.0-30-cloud-amd64", true),
            ("4.19.0", true),
            ("5.11.0", false),
            ("6.18.1-rc1", false),
            ("", false),
        ] {
            assert_eq!(maps_lock_memory(release), locks, "{release}");
        }
    }
}
