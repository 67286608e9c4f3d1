//! Many pods, pods whose addresses change, and a hierarchy that takes sockets away.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use mesh_user::testbed::Pod;

use super::{
    matrix::{job, own, vip},
    process::{Client, FAMILIES, Family, Job},
    styles::Style,
};
use crate::support::{
    Mesh,
    agent::{Agent, Mode},
    vip4,
};

/// Without it: pods are told apart by something that two of them can have.
#[test]
fn thirty_pods_with_the_same_ports_are_thirty_workloads() {
    const PODS: usize = 30;
    let mut mesh = Mesh::new("thirty");
    mesh.agent().echo(true);
    mesh.agent().hold(true);
    mesh.proxied();
    let mut pods = Vec::new();
    for number in 0..PODS {
        mesh.agent().mode([Mode::Mark, Mode::Loopback][number % 2]);
        let (pod, id) = mesh.live_pod(&format!("p{number}"), false);
        let client = Client::start(&mesh.bed, &pod);
        pods.push((pod, id, client));
    }
    for family in FAMILIES {
        let port = 25_000 + family as u16;
        for (pod, _, client) in &mut pods {
            client.ask(&Job {
                port,
                ..job(pod, family, Style::Hold)
            });
        }
        for (pod, _, client) in &mut pods {
            let seen = client.answer();
            assert_eq!(seen.data, format!("proxy {} ping", vip(family)), "{seen:?}");
            let own = SocketAddr::new(own(pod, family), port);
            assert_eq!((seen.peer, seen.own), (Some(vip(family)), Some(own)));
        }
        let accepts = mesh.agent().accepts();
        assert_eq!(accepts.len(), PODS * (family as usize + 1));
        for (_, id, _) in &pods {
            let mine: Vec<_> = accepts
                .iter()
                .filter(|it| it.pod_id == *id && it.peer.port() == port)
                .collect();
            assert_eq!(mine.len(), 1, "workload {id}, {family:?}");
            assert_eq!(mine[0].asked, Some(vip(family)));
        }
    }
}

fn ip(pod: &Pod, words: &str) {
    let name = pod.netns.file_name().expect("a name");
    let mut command = Command::new("ip");
    command.arg("-n").arg(name).args(words.split(' '));
    assert!(command.status().expect("ip").success(), "ip {words}");
}

