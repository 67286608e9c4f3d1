//! A server that does what real ones do to a proxy.

use crate::{
    V1,
    scene::{self, Scene, Talker, with_service},
};

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

/// The virtual address of the server.
pub(crate) const RAW: &str = "10.96.0.20";

/// A scene with the server behind [`RAW`].
pub(crate) fn raw_scene(name: &str) -> (Scene, Talker) {
    let mut scene = scene::build(name);
    let pod = scene.bed.pod("raw").unwrap();
    let server = Talker::start(&scene, &pod, RAW_SERVER, &[]);
    assert_eq!(server.next(), "ready");
    let service = format!(
        "  - name: raw\n    addresses: [{RAW}]\n    ports:\n      \
         - {{name: ws, number: 80, target: 9100, protocol: http}}\n      \
         - {{name: late, number: 81, target: 9101, protocol: tcp, path: proxy}}\n      \
         - {{name: reset, number: 82, target: 9102, protocol: tcp, path: proxy}}\n      \
         - {{name: watch, number: 83, target: 9103, protocol: tcp, path: proxy}}\n    \
         endpoints: [{{address: {}}}]\n",
        pod.v4
    );
    let text = with_service(&scene, &service, V1);
    scene.start_with(&text).unwrap();
    (scene, server)
}
