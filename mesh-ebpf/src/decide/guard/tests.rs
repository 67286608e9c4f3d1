extern crate std;

use std::{net::IpAddr, vec, vec::Vec};

use super::*;

const POD: u32 = 5;
const OWN: &str = "10.0.0.5";
const OWN6: &str = "fd00::5";
const THERE: &str = "10.9.0.1";
const THERE6: &str = "fd00:9::1";

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse::<IpAddr>().expect("an address"))
}

struct Frame(Vec<u8>);

impl Packet for Frame {
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
        let at = at as usize;
        match self.0.get(at..at + N) {
            Some(bytes) => {
                to.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
}

#[derive(Default)]
struct Fake {
    dialled: bool,
    granted: u32,
    agent: bool,
    /// Port (0: any) and action.
    rules: Vec<(u16, u32)>,
}

impl World for Fake {
    fn pod(&self, at: &Addr) -> u32 {
        if *at == addr(OWN) || *at == addr(OWN6) {
            POD
        } else if *at == addr("10.0.0.6") {
            6
        } else {
            0
        }
    }
    fn dialled(&self, tuple: &Tuple) -> bool {
        self.dialled && (tuple.sport, tuple.dport) == (40_000, 80)
    }
    fn granted(&self, tuple: &Tuple) -> u32 {
        if (tuple.sport, tuple.dport) == (40_000, 80) {
            self.granted
        } else {
            0
        }
    }
    fn out_rule(&self, proto: u8, port: u16, _: &Addr) -> Option<u32> {
        assert_eq!(proto, UDP);
        let found = self.rules.iter().find(|(at, _)| *at == port);
        found.map(|(_, action)| *action)
    }
    fn sent_by_agent(&self) -> bool {
        self.agent
    }
}

const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

fn segment(flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags];
    bytes.extend([0; 6]);
    bytes.extend(data);
    bytes
}

fn datagram(port: u16) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40];
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    bytes
}

fn v4_frag(proto: u8, src: &str, dst: &str, frag: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + body.len() as u16).to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(frag.to_be_bytes());
    bytes.extend([64, proto, 0, 0]);
    bytes.extend(addr(src).v4_be().to_ne_bytes());
    bytes.extend(addr(dst).v4_be().to_ne_bytes());
    bytes.extend(body);
    bytes
}

fn v4(proto: u8, src: &str, body: &[u8]) -> Vec<u8> {
    eth(IPV4, &v4_frag(proto, src, THERE, 0x4000, body))
}

fn v6_to(next: u8, src: &str, dst: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend(addr(src).octets());
    bytes.extend(addr(dst).octets());
    bytes.extend(body);
    eth(IPV6, &bytes)
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    v6_to(next, OWN6, THERE6, body)
}

fn eth(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Puts tags behind the addresses.
fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 9]);
    }
    bytes.extend(&frame[12..]);
    bytes
}

fn ext(next: u8, words: usize) -> Vec<u8> {
    let mut bytes = vec![0; 8 * words];
    bytes[0] = next;
    bytes[1] = words as u8 - 1;
    bytes
}

fn chain(kinds: &[(u8, usize)], last: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, (_, words)) in kinds.iter().enumerate() {
        let next = kinds.get(i + 1).map_or(last, |(kind, _)| *kind);
        bytes.extend(ext(next, *words));
    }
    bytes.extend(body);
    v6(kinds.first().map_or(last, |(kind, _)| *kind), &bytes)
}

fn judge(world: &Fake, frame: Vec<u8>) -> Verdict {
    let mut seen = Tuple {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        sport: 0,
        dport: 0,
    };
    decide(&Frame(frame), world, POD, &mut seen)
}

fn plain(frame: Vec<u8>) -> Verdict {
    judge(&Fake::default(), frame)
}

const fn dropped(reason: Reason) -> Verdict {
    Verdict::Drop(reason)
}

