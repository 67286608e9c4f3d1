//! What an operator sees of a running mesh: live connections, events as they happen, a check that
//! asks the kernel. Whole agent, unmodified programs, the real kernel.

mod scene;

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use scene::{SPLIT, Scene, TCP_PORT, Talker, VIP4, eventually, json};
use serde_json::Value;

/// Sends 5,000 bytes to the echo server behind the virtual address and keeps the connection.
const HOLD: &str = r#"
s = dial(sys.argv[1], int(sys.argv[2]))
s.sendall(b'x' * 5000)
got = 0
while got < 5000:
    got += len(s.recv(65536))
tell(s.getsockname()[1])
sys.stdin.readline()
"#;

fn conns(scene: &Scene, more: &[&str]) -> Vec<Value> {
    let mut line = vec!["bpf", "conns", "list", "-o", "json"];
    line.extend(more);
    json(scene, &line)["items"]
        .as_array()
        .expect("a list")
        .clone()
}

/// Without it: an operator can't tell which connection carries what, or filters lie.
#[test]
fn live_connection_is_shown_with_its_service_bytes_and_round_trip() {
    let scene = scene::start("kn-conns", SPLIT);
    let to = [VIP4.to_string(), TCP_PORT.to_string()];
    let to = to.each_ref().map(String::as_str);
    let talker = Talker::start(&scene, &scene.client, HOLD, &to);
    let port = talker.next();
    let ours = |rows: &[Value]| {
        let end = format!(":{port}");
        let ours = |row: &&Value| {
            row["leg"] == "out"
                && row["source"]
                    .as_str()
                    .is_some_and(|text| text.ends_with(&end))
        };
        rows.iter().find(ours).cloned()
    };
    let row = ours(&conns(&scene, &[])).expect("the connection is listed");
    assert_eq!(row["workload"], "default/client", "{row}");
    assert_eq!(row["asked"], format!("{VIP4}:{TCP_PORT}"), "{row}");
    assert_eq!(row["service"], "default/web", "{row}");
    assert_eq!(row["verdict"], "proxy", "{row}");
    assert_eq!(row["state"], "established", "{row}");
    assert_eq!(
        (&row["bytes_out"], &row["bytes_in"]),
        (&5_000.into(), &5_000.into()),
        "{row}"
    );
    assert!(row["rtt_ms"].as_f64().is_some_and(|rtt| rtt > 0.0), "{row}");
    // The proxy's own leg to the endpoint that it chose, and its version.
    let legs = conns(&scene, &["--sort", "bytes"]);
    let up = legs
        .iter()
        .find(|row| row["leg"] == "up" && row["bytes_out"] == 5_000);
    let up = up.unwrap_or_else(|| panic!("{legs:?}"));
    assert_eq!(up["endpoint"], up["destination"], "{up}");
    let version = up["version"].as_str().expect("the agent knows it");
    assert!(version == "v1" || version == "v2", "{up}");
    // Filters, each way.
    for (filter, shown) in [
        (["--workload", "client"], true),
        (["--workload", "tester"], false),
        (["--service", "web"], true),
        (["--service", "other"], false),
        (["--service", "10.96.0.10"], true),
        (["--service", "10.96.0.10:80"], false),
    ] {
        let found = ours(&conns(&scene, &filter)).is_some();
        assert_eq!(found, shown, "{filter:?}");
    }
    drop(talker);
    eventually("it is gone", || ours(&conns(&scene, &[])).is_none());
}

/// `mesh monitor`, its lines and what it says besides.
struct Monitor {
    child: Child,
    lines: mpsc::Receiver<Value>,
    /// Whoever reads what it says: it would wait for a full pipe.
    said: Option<std::thread::JoinHandle<String>>,
}

