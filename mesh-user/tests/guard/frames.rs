//! `egress_guard` in the kernel on frames that nobody sends: `BPF_PROG_TEST_RUN`.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, PerCpuArray},
    programs::SchedClassifier,
};
use mesh_common::{
    abi::{ABI_VERSION, Config},
    addr::Addr,
    flow::{Grant, ProxyFlow, Tuple},
    pod::{Guarded, PodAddr},
    reason::Reason,
};

use crate::support::objects::bpf_object;

const POD: u32 = 5;
const OWN: &str = "10.0.0.5";
const OWN6: &str = "fd00::5";
const THERE: &str = "10.9.0.1";
const THERE6: &str = "fd00:9::1";
const NEXT: i32 = -1;
const DROP: i32 = 2;
/// `lo` of the test's namespace: where test runs stand.
const INTERFACE: u32 = 1;

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().expect("an address"))
}

/// The object with maps of its own, that no other agent's are.
struct Bench(Ebpf);

impl Bench {
    /// `agent_cgroup`: which sockets are the agent's. A test run's has the cgroup of its caller.
    fn new(agent_cgroup: u64) -> Self {
        let bytes = fs::read(bpf_object()).expect("cargo xtask build-ebpf");
        let mut object = EbpfLoader::new().btf(None).load(&bytes).expect("it loads");
        let program: &mut SchedClassifier = object
            .program_mut("egress_guard")
            .expect("there")
            .try_into()
            .expect("a classifier");
        program.load().expect("verified");
        let mut bench = Self(object);
        let config = Config {
            abi: ABI_VERSION,
            capture_mark: 1,
            agent_mark: 2,
            mark_mask: 3,
            agent_cgroup,
            heartbeat_stale_ns: 1,
            shards: 1,
            unknown_netns: 0,
            paused: 0,
            _pad: 0,
            agent_netns: 0,
            _reserved: 0,
        };
        let mut configs: Array<_, Config> = bench.map("CONFIG").try_into().expect("its type");
        configs.set(0, config, 0).expect("set");
        let guarded = Guarded {
            pod_id: POD,
            _pad: 0,
            event_ns: 0,
        };
        bench.insert("GUARDED", INTERFACE, guarded);
        for own in [OWN, OWN6] {
            let entry = PodAddr {
                pod_id: POD,
                generation: 1,
                fail: 0,
                inbound: 0,
                flags: 0,
                _pad: 0,
            };
            bench.insert("POD_BY_ADDR", addr(own), entry);
        }
        bench
    }

    fn map(&mut self, name: &str) -> &mut aya::maps::Map {
        self.0.map_mut(name).expect("in the table")
    }

    fn insert<K: aya::Pod, V: aya::Pod>(&mut self, map: &str, key: K, value: V) {
        let mut map: HashMap<_, K, V> = self.map(map).try_into().expect("its type");
        map.insert(key, value, 0).expect("room");
    }

    fn grant(&mut self, tuple: Tuple) {
        let grant = Grant {
            pod_id: POD,
            _pad: 0,
            connect_ns: 1,
        };
        self.insert("GRANTS", tuple, grant);
    }

    fn dialled(&mut self, tuple: Tuple) {
        let flow = ProxyFlow {
            pod_id: POD,
            kind: 0,
            state: 0,
            _pad: [0; 2],
            connect_ns: 1,
        };
        self.insert("PROXY_FLOWS", tuple, flow);
    }

    fn count(&mut self, reason: Reason) -> u64 {
        let counters: PerCpuArray<_, u64> = self.map("COUNTERS").try_into().expect("its type");
        let cpus = counters.get(&(reason as u32), 0).expect("an index");
        cpus.iter().sum()
    }

    /// The verdict, and nanoseconds of one run.
    fn run(&self, frame: &[u8], repeat: u32) -> (i32, u32) {
        let program: &SchedClassifier = self
            .0
            .program("egress_guard")
            .expect("there")
            .try_into()
            .expect("a classifier");
        let fd = program.fd().expect("loaded").as_fd().as_raw_fd() as u32;
        // prog_fd, retval; size in, size out; data in; data out; repeat, duration; the rest is zero.
        let mut attr = [0_u32; 20];
        attr[0] = fd;
        attr[2] = frame.len() as u32;
        let data = frame.as_ptr() as u64;
        (attr[4], attr[5]) = (data as u32, (data >> 32) as u32);
        attr[8] = repeat;
        const TEST_RUN: libc::c_int = 10;
        #[expect(unsafe_code, reason = "a raw system call")]
        // SAFETY: the kernel reads `attr` for its length and the frame for its own, writes the
        // result into `attr`; both outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                TEST_RUN,
                attr.as_mut_ptr(),
                size_of_val(&attr),
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        (attr[1] as i32, attr[9])
    }
}

