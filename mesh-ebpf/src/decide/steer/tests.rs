//! Against a world of plain values.

extern crate std;

use core::{cell::RefCell, net::IpAddr};
use std::{collections::BTreeMap, vec::Vec};

use mesh_common::pod::{FAIL_OPEN, INBOUND_PASS};

use super::*;

struct Fake {
    config: Option<Config>,
    pods: BTreeMap<Addr, PodAddr>,
    heartbeat: u64,
    listeners: Vec<(u32, u16)>,
    tried: RefCell<Vec<(u32, u16)>>,
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
    fn assign(&self, pod_id: u32, shard: u16) -> bool {
        self.tried.borrow_mut().push((pod_id, shard));
        self.listeners.contains(&(pod_id, shard))
    }
}

fn request(remote: &str, local: &str) -> Request {
    Request {
        remote: addr(remote),
        remote_port: 40_000,
        local: addr(local),
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
        while shard(&request, 4) == 0 {
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
            let chosen = shard(&request, shards);
            assert_eq!(chosen, shard(&request, shards));
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
