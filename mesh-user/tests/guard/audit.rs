//! What somebody took away comes back, with an event that names it.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use mesh_common::maps::OUT_DENY;
use mesh_user::testbed::{Pod, Testbed};

use crate::support::{Mesh, agent::Mode, client::connect, serve_vips_on_node, vip4, vip6};

fn sh(bed: &Testbed, pod: &Pod, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdout(Stdio::null());
    let mut child = bed.spawn_in(pod, command).expect("sh");
    assert!(child.wait().expect("it ends").success(), "{line}");
}

fn captured(mesh: &Mesh, pod: &Pod) -> bool {
    [vip4(), vip6()].iter().all(|to| {
        let seen = connect(&mesh.bed, pod, *to);
        seen.data == format!("proxy {to}")
    })
}

/// Without it: `ip rule del` in a pod is the way past the mesh, for good and unseen.
#[test]
fn what_a_pod_deletes_in_its_namespace_is_put_back_and_told_once() {
    let mut mesh = Mesh::new("gaudit");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    assert_eq!(mesh.agent().audit(), Vec::<String>::new());
    for (deleted, found) in [
        ("ip rule del pref 150", "IPv4 rule 150"),
        ("ip -6 rule del pref 150", "IPv6 rule 150"),
        ("ip route flush table 1512", "IPv4 route in table 1512"),
        ("ip -6 route flush table 1512", "IPv6 route in table 1512"),
        (
            "ip route replace local default dev lo table 1512",
            "IPv4 route in table 1512",
        ),
        (
            "echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept",
            "tcp_fwmark_accept",
        ),
    ] {
        let repaired = mesh.count("repaired");
        sh(&mesh.bed, &pod, deleted);
        let told = mesh.agent().audit();
        assert_eq!(told, [format!("{found}: Repaired")], "{deleted}");
        assert_eq!(mesh.agent().audit(), Vec::<String>::new(), "{deleted}");
        assert!(captured(&mesh, &pod), "{deleted}");
        assert_eq!(mesh.count("repaired"), repaired + 1);
        let events = mesh.agent().events();
        let told = events.iter().filter(|reason| *reason == "repaired");
        assert_eq!(told.count(), 1, "{deleted}");
    }
    // Down takes the IPv6 route with it.
    sh(&mesh.bed, &pod, "ip link set lo down");
    let told = mesh.agent().audit();
    assert_eq!(
        told.first().map(String::as_str),
        Some("interface lo: Repaired")
    );
    assert!(captured(&mesh, &pod), "{told:?}");
}

/// The known gap: both looks see the same addresses, and the route of the first is gone.
#[test]
fn address_removed_and_added_again_between_two_looks_costs_no_route() {
    let mut mesh = Mesh::new("gaddr");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let address = format!("{}/16 dev eth0", pod.v4);
    let line = format!(
        "ip addr del {address} && ip addr add {address} && ip route add default via 10.77.0.1"
    );
    sh(&mesh.bed, &pod, &line);
    mesh.agent().poll();
    mesh.agent().audit();
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!(seen.data, format!("proxy {}", vip4()), "{seen:?}");
}

fn links(mesh: &Mesh, name: &str) -> Vec<std::path::PathBuf> {
    let dir = mesh.pin("links");
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .expect("links")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let file = path.file_name().and_then(|file| file.to_str());
            file.is_some_and(|file| file.starts_with(name))
        })
        .collect();
    found.sort();
    found
}

fn detach(pin: &Path) {
    let status = Command::new("bpftool")
        .args(["link", "detach", "pinned", &pin.display().to_string()])
        .status();
    assert!(status.expect("bpftool").success(), "{}", pin.display());
}

/// Without it: a link that is gone stays gone until the next start.
#[test]
fn links_that_were_removed_or_detached_are_attached_again() {
    let mut mesh = Mesh::new("glinks");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    mesh.proxied();
    assert_eq!(mesh.agent().audit(), Vec::<String>::new());
    for hook in [
        "steer-",
        "egress_guard-",
        "connect4-",
        "connect6-",
        "flow_ops-",
        "mark_guard-",
        "getpeername4-",
    ] {
        for remove in [true, false] {
            let pins = links(&mesh, hook);
            // flow_ops stands at the agent's cgroup too.
            let pin = pins.first().unwrap_or_else(|| panic!("{hook}"));
            // A cgroup link and a namespace link can be detached by force, a tcx link too.
            if remove {
                std::fs::remove_file(pin).expect("a pin");
            } else {
                detach(pin);
            }
            let told = mesh.agent().audit();
            assert_eq!(told.len(), 1, "{hook} {remove}: {told:?}");
            assert!(told[0].ends_with(": Repaired"), "{told:?}");
            assert_eq!(links(&mesh, hook), pins, "{hook}");
            assert_eq!(mesh.agent().audit(), Vec::<String>::new(), "{hook}");
            assert!(captured(&mesh, &pod), "{hook} {remove}");
        }
    }
}

