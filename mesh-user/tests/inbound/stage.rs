//! An application that says whom it accepts, and clients of every kind.

use std::{cell::RefCell, collections::VecDeque, net::IpAddr};

use mesh_user::{demo::scene::Scene, testbed::Pod};
use serde_json::Value;

use crate::scene::{self, Talker, told};

/// Ports of the application: HTTP, HTTP, opaque echo, opaque echo.
pub(crate) const HTTP: u16 = 8080;
pub(crate) const OTHER: u16 = 8081;
pub(crate) const ECHO: u16 = 9000;
pub(crate) const DENIED: u16 = 9001;
/// Virtual address of the application's service, and its ports.
pub(crate) const VIP: &str = "10.96.7.7";

/// Tells each connection when it is accepted. `/hold` answers when a line comes in; every answer
/// names the client that the application sees. A second `/once` on a connection ends it.
const APP: &str = r"
import select
go = threading.Event()
lock = threading.Lock()

def say(value):
    with lock:
        tell(value)

def http(s, peer):
    f = s.makefile('rb')
    served = 0
    while line := f.readline():
        path = line.split()[1].decode()
        if path == '/once' and served:
            break
        served += 1
        last = path == '/last'
        while (field := f.readline()) not in (b'\r\n', b'\n', b''):
            last |= field.lower().startswith(b'connection: close')
        if path == '/hold':
            go.wait()
        body = peer.encode()
        s.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % len(body) + body)
        if last:
            break

def echo(s, peer):
    while part := s.recv(1 << 16):
        s.sendall(part)

def serve(s, at, port):
    peer = at[0].removeprefix('::ffff:')
    say({'peer': peer, 'peer_port': at[1], 'port': port})
    try:
        (http if port < 9000 else echo)(s, peer)
    except OSError:
        pass
    s.close()

def listen(port):
    l = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    l.bind(('::', port))
    l.listen(512)
    def loop():
        while True:
            s, at = l.accept()
            threading.Thread(target=serve, args=(s, at, port), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()

for port in sys.argv[1:]:
    listen(int(port))
say('ready')
for line in sys.stdin:
    go.set()
    if line.strip() == 'stop':
        go.clear()
";

/// Asks once: status, body, refusal's name, time, and the client's own address. What is not HTTP
/// is echoed.
const ASK: &str = r"
host, port, how, bind = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
path = sys.argv[5]
out = {'status': 0, 'body': '', 'reject': '', 'error': ''}
start = time.monotonic()
try:
    family = socket.AF_INET6 if ':' in host or how == 'mapped' else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(3)
    if bind:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(('', bind))
    s.connect(('::ffff:' + host if how == 'mapped' else host, port))
    out['own_port'] = s.getsockname()[1]
    out['own'] = s.getsockname()[0].removeprefix('::ffff:')
    if how == 'echo':
        s.sendall(b'hello')
        out['body'] = s.recv(100).decode()
    else:
        s.sendall(b'GET %s HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n' % path.encode())
        head, _, body = everything(s).partition(b'\r\n\r\n')
        out['status'] = int(head.split()[1]) if head else 0
        out['body'] = body.decode()
        for line in head.decode().split('\r\n'):
            if line.lower().startswith('x-mesh-reject:'):
                out['reject'] = line.split(':')[1].strip()
except OSError as e:
    out['error'] = type(e).__name__
out['ms'] = (time.monotonic() - start) * 1000
tell(out)
";

/// What a client saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) status: u64,
    pub(crate) body: String,
    pub(crate) reject: String,
    pub(crate) error: String,
    pub(crate) own: String,
    pub(crate) own_port: u64,
    pub(crate) ms: f64,
}

impl Seen {
    fn of(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self {
            status: value["status"].as_u64().unwrap_or_default(),
            body: text("body"),
            reject: text("reject"),
            error: text("error"),
            own: text("own"),
            own_port: value["own_port"].as_u64().unwrap_or_default(),
            ms: value["ms"].as_f64().unwrap_or_default(),
        }
    }

    /// Whether the connection was refused, reset or dropped, as an opaque one is.
    pub(crate) fn cut(&self) -> bool {
        !self.error.is_empty() || self.body.is_empty() && self.status == 0
    }
}

/// How a client asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How<'a> {
    /// `http`, `mapped` or `echo`.
    pub(crate) how: &'a str,
    /// Local port to bind; 0: any.
    pub(crate) bind: u16,
    pub(crate) path: &'a str,
}

pub(crate) const PLAIN: How<'static> = How {
    how: "http",
    bind: 0,
    path: "/",
};
pub(crate) const OPAQUE: How<'static> = How {
    how: "echo",
    bind: 0,
    path: "/",
};

/// A connection that the application accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) peer: String,
    pub(crate) peer_port: u64,
    pub(crate) port: u64,
}

/// The scene with the application in `app`, and `outside`, which no configuration names.
pub(crate) struct Stage {
    pub(crate) app: Pod,
    pub(crate) outside: Pod,
    talker: RefCell<Talker>,
    told: RefCell<VecDeque<Value>>,
    pub(crate) scene: Scene,
}

