//! The KV bytes: pooled connections that prefill opens to decode's data port.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::life::Life;
use crate::valve::Socket;

use super::control::{Invitation, connect};

/// Ports that the transfer engine takes one of.
const PORTS: std::ops::RangeInclusive<u16> = 15_000..=17_000;
const MAGIC: u32 = 0x4B56_5431;
const CHUNK: usize = 64 << 10;
const HEADER: usize = 36;
/// Difference between two words of one prompt's KV.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// What one prompt's computation is, for the decode that gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Computed {
    pub(crate) thought: u64,
    pub(crate) first: u32,
}

/// KV that has arrived, by slot.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<(u64, HashMap<u64, Option<Computed>>)>);

/// A slot in use; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    pub(crate) number: u64,
}

impl Slots {
    pub(crate) fn take(self: &Arc<Self>) -> Slot {
        let mut inner = self.0.lock().expect("no code panics while it holds the slots");
        inner.0 += 1;
        let number = inner.0;
        inner.1.insert(number, None);
        Slot { slots: Arc::clone(self), number }
    }

    fn fill(&self, number: u64, computed: Computed) {
        let mut inner = self.0.lock().expect("no code panics while it holds the slots");
        if let Some(slot) = inner.1.get_mut(&number) {
            *slot = Some(computed);
        }
    }
}

impl Slot {
    pub(crate) fn computed(&self) -> Option<Computed> {
        let inner = self.slots.0.lock().expect("no code panics while it holds the slots");
        inner.1.get(&self.number).copied().flatten()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.slots.0.lock().expect("no code panics while it holds the slots");
        inner.1.remove(&self.number);
    }
}

/// Binds the data port, anywhere in the transfer engine's range.
///
/// # Errors
/// None of many random ports of the range was free on this address.
pub(crate) async fn bind(host: IpAddr) -> io::Result<TcpListener> {
    let mut last = None;
    for _ in 0..64 {
        let port = rand::rng().random_range(PORTS);
        match TcpListener::bind(SocketAddr::new(host, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// Writes the words of a prompt's KV that begin at a byte offset.
fn fill(chunk: &mut [u8], thought: u64, offset: usize) {
    let mut word = thought.wrapping_add(((offset / 8) as u64).wrapping_mul(STRIDE));
    for bytes in chunk.chunks_mut(8) {
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        word = word.wrapping_add(STRIDE);
    }
}

/// Receives the KV that prefills push.
pub(crate) async fn serve(life: Arc<Life>, listener: TcpListener) {
    loop {
        life.valve.passage().await;
        let Ok((stream, peer)) = listener.accept().await else { continue };
        life.ledger.kv(peer.ip(), |traffic| traffic.connections += 1);
        let mut socket = Socket::new(stream, Arc::clone(&life.valve));
        let receiver = Arc::clone(&life);
        life.spawn(
            async move { while receive(&receiver, &mut socket, peer.ip()).await.is_ok() {} },
        );
    }
}

async fn receive(life: &Life, socket: &mut Socket, peer: IpAddr) -> io::Result<()> {
    if socket.read_u32().await? != MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let slot = socket.read_u64().await?;
    let _room = socket.read_u64().await?;
    let length = socket.read_u64().await?;
    let first = socket.read_u32().await?;
    let _prompt_tokens = socket.read_u32().await?;

    let mut chunk = vec![0u8; CHUNK];
    let mut expected = vec![0u8; CHUNK];
    let (mut offset, mut thought, mut intact) = (0usize, 0u64, true);
    while (offset as u64) < length {
        let take = usize::try_from(length - offset as u64).map_or(CHUNK, |left| left.min(CHUNK));
        socket.read_exact(&mut chunk[..take]).await?;
        if offset == 0 {
            let mut word = [0u8; 8];
            word[..take.min(8)].copy_from_slice(&chunk[..take.min(8)]);
            thought = u64::from_le_bytes(word);
        }
        fill(&mut expected[..take], thought, offset);
        intact &= expected[..take] == chunk[..take];
        offset += take;
    }
    life.ledger.kv(peer, |traffic| {
        traffic.received_bytes += length;
        traffic.received_transfers += 1;
        traffic.corrupt_transfers += u64::from(!intact);
    });
    life.meters.received(length);
    life.slots.fill(slot, Computed { thought, first });
    socket.write_u8(1).await?;
    socket.flush().await
}

/// Idle data connections by decode.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<HashMap<SocketAddr, Vec<Socket>>>);

impl std::fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Socket")
    }
}

impl Pool {
    fn idle(&self, peer: SocketAddr) -> Option<Socket> {
        let mut idle = self.0.lock().expect("no code panics while it holds the pool");
        idle.get_mut(&peer)?.pop()
    }

    fn put_back(&self, peer: SocketAddr, socket: Socket) {
        let mut idle = self.0.lock().expect("no code panics while it holds the pool");
        idle.entry(peer).or_default().push(socket);
    }
}

/// Pushes a prompt's KV to the decode that asked for it; returns once it has all of it.
///
/// # Errors
/// The decode cannot be reached or the connection ends before it has confirmed.
pub(crate) async fn push(
    life: &Life,
    invitation: &Invitation,
    computed: Computed,
    prompt_tokens: usize,
) -> io::Result<u64> {
    let peer = invitation.data;
    let length = (prompt_tokens * life.config.kv_bytes_per_token.max(8)) as u64;
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(&MAGIC.to_be_bytes());
    header.extend_from_slice(&invitation.slot.to_be_bytes());
    header.extend_from_slice(&invitation.room.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&computed.first.to_be_bytes());
    header.extend_from_slice(&u32::try_from(prompt_tokens).unwrap_or(u32::MAX).to_be_bytes());

    // A pooled connection may have died idle, which is no failure of the transfer.
    if let Some(mut socket) = life.pool.idle(peer)
        && write(&mut socket, &header, computed.thought, length).await.is_ok()
    {
        life.pool.put_back(peer, socket);
    } else {
        let stream = connect(life.config.host, peer, life.config.timing.peer_timeout).await?;
        life.ledger.kv(peer.ip(), |traffic| traffic.connections += 1);
        let mut socket = Socket::new(stream, Arc::clone(&life.valve));
        write(&mut socket, &header, computed.thought, length).await?;
        life.pool.put_back(peer, socket);
    }
    life.ledger.kv(peer.ip(), |traffic| {
        traffic.sent_bytes += length;
        traffic.sent_transfers += 1;
    });
    Ok(length)
}

async fn write(socket: &mut Socket, header: &[u8], thought: u64, length: u64) -> io::Result<()> {
    socket.write_all(header).await?;
    let size = usize::try_from(length).map_or(CHUNK, |l| l.min(CHUNK));
    let mut chunk = vec![0u8; size];
    let mut offset = 0usize;
    while (offset as u64) < length {
        let take = usize::try_from(length - offset as u64).map_or(CHUNK, |left| left.min(CHUNK));
        fill(&mut chunk[..take], thought, offset);
        socket.write_all(&chunk[..take]).await?;
        offset += take;
    }
    socket.flush().await?;
    if socket.read_u8().await? == 1 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
