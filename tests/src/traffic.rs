//! TCP traffic of known bytes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use netns::Namespace;

use crate::patience;

/// Longer than any exchange takes on a usual machine, so that a hang fails instead of lasting.
const USUAL_PATIENCE: Duration = Duration::from_secs(60);

/// A listener in a namespace.
pub fn listen(netns: &Namespace, address: IpAddr, port: u16) -> TcpListener {
    netns.run(move || TcpListener::bind((address, port)).expect("binding"))
}

/// A connection from a namespace.
pub fn connect(netns: &Namespace, address: IpAddr, port: u16) -> TcpStream {
    let stream = netns.run(move || {
        TcpStream::connect_timeout(&SocketAddr::new(address, port), patience(USUAL_PATIENCE))
            .expect("connecting")
    });
    stream.set_read_timeout(Some(patience(USUAL_PATIENCE))).expect("a timeout");
    stream.set_nodelay(true).expect("no delay");
    stream
}

pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("accepting");
    stream.set_read_timeout(Some(patience(USUAL_PATIENCE))).expect("a timeout");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Opens a connection: its client's end and its server's.
pub fn joined(netns: &Namespace, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().expect("an address");
    let client = connect(netns, address.ip(), address.port());
    (client, accept(listener))
}

/// Writes `count` bytes of a pattern from a thread of its own; its checksum at the end.
pub fn send(mut stream: &TcpStream, count: u64) -> JoinHandle<u64> {
    let mut own = stream.try_clone().expect("a second handle");
    _ = stream.flush();
    std::thread::spawn(move || {
        let mut sum = Checksum::default();
        let block: Vec<u8> =
            (0..1 << 16).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut left = count;
        while left > 0 {
            let length = left.min(block.len() as u64) as usize;
            own.write_all(&block[..length]).expect("sending");
            sum.add(&block[..length]);
            left -= length as u64;
        }
        sum.0
    })
}

/// Reads exactly `count` bytes; their checksum.
pub fn receive(mut stream: &TcpStream, count: u64) -> u64 {
    let mut sum = Checksum::default();
    let mut buffer = vec![0; 1 << 16];
    let mut left = count;
    while left > 0 {
        let length = left.min(buffer.len() as u64) as usize;
        let read = stream.read(&mut buffer[..length]).expect("receiving");
        assert!(read > 0, "the connection ended {left} bytes early");
        sum.add(&buffer[..read]);
        left -= read as u64;
    }
    sum.0
}

/// Waits for the other side's end.
pub fn ended(mut stream: &TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end");
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
}

/// A checksum that depends on the position and value of every byte, and not on how they are cut.
#[derive(Default)]
struct Checksum(u64, u64);

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.1 = self.1.wrapping_add(1);
            self.0 = self.0.wrapping_add(self.1.wrapping_mul(u64::from(*byte) + 1));
        }
    }
}
