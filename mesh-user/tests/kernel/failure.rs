//! What happens when the agent is dead, hung or paused, and what the rules refuse.

use std::net::{IpAddr, SocketAddr};

use aya::maps::{HashMap, Map, MapData};
use mesh_common::{
    abi::{CAPTURE_MARK, MARK_MASK},
    addr::Addr,
    maps::{OUT_DENY, OUT_PASS},
    pod::{FAIL_CLOSED, FAIL_OPEN, PodAddr},
    service::DECIDE_KERNEL,
};
use mesh_user::testbed::{Pod, wait_until};

use crate::support::{
    LIMIT, Mesh, PORT, VIP4, VIP6,
    agent::Service,
    client::{Dial, connect, dial, python},
    objects, serve_in, serve_vips_on_node, vip4, vip6,
};

/// How an agent ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Its process is killed.
    Killed,
    /// Its workers closed their listeners.
    NoListeners,
    /// It lives, but does not tick.
    Hung,
}

const ENDS: [End; 3] = [End::Killed, End::NoListeners, End::Hung];

fn end(mesh: &mut Mesh, id: u32, how: End) {
    match how {
        End::Killed => mesh.agent = None,
        End::NoListeners => mesh.agent().drop_listeners(id),
        End::Hung => {
            mesh.agent().beat(false);
            let view = mesh.view();
            mesh.eventually("the heartbeat is stale", || {
                let age = view.heartbeat_age(mesh_user::clock::now());
                age.is_some_and(|age| age.as_millis() > 1_000)
            });
        }
    }
}

/// The addresses of a test in three families, with whether the socket is IPv6 for an IPv4 address.
fn families() -> [(SocketAddr, bool); 3] {
    [(vip4(), false), (vip4(), true), (vip6(), false)]
}

/// An endpoint pod and the services that lead to it.
fn to_endpoint(mesh: &mut Mesh) -> (Pod, Vec<Service>) {
    let pod = mesh.bed.pod("end").unwrap();
    let port = serve_in(&mesh.bed, &pod, "endpoint");
    let services = vec![
        Service::proxy(vip4()).to(&[(pod.v4, port).into()]),
        Service::proxy(vip6()).to(&[(pod.v6, port).into()]),
    ];
    (pod, services)
}

/// Without it: a dead agent takes every service with a mesh-only address down.
#[test]
fn open_pod_reaches_an_endpoint_when_the_agent_is_gone() {
    for how in ENDS {
        let mut mesh = Mesh::new("open");
        let (pod, id) = mesh.live_pod("a", false);
        let (_, services) = to_endpoint(&mut mesh);
        mesh.agent().table(&services, &[]).unwrap();
        assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
        end(&mut mesh, id, how);
        for (to, mapped) in families() {
            let seen = dial(
                &mesh.bed,
                &pod,
                to,
                Dial {
                    mapped,
                    ..Dial::default()
                },
            );
            assert_eq!(
                seen.data,
                format!("endpoint {}", seen.own()),
                "{how:?} {to}: {seen:?}"
            );
            assert_eq!(seen.peer(), to, "getpeername says what was dialled");
        }
        assert_eq!(mesh.count("direct_agent_gone"), 3, "{how:?}");
        if !matches!(how, End::Killed) {
            let events = mesh.agent().events();
            assert_eq!(events, ["direct_agent_gone"; 3], "{how:?}");
        }
    }
}

/// Without it: an address that the platform routes is taken from the platform.
#[test]
fn open_pod_goes_as_routed_when_the_platform_routes_the_address() {
    for how in ENDS {
        let mut mesh = Mesh::new("routed");
        let (pod, id) = mesh.live_pod("a", false);
        let (_, services) = to_endpoint(&mut mesh);
        let services: Vec<Service> = services.into_iter().map(Service::routable).collect();
        mesh.agent().table(&services, &[]).unwrap();
        serve_vips_on_node(&mesh.bed);
        end(&mut mesh, id, how);
        for (to, mapped) in families() {
            let seen = dial(
                &mesh.bed,
                &pod,
                to,
                Dial {
                    mapped,
                    ..Dial::default()
                },
            );
            assert_eq!(seen.data, format!("node {}", seen.own()), "{how:?} {to}");
        }
        assert_eq!(mesh.count("bypass_agent_gone"), 3, "{how:?}");
    }
}

