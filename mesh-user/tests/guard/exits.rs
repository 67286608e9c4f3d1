//! Where the guard stands, beside others, and when it goes.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
};

use mesh_user::{
    kernel::{cleanup::cleanup, mounts},
    testbed::Pod,
};

use crate::support::{
    Mesh,
    client::{connect, python},
    foreign::Classifier,
    objects, serve_in, vip4,
};

/// Sends a SYN that nobody opened; and a datagram.
const RAW_SYN: &str = r"
import socket, struct, sys
source, to = socket.inet_aton(sys.argv[1]), socket.inet_aton(sys.argv[2])
s = socket.socket(2, 3, 255)
for i in range(int(sys.argv[3])):
    t = struct.pack('>HHIIBBHHH', 40000 + i, 80, 7, 0, 0x50, 2, 1024, 0, 0)
    h = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 40, 1, 0, 64, 6, 0, source, to)
    s.sendto(h + t, (sys.argv[2], 0))
";

fn raw_syns(mesh: &Mesh, pod: &Pod, to: &Pod, count: usize) {
    let args = [pod.v4.to_string(), to.v4.to_string(), count.to_string()];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    python(&mesh.bed, pod, RAW_SYN, &args);
}

fn node(mesh: &Mesh, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdout(Stdio::piped());
    let child = mesh.bed.spawn_node(command).expect("sh");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{line}");
    String::from_utf8(output.stdout).expect("text")
}

fn guard_pins(mesh: &Mesh) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(mesh.pin("links")).expect("links");
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.to_string_lossy().contains("egress_guard-"))
        .collect()
}

/// Without it: `bypass-guard` needs a restart, or stays when it was switched off.
#[test]
fn guard_is_switched_live_and_leaves_nothing_when_off() {
    let mut mesh = Mesh::new("gswitch");
    let there = mesh.bed.pod("b").expect("a pod");
    let (pod, id) = mesh.live_pod("a", false);
    for round in 1..=3 {
        raw_syns(&mesh, &pod, &there, 2);
        assert_eq!(mesh.count("refuse_guard_syn"), 5 * (round - 1), "off");
        mesh.agent().guard(id, false, true).expect("on");
        assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (1, 1));
        raw_syns(&mesh, &pod, &there, 5);
        assert_eq!(mesh.count("refuse_guard_syn"), 5 * round, "on");
        mesh.agent().guard(id, false, false).expect("off");
        assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (0, 0));
    }
}

/// A restart adopts the link and puts its own program there; there is no moment without.
#[test]
fn guard_stands_while_no_agent_runs_and_is_adopted() {
    let mut mesh = Mesh::new("gadopt");
    let there = mesh.bed.pod("b").expect("a pod");
    let pod = mesh.bed.pod("a").expect("a pod");
    let id = mesh.agent().enrol_guarded("a", &pod.netns, false);
    mesh.agent().live(id.expect("enrolled")).expect("live");
    let before = objects::ids(&mesh.instance);
    mesh.agent = None;
    raw_syns(&mesh, &pod, &there, 3);
    assert_eq!(mesh.count("refuse_guard_syn"), 3, "the agent is dead");
    mesh.start_agent(2, false).expect("started again");
    raw_syns(&mesh, &pod, &there, 3);
    assert_eq!(mesh.count("refuse_guard_syn"), 6, "not enrolled again yet");
    let id = mesh.agent().enrol_guarded("a", &pod.netns, false);
    mesh.agent().live(id.expect("enrolled")).expect("live");
    raw_syns(&mesh, &pod, &there, 3);
    assert_eq!(mesh.count("refuse_guard_syn"), 9);
    assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (1, 1));
    let after = objects::ids(&mesh.instance);
    let links = |ids: &[String]| {
        let links = ids.iter().filter(|id| id.starts_with("link"));
        links.cloned().collect::<Vec<_>>()
    };
    assert_eq!(links(&before), links(&after), "the same links");
    assert_ne!(before, after, "other programs");
    // Enrolled without it: gone.
    mesh.agent = None;
    mesh.start_agent(2, false).expect("started again");
    let id = mesh
        .agent()
        .enrol("a", &pod.netns, false)
        .expect("enrolled");
    mesh.agent().live(id).expect("live");
    assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (0, 0));
}

