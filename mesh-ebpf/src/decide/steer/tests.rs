//! Against a world of plain values.

extern crate std;

use core::{cell::RefCell, net::IpAddr};
use std::{collections::BTreeMap, vec::Vec};

use mesh_common::{
    abi::SHARDS_MAX,
    flow::{ESTABLISHED, PROXY_UP},
    pod::{FAIL_OPEN, INBOUND_PASS},
};

use super::*;

struct Fake {
    config: Option<Config>,
    pods: BTreeMap<Addr, PodAddr>,
    heartbeat: u64,
    listeners: Vec<(u32, u16)>,
    tried: RefCell<Vec<(u32, u16)>>,
    /// The same for connections that come in.
    tried_in: RefCell<Vec<(u32, u16)>>,
    rules: BTreeMap<(u32, u16), u32>,
    proxied: Vec<(Tuple, u8)>,
    probes: Vec<(Tuple, u64)>,
}

const NOW: u64 = 10_000;

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse::<IpAddr>().unwrap())
}

fn fake() -> Fake {
    let config = Config {
        abi: ABI_VERSION,
        capture_mark: 1,
        agent_mark: 2,
        mark_mask: 3,
        agent_cgroup: 0,
        heartbeat_stale_ns: 1_000,
        shards: 4,
        unknown_netns: 0,
        paused: 0,
        _pad: 0,
        agent_netns: 0,
        _reserved: 0,
    };
    let pod = |pod_id, fail| PodAddr {
        pod_id,
        generation: 1,
        fail,
        inbound: INBOUND_PASS,
        flags: 0,
        _pad: 0,
    };
    Fake {
        config: Some(config),
        pods: BTreeMap::from([
            (addr("10.0.0.1"), pod(1, FAIL_OPEN)),
            (addr("fd00::2"), pod(2, FAIL_CLOSED)),
        ]),
        heartbeat: NOW,
        listeners: (1..=2)
            .flat_map(|pod| (0..4).map(move |shard| (pod, shard)))
            .collect(),
        tried: RefCell::default(),
        tried_in: RefCell::default(),
        rules: BTreeMap::new(),
        proxied: Vec::new(),
        probes: Vec::new(),
    }
}

impl World for Fake {
    fn config(&self) -> Option<Config> {
        self.config
    }
    fn pod(&self, addr: &Addr) -> Option<PodAddr> {
        self.pods.get(addr).copied()
    }
    fn heartbeat(&self) -> u64 {
        self.heartbeat
    }
    fn now(&self) -> u64 {
        NOW
    }
    fn rule(&self, key: &InRuleKey) -> Option<u32> {
        assert_eq!((key.proto, key._pad), (TCP, 0));
        self.rules.get(&(key.pod_id, key.port)).copied()
    }
    fn proxy_flow(&self, tuple: &Tuple) -> Option<ProxyFlow> {
        let kind = self.proxied.iter().find(|(other, _)| other == tuple)?.1;
        Some(ProxyFlow {
            pod_id: 1,
            kind,
            state: ESTABLISHED,
            _pad: [0; 2],
            connect_ns: 0,
        })
    }
    fn probe(&self, tuple: &Tuple) -> Option<u64> {
        Some(self.probes.iter().find(|(other, _)| other == tuple)?.1)
    }
    fn assign(&self, pod_id: u32, kind: u16, shard: u16) -> bool {
        let tried = match kind {
            KIND_OUT => &self.tried,
            KIND_IN => &self.tried_in,
            other => panic!("a listener of kind {other}"),
        };
        tried.borrow_mut().push((pod_id, shard));
        self.listeners.contains(&(pod_id, shard))
    }
}

fn request(remote: &str, local: &str) -> Request {
    Request {
        remote: addr(remote),
        remote_port: 40_000,
        local: addr(local),
        local_port: 80,
        proto: TCP,
        interface: LOOPBACK,
    }
}

