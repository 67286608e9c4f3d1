//! Opaque TCP: ends, families, server-first, splits, ports.

use crate::{
    V1,
    raw::{RAW, raw_scene},
    scene::{
        self, BANNER_PORT, Scene, TCP_PORT, VIP4, VIP6, kernel_count, start, told, with_service,
    },
};

#[test]
fn tcp_half_close_and_resets_are_carried_through() {
    let (scene, server) = raw_scene("t-tcp-ends");
    let late = r#"
s = dial(sys.argv[1], 81)
data = b'0123456789abcdef' * 100000
s.sendall(data)
s.shutdown(socket.SHUT_WR)
back = everything(s)
tell([back[:64].decode() == hashlib.sha256(data).hexdigest(), len(back) - 64])
"#;
    assert_eq!(
        told(&scene, &scene.client, late, &[RAW]),
        serde_json::json!([true, 1 << 20]),
        "what the server says after the client's end arrives whole"
    );
    let reset = r#"
s = dial(sys.argv[1], 82)
s.sendall(b'x')
try:
    tell(['end', len(everything(s))])
except OSError as e:
    tell(['error', type(e).__name__])
"#;
    assert_eq!(
        told(&scene, &scene.client, reset, &[RAW]),
        serde_json::json!(["error", "ConnectionResetError"]),
        "the server's reset arrives as one, not as an end"
    );
    let leave = r#"
s = dial(sys.argv[1], 83)
s.recv(4)
if sys.argv[2] == 'reset':
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()
tell('left')
"#;
    for (how, seen) in [("reset", "ConnectionResetError"), ("close", "end")] {
        assert_eq!(told(&scene, &scene.client, leave, &[RAW, how]), "left");
        assert_eq!(
            server.next(),
            seen,
            "what the server sees of the client's {how}"
        );
    }
    scene.tear_down().unwrap();
}

/// Echo, half-close and `getpeername()` on a port declared `tcp`, in all three families.
#[test]
fn opaque_tcp_echoes_over_every_family() {
    let scene = start("t-tcp", V1);
    let program = r#"
s = dial(sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'mapped')
peer = s.getpeername()[0]
s.sendall(b'first')
first = s.recv(5).decode()
data = hashlib.sha512(b'seed').digest() * 50000
t = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
t.start()
back = everything(s)
t.join()
tell([peer, first, back == data])
"#;
    let before = kernel_count(&scene, "captured");
    let (v4, v6) = (VIP4.to_string(), VIP6.to_string());
    let port = TCP_PORT.to_string();
    for (host, how, peer) in [
        (&v4, "plain", v4.clone()),
        (&v6, "plain", v6.clone()),
        (&v4, "mapped", format!("::ffff:{v4}")),
    ] {
        let told = told(&scene, &scene.client, program, &[host, &port, how]);
        assert_eq!(
            told,
            serde_json::json!([peer, "first", true]),
            "{host} {how}"
        );
    }
    assert_eq!(
        kernel_count(&scene, "captured") - before,
        3,
        "all went through the proxy"
    );
    scene.tear_down().unwrap();
}

const EARLY: &str = "10.96.0.30";

/// A service `early` with the servers' server-first port, declared `tcp`.
fn early_scene(name: &str, rules: &str) -> Scene {
    let mut scene = scene::build(name);
    let endpoints: String = scene
        .bed
        .pods()
        .iter()
        .filter(|pod| pod.name.starts_with("web-"))
        .map(|pod| {
            let version = if pod.name == "web-v2" { "v2" } else { "v1" };
            format!(
                "      - {{address: {}, tags: {{version: {version}}}}}\n",
                pod.v4
            )
        })
        .collect();
    let service = format!(
        "  - name: early\n    addresses: [{EARLY}]\n    ports:\n      \
         - {{name: banner, number: 26, target: 9001, protocol: tcp, path: proxy}}\n      \
         - {{name: echo, number: 27, target: 9000, protocol: tcp, path: proxy}}\n    \
         versions: {{v1: {{version: v1}}, v2: {{version: v2}}}}\n    endpoints:\n{endpoints}"
    );
    let text = with_service(&scene, &service, rules);
    scene.start_with(&text).unwrap();
    scene
}

