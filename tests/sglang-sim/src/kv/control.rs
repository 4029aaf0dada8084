//! The control messages between decode and prefill ranks, and the sockets that carry them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::life::Life;
use crate::valve::{Socket, Valve};

use super::zmtp;

/// Messages that may wait for one peer; ZeroMQ's own high-water mark is 1000.
const OUTBOX_LIMIT: usize = 1000;

/// What decode tells prefill about one request: where its KV goes.
#[derive(Clone, Debug)]
pub(crate) struct Invitation {
    pub(crate) room: u64,
    /// Decode's control socket, for the status at the end.
    pub(crate) control: SocketAddr,
    /// Decode's data port, as the transfer engine's session id.
    pub(crate) data: SocketAddr,
    /// The place at decode that the KV is for.
    pub(crate) slot: u64,
}

/// States of a transfer as the engines number them.
pub(crate) const FAILED: u8 = 0;
pub(crate) const SUCCESS: u8 = 4;

/// A message as understood by the rank that got it.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// Decode introduces itself to a prefill rank; carries nothing that is needed here.
    Registration,
    Invitation(Invitation),
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

fn parse<T: std::str::FromStr>(parts: &[Bytes], place: usize) -> Option<T> {
    text(parts.get(place)?)?.parse().ok()
}

impl Message {
    /// Reads a message; `None` for what no engine sends.
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
            _ => Some(Message::Invitation(Invitation {
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

/// Decode's first contact with a prefill rank.
pub(crate) fn registration(control: SocketAddr, data: SocketAddr, old: bool) -> Bytes {
    let mut parts = vec![
        Bytes::from_static(b"None"),
        ascii(control.ip()),
        ascii(control.port()),
        ascii(data),
        // One pointer each for KV and auxiliary data; nothing is behind them here.
        Bytes::from_static(&[0; 8]),
        Bytes::from_static(&[0; 8]),
    ];
    if !old {
        parts.push(Bytes::new());
    }
    parts.extend([ascii(0), ascii(1), ascii(1024)]);
    zmtp::encode(&parts)
}

/// Decode's metadata for one request of so many KV pages.
pub(crate) fn invitation(invitation: &Invitation, pages: u32, old: bool) -> Bytes {
    let mut indices = BytesMut::with_capacity(pages as usize * 4);
    for page in 0..pages {
        indices.put_i32_le(page as i32);
    }
    let mut parts = vec![
        ascii(invitation.room),
        ascii(invitation.control.ip()),
        ascii(invitation.control.port()),
        ascii(invitation.data),
        indices.freeze(),
        ascii(invitation.slot),
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

/// Prefill's word on how a transfer ended.
pub(crate) fn status(room: u64, status: u8) -> Bytes {
    zmtp::encode(&[ascii(room), ascii(status), ascii(0)])
}

/// Decode's word that it no longer wants a room.
pub(crate) fn abort(room: u64, control: SocketAddr) -> Bytes {
    let parts =
        [Bytes::from_static(b"ABORT"), ascii(room), ascii(control.ip()), ascii(control.port())];
    zmtp::encode(&parts)
}

/// Prefill's answer to it.
pub(crate) fn abort_acknowledged(room: u64) -> Bytes {
    zmtp::encode(&[Bytes::from_static(b"ABORT_ACK"), ascii(room)])
}

/// Accepts the peers of one rank's PULL socket.
pub(crate) async fn serve(life: Arc<Life>, rank: usize, listener: TcpListener) {
    loop {
        life.valve.passage().await;
        let Ok((stream, _)) = listener.accept().await else { continue };
        let mut socket = Socket::new(stream, Arc::clone(&life.valve));
        let reader = Arc::clone(&life);
        life.spawn(async move {
            if zmtp::greet(&mut socket, "PULL").await.is_err() {
                return;
            }
            while let Ok(parts) = zmtp::read_message(&mut socket).await {
                if let Some(message) = Message::read(&parts) {
                    reader.turn().await;
                    reader.control(rank, message);
                }
            }
        });
    }
}

/// Opens a connection whose source is the engine's own address.
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

/// The PUSH sockets of an engine: one connection for each peer, made when first needed.
#[derive(Debug, Default)]
pub(crate) struct Outboxes(Mutex<HashMap<SocketAddr, mpsc::Sender<Bytes>>>);

impl Outboxes {
    /// Sends without waiting; beyond the high-water mark the message is lost.
    pub(crate) fn send(&self, life: &Arc<Life>, peer: SocketAddr, message: Bytes) {
        let mut boxes = self.0.lock().expect("no code panics while it holds the outboxes");
        let outbox = boxes.entry(peer).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(OUTBOX_LIMIT);
            let writer = Writer {
                source: life.config.host,
                limit: life.config.timing.peer_timeout,
                life: Arc::downgrade(life),
                valve: Arc::clone(&life.valve),
                peer,
            };
            life.spawn(writer.run(receiver));
            sender
        });
        let _ = outbox.try_send(message);
    }
}

struct Writer {
    source: IpAddr,
    limit: Duration,
    life: Weak<Life>,
    valve: Arc<Valve>,
    peer: SocketAddr,
}

impl Writer {
    async fn open(&self) -> io::Result<Socket> {
        let stream = connect(self.source, self.peer, self.limit).await?;
        let mut socket = Socket::new(stream, Arc::clone(&self.valve));
        timeout(self.limit, zmtp::greet(&mut socket, "PUSH")).await??;
        Ok(socket)
    }

    /// A peer that refuses is asked again until the limit, as ZeroMQ's reconnect does.
    async fn open_within_limit(&self) -> Option<Socket> {
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

    /// The next message; an open connection that ends meanwhile is dropped.
    async fn next(
        &self,
        socket: &mut Option<Socket>,
        messages: &mut mpsc::Receiver<Bytes>,
    ) -> Option<Bytes> {
        if let Some(open) = socket {
            tokio::select! {
                biased;
                // A PULL socket says nothing, so this returns when it is gone.
                _ = open.read_u8() => {}
                message = messages.recv() => return message,
            }
            *socket = None;
            if let Some(life) = self.life.upgrade() {
                life.peers.broke(self.peer);
            }
        }
        messages.recv().await
    }

    async fn run(self, mut messages: mpsc::Receiver<Bytes>) {
        let mut socket: Option<Socket> = None;
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
        let wanted = Invitation {
            room: u64::MAX >> 1,
            control: "127.0.0.3:50001".parse().unwrap(),
            data: "[::1]:16000".parse().unwrap(),
            slot: 9,
        };
        for old in [true, false] {
            let read = through_the_wire(invitation(&wanted, 1000, old)).await;
            let Message::Invitation(read) = read else { panic!("{read:?}") };
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
        let wanted = Invitation {
            room: 1,
            control: "127.0.0.1:1".parse().unwrap(),
            data: "127.0.0.1:2".parse().unwrap(),
            slot: 0,
        };
        let few = invitation(&wanted, 10, false).len();
        assert_eq!(invitation(&wanted, 20, false).len() - few, 40);
    }
}