impl Monitor {
    fn start(scene: &Scene, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mesh"))
            .args(["--instance", scene.instance.name(), "monitor", "-o", "json"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mesh monitor starts");
        let mut told = BufReader::new(child.stderr.take().expect("piped"));
        let mut first = String::new();
        told.read_line(&mut first).expect("it says something");
        assert!(first.starts_with("watching"), "{first}");
        let said = std::thread::spawn(move || {
            told.lines()
                .map_while(Result::ok)
                .collect::<Vec<_>>()
                .join("\n")
        });
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("a JSON object a line");
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            said: Some(said),
        }
    }

    /// The next event, within 10 s.
    fn next(&self) -> Value {
        let event = self.lines.recv_timeout(Duration::from_secs(10));
        event.expect("an event within 10 s")
    }

    /// Its exit status and last words, within 10 s.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut status = None;
        eventually("the monitor ends", || {
            status = self.child.try_wait().expect("ours");
            status.is_some()
        });
        let said = self.said.take().expect("asked once");
        (
            status.and_then(|status| status.code()),
            said.join().expect("read"),
        )
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const EJECTING: &str = "
rules:
  - {name: split, service: web, route: [{version: v1, weight: 50}, {version: v2, weight: 50}]}
policies:
  - service: web
    breaker: {ejection: {consecutive-5xx: 2, interval: 1s, base: 60s, max-percent: 100}}
";

const LIMITED: &str = "\
rules:
  - {service: web, route: [{version: v1}]}
policies:
  - {service: web, rate-limit: [{rate: 1/s, burst: 1}]}
";

/// Without it: an operator sees what the kernel refuses, and not what the proxy does.
#[test]
fn monitor_tells_what_the_proxy_refuses() {
    let scene = scene::start("kn-refused", LIMITED);
    let monitor = Monitor::start(&scene, &["--kind", "refused"]);
    let answers = scene.ask(&scene.client, &["--count", "40"]).expect("asked");
    assert!(answers.status(429) > 30, "{answers:?}");
    let event = monitor.next();
    assert_eq!(event["reason"], "rate_limited", "{event}");
    assert_eq!(event["workload"], "default/client", "{event}");
    let to = event["destination"].as_str().expect("an address");
    assert!(to.ends_with(":80"), "{event}");
}

/// Without it: nobody sees in time that an endpoint left, or a watcher hangs when its agent goes.
#[test]
fn monitor_tells_an_ejection_at_once_and_ends_with_the_agent() {
    let mut scene = scene::start("kn-watch", EJECTING);
    let mut all = Monitor::start(&scene, &[]);
    let mut filtered = Monitor::start(&scene, &["--kind", "refused"]);
    scene.set_sick("web-v1-a", true).expect("sick");
    scene.ask(&scene.client, &["--count", "40"]).expect("asked");
    let event = all.next();
    assert_eq!(
        (&event["kind"], &event["reason"]),
        (&"ejection".into(), &"ejected".into()),
        "{event}"
    );
    assert_eq!(event["service"], "default/web:80", "{event}");
    assert_eq!(event["apiVersion"], "mesh/v1alpha1", "{event}");
    scene.stop_agent().expect("stops");
    for monitor in [&mut all, &mut filtered] {
        let (status, said) = monitor.end();
        assert_eq!(
            (status, said.contains("stopped")),
            (Some(0), true),
            "{said}"
        );
    }
    assert!(
        filtered.lines.try_recv().is_err(),
        "another kind than asked for"
    );
}

/// Without it: a watcher ends with the agent that hands over, or mixes up the numbers of two agents.
#[test]
fn monitor_goes_on_with_the_agent_that_takes_over_and_says_so() {
    let mut scene = scene::start("kn-epoch", EJECTING);
    let monitor = Monitor::start(&scene, &[]);
    let ejected = || loop {
        let event = monitor.next();
        assert_ne!(event["kind"], "AgentChanged", "{event}");
        if event["reason"] == "ejected" {
            return event["seq"].clone();
        }
    };
    scene.set_sick("web-v1-a", true).expect("sick");
    scene.ask(&scene.client, &["--count", "40"]).expect("asked");
    ejected();
    let config = scene.config_path();
    let next = scene.spawn_successor(&config).expect("it starts");
    let pid = next.id();
    let owns = || scene.status().is_ok_and(|status| status.pid == pid);
    eventually("it takes over", owns);
    let mut old = scene.replace_agent(next).expect("one ran");
    eventually("the old one leaves", || {
        old.try_wait().expect("a child").is_some()
    });
    // The monitor may still be between two questions: what happens now is told all the same.
    scene.ask(&scene.client, &["--count", "40"]).expect("asked");
    while monitor.next()["kind"] != "AgentChanged" {}
    ejected();
    scene.tear_down().expect("torn down");
}

/// Without it: ^C looks like a failure to the shell that started it.
#[test]
fn interrupted_monitor_ends_with_status_0() {
    let scene = scene::start("kn-intr", SPLIT);
    let mut monitor = Monitor::start(&scene, &[]);
    let pid = Pid::from_raw(i32::try_from(monitor.child.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("ours");
    assert_eq!(monitor.end().0, Some(0));
}

fn check(scene: &Scene) -> (bool, Vec<Value>) {
    let output = scene.mesh(&["check", "-o", "json"]).expect("runs");
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let items = document["items"].as_array().expect("a list").clone();
    (output.status.success(), items)
}

fn line<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks
        .iter()
        .find(|check| {
            check["name"]
                .as_str()
                .is_some_and(|text| text.starts_with(name))
        })
        .unwrap_or_else(|| panic!("no line {name}: {checks:?}"))
}

/// Pitfall 12: without it, a hook at the wrong cgroup or a lost rule looks like a good one.
#[test]
fn check_asks_the_kernel_about_every_workload_and_names_what_is_broken() {
    let scene = scene::start("kn-check", SPLIT);
    // A process that lives in the workload's cgroup and namespace.
    let talker = Talker::start(&scene, &scene.client, "tell(1)\nsys.stdin.readline()", &[]);
    talker.next();
    let (good, checks) = check(&scene);
    assert!(good, "{checks:?}");
    for hook in ["connect4-", "connect6-", "flow_ops-", "steer-"] {
        let row = line(&checks, &format!("hook {hook}"));
        let found = row["found"].as_str().expect("text");
        assert!(found.contains("pinned") && found.contains("tag "), "{row}");
        assert!(!found.contains("tag ?"), "{row}");
    }
    let map = line(&checks, "map POD_BY_NETNS");
    assert!(
        map["found"]
            .as_str()
            .is_some_and(|text| text.contains("% (2 of ")),
        "{map}"
    );
    let hooks = line(&checks, "workload default/client: hooks");
    assert_eq!(hooks["found"], "effective in 1 cgroups", "{hooks}");
    let path = line(&checks, "workload default/client: path");
    assert_eq!(path["found"], "a connection arrives (IPv4, IPv6)", "{path}");
    assert_eq!(line(&checks, "connect hooks before ours")["ok"], true);
    // Somebody deletes the rule. The audit puts it back within a second, maybe before the check
    // looks: then it is deleted again.
    let rule = "ip rule del pref 150; ip -6 rule del pref 150; true";
    let broken = (0..20).find_map(|_| {
        scene::shell(&scene, &scene.client, rule);
        let (good, checks) = check(&scene);
        (line(&checks, "workload default/client: path")["ok"] == false).then_some((good, checks))
    });
    let (good, checks) = broken.expect("the check sees it");
    let path = line(&checks, "workload default/client: path");
    assert!(!good, "{path}");
    let remedy = path["remedy"].as_str().expect("a remedy");
    assert!(remedy.contains("ip rule"), "{remedy}");
    assert_eq!(line(&checks, "workload default/tester: path")["ok"], true);
}