#[test]
fn connection_that_leaves_a_pod_goes_to_its_own_listener() {
    let world = fake();
    for (remote, pod_id) in [("10.0.0.1", 1), ("fd00::2", 2)] {
        let verdict = decide(&request(remote, "10.96.0.1"), &world);
        assert_eq!(
            (verdict.pass, verdict.reason, verdict.pod_id),
            (true, Reason::SteerOut, pod_id)
        );
        assert_eq!(world.tried.borrow_mut().pop().unwrap().0, pod_id);
    }
}

#[test]
fn everything_else_passes_untouched() {
    let world = fake();
    let cases = [
        (request("10.9.9.9", "10.0.0.1"), Reason::SteerPassIn),
        (request("10.0.0.1", "10.0.0.1"), Reason::SteerPassIn),
        (request("10.9.9.9", "10.96.0.1"), Reason::SteerPassOther),
        (request("10.0.0.1", "127.0.0.1"), Reason::SteerPassOther),
        (
            Request {
                proto: 17,
                ..request("10.0.0.1", "10.96.0.1")
            },
            Reason::SteerPassOther,
        ),
    ];
    for (request, reason) in cases {
        let verdict = decide(&request, &world);
        assert_eq!(
            (verdict.pass, verdict.reason),
            (true, reason),
            "{request:?}"
        );
    }
    assert!(world.tried.borrow().is_empty());
}

/// Without it: a connection that a foreign load balancer sent to a workload of the same node finds
/// nobody in its own namespace, or an application that happens to listen on that port.
#[test]
fn address_of_another_workload_over_lo_is_a_connection_that_leaves() {
    let mut world = fake();
    let third = PodAddr {
        pod_id: 3,
        ..world.pods[&addr("10.0.0.1")]
    };
    world.pods.insert(addr("10.0.0.3"), third);
    world
        .pods
        .insert(addr("10.0.0.11"), world.pods[&addr("10.0.0.1")]);
    let over = |interface, remote, local| Request {
        interface,
        ..request(remote, local)
    };
    let cases = [
        (over(LOOPBACK, "10.0.0.1", "10.0.0.3"), Reason::SteerOut, 1),
        (over(7, "10.0.0.1", "10.0.0.3"), Reason::SteerPassIn, 3),
        // Its own address, also one that it has on `lo`.
        (
            over(LOOPBACK, "10.0.0.1", "10.0.0.1"),
            Reason::SteerPassIn,
            1,
        ),
        (
            over(LOOPBACK, "10.0.0.1", "10.0.0.11"),
            Reason::SteerPassIn,
            1,
        ),
        (
            over(LOOPBACK, "10.9.9.9", "10.0.0.3"),
            Reason::SteerPassIn,
            3,
        ),
    ];
    for (request, reason, pod_id) in cases {
        let verdict = decide(&request, &world);
        assert_eq!(
            (verdict.pass, verdict.reason, verdict.pod_id),
            (true, reason, pod_id),
            "{request:?}"
        );
    }
}

/// Without it: a workload that dials an address which another one takes without our knowing (AnyIP,
/// just added) is given to its own listener inside the other's namespace: no handshake completes.
#[test]
fn connection_from_outside_is_never_given_to_its_sources_listener() {
    let world = fake();
    for remote in ["10.0.0.1", "fd00::2"] {
        let request = Request {
            interface: 7,
            ..request(remote, "10.96.0.1")
        };
        let verdict = decide(&request, &world);
        assert_eq!(
            (verdict.pass, verdict.reason, verdict.pod_id),
            (true, Reason::SteerPassOther, 0)
        );
    }
    assert!(world.tried.borrow().is_empty());
}

