//! RDMA traffic that continues until it is stopped, and then ends by itself.
//!
//! Nothing is killed: rxe of Linux 5.10 frees a context before the queue pairs of a process that
//! died, and panics.

use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;

use super::rig::{Rig, Run, SERVER};

/// One pod that writes into the memory of pod 1, a few seconds at a time.
pub(super) struct Writer<'a> {
    rig: &'a Rig,
    stop: PathBuf,
    port: u16,
    client: Run,
    server: Run,
}

impl<'a> Writer<'a> {
    /// Each pod has a port of its own.
    pub(super) fn start(rig: &'a Rig, pod: usize) -> Writer<'a> {
        let port = 18_515 + pod as u16;
        let stop = std::env::temp_dir().join(format!("stop-{port}"));
        _ = std::fs::remove_file(&stop);
        let again = |device: &str, peer: &str| {
            let run = format!("ib_write_bw -d {device} -x 1 -F -s 65536 -t 8 -u 20 -D 4 -f 1");
            format!("sh -c 'until [ -e {} ]; do {run} -p {port} {peer}; done'", stop.display())
        };
        let server = rig.serve(1, &again("rxe1", ""), port);
        let client = rig.start(pod, &again("rxe0", SERVER));
        Writer { rig, stop, port, client, server }
    }

    /// Waits for the current run, and starts no other.
    pub(super) fn stop(self) {
        std::fs::write(&self.stop, "").expect("telling the end");
        self.client.ended();
        let address: IpAddr = SERVER.parse().expect("an address");
        let (rig, port) = (self.rig, self.port);
        // A server that waits for another client has made no queue pair yet, and gives up on one
        // that says nothing.
        let poke = || drop(rig.node.netns.run(move || TcpStream::connect((address, port))));
        self.server.ended_by(poke);
    }
}
