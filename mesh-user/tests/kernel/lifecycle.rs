//! Restart, release, cleanup, and namespaces that come and go.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mesh_user::{kernel::cleanup::cleanup, testbed::Pod};

use crate::support::{
    Mesh, PORT, VIP4,
    client::{connect, python},
    objects::{self, ids},
    serve_vips_on_node, vip4, vip6,
};

const HOOKS: [&str; 5] = [
    "inet4_connect",
    "inet6_connect",
    "inet4_getpeername",
    "inet6_getpeername",
    "sock_ops",
];

fn ip(mesh: &Mesh, pod: &Pod, line: &str) {
    let mut command = Command::new("ip");
    command.args(line.split(' '));
    let status = mesh.bed.spawn_in(pod, command).unwrap().wait().unwrap();
    assert!(status.success(), "ip {line}");
}

/// Without it: each restart leaves one more program at every hook (kmesh#1346), or a hole.
#[test]
fn restarted_agent_adopts_everything_and_one_program_stands_at_each_hook() {
    let mut mesh = Mesh::new("adopt");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    let links = |mesh: &Mesh| -> BTreeMap<String, (u32, u32)> {
        let rows = mesh.view().progs();
        rows.into_iter()
            .map(|row| (row.pin, (row.link_id, row.prog_id)))
            .collect()
    };
    let before = links(&mesh);
    // Nine hooks at the pods' cgroup, flow_ops at the agent's too, steer in the namespace.
    assert_eq!(before.len(), 11, "{before:?}");
    for round in 0..3 {
        mesh.agent = None;
        assert_eq!(mesh.view().redirects()[0].state, "agent-gone");
        assert_eq!(
            mesh.view().workloads()[0].workload,
            "a",
            "the name outlives the agent"
        );
        mesh.start_agent(2, false).unwrap();
        assert_eq!(
            mesh.agent().enrol("a", &pod.netns, false),
            Ok(id),
            "the same number"
        );
        let after = links(&mesh);
        for (pin, (link, program)) in &before {
            assert_eq!(after[pin].0, *link, "{pin} is the same link");
            assert_ne!(after[pin].1, *program, "{pin} has the new program");
        }
        assert_eq!(after.len(), before.len());
        for attach in HOOKS {
            let count = objects::at_cgroup(&mesh.bed.pods_cgroup(), attach);
            assert_eq!(count, 1, "{attach} in round {round}");
        }
        assert_eq!(objects::steers(&pod.netns), 1);
        // Live already, with the services of the agent before.
        let seen = connect(&mesh.bed, &pod, vip4());
        assert!(seen.data.starts_with("proxy "), "{seen:?}");
        assert_eq!(mesh.entries("LISTENERS"), 4);
        assert_eq!(
            (mesh.entries("POD_BY_NETNS"), mesh.entries("POD_BY_ADDR")),
            (1, 2)
        );
    }
}

/// Without it: a workload that must be closed is open while the agent restarts.
#[test]
fn closed_pod_never_bypasses_during_a_restart() {
    let mut mesh = Mesh::new("gap");
    let (pod, _) = mesh.live_pod("a", true);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    let script = r"
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
seen = {}
while time.monotonic() < end:
    try:
        s = socket.create_connection((sys.argv[1], 80), 2)
        what = s.recv(100).decode().split()[0]
        s.close()
    except OSError as e:
        what = type(e).__name__
    except IndexError:
        what = 'cut'
    seen[what] = seen.get(what, 0) + 1
print(sorted(seen.items()))
";
    let bed = &mesh.bed;
    let mut command = Command::new("python3");
    command
        .args(["-c", script, &VIP4.to_string(), "3"])
        .stdout(Stdio::piped());
    let client = bed.spawn_in(&pod, command).unwrap();
    mesh.eventually("the client is served", || {
        !mesh.agent().accepts().is_empty()
    });
    mesh.agent = None;
    mesh.start_agent(2, false).unwrap();
    mesh.agent().enrol("a", &pod.netns, true).unwrap();
    mesh.eventually("it is served again", || !mesh.agent().accepts().is_empty());
    let seen = String::from_utf8(client.wait_with_output().unwrap().stdout).unwrap();
    assert!(seen.contains("'proxy'"), "{seen}");
    assert!(!seen.contains("'node'"), "bypassed: {seen}");
}