/// What a stage starts with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    /// Fields of the workload `app`.
    pub(crate) app: &'a str,
    /// The `inbound:` list and whatever else.
    pub(crate) more: &'a str,
    /// Lines of `agent:`.
    pub(crate) agent: &'a str,
}

impl Stage {
    /// With the agent running.
    pub(crate) fn start(name: &str, app: &str, more: &str) -> Self {
        let mut stage = Self::build(name);
        let text = stage.config(&Setup {
            app,
            more,
            agent: "",
        });
        stage.scene.start_with(&text).expect("the agent starts");
        scene::live(&stage.scene, 3);
        stage
    }

    /// Without an agent yet.
    pub(crate) fn build(name: &str) -> Self {
        let mut scene = scene::build(name);
        let app = scene.bed.pod("app").expect("a pod");
        let outside = scene.bed.pod("outside").expect("a pod");
        let ports = [HTTP, OTHER, ECHO, DENIED].map(|port| port.to_string());
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let talker = Talker::start(&scene, &app, APP, &ports);
        assert_eq!(talker.next(), "ready");
        Self {
            app,
            outside,
            talker: RefCell::new(talker),
            told: RefCell::default(),
            scene,
        }
    }

    /// A whole configuration.
    pub(crate) fn config(&self, setup: &Setup<'_>) -> String {
        let scene = &self.scene;
        let head = scene.head_text();
        let head = head.replace("agent:\n", &format!("agent:\n{}", setup.agent));
        let head = head.replace("format: envoy", "format: json");
        format!(
            "{head}\n{}  - name: app\n    hostnames: [app]\n    addresses: [{VIP}]\n    \
             ports:\n      - {{name: http, number: 80, target: {HTTP}, protocol: http}}\n      \
             - {{name: echo, number: 7, target: {ECHO}, protocol: tcp, path: proxy}}\n    endpoints:\n      \
             - {{address: {}}}\n{}  - {{name: app, netns: {}, tags: {{app: app}}, {}}}\n{}\n",
            scene.services_text(),
            self.app.v4,
            scene.workloads_text(""),
            self.app.netns.display(),
            setup.app,
            setup.more,
        )
    }

    /// Puts other rules in force.
    pub(crate) fn reload(&self, app: &str, more: &str) {
        let text = self.config(&Setup {
            app,
            more,
            agent: "",
        });
        self.scene.put_in_force(&text).expect("it is taken");
    }

    pub(crate) fn ask(&self, from: &Pod, to: impl Into<IpAddr>, port: u16, how: How<'_>) -> Seen {
        let (host, port) = (to.into().to_string(), port.to_string());
        let bind = how.bind.to_string();
        let arguments = [&*host, &port, how.how, &bind, how.path];
        Seen::of(&told(&self.scene, from, ASK, &arguments))
    }

    /// From the node itself, in a cgroup.
    pub(crate) fn ask_from_cgroup(&self, cgroup: &std::path::Path, to: IpAddr, port: u16) -> Seen {
        let mut command = std::process::Command::new("sh");
        let script =
            "echo $$ > \"$0/cgroup.procs\" && exec python3 -c \"$1\" \"$2\" \"$3\" http 0 /";
        command.args(["-c", script]).arg(cgroup);
        command.arg(format!("{}{ASK}", scene::PRELUDE));
        command.args([to.to_string(), port.to_string()]);
        command.stdout(std::process::Stdio::piped());
        let child = self.scene.bed.spawn_node(command).expect("sh starts");
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Seen::of(&serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}")))
    }

    /// The next connection that the application accepted, within 10 s.
    pub(crate) fn accepted(&self) -> Accepted {
        let next = self.told.borrow_mut().pop_front();
        let value = next.unwrap_or_else(|| self.talker.borrow().next());
        Accepted {
            peer: value["peer"].as_str().expect("a peer").to_owned(),
            peer_port: value["peer_port"].as_u64().expect("a port"),
            port: value["port"].as_u64().expect("a port"),
        }
    }

    /// Connections that the application accepted and nobody has asked about: a marker connection
    /// from the node's own side of the application tells when all of them are in.
    pub(crate) fn others(&self) -> Vec<Accepted> {
        self.talker.borrow_mut().say("stop");
        let marker = "import time\ns = dial('127.0.0.1', 8081)\ns.close()\ntell(0)";
        told(&self.scene, &self.app, marker, &[]);
        let mut found = Vec::new();
        loop {
            let next = self.accepted();
            if next.peer == "127.0.0.1" {
                return found;
            }
            found.push(next);
        }
    }

    /// Lets what is on hold go on.
    pub(crate) fn go(&self) {
        self.talker.borrow_mut().say("go");
    }

    /// Lines of the access log about requests or connections, as JSON, in this direction.
    pub(crate) fn logged(&self, record: &str, direction: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.scene.access_log()).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["mesh.record"] == record && line["mesh.direction"] == direction)
            .collect()
    }

    pub(crate) fn count(&self, reason: &str) -> u64 {
        scene::kernel_count(&self.scene, reason)
    }
}