/// Without it: a workload that must not bypass the mesh does, or hangs.
#[test]
fn closed_pod_is_refused_at_once_when_the_agent_is_gone() {
    for how in ENDS {
        let mut mesh = Mesh::new("closed");
        let (pod, id) = mesh.live_pod("a", true);
        let (_, services) = to_endpoint(&mut mesh);
        mesh.agent().table(&services, &[]).unwrap();
        serve_vips_on_node(&mesh.bed);
        assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
        end(&mut mesh, id, how);
        for (to, mapped) in families() {
            let seen = dial(
                &mesh.bed,
                &pod,
                to,
                Dial {
                    mapped,
                    ..Dial::default()
                },
            );
            assert_eq!(seen.errno, libc::ECONNREFUSED, "{how:?} {to}: {seen:?}");
            assert!(seen.ms < 100.0, "{how:?} {to}: took {} ms", seen.ms);
        }
        assert_eq!(mesh.count("refuse_agent_gone"), 3, "{how:?}");
    }
}

/// Without it: a socket whose intent can't be kept goes to an endpoint all the same, and
/// `getpeername()` tells the application so.
///
/// The kernel charges socket storage to the socket's option memory, so a namespace without any is
/// where storing fails. (The other half, the mark, can't be made to fail: `bpf_setsockopt` asks for
/// no capability, and SO_MARK takes every number. Nor can handing a capture over to `flow_ops`: that
/// map has its memory from the start, and its oldest entry gives way.)
#[test]
fn connect_whose_intent_can_not_be_stored_follows_the_failure_mode() {
    let mut mesh = Mesh::new("intent");
    let (open, _) = mesh.live_pod("open", false);
    let (closed, _) = mesh.live_pod("closed", true);
    let (_, services) = to_endpoint(&mut mesh);
    let services = services.into_iter().map(|service| Service {
        decision: DECIDE_KERNEL,
        ..service
    });
    mesh.agent()
        .table(&services.collect::<Vec<_>>(), &[])
        .unwrap();
    serve_vips_on_node(&mesh.bed);
    for pod in [&open, &closed] {
        let script = "open('/proc/sys/net/core/optmem_max', 'w').write('1')";
        python(&mesh.bed, pod, script, &[]);
    }
    for (to, mapped) in families() {
        let how = Dial {
            mapped,
            ..Dial::default()
        };
        let seen = dial(&mesh.bed, &open, to, how);
        assert!(seen.data.starts_with("node "), "{to}: {seen:?}");
        assert_eq!(seen.mark & MARK_MASK, 0, "{to}");
        let seen = dial(&mesh.bed, &closed, to, how);
        assert_eq!(
            (seen.errno, seen.ms < 100.0),
            (libc::ECONNREFUSED, true),
            "{to}"
        );
    }
    let counts = (
        mesh.count("bypass_state_failed"),
        mesh.count("refuse_state_failed"),
    );
    assert_eq!(counts, (3, 3));
    assert_eq!(mesh.agent().events().len(), 6);
    assert!(mesh.agent().accepts().is_empty());
}

/// Without it: an operator can't take the mesh out of the way.
#[test]
fn paused_mesh_captures_nothing_and_resumes() {
    let mut mesh = Mesh::new("pause");
    let (pod, _) = mesh.live_pod("a", true);
    let (_, mut services) = to_endpoint(&mut mesh);
    services[1] = services[1].clone().routable();
    mesh.agent().table(&services, &[]).unwrap();
    serve_vips_on_node(&mesh.bed);
    mesh.agent().paused(true);
    assert!(mesh.view().paused());
    // Nobody else routes the first: straight to an endpoint. The platform routes the second.
    let own = connect(&mesh.bed, &pod, vip4());
    assert_eq!(
        (own.data, own.peer),
        (format!("endpoint {}", pod.v4), VIP4.to_string())
    );
    assert_eq!(
        connect(&mesh.bed, &pod, vip6()).data,
        format!("node {}", pod.v6)
    );
    assert_eq!(mesh.count("pass_paused"), 2);
    assert!(
        mesh.view()
            .redirects()
            .iter()
            .all(|row| row.state == "paused")
    );
    mesh.agent().paused(false);
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
    assert!(connect(&mesh.bed, &pod, vip6()).data.starts_with("proxy "));
}