/// Without it: an address that changed while no agent ran is not captured, or stays the workload's
/// for ever.
#[test]
fn addresses_that_changed_while_no_agent_ran_are_right_after_the_restart() {
    let mut mesh = Mesh::new("moved");
    let (pod, id) = mesh.live_pod("a", true);
    mesh.proxied();
    mesh.agent = None;
    ip(&mesh, &pod, "addr add 10.78.0.1/16 dev eth0");
    ip(&mesh, &pod, &format!("addr del {}/16 dev eth0", pod.v4));
    mesh.start_agent(2, false).unwrap();
    assert_eq!(mesh.agent().enrol("a", &pod.netns, true), Ok(id));
    let addresses = mesh.view().workloads()[0].addresses.clone();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert!(addresses.contains(&[10, 78, 0, 1].into()) && addresses.contains(&pod.v6.into()));
    for to in [vip4(), vip6()] {
        let seen = connect(&mesh.bed, &pod, to);
        assert_eq!(seen.data, format!("proxy {to}"), "{seen:?}");
    }
}

/// Without it: what nobody wants any more stays captured for ever.
#[test]
fn adopted_workload_whose_namespace_is_gone_is_removed_at_start() {
    let mut mesh = Mesh::new("orphan");
    let (gone, _) = mesh.live_pod("gone", false);
    let (kept, kept_id) = mesh.live_pod("kept", false);
    mesh.proxied();
    mesh.agent = None;
    mesh.bed.remove(&gone).unwrap();
    mesh.start_agent(2, false).unwrap();
    let rows = mesh.view().workloads();
    assert_eq!(
        rows.iter().map(|row| row.pod_id).collect::<Vec<_>>(),
        [kept_id]
    );
    assert_eq!(
        mesh.view()
            .progs()
            .iter()
            .filter(|row| row.program == "steer")
            .count(),
        1
    );
    assert_eq!(mesh.agent().enrol("kept", &kept.netns, false), Ok(kept_id));
    // A number is never given twice.
    let fresh = mesh.bed.pod("fresh").unwrap();
    assert!(mesh.agent().enrol("fresh", &fresh.netns, false).unwrap() > kept_id);
}

/// Without it: a workload that the new configuration does not name stays captured or refused until
/// somebody cleans up by hand.
#[test]
fn adopted_workload_that_nobody_enrols_expires() {
    let mut mesh = Mesh::new("expire");
    let pod = mesh.bed.pod("a").unwrap();
    let before = objects::network(&pod.netns);
    let id = mesh.agent().enrol("a", &pod.netns, true).unwrap();
    mesh.agent().live(id).unwrap();
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    mesh.agent = None;
    mesh.start_agent(2, false).unwrap();
    mesh.agent().want(&["another"]);
    let started = Instant::now();
    // Until then it is what it was: closed, and refused.
    assert_eq!(connect(&mesh.bed, &pod, vip4()).errno, libc::ECONNREFUSED);
    let gone = mesh_user::testbed::wait_until(Duration::from_secs(15), || {
        mesh.agent().poll();
        mesh.view().workloads().is_empty()
    });
    assert!(gone, "it is still there after {:?}", started.elapsed());
    assert!(
        started.elapsed() > Duration::from_secs(8),
        "the first snapshot had no time to name it"
    );
    assert_eq!(before, objects::network(&pod.netns));
    assert_eq!(objects::steers(&pod.netns), 0);
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("node "));
}

