//! Every refusal has a name, says what to do, and leaves nothing behind.

use std::{path::Path, process::Command};

use aya::maps::{HashMap, LpmTrie, Map, MapData, lpm_trie};
use mesh_common::{
    addr::Addr,
    listener::{KIND_OUT, ListenerKey},
    maps::{OUT_DENY, OUT_RULE_FIXED_BITS, OutRuleKey, get},
    pod::{FAIL_OPEN, MODE_OFF, PodAddr, PodEntry},
};
use mesh_user::{
    kernel::{Instance, mounts},
    testbed::Pod,
};

use crate::support::{
    Mesh, VIP4,
    agent::{Agent, Service},
    client::connect,
    foreign, objects, vip4, vip6,
};

fn pins(instance: &Instance) -> std::path::PathBuf {
    mounts::bpffs()
        .unwrap()
        .expect("a bpffs")
        .join("mesh")
        .join(instance.name())
}

fn agent_cgroup(instance: &Instance) -> std::path::PathBuf {
    mounts::cgroup2()
        .unwrap()
        .unwrap()
        .join(format!("mesh-agent-{}", instance.name()))
}

/// Starts an agent that must be refused, and asserts that nothing of it is left.
fn refused(mesh: &mut Mesh, attach: &[&Path]) -> String {
    let agent = Agent::spawn(&mesh.bed);
    let attach: Vec<_> = attach.iter().map(|path| path.to_path_buf()).collect();
    let error = agent
        .start(&mesh.instance, &attach, 1, false)
        .expect_err("refused");
    // The process is alive still: it must have given everything back.
    assert!(!pins(&mesh.instance).exists(), "pins are left: {error}");
    assert!(
        !agent_cgroup(&mesh.instance).exists(),
        "the agent's cgroup is left: {error}"
    );
    assert_eq!(
        objects::at_cgroup(&mesh.bed.pods_cgroup(), "connect"),
        0,
        "{error}"
    );
    nothing_ran(mesh, &error);
    error
}

/// No lock file, no directory: the instance is as if nobody had tried.
fn nothing_ran(mesh: &Mesh, error: &str) {
    let dir = mesh.instance.run_dir();
    assert!(!dir.exists(), "{} is left: {error}", dir.display());
}

/// Starts an agent behind a shell script that takes something away in a mount namespace of its
/// own, and returns why it refuses. Attach points are below the mount: its path may be another.
fn refused_behind(mesh: &Mesh, wrapper: &[&str], script: &str) -> String {
    let script = format!("set -e; {script}; exec \"$0\" \"$@\"");
    let wrapper = [wrapper, &["sh", "-c", &script]].concat();
    let agent = Agent::spawn_by(&mesh.bed, &wrapper);
    let mount = mounts::cgroup2().unwrap().unwrap();
    let pods = mesh.bed.pods_cgroup();
    let attach = [pods.strip_prefix(mount).unwrap().to_owned()];
    let error = agent
        .start(&mesh.instance, &attach, 1, false)
        .expect_err("refused");
    assert!(!pins(&mesh.instance).exists(), "pins are left: {error}");
    assert!(!agent_cgroup(&mesh.instance).exists(), "{error}");
    nothing_ran(mesh, &error);
    error
}

const PRIVATE: &[&str] = &["unshare", "--mount"];

