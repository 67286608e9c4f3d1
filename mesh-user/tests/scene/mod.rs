//! What the traffic tests share: a scene per test, real pods, the real binary.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{path::Path, process::Child};

#[allow(unused_imports, reason = "each test file uses its own part")]
pub(crate) use mesh_user::demo::scene::{BANNER_PORT, PORT, Scene, TCP_PORT, VIP4, VIP6};
use mesh_user::{demo::load::Report, testbed::Pod};

/// A scene without an agent yet. The name prefixes its namespaces, cgroups and pins.
pub(crate) fn build(name: &str) -> Scene {
    Scene::build(name, Path::new(env!("CARGO_BIN_EXE_mesh"))).expect("the scene is made")
}

/// A scene with an agent and these rules and policies.
pub(crate) fn start(name: &str, rules_and_policies: &str) -> Scene {
    let mut scene = build(name);
    let text = scene.config_with(rules_and_policies);
    scene.start_with(&text).expect("the agent starts");
    scene
}

/// Waits for a load and reads its report.
pub(crate) fn report(load: Child) -> Report {
    let output = load.wait_with_output().expect("the load ends");
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

/// What a mesh verb printed, as JSON.
pub(crate) fn json(scene: &Scene, arguments: &[&str]) -> serde_json::Value {
    let output = scene.mesh(arguments).expect("the verb runs");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {output:?}"))
}

/// Runs a shell line inside a pod; its standard output.
pub(crate) fn shell(scene: &Scene, pod: &Pod, line: &str) -> String {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", line]);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped());
    let child = scene.bed.spawn_in(pod, command).expect("sh starts");
    let output = child.wait_with_output().expect("sh ends");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a Python program inside a pod; its standard output. `lines` see nothing but sockets.
pub(crate) fn python(scene: &Scene, pod: &Pod, program: &str) -> String {
    let mut command = std::process::Command::new("python3");
    command.args(["-c", program]);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped());
    let child = scene.bed.spawn_in(pod, command).expect("python3 starts");
    let output = child.wait_with_output().expect("python3 ends");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// 90/10 and nothing else.
pub(crate) const SPLIT: &str = "
rules:
  - {name: split, service: web, route: [{version: v1, weight: 90}, {version: v2, weight: 10}]}
";
