//! Servers of a workload that bind a port which a captured connection uses as its destination's.

use std::{
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use mesh_user::testbed::{Pod, wait_until};

use super::{
    matrix::job,
    process::{Client, Family, Job},
    styles::Style,
};
use crate::support::{
    Mesh, VIP4, VIP6,
    agent::{Mode, Service},
};

/// The port of the service that is dialled and of the server that is bound.
const PORT: u16 = 8_090;

fn serve(pod: &Pod, at: (Family, IpAddr), reuse: bool) -> Job {
    Job {
        own: at.1,
        port: PORT,
        reuse,
        ..job(pod, at.0, Style::Serve)
    }
}

/// A connection from the node that the server answers; the server keeps it.
fn inbound(mesh: &Mesh, to: SocketAddr) -> TcpStream {
    let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(3));
    let mut stream = mesh
        .bed
        .in_node(connect)
        .expect("netns")
        .expect("connected");
    stream
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a timeout");
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"app");
    stream
}

/// A pod with a captured connection to [`PORT`] in each family, held open.
fn with_held(mesh: &mut Mesh) -> (Pod, Client) {
    mesh.agent().hold(true);
    mesh.agent().echo(true);
    let (pod, _) = mesh.live_pod("a", false);
    let services = [VIP4, VIP6].map(|ip| Service::proxy(SocketAddr::new(ip, PORT)));
    mesh.agent().table(&services, &[]).expect("table");
    let mut client = Client::start(&mesh.bed, &pod);
    for (family, ip) in [(Family::V4, VIP4), (Family::V6, VIP6)] {
        let hold = Job {
            to: SocketAddr::new(ip, PORT),
            ..job(&pod, family, Style::Hold)
        };
        assert_eq!(client.run(&hold).errno, 0);
    }
    (pod, client)
}

/// Pitfall 9. Without it: a server can't be started for as long as anything in its pod has a
/// captured connection to a port of the same number.
#[test]
fn server_binds_beside_live_connections_and_again_after_it_was_killed() {
    let mut mesh = Mesh::new("bind");
    let (pod, _client) = with_held(&mut mesh);
    let places = [
        (Family::V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (Family::V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        (Family::V4, pod.v4.into()),
        (Family::V6, pod.v6.into()),
    ];
    let mut binds = 0;
    for at in places {
        for reuse in [true, false] {
            let to = match at.0 {
                Family::V4 | Family::Mapped => SocketAddr::new(pod.v4.into(), PORT),
                Family::V6 => SocketAddr::new(pod.v6.into(), PORT),
            };
            let mut alive = Vec::new();
            for round in 0..3 {
                let mut server = Client::start(&mesh.bed, &pod);
                let seen = server.run(&serve(&pod, at, reuse));
                binds += 1;
                let what = format!("{at:?}, reuse {reuse}, round {round}: {seen:?}");
                assert_eq!(seen.errno, 0, "{what}");
                // What an application may notice (docs/decisions/0040).
                assert_eq!(seen.note, "reuse true", "{what}");
                alive.push(inbound(&mesh, to));
                // Killed with connections of its own alive.
            }
        }
    }
    assert_eq!(mesh.count("bind_reuse"), binds);
    assert_eq!(mesh.agent().held().len(), 2, "the captured ones live");
}

/// Without it: the test above proves nothing, or a workload that needs no help gets it.
#[test]
fn bind_is_helped_in_mode_mark_alone_and_only_for_a_port() {
    let mut mesh = Mesh::new("help");
    let (pod, _client) = with_held(&mut mesh);
    let any = (Family::V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let free = Job {
        port: 0,
        ..serve(&pod, any, false)
    };
    let mut server = Client::start(&mesh.bed, &pod);
    assert_eq!(server.run(&free).note, "reuse false");
    mesh.agent().mode(Mode::Loopback);
    let (looped, _) = mesh.live_pod("b", false);
    let mut other = Client::start(&mesh.bed, &looped);
    assert_eq!(other.run(&serve(&looped, any, false)).note, "reuse false");
    assert_eq!(mesh.count("bind_reuse"), 0);
    // Without the hook the port is taken.
    let links = mesh.pin("links");
    for entry in std::fs::read_dir(links).expect("links").flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("bind")) {
            std::fs::remove_file(entry.path()).expect("unpinned");
        }
    }
    // A link whose last pin goes is let go behind our back (RCU): a bind that still meets its program
    // succeeds, and ends with its server.
    let mut refused = None;
    let gone = wait_until(Duration::from_secs(10), || {
        let seen = server.run(&serve(&pod, any, false));
        let taken = seen.errno == libc::EADDRINUSE;
        refused = Some(seen);
        taken
    });
    assert!(gone, "{refused:?}");
    // With the option of its own it is not: the agent's side has it.
    assert_eq!(server.run(&serve(&pod, any, true)).errno, 0);
}
