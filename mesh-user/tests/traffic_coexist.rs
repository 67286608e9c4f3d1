//! Side by side with what others attach on the same machine: socket load balancers at every
//! distance, tc and XDP programs, marks, conntrack, private cgroup namespaces. Whole agent,
//! unmodified programs, the real kernel.

#[path = "support/foreign.rs"]
#[expect(dead_code, reason = "each test file uses its own part")]
mod foreign;
mod scene;

use std::{
    fs,
    net::SocketAddrV4,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use foreign::{DeviceProgram, LoadBalancer};
use mesh_common::abi::{CAPTURE_MARK, MARK_MASK};
use mesh_user::{
    kernel::cleanup,
    testbed::{Pod, wait_until},
};
use scene::{PORT, SPLIT, Scene, VIP4, told};
use serde_json::Value;

/// Everything goes to v2.
const ALL_TO_V2: &str = "
rules:
  - {name: all, service: web, route: [{version: v2}]}
";
/// The agent looks for hooks of others each 10 s.
const LOOK: Duration = Duration::from_secs(25);

fn pod(scene: &Scene, name: &str) -> Pod {
    let pods = scene.bed.pods();
    pods.iter()
        .find(|pod| pod.name == name)
        .expect("a pod")
        .clone()
}

/// A load balancer at a cgroup that sends the virtual address to an endpoint of v1.
fn to_v1(scene: &Scene, cgroup: &Path) -> LoadBalancer {
    let endpoint = SocketAddrV4::new(pod(scene, "web-v1-a").v4, 8080);
    LoadBalancer::at(cgroup, SocketAddrV4::new(VIP4, PORT), endpoint)
}

/// The version that answers the client.
fn version(scene: &Scene) -> String {
    let answers = scene.ask(&scene.client, &[]).expect("asked");
    let versions: Vec<&String> = answers.versions.keys().collect();
    assert_eq!(versions.len(), 1, "{answers:?}");
    versions[0].clone()
}

/// The line of `mesh check`: whether it is good, and what was found.
fn before_ours(scene: &Scene) -> (bool, String) {
    let output = scene.mesh(&["check", "-o", "json"]).expect("runs");
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let items = document["items"].as_array().expect("a list");
    let line = items
        .iter()
        .find(|item| item["name"] == "connect hooks before ours");
    let line = line.unwrap_or_else(|| panic!("{document}"));
    let found = line["found"].as_str().expect("text").to_owned();
    (line["ok"] == true, found)
}

/// Events about hooks of others since the agent's start, once there is one.
fn foreign_events(scene: &Scene) -> Vec<Value> {
    let mut events = Vec::new();
    wait_until(LOOK, || {
        let text = fs::read_to_string(scene.dir().join("agent.log")).unwrap_or_default();
        let warned = text
            .lines()
            .filter(|line| line.contains("runs before ours"));
        events = warned.map(|line| line.into()).collect();
        !events.is_empty()
    });
    events
}

/// Pitfall 11. Without it: a load balancer below our attach point hides the services, and nobody
/// says so.
#[test]
fn load_balancer_deeper_than_ours_is_an_event_and_a_line_of_the_check() {
    let scene = scene::start("kn-deep", ALL_TO_V2);
    assert_eq!(
        (version(&scene).as_str(), before_ours(&scene).0),
        ("v2", true)
    );
    let balancer = to_v1(&scene, &scene.client.cgroup);
    assert_eq!(
        version(&scene),
        "v1",
        "it runs before ours and hides the address"
    );
    let (good, found) = before_ours(&scene);
    let cgroup = scene
        .client
        .cgroup
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert!(
        !good && found.contains(&cgroup) && found.contains("connect4"),
        "{found}"
    );
    let events = foreign_events(&scene);
    assert_eq!(events.len(), 1, "told once: {events:?}");
    assert!(events[0].to_string().contains(&cgroup), "{events:?}");
    drop(balancer);
    assert_eq!(
        (version(&scene).as_str(), before_ours(&scene).0),
        ("v2", true)
    );
}

/// Pitfall 11. At one cgroup the order of attaching decides: after ours it changes nothing, before
/// ours it is named. At a parent it never hides anything.
#[test]
fn load_balancer_at_our_own_or_a_parent_cgroup_matters_only_when_it_came_first() {
    let mut scene = scene::build("kn-same");
    let text = scene.config_with(ALL_TO_V2);
    let points = scene.bed.pods_cgroup();
    let first = to_v1(&scene, &points);
    scene.start_with(&text).expect("the agent starts");
    let (good, found) = before_ours(&scene);
    assert!(!good && found.contains("/pods before connect4"), "{found}");
    assert_eq!(version(&scene), "v1");
    drop(first);
    let parent = points.parent().expect("the bed's").to_owned();
    for cgroup in [&points, &parent] {
        let _later = to_v1(&scene, cgroup);
        assert_eq!(
            before_ours(&scene),
            (true, "none".to_owned()),
            "{}",
            cgroup.display()
        );
        assert_eq!(
            version(&scene),
            "v2",
            "{}: the address is seen",
            cgroup.display()
        );
    }
}

/// Number of the node's end of a pod's veth.
fn veth(scene: &Scene, pod: &Pod) -> u32 {
    let line = scene::shell(scene, pod, "ip -o link show dev eth0");
    // `2: eth0@if5: <...`
    let peer = line
        .split("@if")
        .nth(1)
        .and_then(|rest| rest.split(':').next());
    peer.and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{line}"))
}

/// Pitfall 27. Without it: the mesh takes away what a CNI attached.
#[test]
fn foreign_tc_and_xdp_programs_survive_enrolment_release_and_cleanup() {
    let mut scene = scene::build("kn-dev");
    let interface = veth(&scene, &scene.client);
    let programs = scene
        .bed
        .in_node(move || [DeviceProgram::xdp(interface), DeviceProgram::tcx(interface)])
        .expect("the node's namespace");
    let stand = |when: &str| {
        for program in &programs {
            assert_eq!(program.interface(), interface, "{when}");
        }
    };
    let text = scene.config_with(SPLIT);
    scene.start_with(&text).expect("the agent starts");
    assert_eq!(scene.ask(&scene.client, &[]).expect("asked").status(200), 1);
    stand("enrolled");
    let without = text.replace("workloads:", "workloads: []\nx-none:");
    let without = without
        .split("\nx-none:")
        .next()
        .expect("a head")
        .to_owned();
    scene.put_in_force(&without).expect("nobody is captured");
    stand("released");
    scene.put_in_force(&text).expect("in force");
    scene::live(&scene, 2);
    stand("enrolled again");
    scene.kill_agent().expect("killed");
    let report = cleanup::cleanup(&scene.instance, false, true);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    stand("cleaned up");
}

/// Connects with each mark that the arguments name; the mark before and after.
const MARKS: &str = r#"
told = []
for mark in map(int, sys.argv[3:]):
    s = socket.socket()
    s.settimeout(5)
    s.setsockopt(socket.SOL_SOCKET, 36, struct.pack('I', mark))
    s.connect((sys.argv[1], int(sys.argv[2])))
    told.append(struct.unpack('I', s.getsockopt(socket.SOL_SOCKET, 36, 4))[0])
    s.close()
tell(told)
"#;

/// Pitfall 34. Whatever bits an application or a CNI has set: only ours are ever changed.
#[test]
fn only_our_mark_bits_are_changed_whatever_the_others_are() {
    let scene = scene::start("kn-mark", SPLIT);
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock");
    let seed = since.as_nanos() as u64;
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    };
    let mut marks: Vec<u32> = (0..64).map(|_| random()).collect();
    // Istio, Cilium, Calico, kube-proxy; ours already there; all and none.
    marks.extend([0x539, 0x0f00, 0xff00_0000, 0xc000, MARK_MASK, u32::MAX, 0]);
    for (to, ours) in [(VIP4, CAPTURE_MARK), (pod(&scene, "web-v2").v4, 0)] {
        let port = if to == VIP4 { PORT } else { 8080 };
        let mut arguments = vec![to.to_string(), port.to_string()];
        arguments.extend(marks.iter().map(u32::to_string));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let seen = told(&scene, &scene.client, MARKS, &arguments);
        let seen: Vec<u32> = serde_json::from_value(seen).expect("marks");
        let expected: Vec<u32> = marks.iter().map(|mark| mark & !MARK_MASK | ours).collect();
        assert_eq!(seen, expected, "to {to}, seed {seed}");
    }
}