#[test]
fn missing_shard_falls_back_to_the_first_and_then_to_the_failure_mode() {
    let mut world = fake();
    let from = |remote| {
        let mut request = request(remote, "10.96.0.1");
        while shard(&request.remote, request.remote_port, 4) == 0 {
            request.remote_port += 1;
        }
        request
    };
    world.listeners.retain(|(_, shard)| *shard == 0);
    assert_eq!(
        decide(&from("10.0.0.1"), &world).reason,
        Reason::SteerFallback
    );
    world.listeners.clear();
    let open = decide(&from("10.0.0.1"), &world);
    assert_eq!((open.pass, open.reason), (true, Reason::SteerMissOpen));
    let closed = decide(&from("fd00::2"), &world);
    assert_eq!(
        (closed.pass, closed.reason),
        (false, Reason::SteerMissClosed)
    );
}

#[test]
fn hung_agent_gets_no_connection() {
    let mut world = fake();
    world.heartbeat = NOW - 1_001;
    assert_eq!(
        decide(&request("10.0.0.1", "10.96.0.1"), &world).reason,
        Reason::SteerMissOpen
    );
    assert!(world.tried.borrow().is_empty());
}

#[test]
fn without_settings_nothing_is_touched() {
    let mut world = fake();
    world.config = None;
    assert_eq!(
        decide(&request("10.0.0.1", "10.96.0.1"), &world).reason,
        Reason::NoConfig
    );
    world.config = fake().config.map(|config| Config {
        abi: ABI_VERSION + 1,
        ..config
    });
    assert_eq!(
        decide(&request("10.0.0.1", "10.96.0.1"), &world).reason,
        Reason::NoConfig
    );
}

#[test]
fn shards_are_in_range_stable_and_even_for_ports_of_one_parity() {
    for shards in [0, 1, 2, 3, 5, 8, 9, u32::MAX] {
        let count = shards.clamp(1, SHARDS_MAX) as usize;
        let mut hits = std::vec![0_u32; count];
        for port in (32_768..60_998).step_by(2) {
            let request = Request {
                remote_port: port,
                ..request("10.0.0.1", "10.96.0.1")
            };
            let of = |request: &Request| shard(&request.remote, request.remote_port, shards);
            let chosen = of(&request);
            assert_eq!(chosen, of(&request));
            hits[usize::from(chosen)] += 1;
        }
        let fair = hits.iter().sum::<u32>() / count as u32;
        for hit in hits {
            assert!(
                hit > fair * 8 / 10 && hit < fair * 12 / 10,
                "{shards} shards: {hit} of {fair}"
            );
        }
    }
}

mod inbound {
    use super::*;

    /// From another node to a workload's port 80.
    fn arriving(local: &str) -> Request {
        Request {
            interface: 7,
            ..request("10.9.9.9", local)
        }
    }

    fn told(request: &Request, world: &Fake) -> (bool, Reason, u32) {
        let verdict = decide(request, world);
        (verdict.pass, verdict.reason, verdict.pod_id)
    }

    fn ruled(actions: &[(u16, u8)]) -> Fake {
        let mut world = fake();
        for pod_id in [1, 2] {
            for (port, action) in actions {
                world.rules.insert((pod_id, *port), u32::from(*action));
            }
        }
        world
    }

    #[test]
    fn port_without_a_rule_follows_the_workloads_default() {
        let mut world = fake();
        assert_eq!(
            told(&arriving("10.0.0.1"), &world),
            (true, Reason::SteerPassIn, 1)
        );
        for (inbound, pass, reason) in [
            (INBOUND_CAPTURE, true, Reason::SteerIn),
            (INBOUND_DENY, false, Reason::RefuseInbound),
            (9, true, Reason::SteerPassIn),
        ] {
            world.pods.get_mut(&addr("10.0.0.1")).unwrap().inbound = inbound;
            assert_eq!(told(&arriving("10.0.0.1"), &world), (pass, reason, 1));
            // One rule is about one port of one workload.
            world.rules.insert((1, 81), 0);
            let other = Request {
                local_port: 81,
                ..arriving("10.0.0.1")
            };
            assert_eq!(told(&other, &world), (true, Reason::SteerPassIn, 1));
        }
        assert!(world.tried.borrow().is_empty(), "no outbound listener");
    }

