//! Client kinds x address families x modes: each is captured, and each sees true names.

use std::net::{IpAddr, SocketAddr};

use mesh_user::testbed::Pod;

use super::{
    process::{Client, FAMILIES, Family, Job, Seen},
    styles::Style,
};
use crate::support::{Mesh, PORT, VIP4, VIP6, agent::Mode, options, vip4, vip6};

const MODES: [Mode; 2] = [Mode::Mark, Mode::Loopback];

/// Those that need nothing but a pod.
const STYLES: [Style; 14] = [
    Style::Blocking,
    Style::NonBlocking,
    Style::FastOpen,
    Style::FastOpenConnect,
    Style::Multipath,
    Style::Ring,
    Style::PolledRing,
    Style::BoundToAddress,
    Style::BoundToPort,
    Style::BoundToAnyAndPort,
    Style::Dissolved,
    Style::AfterRefusal,
    Style::Duplicated,
    Style::Inherited,
];

pub(crate) fn vip(family: Family) -> SocketAddr {
    match family {
        Family::V4 | Family::Mapped => vip4(),
        Family::V6 => vip6(),
    }
}

pub(crate) fn own(pod: &Pod, family: Family) -> IpAddr {
    match family {
        Family::V4 | Family::Mapped => pod.v4.into(),
        Family::V6 => pod.v6.into(),
    }
}

/// A job of one kind in one family.
pub(crate) fn job(pod: &Pod, family: Family, style: Style) -> Job {
    // Nobody listens on the pod's own discard port.
    let refused = SocketAddr::new(own(pod, family), 9);
    Job {
        style,
        family,
        to: vip(family),
        own: own(pod, family),
        refused: Some(refused),
        port: 0,
        reuse: false,
        path: std::path::PathBuf::new(),
    }
}