/// Without it: what is attached while a workload or a rule needs it is gone for good once somebody
/// took it away, and so is `lo` in the mode that needs nothing else.
#[test]
fn hooks_that_are_attached_on_demand_are_attached_again() {
    let mut mesh = Mesh::new("gdemand");
    mesh.agent().mode(Mode::Loopback);
    let (pod, _) = mesh.live_pod("a", false);
    let denied = ("203.0.113.9".parse().expect("an address"), 32, 53, OUT_DENY);
    mesh.agent().datagrams(&[denied]);
    mesh.proxied();
    assert_eq!(mesh.agent().audit(), Vec::<String>::new());
    let hooks = [
        "getsockname4-",
        "getsockname6-",
        "original_dst-",
        "sendmsg4-",
        "sendmsg6-",
    ];
    for hook in hooks {
        for remove in [true, false] {
            let pins = links(&mesh, hook);
            let pin = pins.first().unwrap_or_else(|| panic!("{hook}"));
            if remove {
                std::fs::remove_file(pin).expect("a pin");
            } else {
                detach(pin);
            }
            let told = mesh.agent().audit();
            assert_eq!(told.len(), 1, "{hook} {remove}: {told:?}");
            assert!(told[0].ends_with(": Repaired"), "{told:?}");
            assert_eq!(links(&mesh, hook), pins, "{hook}");
            assert_eq!(mesh.agent().audit(), Vec::<String>::new(), "{hook}");
        }
    }
    sh(&mesh.bed, &pod, "ip link set lo down");
    assert_eq!(mesh.agent().audit(), ["interface lo: Repaired"]);
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!(seen.data, format!("proxy {}", vip4()), "{seen:?}");
}

/// Without it: a pod whose path can't be repaired is cut off, or goes past the mesh that it must not
/// bypass.
#[test]
fn failure_mode_holds_while_a_path_cannot_be_repaired() {
    for (closed, expected) in [(true, "refused"), (false, "node")] {
        let mut mesh = Mesh::new("gbroken");
        let (pod, _) = mesh.live_pod("a", closed);
        let routed =
            [vip4(), vip6()].map(|vip| crate::support::agent::Service::proxy(vip).routable());
        mesh.agent().table(&routed, &[]).expect("table");
        serve_vips_on_node(&mesh.bed);
        // Ours is there, and all that it says is overruled.
        sh(&mesh.bed, &pod, "ip rule add pref 100 lookup main");
        let told = mesh.agent().audit();
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], "IPv4 rule 100: Foreign");
        assert!(told[1].starts_with("IPv4 route in table 1512: Failed"));
        assert_eq!(mesh.agent().audit(), Vec::<String>::new(), "told once");
        let seen = connect(&mesh.bed, &pod, vip4());
        if closed {
            assert_eq!(seen.errno, libc::ECONNREFUSED, "{expected}: {seen:?}");
            assert_eq!(mesh.count("refuse_agent_gone"), 1);
        } else {
            assert!(seen.data.starts_with(expected), "{seen:?}");
            assert_eq!(mesh.count("bypass_agent_gone"), 1);
        }
        let events = mesh.agent().events();
        assert!(events.contains(&"repair_failed".to_owned()), "{events:?}");
        assert!(events.contains(&"interference".to_owned()), "{events:?}");
        // The rule is gone: at the next look it is captured again.
        sh(&mesh.bed, &pod, "ip rule del pref 100");
        assert_eq!(mesh.agent().audit(), Vec::<String>::new());
        assert!(captured(&mesh, &pod));
    }
}

/// Without it: on a busy node some workloads are never looked at.
#[test]
fn every_workload_has_its_turn() {
    let mut mesh = Mesh::new("gturn");
    let pods: Vec<Pod> = ["a", "b", "c"]
        .iter()
        .map(|name| mesh.live_pod(name, false).0)
        .collect();
    for pod in &pods {
        sh(&mesh.bed, pod, "ip rule del pref 150");
    }
    assert_eq!(mesh.agent().audit().len(), pods.len());
    let to: SocketAddr = vip4();
    mesh.proxied();
    for pod in &pods {
        assert_eq!(connect(&mesh.bed, pod, to).data, format!("proxy {to}"));
    }
}
