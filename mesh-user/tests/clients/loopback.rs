//! Mode loopback: what it leaves alone, how it fails, how it changes, and that it never guesses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use aya::maps::{HashMap, Map, MapData};
use mesh_common::{
    addr::Addr,
    flow::{Flow, FlowKey, LoopFlow, Tuple},
    maps::get,
};
use mesh_user::testbed::Pod;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    matrix::job,
    process::{Client, FAMILIES, Family, Job},
    styles::Style,
};
use crate::support::{
    Mesh, PORT,
    agent::{Mode, Service},
    objects, serve_vips_on_node, vip4, vip6,
};

/// A mesh whose agent repeats what it hears, with one workload of mode loopback.
fn looped(name: &str, closed: bool) -> (Mesh, Pod, u32) {
    let mut mesh = Mesh::new(name);
    mesh.agent().mode(Mode::Loopback);
    mesh.agent().echo(true);
    let (pod, id) = mesh.live_pod("a", closed);
    mesh.proxied();
    (mesh, pod, id)
}

fn sysctls(mesh: &Mesh, pod: &Pod) -> Vec<String> {
    let read = || {
        ["tcp_fwmark_accept", "tcp_tw_reuse"].map(|name| {
            let path = format!("/proc/sys/net/ipv4/{name}");
            std::fs::read_to_string(path).expect(name).trim().to_owned()
        })
    };
    mesh.bed.in_netns(pod, read).expect("the namespace").into()
}

/// Without it: the fallback for applications that mode mark breaks changes the namespace as mode
/// mark does. And what mode mark changed is put back.
#[test]
fn loopback_needs_nothing_in_the_namespace_and_mark_takes_its_own_back() {
    let mut mesh = Mesh::new("clean");
    mesh.agent().echo(true);
    mesh.proxied();
    for (mode, name) in [(Mode::Loopback, "a"), (Mode::Mark, "b")] {
        mesh.agent().mode(mode);
        let pod = mesh.bed.pod(name).expect("a pod");
        let before = (objects::network(&pod.netns), sysctls(&mesh, &pod));
        let id = mesh
            .agent()
            .enrol(name, &pod.netns, false)
            .expect("enrolled");
        mesh.agent().live(id).expect("live");
        let mut client = Client::start(&mesh.bed, &pod);
        assert_eq!(client.run(&job(&pod, Family::V4, Style::Blocking)).errno, 0);
        let now = (objects::network(&pod.netns), sysctls(&mesh, &pod));
        match mode {
            Mode::Loopback => assert_eq!(now, before),
            Mode::Mark => {
                assert_ne!(now.0, before.0);
                assert_eq!(now.1, ["1", "1"]);
            }
        }
        mesh.agent().release(id);
        let after = (objects::network(&pod.netns), sysctls(&mesh, &pod));
        assert_eq!(after, before);
    }
    assert_eq!(mesh.count("captured_loopback"), 1);
}

/// Pitfall 7. Without it: two pods with the same tuple on their loopbacks are taken for each other.
#[test]
fn same_local_port_in_two_pods_is_two_connections() {
    let (mut mesh, a, a_id) = looped("tuple", false);
    let (b, b_id) = mesh.live_pod("b", false);
    let other = SocketAddr::new(vip4().ip(), PORT + 1);
    let services = [
        Service::proxy(vip4()),
        Service::proxy(vip6()),
        Service::proxy(other),
    ];
    mesh.agent().table(&services, &[]).expect("table");
    mesh.agent().hold(true);
    let mut clients = [Client::start(&mesh.bed, &a), Client::start(&mesh.bed, &b)];
    // To the same virtual address, then to another one by the same port.
    for (to, port) in [(vip4(), 25_000), (vip4(), 25_001)] {
        for (client, pod) in clients.iter_mut().zip([&a, &b]) {
            let to = if port == 25_001 && pod.name == "b" {
                other
            } else {
                to
            };
            let hold = Job {
                to,
                port,
                ..job(pod, Family::V4, Style::Hold)
            };
            let seen = client.run(&hold);
            assert_eq!(seen.data, format!("proxy {to} ping"), "{seen:?}");
            assert_eq!(seen.peer, Some(to));
            assert_eq!(seen.own, Some(SocketAddr::new(pod.v4.into(), port)));
        }
    }
    let accepts = mesh.agent().accepts();
    let found: Vec<_> = accepts
        .iter()
        .map(|it| (it.pod_id, it.peer.port(), it.asked.expect("known")))
        .collect();
    let expected = [
        (a_id, 25_000, vip4()),
        (b_id, 25_000, vip4()),
        (a_id, 25_001, vip4()),
        (b_id, 25_001, other),
    ];
    assert_eq!(found, expected);
    assert_eq!(mesh.entries("LOOP_FLOWS"), 4);
}

