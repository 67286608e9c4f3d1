//! What leaves a guarded workload: the last line behind the connect hook, at the node's side of its
//! veth, where nothing that the workload does to its own namespace counts.
//!
//! A TCP connection begins with a SYN. It passes when the agent's own socket sent it for a dial that
//! `flow_ops` recorded, or when `flow_ops` granted exactly this tuple to the workload. Everything
//! else that could begin one is dropped: unknown protocols, tunnels, fragments, headers that hide
//! the transport header. The table of attempts and answers is docs/BYPASS.md.
//!
//! Deliberately absent: connection tracking. A segment without SYN opens nothing at its receiver,
//! so answers of connections that came in need no entry.

use mesh_common::{
    addr::Addr,
    flow::Tuple,
    maps::{OUT_DENY, OUT_PASS},
    reason::Reason,
};

use super::TCP;

/// A frame. Read piece by piece: most of it is never looked at.
pub trait Packet {
    /// Copies the bytes from `at` on; whether there are that many.
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool;
}

/// What the decision may look up; asked only when needed.
pub trait World {
    /// `POD_BY_ADDR`: the workload with this address, 0 when none.
    fn pod(&self, addr: &Addr) -> u32;
    /// `PROXY_FLOWS`: whether the agent dialled this.
    fn dialled(&self, tuple: &Tuple) -> bool;
    /// `GRANTS`: the workload that may open this, 0 when none.
    fn granted(&self, tuple: &Tuple) -> u32;
    /// `OUT_RULES`: the action of the longest prefix for exactly this port (0: any).
    fn out_rule(&self, proto: u8, port: u16, addr: &Addr) -> Option<u32>;
    /// Whether the socket that sent the frame was made in the agent's cgroup.
    fn sent_by_agent(&self) -> bool;
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Others decide on.
    Next,
    /// The same, of a SYN; counted.
    Pass,
    /// It ends here; counted.
    Drop(Reason),
}

const ETH_KIND: u32 = 12;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
/// Tags that are looked behind: one, and one in a provider's tag (IEEE 802.1ad). The kernel takes
/// the outer one off before programs run, so one more may have been there.
const TAGS_MAX: u32 = 2;

const ICMP: u8 = 1;
const IGMP: u8 = 2;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;
/// Extension headers that are walked: RFC 8200, section 4.1 recommends at most one of each and two
/// of the options; all six kinds fit. What has more ends here.
const HEADERS_MAX: u32 = 6;

/// UDP ports where nodes take tunnels apart: VXLAN (RFC 7348), the port that Linux, Flannel and
/// Cilium use for it, Geneve (RFC 8926). What is inside would enter the cluster as if the node had
/// sent it.
const TUNNELS: [u16; 3] = [4_789, 8_472, 6_081];
const DHCP_SERVER: u16 = 67;

/// Where a packet stands among its fragments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Later,
}

/// What the network header says.
struct Network {
    src: Addr,
    dst: Addr,
    v6: bool,
    proto: u8,
    part: Part,
    /// Where the transport header begins.
    at: u32,
    /// Bytes from there on, as the header says; `u32::MAX` when it doesn't.
    length: u32,
}

/// Decides on a frame that an interface of this workload sent. `seen`: as much of its addresses and
/// ports as was looked at.
#[inline(always)]
pub fn decide(packet: &impl Packet, world: &impl World, pod_id: u32, seen: &mut Tuple) -> Verdict {
    let mut kind = [0; 2];
    let mut at = ETH_KIND;
    let mut tags = 0;
    if !packet.load(at, &mut kind) {
        return Verdict::Drop(Reason::RefuseGuardHeader);
    }
    while tags < TAGS_MAX && matches!(u16::from_be_bytes(kind), VLAN | QINQ) {
        at += 4;
        if !packet.load(at, &mut kind) {
            return Verdict::Drop(Reason::RefuseGuardHeader);
        }
        tags += 1;
    }
    let found = match u16::from_be_bytes(kind) {
        ARP => return Verdict::Next,
        IPV4 => v4(packet, at + 2),
        IPV6 => v6(packet, at + 2),
        // MPLS, PPPoE, SNAP, a third tag ...: IP may be inside, and nodes may take it out.
        _ => None,
    };
    match found {
        Some(network) => {
            (seen.src, seen.dst) = (network.src, network.dst);
            transport(packet, world, pod_id, &network, seen)
        }
        None => Verdict::Drop(Reason::RefuseGuardHeader),
    }
}

