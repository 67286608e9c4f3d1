//! What a guarded workload may open, and for how long.

use std::net::SocketAddr;

use crate::support::{Mesh, agent::Service, client::connect, serve_in, vip4};

/// Without it: the guard cuts off the agent itself, or what the connect hook let through.
#[test]
fn guarded_workload_reaches_what_proxy_and_hooks_let_through() {
    let mut mesh = Mesh::new("gpass");
    let server = mesh.bed.pod("b").expect("a pod");
    let port = serve_in(&mesh.bed, &server, "server");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    let [v4, v6] = [server.v4.into(), server.v6.into()].map(|ip| SocketAddr::new(ip, port));
    let virtual_ip = SocketAddr::new(vip4().ip(), 81);
    let services = [
        Service::proxy(vip4()),
        Service::kernel(virtual_ip).to(&[v4]),
    ];
    mesh.agent().table(&services, &[]).expect("table");
    assert_eq!(mesh.entries("GUARDED"), 1);
    // Not in the model.
    for to in [v4, v6] {
        let seen = connect(&mesh.bed, &pod, to);
        assert!(seen.data.starts_with("server"), "{to}: {seen:?}");
    }
    // The kernel's choice.
    let seen = connect(&mesh.bed, &pod, virtual_ip);
    assert!(seen.data.starts_with("server"), "{seen:?}");
    assert_eq!(mesh.count("guard_pass"), 3);
    // The agent's own dial, out of the workload's namespace.
    for to in [v4, v6] {
        mesh.agent().dial_back(Some(to));
        let seen = connect(&mesh.bed, &pod, vip4());
        assert!(seen.data.starts_with("server"), "{to}: {seen:?}");
    }
    assert_eq!(mesh.count("guard_pass"), 5);
    mesh.eventually("no grant is left", || mesh.entries("GRANTS") == 0);
    for reason in ["refuse_guard_syn", "refuse_guard_source", "refuse_guard_forged"] {
        assert_eq!(mesh.count(reason), 0, "{reason}");
    }
}
