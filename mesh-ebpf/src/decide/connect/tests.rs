//! Against a world of plain values that notes what it is asked.

extern crate std;

use core::{cell::RefCell, net::IpAddr};
use std::{collections::BTreeMap, string::String, string::ToString, vec, vec::Vec};

use mesh_common::{
    maps::OUT_PASS,
    pod::{FAIL_OPEN, MODE_OFF},
    service::DECIDE_PASS,
};

use super::*;

const AGENT: u64 = 7;
const POD_NETNS: u64 = 100;
const AGENT_NETNS: u64 = 1;
const NOW: u64 = 10_000;
/// Port of shard 0's listener.
const LISTENER: u16 = 15_000;

struct Fake {
    config: Option<Config>,
    netns: u64,
    pod: PodEntry,
    pods: Vec<Addr>,
    rules: BTreeMap<u16, u32>,
    services: BTreeMap<(Addr, u16), ServiceEntry>,
    heartbeat: u64,
    listening: bool,
    shard_gone: u16,
    cookie: u64,
    datagrams: BTreeMap<u16, u32>,
    sequence: RefCell<u64>,
    slots: Vec<u32>,
    backends: Vec<Backend>,
    asked: RefCell<Vec<&'static str>>,
    held: RefCell<u64>,
    limit: u64,
}

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse::<IpAddr>().unwrap())
}

fn backend(text: &str) -> Backend {
    Backend {
        addr: addr(text),
        port: 8_080,
        state: 1,
        version_id: 0,
        cap: 0,
        _pad: 0,
    }
}

fn service(decision: u32) -> ServiceEntry {
    ServiceEntry {
        service_id: 3,
        decision,
        slots_off: 0,
        slots_len: 2,
        flags: 0,
        _pad: 0,
    }
}

const VIP: &str = "10.96.0.1";

fn fake() -> Fake {
    Fake {
        config: Some(Config {
            abi: ABI_VERSION,
            capture_mark: 1,
            agent_mark: 2,
            mark_mask: 3,
            agent_cgroup: AGENT,
            heartbeat_stale_ns: 1_000,
            shards: 2,
            unknown_netns: 0,
            paused: 0,
            _pad: 0,
            agent_netns: AGENT_NETNS,
            _reserved: 0,
        }),
        netns: POD_NETNS,
        pod: PodEntry {
            pod_id: 5,
            mode: MODE_MARK,
            fail: FAIL_OPEN,
            flags: 0,
            generation: 1,
            _pad2: 0,
        },
        pods: vec![addr("10.0.0.9")],
        rules: BTreeMap::new(),
        services: BTreeMap::from([
            ((addr(VIP), 80), service(DECIDE_PROXY)),
            ((addr(VIP), 81), service(DECIDE_KERNEL)),
            ((addr(VIP), 82), service(DECIDE_PASS)),
            ((addr("fd00:96::1"), 81), service(DECIDE_KERNEL)),
        ]),
        heartbeat: NOW,
        listening: true,
        shard_gone: u16::MAX,
        cookie: 0,
        datagrams: BTreeMap::new(),
        sequence: RefCell::new(0),
        slots: vec![0, 1],
        backends: vec![backend("10.0.0.3"), backend("10.0.0.4")],
        asked: RefCell::default(),
        held: RefCell::new(0),
        limit: 2,
    }
}

impl Fake {
    fn note(&self, what: &'static str) {
        self.asked.borrow_mut().push(what);
    }

    fn service(mut self, change: impl FnOnce(&mut ServiceEntry)) -> Self {
        change(self.services.get_mut(&(addr(VIP), 80)).unwrap());
        self
    }
}

