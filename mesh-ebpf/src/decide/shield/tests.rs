//! Frames by hand, lists and buckets in plain maps.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    vec::Vec,
};

use super::{flags::*, parse::EXTENSIONS_MAX, *};
use crate::decide::TCP;

struct Bytes<'a>(&'a [u8]);

impl Frame for Bytes<'_> {
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }
}

struct Node {
    settings: Option<Settings>,
    entries: Vec<(IpAddr, Entry)>,
    now: Cell<u64>,
    full: RefCell<HashMap<([u8; 16], bool), u64>>,
    syns: RefCell<HashMap<Tuple, u64>>,
    room: bool,
}

const SECOND: u64 = 1_000_000_000;

fn node() -> Node {
    Node {
        settings: Some(Settings {
            abi: ABI_VERSION,
            drop_bogus: 1,
            syn_interval_ns: 0,
            syn_tolerance_ns: 0,
            connection_interval_ns: 0,
            connection_tolerance_ns: 0,
            _reserved: [0; 3],
        }),
        entries: Vec::new(),
        now: Cell::new(SECOND),
        full: RefCell::default(),
        syns: RefCell::default(),
        room: true,
    }
}

impl Node {
    fn reason(&self, frame: &[u8]) -> Reason {
        decide(&Bytes(frame), self).reason
    }
}

impl World for Node {
    type Source = [u8; 16];

    fn settings(&self) -> Option<Settings> {
        self.settings
    }
    fn entry(&self, source: &Addr) -> Entry {
        let found = self.entries.iter().find(|(ip, _)| *ip == source.to_ip());
        found.map_or(Entry::NONE, |(_, entry)| *entry)
    }
    fn now(&self) -> u64 {
        self.now.get()
    }
    fn source(&self, key: &Addr) -> Option<[u8; 16]> {
        self.room.then(|| key.octets())
    }
    fn full_ns(&self, source: [u8; 16], bucket: Bucket) -> u64 {
        let key = (source, bucket == Bucket::Syn);
        self.full.borrow().get(&key).copied().unwrap_or(0)
    }
    fn spend(&self, source: [u8; 16], bucket: Bucket, spend: Spend) {
        let mut full = self.full.borrow_mut();
        let slot = full.entry((source, bucket == Bucket::Syn)).or_default();
        match spend {
            Spend::Start(at) => *slot = at,
            Spend::Add(by) => *slot += by,
            Spend::Refused => panic!("a refusal spends nothing"),
        }
    }
    fn note(&self, _: [u8; 16], _: bool) {}
    fn seen(&self, connection: &Tuple) -> Option<u64> {
        self.syns.borrow().get(connection).copied()
    }
    fn remember(&self, connection: &Tuple, now: u64) {
        self.syns.borrow_mut().insert(*connection, now);
    }
}

fn ethernet(tags: &[u16], kind: u16) -> Vec<u8> {
    let mut frame = [2_u8; 12].to_vec();
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(kind.to_be_bytes());
    frame
}

/// IPv4 with `options` bytes of options, `cut` in the fragment field, and a payload.
fn v4(tags: &[u16], last: u8, options: usize, cut: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(tags, 0x0800);
    let header = 20 + options;
    frame.extend([0x40 | (header / 4) as u8, 0]);
    frame.extend(((header + payload.len()) as u16).to_be_bytes());
    frame.extend([0, 1]);
    frame.extend(cut.to_be_bytes());
    frame.extend([64, protocol, 0, 0, 192, 0, 2, last, 10, 0, 0, 1]);
    frame.extend(std::iter::repeat_n(1, options));
    frame.extend(payload);
    frame
}

/// IPv6 from 2001:db8::LAST with extension headers (kind, bytes).
fn v6(last: u8, extensions: &[(u8, &[u8])], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(&[], 0x86dd);
    let length: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
    kinds.push(protocol);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(((length + payload.len()) as u16).to_be_bytes());
    frame.extend([kinds[0], 64]);
    let address = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    frame.extend(address(last));
    frame.extend(address(0xfe));
    for ((_, bytes), next) in extensions.iter().zip(&kinds[1..]) {
        frame.push(*next);
        frame.extend(&bytes[1..]);
    }
    frame.extend(payload);
    frame
}

fn segment(sport: u16, flags: u8) -> Vec<u8> {
    let mut bytes = sport.to_be_bytes().to_vec();
    bytes.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    bytes
}

/// NULL: what is read as bogus only when the flags were found at the right place.
fn null() -> Vec<u8> {
    segment(1000, 0)
}