/// Pitfall 34. Other bits by configuration: used, alone changed, not exchanged under enrolled
/// workloads, and their rules go with a cleanup.
#[test]
fn configured_mark_bits_are_the_only_ones_used_and_leave_no_rule_behind() {
    let mut scene = scene::build("kn-bits");
    let usual = scene.config_with(SPLIT);
    let marks = "agent:\n  marks: {capture-bit: 5, agent-bit: 6}\n";
    scene
        .start_with(&usual.replace("agent:\n", marks))
        .expect("the agent starts");
    let to = [
        VIP4.to_string(),
        PORT.to_string(),
        u32::MAX.to_string(),
        "0".to_owned(),
    ];
    let to = to.each_ref().map(String::as_str);
    let seen = told(&scene, &scene.client, MARKS, &to);
    assert_eq!(seen, serde_json::json!([!0x40_u32, 0x20]));
    let rules = "ip rule; ip -6 rule";
    let found = scene::shell(&scene, &scene.client, rules);
    assert_eq!(found.matches("fwmark 0x20/0x60").count(), 2, "{found}");
    scene.kill_agent().expect("killed");
    fs::write(scene.config_path(), &usual).expect("written");
    scene.spawn_agent().expect("spawned");
    let refused = wait_until(LOOK, || {
        let text = fs::read_to_string(scene.dir().join("agent.log")).unwrap_or_default();
        text.contains("run `mesh cleanup` first")
    });
    assert!(
        refused,
        "other bits under enrolled workloads are refused by name"
    );
    let report = cleanup::cleanup(&scene.instance, false, true);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let left = scene::shell(&scene, &scene.client, rules);
    assert!(!left.contains("fwmark"), "{left}");
}