impl World for Fake {
    fn config(&self) -> Option<Config> {
        self.config
    }
    fn netns(&self) -> u64 {
        self.note("netns");
        self.netns
    }
    fn pod(&self, netns: u64) -> Option<PodEntry> {
        (netns == POD_NETNS).then_some(self.pod)
    }
    fn is_pod(&self, addr: &Addr) -> bool {
        self.note("is_pod");
        self.pods.contains(addr)
    }
    fn out_rule(&self, port: u16, _: &Addr) -> Option<u32> {
        self.note("out_rule");
        self.rules.get(&port).copied()
    }
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry> {
        self.note("service");
        assert_eq!(key.proto, TCP);
        self.services.get(&(key.addr, key.port)).copied()
    }
    fn heartbeat(&self) -> u64 {
        self.heartbeat
    }
    fn now(&self) -> u64 {
        NOW
    }
    fn datagram_rule(&self, port: u16, _: &Addr) -> Option<u32> {
        self.note("datagram_rule");
        self.datagrams.get(&port).copied()
    }
    fn listener(&self, key: &ListenerKey) -> u16 {
        self.note("listener");
        assert_eq!((key.pod_id, key.kind), (5, KIND_OUT));
        let stands = self.listening && key.shard != self.shard_gone;
        if stands { LISTENER + key.shard } else { 0 }
    }
    fn cookie(&self) -> u64 {
        self.cookie
    }
    fn sequence(&self, service_id: u32) -> u64 {
        assert_eq!(service_id, 3);
        self.sequence.replace_with(|now| *now + 1)
    }
    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(index as usize).copied()
    }
    fn backend(&self, index: u32) -> Option<Backend> {
        self.backends.get(index as usize).copied()
    }
    fn reserve(&self, cap: u32) -> bool {
        self.note("reserve");
        let held = self.held.replace_with(|held| *held + 1);
        cap == 1 && held < self.limit
    }
}

fn to(ip: &str, port: u16) -> Request {
    let addr = addr(ip);
    Request {
        addr,
        port,
        tcp: true,
        udp: false,
        v6_socket: !addr.is_v4(),
        cgroup: 99,
    }
}

fn outcome(request: Request, world: &Fake) -> (Action, Reason) {
    let verdict = decide(&request, world);
    assert_eq!(
        matches!(verdict.action, Action::Rewrite | Action::Loopback),
        (verdict.to, verdict.to_port) != (Addr::UNSPECIFIED, 0),
        "an endpoint stands in the verdict exactly when it is gone to"
    );
    (verdict.action, verdict.reason)
}

/// Where a rewritten connection goes.
fn endpoint(request: Request, world: &Fake) -> Addr {
    let verdict = decide(&request, world);
    assert_eq!((verdict.action, verdict.to_port), (Action::Rewrite, 8_080));
    verdict.to
}

#[test]
fn live_agent_captures_what_the_proxy_decides() {
    let verdict = decide(&to(VIP, 80), &fake());
    assert_eq!(
        (verdict.action, verdict.reason),
        (Action::Capture, Reason::Captured)
    );
    assert_eq!(
        (verdict.pod_id, verdict.service_id, verdict.backend),
        (5, 3, BACKEND_NONE)
    );
    assert!(!verdict.is_event());
}

#[test]
fn each_way_past_the_mesh_has_its_own_reason() {
    let world = fake();
    let udp = Request {
        tcp: false,
        ..to(VIP, 80)
    };
    let cases = [
        (udp, Reason::PassNotTcp),
        (to("127.0.0.1", 80), Reason::PassLoopback),
        (to("::1", 80), Reason::PassLoopback),
        (to("0.0.0.0", 80), Reason::PassLoopback),
        (to("10.0.0.9", 80), Reason::PassPod),
        (to("1.1.1.1", 80), Reason::PassOutside),
        (to(VIP, 82), Reason::PassService),
    ];
    for (request, reason) in cases {
        assert_eq!(
            outcome(request, &world),
            (Action::Pass, reason),
            "{request:?}"
        );
    }
}

