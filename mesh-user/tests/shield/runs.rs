//! `BPF_PROG_TEST_RUN` over frames: all three programs must say the same.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp},
};
use mesh_common::{
    abi::ABI_VERSION,
    addr::Addr,
    shield::{Entry, Reason, Settings, Source, TC, Tally, XDP, XDP_FRAGS},
};

use crate::frames::*;

const PROGRAMS: [&str; 3] = [XDP, XDP_FRAGS, TC];
const SECOND: u64 = 1_000_000_000;

/// The object, loaded and nowhere attached.
struct Loaded(Ebpf);

fn settings() -> Settings {
    Settings {
        abi: ABI_VERSION,
        drop_bogus: 1,
        syn_interval_ns: 0,
        syn_tolerance_ns: 0,
        connection_interval_ns: 0,
        connection_tolerance_ns: 0,
        _reserved: [0; 3],
    }
}

impl Loaded {
    fn new(settings: Settings) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/shield.o");
        let bytes = std::fs::read(path).expect("run cargo xtask build-ebpf");
        let mut loaded = Self(EbpfLoader::new().btf(None).load(&bytes).expect("maps"));
        loaded.settings(settings);
        for name in [XDP, XDP_FRAGS] {
            let program: &mut Xdp = loaded.0.program_mut(name).unwrap().try_into().unwrap();
            program.load().expect("it loads");
        }
        let program: &mut SchedClassifier = loaded.0.program_mut(TC).unwrap().try_into().unwrap();
        program.load().expect("it loads");
        loaded
    }

    fn settings(&mut self, settings: Settings) {
        let map = self.0.map_mut("SHIELD_CONFIG").unwrap();
        let mut map: Array<_, Settings> = map.try_into().unwrap();
        map.set(0, settings, 0).unwrap();
    }

    fn entry(&mut self, cidr: &str, entry: Entry) {
        let net: ipnet::IpNet = cidr.parse().unwrap();
        let mapped = u32::from(net.max_prefix_len() == 32) * 96;
        let key = Key::new(
            u32::from(net.prefix_len()) + mapped,
            Addr::from_ip(net.addr()),
        );
        let map = self.0.map_mut("SHIELD_PREFIXES").unwrap();
        let mut map: LpmTrie<_, Addr, Entry> = map.try_into().unwrap();
        map.insert(&key, entry, 0).unwrap();
    }

    fn run(&self, name: &str, frame: &[u8], repeat: u32) -> TestRunResult {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::default()
        };
        let result: Result<TestRunResult, ProgramError> = match name {
            TC => {
                let program: &SchedClassifier = self.0.program(name).unwrap().try_into().unwrap();
                program.test_run(options)
            }
            _ => {
                let program: &Xdp = self.0.program(name).unwrap().try_into().unwrap();
                program.test_run(options)
            }
        };
        result.unwrap_or_else(|error| panic!("{name}: {} bytes: {error:?}", frame.len()))
    }

    /// Whether it drops the frame.
    fn drops(&self, name: &str, frame: &[u8]) -> bool {
        let result = self.run(name, frame, 1).return_value as i32;
        match (name, result) {
            (TC, 2) | (XDP | XDP_FRAGS, 1) => true,
            // Never TC_ACT_OK (0), which would end the chain (pitfall 27).
            (TC, -1) | (XDP | XDP_FRAGS, 2) => false,
            other => panic!("no verdict of ours: {other:?}"),
        }
    }

    fn tallies(&self, map: &str) -> BTreeMap<u32, (u64, u64)> {
        let map: PerCpuArray<_, Tally> = self.0.map(map).unwrap().try_into().unwrap();
        (0..map.len())
            .map(|index| {
                let values = map.get(&index, 0).unwrap();
                let packets = values.iter().map(|tally| tally.packets).sum();
                (index, (packets, values.iter().map(|t| t.bytes).sum()))
            })
            .filter(|(_, sums)| *sums != (0, 0))
            .collect()
    }

    fn count(&self, reason: Reason) -> u64 {
        let all = self.tallies("SHIELD_COUNTS");
        all.get(&(reason as u32)).map_or(0, |sums| sums.0)
    }

    fn sources(&self) -> HashMap<&aya::maps::MapData, Addr, Source> {
        self.0.map("SHIELD_SOURCES").unwrap().try_into().unwrap()
    }

    /// The one reason that counted this frame, in each program.
    fn reasons(&self, frame: &[u8]) -> [Reason; 3] {
        PROGRAMS.map(|name| self.reason(name, frame))
    }

    fn reason(&self, name: &str, frame: &[u8]) -> Reason {
        let before = self.tallies("SHIELD_COUNTS");
        let dropped = self.drops(name, frame);
        let after = self.tallies("SHIELD_COUNTS");
        let packets = |all: &BTreeMap<u32, (u64, u64)>, reason: Reason| {
            all.get(&(reason as u32)).copied().unwrap_or_default()
        };
        let changed: Vec<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| packets(&before, *reason) != packets(&after, *reason))
            .collect();
        let [reason] = changed[..] else {
            panic!("{name} counted {changed:?}");
        };
        let (old, new) = (packets(&before, reason), packets(&after, reason));
        assert_eq!((new.0 - old.0, new.1 - old.1), (1, frame.len() as u64));
        assert_eq!(dropped, reason.drops(), "{name}: {reason:?}");
        reason
    }
}