#[test]
fn syn_passes_by_grant_of_its_workload_or_by_the_agents_own_socket_only() {
    let frames = || {
        [
            v4(TCP, OWN, &segment(SYN, b"")),
            v6(TCP, &segment(SYN, b"")),
        ]
    };
    let world = |dialled, granted, agent| Fake {
        dialled,
        granted,
        agent,
        ..Fake::default()
    };
    for (case, expected) in [
        (world(false, 0, false), dropped(Reason::RefuseGuardSyn)),
        (world(false, POD, false), Verdict::Pass),
        (world(false, 6, false), dropped(Reason::RefuseGuardSyn)),
        (world(true, 0, true), Verdict::Pass),
        // The agent's tuple, from a raw socket of the workload.
        (world(true, 0, false), dropped(Reason::RefuseGuardSyn)),
        // The agent's socket, but no dial that was recorded.
        (world(false, 0, true), dropped(Reason::RefuseGuardSyn)),
        // A stale grant never helps against the agent's tuple.
        (world(true, POD, false), dropped(Reason::RefuseGuardSyn)),
    ] {
        for frame in frames() {
            assert_eq!(judge(&case, frame), expected);
        }
    }
}

/// A listening socket takes SYN with data, PSH, URG or ECN bits; none of them makes it another kind.
#[test]
fn every_segment_that_opens_is_a_syn() {
    for flags in (0..=255_u8).filter(|flags| flags & (SYN | ACK) == SYN) {
        assert_eq!(
            plain(v4(TCP, OWN, &segment(flags, b"x"))),
            dropped(Reason::RefuseGuardSyn),
            "{flags:#x}"
        );
    }
}

#[test]
fn segments_without_syn_open_nothing_and_pass() {
    for flags in [ACK, ACK | PSH, RST, RST | ACK, SYN | ACK, ACK | 1, 0] {
        for data in [b"".as_slice(), b"data"] {
            assert_eq!(plain(v4(TCP, OWN, &segment(flags, data))), Verdict::Next);
        }
    }
}

/// Without it: who reads the agent's packets in the pod's namespace writes into its connections.
#[test]
fn data_on_a_dialled_tuple_comes_from_the_agents_socket() {
    let frame = || v4(TCP, OWN, &segment(ACK | PSH, b"GET /admin"));
    let dialled = |agent| Fake {
        dialled: true,
        agent,
        ..Fake::default()
    };
    assert_eq!(judge(&dialled(true), frame()), Verdict::Next);
    assert_eq!(
        judge(&dialled(false), frame()),
        dropped(Reason::RefuseGuardForged)
    );
    // What the kernel sends for a socket that is gone has no data and no socket.
    assert_eq!(
        judge(&dialled(false), v4(TCP, OWN, &segment(ACK, b""))),
        Verdict::Next
    );
}

/// A length of 0 is a super-packet: there is data.
#[test]
fn super_packet_without_a_length_counts_as_data() {
    let world = Fake {
        dialled: true,
        ..Fake::default()
    };
    let mut frame = v4(TCP, OWN, &segment(ACK, b"data"));
    (frame[16], frame[17]) = (0, 0);
    assert_eq!(judge(&world, frame), dropped(Reason::RefuseGuardForged));
    let mut frame = v6(TCP, &segment(ACK, b"data"));
    (frame[18], frame[19]) = (0, 0);
    assert_eq!(judge(&world, frame), dropped(Reason::RefuseGuardForged));
}

#[test]
fn source_is_an_address_of_this_workload() {
    for src in [THERE, "10.0.0.6", "127.0.0.1", "0.0.0.0", "169.254.3.4"] {
        for proto in [TCP, UDP, ICMP] {
            assert_eq!(
                plain(v4(proto, src, &segment(SYN, b""))),
                dropped(Reason::RefuseGuardSource),
                "{src} {proto}"
            );
        }
    }
    for src in [THERE6, "::1", "::", "fe80::5"] {
        assert_eq!(
            plain(v6_to(TCP, src, THERE6, &segment(SYN, b""))),
            dropped(Reason::RefuseGuardSource),
            "{src}"
        );
    }
}

