//! Protocols, end to end (ACCEPTANCE S8): curl, Python sockets and hyper's client as unmodified
//! programs in pods, the virtual address, the real kernel.

mod scene;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_user::testbed::Pod;
use scene::{
    BANNER_PORT, PORT, SPLIT, Scene, TCP_PORT, Talker, VIP4, VIP6, kernel_count, shell, start,
    told, with_service,
};
use serde::{Deserialize, Serialize};

/// All requests to the servers of one version.
const V1: &str = "rules:\n  - {service: web, route: [{version: v1}]}\n";

// ---- HTTP/2 by hyper's client, in a process of its own inside the pod --------------------------

/// What the client process shall ask, on one connection, all at once.
#[derive(Serialize, Deserialize)]
struct Plan {
    to: SocketAddr,
    requests: Vec<Ask>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Ask {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    /// Whether the stream ended with the head: in gRPC, «trailers only».
    head_ended: bool,
    body: String,
    trailers: BTreeMap<String, String>,
    error: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn version(&self) -> &str {
        self.header("x-echo-version")
    }
}

const PLAN: &str = "MESH_TEST_PLAN";
const MARK: &str = "@@";

/// Not a test: the body of the client process, which [`h2`] starts in a pod's namespace and cgroup.
#[test]
#[ignore = "the HTTP/2 client of the other tests, started by them inside a pod"]
fn h2_client() {
    let plan = std::env::var(PLAN).expect("a plan");
    let plan: Plan = serde_json::from_str(&plan).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answers = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(plan.to).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let tasks: Vec<_> = plan
            .requests
            .into_iter()
            .map(|ask| tokio::spawn(one(client.clone(), ask)))
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            let answer = task.await.unwrap();
            answers.push(answer.unwrap_or_else(|error| Answer {
                error: error.to_string(),
                ..Answer::default()
            }));
        }
        answers
    });
    println!("\n{MARK}{}", serde_json::to_string(&answers).unwrap());
}

async fn one(
    mut client: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    ask: Ask,
) -> hyper::Result<Answer> {
    let uri = format!("http://web{}", ask.path);
    let mut request = http::Request::builder()
        .method(ask.method.as_str())
        .uri(uri);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(ask.body))).unwrap();
    client.ready().await?;
    let response = client.send_request(request).await?;
    let text = |fields: &http::HeaderMap| {
        let pairs = fields.iter().map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        });
        pairs.collect()
    };
    let head_ended = hyper::body::Body::is_end_stream(response.body());
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: text(&parts.headers),
        head_ended,
        trailers: body.trailers().map(text).unwrap_or_default(),
        body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        error: String::new(),
    })
}

/// Asks from inside a pod over one HTTP/2 connection.
fn h2(scene: &Scene, pod: &Pod, requests: Vec<Ask>) -> Vec<Answer> {
    let plan = Plan {
        to: (VIP4, PORT).into(),
        requests,
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "h2_client",
        "--exact",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(PLAN, serde_json::to_string(&plan).unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let output = scene
        .bed
        .spawn_in(pod, command)
        .unwrap()
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(MARK));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no answers: {text}"))).unwrap()
}

fn get(path: &str) -> Ask {
    Ask {
        method: "GET".into(),
        path: path.into(),
        ..Ask::default()
    }
}

/// A gRPC message: not compressed, length, payload. ASCII, so that it survives JSON.
const MESSAGE: &str = "\0\0\0\0\x05hello";

fn grpc(path: &str, headers: &[(&str, &str)]) -> Ask {
    let mut all = vec![
        ("content-type".into(), "application/grpc".into()),
        ("te".into(), "trailers".into()),
    ];
    all.extend(
        headers
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into())),
    );
    Ask {
        method: "POST".into(),
        path: path.into(),
        headers: all,
        body: MESSAGE.into(),
    }
}

