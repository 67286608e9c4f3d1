//! Next to others: a platform's socket load balancer, another instance, version 1 cgroups.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    process::Command,
};

use mesh_user::{
    kernel::{Instance, cleanup::cleanup},
    testbed::Pod,
};

use crate::support::{
    Mesh, PORT, VIP4,
    agent::{Agent, Service},
    client::{connect, python},
    foreign::LoadBalancer,
    objects, serve, serve_in, vip4,
};

fn v4(addr: SocketAddr) -> SocketAddrV4 {
    match addr {
        SocketAddr::V4(addr) => addr,
        SocketAddr::V6(_) => panic!("{addr} is IPv6"),
    }
}

/// A load balancer where a CNI attaches its own: above the pods.
fn balance(mesh: &Mesh, to: SocketAddr) -> LoadBalancer {
    let pods = mesh.bed.pods_cgroup();
    LoadBalancer::at(pods.parent().expect("the bed's"), v4(vip4()), v4(to))
}

/// Without it: behind a CNI with a socket load balancer, the proxy sees endpoints only and can't
/// tell which service was asked for.
#[test]
fn virtual_address_is_known_behind_a_foreign_socket_load_balancer() {
    let mut mesh = Mesh::new("lb");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    // An endpoint outside of any workload: on the node.
    let node = Ipv4Addr::new(10, 77, 0, 1);
    let listener = mesh
        .bed
        .in_node(move || std::net::TcpListener::bind((node, 0)).expect("bind"))
        .unwrap();
    let to = listener.local_addr().unwrap();
    serve(listener, "node");
    let _balancer = balance(&mesh, to);
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!(seen.data, format!("proxy {to}"), "{seen:?}");
    let accept = mesh.agent().accepts().remove(0);
    assert_eq!(
        (accept.pod_id, accept.asked, accept.local),
        (id, Some(vip4()), to)
    );
    assert_eq!((mesh.count("captured"), mesh.count("steer_out")), (1, 3));
}

/// Without it: a connection that the load balancer sent to a workload of this node is delivered in
/// the client's own namespace, where nobody listens: stranded.
#[test]
fn endpoint_on_the_same_node_behind_a_foreign_load_balancer_is_captured_once() {
    let mut mesh = Mesh::new("near");
    let (a, id) = mesh.live_pod("a", false);
    let (b, _) = mesh.live_pod("b", false);
    mesh.proxied();
    let port = serve_in(&mesh.bed, &b, "b");
    let to = SocketAddr::new(b.v4.into(), port);
    let _balancer = balance(&mesh, to);
    mesh.agent().dial_back(Some(to));
    let seen = connect(&mesh.bed, &a, vip4());
    assert_eq!(seen.data, format!("b {}", a.v4), "served, from a's address");
    let accepts = mesh.agent().accepts();
    assert_eq!(accepts.len(), 1, "once: {accepts:?}");
    assert_eq!(
        (accepts[0].pod_id, accepts[0].asked, accepts[0].local),
        (id, Some(vip4()), to)
    );
    // The agent's dial arrives at b as what comes in.
    assert_eq!(mesh.count("steer_pass_in"), 1);
    // An application that listens on the same port in a: never given a connection meant for b.
    let decoy = mesh
        .bed
        .in_netns(&a, move || {
            std::net::TcpListener::bind(("0.0.0.0", port)).expect("bind")
        })
        .unwrap();
    serve(decoy, "decoy");
    let seen = connect(&mesh.bed, &a, vip4());
    assert_eq!(seen.data, format!("b {}", a.v4));
}