    #[test]
    fn captured_port_goes_to_the_inbound_listener_or_ends_as_the_failure_mode_says() {
        let mut world = ruled(&[(80, INBOUND_CAPTURE)]);
        for (local, pod_id) in [("10.0.0.1", 1), ("fd00::2", 2)] {
            assert_eq!(
                told(&arriving(local), &world),
                (true, Reason::SteerIn, pod_id)
            );
            assert_eq!(world.tried_in.borrow_mut().pop().unwrap().0, pod_id);
        }
        world.heartbeat = NOW - 1_001;
        assert_eq!(
            told(&arriving("10.0.0.1"), &world),
            (true, Reason::SteerMissOpen, 1)
        );
        assert_eq!(
            told(&arriving("fd00::2"), &world),
            (false, Reason::SteerMissClosed, 2)
        );
        world.heartbeat = NOW;
        world.listeners.clear();
        assert_eq!(
            told(&arriving("fd00::2"), &world),
            (false, Reason::SteerMissClosed, 2)
        );
    }

    #[test]
    fn denied_port_stays_denied_without_an_agent_and_while_paused() {
        let mut world = ruled(&[(80, INBOUND_DENY), (81, INBOUND_CAPTURE)]);
        world.heartbeat = 0;
        world.config.as_mut().unwrap().paused = 1;
        assert_eq!(
            told(&arriving("10.0.0.1"), &world),
            (false, Reason::RefuseInbound, 1)
        );
        let captured = Request {
            local_port: 81,
            ..arriving("10.0.0.1")
        };
        assert_eq!(told(&captured, &world), (true, Reason::SteerPassIn, 1));
    }

    /// Pitfall 31: with the interface that has the address, and with `lo`.
    #[test]
    fn workload_that_talks_to_itself_is_untouched_by_whatever_interface() {
        let mut world = ruled(&[(80, INBOUND_DENY)]);
        world
            .pods
            .insert(addr("10.0.0.11"), world.pods[&addr("10.0.0.1")]);
        for interface in [LOOPBACK, 7] {
            for remote in ["10.0.0.1", "10.0.0.11"] {
                let request = Request {
                    interface,
                    ..request(remote, "10.0.0.1")
                };
                assert_eq!(told(&request, &world), (true, Reason::SteerPassSelf, 1));
            }
        }
    }

    /// Pitfalls 3 and 4: without it the agent's own dial comes back to it, for ever.
    #[test]
    fn dial_to_the_application_passes_by_its_exact_tuple_in_both_families() {
        for (remote, local, pod_id) in [("10.9.9.9", "10.0.0.1", 1), ("fd00::9", "fd00::2", 2)] {
            for action in [INBOUND_CAPTURE, INBOUND_DENY] {
                let mut world = ruled(&[(80, action)]);
                let mut dial = Request {
                    interface: 7,
                    ..request(remote, local)
                };
                world.proxied.push((dial.tuple(), PROXY_APP));
                // A second pass is about dials of clients only.
                world.pods.get_mut(&addr(local)).unwrap().flags = ADDR_SECOND_PASS;
                let passed = (true, Reason::SteerPassProxied, pod_id);
                assert_eq!(told(&dial, &world), passed);
                dial.remote_port += 1;
                assert_ne!(told(&dial, &world), passed, "another port is another dial");
            }
        }
    }

