//! What the traffic tests share: a scene per test, real pods, the real binary.

#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

use std::{path::Path, process::Child};

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

/// A whole configuration with one more service beside `web`.
pub(crate) fn with_service(scene: &Scene, service: &str, rules_and_policies: &str) -> String {
    format!(
        "{}\n{}\n{service}\n{rules_and_policies}\n{}",
        scene.head_text(),
        scene.services_text(),
        scene.workloads_text("")
    )
}

/// What every Python program of the tests begins with: plain sockets, nothing of the mesh.
pub(crate) const PRELUDE: &str = r#"
import hashlib, json, socket, struct, sys, threading, time

def dial(host, port, mapped=False, limit=5):
    family = socket.AF_INET6 if ':' in host or mapped else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(limit)
    s.connect(('::ffff:' + host if mapped else host, port))
    return s

def everything(s):
    parts = []
    while part := s.recv(1 << 16):
        parts.append(part)
    return b''.join(parts)

def tell(value):
    print(json.dumps(value), flush=True)
"#;

/// A Python command with [`PRELUDE`]; `arguments` stand in `sys.argv[1:]`.
fn python_command(program: &str, arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new("python3");
    command
        .arg("-c")
        .arg(format!("{PRELUDE}{program}"))
        .args(arguments);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped());
    command
}

/// Runs a Python program inside a pod; what it told last.
pub(crate) fn told(
    scene: &Scene,
    pod: &Pod,
    program: &str,
    arguments: &[&str],
) -> serde_json::Value {
    let command = python_command(program, arguments);
    let child = scene.bed.spawn_in(pod, command).expect("python3 starts");
    let output = child.wait_with_output().expect("python3 ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("it told {text:?}: {error}"))
}

/// A program in a pod whose lines are read one by one. It ends with the value.
pub(crate) struct Talker {
    child: Child,
    input: std::process::ChildStdin,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Talker {
    /// Starts a Python program, see [`PRELUDE`].
    pub(crate) fn start(scene: &Scene, pod: &Pod, program: &str, arguments: &[&str]) -> Self {
        let mut command = python_command(program, arguments);
        command.stdin(std::process::Stdio::piped());
        let mut child = scene.bed.spawn_in(pod, command).expect("python3 starts");
        let output = std::io::BufReader::new(child.stdout.take().expect("it is piped"));
        let input = child.stdin.take().expect("it is piped");
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(output).map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            input,
            lines,
        }
    }

    /// Says a line to it.
    pub(crate) fn say(&mut self, line: &str) {
        use std::io::Write as _;
        writeln!(self.input, "{line}").expect("it listens");
    }

    /// The next thing it tells, within 10 s.
    pub(crate) fn next(&self) -> serde_json::Value {
        let line = self.lines.recv_timeout(std::time::Duration::from_secs(10));
        let line = line.expect("the program tells something within 10 s");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("it told {line:?}: {error}"))
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// How often the kernel decided so since the maps were made.
pub(crate) fn kernel_count(scene: &Scene, reason: &str) -> u64 {
    let stats = json(scene, &["bpf", "stats", "list", "-o", "json"]);
    let items = stats["items"].as_array().expect("a list");
    let row = items
        .iter()
        .find(|row| row["reason"] == reason)
        .expect("the counter");
    row["count"].as_u64().expect("a number")
}

/// Waits until this many workloads are captured.
pub(crate) fn live(scene: &Scene, count: usize) {
    let mut last = None;
    let done = mesh_user::testbed::wait_until(std::time::Duration::from_secs(10), || {
        last = scene.status().ok();
        last.as_ref().is_some_and(|status| {
            let live = mesh_user::admin::WorkloadState::Live;
            status
                .workloads
                .iter()
                .filter(|workload| workload.state == live)
                .count()
                == count
        })
    });
    assert!(done, "{count} workloads are not live: {last:?}");
}

/// Waits at most 10 s.
pub(crate) fn eventually(what: &str, ready: impl FnMut() -> bool) {
    let done = mesh_user::testbed::wait_until(std::time::Duration::from_secs(10), ready);
    assert!(done, "not within 10 s: {what}");
}