/// Without it: removing the mesh leaves programs, rules or routes that nobody can explain later.
#[test]
fn cleanup_leaves_an_empty_difference() {
    let mut mesh = Mesh::without_agent("clean");
    let (a, b) = (mesh.bed.pod("a").unwrap(), mesh.bed.pod("b").unwrap());
    let state = |pod: &Pod| (objects::network(&pod.netns), sysctl(&pod.netns));
    let before = [state(&a), state(&b)];
    mesh.start_agent(2, false).unwrap();
    for (name, pod) in [("a", &a), ("b", &b)] {
        let id = mesh.agent().enrol(name, &pod.netns, false).unwrap();
        mesh.agent().live(id).unwrap();
    }
    mesh.proxied();
    connect(&mesh.bed, &a, vip4());
    assert_ne!(before, [state(&a), state(&b)], "it does change something");
    let had = ids(&mesh.instance);
    assert!(had.len() >= 6 + 16 + 8, "{had:?}");
    // A live agent keeps its instance.
    let refused = cleanup(&mesh.instance, false, false);
    assert!(refused.removed.is_empty() && refused.failed[0].contains("is held by process"));
    mesh.agent = None;
    let plan = cleanup(&mesh.instance, true, false);
    assert_eq!(plan.failed, Vec::<String>::new());
    assert_eq!(ids(&mesh.instance), had, "a dry run changes nothing");
    let done = cleanup(&mesh.instance, false, false);
    assert_eq!(done.failed, Vec::<String>::new());
    for word in [
        "link connect4",
        "link steer",
        "IPv4 rule",
        "IPv6 route",
        "cgroup",
        "FLOWS",
    ] {
        assert!(
            done.removed.iter().any(|what| what.contains(word)),
            "{word}: {done:?}"
        );
    }
    assert_eq!(before, [state(&a), state(&b)]);
    mesh.eventually("all objects are freed", || {
        had.iter().all(|id| objects::is_gone(id))
    });
    assert!(!mesh.instance.run_dir().exists());
    assert_eq!(
        cleanup(&mesh.instance, false, false),
        Default::default(),
        "nothing is left"
    );
}