/// Pitfall 33. Nothing that we do makes an entry in a pod's connection tracking.
#[test]
fn no_conntrack_entry_appears_in_a_workload() {
    let scene = scene::start("kn-track", SPLIT);
    let answers = scene
        .ask(&scene.client, &["--count", "20", "--close"])
        .expect("asked");
    assert_eq!(answers.status(200), 20, "{answers:?}");
    let line = "cat /proc/self/net/nf_conntrack 2>/dev/null; \
                cat /proc/sys/net/netfilter/nf_conntrack_count 2>/dev/null; true";
    for pod in [&scene.client, &pod(&scene, "web-v2")] {
        let found = scene::shell(&scene, pod, line);
        assert!(["", "0"].contains(&found.trim()), "{}: {found}", pod.name);
    }
    let rules =
        "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names 2>/dev/null; true";
    assert_eq!(
        scene::shell(&scene, &scene.client, rules),
        "",
        "no table of iptables"
    );
}

/// Pitfall 12. An agent whose container has a cgroup namespace of its own finds the same cgroups by
/// the mount table, attaches where it should, and is known by its own cgroup.
#[test]
fn agent_in_a_private_cgroup_namespace_captures_as_any_other() {
    let script = std::env::temp_dir().join(format!("kn-private-{}", std::process::id()));
    let mesh = env!("CARGO_BIN_EXE_mesh");
    fs::write(
        &script,
        format!("#!/bin/sh\nexec unshare --cgroup {mesh} \"$@\"\n"),
    )
    .expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut scene = Scene::build("kn-private", &script).expect("the scene is made");
    let text = scene.config_with(SPLIT);
    let started = scene.start_with(&text);
    fs::remove_file(&script).ok();
    started.expect("the agent starts");
    let command = std::process::Command::new(mesh)
        .args(["--instance", "kn-private", "bpf", "progs", "-o", "json"])
        .output()
        .expect("runs");
    let rows: Value = serde_json::from_slice(&command.stdout).expect("JSON");
    let at = |program: &str| {
        let rows = rows["items"].as_array().expect("a list").iter();
        let found = rows.filter(|row| row["program"] == program);
        found
            .map(|row| row["attached"].as_str().expect("text").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(at("connect4"), ["/mb-kn-private/pods"]);
    let agent = "/mesh-agent-kn-private".to_owned();
    assert!(at("flow_ops").contains(&agent), "{:?}", at("flow_ops"));
    // The script is gone: ask with a plain client.
    let program = "s = dial(sys.argv[1], int(sys.argv[2]))\n\
                   s.sendall(b'GET / HTTP/1.1\\r\\nhost: web\\r\\nconnection: close\\r\\n\\r\\n')\n\
                   tell(everything(s).split(b'\\r\\n')[0].decode())";
    let to = [VIP4.to_string(), PORT.to_string()];
    let to = to.each_ref().map(String::as_str);
    assert_eq!(told(&scene, &scene.client, program, &to), "HTTP/1.1 200 OK");
    let stats = std::process::Command::new(mesh)
        .args([
            "--instance",
            "kn-private",
            "bpf",
            "stats",
            "list",
            "-o",
            "json",
        ])
        .output()
        .expect("runs");
    let stats: Value = serde_json::from_slice(&stats.stdout).expect("JSON");
    let captured = stats["items"].as_array().expect("a list").iter();
    let captured = captured
        .filter(|row| row["reason"] == "captured")
        .map(|row| row["count"].clone());
    assert_eq!(
        captured.collect::<Vec<_>>(),
        [Value::from(1)],
        "the agent's own dial is not"
    );
    // `mesh` of the scene is the script: stop by hand.
    scene.kill_agent().expect("killed");
}
