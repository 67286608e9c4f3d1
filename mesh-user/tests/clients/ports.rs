//! The port space.

use std::time::{Duration, Instant};

use mesh_user::testbed::Pod;

use super::{
    matrix::job,
    process::{Client, Family, Job},
    styles::Style,
};
use crate::support::{Mesh, agent::Mode};

const CONNECTIONS: u16 = 40_000;

fn connections(pod: &Pod, number: u16) -> Job {
    Job {
        port: number,
        ..job(pod, Family::V4, Style::Many)
    }
}

/// Pitfall 10: 40,000 connections from one pod to one virtual address, one after the other, the
/// client the first to close. Both modes. Without it: after some 28,000 the ports are used up for a
/// minute, with EADDRNOTAVAIL.
#[test]
fn forty_thousand_connections_to_one_address_find_a_port() {
    for mode in [Mode::Mark, Mode::Loopback] {
        let mut mesh = Mesh::new("ports");
        mesh.agent().mode(mode);
        mesh.agent().hold(true);
        let (pod, _) = mesh.live_pod("a", false);
        mesh.proxied();
        let mut client = Client::start(&mesh.bed, &pod);
        let start = Instant::now();
        let seen = client.run(&connections(&pod, CONNECTIONS));
        let took = start.elapsed();
        println!("{mode:?}: {CONNECTIONS} connections in {took:.1?}");
        assert_eq!(seen.errno, 0, "{mode:?}: {}", seen.note);
        assert!(
            took < Duration::from_secs(55),
            "{took:?}: not a minute's ports"
        );
        mesh.eventually("flows end", || {
            mesh.entries("FLOWS") == 0 && mesh.entries("LOOP_FLOWS") == 0
        });
    }
}

/// With a range of 8,192 ports and 10,000 connections. Where somebody has switched the reuse off it
/// stays off, and the kernel's own limit is met, as without a mesh. Without it: the test above may
/// hold by chance, or a setting that was chosen is overwritten.
#[test]
fn reuse_of_ports_that_was_switched_off_stays_off() {
    const SYSCTL: &str = "/proc/sys/net/ipv4";
    for (before, during, errno) in [("0", "0", libc::EADDRNOTAVAIL), ("2", "1", 0)] {
        let mut mesh = Mesh::new("noreuse");
        mesh.agent().hold(true);
        mesh.proxied();
        let pod = mesh.bed.pod("a").expect("a pod");
        let set = move || {
            std::fs::write(format!("{SYSCTL}/tcp_tw_reuse"), before)?;
            std::fs::write(format!("{SYSCTL}/ip_local_port_range"), "32768 40959")
        };
        let set = mesh.bed.in_netns(&pod, set).expect("the namespace");
        set.expect("written");
        let id = mesh
            .agent()
            .enrol("a", &pod.netns, false)
            .expect("enrolled");
        mesh.agent().live(id).expect("live");
        let read = || std::fs::read_to_string(format!("{SYSCTL}/tcp_tw_reuse"));
        let read = mesh.bed.in_netns(&pod, read).expect("the namespace");
        assert_eq!(read.expect("read").trim(), during);
        let mut client = Client::start(&mesh.bed, &pod);
        let seen = client.run(&connections(&pod, 10_000));
        assert_eq!(seen.errno, errno, "{before}: {seen:?}");
    }
}
