//! The part of ZMTP 3.x that PUSH and PULL sockets need, without encryption (ZeroMQ RFC 23).

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Maximum size of a received frame: KV indices of 16 million pages.
const MAX_FRAME: u64 = 64 << 20;
/// Maximum number of frames in one message.
const MAX_PARTS: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("ZMTP: {what}"))
}

fn greeting() -> [u8; 64] {
    let mut bytes = [0u8; 64];
    // Signature as libzmq sends it, then version 3.1 and the mechanism.
    (bytes[0], bytes[8], bytes[9], bytes[10], bytes[11]) = (0xFF, 1, 0x7F, 3, 1);
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

fn ready(socket_type: &str) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u8(5);
    body.put_slice(b"READY");
    body.put_u8(11);
    body.put_slice(b"Socket-Type");
    body.put_u32(socket_type.len() as u32);
    body.put_slice(socket_type.as_bytes());
    let mut frame = BytesMut::with_capacity(body.len() + 2);
    frame.put_u8(COMMAND);
    frame.put_u8(body.len() as u8);
    frame.put_slice(&body);
    frame.freeze()
}

/// Performs the handshake. Both sides send the same greeting.
///
/// # Errors
/// The peer does not use ZMTP 3 with the NULL mechanism, or the connection ends.
pub(crate) async fn greet<S>(stream: &mut S, socket_type: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&greeting()).await?;
    let mut theirs = [0u8; 64];
    stream.read_exact(&mut theirs).await?;
    if theirs[0] != 0xFF || theirs[9] & 1 != 1 || theirs[10] < 3 {
        return Err(malformed("not a version 3 greeting"));
    }
    if &theirs[12..17] != b"NULL\0" {
        return Err(malformed("not the NULL mechanism"));
    }
    stream.write_all(&ready(socket_type)).await?;
    stream.flush().await?;
    let (flags, body) = read_frame(stream).await?;
    if flags & COMMAND == 0 || !body.starts_with(b"\x05READY") {
        return Err(malformed("no READY command"));
    }
    Ok(())
}

async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(u8, Bytes)> {
    let flags = stream.read_u8().await?;
    let length = if flags & LONG == 0 {
        u64::from(stream.read_u8().await?)
    } else {
        stream.read_u64().await?
    };
    if length > MAX_FRAME {
        return Err(malformed("frame too long"));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    Ok((flags, body.into()))
}

/// Reads the next message. Heartbeat commands are skipped.
///
/// # Errors
/// The connection ends or the message exceeds the limits.
pub(crate) async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<Bytes>> {
    let mut parts = Vec::new();
    loop {
        let (flags, body) = read_frame(stream).await?;
        if flags & COMMAND != 0 {
            continue;
        }
        if parts.len() == MAX_PARTS {
            return Err(malformed("too many frames"));
        }
        parts.push(body);
        if flags & MORE == 0 {
            return Ok(parts);
        }
    }
}

/// Encodes a multipart message.
pub(crate) fn encode(parts: &[Bytes]) -> Bytes {
    let mut wire = BytesMut::with_capacity(parts.iter().map(|p| p.len() + 9).sum());
    for (position, part) in parts.iter().enumerate() {
        let more = if position + 1 < parts.len() { MORE } else { 0 };
        if let Ok(length) = u8::try_from(part.len()) {
            wire.put_u8(more);
            wire.put_u8(length);
        } else {
            wire.put_u8(more | LONG);
            wire.put_u64(part.len() as u64);
        }
        wire.put_slice(part);
    }
    wire.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_multipart_message_with_a_long_frame_arrives_whole() {
        let (mut push, mut pull) = tokio::io::duplex(1 << 16);
        let parts = vec![
            Bytes::from_static(b"77"),
            Bytes::new(),
            Bytes::from(vec![7u8; 1000]),
            Bytes::from_static(b"end"),
        ];
        let sent = parts.clone();
        let sender = async move {
            greet(&mut push, "PUSH").await.unwrap();
            push.write_all(&encode(&sent)).await.unwrap();
            push
        };
        let receiver = async {
            greet(&mut pull, "PULL").await.unwrap();
            read_message(&mut pull).await.unwrap()
        };
        let (_push, received) = tokio::join!(sender, receiver);
        assert_eq!(received, parts);
    }

    #[tokio::test]
    async fn a_peer_that_speaks_http_is_refused() {
        let (mut client, mut pull) = tokio::io::duplex(1 << 10);
        client.write_all(&[b'G'; 64]).await.unwrap();
        assert!(greet(&mut pull, "PULL").await.is_err());
    }

    #[test]
    fn the_greeting_is_what_libzmq_sends() {
        let bytes = greeting();
        assert_eq!(&bytes[..12], &[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, 1]);
        assert_eq!(&bytes[12..17], b"NULL\0");
    }
}