#[test]
fn housekeeping_of_the_link_lives() {
    assert_eq!(plain(eth(ARP, &[0; 28])), Verdict::Next);
    let link = |proto, src, dst, body: &[u8]| plain(eth(IPV4, &v4_frag(proto, src, dst, 0, body)));
    // DHCP, and nothing else, from a host without an address.
    let broadcast = "255.255.255.255";
    assert_eq!(
        link(UDP, "0.0.0.0", broadcast, &datagram(67)),
        Verdict::Next
    );
    assert_eq!(
        link(UDP, "0.0.0.0", broadcast, &datagram(53)),
        dropped(Reason::RefuseGuardSource)
    );
    assert_eq!(
        link(UDP, "0.0.0.0", THERE, &datagram(67)),
        dropped(Reason::RefuseGuardSource)
    );
    assert_eq!(link(IGMP, "0.0.0.0", "224.0.0.22", &[0; 8]), Verdict::Next);
    // IPv6: solicitations from nobody, reports behind a hop-by-hop option, all of fe80::/10.
    let solicit = [135, 0, 0, 0, 0, 0, 0, 0];
    for dst in ["ff02::1:ff00:5", "fe80::1"] {
        assert_eq!(plain(v6_to(ICMP6, "fe80::5", dst, &solicit)), Verdict::Next);
    }
    assert_eq!(
        plain(v6_to(ICMP6, "::", "ff02::1:ff00:5", &solicit)),
        Verdict::Next
    );
    let mut report = ext(ICMP6, 1);
    report.extend(solicit);
    assert_eq!(
        plain(v6_to(HOP_BY_HOP, "::", "ff02::16", &report)),
        Verdict::Next
    );
    // DHCPv6.
    assert_eq!(
        plain(v6_to(UDP, "fe80::5", "ff02::1:2", &datagram(547))),
        Verdict::Next
    );
    // Link-local stays on the link, and needs a grant like everybody.
    assert_eq!(
        plain(v6_to(UDP, "fe80::5", THERE6, &datagram(53))),
        dropped(Reason::RefuseGuardSource)
    );
    assert_eq!(
        plain(v6_to(TCP, "fe80::5", "fe80::1", &segment(SYN, b""))),
        dropped(Reason::RefuseGuardSyn)
    );
}

#[test]
fn fragments_of_tcp_are_dropped_first_and_later() {
    let whole = segment(SYN, b"");
    for (frag, body) in [
        (0x2000, &whole[..8]),
        (0x0001, &whole[8..]),
        (0x2001, &whole[8..]),
        (0x1fff, b"12345678".as_slice()),
        // With a grant it is no better.
        (0x2000, &whole),
    ] {
        let world = Fake {
            granted: POD,
            ..Fake::default()
        };
        assert_eq!(
            judge(&world, eth(IPV4, &v4_frag(TCP, OWN, THERE, frag, body))),
            dropped(Reason::RefuseGuardFragment),
            "{frag:#x}"
        );
    }
    let fragment = |next, offset: u16, body: &[u8]| {
        let mut bytes = vec![next, 0];
        bytes.extend(offset.to_be_bytes());
        bytes.extend([0, 0, 0, 1]);
        bytes.extend(body);
        bytes
    };
    for offset in [0, 1, 8, 9] {
        assert_eq!(
            plain(v6(FRAGMENT, &fragment(TCP, offset, &whole))),
            dropped(Reason::RefuseGuardFragment),
            "{offset}"
        );
    }
    // Behind options in the first fragment; of a later one the rest can't be known.
    let mut options = ext(TCP, 1);
    options.extend(&whole);
    assert_eq!(
        plain(v6(FRAGMENT, &fragment(OPTIONS, 1, &options))),
        dropped(Reason::RefuseGuardFragment)
    );
    assert_eq!(
        plain(v6(FRAGMENT, &fragment(OPTIONS, 9, &options))),
        dropped(Reason::RefuseGuardHeader)
    );
    // UDP and ICMP may be fragmented.
    assert_eq!(
        plain(v6(FRAGMENT, &fragment(UDP, 1, &datagram(53)))),
        Verdict::Next
    );
    assert_eq!(
        plain(v6(FRAGMENT, &fragment(UDP, 9, b"rest"))),
        Verdict::Next
    );
    let later = v4_frag(ICMP, OWN, THERE, 0x0010, b"rest");
    assert_eq!(plain(eth(IPV4, &later)), Verdict::Next);
}