#[test]
fn server_first_is_not_delayed_where_declared_and_bounded_where_detected() {
    let scene = early_scene("t-banner", V1);
    // The middle of 9: one slow start of a process on a busy machine is no property of the mesh.
    let program = r#"
times = []
for _ in range(9):
    begun = time.monotonic()
    s = dial(sys.argv[1], int(sys.argv[2]))
    line = s.makefile().readline()
    times.append((time.monotonic() - begun) * 1000)
    assert line.endswith(' ready\n'), line
    s.close()
tell(sorted(times)[4])
"#;
    let ms = |host: &str, port: u16| {
        let told = told(&scene, &scene.client, program, &[host, &port.to_string()]);
        told.as_f64().unwrap()
    };
    let server = scene
        .bed
        .pods()
        .iter()
        .find(|pod| pod.name == "web-v1-a")
        .unwrap()
        .v4;
    let direct = ms(&server.to_string(), 9001);
    let declared = ms(EARLY, 26);
    let detected = ms(&VIP4.to_string(), BANNER_PORT);
    assert!(
        declared < direct + 50.0,
        "declared {declared} ms, direct {direct} ms"
    );
    assert!(
        detected < direct + 150.0,
        "detected {detected} ms, direct {direct} ms"
    );
    // The default is 50 ms: had it waited less, nothing would have been detected at all.
    assert!(
        detected > direct + 25.0,
        "detected {detected} ms, direct {direct} ms"
    );
    scene.tear_down().unwrap();
}

#[test]
fn tcp_connections_are_split_by_the_weights() {
    let rules = "
rules:
  - {service: web, route: [{version: v1}]}
  - {name: split, service: early, port: banner, route: [{version: v1, weight: 3}, {version: v2, weight: 1}]}
  - {name: rest, service: early, route: [{version: v2}]}
";
    let scene = early_scene("t-tcp-split", rules);
    let program = r#"
seen = {}
for _ in range(200):
    s = dial(sys.argv[1], 26)
    version = s.makefile().readline().split()[1]
    seen[version] = seen.get(version, 0) + 1
    s.close()
tell(seen)
"#;
    let seen = told(&scene, &scene.client, program, &[EARLY]);
    let (v1, v2) = (seen["v1"].as_u64().unwrap(), seen["v2"].as_u64().unwrap());
    assert_eq!(v1 + v2, 200);
    // Exact on each worker; over all of them at most workers x backends off (SEMANTICS §5.9).
    let workers = scene.status().unwrap().workers as u64;
    assert!(v2.abs_diff(50) <= workers * 2, "{seen}");
    scene.tear_down().unwrap();
}

/// Each port of a service has its own target and rules; what is no port of it is not the mesh's.
#[test]
fn ports_of_one_address_lead_each_to_its_own() {
    let rules = "
rules:
  - {service: web, port: http, route: [{version: v1}]}
  - {service: web, port: banner, route: [{version: v2}]}
  - {service: web, port: tcp, route: [{version: v1}]}
";
    let scene = start("t-ports", rules);
    let http = scene.ask(&scene.client, &["--count", "10"]).unwrap();
    assert_eq!(http.version("v1"), 10, "{http:?}");
    let program = r#"
banner = dial(sys.argv[1], 25).makefile().readline()
s = dial(sys.argv[1], 7)
s.sendall(b'GET / HTTP/1.1\r\n')
echo = s.recv(100).decode()
try:
    dial(sys.argv[1], 8080, limit=1)
    other = 'connected'
except OSError as e:
    other = 'not'
tell([banner, echo, other])
"#;
    let before = kernel_count(&scene, "captured");
    let told = told(&scene, &scene.client, program, &[&VIP4.to_string()]);
    assert_eq!(told[0], "web-v2 v2 ready\n");
    assert_eq!(
        told[1], "GET / HTTP/1.1\r\n",
        "a tcp port is opaque, whatever is said on it"
    );
    assert_eq!(
        told[2], "not",
        "the target's number is no port of the address"
    );
    assert_eq!(kernel_count(&scene, "captured") - before, 2);
    scene.tear_down().unwrap();
}