/// Reads addresses until the workload has exactly these.
fn follow(mesh: &Mesh, id: u32, wanted: &[IpAddr]) {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        mesh.agent().poll();
        let rows = mesh.view().workloads();
        let row = rows.iter().find(|row| row.pod_id == id).expect("enrolled");
        let mut wanted = wanted.to_vec();
        wanted.sort();
        if row.addresses == wanted {
            return;
        }
        assert!(
            Instant::now() < end,
            "{:?} is not {wanted:?}",
            row.addresses
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Pitfall 30, in both modes. Without it: a pod whose addresses change falls out of the mesh, or
/// its applications are told an address that it no longer has.
#[test]
fn pod_whose_addresses_change_stays_captured_with_true_names() {
    for mode in [Mode::Mark, Mode::Loopback] {
        let mut mesh = Mesh::new("moves");
        mesh.agent().mode(mode);
        mesh.agent().echo(true);
        let (pod, id) = mesh.live_pod("a", false);
        mesh.proxied();
        let mut client = Client::start(&mesh.bed, &pod);
        let mut check = |family: Family, bind: bool, own: IpAddr, what: &str| {
            let style = if bind {
                Style::BoundToAddress
            } else {
                Style::Blocking
            };
            let job = Job {
                own,
                ..job(&pod, family, style)
            };
            let seen = client.run(&job);
            let what = format!("{mode:?} {family:?} {what}: {seen:?}");
            assert_eq!(seen.data, format!("proxy {} ping", job.to), "{what}");
            assert_eq!(seen.peer, Some(job.to), "{what}");
            assert_eq!(seen.own.map(|it| it.ip()), Some(own), "{what}");
        };
        let (first4, first6): (IpAddr, IpAddr) = (pod.v4.into(), pod.v6.into());
        let second4: IpAddr = "10.77.200.1".parse().expect("an address");
        let third4: IpAddr = "10.77.200.2".parse().expect("an address");
        let second6: IpAddr = "fd77::c8:1".parse().expect("an address");
        check(Family::V4, false, first4, "as it began");
        ip(&pod, "addr add 10.77.200.1/16 dev eth0");
        follow(&mesh, id, &[first4, second4, first6]);
        check(Family::V4, true, second4, "a second address");
        check(Family::Mapped, true, second4, "a second address");
        check(Family::V4, false, first4, "the first is still the first");
        ip(&pod, &format!("addr del {first4}/16 dev eth0"));
        ip(&pod, "addr replace 10.77.200.2/16 dev eth0");
        // Secondary addresses of a range may go with the first one, by a sysctl.
        ip(&pod, "route replace default via 10.77.0.1");
        follow(&mesh, id, &[third4, first6]);
        check(Family::V4, false, third4, "replaced");
        check(Family::Mapped, false, third4, "replaced");
        check(Family::V6, false, first6, "the other family");
        ip(&pod, &format!("addr del {first6}/64 dev eth0"));
        follow(&mesh, id, &[third4]);
        ip(&pod, "addr add fd77::c8:1/64 dev eth0 nodad");
        follow(&mesh, id, &[third4, second6]);
        check(Family::V6, false, second6, "IPv6 later");
        check(Family::V4, true, third4, "all the time");
    }
}

/// The net_cls hierarchy, mounted for the time of a test, with a group of its own.
struct NetCls {
    mount: std::path::PathBuf,
    group: std::path::PathBuf,
}

impl NetCls {
    fn mount(name: &str) -> Self {
        let mount = std::env::temp_dir().join(format!("{name}-net-cls"));
        std::fs::create_dir(&mount).expect("a directory");
        let none: Option<&str> = None;
        nix::mount::mount(
            Some("cgroup"),
            &mount,
            Some("cgroup"),
            nix::mount::MsFlags::empty(),
            Some("net_cls"),
        )
        .or_else(|_| {
            // Mounted together with net_prio elsewhere.
            nix::mount::mount(
                Some("cgroup"),
                &mount,
                Some("cgroup"),
                nix::mount::MsFlags::empty(),
                Some("net_cls,net_prio"),
            )
        })
        .unwrap_or_else(|error| panic!("net_cls can't be mounted: {error} ({none:?})"));
        let group = mount.join(name);
        std::fs::create_dir(&group).expect("a group");
        std::fs::write(group.join("net_cls.classid"), "0x100001").expect("a class");
        Self { mount, group }
    }
}

impl Drop for NetCls {
    fn drop(&mut self) {
        mesh_user::testbed::wait_until(Duration::from_secs(5), || {
            std::fs::remove_dir(&self.group).is_ok()
        });
        let _ = nix::mount::umount(&self.mount);
        let _ = std::fs::remove_dir(&self.mount);
    }
}

/// Pitfall 13: on older kernels a socket of a process in a net_cls group lost its place in the
/// unified hierarchy. Without it: such a process is not in the mesh.
#[test]
fn process_in_a_net_cls_group_is_captured() {
    for mode in [Mode::Mark, Mode::Loopback] {
        let mut mesh = Mesh::new("cls");
        mesh.agent().mode(mode);
        mesh.agent().echo(true);
        let (pod, id) = mesh.live_pod("a", false);
        mesh.proxied();
        let net_cls = NetCls::mount(mesh.instance.name());
        let mut client = Client::start(&mesh.bed, &pod);
        let procs = net_cls.group.join("cgroup.procs");
        std::fs::write(&procs, client.pid().to_string()).expect("it is moved");
        assert!(in_group(client.pid(), &net_cls.group));
        for family in FAMILIES {
            let job = job(&pod, family, Style::Blocking);
            let seen = client.run(&job);
            assert_eq!(seen.data, format!("proxy {} ping", job.to), "{seen:?}");
            assert_eq!(seen.own.map(|it| it.ip()), Some(job.own));
        }
        let accepts = mesh.agent().accepts();
        assert!(accepts.len() == 3 && accepts.iter().all(|it| it.pod_id == id));
        drop(client);
    }
    assert_eq!(vip(Family::V4), vip4());
}

fn in_group(pid: u32, group: &Path) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    let name = group.file_name().and_then(|name| name.to_str());
    let line = text.lines().find(|line| line.contains("net_cls"));
    line.is_some_and(|line| line.ends_with(name.expect("a name")))
}

/// Ids of the programs that run for sockets of a cgroup, its ancestors' included.
fn effective(cgroup: &Path, attach: &str) -> Vec<u64> {
    let output = Command::new("bpftool")
        .args(["-j", "cgroup", "show"])
        .arg(cgroup)
        .arg("effective")
        .output()
        .expect("bpftool");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.iter()
        .filter(|row| row["attach_type"] == attach)
        .filter_map(|row| row["id"].as_u64())
        .collect()
}

/// Pitfall 12: an agent whose own view of the hierarchy begins at its own cgroup, as in a container.
/// Without it: it attaches somewhere below, and no pod is captured.
#[test]
fn agent_in_a_cgroup_namespace_of_its_own_attaches_where_the_pods_are() {
    let mut mesh = Mesh::without_agent("cgns");
    let agent = Agent::spawn_by(&mesh.bed, &["unshare", "--cgroup", "--"]);
    let points = [mesh.bed.pods_cgroup()];
    agent
        .start(&mesh.instance, &points, 2, false)
        .expect("the agent starts");
    let view = std::fs::read_to_string(format!("/proc/{}/cgroup", agent.pid()));
    assert!(view.is_ok(), "it lives");
    mesh.agent = Some(agent);
    mesh.agent().echo(true);
    mesh.proxied();
    let (pod, id) = mesh.live_pod("a", false);
    let ours = mesh.view().progs();
    let ours: Vec<u64> = ours
        .iter()
        .filter(|row| row.program == "connect4")
        .map(|row| row.prog_id.into())
        .collect();
    assert_eq!(ours.len(), 1);
    let found = effective(&pod.cgroup, "cgroup_inet4_connect");
    assert!(found.contains(&ours[0]), "{found:?} lacks {ours:?}");
    let mut client = Client::start(&mesh.bed, &pod);
    for family in FAMILIES {
        let job = job(&pod, family, Style::Blocking);
        assert_eq!(client.run(&job).data, format!("proxy {} ping", job.to));
    }
    assert!(mesh.agent().accepts().iter().all(|it| it.pod_id == id));
}