/// The pod's network namespace, as a socket made there says.
pub(crate) fn cookie(mesh: &Mesh, pod: &Pod) -> u64 {
    let made = mesh.bed.in_netns(pod, || {
        options::netns_cookie(std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket"))
    });
    made.expect("the namespace")
}

/// The last accept is this connection, and both sides know all of it.
fn check(mesh: &Mesh, mode: Mode, pod: (&Pod, u32), job: &Job, seen: &Seen, accepted: usize) {
    let what = format!("{mode:?} {:?} {:?}: {seen:?}", job.style, job.family);
    assert_eq!(seen.errno, 0, "{what}");
    assert_eq!(seen.data, format!("proxy {} ping", job.to), "{what}");
    assert_eq!(seen.peer, Some(job.to), "getpeername, {what}");
    let own = own(pod.0, job.family);
    assert_eq!(seen.own.map(|it| it.ip()), Some(own), "getsockname, {what}");
    let accepts = mesh.agent().accepts();
    assert_eq!(accepts.len(), accepted, "accepts, {what}");
    let last = accepts.last().expect("one");
    assert_eq!(last.pod_id, pod.1, "{what}");
    // In mode mark the table only repeats what the socket's own address says, and the entry of a
    // connection that was dissolved may be gone when it is accepted.
    let dissolved = mode == Mode::Mark && job.style == Style::Dissolved;
    let known = dissolved && last.asked.is_none() || last.asked == Some(job.to);
    assert!(known, "{:?}, {what}", last.asked);
    // Pitfall 1: what was sent to a loopback was accepted inside the pod.
    assert_eq!(last.netns, cookie(mesh, pod.0), "{what}");
    // Pitfall 28: the hook that answers SO_ORIGINAL_DST is shown 4,096 bytes at most.
    assert!(last.roomy, "{what}");
    match mode {
        Mode::Mark => assert_eq!((last.local, last.original), (job.to, None), "{what}"),
        Mode::Loopback => {
            assert!(last.local.ip().is_loopback(), "{what}");
            assert_eq!(last.original, Some(job.to), "SO_ORIGINAL_DST, {what}");
        }
    }
}

/// Pitfalls 1, 4, 28 and 29. Without it: a kind of client slips past the mesh, or is told a lie.
#[test]
fn every_kind_of_client_is_captured_with_true_names_in_every_family_and_mode() {
    for mode in MODES {
        let mut mesh = Mesh::new("kinds");
        mesh.agent().mode(mode);
        mesh.agent().echo(true);
        let (pod, id) = mesh.live_pod("a", false);
        mesh.proxied();
        fast_open(&mesh, &pod);
        let mut client = Client::start(&mesh.bed, &pod);
        let (mut accepted, mut port) = (0, 20_000);
        for family in FAMILIES {
            for style in STYLES {
                // The second round of a fast open has a cookie: its SYN carries the data.
                let rounds = if style == Style::FastOpen { 2 } else { 1 };
                for _ in 0..rounds {
                    port += 1;
                    let job = Job {
                        port,
                        ..job(&pod, family, style)
                    };
                    let seen = client.run(&job);
                    accepted += if style == Style::Dissolved { 2 } else { 1 };
                    check(&mesh, mode, (&pod, id), &job, &seen, accepted);
                    if matches!(style, Style::BoundToPort | Style::BoundToAnyAndPort) {
                        assert_eq!(seen.own.map(|it| it.port()), Some(port), "{style:?}");
                    }
                }
            }
        }
        let reason = match mode {
            Mode::Mark => "captured",
            Mode::Loopback => "captured_loopback",
        };
        assert_eq!(mesh.count(reason), accepted as u64);
        assert!(
            syn_data_taken(&mesh, &pod) >= 3,
            "a SYN with data in each family"
        );
        drop(client);
        mesh.eventually("flows end", || {
            mesh.entries("FLOWS") == 0 && mesh.entries("LOOP_FLOWS") == 0
        });
    }
}

/// Lets the pod's listeners take data in a SYN.
fn fast_open(mesh: &Mesh, pod: &Pod) {
    let set = || std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3");
    mesh.bed
        .in_netns(pod, set)
        .expect("the namespace")
        .expect("tcp_fastopen");
}

/// How many connections came with data in their SYN.
fn syn_data_taken(mesh: &Mesh, pod: &Pod) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netstat");
    let text = mesh.bed.in_netns(pod, read).expect("the namespace");
    let text = text.expect("netstat");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "TCPFastOpenPassive");
    found.expect("the counter").1.parse().expect("a number")
}

/// Without it: a process leaves the mesh by leaving its cgroup. A socket belongs to the cgroup in
/// which it was made.
#[test]
fn socket_keeps_the_cgroup_of_its_creation() {
    for mode in MODES {
        let mut mesh = Mesh::new("cgroup");
        mesh.agent().mode(mode);
        mesh.agent().echo(true);
        let (pod, id) = mesh.live_pod("a", false);
        mesh.proxied();
        let pods = mesh.bed.pods_cgroup();
        let elsewhere = pods.with_file_name("elsewhere");
        std::fs::create_dir(&elsewhere).expect("a cgroup");
        let mut client = Client::start(&mesh.bed, &pod);
        for (at, family) in (1..).zip(FAMILIES) {
            let job = Job {
                path: elsewhere.clone(),
                ..job(&pod, family, Style::OtherCgroup)
            };
            let seen = client.run(&job);
            check(&mesh, mode, (&pod, id), &job, &seen, at);
        }
        drop(client);
        mesh.eventually("the cgroup is left", || {
            std::fs::remove_dir(&elsewhere).is_ok()
        });
    }
}

