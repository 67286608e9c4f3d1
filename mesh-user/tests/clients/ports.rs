//! The port space.

use std::time::{Duration, Instant};

use super::{
    matrix::job,
    process::{Client, Family, Job},
    styles::Style,
};
use crate::support::{Mesh, agent::Mode};

/// Pitfall 10: 40,000 connections from one pod to one virtual address, one after the other, the
/// client the first to close. Both modes. Without it: after some 28,000 the ports are used up for a
/// minute, with EADDRNOTAVAIL.
#[test]
fn forty_thousand_connections_to_one_address_find_a_port() {
    const CONNECTIONS: u16 = 40_000;
    for mode in [Mode::Mark, Mode::Loopback] {
        let mut mesh = Mesh::new("ports");
        mesh.agent().mode(mode);
        mesh.agent().hold(true);
        let (pod, _) = mesh.live_pod("a", false);
        mesh.proxied();
        let many = Job {
            port: CONNECTIONS,
            ..job(&pod, Family::V4, Style::Many)
        };
        let mut client = Client::start(&mesh.bed, &pod);
        let start = Instant::now();
        let seen = client.run(&many);
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
