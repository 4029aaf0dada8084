//! Frames byte by byte, from a client to an engine.

pub(crate) const CLIENT: [u8; 4] = [192, 0, 2, 9];
pub(crate) const ENGINE: [u8; 4] = [10, 9, 8, 7];
pub(crate) const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
pub(crate) const ENGINE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

pub(crate) fn ethernet(kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(rest);
    frame
}

pub(crate) fn vlan(tag: u16, frame: &[u8]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(tag.to_be_bytes());
    tagged.extend([0, 5]);
    tagged.extend(&frame[12..]);
    tagged
}

/// An IPv4 packet to the pod, with options of whole words.
pub(crate) fn v4(protocol: u8, fragment: u16, options: &[u8], rest: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let total = (words * 4 + rest.len()) as u16;
    let mut packet = vec![0x40 | words as u8, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(CLIENT);
    packet.extend(ENGINE);
    packet.extend(options);
    packet.extend(rest);
    packet
}

/// An IPv6 packet to the pod; `next` is of the first header that follows.
pub(crate) fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((rest.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(CLIENT6);
    packet.extend(ENGINE6);
    packet.extend(rest);
    packet
}

pub(crate) fn tcp(sequence: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let mut segment = Vec::new();
    segment.extend(40_000u16.to_be_bytes());
    segment.extend(8_000u16.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(0u32.to_be_bytes());
    segment.extend([(words as u8) << 4, flags, 1, 0, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    segment
}

pub(crate) fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = 50_000u16.to_be_bytes().to_vec();
    datagram.extend(port.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// A RoCEv2 packet to queue pair 0x123456 as the IBTA lays it out: BTH, extended headers, payload,
/// padding, ICRC.
pub(crate) fn roce(opcode: u8, extended: &[u8], payload: usize) -> Vec<u8> {
    ethernet(0x800, &v4(17, 0x4000, &[], &udp(4791, &transport(opcode, extended, payload))))
}

/// What of it follows the UDP header.
pub(crate) fn transport(opcode: u8, extended: &[u8], payload: usize) -> Vec<u8> {
    let padding = payload.next_multiple_of(4) - payload;
    let mut packet = vec![opcode, (padding as u8) << 4, 0xff, 0xff, 0, 0x12, 0x34, 0x56];
    packet.extend([0x80, 0, 0, 1]);
    packet.extend(extended);
    packet.extend(vec![7; payload + padding + 4]);
    packet
}