/// The named limit (docs/decisions/0008): a workload that the load balancer sends to itself is let
/// through to itself, and counted.
#[test]
fn workload_that_a_foreign_load_balancer_sends_to_itself_passes_and_is_counted() {
    let mut mesh = Mesh::new("self");
    let (a, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let port = serve_in(&mesh.bed, &a, "self");
    let _balancer = balance(&mesh, SocketAddr::new(a.v4.into(), port));
    let seen = connect(&mesh.bed, &a, vip4());
    assert_eq!(seen.data, format!("self {}", a.v4));
    assert!(mesh.agent().accepts().is_empty());
    assert_eq!(
        (mesh.count("captured"), mesh.count("steer_pass_in")),
        (1, 1)
    );
}

/// Without it: what a workload sends to an address that another one takes without our knowing (an
/// AnyIP range) is given to its own listener in the wrong namespace, and never completes.
#[test]
fn workload_reaches_addresses_of_another_that_are_not_registered() {
    let mut mesh = Mesh::new("anyip");
    let (a, _) = mesh.live_pod("a", false);
    let (b, _) = mesh.live_pod("b", false);
    mesh.proxied();
    let port = serve_in(&mesh.bed, &a, "a");
    let mut command = Command::new("ip");
    command.args(["route", "add", "local", "10.77.240.0/24", "dev", "lo"]);
    let status = mesh.bed.spawn_in(&a, command).unwrap().wait().unwrap();
    assert!(status.success());
    let seen = connect(&mesh.bed, &b, ([10, 77, 240, 5], port).into());
    assert_eq!(seen.data, format!("a {}", b.v4), "{seen:?}");
    assert!(mesh.agent().accepts().is_empty());
    assert!(connect(&mesh.bed, &b, vip4()).data.starts_with("proxy "));
}

/// A second instance on the same bed, cleaned up whatever happens.
struct Second {
    instance: Instance,
    agent: Option<Agent>,
}

impl Second {
    fn start(mesh: &Mesh) -> Self {
        let instance = Instance::new(&format!("{}-2", mesh.instance.name())).unwrap();
        let agent = Agent::spawn(&mesh.bed);
        agent
            .start(&instance, &[mesh.bed.pods_cgroup()], 1, false)
            .expect("two instances may run");
        Self {
            instance,
            agent: Some(agent),
        }
    }

    fn enrol(&self, pod: &Pod) -> Result<u32, String> {
        let agent = self.agent.as_ref().expect("it runs");
        agent.enrol("a", &pod.netns, false)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.agent = None;
        cleanup(&self.instance, false, true);
    }
}

/// Without it: two instances steer one namespace by the same rule, mark and table, and the one
/// that leaves first takes the other's route with it.
#[test]
fn namespace_of_another_instance_is_refused_by_its_name() {
    let mut mesh = Mesh::new("inst");
    let (a, _) = mesh.live_pod("a", false);
    let b = mesh.bed.pod("b").unwrap();
    mesh.proxied();
    let second = Second::start(&mesh);
    let before = objects::network(&a.netns);
    let name = mesh.instance.name().to_owned();
    let refused = |what: &str| {
        let error = second.enrol(&a).expect_err(what);
        for part in [
            format!("belongs to instance {name} "),
            "mesh cleanup".into(),
        ] {
            assert!(error.contains(&part), "{what}: {error}");
        }
        assert_eq!(before, objects::network(&a.netns), "{what}");
        assert_eq!(objects::steers(&a.netns), 1, "{what}");
    };
    refused("a live agent's");
    assert!(connect(&mesh.bed, &a, vip4()).data.starts_with("proxy "));
    second.enrol(&b).expect("another namespace is free");
    // Dead, its links still decide what becomes of the workload.
    mesh.agent = None;
    refused("a dead agent's");
    // Without any trace but the record: it is about to attach, or its pins were removed by hand.
    let records = mesh.instance.run_dir().join("workloads.json");
    let kept = std::fs::read(&records).unwrap();
    assert_eq!(
        cleanup(&mesh.instance, false, true).failed,
        Vec::<String>::new()
    );
    std::fs::create_dir_all(mesh.instance.run_dir()).unwrap();
    std::fs::write(&records, kept).unwrap();
    let error = second.enrol(&a).expect_err("a record");
    assert!(
        error.contains(&format!("belongs to instance {name} (its records")),
        "{error}"
    );
    std::fs::remove_dir_all(mesh.instance.run_dir()).unwrap();
    second.enrol(&a).expect("nobody has it any more");
}

/// Without it: of two instances that enrol a namespace at the same time, the one that gives way takes
/// the other's rule and route with it, and captured connections bypass the mesh.
#[test]
fn instances_that_race_for_a_namespace_leave_it_whole() {
    let mut mesh = Mesh::new("race");
    mesh.proxied();
    let second = Second::start(&mesh);
    let table = [Service::proxy(vip4())];
    let other = second.agent.as_ref().expect("it runs");
    other.table(&table, &[]).unwrap();
    let pod = mesh.bed.pod("a").unwrap();
    let before = objects::network(&pod.netns);
    let mut lost = 0;
    for round in 0..60 {
        let first = mesh.agent();
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| first.enrol("a", &pod.netns, false));
            let two = second.enrol(&pod);
            (one.join().unwrap(), two)
        });
        let winners = [(first, &one), (other, &two)];
        let mut won = winners.iter().filter_map(|(agent, id)| {
            let id = id.as_ref().ok()?;
            Some((*agent, *id))
        });
        if let Some((agent, id)) = won.next() {
            assert!(won.next().is_none(), "round {round}: both have it");
            agent.live(id).unwrap();
            let seen = connect(&mesh.bed, &pod, vip4());
            assert_eq!(seen.data, format!("proxy {VIP4}:{PORT}"), "round {round}");
            agent.release(id);
        } else {
            lost += 1;
        }
        assert_eq!(before, objects::network(&pod.netns), "round {round}");
        assert_eq!(objects::steers(&pod.netns), 0, "round {round}");
    }
    println!("nobody won {lost} rounds");
}

/// Without it: on machines with version 1 cgroups, an application in a net_cls group loses its
/// version 2 cgroup, and with it the hooks (cilium#14951).
#[test]
fn application_in_a_net_cls_cgroup_is_captured() {
    let mut mesh = Mesh::new("hybrid");
    let (a, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let script = r"
import os, socket, subprocess, sys
libc = __import__('ctypes').CDLL(None)
assert libc.unshare(0x20000) == 0
subprocess.run(['mount', '--make-rprivate', '/'], check=True)
subprocess.run(['mount', '-t', 'tmpfs', 'none', '/mnt'], check=True)
os.mkdir('/mnt/v1')
subprocess.run(['mount', '-t', 'cgroup', '-o', 'net_cls', 'none', '/mnt/v1'], check=True)
group = '/mnt/v1/' + sys.argv[2]
os.mkdir(group)
def put(path, text):
    with open(path, 'w') as f:
        f.write(text)
try:
    put(group + '/net_cls.classid', '0x100001')
    put(group + '/cgroup.procs', str(os.getpid()))
    s = socket.create_connection((sys.argv[1], 80), 5)
    print(s.recv(100).decode())
finally:
    put('/mnt/v1/cgroup.procs', str(os.getpid()))
    os.rmdir(group)
";
    let name = mesh.instance.name().to_owned();
    let out = python(&mesh.bed, &a, script, &[&VIP4.to_string(), &name]);
    assert_eq!(out, format!("proxy {VIP4}:{PORT}\n"));
}