/// Without it: an application that says what it has to say and closes is refused whenever the agent
/// is busy: its entry in the map goes with its socket.
#[test]
fn connection_that_was_closed_before_it_is_accepted_is_served() {
    let (mesh, pod, _) = looped("fire", false);
    let mut client = Client::start(&mesh.bed, &pod);
    let agent = Pid::from_raw(mesh.agent().pid() as i32);
    for (at, family) in (1..).zip(FAMILIES) {
        let job = job(&pod, family, Style::FireAndForget);
        // Its heartbeat stays fresh for a second.
        kill(agent, Signal::SIGSTOP).expect("the agent lives");
        let seen = client.run(&job);
        let gone = mesh_user::testbed::wait_until(std::time::Duration::from_millis(500), || {
            mesh.entries("LOOP_FLOWS") == 0
        });
        kill(agent, Signal::SIGCONT).expect("the agent lives");
        assert_eq!(seen.errno, 0, "{seen:?}");
        assert!(gone, "the client's socket is closed");
        mesh.eventually("the agent accepts", || mesh.agent().accepts().len() == at);
        let last = mesh.agent().accepts().pop().expect("one");
        assert_eq!((last.asked, last.original), (Some(job.to), Some(job.to)));
    }
}

/// Without it: mode loopback opens a hole that mode mark does not have, or the other way round.
#[test]
fn loopback_workload_follows_its_failure_mode_and_comes_back() {
    for closed in [false, true] {
        let (mut mesh, pod, _) = looped("fail", closed);
        serve_vips_on_node(&mesh.bed);
        let mut client = Client::start(&mesh.bed, &pod);
        let mut ask = |captured: bool, what: &str| {
            for family in FAMILIES {
                let job = job(&pod, family, Style::Blocking);
                let seen = client.run(&job);
                let what = format!("{what}, closed: {closed}, {family:?}: {seen:?}");
                if captured {
                    assert_eq!(seen.data, format!("proxy {} ping", job.to), "{what}");
                } else if closed {
                    assert_eq!(seen.errno, libc::ECONNREFUSED, "{what}");
                } else {
                    // Who answers there closes before it hears the «ping».
                    assert!(seen.data.starts_with("node") || seen.errno != 0, "{what}");
                    assert_ne!(seen.errno, libc::ECONNREFUSED, "{what}");
                }
            }
        };
        ask(true, "alive");
        mesh.agent().paused(true);
        if !closed {
            ask(false, "paused");
        }
        mesh.agent().paused(false);
        ask(true, "resumed");
        mesh.agent().beat(false);
        let view = mesh.view();
        mesh.eventually("the heartbeat is stale", || {
            let age = view.heartbeat_age(mesh_user::clock::now());
            age.is_some_and(|age| age.as_millis() > 1_000)
        });
        ask(false, "hung");
        mesh.agent = None;
        ask(false, "killed");
        // The next agent adopts the mode with the workload, and each hook once.
        mesh.start_agent(2, false).expect("it starts");
        mesh.agent().echo(true);
        mesh.agent().mode(Mode::Loopback);
        mesh.proxied();
        let id = mesh
            .agent()
            .enrol("a", &pod.netns, closed)
            .expect("enrolled");
        ask(true, "adopted");
        let pods = mesh.bed.pods_cgroup();
        for hook in [
            "inet4_getsockname",
            "inet6_getsockname",
            "inet4_getpeername",
            "inet6_connect",
        ] {
            assert_eq!(objects::at_cgroup(&pods, hook), 1, "{hook}");
        }
        mesh.agent().release(id);
    }
}

/// Without it: a change of mode needs a restart, or cuts connections, or lies about them.
#[test]
fn mode_changes_live_and_held_connections_stay_true() {
    let mut mesh = Mesh::new("switch");
    mesh.agent().hold(true);
    mesh.agent().echo(true);
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    let mut clients = Vec::new();
    let turns = [Mode::Mark, Mode::Loopback, Mode::Mark, Mode::Loopback];
    for mode in turns {
        mesh.agent().switch_mode(id, mode).expect("changed");
        for family in FAMILIES {
            let mut client = Client::start(&mesh.bed, &pod);
            let job = job(&pod, family, Style::Hold);
            let seen = client.run(&job);
            assert_eq!(seen.data, format!("proxy {} ping", job.to), "{seen:?}");
            let last = mesh.agent().accepts().pop().expect("one");
            let loopback = last.local.ip().is_loopback();
            assert_eq!(loopback, mode == Mode::Loopback, "{mode:?}");
            clients.push((client, job));
        }
    }
    for (client, held) in &mut clients {
        let ask = Job {
            style: Style::AskHeld,
            ..held.clone()
        };
        let seen = client.run(&ask);
        assert_eq!(seen.peer, Some(held.to));
        assert_eq!(seen.own.map(|it| it.ip()), Some(held.own));
    }
    assert_eq!(mesh.agent().held().len(), clients.len(), "none was cut");
}

