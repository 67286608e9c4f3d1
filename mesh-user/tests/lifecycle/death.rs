//! The agent is killed, or hangs.

use std::time::{Duration, Instant};

use mesh_user::kernel::view::View;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    hooks, one_open_one_closed,
    scene::{self, SPLIT, Talker, VIP4, eventually, kernel_count, report},
    steady,
};

#[test]
fn killed_agent_leaves_open_pods_served_and_closed_ones_refused_until_the_next_adopts() {
    let mut scene = scene::build("t-kill");
    let text = one_open_one_closed(&scene, SPLIT);
    scene.start_with(&text).unwrap();
    let before = hooks(&scene);
    // Nine hooks at the pods' cgroup, the agent's own, and one look-up in each pod.
    assert_eq!(before.values().sum::<usize>(), 12, "{before:?}");
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