/// Without it: pins and entries pile up, and an interface that gets the number is another pod's.
#[test]
fn guard_goes_with_its_workload() {
    let mut mesh = Mesh::new("ggone");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    mesh.bed.remove(&pod).expect("removed");
    mesh.eventually("the workload is gone", || mesh.agent().poll() == [id]);
    assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (0, 0));
    // The same while no agent looks.
    let (pod, id) = mesh.live_pod("b", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    mesh.agent = None;
    mesh.bed.remove(&pod).expect("removed");
    mesh.start_agent(2, false).expect("started again");
    assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (0, 0));
    let (_, id) = mesh.live_pod("c", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    mesh.agent().release(id);
    assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (0, 0));
}

/// Pitfalls 26 and 27: programs of others before and after ours still see every packet that ours
/// lets through, survive switching it on and off, and what ours drops ends here.
#[test]
fn foreign_tc_programs_run_and_survive() {
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("BPF statistics");
    for tcx in [true, false] {
        let mut mesh = Mesh::new("gforeign");
        let there = mesh.bed.pod("b").expect("a pod");
        let port = serve_in(&mesh.bed, &there, "server");
        let (pod, id) = mesh.live_pod("a", false);
        if !tcx {
            mesh.agent().without_tcx();
            node(&mesh, "tc qdisc add dev v2 clsact");
        }
        let index = node(&mesh, "cat /proc/net/igmp | grep -w v2 | cut -f1");
        let index: u32 = index.trim().parse().expect("an interface number");
        let add = |before: bool| {
            if tcx {
                let made = mesh.bed.in_node(move || Classifier::tcx(index, before));
                return made.expect("netns");
            }
            let pref = if before { 1 } else { 7 };
            let name = format!("{}-foreign-{pref}", mesh.instance.name());
            let pin = mounts::bpffs().expect("mounts").expect("bpffs").join(name);
            let program = Classifier::pinned(&pin);
            node(
                &mesh,
                &format!(
                    "tc filter add dev v2 ingress pref {pref} bpf da object-pinned {}",
                    pin.display()
                ),
            );
            program
        };
        let after = add(false);
        mesh.agent().guard(id, false, true).expect("guarded");
        assert_eq!(mesh.agent().audit(), Vec::<String>::new());
        let before = add(true);
        let to = SocketAddr::new(there.v4.into(), port);
        assert!(connect(&mesh.bed, &pod, to).data.starts_with("server"));
        let passed = (before.runs(), after.runs());
        assert!(passed.0 >= 4 && passed.1 >= 4, "{tcx}: {passed:?}");
        raw_syns(&mesh, &pod, &there, 50);
        assert_eq!(mesh.count("refuse_guard_syn"), 50, "{tcx}");
        assert!(before.runs() - passed.0 >= 50, "{tcx}: before ours");
        assert!(after.runs() - passed.1 < 50, "{tcx}: after ours");
        if tcx {
            // It could let through what ours would drop: somebody should know.
            let told = mesh.agent().audit();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].ends_with("Foreign"), "{told:?}");
        }
        mesh.agent().guard(id, false, false).expect("off");
        let passed = (before.runs(), after.runs());
        raw_syns(&mesh, &pod, &there, 50);
        assert_eq!(mesh.count("refuse_guard_syn"), 50, "{tcx}: off");
        assert!(
            before.runs() - passed.0 >= 50 && after.runs() - passed.1 >= 50,
            "{tcx}"
        );
    }
}