/// Without it: a workload that was enrolled without rule and route can't be marked.
#[test]
fn workload_enrolled_in_mode_loopback_can_be_marked_later() {
    let (mesh, pod, id) = looped("later", false);
    let before = (objects::network(&pod.netns), sysctls(&mesh, &pod));
    let mut client = Client::start(&mesh.bed, &pod);
    for mode in [Mode::Loopback, Mode::Mark] {
        mesh.agent().switch_mode(id, mode).expect("changed");
        for family in FAMILIES {
            let job = job(&pod, family, Style::Blocking);
            let seen = client.run(&job);
            assert_eq!(seen.data, format!("proxy {} ping", job.to), "{seen:?}");
            assert_eq!(
                (seen.peer, seen.own.map(|it| it.ip())),
                (Some(job.to), Some(job.own))
            );
        }
    }
    assert_eq!(
        (mesh.count("captured"), mesh.count("captured_loopback")),
        (3, 3)
    );
    mesh.agent().release(id);
    assert_eq!((objects::network(&pod.netns), sysctls(&mesh, &pod)), before);
}

type Flows<V> = HashMap<MapData, FlowKey, V>;

fn open<V: aya::Pod>(mesh: &Mesh, name: &str) -> Flows<V> {
    let data = MapData::from_pin(mesh.pin(name)).expect("a pin");
    let map = Map::from_map_data(data).expect("a map");
    Flows::try_from(map).expect("a hash")
}

/// A connection that nobody has.
fn nobodys(number: u32) -> FlowKey {
    let nowhere = Addr::from_ip(IpAddr::V4(Ipv4Addr::from(number)));
    FlowKey {
        tuple: Tuple {
            src: nowhere,
            dst: nowhere,
            sport: 1,
            dport: 1,
        },
        pod_id: u32::MAX,
    }
}

/// Without it: a full map sends a connection to the wrong place, or nobody is told.
#[test]
fn full_map_is_counted_and_the_destination_is_never_guessed() {
    let (mesh, pod, _) = looped("full", false);
    let mut map: Flows<LoopFlow> = open(&mesh, "LOOP_FLOWS");
    let wrong = LoopFlow {
        asked: Addr::from_ip(vip6().ip()),
        asked_port: 1,
        _pad: [0; 6],
        connect_ns: 0,
    };
    for number in 0..get("LOOP_FLOWS").capacity {
        map.insert(nobodys(number), wrong, 0).expect("room");
    }
    let mut client = Client::start(&mesh.bed, &pod);
    for (at, family) in (1..).zip(FAMILIES) {
        client.run(&job(&pod, family, Style::Blocking));
        let last = mesh.agent().accepts().pop().expect("one");
        assert_eq!((last.asked, last.original), (None, None));
        assert_eq!(mesh.count("loop_flow_map_full"), at);
    }
    map.remove(&nobodys(0)).expect("it was there");
    let job = job(&pod, Family::V4, Style::Blocking);
    let seen = client.run(&job);
    assert_eq!(seen.data, format!("proxy {} ping", job.to));
    assert_eq!(mesh.count("loop_flow_map_full"), 3);
}

/// Pitfall 6: twice as many connections as the flow table holds come and go over a held one.
/// Without it: its destination was in a table that forgets, and is lost.
#[test]
fn held_connection_is_resolved_after_twice_the_flow_table_of_others() {
    for mode in [Mode::Mark, Mode::Loopback] {
        let mut mesh = Mesh::new("lru");
        mesh.agent().mode(mode);
        mesh.agent().hold(true);
        mesh.agent().echo(true);
        let (pod, _) = mesh.live_pod("a", false);
        mesh.proxied();
        let mut client = Client::start(&mesh.bed, &pod);
        let hold = job(&pod, Family::V4, Style::Hold);
        assert_eq!(client.run(&hold).errno, 0);
        // Entries as flow_ops writes them: a quarter of a million system calls instead of connections.
        let mut flows: Flows<Flow> = open(&mesh, "FLOWS");
        let (key, flow) = flows.iter().flatten().next().expect("the held one");
        for number in 0..get("FLOWS").capacity * 2 {
            flows
                .insert(nobodys(number), flow, 0)
                .expect("the oldest goes");
        }
        // Which the table forgets depends on who was looked up in between: the worst is the held one.
        let _ = flows.remove(&key);
        assert!(flows.get(&key, 0).is_err());
        let ask = Job {
            style: Style::AskHeld,
            ..hold.clone()
        };
        let seen = client.run(&ask);
        assert_eq!(
            (seen.peer, seen.own.map(|it| it.ip())),
            (Some(hold.to), Some(hold.own))
        );
        let held = mesh.agent().held();
        assert_eq!(held[0].0, Some(hold.to), "{mode:?}");
        if mode == Mode::Loopback {
            assert_eq!(held[0].1, Some(hold.to));
        }
    }
}