/// Without it: a SYN that arrives just after the agent hung ends in a backlog that nobody empties,
/// and the client waits for an answer for ever.
#[test]
fn connection_on_its_way_to_a_hung_agent_is_served_when_it_recovers() {
    let mut mesh = Mesh::new("hung");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    end(&mut mesh, id, End::Hung);
    // A marked socket stands for a SYN that was on its way when the agent stopped ticking; made by
    // the test itself, outside the pods' cgroup, so that no hook looks at it.
    let marked = |to: SocketAddr| {
        let connected = mesh.bed.in_netns(&pod, move || {
            let domain = socket2::Domain::for_address(to);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_mark(CAPTURE_MARK)?;
            socket.connect_timeout(&to.into(), LIMIT)
        });
        connected.unwrap().map_err(|error| error.raw_os_error())
    };
    assert_eq!(
        marked(vip6()),
        Err(Some(libc::ECONNREFUSED)),
        "IPv6 gets a reset"
    );
    assert_eq!(mesh.count("steer_miss_open"), 1);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| marked(vip4()));
        mesh.eventually("the first SYN is there", || {
            mesh.count("steer_miss_open") == 2
        });
        mesh.agent().beat(true);
        assert_eq!(client.join().unwrap(), Ok(()), "its second SYN is served");
    });
    mesh.eventually("it is accepted", || mesh.agent().accepts().len() == 1);
    assert_eq!(mesh.agent().events(), ["steer_miss_open"; 2]);
}

/// Without it: rules about destinations are not enforced, or not in the order they say.
#[test]
fn outbound_rules_deny_and_pass_before_services() {
    let mut mesh = Mesh::new("rules");
    let (pod, _) = mesh.live_pod("a", false);
    serve_vips_on_node(&mesh.bed);
    let services = [Service::proxy(vip4()), Service::proxy(vip6())];
    let rules = [
        // Everything of the range is denied but one port of it.
        ("10.96.0.0".parse::<IpAddr>().unwrap(), 16, 0, OUT_DENY),
        (VIP4, 32, PORT, OUT_PASS),
        (VIP6, 128, PORT, OUT_DENY),
    ];
    mesh.agent().table(&services, &rules).unwrap();
    for mapped in [false, true] {
        let how = Dial {
            mapped,
            ..Dial::default()
        };
        assert!(
            dial(&mesh.bed, &pod, vip4(), how).data.starts_with("node "),
            "pass"
        );
        let denied = dial(&mesh.bed, &pod, (VIP4, PORT + 1).into(), how);
        assert_eq!(
            (denied.errno, denied.ms < 100.0),
            (libc::ECONNREFUSED, true),
            "deny"
        );
    }
    let denied = connect(&mesh.bed, &pod, vip6());
    assert_eq!(denied.errno, libc::ECONNREFUSED);
    assert_eq!((mesh.count("pass_rule"), mesh.count("refuse_rule")), (2, 3));
    assert_eq!(mesh.agent().events(), ["refuse_rule"; 3]);
    // A table without rules takes them away.
    mesh.agent().table(&services, &[]).unwrap();
    assert_eq!(mesh.entries("OUT_RULES"), 0);
    assert!(connect(&mesh.bed, &pod, vip6()).data.starts_with("proxy "));
}

