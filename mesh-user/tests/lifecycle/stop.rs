//! The agent stops, pauses, or gets another configuration.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mesh_user::{admin::Drain, testbed::Pod};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    assert_no_failure, free_port,
    scene::{
        self, SPLIT, Scene, Talker, VIP4, eventually, json, kernel_count, live, report, shell,
        start, with_service,
    },
    scrape, steady,
};

fn signal_agent(scene: &Scene, signal: Signal) {
    let pid = scene.status().expect("it lives").pid;
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

#[test]
fn stopping_agent_ends_what_is_in_flight_and_takes_nothing_new() {
    let mut scene = scene::build("t-drain");
    let port = free_port(&scene);
    let text = scene
        .config_with(SPLIT)
        .replace("metrics: off", &format!("metrics: {port}"));
    scene.start_with(&text).unwrap();
    let dialled = kernel_count(&scene, "proxy_flow_opened");
    let slow = r#"
s = dial(sys.argv[1], 80, limit=20)
s.sendall(b'GET /delay/2500 HTTP/1.1\r\nhost: web\r\n\r\n')
head = b''
while b'\r\n\r\n' not in head:
    head += s.recv(1)
tell(head.decode().lower().split('\r\n'))
everything(s)
tell('end')
"#;
    let slow = Talker::start(&scene, &scene.client, slow, &[&VIP4.to_string()]);
    let mut curl = Command::new("curl");
    curl.args([
        "-s",
        "-m",
        "20",
        "--http2-prior-knowledge",
        "-o",
        "/dev/null",
    ]);
    curl.args(["-w", "%{http_version} %{response_code}"]);
    curl.arg(format!("http://{VIP4}/delay/2500"));
    curl.stdin(Stdio::null()).stdout(Stdio::piped());
    let curl = scene.bed.spawn_in(&scene.client, curl).unwrap();
    eventually("both are in flight", || {
        kernel_count(&scene, "proxy_flow_opened") >= dialled + 2
    });
    signal_agent(&scene, Signal::SIGTERM);
    eventually("it drains", || {
        scene
            .status()
            .is_ok_and(|status| status.drain == Drain::Draining)
    });
    assert!(
        !scene.mesh(&["status"]).unwrap().status.success(),
        "not ready while draining"
    );
    assert_eq!(scrape(&scene, port, "/livez").0, 200);
    assert_eq!(scrape(&scene, port, "/readyz").0, 503);
    let direct = kernel_count(&scene, "direct_agent_gone");
    let other = scene.ask(&scene.client, &[]).unwrap();
    assert_eq!(other.status(200), 1, "{other:?}");
    assert_eq!(
        kernel_count(&scene, "direct_agent_gone") - direct,
        1,
        "by its failure mode"
    );
    let head = slow.next().to_string();
    assert!(head.contains("http/1.1 200 ok"), "{head}");
    assert!(
        head.contains("connection: close"),
        "the client is told: {head}"
    );
    assert_eq!(slow.next(), "end");
    let curl = curl.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&curl.stdout),
        "2 200",
        "HTTP/2 streams end too"
    );
    // Long before the limit of 30 s: it waits for requests, not for time.
    let begun = Instant::now();
    scene.stop_agent().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    scene.tear_down().unwrap();
}

#[test]
fn no_request_fails_over_a_stop_and_a_start() {
    let mut scene = start("t-restart", SPLIT);
    let fresh = steady(
        &scene,
        &["-c", "4", "-d", "6", "--rate", "100", "--new-connection"],
    );
    let kept = steady(&scene, &["-c", "4", "-d", "6", "--rate", "100"]);
    for _ in 0..2 {
        let direct = kernel_count(&scene, "direct_agent_gone");
        scene.stop_agent().unwrap();
        eventually("the load goes direct", || {
            kernel_count(&scene, "direct_agent_gone") > direct
        });
        scene.start_agent().unwrap();
        let captured = kernel_count(&scene, "captured");
        eventually("the load is captured", || {
            kernel_count(&scene, "captured") > captured
        });
    }
    assert_no_failure("a connection for each request", &report(fresh));
    assert_no_failure("kept connections", &report(kept));
    scene.tear_down().unwrap();
}