#[inline(always)]
const fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

/// `None`: no header that can be followed.
#[inline(always)]
fn v4(packet: &impl Packet, at: u32) -> Option<Network> {
    let mut h = [0; 20];
    if !packet.load(at, &mut h) || h[0] >> 4 != 4 || h[0] & 15 < 5 {
        return None;
    }
    let header = u32::from(h[0] & 15) * 4;
    let fragment = be16(h[6], h[7]);
    // 0: a super-packet above 64 KiB, of a kernel that makes them (BIG TCP).
    let total = u32::from(be16(h[2], h[3]));
    Some(Network {
        src: Addr::from_v4_be(u32::from_ne_bytes([h[12], h[13], h[14], h[15]])),
        dst: Addr::from_v4_be(u32::from_ne_bytes([h[16], h[17], h[18], h[19]])),
        v6: false,
        proto: h[9],
        part: part(fragment & 0x1fff != 0, fragment & 0x2000 != 0),
        at: at + header,
        length: if total == 0 {
            u32::MAX
        } else {
            total.saturating_sub(header)
        },
    })
}

#[inline(always)]
const fn part(offset: bool, more: bool) -> Part {
    if offset {
        Part::Later
    } else if more {
        Part::First
    } else {
        Part::Whole
    }
}

#[inline(always)]
fn v6(packet: &impl Packet, at: u32) -> Option<Network> {
    let mut h = [0; 40];
    if !packet.load(at, &mut h) || h[0] >> 4 != 6 {
        return None;
    }
    let word = |i: usize| u32::from_ne_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
    let src = Addr::from_v6_be([word(8), word(12), word(16), word(20)]);
    let dst = Addr::from_v6_be([word(24), word(28), word(32), word(36)]);
    // Never on a wire (RFC 4291, section 2.5.5.2); in our maps they mean IPv4.
    if src.is_v4() || dst.is_v4() {
        return None;
    }
    let mut network = Network {
        src,
        dst,
        v6: true,
        proto: h[6],
        part: Part::Whole,
        at: at + 40,
        // 0: a jumbogram, or a super-packet.
        length: match be16(h[4], h[5]) {
            0 => u32::MAX,
            length => length as u32,
        },
    };
    walk(packet, &mut network).then_some(network)
}

/// Follows the extension headers; whether they lead to a transport header.
#[inline(always)]
fn walk(packet: &impl Packet, network: &mut Network) -> bool {
    let mut seen = 0;
    while seen < HEADERS_MAX {
        let mut h = [0; 4];
        let size = match network.proto {
            HOP_BY_HOP | OPTIONS | FRAGMENT => {
                if !packet.load(network.at, &mut h) {
                    return false;
                }
                if network.proto == FRAGMENT {
                    let offset = be16(h[2], h[3]);
                    // Also one that is alone (RFC 6946): nobody sends TCP like that.
                    network.part = part(offset & 0xfff8 != 0, true);
                    if network.part == Part::Later {
                        network.proto = h[0];
                        return !is_extension(h[0]);
                    }
                    8
                } else {
                    (u32::from(h[1]) + 1) * 8
                }
            }
            // With segments left the packet goes to somebody else than its header says.
            ROUTING => return false,
            _ => return true,
        };
        network.proto = h[0];
        network.at += size;
        if network.length != u32::MAX {
            network.length = network.length.saturating_sub(size);
        }
        seen += 1;
    }
    !is_extension(network.proto)
}

#[inline(always)]
const fn is_extension(proto: u8) -> bool {
    matches!(proto, HOP_BY_HOP | ROUTING | FRAGMENT | OPTIONS)
}

