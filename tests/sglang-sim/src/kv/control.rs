//! Control messages between decode and prefill ranks, and the sockets that carry them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::process::Process;
use crate::socket::{EngineSocket, SocketControl};

use super::zmtp;

/// Maximum number of messages queued for one peer. ZeroMQ's own high-water mark is 1000.
const MAX_OUTBOX: usize = 1000;

/// Where a decode wants the KV of one request, sent to the prefill.
#[derive(Clone, Debug)]
pub(crate) struct TransferInfo {
    pub(crate) room: u64,
    /// The decode's control socket, which receives the final status.
    pub(crate) control: SocketAddr,
    /// The decode's data port, the session id of the transfer engine.
    pub(crate) data: SocketAddr,
    /// The slot at the decode that receives the KV.
    pub(crate) slot: u64,
}

/// Transfer states, numbered as in the engine.
pub(crate) const FAILED: u8 = 0;
pub(crate) const SUCCESS: u8 = 4;

/// A received control message.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// A decode registers with a prefill rank. The simulator needs none of its fields.
    Registration,
    TransferInfo(TransferInfo),
    Status {
        room: u64,
        status: u8,
    },
    Abort {
        room: u64,
        reply: Option<SocketAddr>,
    },
    AbortAcknowledged,
}

fn text(part: &Bytes) -> Option<&str> {
    std::str::from_utf8(part).ok()
}

fn parse<T: std::str::FromStr>(parts: &[Bytes], position: usize) -> Option<T> {
    text(parts.get(position)?)?.parse().ok()
}

impl Message {
    /// Parses a message. `None` if no engine sends such a message.
    pub(crate) fn read(parts: &[Bytes]) -> Option<Message> {
        match text(parts.first()?)? {
            "None" => Some(Message::Registration),
            "ABORT" => {
                let address = |ip: IpAddr| Some(SocketAddr::new(ip, parse(parts, 3)?));
                let reply = parse(parts, 2).and_then(address);
                Some(Message::Abort { room: parse(parts, 1)?, reply })
            }
            "ABORT_ACK" => Some(Message::AbortAcknowledged),
            _ if parts.len() == 3 => {
                Some(Message::Status { room: parse(parts, 0)?, status: parse(parts, 1)? })
            }
            _ => Some(Message::TransferInfo(TransferInfo {
                room: parse(parts, 0)?,
                control: SocketAddr::new(parse(parts, 1)?, parse(parts, 2)?),
                data: parse(parts, 3)?,
                slot: parse(parts, 5)?,
            })),
        }
    }
}

fn ascii(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

/// The first message of a decode to a prefill rank.
pub(crate) fn registration(control: SocketAddr, data: SocketAddr, old: bool) -> Bytes {
    let mut parts = vec![
        Bytes::from_static(b"None"),
        ascii(control.ip()),
        ascii(control.port()),
        ascii(data),
        // One pointer each for KV and auxiliary data. The simulator does not use them.
        Bytes::from_static(&[0; 8]),
        Bytes::from_static(&[0; 8]),
    ];
    if !old {
        parts.push(Bytes::new());
    }
    parts.extend([ascii(0), ascii(1), ascii(1024)]);
    zmtp::encode(&parts)
}

/// The decode's message for one request with `pages` KV pages.
pub(crate) fn transfer_info(transfer_info: &TransferInfo, pages: u32, old: bool) -> Bytes {
    let mut indices = BytesMut::with_capacity(pages as usize * 4);
    for page in 0..pages {
        indices.put_i32_le(page as i32);
    }
    let mut parts = vec![
        ascii(transfer_info.room),
        ascii(transfer_info.control.ip()),
        ascii(transfer_info.control.port()),
        ascii(transfer_info.data),
        indices.freeze(),
        ascii(transfer_info.slot),
    ];
    if !old {
        parts.push(Bytes::new());
    }
    parts.push(ascii(1));
    if !old {
        parts.push(ascii(0));
    }
    zmtp::encode(&parts)
}

/// The prefill's message about the end of a transfer.
pub(crate) fn status(room: u64, status: u8) -> Bytes {
    zmtp::encode(&[ascii(room), ascii(status), ascii(0)])
}

/// The decode's message that it has given up a room.
pub(crate) fn abort(room: u64, control: SocketAddr) -> Bytes {
    let parts =
        [Bytes::from_static(b"ABORT"), ascii(room), ascii(control.ip()), ascii(control.port())];
    zmtp::encode(&parts)
}

/// The prefill's answer to [`abort`].
pub(crate) fn abort_acknowledged(room: u64) -> Bytes {
    zmtp::encode(&[Bytes::from_static(b"ABORT_ACK"), ascii(room)])
}

/// Accepts connections to the PULL socket of one rank.
pub(crate) async fn serve(process: Arc<Process>, rank: usize, listener: TcpListener) {
    loop {
        process.sockets.wait_until_thawed().await;
        let Ok((stream, _)) = listener.accept().await else { continue };
        let mut socket = EngineSocket::new(stream, Arc::clone(&process.sockets));
        let reader = Arc::clone(&process);
        process.spawn(async move {
            if zmtp::greet(&mut socket, "PULL").await.is_err() {
                return;
            }
            while let Ok(parts) = zmtp::read_message(&mut socket).await {
                if let Some(message) = Message::read(&parts) {
                    reader.wait_for_scheduler().await;
                    reader.handle_message(rank, message);
                }
            }
        });
    }
}

/// Opens a connection from the engine's own address.
pub(crate) async fn connect(
    source: IpAddr,
    target: SocketAddr,
    limit: Duration,
) -> io::Result<tokio::net::TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if source.is_ipv4() == target.is_ipv4() && !source.is_unspecified() {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    timeout(limit, socket.connect(target)).await?
}

/// The PUSH sockets of an engine: one connection per peer, opened on first use.
#[derive(Debug, Default)]
pub(crate) struct Outboxes(Mutex<HashMap<SocketAddr, mpsc::Sender<Bytes>>>);

impl Outboxes {
    /// Queues a message without waiting. Beyond the high-water mark the message is dropped.
    pub(crate) fn send(&self, process: &Arc<Process>, peer: SocketAddr, message: Bytes) {
        let mut boxes = self.0.lock();
        let outbox = boxes.entry(peer).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(MAX_OUTBOX);
            let writer = PushConnection {
                source: process.config.host,
                limit: process.config.timing.peer_timeout,
                process: Arc::downgrade(process),
                sockets: Arc::clone(&process.sockets),
                peer,
            };
            process.spawn(writer.run(receiver));
            sender
        });
        let _ = outbox.try_send(message);
    }
}

