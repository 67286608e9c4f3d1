//! Takeovers that fail: the running agent goes on, as if nobody had come.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    time::Duration,
};

use mesh_user::testbed::wait_until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    assert_captured, assert_no_failure, exit_code, hooks, log, owner,
    scene::{self, SPLIT, Scene, eventually, json, kernel_count, report},
    take_over,
};

/// Program numbers by hook.
fn programs(scene: &Scene) -> Vec<String> {
    let rows = json(scene, &["bpf", "progs", "-o", "json"]);
    let mut found: Vec<String> = rows["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| format!("{} {}", row["program"], row["progId"]))
        .collect();
    found.sort();
    found
}

/// A successor that is expected to fail; what the log says then.
fn fails(scene: &Scene, config: &str) -> String {
    let path = scene.dir().join("next.yaml");
    std::fs::write(&path, config).unwrap();
    let seen = log_length(scene);
    let mut successor = scene.spawn_successor(&path).unwrap();
    assert_eq!(exit_code(&mut successor, Duration::from_secs(20)), Some(1));
    let text = std::fs::read_to_string(scene.dir().join("agent.log")).unwrap();
    text[seen..].to_owned()
}

fn log_length(scene: &Scene) -> usize {
    let text = std::fs::read_to_string(scene.dir().join("agent.log"));
    text.map_or(0, |text| text.len())
}

/// Without it: a successor with a typing error in its file, or that finds its port taken, takes the
/// data path with it.
#[test]
fn failed_successor_names_why_and_the_running_agent_goes_on() {
    let mut scene = scene::build("l-fail");
    let text = scene.config_with(SPLIT);
    let text = text.replace("tags: {app:", "failure: closed, tags: {app:");
    scene.start_with(&text).unwrap();
    let pid = owner(&scene);
    let (before, progs) = (hooks(&scene), programs(&scene));
    let load = scene
        .load(
            &scene.client,
            "/",
            &["-c", "4", "-d", "15", "--rate", "200", "--new-connection"],
        )
        .unwrap();
    let taken = scene
        .bed
        .in_node(|| TcpListener::bind("127.0.0.1:0").unwrap())
        .unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let cases = [
        (text.replace("weight: 10}", "weight: ten}"), "ten"),
        (
            text.replace("attach: [", "attach: [no-such-cgroup, "),
            "no-such-cgroup",
        ),
        // Found out last, with everything swapped.
        (
            text.replace("metrics: off", &format!("metrics: {port}")),
            "agent.metrics",
        ),
    ];
    for (config, word) in &cases {
        let said = fails(&scene, config);
        assert!(said.contains(word), "{word:?} is not said: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(owner(&scene), pid, "{word}");
        assert_eq!(hooks(&scene), before, "{word}");
        assert_captured(&scene, word);
        let expected = &progs;
        let same = wait_until(Duration::from_secs(5), || programs(&scene) == *expected);
        assert!(same, "{word}: its own programs stand at the hooks");
    }
    drop(taken);
    // It changes things again, and may be followed again.
    scene
        .put_in_force(&text.replace("weight: 90}", "weight: 80}"))
        .unwrap();
    let report = report(load);
    // What the last failed one had accepted in its milliseconds died with it.
    let lost: u64 = report.errors.values().sum();
    eprintln!(
        "{lost} of {} requests lost in a takeover that failed last",
        report.requests
    );
    assert!(lost <= 20, "{report:?}");
    let mut old = take_over(&mut scene);
    assert_eq!(exit_code(&mut old, Duration::from_secs(10)), Some(0));
    assert_captured(&scene, "after a good one");
    scene.tear_down().unwrap();
}

fn sh(scene: &Scene, pod: &mesh_user::testbed::Pod, line: &str) {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", line]);
    let mut child = scene.bed.spawn_in(pod, command).expect("sh");
    assert!(child.wait().expect("it ends").success(), "{line}");
}

/// A cgroup that stands for the kubelet's.
struct Kubelet(std::path::PathBuf);

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Without it: a successor that names less, and fails when everything is swapped, leaves a workload
/// marked with nothing in its namespace that turns its connections around; or its own programs at
/// the kubelet's cgroup and at the guarded interfaces.
#[test]
fn successor_that_names_less_and_fails_last_leaves_every_workload_whole() {
    let mut scene = scene::build("l-less");
    let kubelet = Kubelet(scene.bed.pods_cgroup().with_file_name("l-less-kubelet"));
    std::fs::create_dir_all(&kubelet.0).unwrap();
    let text = scene.config_with(SPLIT);
    let text = text.replace("tags: {app:", "bypass-guard: on, tags: {app:");
    let mount = mesh_user::kernel::mounts::cgroup2().unwrap().unwrap();
    let below = kubelet.0.strip_prefix(mount).unwrap();
    let setting = format!("agent:\n  kubelet-cgroup: {}\n", below.display());
    let text = text.replace("agent:\n", &setting);
    scene.start_with(&text).unwrap();
    let (pid, before, progs) = (owner(&scene), hooks(&scene), programs(&scene));
    for name in ["probe_ops", "egress_guard"] {
        assert!(progs.iter().any(|row| row.contains(name)), "{progs:?}");
    }
    assert_captured(&scene, "before");
    let taken = scene
        .bed
        .in_node(|| TcpListener::bind("127.0.0.1:0").unwrap())
        .unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let mut config = text.replace("metrics: off", &format!("metrics: {port}"));
    let tester = format!("  - {{name: {}, netns:", scene.tester.name);
    let at = config.find(&tester).expect("its line");
    let end = at + config[at..].find('\n').expect("whole");
    config.replace_range(at..=end, "");
    let repaired = kernel_count(&scene, "repaired");
    let load = scene
        .load(
            &scene.tester,
            "/",
            &["-c", "4", "-d", "6", "--rate", "400", "--new-connection"],
        )
        .unwrap();
    let said = fails(&scene, &config);
    assert!(said.contains("agent.metrics"), "{said}");
    assert_eq!(owner(&scene), pid);
    eventually("its own programs stand at the hooks", || {
        hooks(&scene) == before && programs(&scene) == progs
    });
    assert_captured(&scene, "after it");
    // The successor never had a listener in it.
    assert_no_failure("the workload that is not named", &report(load));
    assert_eq!(kernel_count(&scene, "repaired"), repaired, "by the audit");
    drop(taken);
    scene.tear_down().unwrap();
}

/// Without it: one workload that a successor can't enrol is cut off from the agent that serves it.
#[test]
fn workload_that_a_successor_can_not_enrol_is_served_without_a_gap() {
    let mut scene = scene::build("l-gap");
    let text = scene.config_with(SPLIT);
    let text = text.replace("tags: {app:", "failure: closed, tags: {app:");
    scene.start_with(&text).unwrap();
    // Both have it, and nothing leaves with it: the second by name is refused.
    for pod in [&scene.client, &scene.tester] {
        sh(&scene, pod, "ip addr add 10.99.0.1/32 dev eth0");
    }
    let last = if scene.client.name < scene.tester.name {
        &scene.tester
    } else {
        &scene.client
    };
    let load = scene
        .load(
            last,
            "/",
            &["-c", "4", "-d", "8", "--rate", "400", "--new-connection"],
        )
        .unwrap();
    for _ in 0..4 {
        let said = fails(&scene, &text);
        assert!(said.contains("can't be taken over"), "{said}");
        assert!(said.contains("10.99.0.1"), "{said}");
    }
    assert_no_failure("the workload that can't be enrolled", &report(load));
    assert_captured(&scene, "afterwards");
    scene.tear_down().unwrap();
}

/// Speaks with the running agent as a successor would.
fn speak(scene: &Scene, head: &str, hello: Option<&str>) -> String {
    let mut stream = UnixStream::connect(scene.instance.admin_socket()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    write!(stream, "{head}\r\n\r\n").unwrap();
    let mut text = String::new();
    let mut bytes = [0; 4096];
    let read = stream.read(&mut bytes).unwrap();
    text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    if let Some(hello) = hello {
        stream
            .write_all(&(hello.len() as u32).to_be_bytes())
            .unwrap();
        stream.write_all(hello.as_bytes()).unwrap();
        // Until it closes.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        text.push_str(&String::from_utf8_lossy(&rest));
    }
    text
}

/// Without it: a successor with other map layouts reads garbage, or an idle scraper freezes the agent.
#[test]
fn other_kernel_layout_and_what_is_no_successor_are_refused_by_name() {
    let mut scene = scene::build("l-abi");
    let text = scene.config_with(SPLIT);
    scene.start_with(&text).unwrap();
    let plain = speak(&scene, "POST /takeover HTTP/1.1\r\nhost: mesh", None);
    assert!(plain.starts_with("HTTP/1.1 426 "), "{plain}");
    assert!(plain.contains("mesh run --takeover"), "{plain}");
    let get = speak(&scene, "GET /takeover HTTP/1.1\r\nhost: mesh", None);
    assert!(get.starts_with("HTTP/1.1 405 "), "{get}");
    let head = "POST /takeover HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\n\
                upgrade: mesh-takeover";
    let ours = mesh_common::abi::ABI_VERSION;
    let hello = format!(r#"{{"abi":{},"version":"9.9.9","pid":1}}"#, ours + 1);
    let refused = speak(&scene, head, Some(&hello));
    assert!(refused.starts_with("HTTP/1.1 101 "), "{refused}");
    let layout = format!("kernel layout {ours}");
    for word in ["Refused", "9.9.9", &layout, "mesh cleanup"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    let nonsense = speak(&scene, head, Some("{}"));
    assert!(nonsense.starts_with("HTTP/1.1 101 "), "{nonsense}");
    // None of them froze it.
    scene
        .put_in_force(&text.replace("weight: 90}", "weight: 80}"))
        .unwrap();
    let mut old = take_over(&mut scene);
    assert_eq!(exit_code(&mut old, Duration::from_secs(10)), Some(0));
    scene.tear_down().unwrap();
}

/// Without it: a successor that is killed at the wrong moment leaves pods without a listener, or the
/// node with two programs at a hook.
#[test]
fn successor_killed_at_any_moment_leaves_the_running_agent_whole() {
    let mut scene = scene::build("l-kill");
    let text = scene.config_with(SPLIT);
    let text = text.replace("tags: {app:", "failure: closed, tags: {app:");
    scene.start_with(&text).unwrap();
    let (pid, before) = (owner(&scene), hooks(&scene));
    let seed = mesh_user::clock::now().0;
    println!("seed {seed}");
    let mut random = Random(seed);
    for round in 0..10 {
        let wait = Duration::from_millis(random.below(900));
        let mut successor = scene.spawn_successor(&scene.config_path()).unwrap();
        // The moment is the subject.
        std::thread::sleep(wait);
        if owner(&scene) == Some(successor.id()) {
            // It has won: it is the agent now, and what is killed is that.
            let mut old = scene.replace_agent(successor).expect("one ran before");
            assert_eq!(exit_code(&mut old, Duration::from_secs(10)), Some(0));
            return scene.tear_down().unwrap();
        }
        successor.kill().unwrap();
        successor.wait().unwrap();
        eventually("the running agent has everything back", || {
            owner(&scene) == pid
                && hooks(&scene) == before
                && scene
                    .ask(&scene.client, &[])
                    .is_ok_and(|a| a.status(200) == 1)
        });
        assert_captured(&scene, &format!("round {round}, killed after {wait:?}"));
    }
    scene.tear_down().unwrap();
}

/// Without it: an agent that dies while its successor starts takes the successor with it.
#[test]
fn successor_goes_on_when_the_running_agent_dies_in_the_middle() {
    let mut scene = scene::build("l-dies");
    let text = scene.config_with(SPLIT);
    scene.start_with(&text).unwrap();
    let before = hooks(&scene);
    let seed = mesh_user::clock::now().0;
    println!("seed {seed}");
    let mut random = Random(seed);
    for round in 0..6 {
        let wait = Duration::from_millis(random.below(700));
        let successor = scene.spawn_successor(&scene.config_path()).unwrap();
        let pid = successor.id();
        std::thread::sleep(wait);
        scene.kill_agent().unwrap();
        scene.replace_agent(successor);
        let taken = wait_until(Duration::from_secs(10), || owner(&scene) == Some(pid));
        assert!(taken, "round {round}, {wait:?}: {}", log(scene.dir()));
        eventually("both are captured", || {
            let status = scene.status().expect("it runs");
            status.ready() && status.workloads.iter().all(|w| w.pod_id.is_some())
        });
        assert_captured(&scene, &format!("round {round}, killed after {wait:?}"));
        assert_eq!(hooks(&scene), before, "one program at each hook");
    }
    scene.tear_down().unwrap();
}

/// Without it: two that take over at once share the node, or the second waits for ever.
#[test]
fn second_successor_is_refused_by_name() {
    let mut scene = scene::build("l-two");
    let text = scene.config_with(SPLIT);
    scene.start_with(&text).unwrap();
    let captured = kernel_count(&scene, "captured");
    let load = scene
        .load(&scene.client, "/", &["-c", "4", "-d", "6", "--rate", "200"])
        .unwrap();
    eventually("the load runs", || {
        kernel_count(&scene, "captured") > captured
    });
    let mut rivals: Vec<_> = (0..2)
        .map(|_| scene.spawn_successor(&scene.config_path()).unwrap())
        .collect();
    let mut winners = Vec::new();
    for mut rival in rivals.drain(..) {
        let pid = rival.id();
        let mut ended = false;
        eventually("one wins, or is refused", || {
            ended = rival.try_wait().unwrap().is_some();
            ended || owner(&scene) == Some(pid) || winners.contains(&pid)
        });
        if !ended {
            winners.push(pid);
            let mut old = scene.replace_agent(rival).expect("one ran before");
            assert_eq!(exit_code(&mut old, Duration::from_secs(15)), Some(0));
        }
    }
    assert!(!winners.is_empty(), "{}", log(scene.dir()));
    assert_no_failure("kept connections", &report(load));
    assert_captured(&scene, "afterwards");
    scene.tear_down().unwrap();
}

/// Without it: a successor that hangs in the middle holds the running agent still for ever, or wakes
/// up and takes half of the node.
#[test]
fn successor_that_hangs_is_given_up_and_does_no_harm_when_it_wakes() {
    let mut scene = scene::build("l-hang");
    let text = scene.config_with(SPLIT);
    let text = text.replace("tags: {app:", "failure: closed, tags: {app:");
    scene.start_with(&text).unwrap();
    let (pid, before) = (owner(&scene), hooks(&scene));
    let seen = log_length(&scene);
    let mut successor = scene.spawn_successor(&scene.config_path()).unwrap();
    let stop = Pid::from_raw(successor.id().try_into().unwrap());
    let said = |words: &str| {
        let text = std::fs::read_to_string(scene.dir().join("agent.log")).unwrap();
        text[seen..].contains(words)
    };
    eventually("it was offered the instance", || said("a successor starts"));
    kill(stop, Signal::SIGSTOP).unwrap();
    // Meanwhile: nothing changes, everything is served, and who asks is told.
    let output = scene.mesh(&["redirect", "off"]).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("a successor is taking over"), "{error}");
    let served = scene
        .ask(&scene.client, &["--count", "50", "--close"])
        .unwrap();
    assert_eq!(served.status(200), 50, "{served:?}");
    let given_up = wait_until(Duration::from_secs(30), || said("does not get ready"));
    assert!(given_up, "{}", log(scene.dir()));
    scene
        .put_in_force(&text.replace("weight: 90}", "weight: 80}"))
        .unwrap();
    assert_captured(&scene, "given up");
    kill(stop, Signal::SIGCONT).unwrap();
    let limit = Duration::from_secs(10);
    assert_eq!(
        exit_code(&mut successor, limit),
        Some(1),
        "{}",
        log(scene.dir())
    );
    assert!(said("the running agent goes on"), "{}", log(scene.dir()));
    eventually("the running agent has everything back", || {
        owner(&scene) == pid && hooks(&scene) == before
    });
    assert_captured(&scene, "awake and gone");
    // The next one is welcome.
    let mut old = take_over(&mut scene);
    assert_eq!(exit_code(&mut old, limit), Some(0));
    scene.tear_down().unwrap();
}

/// xorshift64: the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