#[test]
fn agents_own_socket_is_not_even_looked_at() {
    let world = fake();
    let request = Request {
        cgroup: AGENT,
        ..to(VIP, 80)
    };
    assert_eq!(
        outcome(request, &world),
        (Action::Ignore, Reason::PassAgent)
    );
    assert!(world.asked.borrow().is_empty());
}

#[test]
fn without_settings_of_this_abi_nothing_happens() {
    let mut world = fake();
    world.config = None;
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Ignore, Reason::NoConfig)
    );
    world.config = fake().config.map(|config| Config {
        abi: ABI_VERSION + 1,
        ..config
    });
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Ignore, Reason::NoConfig)
    );
}

#[test]
fn unknown_namespace_passes_or_is_refused_but_never_the_agents() {
    let mut world = fake();
    world.netns = 555;
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Ignore, Reason::PassUnknown)
    );
    world.config = fake().config.map(|c| Config {
        unknown_netns: UNKNOWN_REFUSE,
        ..c
    });
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Refuse, Reason::RefuseUnknown)
    );
    assert_eq!(
        outcome(to("127.0.0.1", 80), &world),
        (Action::Pass, Reason::PassLoopback)
    );
    world.netns = AGENT_NETNS;
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Ignore, Reason::PassUnknown)
    );
}

#[test]
fn exact_port_rule_wins_over_any_port_and_over_services() {
    let mut world = fake();
    world.rules = BTreeMap::from([(0, OUT_DENY)]);
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Refuse, Reason::RefuseRule)
    );
    world.rules.insert(80, OUT_PASS);
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Pass, Reason::PassRule)
    );
    assert_eq!(
        outcome(to("10.0.0.9", 80), &world).1,
        Reason::PassPod,
        "pods come first"
    );
    let asked: Vec<_> = world.asked.take();
    assert_eq!(asked.iter().filter(|what| **what == "service").count(), 0);
}

#[test]
fn paused_or_switched_off_is_as_if_there_were_no_mesh() {
    for change in [
        |world: &mut Fake| world.config = world.config.map(|c| Config { paused: 1, ..c }),
        |world: &mut Fake| world.pod.mode = MODE_OFF,
    ] {
        let mut routable = fake().service(|s| s.flags = FLAG_ROUTABLE);
        change(&mut routable);
        assert_eq!(
            outcome(to(VIP, 80), &routable),
            (Action::Pass, Reason::PassPaused)
        );
        // Nobody else routes it: straight to an endpoint.
        let mut own = fake();
        change(&mut own);
        assert_eq!(
            outcome(to(VIP, 80), &own),
            (Action::Rewrite, Reason::PassPaused)
        );
        let mut empty = fake().service(|s| s.slots_len = 0);
        change(&mut empty);
        assert_eq!(
            outcome(to(VIP, 80), &empty),
            (Action::Pass, Reason::PassPaused)
        );
    }
}

#[test]
fn dead_agent_follows_the_failure_mode() {
    let dead: [fn(&mut Fake); 3] = [
        |world| world.listening = false,
        |world| world.heartbeat = NOW - 1_001,
        |world| world.heartbeat = 0,
    ];
    for kill in dead {
        let check = |mut world: Fake, expected: (Action, Reason)| {
            kill(&mut world);
            let verdict = decide(&to(VIP, 80), &world);
            assert_eq!((verdict.action, verdict.reason), expected);
            assert!(verdict.is_event());
        };
        check(fake(), (Action::Rewrite, Reason::DirectAgentGone));
        check(
            fake().service(|s| s.flags = FLAG_ROUTABLE),
            (Action::Pass, Reason::BypassAgentGone),
        );
        check(
            fake().service(|s| s.slots_len = 0),
            (Action::Pass, Reason::BypassAgentGone),
        );
        let mut closed = fake();
        closed.pod.fail = FAIL_CLOSED;
        check(closed, (Action::Refuse, Reason::RefuseAgentGone));
    }
    let mut fresh = fake();
    fresh.heartbeat = NOW - 1_000;
    assert_eq!(
        outcome(to(VIP, 80), &fresh).1,
        Reason::Captured,
        "at the limit"
    );
}