/// Kernels below 6.6: the filter does the same, is adopted, and a cleanup takes it away.
#[test]
fn filter_guards_where_tcx_is_refused() {
    let mut mesh = Mesh::new("gclsact");
    let there = mesh.bed.pod("b").expect("a pod");
    let port = serve_in(&mesh.bed, &there, "server");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().without_tcx();
    mesh.agent().guard(id, false, true).expect("guarded");
    assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (1, 0));
    let filters = |mesh: &Mesh| {
        let text = node(mesh, "tc filter show dev v2 ingress");
        text.matches("egress_guard direct-action").count()
    };
    assert_eq!(filters(&mesh), 1);
    raw_syns(&mesh, &pod, &there, 4);
    assert_eq!(mesh.count("refuse_guard_syn"), 4);
    let to = SocketAddr::new(there.v4.into(), port);
    let seen = connect(&mesh.bed, &pod, to);
    assert!(seen.data.starts_with("server"), "{seen:?}");
    assert_eq!(mesh.agent().audit(), Vec::<String>::new());
    node(&mesh, "tc filter del dev v2 ingress");
    assert_eq!(mesh.agent().audit().len(), 1, "put back");
    assert_eq!(filters(&mesh), 1);
    mesh.agent = None;
    raw_syns(&mesh, &pod, &there, 4);
    assert_eq!(mesh.count("refuse_guard_syn"), 8);
    mesh.start_agent(2, false).expect("started again");
    assert_eq!(filters(&mesh), 1, "one, not two");
    raw_syns(&mesh, &pod, &there, 4);
    assert_eq!(mesh.count("refuse_guard_syn"), 12);
    mesh.agent = None;
    let instance = mesh.instance.clone();
    let report = mesh
        .bed
        .in_node(move || cleanup(&instance, false, false))
        .expect("netns");
    assert_eq!(report.failed, Vec::<String>::new());
    assert_eq!(filters(&mesh), 0);
}

/// A second interface that the platform adds is guarded by the next look.
#[test]
fn second_interface_is_found_and_guarded() {
    let mut mesh = Mesh::new("gsecond");
    let there = mesh.bed.pod("b").expect("a pod");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    let netns = pod.netns.file_name().expect("a name").to_string_lossy();
    node(
        &mesh,
        &format!(
            "ip link add second type veth peer name net1 netns {netns} && \
             ip link set second master br0 up && ip -n {netns} link set net1 up"
        ),
    );
    let told = mesh.agent().audit();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("egress_guard at interface"), "{told:?}");
    assert_eq!(mesh.entries("GUARDED"), 2);
    let script = RAW_SYN.replace(
        "s = socket.socket(2, 3, 255)",
        "s = socket.socket(2, 3, 255); s.setsockopt(1, 25, b'net1')",
    );
    let args = [pod.v4.to_string(), there.v4.to_string(), "3".to_owned()];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    python(&mesh.bed, &pod, &script, &args);
    mesh.eventually("dropped there too", || mesh.count("refuse_guard_syn") == 3);
    node(&mesh, "ip link del second");
    mesh.agent().audit();
    assert_eq!((mesh.entries("GUARDED"), guard_pins(&mesh).len()), (1, 1));
}

/// Without it: `bypass-guard: on` is said of a pod that leaves by another way.
#[test]
fn way_out_that_is_no_veth_on_the_node_is_refused_or_named() {
    let mut mesh = Mesh::new("ggap");
    let other = mesh.bed.pod("b").expect("a pod");
    let pod = mesh.bed.pod("a").expect("a pod");
    let name = |pod: &Pod| pod.netns.file_name().expect("a name").display().to_string();
    let line = format!(
        "ip -n {} link add direct type veth peer name direct netns {}",
        name(&pod),
        name(&other)
    );
    node(&mesh, &line);
    let error = mesh.agent().enrol_guarded("a", &pod.netns, true);
    let error = error.expect_err("closed");
    assert!(
        error.contains("direct is a veth whose other end is not on the node"),
        "{error}"
    );
    // Refused, but held: nothing goes past the mesh meanwhile.
    mesh.proxied();
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!(seen.errno, libc::ECONNREFUSED);
    let id = mesh.agent().enrol_guarded("a", &pod.netns, false);
    let id = id.expect("open goes on");
    mesh.agent().live(id).expect("live");
    raw_syns(&mesh, &pod, &other, 3);
    assert_eq!(mesh.count("refuse_guard_syn"), 3, "the others are guarded");
    // Of a workload that is live: its failure mode holds until the way is gone.
    node(&mesh, &format!("ip -n {} link del direct", name(&pod)));
    mesh.agent().guard(id, true, true).expect("closed now");
    node(&mesh, &line);
    let told = mesh.agent().audit();
    assert!(told[0].starts_with("guard: Failed"), "{told:?}");
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!(seen.errno, libc::ECONNREFUSED, "{seen:?}");
    node(&mesh, &format!("ip -n {} link del direct", name(&pod)));
    mesh.agent().audit();
    let seen = connect(&mesh.bed, &pod, vip4());
    assert!(seen.data.starts_with("proxy"), "{seen:?}");
}
