//! Frames by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

/// An Ethernet header with tags.
pub(crate) fn ethernet(tags: &[u16], kind: u16) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(kind.to_be_bytes());
    frame
}

/// What may be said of an IPv4 packet beyond its addresses.
#[derive(Clone, Copy, Default)]
pub(crate) struct V4 {
    pub(crate) options: usize,
    /// Flags and fragment offset.
    pub(crate) cut: u16,
}

/// An IP packet in Ethernet; the destination is of the source's family.
pub(crate) fn packet(source: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match source {
        IpAddr::V4(source) => v4(&[], V4::default(), source, protocol, payload),
        IpAddr::V6(source) => v6(&[], source, &[], protocol, payload),
    }
}

pub(crate) fn v4(tags: &[u16], how: V4, source: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(tags, 0x0800);
    let header = 20 + how.options;
    frame.extend([0x40 | (header / 4) as u8, 0]);
    frame.extend(((header + payload.len()) as u16).to_be_bytes());
    frame.extend([0, 1]);
    frame.extend(how.cut.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend(source.octets());
    frame.extend([10, 0, 0, 1]);
    frame.extend(std::iter::repeat_n(1, how.options));
    frame.extend(payload);
    frame
}

/// With extension headers: kind, and bytes of which the first is replaced by the next one's kind.
pub(crate) fn v6(
    tags: &[u16],
    source: Ipv6Addr,
    extensions: &[(u8, &[u8])],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = ethernet(tags, 0x86dd);
    let length: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
    kinds.push(protocol);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(((length + payload.len()) as u16).to_be_bytes());
    frame.extend([kinds[0], 64]);
    frame.extend(source.octets());
    frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe).octets());
    for ((_, bytes), next) in extensions.iter().zip(&kinds[1..]) {
        frame.push(*next);
        frame.extend(&bytes[1..]);
    }
    frame.extend(payload);
    frame
}

/// A TCP header.
pub(crate) fn segment(sport: u16, flags: u8) -> Vec<u8> {
    let mut bytes = sport.to_be_bytes().to_vec();
    bytes.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    bytes
}