/// Prior knowledge (h2c), each address family; the endpoint is asked in HTTP/2 too.
#[test]
fn curl_speaks_http2_with_prior_knowledge_over_every_family() {
    let scene = start("t-h2c", V1);
    for host in [
        VIP4.to_string(),
        format!("[{VIP6}]"),
        format!("[::ffff:{VIP4}]"),
    ] {
        let curl = format!(
            "curl -s --http2-prior-knowledge -m 10 -w '\\n%{{http_version}} %{{response_code}}' -D - \
             'http://{host}/x?y=z'"
        );
        let text = shell(&scene, &scene.client, &curl);
        assert!(text.ends_with("\n2 200"), "{host}: {text}");
        assert!(text.contains("x-echo-version: v1"), "{text}");
        assert!(
            text.contains("/x?y=z") && text.contains("\"protocol\":\"HTTP/2.0\""),
            "{text}"
        );
    }
    scene.tear_down().unwrap();
}

#[test]
fn grpc_call_brings_message_and_trailers_back() {
    let scene = start("t-grpc", V1);
    let answers = h2(
        &scene,
        &scene.client,
        vec![
            grpc("/echo.Echo/Unary", &[]),
            grpc("/echo.Echo/Unary", &[("x-grpc-status", "5")]),
        ],
    );
    for (answer, status) in answers.iter().zip(["0", "5"]) {
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (200, ""),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), "application/grpc");
        assert_eq!(answer.body, MESSAGE);
        assert_eq!(
            answer.trailers.get("grpc-status").map(String::as_str),
            Some(status)
        );
        assert!(
            !answer.head_ended && !answer.headers.contains_key("grpc-status"),
            "{answer:?}"
        );
    }
    scene.tear_down().unwrap();
}

/// Refusals are what a gRPC library understands: HTTP 200, the status in the only head.
#[test]
fn grpc_refusals_are_trailers_only_with_their_status() {
    let scene = start(
        "t-grpc-no",
        "rules:\n  - {service: web, match: {path: {prefix: /echo.Echo}}, route: [{version: v1}]}\n\
         policies:\n  - {service: web, rate-limit: [{name: all, rate: 1/h, burst: 2}]}\n",
    );
    let unknown = h2(&scene, &scene.client, vec![grpc("/no.Such/Call", &[])]);
    let call = || grpc("/echo.Echo/Unary", &[]);
    let limited = h2(&scene, &scene.client, vec![call(), call(), call()]);
    let good = limited
        .iter()
        .filter(|answer| answer.trailers.contains_key("grpc-status"))
        .count();
    assert_eq!(good, 2, "the burst is served: {limited:?}");
    let over: Vec<_> = limited.iter().filter(|answer| answer.head_ended).collect();
    assert_eq!(over.len(), 1, "{limited:?}");
    for (answer, status, reject) in [
        (&unknown[0], "12", "no_route"),
        (over[0], "8", "rate_limited"),
    ] {
        assert!(
            answer.head_ended && answer.body.is_empty(),
            "trailers only: {answer:?}"
        );
        assert_eq!(
            (answer.status, answer.header("grpc-status")),
            (200, status),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), "application/grpc");
        assert_eq!(answer.header("x-mesh-reject"), reject);
        assert!(!answer.header("grpc-message").is_empty(), "{answer:?}");
    }
    scene.tear_down().unwrap();
}