#[test]
fn shield_finds_the_tcp_flags_behind_tags_options_and_extensions() {
    let hop: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0];
    let long: &[u8] = &[&[0, 2], [0; 22].as_slice()].concat();
    let auth: &[u8] = &[&[0, 4], [0; 22].as_slice()].concat();
    let whole: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 9];
    for (name, frame) in [
        ("plain", v4(&[], 1, 0, 0, TCP, &null())),
        ("don't fragment", v4(&[], 1, 0, 0x4000, TCP, &null())),
        ("vlan", v4(&[0x8100], 1, 0, 0, TCP, &null())),
        ("qinq", v4(&[0x88a8, 0x8100], 1, 0, 0, TCP, &null())),
        ("old qinq", v4(&[0x9100, 0x8100], 1, 0, 0, TCP, &null())),
        ("4 bytes of options", v4(&[], 1, 4, 0, TCP, &null())),
        ("40 bytes of options", v4(&[0x8100], 1, 40, 0, TCP, &null())),
        ("v6", v6(1, &[], TCP, &null())),
        ("hop-by-hop", v6(1, &[(0, hop)], TCP, &null())),
        ("routing", v6(1, &[(43, long)], TCP, &null())),
        ("authentication", v6(1, &[(51, auth)], TCP, &null())),
        ("atomic fragment", v6(1, &[(44, whole)], TCP, &null())),
        (
            "all",
            v6(
                1,
                &[(0, hop), (60, long), (43, hop), (51, auth), (44, whole)],
                TCP,
                &null(),
            ),
        ),
        ("eight", v6(1, &[(60, hop); EXTENSIONS_MAX], TCP, &null())),
    ] {
        assert_eq!(node().reason(&frame), Reason::DropFlags, "{name}");
    }
    let nine = v6(1, &[(60, hop); EXTENSIONS_MAX + 1], TCP, &null());
    assert_eq!(node().reason(&nine), Reason::PassUnparsed);
}

/// Without it: ARP or another protocol breaks, or a frame that we can't read is lost unseen.
#[test]
fn shield_passes_and_counts_what_it_does_not_understand() {
    let arp = [ethernet(&[], 0x0806), [0; 28].to_vec()].concat();
    assert_eq!(node().reason(&arp), Reason::PassNotIp);
    let three = v4(&[0x88a8, 0x8100, 0x8100], 1, 0, 0, TCP, &null());
    assert_eq!(node().reason(&three), Reason::PassNotIp);
    let mut version = v4(&[], 1, 0, 0, TCP, &null());
    version[14] = 0x55;
    assert_eq!(node().reason(&version), Reason::PassUnparsed);
    let mut short = v4(&[], 1, 0, 0, TCP, &null());
    short[14] = 0x44;
    assert_eq!(node().reason(&short), Reason::PassUnparsed);
    assert_eq!(node().reason(&v6(1, &[], 58, &[135; 24])), Reason::Pass);
    assert_eq!(node().reason(&v4(&[], 1, 0, 0, 17, &[0; 8])), Reason::Pass);
    let none = Node {
        settings: None,
        ..node()
    };
    assert_eq!(none.reason(&arp), Reason::PassNoSettings);
}

/// Without it: a length in a frame makes the parser read beyond its end.
#[test]
fn shield_frames_cut_anywhere_never_drop_by_mistake() {
    let hop: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0];
    for frame in [
        v4(&[0x88a8, 0x8100], 1, 8, 0, TCP, &segment(1, ACK)),
        v6(1, &[(0, hop), (60, hop)], TCP, &segment(1, ACK)),
    ] {
        for length in 0..frame.len() {
            let reason = node().reason(&frame[..length]);
            assert!(!reason.drops(), "{length}: {reason:?}");
        }
        assert_eq!(node().reason(&frame), Reason::Pass);
    }
    let mut long = v6(1, &[(0, hop)], TCP, &segment(1, ACK));
    long[14 + 40 + 1] = 255;
    assert_eq!(node().reason(&long), Reason::PassUnparsed);
}

#[test]
fn shield_fragments_are_judged_by_what_they_hold() {
    let first = |payload: &[u8]| v4(&[], 1, 0, 0x2000, TCP, payload);
    assert_eq!(node().reason(&first(&segment(1, ACK))), Reason::Pass);
    assert_eq!(node().reason(&first(&null())), Reason::DropFlags);
    assert_eq!(node().reason(&first(&null()[..8])), Reason::DropFragment);
    let later = |cut| v4(&[], 1, 0, cut, TCP, &[0; 40]);
    assert_eq!(
        node().reason(&later(1)),
        Reason::DropFragment,
        "overwrites the flags"
    );
    assert_eq!(node().reason(&later(0x2003)), Reason::PassFragment);
    let udp = v4(&[], 1, 0, 1, 17, &[0; 40]);
    assert_eq!(node().reason(&udp), Reason::PassFragment);
    let six = |cut: u16, payload: &[u8]| {
        let header = [&[0, 0], &cut.to_be_bytes()[..], &[0; 4]].concat();
        v6(1, &[(44, &header)], TCP, payload)
    };
    assert_eq!(node().reason(&six(1, &segment(1, ACK))), Reason::Pass);
    assert_eq!(node().reason(&six(1, &null()[..8])), Reason::DropFragment);
    assert_eq!(node().reason(&six(8, &[0; 40])), Reason::DropFragment);
    assert_eq!(node().reason(&six(17, &[0; 40])), Reason::PassFragment);
    let mut lenient = node();
    lenient.settings.as_mut().unwrap().drop_bogus = 0;
    assert_eq!(lenient.reason(&first(&null()[..8])), Reason::PassFragment);
    assert_eq!(lenient.reason(&first(&null())), Reason::Pass);
}

