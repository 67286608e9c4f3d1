//! The agent's life and death under traffic, end to end: kill, hang, stop, reload, pods that come and
//! go, starts that fail, and what metrics and log say of it. Unmodified programs, the real kernel.

mod scene;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_user::{
    admin::{Drain, WorkloadState},
    demo::load::Report,
    kernel::{inventory, view::View},
    testbed::{Pod, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use scene::{
    SPLIT, Scene, TCP_PORT, Talker, VIP4, eventually, json, kernel_count, live, report, shell,
    start, told, with_service,
};

/// The tester is `failure: closed`, the client is `failure: open`.
fn one_open_one_closed(scene: &Scene, rules: &str) -> String {
    let text = scene.config_with(rules);
    text.replace(
        "tags: {app: tester}",
        "tags: {app: tester}, failure: closed",
    )
}

fn signal_agent(scene: &Scene, signal: Signal) {
    let pid = scene.status().expect("it lives").pid;
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
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

/// A steady load, started and seen by the kernel.
fn steady(scene: &Scene, arguments: &[&str]) -> Child {
    let before = kernel_count(scene, "captured");
    let load = scene.load(&scene.client, "/", arguments).unwrap();
    eventually("the load runs", || kernel_count(scene, "captured") > before);
    load
}

fn assert_no_failure(what: &str, report: &Report) {
    assert!(report.errors.is_empty(), "{what}: {report:?}");
    assert!(report.statuses.keys().eq(&[200]), "{what}: {report:?}");
    assert!(
        report.requests > 100,
        "{what}: there was a load: {report:?}"
    );
}

// ---- death and hanging ---------------------------------------------------------------------------

#[test]
fn killed_agent_leaves_open_pods_served_and_closed_ones_refused_until_the_next_adopts() {
    let mut scene = scene::build("t-kill");
    let text = one_open_one_closed(&scene, SPLIT);
    scene.start_with(&text).unwrap();
    let before = hooks(&scene);
    // Five hooks at the pods' cgroup, the agent's own, and one look-up in each pod.
    assert_eq!(before.values().sum::<usize>(), 8, "{before:?}");
    let load = steady(
        &scene,
        &["-c", "4", "-d", "3", "--rate", "200", "--new-connection"],
    );
    scene.kill_agent().unwrap();
    let open = scene.ask(&scene.client, &[]).unwrap();
    assert_eq!(open.status(200), 1, "{open:?}");
    assert_eq!(
        open.peer,
        Some((VIP4, 80).into()),
        "getpeername says what was dialled"
    );
    assert!(open.slowest_ms < 200.0, "{open:?}");
    let closed = scene.ask(&scene.tester, &[]).unwrap();
    assert_eq!(closed.errors.get("ECONNREFUSED"), Some(&1), "{closed:?}");
    assert!(closed.slowest_ms < 200.0, "{closed:?}");
    assert!(kernel_count(&scene, "direct_agent_gone") > 0);
    assert!(kernel_count(&scene, "refuse_agent_gone") > 0);
    // Everything that reads pinned maps works without an agent.
    for (list, least) in [
        ("redirect", 2),
        ("workloads", 2),
        ("services", 6),
        ("stats", 10),
        ("maps", 10),
        ("conns", 0),
    ] {
        let output = scene.mesh(&["bpf", list, "list", "-o", "json"]).unwrap();
        assert!(output.status.success(), "{list}: {output:?}");
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(
            rows["items"].as_array().unwrap().len() >= least,
            "{list}: {rows}"
        );
    }
    assert_eq!(hooks(&scene), before, "the programs stay");
    assert!(
        !scene.mesh(&["status"]).unwrap().status.success(),
        "nobody answers"
    );

    scene.start_agent().unwrap();
    assert_eq!(hooks(&scene), before, "exactly one program at each hook");
    for pod in [&scene.client, &scene.tester] {
        let before = kernel_count(&scene, "captured");
        let again = scene.ask(pod, &[]).unwrap();
        assert_eq!(again.status(200), 1, "{again:?}");
        assert!(kernel_count(&scene, "captured") > before, "captured again");
    }
    // What was on its way when the agent died is lost with it, and what its client dials again
    // while the kernel still takes the process apart; nothing else.
    let report = report(load);
    let lost: u64 = report.errors.values().sum();
    assert!(lost <= 2 * 4, "{report:?}");
    assert!(report.statuses.keys().eq(&[200]), "{report:?}");
    scene.tear_down().unwrap();
}

#[test]
fn hung_agent_is_noticed_in_a_second_and_recovers() {
    let mut scene = scene::build("t-hang");
    let text = one_open_one_closed(&scene, SPLIT);
    scene.start_with(&text).unwrap();
    let view = View::open(&scene.instance).unwrap();
    let stale = || {
        let age = view.heartbeat_age(mesh_user::clock::now());
        age.is_some_and(|age| age > Duration::from_secs(1))
    };
    assert!(!stale());
    let stopped = Instant::now();
    let pid = Pid::from_raw(scene.status().unwrap().pid.try_into().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    // Not yet stale: it is captured, and waits in a listener's queue until somebody accepts.
    let early = r#"
s = dial(sys.argv[1], 80, limit=20)
tell('connected')
s.sendall(b'GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n')
tell(everything(s).split(b'\r\n')[0].decode())
"#;
    let early = Talker::start(&scene, &scene.client, early, &[&VIP4.to_string()]);
    assert_eq!(early.next(), "connected");
    eventually("the heartbeat is stale", stale);
    let took = stopped.elapsed();
    assert!(
        took > Duration::from_millis(700),
        "an agent that missed one beat is not dead: {took:?}"
    );
    assert!(took < Duration::from_millis(2500), "{took:?}");
    let open = scene.ask(&scene.client, &["--timeout-ms", "2000"]).unwrap();
    assert_eq!(open.status(200), 1, "{open:?}");
    assert!(open.slowest_ms < 200.0, "{open:?}");
    let closed = scene.ask(&scene.tester, &["--timeout-ms", "2000"]).unwrap();
    assert_eq!(closed.errors.get("ECONNREFUSED"), Some(&1), "{closed:?}");
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(early.next(), "HTTP/1.1 200 OK", "who was waiting is served");
    eventually("the heartbeat is fresh", || !stale());
    let before = kernel_count(&scene, "captured");
    for pod in [&scene.client, &scene.tester] {
        assert_eq!(scene.ask(pod, &[]).unwrap().status(200), 1);
    }
    assert_eq!(kernel_count(&scene, "captured") - before, 2);
    scene.tear_down().unwrap();
}

// ---- stop, restart, pause -------------------------------------------------------------------------

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
    eventually("it is in flight", || {
        kernel_count(&scene, "proxy_flow_opened") > dialled
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
    let scene = start("t-pause", SPLIT);
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
    scene.tear_down().unwrap();
}

// ---- reload ------------------------------------------------------------------------------------------

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
    let addresses = || json(&scene, &["bpf", "services", "list", "-o", "json"]).to_string();
    assert!(addresses().contains(SECOND));

    scene.put_in_force(&small).unwrap();
    live(&scene, 1);
    assert!(!addresses().contains(SECOND));
    let workloads = json(&scene, &["bpf", "workloads", "list", "-o", "json"]).to_string();
    assert!(!workloads.contains("tester"), "{workloads}");
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

// ---- pods that come and go -----------------------------------------------------------------------------

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

// ---- starts that fail -----------------------------------------------------------------------------------

/// Runs an agent that is expected to end by itself.
fn failing_agent(scene: &Scene, config: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    command.args([
        "run",
        "--instance",
        scene.instance.name(),
        "--config",
        config,
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut agent = scene.bed.spawn_node(command).unwrap();
    let ended = wait_until(Duration::from_secs(10), || {
        agent.try_wait().unwrap().is_some()
    });
    if !ended {
        agent.kill().unwrap();
    }
    let output = agent.wait_with_output().unwrap();
    assert!(ended, "it runs: {output:?}");
    output
}

#[test]
fn failed_start_names_what_is_wrong_and_leaves_nothing() {
    let scene = scene::build("t-start");
    let good = scene.config_with(SPLIT);
    // Somebody else has the port.
    let taken = scene
        .bed
        .in_node(|| TcpListener::bind("127.0.0.1:0").unwrap())
        .unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let file = scene.config_path().display().to_string();
    let routing = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all";
    let before = shell(&scene, &scene.client, routing);
    let cgroup = scene.bed.pods_cgroup();
    let attach = format!(
        "attach: [{}]",
        good.split("attach: [")
            .nth(1)
            .unwrap()
            .split(']')
            .next()
            .unwrap()
    );
    let line = |text: &str, of: &str| text.lines().position(|line| line.contains(of)).unwrap() + 1;
    let unknown = good.replace("metrics: off", "metrics: off\n  metrix: off");
    let wrong = good.replace("weight: 10}", "weight: ten}");
    let no_target = good.replace("service: web, route", "service: wbe, route");
    let cases: [(String, Vec<String>); 7] = [
        (
            good.replace("metrics: off", &format!("metrics: {port}")),
            vec![port.clone(), "agent.metrics".into()],
        ),
        (
            good.replace(&attach, "attach: [no-such-cgroup-here]"),
            vec!["no-such-cgroup-here".into(), "does not exist".into()],
        ),
        (String::new(), vec!["mesh.yaml".into()]),
        (
            unknown.clone(),
            vec![
                format!("{file}:{}:3", line(&unknown, "metrix")),
                "metrix".into(),
                "metrics".into(),
            ],
        ),
        (
            wrong.clone(),
            vec![format!("{file}:{}:", line(&wrong, "ten}")), "ten".into()],
        ),
        (
            no_target.clone(),
            vec![
                format!("{file}:{}:", line(&no_target, "wbe")),
                "wbe".into(),
                "web".into(),
            ],
        ),
        ("services: [".into(), vec![format!("{file}:1:")]),
    ];
    let check = |what: &str, output: &Output, words: &[String]| {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {error}");
        for word in words {
            assert!(
                error.contains(word),
                "{what}: {word:?} is not said: {error}"
            );
        }
        assert!(!error.contains("panicked"), "{error}");
        assert_eq!(
            inventory::pins(&scene.instance),
            Vec::<std::path::PathBuf>::new(),
            "{what}"
        );
        let progs = scene.mesh(&["bpf", "progs"]).unwrap();
        assert!(!progs.status.success(), "{what}: nothing is pinned");
        assert!(
            String::from_utf8_lossy(&progs.stderr).contains("nothing is pinned"),
            "{progs:?}"
        );
        assert_eq!(shell(&scene, &scene.client, routing), before, "{what}");
        let own = cgroup
            .ancestors()
            .nth(2)
            .unwrap()
            .join("mesh-agent-t-start");
        assert!(!own.exists(), "{what}: {} stands", own.display());
    };
    for (text, words) in &cases {
        std::fs::write(scene.config_path(), text).unwrap();
        check(text, &failing_agent(&scene, &file), words);
    }
    let missing = scene.dir().join("nowhere.yaml").display().to_string();
    check(
        "missing file",
        &failing_agent(&scene, &missing),
        &[missing.clone()],
    );
    drop(taken);
    scene.tear_down().unwrap();
}

#[test]
fn second_agent_of_an_instance_is_refused_and_the_first_is_left_alone() {
    let scene = start("t-two", SPLIT);
    let (before, pid) = (hooks(&scene), scene.status().unwrap().pid);
    let output = failing_agent(&scene, &scene.config_path().display().to_string());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    let held = format!("instance t-two is held by process {pid}");
    assert!(error.contains(&held), "{error}");
    assert_eq!(hooks(&scene), before);
    assert_eq!(scene.status().unwrap().pid, pid);
    let captured = kernel_count(&scene, "captured");
    assert_eq!(scene.ask(&scene.client, &[]).unwrap().status(200), 1);
    assert_eq!(kernel_count(&scene, "captured") - captured, 1);
    scene.tear_down().unwrap();
}

/// One of them wins; the other, which saw nothing pinned yet, must not remove the winner's.
#[test]
fn agents_started_at_once_leave_one_whole() {
    let mut scene = scene::build("t-race");
    std::fs::write(scene.config_path(), scene.config_with(SPLIT)).unwrap();
    for round in 0..3 {
        let rivals: Vec<_> = (0..2)
            .map(|_| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
                command
                    .args(["run", "--instance", "t-race", "--config"])
                    .arg(scene.config_path());
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                scene.bed.spawn_node(command).unwrap()
            })
            .collect();
        live(&scene, 2);
        let pid = scene.status().unwrap().pid;
        let mut lost = 0;
        for mut rival in rivals {
            if rival.id() == pid {
                // The other one is over before its winner is judged.
                continue;
            }
            eventually("the loser ends", || rival.try_wait().unwrap().is_some());
            lost += 1;
        }
        assert_eq!(lost, 1, "round {round}");
        assert_eq!(hooks(&scene).values().sum::<usize>(), 8, "round {round}");
        assert_eq!(scene.ask(&scene.client, &[]).unwrap().status(200), 1);
        assert!(kernel_count(&scene, "captured") > 0);
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        eventually("the winner is cleaned up", || {
            scene.mesh(&["cleanup"]).unwrap().status.success()
        });
    }
    scene.stop_agent().unwrap();
    scene.tear_down().unwrap();
}

// ---- cleanup ---------------------------------------------------------------------------------------------

#[test]
fn cleanup_after_a_kill_leaves_nothing_and_is_refused_before() {
    let mut scene = scene::build("t-clean");
    let state = |scene: &Scene| {
        let line = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
                    cat /proc/sys/net/ipv4/tcp_fwmark_accept";
        [&scene.client, &scene.tester].map(|pod| shell(scene, pod, line))
    };
    let before = state(&scene);
    scene.start_with(&scene.config_with(SPLIT)).unwrap();
    assert_ne!(state(&scene), before, "it does change something");
    let own = scene.own_objects();
    assert!(own.len() > 20, "{own:?}");
    let refused = scene.mesh(&["cleanup"]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("is held by process"), "{error}");
    assert_eq!(
        scene.ask(&scene.client, &[]).unwrap().status(200),
        1,
        "nothing was taken"
    );

    scene.kill_agent().unwrap();
    let done = scene.mesh(&["cleanup"]).unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(
        inventory::pins(&scene.instance),
        Vec::<std::path::PathBuf>::new()
    );
    eventually("the kernel has freed everything", || {
        let now = inventory::loaded_objects().unwrap();
        !now.programs
            .iter()
            .chain(&now.maps)
            .any(|object| own.contains(object))
    });
    assert_eq!(state(&scene), before);
    let cgroup = scene
        .bed
        .pods_cgroup()
        .ancestors()
        .nth(2)
        .unwrap()
        .join("mesh-agent-t-clean");
    assert!(!cgroup.exists() && !scene.instance.run_dir().exists());
    let again = scene.mesh(&["cleanup"]).unwrap();
    assert!(
        again.status.success() && again.stdout.is_empty(),
        "{again:?}"
    );
    scene.tear_down().unwrap();
}

// ---- what is said of it --------------------------------------------------------------------------------------

/// A port of the node that nobody has.
fn free_port(scene: &Scene) -> SocketAddr {
    scene
        .bed
        .in_node(|| TcpListener::bind("127.0.0.1:0")?.local_addr())
        .unwrap()
        .unwrap()
}

/// The node's metrics port.
fn scrape(scene: &Scene, to: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
    let text = scene.bed.in_node(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(to)?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    let text = text.unwrap().expect("the port answers");
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    (status, text)
}

/// Sum of the samples of a family whose labels hold all of these.
fn sample(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[test]
fn metrics_count_what_was_asked_with_the_right_labels() {
    let mut scene = scene::build("t-metrics");
    let free = free_port(&scene);
    let rules = "
rules:
  - {name: all, service: web, port: http, match: {path: {prefix: /v2}}, route: [{version: v2}]}
  - {name: one, service: web, port: http, match: {path: {prefix: /v1}}, route: [{version: v1}]}
  - {name: tcp, service: web, port: tcp, route: [{version: v1}]}
";
    let text = scene
        .config_with(rules)
        .replace("metrics: off", &format!("metrics: {free}"));
    scene.start_with(&text).unwrap();
    for path in ["/livez", "/readyz"] {
        let (status, text) = scrape(&scene, free, path);
        assert_eq!(status, 200, "{path}: {text}");
    }
    assert_eq!(
        scene
            .ask(&scene.client, &["--path", "/v1", "--count", "30"])
            .unwrap()
            .status(200),
        30
    );
    let v2 = ["--path", "/v2", "--count", "7", "--close"];
    assert_eq!(scene.ask(&scene.tester, &v2).unwrap().status(200), 7);
    assert_eq!(
        scene
            .ask(&scene.client, &["--path", "/none", "--count", "3"])
            .unwrap()
            .status(404),
        3
    );
    let echo = "s = dial(sys.argv[1], int(sys.argv[2])); s.sendall(b'x' * 1000); \
                s.shutdown(socket.SHUT_WR); tell(len(everything(s)))";
    let port = TCP_PORT.to_string();
    assert_eq!(
        told(&scene, &scene.client, echo, &[&VIP4.to_string(), &port]),
        1000
    );
    let good = [
        "reporter=\"source\"",
        "destination_service_name=\"web\"",
        "destination_service_namespace=\"default\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
    ];
    let with = |more: &[&'static str]| -> Vec<&str> {
        good.iter().copied().chain(more.iter().copied()).collect()
    };
    let mut text = String::new();
    eventually("the last connection is counted", || {
        text = scrape(&scene, free, "/metrics").1;
        sample(&text, "istio_tcp_connections_closed_total", &[]) >= 1.0
    });
    let requests = |labels: &[&str]| sample(&text, "istio_requests_total", labels);
    let client = with(&[
        "source_workload=\"client\"",
        "source_app=\"client\"",
        "destination_version=\"v1\"",
    ]);
    assert_eq!(requests(&client), 30.0, "{text}");
    let tester = with(&["source_workload=\"tester\"", "destination_version=\"v2\""]);
    assert_eq!(requests(&tester), 7.0, "{text}");
    let refused = [
        "source_workload=\"client\"",
        "response_code=\"404\"",
        "response_flags=\"NR\"",
    ];
    assert_eq!(requests(&refused), 3.0, "{text}");
    assert_eq!(requests(&[]), 40.0, "and nothing else: {text}");
    assert_eq!(
        sample(&text, "istio_request_duration_milliseconds_count", &[]),
        40.0
    );
    assert_eq!(
        sample(&text, "mesh_rejects_total", &["reason=\"no_route\""]),
        3.0
    );
    let tcp = [
        "source_workload=\"client\"",
        "destination_version=\"v1\"",
        "request_protocol=\"tcp\"",
    ];
    assert_eq!(
        sample(&text, "istio_tcp_received_bytes_total", &tcp),
        1000.0,
        "{text}"
    );
    assert_eq!(sample(&text, "istio_tcp_sent_bytes_total", &tcp), 1000.0);
    // One connection, seven, one, one: by the kernel's count and by the proxy's.
    let captured = sample(&text, "mesh_bpf_redirects_total", &["reason=\"captured\""]);
    assert_eq!(captured, 10.0, "{text}");
    assert_eq!(captured, kernel_count(&scene, "captured") as f64);
    assert_eq!(sample(&text, "mesh_connections_opened_total", &[]), 10.0);
    assert_eq!(sample(&text, "mesh_workloads", &["state=\"live\""]), 2.0);
    assert_eq!(text.matches("\n# EOF\n").count(), 1, "whole: {text}");
    scene.tear_down().unwrap();
}

#[test]
fn every_refusal_has_one_log_line_with_its_flag_and_the_headers_name() {
    let mut scene = scene::build("t-log");
    let rules = "
rules:
  - {name: good, service: web, port: http, match: {path: {prefix: /ok}}, route: [{version: v1}]}
  - {name: full, service: web, port: http, match: {path: {prefix: /uo}}, route: [{version: v2}]}
  - {name: empty, service: web, port: http, match: {path: {prefix: /uh}}, route: [{tags: {version: v9}}]}
policies:
  - {service: web, rate-limit: [{name: once, key: [path], rate: 1/h, burst: 1}]}
  - {service: web, version: v2, breaker: {max-requests: 0}}
";
    let text = scene
        .config_with(rules)
        .replace("format: envoy", "format: json");
    scene.start_with(&text).unwrap();
    let cases = [
        ("/ok?a=1", 200, None, "-"),
        ("/ok", 429, Some("rate_limited"), "RL"),
        ("/nr", 404, Some("no_route"), "NR"),
        ("/uo", 503, Some("overflow_requests"), "UO"),
        ("/uh", 503, Some("no_endpoint"), "UH"),
    ];
    for (path, status, reject, _) in cases {
        let answers = scene.ask(&scene.client, &["--path", path]).unwrap();
        assert_eq!(answers.status(status), 1, "{path}: {answers:?}");
        let named = answers.headers.get("x-mesh-reject").map(String::as_str);
        assert_eq!(named, reject, "{path}: {answers:?}");
    }
    let mut lines: Vec<serde_json::Value> = Vec::new();
    eventually("a line for each request and connection", || {
        let text = std::fs::read_to_string(scene.access_log()).unwrap_or_default();
        lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        lines.len() >= 2 * cases.len()
    });
    let of = |kind: &str| -> Vec<_> {
        lines
            .iter()
            .filter(|line| line["mesh.record"] == kind)
            .collect()
    };
    let requests = of("request");
    assert_eq!(
        (requests.len(), of("connection").len()),
        (5, 5),
        "{lines:?}"
    );
    for (path, status, reject, flag) in cases {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        // Workers write side by side: the order says nothing.
        let mut own = requests.iter().filter(|line| {
            let asked = line
                .get("url.query")
                .and_then(|query| query.as_str())
                .unwrap_or_default();
            line["url.path"] == path && asked == query
        });
        let line = own
            .next()
            .unwrap_or_else(|| panic!("no line for {path}: {lines:?}"));
        assert!(own.next().is_none(), "one line for {path}: {lines:?}");
        assert_eq!(line["http.response.status_code"], status, "{line}");
        assert_eq!(line["mesh.flags"], flag, "{line}");
        assert_eq!(
            line.get("mesh.reject").and_then(|name| name.as_str()),
            reject,
            "{line}"
        );
        assert_eq!(line["mesh.workload"], "default/client", "{line}");
        assert_eq!(line["mesh.destination"], format!("{VIP4}:80"), "{line}");
        let deliveries = u32::from(reject.is_none());
        assert_eq!(
            line["mesh.attempts"], deliveries,
            "refused before anything is forwarded: {line}"
        );
    }
    scene.tear_down().unwrap();
}

// ---- the kernel's part -----------------------------------------------------------------------------------------

#[test]
fn denied_destination_is_refused_without_a_packet() {
    let mut scene = scene::build("t-deny");
    let server = scene
        .bed
        .pods()
        .iter()
        .find(|pod| pod.name == "web-v1-a")
        .unwrap()
        .clone();
    let text = format!(
        "{}outbound:\n  - {{cidr: {}/32, ports: [8080], action: deny}}\n  \
         - {{cidr: \"{}/128\", action: deny}}\n",
        scene.config_with(SPLIT),
        server.v4,
        server.v6
    );
    scene.start_with(&text).unwrap();
    // The destination listens: had a SYN left, it would have been answered.
    let program = r#"
def segments():
    lines = [line.split() for line in open('/proc/self/net/snmp') if line.startswith('Tcp:')]
    return int(lines[1][lines[0].index('OutSegs')])
seen = []
for host, port, mapped in [(sys.argv[1], 8080, False), (sys.argv[1], 8080, True), (sys.argv[2], 9000, False)]:
    before, begun = segments(), time.monotonic()
    try:
        dial(host, port, mapped)
        what = 'connected'
    except OSError as e:
        what = type(e).__name__
    seen.append([what, segments() - before, time.monotonic() - begun < 0.2])
s = dial(sys.argv[1], 9000)
s.sendall(b'x')
seen.append(s.recv(1).decode())
tell(seen)
"#;
    let before = kernel_count(&scene, "refuse_rule");
    let seen = told(
        &scene,
        &scene.client,
        program,
        &[&server.v4.to_string(), &server.v6.to_string()],
    );
    let refused = serde_json::json!(["ConnectionRefusedError", 0, true]);
    assert_eq!(
        seen,
        serde_json::json!([refused, refused, refused, "x"]),
        "port 9000 is not denied"
    );
    assert_eq!(kernel_count(&scene, "refuse_rule") - before, 3);
    scene.tear_down().unwrap();
}

/// What netfilter holds in a namespace, asked of the kernel itself: no tool needed. The generation
/// of nf_tables counts every change of a ruleset.
const NETFILTER: &str = r#"
def generation():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    s.settimeout(5)
    s.sendto(struct.pack('=LHHLLBBH', 20, 10 << 8 | 16, 1, 1, 0, 0, 0, 0), (0, 0))
    answer = s.recv(4096)
    if struct.unpack('=H', answer[4:6])[0] == 2:
        return ['error', struct.unpack('=i', answer[16:20])[0]]
    return ['generation', answer[20:28].hex()]
def read(path):
    try:
        return open('/proc/self/net/' + path).read()
    except OSError as e:
        return e.errno
try:
    nft = generation()
except OSError as e:
    nft = e.errno
tell([nft, read('ip_tables_names'), read('ip6_tables_names'), read('nf_conntrack')])
"#;

#[test]
fn netfilter_is_unchanged_before_during_and_after() {
    let mut scene = scene::build("t-netfilter");
    let tools = "for tool in iptables-save ip6tables-save 'nft list ruleset'; do \
                 command -v ${tool%% *} > /dev/null && $tool | grep -v '^#'; done";
    let look = |scene: &Scene| {
        let of = |pod: &Pod| (told(scene, pod, NETFILTER, &[]), shell(scene, pod, tools));
        let node = Pod {
            netns: scene.bed.node_netns(),
            ..scene.client.clone()
        };
        (of(&scene.client), of(&scene.tester), of(&node))
    };
    let before = look(&scene);
    scene.start_with(&scene.config_with(SPLIT)).unwrap();
    assert_eq!(
        scene
            .ask(&scene.client, &["--count", "20"])
            .unwrap()
            .status(200),
        20
    );
    assert_eq!(look(&scene), before, "during");
    scene.stop_agent().unwrap();
    assert!(scene.mesh(&["cleanup"]).unwrap().status.success());
    assert_eq!(look(&scene), before, "after");
    scene.tear_down().unwrap();
}