#[test]
fn kernel_choice_follows_the_slots_and_skips_what_is_out() {
    let mut world = fake();
    world.slots = vec![0, 1, 1];
    world.services.get_mut(&(addr(VIP), 81)).unwrap().slots_len = 3;
    let picked: Vec<Addr> = (0..6).map(|_| endpoint(to(VIP, 81), &world)).collect();
    let (a, b) = (addr("10.0.0.3"), addr("10.0.0.4"));
    assert_eq!(picked, [a, b, b, a, b, b]);
    assert_eq!(
        outcome(to(VIP, 81), &world),
        (Action::Rewrite, Reason::Kernel)
    );
    world.backends[1].state = 0;
    assert!((0..6).all(|_| endpoint(to(VIP, 81), &world) == a));
    world.backends[0].state = 0;
    assert_eq!(
        outcome(to(VIP, 81), &world),
        (Action::Refuse, Reason::RefuseNoEndpoint)
    );
}

#[test]
fn endpoint_must_be_reachable_by_the_sockets_family() {
    let mut world = fake();
    world.backends = vec![backend("fd00::3"), backend("10.0.0.4")];
    // An IPv4 socket, and a v4-mapped one, take the IPv4 endpoint only.
    for v6_socket in [false, true] {
        let request = Request {
            v6_socket,
            ..to(VIP, 81)
        };
        assert!((0..4).all(|_| endpoint(request, &world) == addr("10.0.0.4")));
    }
    // An IPv6 socket takes both.
    let v6: Vec<Addr> = (0..2)
        .map(|_| endpoint(to("fd00:96::1", 81), &world))
        .collect();
    assert!(v6.contains(&addr("fd00::3")) && v6.contains(&addr("10.0.0.4")));
    world.backends = vec![backend("fd00::3")];
    world.slots = vec![0, 0];
    assert_eq!(outcome(to(VIP, 81), &world).1, Reason::RefuseNoEndpoint);
}

#[test]
fn nonsense_in_the_maps_is_no_endpoint() {
    let mut world = fake();
    world.slots = vec![77, u32::MAX];
    assert_eq!(outcome(to(VIP, 81), &world).1, Reason::RefuseNoEndpoint);
    world.slots.clear();
    assert_eq!(outcome(to(VIP, 81), &world).1, Reason::RefuseNoEndpoint);
    let entry = world.services.get_mut(&(addr(VIP), 81)).unwrap();
    entry.decision = 9;
    assert_eq!(
        outcome(to(VIP, 81), &world),
        (Action::Pass, Reason::PassService)
    );
}

#[test]
fn verdict_that_could_not_be_carried_out_follows_the_failure_mode() {
    let open = decide(&to(VIP, 80), &fake()).failed();
    assert_eq!(
        (open.action, open.reason),
        (Action::Pass, Reason::BypassState)
    );
    let mut world = fake();
    world.pod.fail = FAIL_CLOSED;
    let closed = decide(&to(VIP, 80), &world).failed();
    assert_eq!(
        (closed.action, closed.reason),
        (Action::Refuse, Reason::RefuseState)
    );
    assert!(open.is_event() && closed.is_event());
}

/// Without it: the hook does something else than what was decided.
#[test]
fn packed_verdict_says_what_the_verdict_says() {
    let actions = [
        Action::Ignore,
        Action::Pass,
        Action::Refuse,
        Action::Capture,
        Action::Rewrite,
    ];
    let same = |packed: Packed, verdict: &Verdict| {
        assert_eq!(packed.reason(), verdict.reason as u32);
        assert_eq!(packed.is_event(), verdict.is_event());
        for action in actions {
            assert_eq!(packed.is(action), action == verdict.action);
        }
    };
    for action in actions {
        for reason in Reason::ALL {
            for (fail, guarded) in [(FAIL_OPEN, true), (FAIL_CLOSED, false)] {
                let verdict = Verdict {
                    fail,
                    guarded,
                    ..Verdict::new(action, *reason)
                };
                let packed = Packed::from_word(Packed::of(&verdict).word());
                same(packed, &verdict);
                assert_eq!(packed.is_guarded(), guarded);
                same(packed.failed(), &verdict.failed());
            }
        }
    }
}