fn own_cgroup() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let table = fs::read_to_string("/proc/self/cgroup").expect("proc");
    let own = table.lines().find_map(|line| line.strip_prefix("0::"));
    let mount = mesh_user::kernel::mounts::cgroup2()
        .expect("mountinfo")
        .expect("cgroup2");
    let dir = mount.join(own.expect("cgroup2").trim_start_matches('/'));
    fs::metadata(dir).expect("own cgroup").ino()
}

fn tuple(v6: bool) -> Tuple {
    let (src, dst) = if v6 { (OWN6, THERE6) } else { (OWN, THERE) };
    Tuple {
        src: addr(src),
        dst: addr(dst),
        sport: 40_000,
        dport: 80,
    }
}

fn segment(flags: u8, data: usize) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags];
    bytes.resize(20 + data, 0);
    bytes
}

fn eth(tags: &[u16], kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 5]);
    }
    bytes.extend(kind.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn v4(proto: u8, src: &str, frag: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + body.len() as u16).to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(frag.to_be_bytes());
    bytes.extend([64, proto, 0, 0]);
    bytes.extend(addr(src).v4_be().to_ne_bytes());
    bytes.extend(addr(THERE).v4_be().to_ne_bytes());
    bytes.extend(body);
    bytes
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend(addr(OWN6).octets());
    bytes.extend(addr(THERE6).octets());
    bytes.extend(body);
    bytes
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const V4: u16 = 0x0800;
const V6: u16 = 0x86dd;

fn options(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

/// Without it: what is tested on the host is not what the verifier's program does with a real
/// packet.
#[test]
fn frames_meet_their_verdict_in_the_kernel() {
    let mut bench = Bench::new(0);
    let syn = segment(SYN, 0);
    let headers = [options(60), options(6), syn.clone()].concat();
    let many = [options(60).repeat(6), options(6), syn.clone()].concat();
    let fragment = [vec![6, 0, 0, 1, 0, 0, 0, 1], syn.clone()].concat();
    let udp = [0x9c, 0x40, 0x12, 0xb5, 0, 8, 0, 0];
    let cases: Vec<(&str, Vec<u8>, Option<Reason>)> = vec![
        ("ARP", eth(&[], 0x0806, &[0; 28]), None),
        (
            "IPv4 SYN",
            eth(&[], V4, &v4(6, OWN, 0, &syn)),
            Some(Reason::RefuseGuardSyn),
        ),
        (
            "IPv6 SYN",
            eth(&[], V6, &v6(6, &syn)),
            Some(Reason::RefuseGuardSyn),
        ),
        (
            "VLAN",
            eth(&[0x8100], V4, &v4(6, OWN, 0, &syn)),
            Some(Reason::RefuseGuardSyn),
        ),
        (
            "QinQ",
            eth(&[0x88a8, 0x8100], V6, &v6(6, &syn)),
            Some(Reason::RefuseGuardSyn),
        ),
        (
            "three tags",
            eth(&[0x8100; 3], V4, &v4(6, OWN, 0, &syn)),
            Some(Reason::RefuseGuardHeader),
        ),
        (
            "source",
            eth(&[], V4, &v4(6, THERE, 0, &syn)),
            Some(Reason::RefuseGuardSource),
        ),
        (
            "tiny fragment",
            eth(&[], V4, &v4(6, OWN, 0x2000, &syn[..8])),
            Some(Reason::RefuseGuardFragment),
        ),
        (
            "later fragment",
            eth(&[], V4, &v4(6, OWN, 1, &syn[8..])),
            Some(Reason::RefuseGuardFragment),
        ),
        (
            "options",
            eth(&[], V6, &v6(0, &headers)),
            Some(Reason::RefuseGuardSyn),
        ),
        (
            "eight headers",
            eth(&[], V6, &v6(60, &many)),
            Some(Reason::RefuseGuardHeader),
        ),
        (
            "routing header",
            eth(&[], V6, &v6(43, &headers)),
            Some(Reason::RefuseGuardHeader),
        ),
        (
            "IPv6 fragment",
            eth(&[], V6, &v6(44, &fragment)),
            Some(Reason::RefuseGuardFragment),
        ),
        (
            "GRE",
            eth(&[], V4, &v4(47, OWN, 0, &syn)),
            Some(Reason::RefuseGuardHeader),
        ),
        (
            "VXLAN",
            eth(&[], V4, &v4(17, OWN, 0, &udp)),
            Some(Reason::RefuseGuardHeader),
        ),
        (
            "cut short",
            eth(&[], V4, &v4(6, OWN, 0, &syn[..13])),
            Some(Reason::RefuseGuardHeader),
        ),
        (
            "data",
            eth(&[], V4, &v4(6, OWN, 0, &segment(ACK, 100))),
            None,
        ),
        (
            "SYN and ACK",
            eth(&[], V6, &v6(6, &segment(SYN | ACK, 0))),
            None,
        ),
        ("ICMP", eth(&[], V4, &v4(1, OWN, 0, &[8, 0, 0, 0])), None),
    ];
    for (name, frame, expected) in cases {
        let before = expected.map(|reason| bench.count(reason));
        let (verdict, _) = bench.run(&frame, 1);
        assert_eq!(verdict, expected.map_or(NEXT, |_| DROP), "{name}");
        let after = expected.map(|reason| bench.count(reason));
        assert_eq!(after, before.map(|count| count + 1), "{name}");
    }
    for six in [false, true] {
        bench.grant(tuple(six));
        let body = if six {
            v6(6, &syn)
        } else {
            v4(6, OWN, 0, &syn)
        };
        let frame = eth(&[], if six { V6 } else { V4 }, &body);
        assert_eq!(bench.run(&frame, 1).0, NEXT, "granted, IPv6: {six}");
    }
    assert_eq!(bench.count(Reason::GuardPass), 2);
}

/// By the cgroup of the socket that sent the frame: no mark, no tuple alone.
#[test]
fn dialled_tuple_passes_from_the_agents_cgroup_only() {
    for (cgroup, expected) in [(own_cgroup(), NEXT), (own_cgroup() + 1, DROP)] {
        let mut bench = Bench::new(cgroup);
        bench.dialled(tuple(false));
        for body in [segment(SYN, 0), segment(ACK, 10)] {
            let frame = eth(&[], V4, &v4(6, OWN, 0, &body));
            assert_eq!(bench.run(&frame, 1).0, expected);
        }
        assert_eq!(
            bench
                .run(&eth(&[], V4, &v4(6, OWN, 0, &segment(ACK, 0))), 1)
                .0,
            NEXT
        );
    }
}

/// Budgets of one run, the cheapest of several: others on the machine only ever add.
const SEGMENT_NS: u32 = 400;
const SYN_NS: u32 = 600;

/// Without it: a change makes every packet of guarded pods slower, and nobody notices.
#[test]
fn packets_stay_within_their_nanoseconds() {
    let mut bench = Bench::new(0);
    bench.grant(tuple(false));
    bench.grant(tuple(true));
    for (name, frame, budget) in [
        (
            "IPv4 data",
            eth(&[], V4, &v4(6, OWN, 0, &segment(ACK, 1_400))),
            SEGMENT_NS,
        ),
        (
            "IPv6 data",
            eth(&[], V6, &v6(6, &segment(ACK, 1_400))),
            SEGMENT_NS,
        ),
        (
            "IPv4 SYN",
            eth(&[], V4, &v4(6, OWN, 0, &segment(SYN, 0))),
            SYN_NS,
        ),
        ("IPv6 SYN", eth(&[], V6, &v6(6, &segment(SYN, 0))), SYN_NS),
    ] {
        let cost = (0..10).map(|_| bench.run(&frame, 100_000).1).min();
        println!(
            "egress_guard, {name}: {} ns, budget {budget}",
            cost.expect("runs")
        );
        assert!(cost.expect("runs") <= budget, "{name}: {cost:?} ns");
    }
}