/// Without it: a pod that starts before its enrolment talks past the mesh although that was
/// forbidden.
#[test]
fn unknown_namespace_is_refused_when_asked_for_and_loopback_is_not() {
    let mut mesh = Mesh::with("refuse", 1, true);
    let (known, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let unknown = mesh.bed.pod("b").unwrap();
    let port = serve_in(&mesh.bed, &unknown, "b");
    for to in [vip4(), vip6(), (known.v4, 1).into()] {
        let seen = connect(&mesh.bed, &unknown, to);
        assert_eq!(
            (seen.errno, seen.ms < 100.0),
            (libc::ECONNREFUSED, true),
            "{to}"
        );
    }
    assert_eq!(mesh.count("refuse_unknown_netns"), 3);
    assert!(
        connect(&mesh.bed, &unknown, ([127, 0, 0, 1], port).into())
            .data
            .starts_with("b ")
    );
    assert!(
        connect(&mesh.bed, &known, vip4())
            .data
            .starts_with("proxy ")
    );
}

/// Without it: a service whose endpoints are all out is tried at its virtual address, which nobody
/// has.
#[test]
fn kernel_decided_service_without_endpoint_is_refused_by_name() {
    let mut mesh = Mesh::new("empty");
    let (pod, _) = mesh.live_pod("a", false);
    let end = mesh.bed.pod("end").unwrap();
    // Only IPv6 endpoints: an IPv4 socket can't reach them.
    let services = [Service::kernel(vip4()).to(&[(end.v6, 1).into()])];
    mesh.agent().table(&services, &[]).unwrap();
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!((seen.errno, seen.ms < 100.0), (libc::ECONNREFUSED, true));
    assert_eq!(mesh.agent().events(), ["refuse_no_endpoint"]);
}

/// Fails every enrolment of the pod that has the address: somebody else has it. Up to the next
/// start of an agent, which removes what it knows no workload of.
struct Taken {
    map: HashMap<MapData, Addr, PodAddr>,
    key: Addr,
    before: Option<PodAddr>,
}

impl Taken {
    fn new(mesh: &Mesh, ip: IpAddr) -> Self {
        let map = Map::HashMap(MapData::from_pin(mesh.pin("POD_BY_ADDR")).unwrap());
        let mut map: HashMap<_, Addr, PodAddr> = map.try_into().unwrap();
        let key = Addr::from_ip(ip);
        let before = map.get(&key, 0).ok();
        let nobody = PodAddr {
            pod_id: 1 << 20,
            generation: 0,
            fail: FAIL_OPEN,
            inbound: 0,
            flags: 0,
            _pad: 0,
        };
        map.insert(key, nobody, 0).unwrap();
        Self { map, key, before }
    }

    fn give_back(mut self) {
        match self.before {
            Some(before) => self.map.insert(self.key, before, 0).unwrap(),
            None => self.map.remove(&self.key).unwrap(),
        }
    }
}

fn refused(mesh: &Mesh, pod: &Pod, why: &str) {
    for (to, mapped) in families() {
        let how = Dial {
            mapped,
            ..Dial::default()
        };
        let seen = dial(&mesh.bed, pod, to, how);
        assert_eq!(seen.errno, libc::ECONNREFUSED, "{why} {to}: {seen:?}");
    }
}

/// Without it: a workload that must not bypass the mesh does as soon as its enrolment fails.
#[test]
fn closed_pod_is_refused_while_it_can_not_be_enrolled() {
    let mut mesh = Mesh::new("held");
    let pod = mesh.bed.pod("a").unwrap();
    let before = objects::network(&pod.netns);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    mesh.agent().want(&["a"]);
    Taken::new(&mesh, pod.v6.into());
    let enrol = |mesh: &Mesh, closed| mesh.agent().enrol("a", &pod.netns, closed);
    let error = enrol(&mesh, false).expect_err("refused");
    assert!(error.contains("belongs to"), "{error}");
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("node "));
    for _ in 0..2 {
        enrol(&mesh, true).expect_err("refused");
        refused(&mesh, &pod, "its first enrolment");
        // Its inbound rules hold without an agent.
        assert_eq!(objects::steers(&pod.netns), 1);
        assert_eq!(mesh.entries("LISTENERS"), 0);
    }
    // Its mode may change, and what else it does is none of our business.
    enrol(&mesh, false).expect_err("refused");
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("node "));
    enrol(&mesh, true).expect_err("refused");
    // A restart changes nothing.
    mesh.agent = None;
    mesh.start_agent(2, false).unwrap();
    mesh.agent().want(&["a"]);
    refused(&mesh, &pod, "the next agent");
    let taken = Taken::new(&mesh, pod.v6.into());
    enrol(&mesh, true).expect_err("refused");
    refused(&mesh, &pod, "its second enrolment");
    taken.give_back();
    let id = enrol(&mesh, true).expect("nothing stands in the way");
    mesh.agent().live(id).unwrap();
    for to in [vip4(), vip6()] {
        assert_eq!(connect(&mesh.bed, &pod, to).data, format!("proxy {to}"));
    }
    mesh.agent().release(id);
    assert_eq!(before, objects::network(&pod.netns));
    assert_eq!(mesh.entries("POD_BY_NETNS"), 0);
}