/// Every refusal is an event, and refuses.
#[test]
fn refusing_actions_and_refusing_reasons_agree() {
    let mut worlds = vec![fake(), fake(), fake(), fake()];
    worlds[1].pod.fail = FAIL_CLOSED;
    worlds[1].listening = false;
    worlds[2].rules = BTreeMap::from([(0, OUT_DENY)]);
    worlds[3].backends.clear();
    for world in &worlds {
        for port in 80..84 {
            let verdict = decide(&to(VIP, port), world);
            let label: String = verdict.reason.label().to_string();
            assert_eq!(
                verdict.action == Action::Refuse,
                verdict.reason.is_refusal(),
                "{label}"
            );
        }
    }
}

/// Without it: a workload of mode loopback is marked, or its connections all meet one worker.
#[test]
fn loopback_workload_goes_to_a_listener_on_its_own_loopback() {
    let mut world = fake();
    world.pod.mode = MODE_LOOPBACK;
    world
        .services
        .insert((addr("fd00:96::1"), 80), service(DECIDE_PROXY));
    let mut shards = [0; 2];
    for cookie in 0..200 {
        world.cookie = cookie;
        for (vip, loopback) in [(VIP, "127.0.0.1"), ("fd00:96::1", "::1")] {
            let verdict = decide(&to(vip, 80), &world);
            assert_eq!(
                (verdict.action, verdict.reason, verdict.to),
                (Action::Loopback, Reason::CapturedLoopback, addr(loopback))
            );
            assert!(!verdict.is_event());
            shards[usize::from(verdict.to_port - LISTENER)] += 1;
        }
    }
    assert!(shards.iter().all(|share| *share > 100), "{shards:?}");
    // A shard without a listener: the first one takes its connections.
    world.shard_gone = 1;
    for cookie in 0..200 {
        world.cookie = cookie;
        assert_eq!(decide(&to(VIP, 80), &world).to_port, LISTENER);
    }
}

/// Without it: mode loopback has failure modes of its own.
#[test]
fn loopback_workload_fails_as_a_marked_one_does() {
    type Change = fn(&mut Fake);
    let broken: [Change; 4] = [
        |world| world.heartbeat = NOW - 1_001,
        |world| world.listening = false,
        |world| world.config.as_mut().unwrap().paused = 1,
        |world| {
            world.listening = false;
            world.pod.fail = FAIL_CLOSED;
        },
    ];
    for change in broken {
        let (mut marked, mut looped) = (fake(), fake());
        looped.pod.mode = MODE_LOOPBACK;
        change(&mut marked);
        change(&mut looped);
        assert_eq!(outcome(to(VIP, 80), &marked), outcome(to(VIP, 80), &looped));
    }
    let mut world = fake();
    world.pod.mode = MODE_LOOPBACK;
    let verdict = decide(&to(VIP, 80), &world);
    assert_eq!(
        (verdict.failed().action, verdict.failed().reason),
        (Action::Pass, Reason::BypassState)
    );
    let packed = Packed::from_word(Packed::of(&verdict).word());
    assert!(packed.is(Action::Loopback) && packed.failed().is(Action::Pass));
}

