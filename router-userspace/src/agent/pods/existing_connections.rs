//! Connections that are older than the programs, from the /proc tables of every network namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;

use router_common::flow::{FlowKey, OWNER_TRACEPOINT, OpenConnection, mapped};

use crate::agent::bpf::maps::Maps;
use crate::agent::pods::registry::Registry;

/// Enters every open connection of a local pod that the programs have not seen, and returns their
/// number.
///
/// The programs run meanwhile: an entry that they add first is kept, and an entry whose connection
/// has ended by then is removed.
///
/// # Errors
/// The kernel's, if a map cannot be read or written.
pub(in crate::agent) fn enter(maps: &Maps, registry: &Registry) -> io::Result<u64> {
    let mut entered = BTreeMap::new();
    for flow in open_connections() {
        let Some(pair) = registry.pair_of(&flow) else { continue };
        let connection = OpenConnection {
            pair,
            owner: OWNER_TRACEPOINT,
            established: 1,
            state: 1,
            ..OpenConnection::default()
        };
        if maps.connections.add(&flow, &connection)? {
            entered.insert(sort_key(&flow), (flow, pair));
        }
    }
    if entered.is_empty() {
        return Ok(0);
    }
    let open: BTreeSet<_> = open_connections().iter().map(sort_key).collect();
    let ended: Vec<_> = entered.keys().filter(|key| !open.contains(*key)).copied().collect();
    for key in ended {
        // If the entry is gone, the tracepoint has counted its end: its beginning is counted below.
        if let Some((flow, _)) = entered.get(&key)
            && maps.connections.remove(flow)?
        {
            entered.remove(&key);
        }
    }
    let mut pairs: HashMap<_, u64> = HashMap::new();
    for (_, pair) in entered.values() {
        *pairs.entry(*pair).or_default() += 1;
    }
    for (pair, count) in &pairs {
        let known = maps.preexisting.get(pair)?.unwrap_or_default();
        maps.preexisting.set(pair, &(known + count))?;
    }
    Ok(pairs.values().sum())
}

fn sort_key(flow: &FlowKey) -> ([u8; 16], [u8; 16], u16, u16) {
    (flow.local, flow.remote, flow.local_port, flow.remote_port)
}

/// The established connections of every network namespace that has a process.
fn open_connections() -> Vec<FlowKey> {
    let mut namespaces: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        if let Ok(namespace) = std::fs::read_link(path.join("ns/net")) {
            namespaces.entry(namespace).or_insert(path);
        }
    }
    let mut flows = Vec::new();
    for process in namespaces.values() {
        for table in ["net/tcp", "net/tcp6"] {
            if let Ok(text) = std::fs::read_to_string(process.join(table)) {
                flows.extend(text.lines().skip(1).filter_map(established));
            }
        }
    }
    flows
}

/// The connection of a line of /proc/net/tcp{,6} (proc(5)), if it is established. Addresses are
/// hexadecimal words in host order.
fn established(line: &str) -> Option<FlowKey> {
    const ESTABLISHED: &str = "01";
    let mut columns = line.split_whitespace().skip(1);
    let (local, remote) = (columns.next()?, columns.next()?);
    if columns.next()? != ESTABLISHED {
        return None;
    }
    let (local, local_port) = endpoint(local)?;
    let (remote, remote_port) = endpoint(remote)?;
    Some(FlowKey { local, remote, local_port, remote_port })
}

fn endpoint(text: &str) -> Option<([u8; 16], u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = address.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    };
    if address.len() == 8 {
        return Some((mapped(word(0)?), port));
    }
    let mut bytes = [0; 16];
    for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
        chunk.copy_from_slice(&word(at)?);
    }
    Some((bytes, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_established_connections_are_flows() {
        let line = "   0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 0 0 0 1";
        let flow = established(line).expect("a flow");
        assert_eq!(flow.local, mapped([127, 0, 0, 1]));
        assert_eq!((flow.local_port, flow.remote_port), (8080, 50_000));
        assert_eq!(established(&line.replace(" 01 ", " 0A ")), None);
        let v6 = "   0: 00000000000000000000000001000000:0050 \
                  0000000000000000FFFF00000100007F:C350 01 0:0 0:0 0 0 0 1";
        let flow = established(v6).expect("a flow");
        assert_eq!(flow.local, std::net::Ipv6Addr::LOCALHOST.octets());
        assert_eq!(flow.remote, mapped([127, 0, 0, 1]));
    }
}