/// Without it: a workload of the agent before bypasses the mesh when its enrolment fails, or when
/// the grace of a start is over.
#[test]
fn adopted_closed_pod_stays_refused_until_the_model_does_not_want_it() {
    let mut mesh = Mesh::new("keep");
    let pod = mesh.bed.pod("a").unwrap();
    let before = objects::network(&pod.netns);
    let id = mesh.agent().enrol("a", &pod.netns, true).unwrap();
    mesh.agent().live(id).unwrap();
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    mesh.agent = None;
    mesh.start_agent(2, false).unwrap();
    mesh.agent().want(&["a"]);
    let taken = Taken::new(&mesh, pod.v6.into());
    let started = std::time::Instant::now();
    let over = wait_until(std::time::Duration::from_secs(15), || {
        mesh.agent().poll();
        mesh.agent()
            .enrol("a", &pod.netns, true)
            .expect_err("refused");
        refused(&mesh, &pod, "adopted");
        started.elapsed().as_secs() >= 11
    });
    assert!(over);
    mesh.agent().want(&[]);
    assert_eq!(mesh.agent().poll(), Vec::<u32>::new());
    assert_eq!(mesh.entries("POD_BY_NETNS"), 0);
    assert_eq!(before, objects::network(&pod.netns));
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("node "));
    taken.give_back();
}

/// Without it: changing one word of the configuration cuts every connection of the workload.
#[test]
fn failure_mode_changes_under_an_open_connection() {
    let mut mesh = Mesh::new("flip");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    mesh.agent().hold(true);
    let open = mesh
        .bed
        .in_netns(&pod, || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_mark(CAPTURE_MARK)?;
            socket.connect_timeout(&vip4().into(), LIMIT)?;
            Ok::<_, std::io::Error>(std::net::TcpStream::from(socket))
        })
        .unwrap()
        .unwrap();
    mesh.eventually("it is accepted", || mesh.agent().accepts().len() == 1);
    let fails = |mesh: &Mesh| {
        let map = Map::HashMap(MapData::from_pin(mesh.pin("POD_BY_ADDR")).unwrap());
        let map: HashMap<_, Addr, PodAddr> = map.try_into().unwrap();
        let all = map.iter().map(|entry| entry.unwrap().1.fail);
        all.collect::<Vec<_>>()
    };
    assert_eq!(fails(&mesh), [FAIL_OPEN; 2]);
    mesh.agent().failure(id, true);
    assert_eq!(fails(&mesh), [FAIL_CLOSED; 2]);
    // It is open still: the agent's answer has come, and its end has not.
    open.set_nonblocking(true).unwrap();
    let mut seen: Vec<u8> = Vec::new();
    mesh.eventually("its answer", || {
        let mut buffer = [0; 64];
        match std::io::Read::read(&mut &open, &mut buffer) {
            Ok(0) => panic!("cut"),
            Ok(count) => seen.extend(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        seen == b"proxy 10.96.0.10:80"
    });
    assert!(std::io::Read::read(&mut &open, &mut [0]).is_err(), "cut");
    end(&mut mesh, id, End::Hung);
    refused(&mesh, &pod, "closed now");
    mesh.agent().failure(id, false);
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("node "));
}