/// Without it: a rule for TCP takes datagrams away, or one for datagrams is not in force.
#[test]
fn connected_datagrams_pass_but_for_a_rule_of_their_own() {
    let udp = |ip| Request {
        tcp: false,
        udp: true,
        ..to(ip, 80)
    };
    let mut world = fake();
    world.rules = BTreeMap::from([(0, OUT_DENY)]);
    assert_eq!(
        outcome(udp(VIP), &world),
        (Action::Pass, Reason::PassNotTcp)
    );
    world.rules.clear();
    world.datagrams = BTreeMap::from([(0, OUT_DENY)]);
    let verdict = decide(&udp(VIP), &world);
    assert_eq!(
        (verdict.action, verdict.reason, verdict.pod_id),
        (Action::Refuse, Reason::RefuseDatagram, 5)
    );
    assert_eq!(
        outcome(udp("127.0.0.1"), &world),
        (Action::Pass, Reason::PassNotTcp)
    );
    assert_eq!(
        outcome(to(VIP, 80), &world),
        (Action::Capture, Reason::Captured)
    );
    world.datagrams.insert(80, OUT_PASS);
    assert_eq!(
        outcome(udp(VIP), &world),
        (Action::Pass, Reason::PassNotTcp)
    );
    world.netns = AGENT_NETNS;
    assert_eq!(
        outcome(udp(VIP), &world),
        (Action::Pass, Reason::PassNotTcp)
    );
}

/// A cap belongs to its version: nobody else takes what is above it, and nothing is reserved for a
/// connection that has no endpoint.
#[test]
fn capped_endpoint_takes_a_place_and_refuses_above_the_cap() {
    let mut world = fake();
    world.backends[0].cap = 1;
    let verdicts: Vec<Verdict> = (0..6).map(|_| decide(&to(VIP, 81), &world)).collect();
    let seen: Vec<(Reason, u32)> = verdicts.iter().map(|v| (v.reason, v.cap)).collect();
    let (capped, free) = ((Reason::Kernel, 1), (Reason::Kernel, 0));
    assert_eq!(
        seen,
        [capped, free, capped, free, (Reason::RefuseCap, 0), free]
    );
    assert_eq!(verdicts[4].action, Action::Refuse);
    assert!(verdicts[4].is_event());

    let mut nobody = fake();
    nobody.backends[0].cap = 1;
    nobody.backends[0].state = 0;
    nobody.slots = vec![0];
    let verdict = decide(&to(VIP, 81), &nobody);
    assert_eq!(verdict.reason, Reason::RefuseNoEndpoint);
    assert!(!nobody.asked.borrow().contains(&"reserve"));
}

/// The share of a version without endpoints is refused, not given to the others.
#[test]
fn slot_of_an_empty_version_refuses() {
    let mut world = fake();
    world.backends[1].state = BACKEND_REFUSE;
    let reasons: Vec<Reason> = (0..4)
        .map(|_| decide(&to(VIP, 81), &world).reason)
        .collect();
    let (good, bad) = (Reason::Kernel, Reason::RefuseNoEndpoint);
    assert_eq!(reasons, [good, bad, good, bad]);
}

/// Without it: what a guarded workload may open itself gets no grant, and its SYN is dropped.
#[test]
fn verdicts_of_a_guarded_workload_say_so() {
    let mut world = fake();
    for port in 80..84 {
        assert!(!decide(&to(VIP, port), &world).guarded);
    }
    world.pod.flags = POD_GUARDED;
    for port in 80..84 {
        assert!(decide(&to(VIP, port), &world).guarded);
    }
    let loopback = decide(&to("127.0.0.1", 80), &world);
    assert!(!loopback.guarded, "it never meets the guard");
}

/// A path that the audit could not repair is like an agent that is gone.
#[test]
fn broken_path_follows_the_failure_mode() {
    for (fail, reason) in [
        (FAIL_CLOSED, Reason::RefuseAgentGone),
        (FAIL_OPEN, Reason::DirectAgentGone),
    ] {
        let mut world = fake();
        world.pod.fail = fail;
        assert_eq!(decide(&to(VIP, 80), &world).reason, Reason::Captured);
        world.pod.flags = POD_BROKEN;
        assert_eq!(decide(&to(VIP, 80), &world).reason, reason);
    }
}