fn ip4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn ip6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
}

/// Every kind of frame of the issue: VLAN, QinQ, options, fragments, extension headers, truncated,
/// flags that no TCP sends; the three programs agree on each.
#[test]
fn shield_programs_agree_on_every_kind_of_frame() {
    let loaded = Loaded::new(settings());
    let null = segment(1, 0);
    let good = segment(1, ACK | PSH);
    let hop: &[u8] = &[0; 8];
    let long: &[u8] = &[[0, 31].as_slice(), &[0; 254]].concat();
    let auth: &[u8] = &[[0, 4].as_slice(), &[0; 22]].concat();
    let plain = V4::default();
    let options = V4 {
        options: 40,
        cut: 0,
    };
    let cut = |cut| V4 { options: 0, cut };
    let fragment = |cut: u16| [&[0, 0][..], &cut.to_be_bytes(), &[0; 4]].concat();
    use Reason::*;
    let mut frames: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("tcp", v4(&[], plain, ip4(1), TCP, &good), Pass),
        ("null", v4(&[], plain, ip4(1), TCP, &null), DropFlags),
        ("vlan", v4(&[0x8100], plain, ip4(1), TCP, &null), DropFlags),
        (
            "qinq",
            v4(&[0x88a8, 0x8100], plain, ip4(1), TCP, &null),
            DropFlags,
        ),
        ("vlan v6", v6(&[0x8100], ip6(1), &[], TCP, &null), DropFlags),
        (
            "three tags",
            v4(&[0x88a8, 0x8100, 0x8100], plain, ip4(1), TCP, &null),
            PassNotIp,
        ),
        ("options", v4(&[], options, ip4(1), TCP, &null), DropFlags),
        (
            "options, qinq",
            v4(&[0x88a8, 0x8100], options, ip4(1), TCP, &null),
            DropFlags,
        ),
        (
            "first fragment",
            v4(&[], cut(0x2000), ip4(1), TCP, &null),
            DropFlags,
        ),
        (
            "good first fragment",
            v4(&[], cut(0x2000), ip4(1), TCP, &good),
            Pass,
        ),
        (
            "tiny fragment",
            v4(&[], cut(0x2000), ip4(1), TCP, &null[..8]),
            DropFragment,
        ),
        (
            "overwriting fragment",
            v4(&[], cut(1), ip4(1), TCP, &[0; 24]),
            DropFragment,
        ),
        (
            "later fragment",
            v4(&[], cut(0x2010), ip4(1), TCP, &[0; 24]),
            PassFragment,
        ),
        (
            "udp fragment",
            v4(&[], cut(185), ip4(1), UDP, &[0; 24]),
            PassFragment,
        ),
        ("udp", v4(&[], plain, ip4(1), UDP, &[0; 8]), Pass),
        ("v6", v6(&[], ip6(1), &[], TCP, &null), DropFlags),
        (
            "hop-by-hop",
            v6(&[], ip6(1), &[(0, hop)], TCP, &null),
            DropFlags,
        ),
        (
            "long routing",
            v6(&[], ip6(1), &[(43, long)], TCP, &null),
            DropFlags,
        ),
        (
            "auth",
            v6(&[], ip6(1), &[(51, auth)], TCP, &null),
            DropFlags,
        ),
        (
            "five",
            v6(
                &[],
                ip6(1),
                &[(0, hop), (60, long), (43, hop), (51, auth), (44, hop)],
                TCP,
                &null,
            ),
            DropFlags,
        ),
        (
            "eight",
            v6(&[], ip6(1), &[(60, hop); 8], TCP, &null),
            DropFlags,
        ),
        (
            "nine",
            v6(&[], ip6(1), &[(60, hop); 9], TCP, &null),
            PassUnparsed,
        ),
        (
            "v6 fragment",
            v6(&[], ip6(1), &[(44, &fragment(64))], TCP, &[0; 24]),
            PassFragment,
        ),
        (
            "v6 tiny",
            v6(&[], ip6(1), &[(44, &fragment(1))], TCP, &null[..8]),
            DropFragment,
        ),
        (
            "neighbour solicitation",
            v6(&[], ip6(1), &[], 58, &[135; 24]),
            Pass,
        ),
        (
            "arp",
            [ethernet(&[], 0x0806), vec![0; 28]].concat(),
            PassNotIp,
        ),
        (
            "no version",
            [ethernet(&[], 0x0800), vec![0; 40]].concat(),
            PassUnparsed,
        ),
        (
            "xdp: header too short",
            v4(&[], plain, ip4(1), TCP, &good)[..30].to_vec(),
            PassUnparsed,
        ),
        (
            "tcp cut",
            v4(&[], plain, ip4(1), TCP, &null)[..14 + 20 + 13].to_vec(),
            PassUnparsed,
        ),
        (
            "v6 cut",
            v6(&[], ip6(1), &[(0, hop)], TCP, &null)[..14 + 41].to_vec(),
            PassUnparsed,
        ),
        (
            "tag at the end",
            [ethernet(&[], 0x8100), vec![0]].concat(),
            PassUnparsed,
        ),
    ];
    for (name, flags) in [
        ("xmas", FIN | PSH | URG),
        ("syn fin", SYN | FIN),
        ("syn rst", SYN | RST),
        ("fin", FIN),
        ("fin rst", FIN | RST | ACK),
    ] {
        frames.push((
            name,
            packet(ip4(1).into(), TCP, &segment(1, flags)),
            DropFlags,
        ));
    }
    for flags in [
        SYN,
        SYN | ACK,
        ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        ACK | URG | PSH,
    ] {
        frames.push((
            "real flags",
            packet(ip4(1).into(), TCP, &segment(1, flags)),
            Pass,
        ));
    }
    for (name, frame, expected) in frames {
        // The kernel makes no skb of an IP frame without its header: XDP alone meets those.
        if name.starts_with("xdp: ") {
            assert_eq!(loaded.reason(XDP, &frame), expected, "{name}");
            assert_eq!(loaded.reason(XDP_FRAGS, &frame), expected, "{name}");
        } else {
            assert_eq!(loaded.reasons(&frame), [expected; 3], "{name}");
        }
    }
}

