//! Mode loopback and the port space with the whole agent: the real proxy, unmodified clients.

mod scene;

use std::time::Instant;

use scene::{
    PORT, Scene, TCP_PORT, VIP4, VIP6, eventually, json, kernel_count, python, report, start, told,
};

const V2: &str = "rules:\n  - {service: web, route: [{version: v2}]}\n";

/// The client is in this mode, the tester in the default one.
fn client_in_mode(scene: &Scene, mode: &str) -> String {
    scene.config_with(V2).replace(
        "tags: {app: client}",
        &format!("tags: {{app: client}}, mode: {mode}"),
    )
}

/// What a client hears and is told, over HTTP and TCP, in each family.
const ASK: &str = r#"
heard = []
for host, mapped in ((sys.argv[1], False), (sys.argv[1], True), (sys.argv[2], False)):
    s = dial(host, 80, mapped)
    s.sendall(b'GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n')
    status = everything(s).split(b' ')[1].decode()
    s = dial(host, 7, mapped)
    s.sendall(b'hello')
    s.shutdown(socket.SHUT_WR)
    echo = b'hello' in everything(s)
    s = dial(host, 7, mapped)
    peer = s.getpeername()[0].removeprefix('::ffff:')
    own = s.getsockname()[0].removeprefix('::ffff:')
    heard.append([status, echo, peer == host, own])
tell(heard)
"#;

/// Without it: mode loopback works with a test's accept loop, and not with the proxy.
#[test]
fn loopback_workload_is_served_by_the_proxy_like_a_marked_one() {
    let mut scene = scene::build("t-loop");
    let text = client_in_mode(&scene, "loopback");
    scene.start_with(&text).unwrap();
    let addresses = [VIP4.to_string(), VIP6.to_string()];
    let arguments: Vec<&str> = addresses.iter().map(String::as_str).collect();
    for pod in [scene.client.clone(), scene.tester.clone()] {
        let heard = told(&scene, &pod, ASK, &arguments);
        let own = [pod.v4.to_string(), pod.v4.to_string(), pod.v6.to_string()];
        let expected: Vec<_> = own
            .iter()
            .map(|own| serde_json::json!(["200", true, true, own]))
            .collect();
        assert_eq!(heard, serde_json::json!(expected), "{}", pod.name);
    }
    assert_eq!(kernel_count(&scene, "captured_loopback"), 9);
    assert_eq!(kernel_count(&scene, "captured"), 9);
    let rows = json(&scene, &["bpf", "workloads", "list", "-o", "json"]);
    let modes: Vec<&str> = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["mode"].as_str().unwrap())
        .collect();
    assert_eq!(modes, ["loopback", "mark"]);
}

/// Without it: a pod that finds the listener on its loopback makes the proxy guess, or dial itself.
#[test]
fn dial_to_the_listener_itself_is_refused_by_name() {
    let mut scene = scene::build("t-self");
    let text = client_in_mode(&scene, "loopback");
    scene.start_with(&text).unwrap();
    let program = r"
import socket
for line in open('/proc/net/tcp6').readlines()[1:]:
    fields = line.split()
    if fields[3] == '0A':
        try:
            s = socket.create_connection(('127.0.0.1', int(fields[1].split(':')[1], 16)), 5)
            s.sendall(b'GET / HTTP/1.1\r\nhost: web\r\n\r\n')
            print('heard', s.recv(100))
        except ConnectionResetError:
            print('reset')
";
    let heard = python(&scene, &scene.client.clone(), program);
    let lines: Vec<&str> = heard.lines().collect();
    assert!(
        !lines.is_empty() && lines.iter().all(|it| *it == "reset"),
        "{heard}"
    );
    eventually("the log names it", || {
        let log = std::fs::read_to_string(scene.access_log()).unwrap_or_default();
        // The flag of `loop` in this format: docs/REJECTS.md.
        log.matches(" LR ").count() >= lines.len()
    });
}

/// Without it: a change of mode in the file costs requests.
#[test]
fn mode_is_changed_in_the_file_without_a_failed_request() {
    let scene = start("t-mode", V2);
    let fresh = ["-c", "4", "-d", "4", "--rate", "200", "--new-connection"];
    let kept = ["-c", "4", "-d", "4", "--rate", "200"];
    let loads: Vec<_> = [fresh.as_slice(), &kept]
        .iter()
        .map(|arguments| scene.load(&scene.client, "/", arguments).unwrap())
        .collect();
    eventually("the load runs", || kernel_count(&scene, "captured") > 10);
    for (mode, counter) in [
        ("loopback", "captured_loopback"),
        ("mark", "captured"),
        ("loopback", "captured_loopback"),
        ("auto", "captured"),
    ] {
        scene.put_in_force(&client_in_mode(&scene, mode)).unwrap();
        let before = kernel_count(&scene, counter);
        eventually(mode, || kernel_count(&scene, counter) > before + 10);
    }
    for load in loads {
        let report = report(load);
        assert!(report.errors.is_empty(), "{report:?}");
        assert!(report.statuses.keys().eq(&[200]), "{report:?}");
    }
}

/// Pitfall 10 with the real proxy: both legs of 40,000 connections to one virtual address and on to
/// one endpoint leave out of one namespace; the client closes first, so the proxy does on the other
/// leg. Without it: ports run out on one of them.
#[test]
fn forty_thousand_proxied_connections_find_ports_on_both_legs() {
    let scene = start("t-ports", V2);
    let program = r"
import errno
seen = {}
for number in range(int(sys.argv[2])):
    try:
        s = socket.create_connection((sys.argv[1], 7), 5)
        s.sendall(b'x')
        s.shutdown(socket.SHUT_WR)
        what = 'ok' if everything(s).endswith(b'x') else 'short'
        s.close()
    except OSError as e:
        what = errno.errorcode.get(e.errno, str(e))
    seen[what] = seen.get(what, 0) + 1
tell(seen)
";
    let begun = Instant::now();
    let client = scene.client.clone();
    let seen = told(&scene, &client, program, &[&VIP4.to_string(), "40000"]);
    println!("40,000 proxied connections in {:.1?}", begun.elapsed());
    assert_eq!(seen, serde_json::json!({ "ok": 40_000 }));
    assert_eq!(kernel_count(&scene, "captured"), 40_000);
    assert_eq!((PORT, TCP_PORT), (80, 7));
}
