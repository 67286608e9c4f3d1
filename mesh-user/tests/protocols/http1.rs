//! HTTP/1.1: families, bodies, upgrade, malformed requests.

use std::net::{IpAddr, SocketAddr};

use crate::{
    V1,
    raw::{RAW, raw_scene},
    scene::{PORT, SPLIT, VIP4, VIP6, kernel_count, shell, start, told},
};

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
