//! The demo's fixed addresses: one demo at a time, and an error that names the one that is taken.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::workspace;

/// Locks the demo's addresses. `wait` waits for another demo to end, which otherwise is an error.
pub(super) fn turn(wait: bool) -> Result<Flock<File>> {
    let path = workspace::cache()?.join("demo.lock");
    let open = || File::create(&path).with_context(|| format!("making {}", path.display()));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err(_) if !wait => bail!("another demo of yours is running; stop it first"),
        Err(_) => println!("waiting for another demo to end"),
    }
    Flock::lock(open()?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for another demo")
}

/// Binds each address for a moment; the error names the one that is taken.
pub(super) fn check(addresses: &[SocketAddr]) -> Result<()> {
    for address in addresses {
        TcpListener::bind(address).with_context(|| {
            let port = address.port();
            format!("{address} cannot be listened on; what has it? (ss -ltnp 'sport = :{port}')")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = format!("{:#}", check(&[address]).unwrap_err());
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
        drop(taken);
        check(&[address]).unwrap();
    }
}
