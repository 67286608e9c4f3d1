//! Starts that fail or race, and what cleanup leaves.

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
    time::Duration,
};

use mesh_user::{kernel::inventory, testbed::wait_until};

use crate::{
    hooks,
    scene::{self, SPLIT, Scene, eventually, kernel_count, live, shell, start},
};

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
        std::slice::from_ref(&missing),
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
    let scene = scene::build("t-race");
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
        let (mut winner, losers): (Vec<_>, Vec<_>) =
            rivals.into_iter().partition(|rival| rival.id() == pid);
        for mut loser in losers {
            eventually("the loser ends", || loser.try_wait().unwrap().is_some());
        }
        assert_eq!(winner.len(), 1, "round {round}");
        assert_eq!(hooks(&scene).values().sum::<usize>(), 12, "round {round}");
        assert_eq!(scene.ask(&scene.client, &[]).unwrap().status(200), 1);
        assert!(kernel_count(&scene, "captured") > 0);
        for winner in &mut winner {
            winner.kill().unwrap();
            winner.wait().unwrap();
        }
        assert!(
            scene.mesh(&["cleanup"]).unwrap().status.success(),
            "round {round}"
        );
    }
    scene.tear_down().unwrap();
}

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