#[test]
fn shield_lists_come_before_flags_and_buckets() {
    let mut node = node();
    node.entries = std::vec![
        ("192.0.2.1".parse().unwrap(), Entry::deny(3)),
        ("192.0.2.2".parse().unwrap(), Entry::allow(4)),
        ("2001:db8::1".parse().unwrap(), Entry::deny(5)),
    ];
    let verdict = |frame: &[u8]| decide(&Bytes(frame), &node);
    let denied = |rule| Verdict {
        reason: Reason::DropDeny,
        rule: Some(rule),
    };
    assert_eq!(verdict(&v4(&[], 1, 0, 0, 17, &[])), denied(3));
    assert_eq!(
        verdict(&v4(&[], 1, 0, 0x2003, TCP, &[])),
        denied(3),
        "fragments too"
    );
    assert_eq!(verdict(&v6(1, &[], 59, &[])), denied(5));
    assert_eq!(
        verdict(&v4(&[], 2, 0, 0, TCP, &null())),
        Verdict {
            reason: Reason::PassAllow,
            rule: Some(4)
        }
    );
    assert_eq!(verdict(&v6(2, &[], 59, &[])), super::verdict(Reason::Pass));
}

#[test]
fn shield_syn_bucket_holds_its_burst_and_fills_at_its_rate() {
    let mut node = node();
    let settings = node.settings.as_mut().unwrap();
    // 10/s, burst 5.
    settings.syn_interval_ns = SECOND / 10;
    settings.syn_tolerance_ns = 4 * SECOND / 10;
    let syn = |last| v4(&[], last, 0, 0, TCP, &segment(1, SYN));
    let passed = |count: u32| {
        let all = (0..count).map(|_| node.reason(&syn(1)));
        all.filter(|reason| *reason == Reason::Pass).count()
    };
    assert_eq!(passed(8), 5);
    assert_eq!(node.reason(&syn(1)), Reason::DropSyn);
    assert_eq!(node.reason(&syn(2)), Reason::Pass, "another source");
    assert_eq!(
        node.reason(&v4(&[], 1, 0, 0, TCP, &segment(1, SYN | ACK))),
        Reason::Pass,
        "an answer opens nothing"
    );
    node.now.set(SECOND + SECOND / 10 - 1);
    assert_eq!(passed(1), 0);
    node.now.set(SECOND + SECOND / 10);
    assert_eq!(passed(3), 1);
    node.now.set(100 * SECOND);
    assert_eq!(passed(8), 5, "never more than the burst");
    let full = Node {
        room: false,
        ..node
    };
    assert_eq!(full.reason(&syn(9)), Reason::PassNoRoom);
}

/// Without it: a host with an IPv6 /64 has 2^64 buckets.
#[test]
fn shield_buckets_of_ipv6_are_those_of_a_64() {
    let mut node = node();
    let settings = node.settings.as_mut().unwrap();
    settings.syn_interval_ns = SECOND;
    let syn = |last| v6(last, &[], TCP, &segment(1, SYN));
    assert_eq!(node.reason(&syn(1)), Reason::Pass);
    assert_eq!(node.reason(&syn(2)), Reason::DropSyn);
    let mut other = syn(1);
    other[14 + 8 + 7] = 1;
    assert_eq!(node.reason(&other), Reason::Pass);
}

#[test]
fn shield_connection_bucket_counts_a_retransmitted_syn_once() {
    let mut node = node();
    let settings = node.settings.as_mut().unwrap();
    settings.connection_interval_ns = SECOND;
    settings.connection_tolerance_ns = SECOND;
    let syn = |port| node.reason(&v4(&[], 1, 0, 0, TCP, &segment(port, SYN)));
    assert_eq!([syn(1), syn(1), syn(1)], [Reason::Pass; 3]);
    assert_eq!(
        [syn(2), syn(3), syn(3)],
        [Reason::Pass, Reason::DropConnection, Reason::DropConnection]
    );
    node.now.set(SECOND + SYN_AGAIN_NS);
    assert_eq!([syn(1), syn(2)], [Reason::Pass; 2], "new ones by now");
    assert_eq!(syn(4), Reason::DropConnection);
}

#[test]
fn shield_bucket_is_exact_at_its_edges() {
    assert_eq!(take(0, 100, 10, 0), Spend::Start(110));
    assert_eq!(take(100, 100, 10, 0), Spend::Start(110));
    assert_eq!(take(101, 100, 10, 0), Spend::Refused);
    assert_eq!(take(101, 100, 10, 1), Spend::Add(10));
    assert_eq!(take(u64::MAX, 100, 10, 1), Spend::Refused);
}