#[test]
fn every_stream_of_one_connection_is_routed_by_itself() {
    let rules = "
rules:
  - {name: beta, service: web, precedence: 1, match: {headers: {x-user: beta}}, route: [{version: v2}]}
  - {name: split, service: web, route: [{version: v1, weight: 90}, {version: v2, weight: 10}]}
";
    let scene = start("t-h2-split", rules);
    let answers = h2(&scene, &scene.client, vec![get("/"); 500]);
    let of = |version: &str, answers: &[Answer]| {
        answers
            .iter()
            .filter(|answer| answer.version() == version)
            .count()
    };
    // One connection stays on one worker: there the split is exact.
    assert_eq!((of("v1", &answers), of("v2", &answers)), (450, 50));
    let mut beta = get("/");
    beta.headers.push(("x-user".into(), "beta".into()));
    let mixed: Vec<_> = (0..200)
        .map(|i| if i % 2 == 0 { beta.clone() } else { get("/") })
        .collect();
    let answers = h2(&scene, &scene.client, mixed);
    let (asked, others): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .enumerate()
        .partition(|(index, _)| index % 2 == 0);
    assert!(
        asked.iter().all(|(_, answer)| answer.version() == "v2"),
        "by its own header"
    );
    let others: Vec<_> = others.into_iter().map(|(_, answer)| answer).collect();
    assert_eq!((of("v1", &others), of("v2", &others)), (90, 10));
    scene.tear_down().unwrap();
}

// ---- bodies -----------------------------------------------------------------------------------

