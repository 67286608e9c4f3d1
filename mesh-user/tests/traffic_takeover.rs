//! One agent takes over from another (`mesh run --takeover`) under traffic, end to end.

#[path = "takeover/failures.rs"]
mod failures;
#[path = "takeover/handover.rs"]
mod handover;

mod scene;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use mesh_user::{demo::load::Report, testbed::wait_until};
use scene::{Scene, json, kernel_count};

/// How long a successor may take here: two cores, and others on them.
const READY: Duration = Duration::from_secs(20);

/// Starts a successor with the configuration in force and waits until the admin socket is its own.
/// The agent before, which leaves now.
fn take_over(scene: &mut Scene) -> Child {
    let config = scene.config_path();
    let mut successor = scene.spawn_successor(&config).expect("it starts");
    let pid = successor.id();
    let begun = Instant::now();
    let taken = wait_until(READY, || {
        let ended = successor.try_wait().expect("a child");
        assert!(ended.is_none(), "the successor ended: {ended:?}");
        owner(scene) == Some(pid)
    });
    assert!(taken, "not taken over after {:?}", begun.elapsed());
    scene.replace_agent(successor).expect("one ran before")
}

/// Who answers on the admin socket.
fn owner(scene: &Scene) -> Option<u32> {
    scene.status().ok().map(|status| status.pid)
}

/// Waits for a process's end; its exit code.
fn exit_code(process: &mut Child, limit: Duration) -> Option<i32> {
    let mut status = None;
    let ended = wait_until(limit, || {
        status = process.try_wait().expect("a child");
        status.is_some()
    });
    if !ended {
        process.kill().ok();
        process.wait().ok();
        panic!("it runs after {limit:?}");
    }
    status.expect("it ended").code()
}

/// Programs by attach point and name, as `mesh bpf progs` says.
fn hooks(scene: &Scene) -> BTreeMap<(String, String), usize> {
    let rows = json(scene, &["bpf", "progs", "-o", "json"]);
    let mut hooks = BTreeMap::new();
    for row in rows["items"].as_array().expect("a list") {
        let text = |field: &str| row[field].as_str().expect("text").to_owned();
        *hooks
            .entry((text("attached"), text("program")))
            .or_default() += 1;
    }
    hooks
}

/// Both pods are captured and answered.
fn assert_captured(scene: &Scene, when: &str) {
    for pod in [&scene.client, &scene.tester] {
        let before = kernel_count(scene, "captured");
        let answers = scene.ask(pod, &[]).expect("the client runs");
        assert_eq!(answers.status(200), 1, "{when}: {}: {answers:?}", pod.name);
        let after = kernel_count(scene, "captured");
        assert!(after > before, "{when}: {} is not captured", pod.name);
    }
}

fn assert_no_failure(what: &str, report: &Report) {
    assert!(report.errors.is_empty(), "{what}: {report:?}");
    assert!(report.statuses.keys().eq(&[200]), "{what}: {report:?}");
}

/// The last lines that the agents logged.
fn log(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("agent.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