/// The longest prefix decides, in both families, and each rule counts packets and bytes.
#[test]
fn shield_longest_prefix_decides_and_each_rule_counts() {
    let mut loaded = Loaded::new(settings());
    for (cidr, entry) in [
        ("192.0.2.0/24", Entry::deny(1)),
        ("192.0.2.128/25", Entry::allow(2)),
        ("192.0.2.200/32", Entry::deny(3)),
        ("2001:db8::/32", Entry::deny(4)),
        ("2001:db8::2/128", Entry::allow(5)),
    ] {
        loaded.entry(cidr, entry);
    }
    let frame = |source: IpAddr| packet(source, UDP, &[0; 30]);
    for (source, expected) in [
        (ip4(1).into(), Reason::DropDeny),
        (ip4(129).into(), Reason::PassAllow),
        (ip4(200).into(), Reason::DropDeny),
        (Ipv4Addr::new(192, 0, 3, 1).into(), Reason::Pass),
        (ip6(1).into(), Reason::DropDeny),
        (ip6(2).into(), Reason::PassAllow),
        ("2001:db9::1".parse().unwrap(), Reason::Pass),
    ] {
        let source: IpAddr = source;
        assert_eq!(loaded.reasons(&frame(source)), [expected; 3], "{source}");
    }
    let (four, six) = (14 + 20 + 30, 14 + 40 + 30);
    let hits: Vec<(u32, (u64, u64))> = loaded.tallies("SHIELD_HITS").into_iter().collect();
    let expected = [(1, four), (2, four), (3, four), (4, six), (5, six)];
    assert_eq!(hits, expected.map(|(rule, bytes)| (rule, (3, 3 * bytes))));
    // The allowed are exempt from everything.
    let null = packet(ip4(129).into(), TCP, &segment(1, 0));
    assert_eq!(loaded.reasons(&null), [Reason::PassAllow; 3]);
}

