//! KV transfer: pooled connections from a prefill to the data port of a decode.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::process::Process;
use crate::socket::EngineSocket;

use super::control::{TransferInfo, connect};

/// Port range of the transfer engine.
const PORTS: std::ops::RangeInclusive<u16> = 15_000..=17_000;
const MAGIC: u32 = 0x4B56_5431;
const CHUNK: usize = 64 << 10;
const HEADER: usize = 36;
/// Difference between two consecutive 64-bit words of one prompt's KV.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// The result of prefill, which travels with the KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrefillResult {
    pub(crate) prompt_hash: u64,
    pub(crate) first_token: u32,
}

/// Received KV, by slot.
#[derive(Debug, Default)]
pub(crate) struct KvSlots(Mutex<(u64, HashMap<u64, Option<PrefillResult>>)>);

/// A KV slot in use, freed on drop.
#[derive(Debug)]
pub(crate) struct KvSlot {
    slots: Arc<KvSlots>,
    pub(crate) number: u64,
}

impl KvSlots {
    pub(crate) fn take(self: &Arc<Self>) -> KvSlot {
        let mut inner = self.0.lock();
        inner.0 += 1;
        let number = inner.0;
        inner.1.insert(number, None);
        KvSlot { slots: Arc::clone(self), number }
    }

    fn fill(&self, number: u64, result: PrefillResult) {
        let mut inner = self.0.lock();
        if let Some(slot) = inner.1.get_mut(&number) {
            *slot = Some(result);
        }
    }
}

impl KvSlot {
    pub(crate) fn result(&self) -> Option<PrefillResult> {
        let inner = self.slots.0.lock();
        inner.1.get(&self.number).copied().flatten()
    }
}

impl Drop for KvSlot {
    fn drop(&mut self) {
        let mut inner = self.slots.0.lock();
        inner.1.remove(&self.number);
    }
}

/// Binds the data port in the transfer engine's port range.
///
/// # Errors
/// None of 64 random ports of the range was free on this address.
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

/// Writes the KV words of a prompt that start at a byte offset.
fn fill(chunk: &mut [u8], prompt_hash: u64, offset: usize) {
    let mut word = prompt_hash.wrapping_add(((offset / 8) as u64).wrapping_mul(STRIDE));
    for bytes in chunk.chunks_mut(8) {
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        word = word.wrapping_add(STRIDE);
    }
}

/// Receives the KV that prefills push.
pub(crate) async fn serve(process: Arc<Process>, listener: TcpListener) {
    loop {
        process.sockets.wait_until_thawed().await;
        let Ok((stream, peer)) = listener.accept().await else { continue };
        process.recorder.kv(peer.ip(), |traffic| traffic.connections += 1);
        let mut socket = EngineSocket::new(stream, Arc::clone(&process.sockets));
        let receiver = Arc::clone(&process);
        process.spawn(
            async move { while receive(&receiver, &mut socket, peer.ip()).await.is_ok() {} },
        );
    }
}

async fn receive(process: &Process, socket: &mut EngineSocket, peer: IpAddr) -> io::Result<()> {
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
    let (mut offset, mut prompt_hash, mut intact) = (0usize, 0u64, true);
    while (offset as u64) < length {
        let take = usize::try_from(length - offset as u64).map_or(CHUNK, |left| left.min(CHUNK));
        socket.read_exact(&mut chunk[..take]).await?;
        if offset == 0 {
            let mut word = [0u8; 8];
            word[..take.min(8)].copy_from_slice(&chunk[..take.min(8)]);
            prompt_hash = u64::from_le_bytes(word);
        }
        fill(&mut expected[..take], prompt_hash, offset);
        intact &= expected[..take] == chunk[..take];
        offset += take;
    }
    process.recorder.kv(peer, |traffic| {
        traffic.received_bytes += length;
        traffic.received_transfers += 1;
        traffic.corrupt_transfers += u64::from(!intact);
    });
    process.stats.received(length);
    process.slots.fill(slot, PrefillResult { prompt_hash, first_token: first });
    socket.write_u8(1).await?;
    socket.flush().await
}

/// Idle data connections, by peer.
#[derive(Debug, Default)]
pub(crate) struct ConnectionPool(Mutex<HashMap<SocketAddr, Vec<EngineSocket>>>);

impl std::fmt::Debug for EngineSocket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("EngineSocket")
    }
}

impl ConnectionPool {
    fn idle(&self, peer: SocketAddr) -> Option<EngineSocket> {
        let mut idle = self.0.lock();
        idle.get_mut(&peer)?.pop()
    }

    fn put_back(&self, peer: SocketAddr, socket: EngineSocket) {
        let mut idle = self.0.lock();
        idle.entry(peer).or_default().push(socket);
    }
}

/// Pushes a prompt's KV to the decode. Returns once the decode has confirmed it.
///
/// # Errors
/// The decode cannot be reached, or the connection ends before it has confirmed.
pub(crate) async fn push(
    process: &Process,
    transfer_info: &TransferInfo,
    result: PrefillResult,
    prompt_tokens: usize,
) -> io::Result<u64> {
    let peer = transfer_info.data;
    let length = (prompt_tokens * process.config.kv_bytes_per_token.max(8)) as u64;
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(&MAGIC.to_be_bytes());
    header.extend_from_slice(&transfer_info.slot.to_be_bytes());
    header.extend_from_slice(&transfer_info.room.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&result.first_token.to_be_bytes());
    header.extend_from_slice(&u32::try_from(prompt_tokens).unwrap_or(u32::MAX).to_be_bytes());

    // A pooled connection may have died while idle; that does not fail the transfer.
    if let Some(mut socket) = process.pool.idle(peer)
        && write(&mut socket, &header, result.prompt_hash, length).await.is_ok()
    {
        process.pool.put_back(peer, socket);
    } else {
        let stream = connect(process.config.host, peer, process.config.timing.peer_timeout).await?;
        process.recorder.kv(peer.ip(), |traffic| traffic.connections += 1);
        let mut socket = EngineSocket::new(stream, Arc::clone(&process.sockets));
        write(&mut socket, &header, result.prompt_hash, length).await?;
        process.pool.put_back(peer, socket);
    }
    process.recorder.kv(peer.ip(), |traffic| {
        traffic.sent_bytes += length;
        traffic.sent_transfers += 1;
    });
    Ok(length)
}

async fn write(
    socket: &mut EngineSocket,
    header: &[u8],
    prompt_hash: u64,
    length: u64,
) -> io::Result<()> {
    socket.write_all(header).await?;
    let size = usize::try_from(length).map_or(CHUNK, |l| l.min(CHUNK));
    let mut chunk = vec![0u8; size];
    let mut offset = 0usize;
    while (offset as u64) < length {
        let take = usize::try_from(length - offset as u64).map_or(CHUNK, |left| left.min(CHUNK));
        fill(&mut chunk[..take], prompt_hash, offset);
        socket.write_all(&chunk[..take]).await?;
        offset += take;
    }
    socket.flush().await?;
    if socket.read_u8().await? == 1 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
