//! The limit of open files: raised at the start, and compared with what the gateway may need.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors of one client connection: its own, and one to each engine of a pair.
const PER_CONNECTION: u64 = 3;
/// Descriptors for everything else: probes, load polls, agents, the admin port.
const OTHERS: u64 = 1024;

/// Raises the soft limit of open files to the hard one, and warns if `max_connections` client connections
/// may exceed it.
pub(crate) fn raise_limit(max_connections: usize) {
    let limit = match raise() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            return;
        }
    };
    let needed = needed(max_connections);
    if limit < needed {
        tracing::warn!(
            limit,
            needed,
            max_connections,
            "the limit of open files is too low for --max-connections"
        );
    }
}

fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

fn needed(max_connections: usize) -> u64 {
    (max_connections as u64).saturating_mul(PER_CONNECTION).saturating_add(OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise().expect("a process may raise its soft limit");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).expect("a limit"), (limit, limit));
        assert_eq!(needed(1000), 4024);
        assert_eq!(needed(usize::MAX), u64::MAX);
    }
}