/// A flood from one source empties its own bucket and nobody else's; fragments of one source and
/// answers (SYN+ACK) cost nothing.
#[test]
fn shield_syn_flood_empties_the_bucket_of_its_source_only() {
    let loaded = Loaded::new(Settings {
        // One an hour: nothing refills during the test.
        syn_interval_ns: 3_600 * SECOND,
        syn_tolerance_ns: 19 * 3_600 * SECOND,
        ..settings()
    });
    for source in [IpAddr::from(ip4(1)), ip6(1).into()] {
        let syn = packet(source, TCP, &segment(1, SYN));
        let answer = packet(source, TCP, &segment(1, SYN | ACK));
        let before = (loaded.count(Reason::Pass), loaded.count(Reason::DropSyn));
        for round in 0..50 {
            loaded.drops(PROGRAMS[round % 3], &syn);
            assert!(!loaded.drops(PROGRAMS[round % 3], &answer));
        }
        let passed = loaded.count(Reason::Pass) - before.0 - 50;
        let dropped = loaded.count(Reason::DropSyn) - before.1;
        assert_eq!((passed, dropped), (20, 30), "{source}");
    }
    let other = packet(ip4(2).into(), TCP, &segment(1, SYN));
    assert_eq!(loaded.reasons(&other), [Reason::Pass; 3]);
    let neighbour = packet(ip6(2).into(), TCP, &segment(1, SYN));
    assert_eq!(loaded.reasons(&neighbour), [Reason::DropSyn; 3], "its /64");
    let source = loaded
        .sources()
        .get(&Addr::from_ip(ip4(1).into()), 0)
        .unwrap();
    assert_eq!((source.passed, source.dropped), (20, 30));
    assert!(
        loaded
            .sources()
            .get(&Addr::from_ip(ip6(1).into()), 0)
            .is_err()
    );
    let prefix = Addr::from_ip("2001:db8::".parse().unwrap());
    assert_eq!(loaded.sources().get(&prefix, 0).unwrap().passed, 20);
}

