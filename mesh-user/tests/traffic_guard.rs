//! `bypass-guard: on` with the whole agent: a configuration, real traffic, the audit's second.

mod scene;

use std::time::{Duration, Instant};

use scene::{SPLIT, Scene, eventually, kernel_count, live, shell, told};

/// Both workloads guarded, over a running agent's file too.
fn guarded(scene: &Scene) -> String {
    let text = scene.config_with(SPLIT);
    text.replace("tags: {app: ", "bypass-guard: on, tags: {app: ")
}

/// Without it: the guard is tested with a stand-in for the proxy only. Ordinary traffic of guarded
/// workloads, both families, HTTP and TCP, switched on and off under it: no request fails, nothing
/// is dropped.
#[test]
fn ordinary_traffic_of_guarded_workloads_meets_no_guard() {
    let mut scene = scene::build("t-guard");
    let text = guarded(&scene);
    scene.start_with(&text).unwrap();
    live(&scene, 2);
    let load = scene
        .load(
            &scene.client,
            "/",
            &["--rate", "200", "-d", "4", "--new-connection"],
        )
        .unwrap();
    let begun = Instant::now();
    let mut on = true;
    while begun.elapsed() < Duration::from_secs(3) {
        on = !on;
        let text = if on {
            text.clone()
        } else {
            scene.config_with(SPLIT)
        };
        scene.put_in_force(&text).unwrap();
    }
    let report = scene::report(load);
    assert!(report.errors.is_empty(), "{report:?}");
    assert!(report.statuses.keys().eq(&[200]), "{report:?}");
    if !on {
        scene.put_in_force(&text).unwrap();
    }
    let program = r#"
answers = []
for host in sys.argv[1:]:
    s = dial(host, 7)
    s.sendall(b'over tcp')
    answers.append(s.recv(8).decode())
tell(answers)
"#;
    let (v4, v6) = (scene::VIP4.to_string(), scene::VIP6.to_string());
    let seen = told(&scene, &scene.tester, program, &[&v4, &v6]);
    assert_eq!(seen, serde_json::json!(["over tcp", "over tcp"]));
    for reason in [
        "refuse_guard_syn",
        "refuse_guard_source",
        "refuse_guard_header",
        "refuse_guard_forged",
        "refuse_mark",
    ] {
        assert_eq!(kernel_count(&scene, reason), 0, "{reason}");
    }
    assert!(kernel_count(&scene, "guard_pass") > 0);
    let status = scene.status().unwrap();
    let guard = status.conditions.iter().find(|c| c.name == "bypass-guard");
    assert!(guard.is_some_and(|condition| condition.ok), "{status:?}");
    scene.tear_down().unwrap();
}

/// Within two seconds, by the agent's own clock, with nobody asking.
#[test]
fn deleted_rules_routes_and_settings_are_back_within_two_seconds() {
    let mut scene = scene::build("t-audit");
    let text = guarded(&scene);
    scene.start_with(&text).unwrap();
    live(&scene, 2);
    for (deleted, left) in [
        ("ip rule del pref 150", "ip rule | grep -c 'lookup 1512'"),
        (
            "ip -6 route flush table 1512",
            "ip -6 route show table 1512 | grep -c local",
        ),
        (
            "echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept",
            "grep -c 1 /proc/sys/net/ipv4/tcp_fwmark_accept",
        ),
        (
            "ip link set lo down",
            "ip link show lo | grep -c LOOPBACK,UP",
        ),
    ] {
        let before = kernel_count(&scene, "repaired");
        shell(&scene, &scene.client, deleted);
        let begun = Instant::now();
        eventually(deleted, || shell(&scene, &scene.client, left).trim() == "1");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "{deleted}: {took:?}");
        eventually("counted", || kernel_count(&scene, "repaired") > before);
        println!("{deleted}: back within {took:?}");
    }
    scene.tear_down().unwrap();
}

/// The listener's own port on the pod's own address: from inside the pod and from another one. The
/// destination is the listener itself: closed, never dialled.
#[test]
fn direct_connection_to_the_agents_listener_is_closed() {
    let mut scene = scene::build("t-self");
    let text = guarded(&scene);
    scene.start_with(&text).unwrap();
    live(&scene, 2);
    // Sockets that listen in the namespace are the agent's: the pod serves nothing.
    let ports = r#"
found = set()
for line in open('/proc/self/net/tcp6').readlines()[1:]:
    fields = line.split()
    if fields[3] == '0A':
        found.add(int(fields[1].split(':')[1], 16))
tell(sorted(found))
"#;
    let ports = told(&scene, &scene.client, ports, &[]);
    let ports: Vec<String> = ports
        .as_array()
        .expect("a list")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(!ports.is_empty());
    let program = r#"
heard = []
for host in sys.argv[1:3]:
    for port in sys.argv[3:]:
        try:
            s = dial(host, int(port))
            s.sendall(b'GET / HTTP/1.1\r\nhost: web\r\n\r\n')
            heard.append(everything(s).decode()[:12])
        except ConnectionError as e:
            heard.append('')
tell(heard)
"#;
    let (v4, v6) = (scene.client.v4.to_string(), scene.client.v6.to_string());
    let mut arguments = vec![v4.as_str(), v6.as_str()];
    arguments.extend(ports.iter().map(String::as_str));
    let before = kernel_count(&scene, "proxy_flow_opened");
    for from in [&scene.client, &scene.tester] {
        let heard = told(&scene, from, program, &arguments);
        for answer in heard.as_array().expect("a list") {
            let text = answer.as_str().expect("text");
            assert!(
                text.is_empty() || text.starts_with("HTTP/1.1 502"),
                "{}: {text:?}",
                from.name
            );
        }
    }
    assert_eq!(kernel_count(&scene, "proxy_flow_opened"), before, "no dial");
    scene.tear_down().unwrap();
}
