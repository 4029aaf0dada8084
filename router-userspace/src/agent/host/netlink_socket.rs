//! A netlink socket, and the messages and attributes of its answers.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub(in crate::agent) const REQUEST: u16 = 1;
pub(in crate::agent) const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// Size of the receive buffer in bytes; a datagram of a dump has up to 32 KiB.
const DATAGRAM: usize = 64 << 10;
/// Maximum size of one answer in bytes; a dump of 65,536 queue pairs has 6 MiB.
const MAX_ANSWER: usize = 16 << 20;
/// Time that an answer may take; some need the firmware of a device.
const TIMEOUT_SECONDS: i64 = 2;

/// A netlink socket that is opened at the first request, and again after an error.
#[derive(Debug)]
pub(in crate::agent) struct NetlinkSocket {
    protocol: SockProtocol,
    socket: Option<Socket>,
    answer: Vec<u8>,
}

impl NetlinkSocket {
    pub(in crate::agent) fn new(protocol: SockProtocol) -> NetlinkSocket {
        NetlinkSocket { protocol, socket: None, answer: Vec::new() }
    }

    /// Opens the socket if it is not open.
    ///
    /// # Errors
    /// The kernel lacks the protocol, or the process is out of descriptors.
    pub(in crate::agent) fn open(&mut self) -> io::Result<()> {
        self.socket = Some(self.take_or_open()?);
        Ok(())
    }

    fn take_or_open(&mut self) -> io::Result<Socket> {
        self.socket.take().map_or_else(|| Socket::open(self.protocol), Ok)
    }

    /// Sends a request and returns the messages of the answer, without the one that ends a dump.
    ///
    /// # Errors
    /// As [`NetlinkSocket::open`]; or the answer is an error, is too long or does not come.
    pub(in crate::agent) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> io::Result<&[u8]> {
        let mut socket = self.take_or_open()?;
        self.answer.clear();
        socket.request(kind, flags, body, &mut self.answer)?;
        // After an error the socket is dropped: it may hold the rest of an answer.
        self.socket = Some(socket);
        Ok(&self.answer)
    }
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Socket {
    fn open(protocol: SockProtocol) -> io::Result<Socket> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))?;
        Ok(Socket { fd, sequence: 0, datagram: vec![0; DATAGRAM] })
    }

    /// Sends a request, and appends the messages of the answer to `answer`.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        answer: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut question = length.to_ne_bytes().to_vec();
        question.extend(kind.to_ne_bytes());
        question.extend((flags | REQUEST).to_ne_bytes());
        question.extend(self.sequence.to_ne_bytes());
        question.extend([0; 4]);
        question.extend(body);
        let to = NetlinkAddr::new(0, 0);
        let parts = [IoSlice::new(&question)];
        sendmsg(self.fd.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&to))?;
        let start = answer.len();
        loop {
            let count = recv(self.fd.as_raw_fd(), &mut self.datagram, MsgFlags::MSG_TRUNC)?;
            let datagram = self.datagram.get(..count).filter(|datagram| !datagram.is_empty());
            let datagram =
                datagram.ok_or_else(|| io::Error::other("datagram is empty or too long"))?;
            for message in messages(datagram).filter(|message| message.sequence == self.sequence) {
                match message.kind {
                    ERROR | DONE => return result_of(message.body),
                    _ => answer.extend(message.whole),
                }
                if flags & DUMP == 0 {
                    return Ok(());
                }
            }
            if answer.len() - start > MAX_ANSWER {
                return Err(io::Error::other(format!("answer is longer than {MAX_ANSWER} bytes")));
            }
        }
    }
}

/// The result in an error message or the end of a dump: 0, or a negative errno.
fn result_of(body: &[u8]) -> io::Result<()> {
    let code = number(body).map_or(0, u32::cast_signed);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

/// One message: `nlmsghdr` and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Message<'a> {
    pub(in crate::agent) kind: u16,
    sequence: u32,
    pub(in crate::agent) body: &'a [u8],
    /// The message with its header and padding.
    whole: &'a [u8],
}

/// The messages in `bytes`, up to the first that is incomplete.
pub(in crate::agent) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = number(bytes)? as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = number(bytes.get(8..)?)?;
        let body = bytes.get(HEADER..length)?;
        let whole = bytes.get(..length.next_multiple_of(4)).unwrap_or(bytes);
        bytes = bytes.get(whole.len()..)?;
        Some(Message { kind, sequence, body, whole })
    })
}

/// The attributes in `bytes`, up to the first that is incomplete.
pub(in crate::agent) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        // The two upper bits are the flags "nested" and "big endian".
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(in crate::agent) fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

pub(in crate::agent) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

pub(in crate::agent) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_end_at_an_incomplete_one() {
        let mut body = Vec::new();
        push_attribute(&mut body, 1, b"odd");
        push_attribute(&mut body, 2, &7u32.to_ne_bytes());
        let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend([9, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(&body);
        let whole: Vec<Message<'_>> = messages(&bytes).collect();
        assert_eq!(whole.len(), 1);
        assert_eq!((whole[0].kind, whole[0].sequence), (9, 5));
        let found: Vec<(u16, &[u8])> = attributes(whole[0].body).collect();
        assert_eq!(found, [(1, &b"odd"[..]), (2, &[7, 0, 0, 0][..])]);
        for cut in 0..bytes.len() {
            assert_eq!(messages(&bytes[..cut]).count(), 0, "{cut}");
        }
        for cut in 0..body.len() {
            assert!(attributes(&body[..cut]).count() < 2, "{cut}");
        }
    }

    #[test]
    fn invalid_lengths_end_the_iteration() {
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(messages(&[255; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[255; 64]).count(), 0);
    }
}
