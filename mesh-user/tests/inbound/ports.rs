//! Each port for itself.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{
    scene::{self, eventually},
    stage::{DENIED, ECHO, HTTP, OPAQUE, OTHER, PLAIN, Setup, Stage},
};

fn listed(stage: &Stage) -> Vec<(String, String)> {
    let rows = scene::json(&stage.scene, &["bpf", "inbound", "list", "-o", "json"]);
    let rows = rows["items"].as_array().expect("a list").clone();
    let text = |row: &Value, name: &str| row[name].as_str().expect("text").to_owned();
    rows.iter()
        .filter(|row| row["workload"] == "default/app")
        .map(|row| (text(row, "port"), text(row, "action")))
        .collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    list.iter().map(owned).collect()
}

#[test]
fn ports_are_captured_passed_and_dropped_each_for_itself_and_live() {
    let rules = "inbound:\n  - {workload: app, ports: [8080, 9000]}\n  \
                 - {workload: app, ports: [9001], action: deny}\n";
    let stage = Stage::start("in-ports", "", rules);
    let app = stage.app.v4;
    let captured = stage.ask(&stage.outside, app, HTTP, PLAIN);
    assert_eq!(captured.body, stage.outside.v4.to_string(), "{captured:?}");
    assert_ne!(stage.accepted().peer_port, captured.own_port);
    let passed = stage.ask(&stage.outside, app, OTHER, PLAIN);
    assert_eq!(passed.body, stage.outside.v4.to_string());
    assert_eq!(stage.accepted().peer_port, passed.own_port, "untouched");
    assert!(stage.count("steer_pass_in") > 0, "and counted");
    let dropped = stage.ask(&stage.outside, app, DENIED, OPAQUE);
    assert!(dropped.cut(), "{dropped:?}");
    assert!(stage.count("refuse_inbound_rule") > 0);
    let want = [
        ("*", "pass"),
        ("8080", "capture"),
        ("9000", "capture"),
        ("9001", "deny"),
    ];
    assert_eq!(listed(&stage), pairs(&want));
    // Another set of rules, on the same connections.
    let rules = "inbound:\n  - {workload: app, ports: [9001], action: pass}\n  \
                 - {tags: {app: app}, ports: [8081]}\n";
    stage.reload("", rules);
    assert_eq!(listed(&stage), pairs(&[("*", "pass"), ("8081", "capture")]));
    assert_eq!(stage.ask(&stage.outside, app, DENIED, OPAQUE).body, "hello");
    let accepted = stage.accepted();
    assert_eq!(accepted.port, u64::from(DENIED));
    let passed = stage.ask(&stage.outside, app, HTTP, PLAIN);
    assert_eq!(stage.accepted().peer_port, passed.own_port);
    // And none at all.
    stage.reload("", "");
    assert_eq!(listed(&stage), pairs(&[("*", "pass")]));
}

#[test]
fn workload_setting_captures_all_ports_or_none() {
    let rules = "inbound:\n  - {workload: app, ports: [9000], action: pass}\n  \
                 - {workload: app, ports: [9001], action: deny}\n";
    let stage = Stage::start("in-all", "inbound: capture", rules);
    let app = stage.app.v6;
    for (port, how, through) in [
        (HTTP, PLAIN, true),
        (OTHER, PLAIN, true),
        (ECHO, OPAQUE, false),
    ] {
        let seen = stage.ask(&stage.outside, app, port, how);
        assert!(!seen.cut(), "{port}: {seen:?}");
        let accepted = stage.accepted();
        assert_eq!(accepted.peer, stage.outside.v6.to_string());
        assert_eq!(accepted.peer_port != seen.own_port, through, "{port}");
    }
    assert!(stage.ask(&stage.outside, app, DENIED, OPAQUE).cut());
    stage.reload("inbound: pass", rules);
    for (port, how) in [(HTTP, PLAIN), (DENIED, OPAQUE)] {
        let seen = stage.ask(&stage.outside, app, port, how);
        assert_eq!(
            stage.accepted().peer_port,
            seen.own_port,
            "{port}: {seen:?}"
        );
    }
}

/// A cgroup that stands for the kubelet's.
struct Kubelet(PathBuf);