/// Pitfall 2 is the same question from the other side. Without it: a pod that hands a socket to
/// another one changes whose connection it is.
#[test]
fn socket_passed_to_another_pod_is_still_its_makers() {
    for mode in MODES {
        let mut mesh = Mesh::new("pass");
        mesh.agent().mode(mode);
        mesh.agent().echo(true);
        let (maker, id) = mesh.live_pod("maker", false);
        let (taker, _) = mesh.live_pod("taker", false);
        mesh.proxied();
        let mut makes = Client::start(&mesh.bed, &maker);
        let mut takes = Client::start(&mesh.bed, &taker);
        for (at, family) in (1..).zip(FAMILIES) {
            let path = std::env::temp_dir().join(format!("{}-{at}", mesh.instance.name()));
            let take = Job {
                path: path.clone(),
                ..job(&taker, family, Style::Passed)
            };
            takes.ask(&take);
            assert_eq!(takes.answer(), Seen::default(), "it listens");
            let pass = Job {
                path: path.clone(),
                ..job(&maker, family, Style::Pass)
            };
            assert_eq!(makes.run(&pass), Seen::default());
            let seen = takes.answer();
            let _ = std::fs::remove_file(path);
            check(&mesh, mode, (&maker, id), &take, &seen, at);
        }
    }
}

/// Without it: only pods that come after the agent are captured, or only those before it.
#[test]
fn process_that_is_older_than_the_agent_is_captured() {
    for mode in MODES {
        let mut mesh = Mesh::without_agent("old");
        let pod = mesh.bed.pod("a").expect("a pod");
        let mut client = Client::start(&mesh.bed, &pod);
        // It has connected before: to itself, where nobody listens.
        let before = Job {
            to: SocketAddr::new(pod.v4.into(), 9),
            ..job(&pod, Family::V4, Style::Blocking)
        };
        assert_eq!(client.run(&before).errno, libc::ECONNREFUSED);
        mesh.start_agent(2, false).expect("the agent starts");
        mesh.agent().mode(mode);
        mesh.agent().echo(true);
        mesh.proxied();
        let id = mesh
            .agent()
            .enrol("a", &pod.netns, false)
            .expect("enrolled");
        mesh.agent().live(id).expect("live");
        for (at, family) in (1..).zip(FAMILIES) {
            let job = job(&pod, family, Style::Blocking);
            let seen = client.run(&job);
            check(&mesh, mode, (&pod, id), &job, &seen, at);
        }
    }
}

/// What a client does that binds its socket to the interface that leads out, in each mode: the
/// documented outcome (docs/decisions/0042). In mode mark the turn to `lo` can't match such a
/// socket, so it leaves as the platform routes it; in mode loopback it follows the failure mode,
/// since its SYN to the loopback would leave by that interface.
#[test]
fn socket_bound_to_a_device_goes_where_the_documents_say() {
    let mut mesh = Mesh::new("device");
    mesh.agent().echo(true);
    let (marked, _) = mesh.live_pod("marked", false);
    mesh.agent().mode(Mode::Loopback);
    let (open, _) = mesh.live_pod("open", false);
    let (closed, _) = mesh.live_pod("closed", true);
    mesh.proxied();
    crate::support::serve_vips_on_node(&mesh.bed);
    for (pod, to_node) in [(&marked, true), (&open, true), (&closed, false)] {
        let mut client = Client::start(&mesh.bed, pod);
        for family in FAMILIES {
            let seen = client.run(&job(pod, family, Style::BoundToDevice));
            let name = &pod.name;
            if to_node {
                assert!(seen.data.starts_with("node"), "{name} {family:?}: {seen:?}");
            } else {
                assert_eq!(
                    seen.errno,
                    libc::ECONNREFUSED,
                    "{name} {family:?}: {seen:?}"
                );
            }
        }
    }
    assert!(mesh.agent().accepts().is_empty());
    assert_eq!(mesh.count("bypass_state_failed"), 3);
    assert_eq!(mesh.count("refuse_state_failed"), 3);
    assert_eq!(
        (VIP4, VIP6, PORT),
        (vip4().ip(), vip6().ip(), vip4().port())
    );
}