/// A retransmitted SYN is no new connection; many different ones are.
#[test]
fn shield_connections_are_counted_by_their_first_syn() {
    let loaded = Loaded::new(Settings {
        connection_interval_ns: 3_600 * SECOND,
        connection_tolerance_ns: 4 * 3_600 * SECOND,
        ..settings()
    });
    let syn = |port| packet(ip4(1).into(), TCP, &segment(port, SYN));
    for _ in 0..10 {
        assert_eq!(loaded.reasons(&syn(1)), [Reason::Pass; 3]);
    }
    for port in 2..=5 {
        assert_eq!(loaded.reasons(&syn(port)), [Reason::Pass; 3]);
    }
    assert_eq!(loaded.reasons(&syn(6)), [Reason::DropConnection; 3]);
    assert_eq!(
        loaded.reasons(&syn(5)),
        [Reason::Pass; 3],
        "an open one goes on"
    );
}

/// The bucket fills at its rate: bounded from both sides by the time that the run took.
#[test]
fn shield_bucket_fills_at_its_rate() {
    const INTERVAL: u64 = SECOND / 1_000;
    const BURST: u64 = 100;
    let loaded = Loaded::new(Settings {
        syn_interval_ns: INTERVAL,
        syn_tolerance_ns: (BURST - 1) * INTERVAL,
        ..settings()
    });
    let syn = packet(ip4(1).into(), TCP, &segment(1, SYN));
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 200 {
        loaded.drops(XDP, &syn);
    }
    let took = start.elapsed();
    let passed = loaded.count(Reason::Pass);
    let most = BURST + took.as_nanos() as u64 / INTERVAL + 1;
    assert!(passed <= most, "{passed} of at most {most}");
    assert!(passed > BURST, "{passed} in {took:?}: it was filled again");
    assert!(loaded.count(Reason::DropSyn) > 0);
}

/// Without settings, or with those of another build, everything passes.
#[test]
fn shield_without_its_settings_drops_nothing() {
    let mut loaded = Loaded::new(Settings {
        abi: ABI_VERSION + 1,
        ..settings()
    });
    loaded.entry("0.0.0.0/0", Entry::deny(1));
    let frame = packet(ip4(1).into(), TCP, &segment(1, 0));
    assert_eq!(loaded.reasons(&frame), [Reason::PassNoSettings; 3]);
    loaded.settings(settings());
    assert_eq!(loaded.reasons(&frame), [Reason::DropDeny; 3]);
}

/// Prints what a frame costs in each program (`--nocapture`); asserts nothing about time.
#[test]
fn shield_cost_of_a_frame_is_printed() {
    const REPEAT: u32 = 1_000_000;
    let mut loaded = Loaded::new(Settings {
        syn_interval_ns: 3_600 * SECOND,
        ..settings()
    });
    loaded.entry("192.0.2.1/32", Entry::deny(1));
    loaded.entry("2001:db8::1/128", Entry::deny(1));
    let hop: &[u8] = &[0; 8];
    for (what, frame) in [
        ("deny v4", packet(ip4(1).into(), TCP, &segment(1, SYN))),
        ("deny v6", packet(ip6(1).into(), TCP, &segment(1, SYN))),
        ("bogus flags v4", packet(ip4(2).into(), TCP, &segment(1, 0))),
        (
            "syn over its rate v4",
            packet(ip4(3).into(), TCP, &segment(1, SYN)),
        ),
        ("pass v4 data", packet(ip4(4).into(), TCP, &segment(1, ACK))),
        (
            "pass v6 data",
            v6(&[], ip6(0x100), &[(0, hop)], TCP, &segment(1, ACK)),
        ),
    ] {
        for name in PROGRAMS {
            // The first run of a SYN passes; the others find the bucket empty.
            let nanos = loaded.run(name, &frame, REPEAT).duration.as_nanos();
            println!("{what:<22} {name:<13} {nanos:>4} ns");
        }
    }
}