/// 20 MiB up and down at once, by length and chunked, over HTTP/1.1 and HTTP/2.
#[test]
fn large_bodies_come_through_both_ways_byte_for_byte() {
    let scene = start("t-bodies", V1);
    let file = scene.dir().join("body");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes: Vec<u8> = (0..20 << 20)
        .map(|_| {
            // xorshift64: bytes that no mix-up of blocks leaves in order.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        })
        .collect();
    std::fs::write(&file, &bytes).unwrap();
    let file = file.display();
    let wanted = shell(&scene, &scene.client, &format!("sha256sum < {file}"));
    for how in [
        "--http1.1",
        "--http1.1 -H 'Transfer-Encoding: chunked'",
        "--http2-prior-knowledge",
    ] {
        let line = format!("curl -s -m 60 {how} -X POST -T {file} http://{VIP4}/echo | sha256sum");
        assert_eq!(shell(&scene, &scene.client, &line), wanted, "{how}");
        let line = format!("curl -s -m 60 {} http://{VIP4}/bytes/20971520 | wc -c", how);
        assert_eq!(
            shell(&scene, &scene.client, &line).trim(),
            "20971520",
            "{how}"
        );
    }
    // Many small chunks with a trailer, split where it hurts; the framing that comes back is valid.
    let program = r#"
s = dial(sys.argv[1], 80)
data = hashlib.sha512(b'x').digest() * 100
wire = b'POST /echo HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n'
at = 0
while at < len(data):
    n = at % 97 + 1
    part = data[at:at + n]
    wire += b'%x;ext=1\r\n%s\r\n' % (len(part), part)
    at += n
wire += b'0\r\nx-sum: 1\r\n\r\n'
for i in range(0, len(wire), 1001):
    s.sendall(wire[i:i + 1001])
import http.client
r = http.client.HTTPResponse(s)
r.begin()
tell([r.status, r.read() == data])
"#;
    let back = told(&scene, &scene.client, program, &[&VIP4.to_string()]);
    assert_eq!(back, serde_json::json!([200, true]));
    scene.tear_down().unwrap();
}

// ---- a server that does what real ones do ---------------------------------------------------------

/// Upgrade, late answers, resets. Tells what became of the connections to its `watch` port.
const RAW_SERVER: &str = r#"
import base64

def exactly(s, n):
    data = b''
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part:
            raise EOFError
        data += part
    return data

def websocket(s):
    head = b''
    while b'\r\n\r\n' not in head:
        head += s.recv(1)
    fields = dict(l.split(': ', 1) for l in head.decode().lower().split('\r\n')[1:] if l)
    raw = dict(l.split(': ', 1) for l in head.decode().split('\r\n')[1:] if l)
    key = next(v for k, v in raw.items() if k.lower() == 'sec-websocket-key')
    assert fields['upgrade'] == 'websocket' and 'upgrade' in fields['connection'], fields
    digest = hashlib.sha1((key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest()
    s.sendall(b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
              b'Sec-WebSocket-Accept: ' + base64.b64encode(digest) + b'\r\n\r\n\x81\x02hi')
    while True:
        first, length = exactly(s, 2)
        mask = exactly(s, 4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(exactly(s, length & 0x7f)))
        s.sendall(bytes([first, len(data)]) + data)
        if first & 0xf == 8:
            return

def late(s):
    got = everything(s)
    time.sleep(0.3)
    s.sendall(hashlib.sha256(got).hexdigest().encode() + b'.' * (1 << 20))

def reset(s):
    s.recv(1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

def watch(s):
    s.settimeout(10)
    try:
        s.sendall(b'here')
        while s.recv(1 << 16):
            pass
        tell('end')
    except OSError as e:
        tell(type(e).__name__)

def serve(port, what):
    listener = socket.create_server(('', port))
    def accept():
        while True:
            s, _ = listener.accept()
            def run():
                try:
                    what(s)
                except Exception as e:
                    print(what.__name__, repr(e), file=sys.stderr)
                s.close()
            threading.Thread(target=run, daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()

for number, what in enumerate([websocket, late, reset, watch]):
    serve(9100 + number, what)
tell('ready')
threading.Event().wait()
"#;

const RAW: &str = "10.96.0.20";

fn raw_scene(name: &str) -> (Scene, Talker) {
    let mut scene = scene::build(name);
    let pod = scene.bed.pod("raw").unwrap();
    let server = Talker::start(&scene, &pod, RAW_SERVER, &[]);
    assert_eq!(server.next(), "ready");
    let service = format!(
        "  - name: raw\n    addresses: [{RAW}]\n    ports:\n      \
         - {{name: ws, number: 80, target: 9100, protocol: http}}\n      \
         - {{name: late, number: 81, target: 9101, protocol: tcp}}\n      \
         - {{name: reset, number: 82, target: 9102, protocol: tcp}}\n      \
         - {{name: watch, number: 83, target: 9103, protocol: tcp}}\n    \
         endpoints: [{{address: {}}}]\n",
        pod.v4
    );
    let text = with_service(&scene, &service, V1);
    scene.start_with(&text).unwrap();
    (scene, server)
}

#[test]
fn websocket_upgrade_echoes_through_the_virtual_address() {
    let (scene, _server) = raw_scene("t-ws");
    let program = r#"
import base64, os
s = dial(sys.argv[1], 80)
s.sendall(b'GET /chat HTTP/1.1\r\nHost: raw\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n'
          b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n')
f = s.makefile('rb')
head = []
while (line := f.readline().strip()):
    head.append(line.decode().lower())
def frame():
    first, length = f.read(2)
    return [first & 0xf, f.read(length).decode()]
greeting = frame()
def send(op, text):
    mask = os.urandom(4)
    data = bytes(b ^ mask[i % 4] for i, b in enumerate(text.encode()))
    s.sendall(bytes([0x80 | op, 0x80 | len(data)]) + mask + data)
echoes = []
for i in range(50):
    send(1, f'message {i}')
    echoes.append(frame() == [1, f'message {i}'])
send(8, '')
tell([head, greeting, all(echoes), frame()[0], f.read() == b''])
"#;
    let told = told(&scene, &scene.client, program, &[RAW]);
    let head = told[0].to_string();
    assert!(head.contains("101 switching"), "{told}");
    // RFC 6455 §1.3, the sample's own answer.
    assert!(
        head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{told}"
    );
    assert!(head.contains("\"upgrade: websocket\""), "{told}");
    assert_eq!(
        told[1],
        serde_json::json!([1, "hi"]),
        "bytes right behind the head"
    );
    assert_eq!(told[2], true, "each message comes back");
    assert_eq!(
        (&told[3], &told[4]),
        (&8.into(), &true.into()),
        "close frame, then the end"
    );
    scene.tear_down().unwrap();
}

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

// ---- server-first, ports, splits ---------------------------------------------------------------

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
         - {{name: banner, number: 26, target: 9001, protocol: tcp}}\n      \
         - {{name: echo, number: 27, target: 9000, protocol: tcp}}\n    \
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

// ---- malformed ----------------------------------------------------------------------------------

#[test]
fn malformed_requests_are_refused_by_name_through_the_whole_path() {
    let scene = start("t-malformed", V1);
    let program = r#"
def ask(wire):
    s = dial(sys.argv[1], 80)
    s.sendall(wire)
    answer = everything(s).decode()
    head = answer.split('\r\n\r\n')[0].split('\r\n')
    fields = dict(line.lower().split(': ', 1) for line in head[1:])
    return [int(head[0].split()[1]), fields.get('x-mesh-reject'), fields.get('connection')]
host = b'host: web\r\n'
big = b'x: ' + b'a' * 70000 + b'\r\n'
many = b''.join(b'x-%d: 1\r\n' % i for i in range(200))
tell({
    'line': ask(b'GET\r\n\r\n'),
    'name': ask(b'GET / HTTP/1.1\r\n' + host + b'a b: 1\r\n\r\n'),
    'no host': ask(b'GET / HTTP/1.1\r\n\r\n'),
    'two lengths': ask(b'POST / HTTP/1.1\r\n' + host + b'content-length: 1\r\ncontent-length: 2\r\n\r\nab'),
    'smuggled': ask(b'POST / HTTP/1.1\r\n' + host + b'content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
    'large': ask(b'GET / HTTP/1.1\r\n' + host + big + b'\r\n'),
    'many': ask(b'GET / HTTP/1.1\r\n' + host + many + b'\r\n'),
    'target': ask(b'GET /' + b'a' * 20000 + b' HTTP/1.1\r\n' + host + b'\r\n'),
    'coding': ask(b'POST / HTTP/1.1\r\n' + host + b'transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n'),
    'version': ask(b'GET / HTTP/3.0\r\n' + host + b'\r\n'),
    'connect': ask(b'CONNECT web:80 HTTP/1.1\r\n' + host + b'\r\n'),
})
"#;
    let told = told(&scene, &scene.client, program, &[&VIP4.to_string()]);
    for (case, status, reject) in [
        ("line", 400, "bad_request"),
        ("name", 400, "bad_request"),
        ("no host", 400, "bad_request"),
        ("two lengths", 400, "bad_request"),
        ("smuggled", 400, "bad_request"),
        ("large", 431, "head_too_large"),
        ("many", 431, "head_too_large"),
        ("target", 414, "target_too_long"),
        ("coding", 501, "unknown_coding"),
        ("version", 505, "unknown_version"),
        ("connect", 405, "connect_refused"),
    ] {
        assert_eq!(
            told[case],
            serde_json::json!([status, reject, "close"]),
            "{case}"
        );
    }
    let good = scene.ask(&scene.client, &[]).unwrap();
    assert_eq!(good.status(200), 1, "nobody else is disturbed");
    scene.tear_down().unwrap();
}

/// HTTP in all three families, by a program that is not ours.
#[test]
fn curl_speaks_http1_over_every_family() {
    let scene = start("t-curl", SPLIT);
    let before = kernel_count(&scene, "captured");
    for host in [
        IpAddr::V4(VIP4),
        IpAddr::V6(VIP6),
        IpAddr::V6(VIP4.to_ipv6_mapped()),
    ] {
        let to = SocketAddr::new(host, PORT);
        let line = format!(
            "curl -s -m 10 -o /dev/null -w '%{{response_code}} %{{remote_ip}}' http://{to}/"
        );
        let text = shell(&scene, &scene.client, &line);
        let (status, peer) = text.split_once(' ').unwrap_or_default();
        assert_eq!(status, "200", "{host}: {text}");
        assert_eq!(peer.parse::<IpAddr>().ok(), Some(host), "{text}");
    }
    assert_eq!(kernel_count(&scene, "captured") - before, 3);
    scene.tear_down().unwrap();
}