#[inline(always)]
fn transport(
    packet: &impl Packet,
    world: &impl World,
    pod_id: u32,
    network: &Network,
    seen: &mut Tuple,
) -> Verdict {
    if world.pod(&network.src) != pod_id && !housekeeping(network) {
        return Verdict::Drop(Reason::RefuseGuardSource);
    }
    match network.proto {
        TCP if network.part != Part::Whole => Verdict::Drop(Reason::RefuseGuardFragment),
        TCP => tcp(packet, world, pod_id, network, seen),
        UDP => udp(packet, world, network, seen),
        ICMP if !network.v6 => Verdict::Next,
        IGMP if !network.v6 => Verdict::Next,
        ICMP6 if network.v6 => Verdict::Next,
        // SCTP, DCCP, IP in IP, GRE, ESP ...: other ways to connect, and ways to carry TCP.
        _ => Verdict::Drop(Reason::RefuseGuardHeader),
    }
}

/// Sources that are in no map and must live: link-local ones as long as they stay on the link, and
/// the unspecified one of a host that has no address yet.
#[inline(always)]
fn housekeeping(network: &Network) -> bool {
    let (src, dst) = (&network.src, &network.dst);
    if src.is_link_local() {
        return dst.is_link_local() || is_multicast(dst);
    }
    if !src.is_unspecified() || network.part != Part::Whole {
        return false;
    }
    match network.proto {
        // DHCP; the port is looked at later.
        UDP => !network.v6 && dst.v4_be() == u32::MAX,
        IGMP => !network.v6 && is_multicast(dst),
        // Duplicate address detection and multicast reports.
        ICMP6 => network.v6 && is_multicast(dst),
        _ => false,
    }
}

/// `224.0.0.0/4` or `ff00::/8`.
#[inline(always)]
fn is_multicast(addr: &Addr) -> bool {
    if addr.is_v4() {
        addr.v4_be().to_ne_bytes()[0] & 0xf0 == 0xe0
    } else {
        addr.v6_be()[0].to_ne_bytes()[0] == 0xff
    }
}

#[inline(always)]
fn tcp(
    packet: &impl Packet,
    world: &impl World,
    pod_id: u32,
    network: &Network,
    seen: &mut Tuple,
) -> Verdict {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let mut h = [0; 14];
    if !packet.load(network.at, &mut h) {
        return Verdict::Drop(Reason::RefuseGuardHeader);
    }
    // Whatever other flags: a listening socket takes SYN with PSH or URG too.
    let opens = h[13] & (SYN | ACK) == SYN;
    let carries = network.length > u32::from(h[12] >> 4) * 4;
    if !opens && !carries {
        return Verdict::Next;
    }
    let agent = world.sent_by_agent();
    if !opens && agent {
        return Verdict::Next;
    }
    (seen.sport, seen.dport) = (be16(h[0], h[1]), be16(h[2], h[3]));
    let dialled = world.dialled(seen);
    if !opens {
        // Whoever may read the agent's packets in the workload's namespace knows their numbers.
        return if dialled {
            Verdict::Drop(Reason::RefuseGuardForged)
        } else {
            Verdict::Next
        };
    }
    if (dialled && agent) || (!dialled && world.granted(seen) == pod_id) {
        Verdict::Pass
    } else {
        Verdict::Drop(Reason::RefuseGuardSyn)
    }
}

#[inline(always)]
fn udp(packet: &impl Packet, world: &impl World, network: &Network, seen: &mut Tuple) -> Verdict {
    let mut h = [0; 8];
    let mut port = 0;
    // A later fragment has no ports: rules for any port hold, the others are its first one's.
    if network.part != Part::Later {
        if !packet.load(network.at, &mut h) || network.length < 8 {
            return Verdict::Drop(Reason::RefuseGuardHeader);
        }
        port = be16(h[2], h[3]);
        (seen.sport, seen.dport) = (be16(h[0], h[1]), port);
    }
    if network.src.is_unspecified() && port != DHCP_SERVER {
        return Verdict::Drop(Reason::RefuseGuardSource);
    }
    let exact = if port == 0 {
        None
    } else {
        world.out_rule(UDP, port, &network.dst)
    };
    let rule = match exact {
        None => world.out_rule(UDP, 0, &network.dst),
        rule => rule,
    };
    match rule {
        Some(OUT_DENY) => Verdict::Drop(Reason::RefuseGuardRule),
        // Whoever needs a tunnel says so.
        Some(OUT_PASS) => Verdict::Next,
        _ if TUNNELS.contains(&port) => Verdict::Drop(Reason::RefuseGuardHeader),
        _ => Verdict::Next,
    }
}

#[cfg(test)]
mod tests;