impl Kubelet {
    fn make(stage: &Stage) -> Self {
        let pods = stage.scene.bed.pods_cgroup();
        let path = pods.with_file_name("in-kubelet");
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    /// As the configuration names it: below the cgroup2 mount.
    fn setting(&self) -> String {
        let mount = mesh_user::kernel::mounts::cgroup2().unwrap().unwrap();
        let path = self.0.strip_prefix(mount).unwrap();
        format!("  kubelet-cgroup: {}\n", path.display())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        eventually("the kubelet's cgroup is removed", || {
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

/// Pitfall 21: a probe reaches the application whatever the rules say and whether an agent lives;
/// a client beside it does not.
#[test]
fn probe_of_the_kubelet_passes_a_denied_port_with_and_without_an_agent() {
    let mut stage = Stage::build("in-probe");
    let kubelet = Kubelet::make(&stage);
    let agent = kubelet.setting();
    let rules = "inbound:\n  - {workload: app, ports: [8080], action: deny}\n  \
                 - {workload: app, allow: {cidr: 192.0.2.0/24}}\n";
    let text = stage.config(&Setup {
        app: "failure: closed",
        more: rules,
        agent: &agent,
    });
    stage.scene.start_with(&text).unwrap();
    scene::live(&stage.scene, 3);
    let node = stage.scene.bed.pods_cgroup().with_file_name("node");
    for _agent in ["alive", "dead"] {
        for (to, from) in [
            (stage.app.v4.into(), "10.77.0.1"),
            (std::net::IpAddr::from(stage.app.v6), "fd77::1"),
        ] {
            for port in [HTTP, OTHER] {
                let before = stage.count("steer_pass_probe");
                let probe = stage.ask_from_cgroup(&kubelet.0, to, port);
                assert_eq!((probe.status, &*probe.body), (200, from), "{probe:?}");
                assert_eq!(stage.accepted().peer_port, probe.own_port, "untouched");
                assert_eq!(stage.count("steer_pass_probe"), before + 1);
                let other = stage.ask_from_cgroup(&node, to, port);
                assert_ne!(
                    other.status, 200,
                    "the same node, another cgroup: {other:?}"
                );
            }
        }
        stage.scene.kill_agent().unwrap();
        eventually("the heartbeat is old", || {
            stage
                .ask_from_cgroup(&node, stage.app.v4.into(), OTHER)
                .cut()
        });
    }
    assert_eq!(stage.others(), Vec::new());
}

/// systemd makes the cgroup anew when the kubelet restarts: the link of before is dead.
#[test]
fn kubelet_that_was_restarted_is_followed() {
    let mut stage = Stage::build("in-again");
    let kubelet = Kubelet::make(&stage);
    let agent = kubelet.setting();
    let rules = "inbound:\n  - {workload: app, ports: [8080], action: deny}\n";
    let text = stage.config(&Setup {
        app: "",
        more: rules,
        agent: &agent,
    });
    stage.scene.start_with(&text).unwrap();
    scene::live(&stage.scene, 3);
    let ask = |stage: &Stage| stage.ask_from_cgroup(&kubelet.0, stage.app.v4.into(), HTTP);
    assert_eq!(ask(&stage).status, 200);
    eventually("the cgroup goes", || fs::remove_dir(&kubelet.0).is_ok());
    fs::create_dir(&kubelet.0).unwrap();
    eventually("the new one is followed", || ask(&stage).status == 200);
    let rows = scene::json(&stage.scene, &["bpf", "progs", "-o", "json"]);
    let rows = rows["items"].as_array().expect("a list").clone();
    let probes = rows.iter().filter(|row| row["program"] == "probe_ops");
    assert_eq!(probes.count(), 1, "the dead link is gone: {rows:?}");
    let status = scene::json(&stage.scene, &["status", "-o", "json"]);
    assert!(status.to_string().contains("in-kubelet"), "{status}");
}

#[test]
fn kubelet_cgroup_that_is_not_there_is_refused_by_name() {
    let stage = Stage::build("in-nokube");
    let text = stage.config(&Setup {
        app: "",
        more: "",
        agent: "  kubelet-cgroup: nowhere/kubelet.service\n",
    });
    fs::write(stage.scene.config_path(), text).unwrap();
    let path = stage.scene.config_path();
    let path = path.to_str().unwrap();
    let output = stage.scene.mesh(&["run", "--config", path]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        text.contains("the kubelet's cgroup") && text.contains("nowhere"),
        "{text}"
    );
}