struct PushConnection {
    source: IpAddr,
    limit: Duration,
    process: Weak<Process>,
    sockets: Arc<SocketControl>,
    peer: SocketAddr,
}

impl PushConnection {
    async fn open(&self) -> io::Result<EngineSocket> {
        let stream = connect(self.source, self.peer, self.limit).await?;
        let mut socket = EngineSocket::new(stream, Arc::clone(&self.sockets));
        timeout(self.limit, zmtp::greet(&mut socket, "PUSH")).await??;
        Ok(socket)
    }

    /// Retries a refused connection until the timeout, as ZeroMQ's reconnect does.
    async fn open_within_limit(&self) -> Option<EngineSocket> {
        let attempts = async {
            loop {
                if let Ok(socket) = self.open().await {
                    return socket;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(self.limit, attempts).await.ok()
    }

    /// The next message. A connection that ends while waiting is dropped.
    async fn next(
        &self,
        socket: &mut Option<EngineSocket>,
        messages: &mut mpsc::Receiver<Bytes>,
    ) -> Option<Bytes> {
        if let Some(open) = socket {
            tokio::select! {
                biased;
                // A PULL socket sends nothing, so this returns when the connection ends.
                _ = open.read_u8() => {}
                message = messages.recv() => return message,
            }
            *socket = None;
            if let Some(process) = self.process.upgrade() {
                process.prefills.connection_lost(self.peer);
            }
        }
        messages.recv().await
    }

    async fn run(self, mut messages: mpsc::Receiver<Bytes>) {
        let mut socket: Option<EngineSocket> = None;
        while let Some(message) = self.next(&mut socket, &mut messages).await {
            for _ in 0..2 {
                if socket.is_none() {
                    socket = self.open_within_limit().await;
                }
                let Some(open) = &mut socket else { break };
                if open.write_all(&message).await.is_ok() && open.flush().await.is_ok() {
                    break;
                }
                socket = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn through_the_wire(wire: Bytes) -> Message {
        let mut reader: &[u8] = &wire;
        Message::read(&zmtp::read_message(&mut reader).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn messages_read_as_they_were_written() {
        let wanted = TransferInfo {
            room: u64::MAX >> 1,
            control: "127.0.0.3:50001".parse().unwrap(),
            data: "[::1]:16000".parse().unwrap(),
            slot: 9,
        };
        for old in [true, false] {
            let read = through_the_wire(transfer_info(&wanted, 1000, old)).await;
            let Message::TransferInfo(read) = read else { panic!("{read:?}") };
            assert_eq!(
                (read.room, read.control, read.data, read.slot),
                (wanted.room, wanted.control, wanted.data, wanted.slot)
            );
            let registration = registration(wanted.control, wanted.data, old);
            assert!(matches!(through_the_wire(registration).await, Message::Registration));
        }
        let message = through_the_wire(status(7, SUCCESS)).await;
        assert!(matches!(message, Message::Status { room: 7, status: SUCCESS }));
        let message = through_the_wire(abort(7, wanted.control)).await;
        assert!(
            matches!(message, Message::Abort { room: 7, reply } if reply == Some(wanted.control))
        );
        let message = through_the_wire(abort_acknowledged(7)).await;
        assert!(matches!(message, Message::AbortAcknowledged));
    }

    #[test]
    fn the_fifth_frame_counts_the_pages() {
        let wanted = TransferInfo {
            room: 1,
            control: "127.0.0.1:1".parse().unwrap(),
            data: "127.0.0.1:2".parse().unwrap(),
            slot: 0,
        };
        let few = transfer_info(&wanted, 10, false).len();
        assert_eq!(transfer_info(&wanted, 20, false).len() - few, 40);
    }
}
