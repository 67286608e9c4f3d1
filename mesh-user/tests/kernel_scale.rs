//! Many services in the real kernel, and one change among them.
//!
//! Needs root and BPF; fails, never skips, without.

mod support;

use std::net::SocketAddr;

use support::Mesh;

/// Without it: the kernel takes a tenth of the services that the configuration takes, or each change
/// writes all of them.
#[test]
fn many_services_fit_and_a_change_writes_what_changed() {
    let mesh = Mesh::new("scale");
    // More than ever fitted; all of them where the compiler has made it fast.
    let count = if cfg!(debug_assertions) {
        20_000
    } else {
        100_000
    };
    let (load, change) = mesh.agent.as_ref().expect("an agent").scale(count);
    println!("{count} services: {load:.1} ms, one endpoint among them: {change:.2} ms");
    let endpoints = mesh.view().endpoints();
    assert_eq!(mesh.view().services().len(), count as usize);
    let changed: SocketAddr = "172.16.0.1:8080".parse().expect("an address");
    let found = endpoints.iter().filter(|row| row.address == changed);
    assert_eq!(found.count(), 1);
    assert_eq!(endpoints.len(), count as usize, "the old one is gone");
    // A tenth is far above what it takes, and far below what writing all of it would.
    assert!(change < load / 10.0, "{change} of {load} ms");
}