    /// Where the address stands on `lo`, the dial comes over `lo`, also with the address of a
    /// client of this node.
    #[test]
    fn dial_to_the_application_over_lo_is_not_taken_for_one_that_leaves() {
        let mut world = ruled(&[(80, INBOUND_CAPTURE)]);
        let third = PodAddr {
            pod_id: 3,
            ..world.pods[&addr("10.0.0.1")]
        };
        world.pods.insert(addr("10.0.0.3"), third);
        let dial = request("10.0.0.3", "10.0.0.1");
        assert_eq!(told(&dial, &world), (true, Reason::SteerMissOpen, 3));
        world.proxied.push((dial.tuple(), PROXY_APP));
        assert_eq!(told(&dial, &world), (true, Reason::SteerPassProxied, 1));
        world.proxied[0].1 = PROXY_UP;
        assert_eq!(
            told(&dial, &world).2,
            3,
            "one for a client leaves by its own address"
        );
    }

    #[test]
    fn dial_for_a_client_of_this_node_passes_unless_a_second_pass_is_asked_for() {
        let mut world = ruled(&[(80, INBOUND_CAPTURE)]);
        let dial = arriving("10.0.0.1");
        world.proxied.push((dial.tuple(), PROXY_UP));
        assert_eq!(told(&dial, &world), (true, Reason::SteerPassProxied, 1));
        world.pods.get_mut(&addr("10.0.0.1")).unwrap().flags = ADDR_SECOND_PASS;
        assert_eq!(told(&dial, &world), (true, Reason::SteerIn, 1));
    }

    /// Without it: an agent that doesn't know the workload yet dials, and a denied port is open.
    #[test]
    fn dial_for_a_client_of_this_node_is_dropped_at_a_denied_port() {
        let mut world = ruled(&[(80, INBOUND_DENY)]);
        let dial = arriving("10.0.0.1");
        world.proxied.push((dial.tuple(), PROXY_UP));
        assert_eq!(told(&dial, &world), (false, Reason::RefuseInbound, 1));
        world.proxied[0].1 = PROXY_APP;
        assert_eq!(told(&dial, &world), (true, Reason::SteerPassProxied, 1));
    }

    /// Pitfall 21, and pitfall 5: an old entry is no permission.
    #[test]
    fn probe_passes_by_its_exact_tuple_for_ten_seconds() {
        let mut world = ruled(&[(80, INBOUND_DENY)]);
        world.heartbeat = 0;
        let probe = arriving("fd00::2");
        world.probes.push((probe.tuple(), NOW));
        assert_eq!(told(&probe, &world), (true, Reason::SteerPassProbe, 2));
        let other = Request {
            remote_port: probe.remote_port + 1,
            ..probe
        };
        assert_eq!(told(&other, &world), (false, Reason::RefuseInbound, 2));
    }

    /// The age of an entry, at its limit: `NOW` is too small a clock for it.
    #[test]
    fn probe_entry_ends_after_its_age() {
        struct Late(Fake);
        impl World for Late {
            fn config(&self) -> Option<Config> {
                self.0.config()
            }
            fn pod(&self, addr: &Addr) -> Option<PodAddr> {
                self.0.pod(addr)
            }
            fn heartbeat(&self) -> u64 {
                0
            }
            fn now(&self) -> u64 {
                NOW + PROBE_AGE_NS
            }
            fn rule(&self, key: &InRuleKey) -> Option<u32> {
                self.0.rule(key)
            }
            fn proxy_flow(&self, tuple: &Tuple) -> Option<ProxyFlow> {
                self.0.proxy_flow(tuple)
            }
            fn probe(&self, tuple: &Tuple) -> Option<u64> {
                self.0.probe(tuple)
            }
            fn assign(&self, pod_id: u32, kind: u16, shard: u16) -> bool {
                self.0.assign(pod_id, kind, shard)
            }
        }
        let probe = arriving("fd00::2");
        for (then, passes) in [
            (NOW, true),
            (NOW - 1, false),
            (NOW + PROBE_AGE_NS + 1, true),
        ] {
            let mut world = ruled(&[(80, INBOUND_DENY)]);
            world.probes.push((probe.tuple(), then));
            assert_eq!(decide(&probe, &Late(world)).pass, passes, "{then}");
        }
    }
}