/// Without it: «Permission denied» from somewhere below.
#[test]
fn machine_without_a_usable_bpffs_is_refused_by_name() {
    let mesh = Mesh::without_agent("bpffs");
    let bpffs = mounts::bpffs().unwrap().expect("a bpffs");
    let bpffs = bpffs.display();
    let read_only = format!("mount -o remount,bind,ro '{bpffs}'");
    let error = refused_behind(&mesh, PRIVATE, &read_only);
    for part in ["pins can't be made at", "Read-only", "remount,rw"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // None mounted, and no place to mount one at. cgroup2 moves to where it is not covered.
    let nowhere = format!(
        "umount -l '{bpffs}'; mount -t cgroup2 none /mnt; umount -Rl /sys/fs/cgroup; \
         mount -t tmpfs none /sys/fs"
    );
    let error = refused_behind(&mesh, PRIVATE, &nowhere);
    assert!(
        error.contains("no bpffs, and mounting one at /sys/fs/bpf failed")
            && error.contains("mount -t bpf bpf"),
        "{error}"
    );
}

/// Without it: a rootless container has «all capabilities», and the kernel's EPERM explains
/// nothing.
#[test]
fn own_user_namespace_is_refused_by_name() {
    let mesh = Mesh::without_agent("user");
    let error = refused_behind(&mesh, &["unshare", "--user", "--map-root-user"], ":");
    assert!(
        error.contains("user namespace of its own") && error.contains("hostUsers: true"),
        "{error}"
    );
}

#[test]
fn bad_attach_points_are_refused_by_name() {
    let mut mesh = Mesh::without_agent("attach");
    let pods = mesh.bed.pods_cgroup();
    let root = mounts::cgroup2().unwrap().unwrap();
    let missing = pods.join("nowhere");
    let error = refused(&mut mesh, &[&missing]);
    assert!(error.contains("nowhere does not exist"), "{error}");
    let error = refused(&mut mesh, &[&pods, pods.parent().unwrap()]);
    assert!(
        error.contains("is inside") && error.contains("twice"),
        "{error}"
    );
    let error = refused(&mut mesh, &[&root]);
    assert!(error.contains("is the root of the hierarchy"), "{error}");
    let error = refused(&mut mesh, &[]);
    assert!(
        error.contains("no kubepods cgroup") && error.contains("attach:"),
        "{error}"
    );
}

/// Without it: a start that fails half-way leaves hooks that nobody serves.
#[test]
fn start_that_fails_half_way_gives_everything_back() {
    let mut mesh = Mesh::without_agent("half");
    let pods = mesh.bed.pods_cgroup();
    // A foreign program that allows nothing below it makes the last hooks fail: flow_ops and the
    // peer names are attached by then.
    let foreign = mounts::bpffs()
        .unwrap()
        .expect("a bpffs")
        .join(mesh.instance.name());
    let foreign = foreign.display().to_string();
    let object = objects::bpf_object().display().to_string();
    let bpftool = |args: &[&str]| {
        let status = Command::new("bpftool").args(args).status().unwrap();
        assert!(status.success(), "bpftool {args:?}");
    };
    bpftool(&["prog", "loadall", &object, &foreign]);
    let above = pods.parent().unwrap().display().to_string();
    let program = format!("{foreign}/connect4");
    bpftool(&["cgroup", "attach", &above, "connect4", "pinned", &program]);
    let error = refused(&mut mesh, &[&pods]);
    for kind in ["sock_ops", "getpeername"] {
        assert_eq!(objects::at_cgroup(&pods, kind), 0, "{kind}: {error}");
    }
    bpftool(&["cgroup", "detach", &above, "connect4", "pinned", &program]);
    std::fs::remove_dir_all(&foreign).unwrap();
    assert!(
        error.contains("attaching connect4 to") && error.contains("mb-"),
        "{error}"
    );
    mesh.start_agent(1, false)
        .expect("nothing stands in the way any more");
}

#[test]
fn missing_capabilities_are_named() {
    let mesh = Mesh::without_agent("caps");
    for (drop, named) in [
        ("-sys_admin,-bpf", "BPF, SYS_ADMIN"),
        ("-net_admin", "NET_ADMIN"),
        ("-sys_admin", "SYS_ADMIN"),
    ] {
        let agent = Agent::spawn_by(&mesh.bed, &["setpriv", "--bounding-set", drop]);
        let attach = [mesh.bed.pods_cgroup()];
        let error = agent
            .start(&mesh.instance, &attach, 1, false)
            .expect_err("refused");
        assert!(
            error.contains(&format!("missing capabilities: {named};")),
            "{drop}: {error}"
        );
        nothing_ran(&mesh, &error);
    }
    assert!(!pins(&mesh.instance).exists());
}

#[test]
fn machine_without_cgroup2_is_refused_by_name() {
    let mesh = Mesh::without_agent("cg");
    let mount = mounts::cgroup2().unwrap().unwrap().display().to_string();
    let hide = format!("umount -l '{mount}' && exec \"$0\" \"$@\"");
    let agent = Agent::spawn_by(&mesh.bed, &["unshare", "-m", "sh", "-c", &hide]);
    let error = agent
        .start(&mesh.instance, &[], 1, false)
        .expect_err("refused");
    assert!(
        error.contains("no cgroup2 mount") && error.contains("mount -t cgroup2"),
        "{error}"
    );
    nothing_ran(&mesh, &error);
}

#[test]
fn second_agent_of_an_instance_is_refused_and_the_first_is_unharmed() {
    let mut mesh = Mesh::new("two");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let second = Agent::spawn(&mesh.bed);
    let attach = [mesh.bed.pods_cgroup()];
    let error = second
        .start(&mesh.instance, &attach, 1, false)
        .expect_err("refused");
    assert!(
        error.contains(&format!("is held by process {}", mesh.agent().pid())),
        "{error}"
    );
    drop(second);
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
}

#[test]
fn map_pinned_with_another_layout_is_refused_by_name() {
    let mut mesh = Mesh::without_agent("layout");
    // A first agent makes the directory with the right version in its name.
    mesh.start_agent(1, false).unwrap();
    mesh.agent = None;
    let root = std::fs::read_dir(pins(&mesh.instance))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let pin = root.join("SERVICES");
    std::fs::remove_file(&pin).unwrap();
    let status = Command::new("bpftool")
        .args(["map", "create", &pin.display().to_string(), "type", "hash"])
        .args([
            "key", "20", "value", "24", "entries", "7", "name", "SERVICES",
        ])
        .status();
    assert!(status.unwrap().success());
    let agent = Agent::spawn(&mesh.bed);
    let attach = [mesh.bed.pods_cgroup()];
    let error = agent
        .start(&mesh.instance, &attach, 1, false)
        .expect_err("refused");
    for part in [
        "map SERVICES",
        "another layout",
        "7 entries",
        "131072 entries",
        "mesh cleanup",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Another agent's objects are not ours to remove.
    assert!(pin.exists());
}

#[test]
fn namespaces_that_can_not_be_enrolled_are_refused_by_name() {
    let mut mesh = Mesh::new("ns");
    let (pod, _) = mesh.live_pod("first", false);
    let agent = mesh.agent();
    let enrol = |path: &Path| agent.enrol("other", path, false).expect_err("refused");
    let error = enrol(&pod.netns);
    assert!(error.contains("is enrolled already, as first"), "{error}");
    let error = enrol(Path::new("/run/netns/never-was"));
    assert!(error.contains("gone or never was"), "{error}");
    let error = enrol(Path::new("/etc/hostname"));
    assert!(
        error.contains("/etc/hostname is no network namespace"),
        "{error}"
    );
    let error = enrol(&mesh.bed.node_netns());
    assert!(
        error.contains("the agent's own network namespace"),
        "{error}"
    );
    assert_eq!(
        agent.live(4_242),
        Err("no workload has number 4242".to_owned())
    );
    assert_eq!(mesh.view().workloads().len(), 1);
}

#[test]
fn failed_enrolment_leaves_the_namespace_as_it_was() {
    let mut mesh = Mesh::new("undo");
    let (first, _) = mesh.live_pod("first", false);
    let twin = mesh.bed.pod("twin").unwrap();
    let mut command = Command::new("ip");
    command.args(["addr", "add", &format!("{}/16", first.v4), "dev", "eth0"]);
    assert!(
        mesh.bed
            .spawn_in(&twin, command)
            .unwrap()
            .wait()
            .unwrap()
            .success()
    );
    let before = objects::network(&twin.netns);
    let error = mesh
        .agent()
        .enrol("twin", &twin.netns, false)
        .expect_err("refused");
    let expected = format!("address {} belongs to first already", first.v4);
    assert!(error.contains(&expected), "{error}");
    assert_eq!(before, objects::network(&twin.netns));
    assert_eq!(objects::steers(&twin.netns), 0);
    let rows = mesh.view().workloads();
    assert_eq!(rows.len(), 1, "the first keeps its address: {rows:?}");
    assert_eq!(rows[0].addresses.len(), 2);
    assert_eq!(mesh.entries("LISTENERS"), 4);
    // Without any address there is nothing to capture.
    let bare = mesh.bed.pod("bare").unwrap();
    let mut command = Command::new("ip");
    command.args(["addr", "flush", "dev", "eth0"]);
    assert!(
        mesh.bed
            .spawn_in(&bare, command)
            .unwrap()
            .wait()
            .unwrap()
            .success()
    );
    let error = mesh
        .agent()
        .enrol("bare", &bare.netns, false)
        .expect_err("refused");
    assert!(
        error.contains("has no address but loopback and link-local"),
        "{error}"
    );
}

#[test]
fn full_workload_map_is_refused_by_name_and_at_the_limit_only() {
    let mut mesh = Mesh::new("full");
    let pod = mesh.bed.pod("a").unwrap();
    mesh.proxied();
    let root = std::fs::read_dir(pins(&mesh.instance))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let data = MapData::from_pin(root.join("POD_BY_NETNS")).unwrap();
    let map = Map::from_map_data(data).unwrap();
    let mut map: HashMap<MapData, u64, PodEntry> = map.try_into().unwrap();
    let other = PodEntry {
        pod_id: u32::MAX,
        mode: MODE_OFF,
        fail: FAIL_OPEN,
        flags: 0,
        generation: 0,
        _pad2: 0,
    };
    let capacity = u64::from(get("POD_BY_NETNS").capacity);
    // Cookies count up from 1: these are nobody's.
    let cookie = |number: u64| u64::MAX - number;
    for number in 0..capacity {
        map.insert(cookie(number), other, 0).unwrap();
    }
    let id = mesh.agent().enrol("a", &pod.netns, false).unwrap();
    let error = mesh.agent().live(id).expect_err("refused");
    assert_eq!(
        error,
        format!("map POD_BY_NETNS is full at {capacity} entries")
    );
    // Nothing of it is left: it may bypass the mesh.
    mesh.agent().release(id);
    assert_eq!(objects::steers(&pod.netns), 0);
    map.remove(&cookie(0)).unwrap();
    let id = mesh.agent().enrol("a", &pod.netns, false).unwrap();
    mesh.agent().live(id).expect("one place is enough");
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
}

/// Nothing of a refused enrolment is left, and what is enrolled is served as before.
fn refused_when_full(mesh: &mut Mesh, map: &str, first: &Pod) -> Pod {
    let pod = mesh.bed.pod("b").unwrap();
    let before = objects::network(&pod.netns);
    let error = mesh
        .agent()
        .enrol("b", &pod.netns, false)
        .expect_err("refused");
    let capacity = get(map).capacity;
    assert_eq!(error, format!("map {map} is full at {capacity} entries"));
    assert_eq!(before, objects::network(&pod.netns));
    assert_eq!(objects::steers(&pod.netns), 0);
    assert_eq!(mesh.entries("POD_BY_NETNS"), 1);
    assert!(connect(&mesh.bed, first, vip4()).data.starts_with("proxy "));
    pod
}

#[test]
fn full_address_map_is_refused_by_name_and_at_the_limit_only() {
    let mut mesh = Mesh::new("addrs");
    let (first, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let data = MapData::from_pin(mesh.pin("POD_BY_ADDR")).unwrap();
    let map = Map::from_map_data(data).unwrap();
    let mut map: HashMap<MapData, Addr, PodAddr> = map.try_into().unwrap();
    let nobody = PodAddr {
        pod_id: u32::MAX,
        generation: 0,
        fail: FAIL_OPEN,
        inbound: 0,
        flags: 0,
        _pad: 0,
    };
    let addr = |number: u32| Addr::from_v6_be([0xfd, 1, 2, number]);
    // The first has two addresses; the second would need two places and finds one.
    for number in 0..get("POD_BY_ADDR").capacity - 3 {
        map.insert(addr(number), nobody, 0).unwrap();
    }
    let pod = refused_when_full(&mut mesh, "POD_BY_ADDR", &first);
    assert_eq!(mesh.entries("LISTENERS"), 4, "the second's are gone");
    map.remove(&addr(0)).unwrap();
    mesh.agent()
        .enrol("b", &pod.netns, false)
        .expect("two places are enough");
}

#[test]
fn full_listener_map_is_refused_by_name_and_at_the_limit_only() {
    let mut mesh = Mesh::new("listen");
    let (first, _) = mesh.live_pod("a", false);
    mesh.proxied();
    // One socket under many keys. It stands for those of many workloads.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let key = |number| ListenerKey {
        pod_id: u32::MAX - number,
        kind: KIND_OUT,
        shard: 0,
    };
    // Two shards stand for each direction, and four more would be needed where three places are
    // left.
    let many = get("LISTENERS").capacity - 7;
    let pin = mesh.pin("LISTENERS");
    foreign::fill_listeners(&pin, (0..many).map(key), &socket);
    let pod = refused_when_full(&mut mesh, "LISTENERS", &first);
    // The kernel takes closed sockets out of the map itself.
    drop(socket);
    mesh.eventually("there is room again", || {
        mesh.agent().enrol("b", &pod.netns, false).is_ok()
    });
}

#[test]
fn table_that_does_not_fit_changes_nothing() {
    let mut mesh = Mesh::new("table");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let before = format!("{:?}", mesh.view().services());
    let capacity = get("SERVICES").capacity;
    let many: Vec<Service> = (0..=capacity)
        .map(|number| {
            let ip = std::net::Ipv4Addr::from_bits(0x0a60_0000 + number);
            Service::proxy((ip, 80).into())
        })
        .collect();
    let error = mesh.agent().table(&many, &[]).expect_err("refused");
    assert!(
        error.contains("map SERVICES is full: 131073 entries are needed"),
        "{error}"
    );
    assert_eq!(before, format!("{:?}", mesh.view().services()));
    assert!(
        connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "),
        "{VIP4} is served still"
    );
}

fn address(number: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into()
}

/// Without it: a full half of the rules can't be exchanged for another full half, and the refusal
/// comes in the middle of writing.
#[test]
fn rules_that_do_not_fit_beside_the_old_ones_take_their_place() {
    let mesh = Mesh::new("halves");
    let rules = |from: u32, count: u32| -> Vec<_> {
        let numbers = from..from + count;
        numbers.map(|n| (address(n), 32, 0, OUT_DENY)).collect()
    };
    mesh.agent().table(&[], &rules(0, 40_000)).unwrap();
    mesh.agent().table(&[], &rules(40_000, 40_000)).unwrap();
    assert_eq!(mesh.entries("OUT_RULES"), 40_000);
    let capacity = get("OUT_RULES").capacity;
    let error = mesh
        .agent()
        .table(&[], &rules(0, capacity + 1))
        .expect_err("refused");
    assert!(
        error.contains("map OUT_RULES is full: 65537 entries are needed"),
        "{error}"
    );
    assert_eq!(mesh.entries("OUT_RULES"), 40_000);
    mesh.agent().table(&[], &[]).unwrap();
    assert_eq!(mesh.entries("OUT_RULES"), 0);
}

/// Without it: a table that failed half-way leaves entries that no later table takes away.
#[test]
fn table_that_failed_half_way_is_taken_back_by_the_next_one() {
    let mut mesh = Mesh::new("torn");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let services = [Service::proxy(vip4()), Service::proxy(vip6())];
    let before = format!("{:?}", mesh.view().services());
    // Somebody else's entries: room for two of the three rules.
    let capacity = get("OUT_RULES").capacity;
    let map = Map::LpmTrie(MapData::from_pin(mesh.pin("OUT_RULES")).unwrap());
    let mut map: LpmTrie<_, OutRuleKey, u32> = map.try_into().unwrap();
    for number in 0..capacity - 2 {
        let key = OutRuleKey {
            proto: 6,
            family: 4,
            port_be: [0; 2],
            addr: Addr::from_ip(address(number)),
        };
        let key = lpm_trie::Key::new(OUT_RULE_FIXED_BITS + 128, key);
        map.insert(&key, OUT_DENY, 0).unwrap();
    }
    let end = (address(1 << 20), 80);
    let torn = [services[0].clone().to(&[end.into()])];
    let rules = [1_u16, 2, 3].map(|port| (VIP4, 32, port, OUT_DENY));
    let error = mesh.agent().table(&torn, &rules).expect_err("no room");
    assert!(error.contains("OUT_RULES"), "{error}");
    assert_eq!(mesh.entries("OUT_RULES"), u64::from(capacity), "torn");
    mesh.agent().table(&services, &[]).unwrap();
    assert_eq!(mesh.entries("OUT_RULES"), 0);
    assert_eq!(before, format!("{:?}", mesh.view().services()));
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
    mesh.agent().table(&torn, &rules).expect("it fits now");
    assert_eq!(mesh.entries("OUT_RULES"), 3);
}

/// Without it: a proxy takes a connection that it can't place, and guesses.
#[test]
fn unknown_original_destination_is_none_never_a_guess() {
    let mut mesh = Mesh::new("origin");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    // Straight to the agent's own port on the pod's address, from outside any hook: no flow.
    let listening = mesh.agent().ports();
    let to = std::net::SocketAddr::new(pod.v4.into(), listening[0]);
    mesh.bed
        .in_node(move || std::net::TcpStream::connect_timeout(&to, crate::support::LIMIT).unwrap())
        .unwrap();
    mesh.eventually("it is accepted", || mesh.agent().accepts().len() == 1);
    let accept = mesh.agent().accepts().remove(0);
    assert_eq!(
        (accept.asked, accept.local),
        (None, to),
        "the proxy can refuse it by name"
    );
}
