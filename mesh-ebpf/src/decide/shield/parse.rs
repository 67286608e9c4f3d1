//! A frame's headers, as far as the shield needs them.
//!
//! In two steps, so that a frame of a denied source costs no more than its addresses: the network
//! header, then the transport header. Nothing is believed: each load can say that the frame ends,
//! and every walk is bounded.

use mesh_common::addr::Addr;

use super::super::TCP;

/// IPv6 extension headers that are followed. Real traffic has one or two; RFC 8504 §5.3 lets a
/// node limit them, and names 8.
pub const EXTENSIONS_MAX: usize = 8;

/// VLAN tags that are followed: 802.1Q inside 802.1ad.
pub const TAGS_MAX: usize = 2;

/// Bytes of a TCP header without options.
const TCP_BYTES: u32 = 20;

/// Where the bytes come from.
pub trait Frame {
    /// `N` bytes at `at` from the beginning of the Ethernet header; `None`: the frame ends before.
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
}

/// What the network header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Protocol, or the first extension header.
    protocol: u8,
    /// Whether it is IPv6.
    v6: bool,
    /// More fragments follow (IPv4).
    more: bool,
    /// Fragment offset in bytes (IPv4).
    offset: u16,
    /// Where the next header begins.
    at: usize,
    /// Bytes behind the network header, as it says; IPv6 jumbograms and GRO's largest say 0.
    rest: u32,
}

/// A frame without a usable network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNetwork {
    /// Another protocol.
    NotIp,
    /// Ends too early, or says what can't be.
    Unparsed,
}

/// What the transport header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Byte 13 of the header.
        flags: u8,
    },
    /// Another protocol.
    Other,
    /// A fragment without the beginning of the transport header.
    Fragment,
    /// A fragment whose cut goes through the TCP header.
    Split,
    /// Ends too early, or has too many extension headers.
    Unparsed,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// 802.1Q, 802.1ad, and what QinQ used before it.
const fn is_tag(kind: u16) -> bool {
    matches!(kind, 0x8100 | 0x88a8 | 0x9100)
}

/// Reads Ethernet, VLAN tags and the network header.
///
/// # Errors
/// What it is instead.
#[inline(always)]
pub fn network(frame: &impl Frame) -> Result<Network, NoNetwork> {
    let mut at = 14;
    let mut kind = u16::from_be_bytes(frame.load(12).ok_or(NoNetwork::Unparsed)?);
    for _ in 0..TAGS_MAX {
        if is_tag(kind) {
            kind = u16::from_be_bytes(frame.load(at + 2).ok_or(NoNetwork::Unparsed)?);
            at += 4;
        }
    }
    match kind {
        IPV4 => ipv4(frame, at),
        IPV6 => ipv6(frame, at),
        _ => Err(NoNetwork::NotIp),
    }
}

/// RFC 791 §3.1.
#[inline(always)]
fn ipv4(frame: &impl Frame, at: usize) -> Result<Network, NoNetwork> {
    let h: [u8; 20] = frame.load(at).ok_or(NoNetwork::Unparsed)?;
    let header = usize::from(h[0] & 0x0f) * 4;
    if h[0] >> 4 != 4 || header < 20 {
        return Err(NoNetwork::Unparsed);
    }
    let cut = u16::from_be_bytes([h[6], h[7]]);
    let total = u32::from(u16::from_be_bytes([h[2], h[3]]));
    Ok(Network {
        source: Addr::from_v4_be(u32::from_ne_bytes([h[12], h[13], h[14], h[15]])),
        destination: Addr::from_v4_be(u32::from_ne_bytes([h[16], h[17], h[18], h[19]])),
        protocol: h[9],
        v6: false,
        more: cut & 0x2000 != 0,
        offset: (cut & 0x1fff) << 3,
        at: at + header,
        rest: total.saturating_sub(header as u32),
    })
}

/// RFC 8200 §3.
#[inline(always)]
fn ipv6(frame: &impl Frame, at: usize) -> Result<Network, NoNetwork> {
    let h: [u8; 40] = frame.load(at).ok_or(NoNetwork::Unparsed)?;
    if h[0] >> 4 != 6 {
        return Err(NoNetwork::Unparsed);
    }
    let word = |i: usize| u32::from_ne_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
    Ok(Network {
        source: Addr::from_v6_be([word(8), word(12), word(16), word(20)]),
        destination: Addr::from_v6_be([word(24), word(28), word(32), word(36)]),
        protocol: h[6],
        v6: true,
        more: false,
        offset: 0,
        at: at + 40,
        rest: u32::from(u16::from_be_bytes([h[4], h[5]])),
    })
}

/// Reads the transport header.
#[inline(always)]
pub fn transport(frame: &impl Frame, network: &Network) -> Transport {
    if network.v6 {
        return extensions(frame, network);
    }
    match (network.protocol, network.offset) {
        (TCP, 0) => tcp(frame, network.at, network.more, network.rest),
        (TCP, 8) => Transport::Split,
        (_, 0) => Transport::Other,
        _ => Transport::Fragment,
    }
}

/// Follows IPv6's extension headers (RFC 8200 §4.1; numbers: IANA «IPv6 Extension Header Types»).
#[inline(always)]
fn extensions(frame: &impl Frame, network: &Network) -> Transport {
    let (mut kind, mut at) = (network.protocol, network.at);
    let mut more = false;
    for _ in 0..=EXTENSIONS_MAX {
        match kind {
            TCP => {
                let walked = (at - network.at) as u32;
                return tcp(frame, at, more, network.rest.saturating_sub(walked));
            }
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => {
                let Some(h) = frame.load::<2>(at) else {
                    return Transport::Unparsed;
                };
                kind = h[0];
                at += (usize::from(h[1]) + 1) * 8;
            }
            // Authentication: in units of 4 bytes, less 2 (RFC 4302 §2.2).
            51 => {
                let Some(h) = frame.load::<2>(at) else {
                    return Transport::Unparsed;
                };
                kind = h[0];
                at += (usize::from(h[1]) + 2) * 4;
            }
            44 => {
                let Some(h) = frame.load::<4>(at) else {
                    return Transport::Unparsed;
                };
                let cut = u16::from_be_bytes([h[2], h[3]]);
                let offset = cut & 0xfff8;
                if offset != 0 {
                    return if h[0] == TCP && offset == 8 {
                        Transport::Split
                    } else {
                        Transport::Fragment
                    };
                }
                kind = h[0];
                more = cut & 1 != 0;
                at += 8;
            }
            _ => return Transport::Other,
        }
    }
    Transport::Unparsed
}

/// RFC 9293 §3.1. `more`: it is the first fragment of several, of which `rest` bytes are here.
#[inline(always)]
fn tcp(frame: &impl Frame, at: usize, more: bool, rest: u32) -> Transport {
    if more && rest < TCP_BYTES {
        return Transport::Split;
    }
    match frame.load::<14>(at) {
        Some(h) => Transport::Tcp {
            sport: u16::from_be_bytes([h[0], h[1]]),
            dport: u16::from_be_bytes([h[2], h[3]]),
            flags: h[13],
        },
        None => Transport::Unparsed,
    }
}
