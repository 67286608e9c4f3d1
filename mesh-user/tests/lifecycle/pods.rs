//! Pods come and go.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use mesh_user::admin::WorkloadState;

use crate::scene::{self, SPLIT, Scene, Talker, VIP4, eventually, json, kernel_count, live, start};

#[test]
fn late_namespace_is_enrolled_and_said_to_be_missing_before() {
    let mut scene = scene::build("t-later");
    let path = scene
        .client
        .netns
        .to_string_lossy()
        .replace("-client", "-late");
    let text = format!(
        "{}  - {{name: late, netns: {path}}}\n",
        scene.config_with(SPLIT)
    );
    std::fs::write(scene.config_path(), text).unwrap();
    scene.spawn_agent().unwrap();
    live(&scene, 2);
    let status = scene.status().unwrap();
    let late = status
        .workloads
        .iter()
        .find(|workload| workload.key == "default/late")
        .unwrap();
    assert_eq!((late.state, late.pod_id), (WorkloadState::Failed, None));
    let error = late.error.as_deref().unwrap_or_default();
    assert!(
        error.contains(&path) && error.contains("gone or never was"),
        "{error}"
    );
    let table = String::from_utf8(scene.mesh(&["status"]).unwrap().stdout).unwrap();
    assert!(
        table.contains("late") && table.contains("failed"),
        "{table}"
    );
    assert_eq!(
        scene.ask(&scene.client, &[]).unwrap().status(200),
        1,
        "the others work"
    );

    let pod = scene.bed.pod("late").unwrap();
    let begun = Instant::now();
    live(&scene, 3);
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    let before = kernel_count(&scene, "captured");
    assert_eq!(scene.ask(&pod, &[]).unwrap().status(200), 1);
    assert_eq!(kernel_count(&scene, "captured") - before, 1);
    scene.tear_down().unwrap();
}

/// The kernel destroys a namespace's veth with it, and the node's end too: what is left there says
/// how many namespaces really stand.
fn namespaces_that_stand(scene: &Scene) -> usize {
    let output = Command::new("ip")
        .args([
            "-n",
            &scene
                .bed
                .node_netns()
                .file_name()
                .unwrap()
                .to_string_lossy(),
        ])
        .args(["-o", "link", "show", "type", "veth"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// Pitfall 19: a namespace that our descriptors keep alive.
#[test]
fn deleted_pod_with_live_connections_is_really_gone_in_two_seconds() {
    let mut scene = start("t-gone", SPLIT);
    let holder = r#"
http = dial(sys.argv[1], 80)
http.sendall(b'GET / HTTP/1.1\r\nhost: web\r\n\r\n')
http.recv(10)
slow = dial(sys.argv[1], 80)
slow.sendall(b'GET /delay/60000 HTTP/1.1\r\nhost: web\r\n\r\n')
tcp = dial(sys.argv[1], 7)
tcp.sendall(b'x')
tcp.recv(1)
tell('open')
threading.Event().wait()
"#;
    let tester = scene.tester.clone();
    let held = Talker::start(&scene, &tester, holder, &[&VIP4.to_string()]);
    assert_eq!(held.next(), "open");
    let before = namespaces_that_stand(&scene);
    scene.bed.remove(&tester).unwrap();
    let removed = Instant::now();
    eventually("the namespace is gone", || {
        namespaces_that_stand(&scene) == before - 1
    });
    assert!(
        removed.elapsed() < Duration::from_secs(2),
        "{:?}",
        removed.elapsed()
    );
    eventually("status says so", || {
        let workloads = scene.status().unwrap().workloads;
        workloads
            .iter()
            .any(|w| w.key == "default/tester" && w.state == WorkloadState::Gone)
    });
    let workloads = json(&scene, &["bpf", "workloads", "list", "-o", "json"]).to_string();
    assert!(!workloads.contains("tester"), "{workloads}");
    assert_eq!(
        scene.ask(&scene.client, &[]).unwrap().status(200),
        1,
        "the others work"
    );
    // A new pod by the same name is the same workload.
    let again = scene.bed.pod("tester").unwrap();
    live(&scene, 2);
    assert_eq!(scene.ask(&again, &[]).unwrap().status(200), 1);
    scene.tear_down().unwrap();
}