fn sysctl(netns: &std::path::Path) -> String {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["cat", "/proc/sys/net/ipv4/tcp_fwmark_accept"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Without it: records that are lost make a cleanup that is not one.
#[test]
fn cleanup_without_records_finds_namespaces_by_their_links() {
    let mut mesh = Mesh::without_agent("lost");
    let pod = mesh.bed.pod("a").unwrap();
    let before = objects::network(&pod.netns);
    mesh.start_agent(1, false).unwrap();
    let id = mesh.agent().enrol("a", &pod.netns, false).unwrap();
    mesh.agent().live(id).unwrap();
    mesh.agent = None;
    std::fs::remove_file(mesh.instance.run_dir().join("workloads.json")).unwrap();
    assert_eq!(mesh.view().workloads()[0].workload, "?");
    assert_eq!(
        cleanup(&mesh.instance, false, false).failed,
        Vec::<String>::new()
    );
    assert_eq!(before, objects::network(&pod.netns));
}

/// Without it: one workload's release disturbs another, or leaves traces.
#[test]
fn released_workload_leaves_nothing_and_others_stay() {
    let mut mesh = Mesh::new("release");
    let pod = mesh.bed.pod("a").unwrap();
    let before = objects::network(&pod.netns);
    let (other, _) = mesh.live_pod("b", false);
    mesh.proxied();
    let id = mesh.agent().enrol("a", &pod.netns, false).unwrap();
    mesh.agent().live(id).unwrap();
    mesh.agent().release(id);
    mesh.agent().release(id);
    assert_eq!(before, objects::network(&pod.netns));
    assert_eq!(objects::steers(&pod.netns), 0);
    let rows = mesh.view().workloads();
    assert_eq!(rows.len(), 1);
    assert_eq!(mesh.entries("LISTENERS"), 4);
    assert!(
        connect(&mesh.bed, &other, vip4())
            .data
            .starts_with("proxy ")
    );
    assert!(
        mesh.agent().enrol("a", &pod.netns, false).is_ok(),
        "it may come back"
    );
}

/// Without it: the agent keeps dead pods' namespaces, and with them their addresses, for ever.
#[test]
fn namespace_of_a_deleted_pod_is_gone_within_two_seconds() {
    let mut mesh = Mesh::new("gone");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    mesh.agent().hold(true);
    let script = "import socket, sys, time\n\
                  s = socket.create_connection((sys.argv[1], 80), 5)\n\
                  time.sleep(600)";
    let mut command = Command::new("python3");
    command.args(["-c", script, &VIP4.to_string()]);
    let mut client = mesh.bed.spawn_in(&pod, command).unwrap();
    mesh.eventually("it is connected", || mesh.agent().accepts().len() == 1);
    // The kernel destroys a pod's veth with its namespace, and the node's end with it.
    assert!(veth_stands(&mesh));
    assert_eq!(
        mesh.agent().poll(),
        Vec::<u32>::new(),
        "nothing is gone yet"
    );
    mesh.bed.remove(&pod).unwrap();
    let removed = Instant::now();
    let _ = client.wait();
    assert!(
        veth_stands(&mesh),
        "the agent's sockets hold the namespace until it looks"
    );
    mesh.eventually("the agent notices", || mesh.agent().poll() == [id]);
    mesh.eventually("the namespace is gone", || !veth_stands(&mesh));
    assert!(
        removed.elapsed() < Duration::from_secs(2),
        "{:?}",
        removed.elapsed()
    );
    assert!(mesh.view().workloads().is_empty());
    assert_eq!(
        (mesh.entries("LISTENERS"), mesh.entries("POD_BY_ADDR")),
        (0, 0)
    );
    mesh.agent().release(id);
}

/// Without it: a workload named by a process is another one once the number is given again.
#[test]
fn workload_named_by_a_process_goes_with_the_process() {
    let mut mesh = Mesh::new("pid");
    let pod = mesh.bed.pod("a").unwrap();
    mesh.proxied();
    let mut command = Command::new("sleep");
    command.arg("600");
    let mut process = mesh.bed.spawn_in(&pod, command).unwrap();
    let place = format!("pid:{}", process.id());
    let id = mesh.agent().enrol("a", place.as_ref(), false).unwrap();
    mesh.agent().live(id).unwrap();
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
    assert_eq!(mesh.agent().poll(), Vec::<u32>::new());
    process.kill().unwrap();
    // Not reaped yet: a zombie is nobody's namespace either.
    mesh.eventually("the agent notices", || mesh.agent().poll() == [id]);
    process.wait().unwrap();
    assert_eq!(
        objects::steers(&pod.netns),
        0,
        "the namespace is given back"
    );
    let error = mesh
        .agent()
        .enrol("a", place.as_ref(), false)
        .expect_err("refused");
    assert!(error.contains("gone or never was"), "{error}");
}

fn veth_stands(mesh: &Mesh) -> bool {
    let links = objects::links(&mesh.bed.node_netns());
    links.iter().any(|name| name == "v1")
}

/// Without it: an address that a pod gets later is not captured, or one that it lost stays its.
#[test]
fn address_changes_are_followed() {
    let mut mesh = Mesh::new("follow");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    let addresses = |mesh: &Mesh| mesh.view().workloads()[0].addresses.clone();
    ip(&mesh, &pod, "addr add 10.77.200.1/16 dev eth0");
    mesh.eventually("the new address is known", || {
        mesh.agent().poll();
        addresses(&mesh).contains(&[10, 77, 200, 1].into())
    });
    let how = crate::support::client::Dial {
        bind: "10.77.200.1",
        ..Default::default()
    };
    let seen = crate::support::client::dial(&mesh.bed, &pod, vip4(), how);
    assert_eq!(
        (seen.data.as_str(), seen.sock.as_str()),
        ("proxy 10.96.0.10:80", "10.77.200.1")
    );
    // The first address goes: connections leave with the one that is left.
    ip(&mesh, &pod, "addr del 10.77.200.1/16 dev eth0");
    ip(&mesh, &pod, "addr add 10.78.0.1/16 dev eth0");
    ip(&mesh, &pod, &format!("addr del {}/16 dev eth0", pod.v4));
    mesh.eventually("the old address is given back", || {
        mesh.agent().poll();
        !addresses(&mesh).contains(&pod.v4.into())
    });
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!(
        (seen.data.as_str(), seen.sock.as_str()),
        ("proxy 10.96.0.10:80", "10.78.0.1")
    );
    assert!(
        connect(&mesh.bed, &pod, vip6()).data.starts_with("proxy "),
        "workload {id}"
    );
}

/// Without it: a cluster of one family is not served.
#[test]
fn pod_with_one_family_only_works() {
    let mut mesh = Mesh::new("family");
    let (v4, v6) = (mesh.bed.pod("v4").unwrap(), mesh.bed.pod("v6").unwrap());
    mesh.proxied();
    ip(&mesh, &v4, "-6 addr flush dev eth0");
    ip(&mesh, &v6, "-4 addr flush dev eth0");
    for (name, pod, to) in [("v4", &v4, vip4()), ("v6", &v6, vip6())] {
        let id = mesh.agent().enrol(name, &pod.netns, false).unwrap();
        mesh.agent().live(id).unwrap();
        assert_eq!(connect(&mesh.bed, pod, to).data, format!("proxy {to}"));
    }
    // The other family of the same kernel: switched off altogether.
    let off = mesh.bed.pod("off").unwrap();
    let script = "open('/proc/sys/net/ipv6/conf/all/disable_ipv6', 'w').write('1')";
    python(&mesh.bed, &off, script, &[]);
    let id = mesh.agent().enrol("off", &off.netns, false).unwrap();
    mesh.agent().live(id).unwrap();
    assert_eq!(
        connect(&mesh.bed, &off, vip4()).data,
        format!("proxy {VIP4}:{PORT}")
    );
}

/// Without it: a pod whose IPv6 address is tentative when it is enrolled bypasses the mesh by IPv6
/// from the moment the address may be used to the moment we look.
#[test]
fn family_without_an_address_yet_is_refused_never_bypassed() {
    let mut mesh = Mesh::new("late");
    let pod = mesh.bed.pod("a").unwrap();
    let empty = objects::network(&pod.netns);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    let v6 = pod.v6;
    // As a CNI leaves it: there, and tentative for many seconds.
    let script = "open('/proc/sys/net/ipv6/conf/eth0/accept_dad', 'w').write('1')\n\
                  open('/proc/sys/net/ipv6/conf/eth0/dad_transmits', 'w').write('60')";
    python(&mesh.bed, &pod, script, &[]);
    ip(&mesh, &pod, &format!("-6 addr del {v6}/64 dev eth0"));
    ip(&mesh, &pod, &format!("-6 addr add {v6}/64 dev eth0"));
    let id = mesh.agent().enrol("a", &pod.netns, false).unwrap();
    mesh.agent().live(id).unwrap();
    assert_eq!(mesh.view().workloads()[0].addresses.len(), 1, "tentative");
    assert_eq!(unreachable(&pod), 1);
    // It may be used, and nobody has looked yet.
    ip(&mesh, &pod, &format!("-6 addr del {v6}/64 dev eth0"));
    ip(&mesh, &pod, &format!("-6 addr add {v6}/64 dev eth0 nodad"));
    let seen = connect(&mesh.bed, &pod, vip6());
    assert_eq!(seen.errno, libc::EHOSTUNREACH, "{seen:?}");
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
    mesh.eventually("the address is followed", || {
        mesh.agent().poll();
        connect(&mesh.bed, &pod, vip6()).data.starts_with("proxy ")
    });
    assert_eq!(unreachable(&pod), 0, "replaced");
    // IPv4 goes: its route with it, but not to the next table.
    ip(&mesh, &pod, &format!("addr del {}/16 dev eth0", pod.v4));
    mesh.eventually("the loss is followed", || {
        mesh.agent().poll();
        unreachable(&pod) == 1
    });
    mesh.agent().release(id);
    assert_eq!(unreachable(&pod), 0, "released");
    let ours = |line: &String| line.contains("1512");
    assert!(!objects::network(&pod.netns).iter().any(ours));
    assert!(!empty.iter().any(ours));
}

/// Routes that refuse in our table.
fn unreachable(pod: &Pod) -> usize {
    objects::network(&pod.netns)
        .iter()
        .filter(|line| line.contains("1512") && line.contains("unreachable"))
        .count()
}