#[test]
fn redirect_off_and_on_under_load_fails_no_request() {
    let mut scene = start("t-pause", SPLIT);
    let fresh = steady(
        &scene,
        &["-c", "4", "-d", "3", "--rate", "200", "--new-connection"],
    );
    let kept = steady(&scene, &["-c", "4", "-d", "3", "--rate", "100"]);
    for _ in 0..3 {
        for (state, reason) in [("off", "pass_paused"), ("on", "captured")] {
            let output = scene.mesh(&["redirect", state]).unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(scene.status().unwrap().redirect, state == "on");
            let before = kernel_count(&scene, reason);
            eventually(reason, || kernel_count(&scene, reason) > before);
        }
    }
    assert_no_failure("a connection for each request", &report(fresh));
    assert_no_failure("kept connections", &report(kept));
    // Whoever paused it wants it paused, also after a crash.
    assert!(scene.mesh(&["redirect", "off"]).unwrap().status.success());
    scene.kill_agent().unwrap();
    let paused = |scene: &Scene| {
        let before = kernel_count(scene, "pass_paused");
        let answers = scene.ask(&scene.client, &[]).unwrap();
        answers.status(200) == 1 && kernel_count(scene, "pass_paused") == before + 1
    };
    assert!(paused(&scene), "with the agent gone");
    scene.start_agent().unwrap();
    assert!(
        !scene.status().unwrap().redirect && paused(&scene),
        "with the next"
    );
    scene.tear_down().unwrap();
}

/// The address of a service that comes and goes.
const SECOND: &str = "10.96.0.40";

fn second(scene: &Scene) -> String {
    let server = scene
        .bed
        .pods()
        .iter()
        .find(|pod| pod.name == "web-v2")
        .unwrap()
        .v4;
    format!(
        "  - name: second\n    addresses: [{SECOND}]\n    \
         ports: [{{number: 80, target: 8080, protocol: http}}]\n    endpoints: [{{address: {server}}}]\n"
    )
}

#[test]
fn reload_adds_and_removes_services_and_workloads() {
    let mut scene = scene::build("t-reload");
    let small: String = scene
        .config_with(SPLIT)
        .lines()
        .filter(|line| !line.contains("name: tester"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(scene.config_path(), &small).unwrap();
    scene.spawn_agent().unwrap();
    live(&scene, 1);
    let lost = |pod: &Pod, host: &str| {
        let before = kernel_count(&scene, "captured");
        let to = host.parse().unwrap();
        let answers = scene.ask_at(pod, to, &["--timeout-ms", "300"]).unwrap();
        answers.failed() == 1 && kernel_count(&scene, "captured") == before
    };
    let vip = VIP4.to_string();
    assert!(
        lost(&scene.tester, &vip) && lost(&scene.client, SECOND),
        "not there yet"
    );
    let load = steady(
        &scene,
        &["-c", "2", "-d", "4", "--rate", "100", "--new-connection"],
    );

    scene
        .put_in_force(&with_service(&scene, &second(&scene), SPLIT))
        .unwrap();
    live(&scene, 2);
    for (pod, host) in [(&scene.tester, vip.as_str()), (&scene.client, SECOND)] {
        let answers = scene.ask_at(pod, host.parse().unwrap(), &[]).unwrap();
        assert_eq!(answers.status(200), 1, "{host}: {answers:?}");
    }
    let open = r#"
import http.client
s = dial(sys.argv[1], 80)
for line in sys.stdin:
    s.sendall(b'GET / HTTP/1.1\r\nhost: second\r\n\r\n')
    r = http.client.HTTPResponse(s)
    r.begin()
    r.read()
    tell([r.status, r.getheader('x-mesh-reject'), r.getheader('connection')])
"#;
    let mut open = Talker::start(&scene, &scene.client, open, &[SECOND]);
    open.say("");
    assert_eq!(open.next(), serde_json::json!([200, null, null]));
    let addresses = || json(&scene, &["bpf", "services", "list", "-o", "json"]).to_string();
    assert!(addresses().contains(SECOND));

    scene.put_in_force(&small).unwrap();
    live(&scene, 1);
    assert!(!addresses().contains(SECOND));
    let workloads = json(&scene, &["bpf", "workloads", "list", "-o", "json"]).to_string();
    assert!(!workloads.contains("tester"), "{workloads}");
    open.say("");
    let refused = open.next();
    assert_eq!(
        refused[1], "unknown_destination",
        "on a connection that is open: {refused}"
    );
    // The load of the client makes captures of its own: only that the tester is lost counts.
    let report = report(load);
    assert_no_failure("what stayed", &report);
    assert!(
        lost(&scene.tester, &vip) && lost(&scene.client, SECOND),
        "gone again"
    );
    let rules = shell(&scene, &scene.tester, "ip rule; ip -6 rule");
    assert!(
        !rules.contains("fwmark"),
        "nothing of ours is left in its namespace: {rules}"
    );
    scene.tear_down().unwrap();
}