#[test]
fn extension_headers_are_walked_up_to_a_bound() {
    let syn = segment(SYN, b"");
    let granted = || Fake {
        granted: POD,
        ..Fake::default()
    };
    for kinds in [
        [(HOP_BY_HOP, 1)].as_slice(),
        &[(OPTIONS, 3)],
        &[(HOP_BY_HOP, 2), (OPTIONS, 32)],
        &[(OPTIONS, 1); 6],
    ] {
        assert_eq!(
            plain(chain(kinds, TCP, &syn)),
            dropped(Reason::RefuseGuardSyn)
        );
        assert_eq!(judge(&granted(), chain(kinds, TCP, &syn)), Verdict::Pass);
    }
    for kinds in [
        [(OPTIONS, 1); 7].as_slice(),
        &[(ROUTING, 3)],
        &[(HOP_BY_HOP, 1), (ROUTING, 1)],
        // Authentication, encryption, mobility, no next header.
        &[(51, 3)],
        &[(50, 1)],
        &[(135, 1)],
        &[(59, 1)],
    ] {
        assert_eq!(
            judge(&granted(), chain(kinds, TCP, &syn)),
            dropped(Reason::RefuseGuardHeader),
            "{kinds:?}"
        );
    }
}

/// A forged length of options must not hide data.
#[test]
fn data_behind_extension_headers_is_seen() {
    let world = Fake {
        dialled: true,
        ..Fake::default()
    };
    let frame = chain(&[(OPTIONS, 4)], TCP, &segment(ACK, b"x"));
    assert_eq!(judge(&world, frame), dropped(Reason::RefuseGuardForged));
    let frame = chain(&[(OPTIONS, 4)], TCP, &segment(ACK, b""));
    assert_eq!(judge(&world, frame), Verdict::Next);
}

#[test]
fn tags_are_looked_behind_and_other_encapsulations_end_here() {
    let syn = v4(TCP, OWN, &segment(SYN, b""));
    for tags in [[VLAN].as_slice(), &[QINQ], &[QINQ, VLAN], &[VLAN, VLAN]] {
        assert_eq!(
            plain(tagged(&syn, tags)),
            dropped(Reason::RefuseGuardSyn),
            "{tags:?}"
        );
        assert_eq!(plain(tagged(&eth(ARP, &[0; 28]), tags)), Verdict::Next);
    }
    assert_eq!(
        plain(tagged(&syn, &[VLAN; 3])),
        dropped(Reason::RefuseGuardHeader)
    );
    // MPLS, PPPoE, a length (SNAP), IPX.
    for kind in [0x8847, 0x8864, 0x0040, 0x8137] {
        assert_eq!(
            plain(eth(kind, &syn[14..])),
            dropped(Reason::RefuseGuardHeader)
        );
    }
    // IP in IP, IPv6 in IP, GRE, DCCP, SCTP, ESP, UDP-Lite, ICMPv6 in the wrong family.
    for proto in [4, 41, 47, 33, 132, 50, 136, 58, 0, 255] {
        assert_eq!(
            plain(v4(proto, OWN, &syn[14..])),
            dropped(Reason::RefuseGuardHeader),
            "{proto}"
        );
    }
    for next in [4, 41, 47, 33, 132, 136, 1, 2] {
        assert_eq!(
            plain(v6(next, &syn[14..])),
            dropped(Reason::RefuseGuardHeader),
            "{next}"
        );
    }
}

/// In our maps a v4-mapped address means IPv4; on a wire it would be another packet with its rights.
#[test]
fn mapped_addresses_on_the_wire_are_refused() {
    let own = "::ffff:10.0.0.5";
    let octets = own.parse::<std::net::Ipv6Addr>().expect("mapped").octets();
    for at in [22, 38] {
        let mut frame = v6(TCP, &segment(ACK, b""));
        frame[at..at + 16].copy_from_slice(&octets);
        assert_eq!(plain(frame), dropped(Reason::RefuseGuardHeader));
    }
}

#[test]
fn datagrams_follow_the_outbound_rules_and_tunnel_ports_need_one() {
    let rules = |rules: &[(u16, u32)]| Fake {
        rules: rules.to_vec(),
        ..Fake::default()
    };
    let to = |port| v4(UDP, OWN, &datagram(port));
    assert_eq!(plain(to(443)), Verdict::Next);
    assert_eq!(
        judge(&rules(&[(443, OUT_DENY)]), to(443)),
        dropped(Reason::RefuseGuardRule)
    );
    assert_eq!(judge(&rules(&[(443, OUT_DENY)]), to(53)), Verdict::Next);
    let all_but_dns = rules(&[(0, OUT_DENY), (53, OUT_PASS)]);
    assert_eq!(judge(&all_but_dns, to(53)), Verdict::Next);
    assert_eq!(
        judge(&all_but_dns, to(54)),
        dropped(Reason::RefuseGuardRule)
    );
    let later = eth(IPV4, &v4_frag(UDP, OWN, THERE, 1, b"rest"));
    assert_eq!(judge(&all_but_dns, later), dropped(Reason::RefuseGuardRule));
    for port in TUNNELS {
        assert_eq!(plain(to(port)), dropped(Reason::RefuseGuardHeader));
        assert_eq!(judge(&rules(&[(port, OUT_PASS)]), to(port)), Verdict::Next);
    }
}

#[test]
fn event_names_addresses_and_ports() {
    let mut seen = Tuple {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        sport: 0,
        dport: 0,
    };
    let frame = Frame(v4(TCP, OWN, &segment(SYN, b"")));
    decide(&frame, &Fake::default(), POD, &mut seen);
    assert_eq!(
        (seen.src, seen.dst, seen.sport, seen.dport),
        (addr(OWN), addr(THERE), 40_000, 80)
    );
}

/// Without it: a frame that is cut short is taken for what it would have been.
#[test]
fn every_frame_that_is_cut_short_is_dropped() {
    let world = Fake {
        granted: POD,
        ..Fake::default()
    };
    for frame in [
        v4(TCP, OWN, &segment(SYN, b"")),
        v4(UDP, OWN, &datagram(53)),
        chain(&[(HOP_BY_HOP, 1), (OPTIONS, 2)], TCP, &segment(SYN, b"")),
        tagged(&v6(TCP, &segment(SYN, b"")), &[QINQ, VLAN]),
    ] {
        // The flags are the last that is looked at, 14 bytes into TCP; UDP is read whole.
        let needed = frame.len() - if frame[23] == UDP { 4 } else { 6 };
        for length in 0..needed {
            let verdict = judge(&world, frame[..length].to_vec());
            assert_eq!(verdict, dropped(Reason::RefuseGuardHeader), "{length}");
        }
        assert_ne!(
            judge(&world, frame[..needed].to_vec()),
            dropped(Reason::RefuseGuardHeader)
        );
    }
    // A header length below its minimum, another version.
    for first in [0x44, 0x40, 0x55, 0x65] {
        let mut frame = v4(TCP, OWN, &segment(SYN, b""));
        frame[14] = first;
        assert_eq!(judge(&world, frame), dropped(Reason::RefuseGuardHeader));
    }
}

/// No bytes make it panic or pass a SYN: with 200,000 frames of random changes to a good one.
#[test]
fn random_changes_never_let_a_syn_without_a_grant_through() {
    let seed = 0x9e37_79b9_7f4a_7c15_u64;
    std::println!("seed {seed:#x}");
    let mut state = seed;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let good = [
        v4(TCP, OWN, &segment(SYN, b"")),
        chain(&[(HOP_BY_HOP, 1), (OPTIONS, 1)], TCP, &segment(SYN, b"")),
    ];
    for _ in 0..200_000 {
        let mut frame = good[(next() % 2) as usize].clone();
        for _ in 0..next() % 4 {
            let at = (next() as usize) % frame.len();
            frame[at] = next() as u8;
        }
        frame.truncate(frame.len() - (next() as usize) % 3 * 7);
        assert_ne!(plain(frame), Verdict::Pass);
    }
}
