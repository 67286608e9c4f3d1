//! What 10,000 idle connections cost the agent. Alone in its process, with the clients and the
//! endpoints in processes of their own: the figure is the agent's.
//!
//! `cargo test -p mesh-user --test proxy_idle -- --nocapture` prints it.

mod proxy_support;

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
};

use mesh_user::model::Protocol;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_support::*;

/// Connections of the aim.
const AIM: usize = 10_000;
/// Descriptors that a process needs besides.
const SPARE: usize = 200;

/// The figures are the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// Raises the limit of descriptors as far as it goes; how many connections fit, of which each takes
/// two here.
fn connections() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let fit = (usize::try_from(hard).unwrap_or(usize::MAX) - SPARE) / 2;
    assert!(
        fit >= 1000,
        "{hard} descriptors are too few to measure anything"
    );
    fit.min(AIM)
}

/// A Python program that tells lines and waits for one.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(program: &str, arguments: &[String]) -> Self {
        let prelude = "import resource, socket, sys\n\
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n";
        let mut child = Command::new("python3")
            .arg("-c")
            .arg(format!("{prelude}{program}"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Accepts and keeps; answers one request where it is told to.
const ENDPOINT: &str = r#"
import selectors
answers = sys.argv[1] == 'http'
l = socket.socket()
l.bind(('127.0.0.1', 0))
l.listen(4096)
print(l.getsockname()[1], flush=True)
s, held = selectors.DefaultSelector(), []
s.register(l, selectors.EVENT_READ)
while True:
    for key, _ in s.select():
        if key.fileobj is l:
            c = l.accept()[0]
            held.append(c)
            if answers:
                s.register(c, selectors.EVENT_READ)
            else:
                c.sendall(b'hello')
        else:
            if key.fileobj.recv(65536):
                key.fileobj.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello')
            else:
                s.unregister(key.fileobj)
"#;

/// Opens as many as it is told to, each with an exchange, and keeps them.
const CLIENT: &str = r#"
host, port, http = '127.0.0.1', int(sys.argv[1]), sys.argv[2] == 'http'
held = []
def open_all(count):
    for _ in range(count):
        c = socket.create_connection((host, port), 10)
        held.append(c)
        if http:
            c.sendall(b'GET / HTTP/1.1\r\nhost: web\r\n\r\n')
        got = b''
        while not got.endswith(b'hello'):
            part = c.recv(4096)
            assert part, got
            got += part
for line in sys.stdin:
    open_all(int(line))
    print('open', flush=True)
"#;

/// Growth of this process by so many idle connections, in bytes.
fn growth(protocol: Protocol, kind: &str, count: usize) -> usize {
    let mut endpoint = Peer::start(ENDPOINT, &[kind.to_owned()]);
    let port: u16 = endpoint.line().parse().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let plan = Plan::new(protocol)
        .endpoint(address, "v1")
        .breaker(|breaker| {
            breaker.max_connections = 1 << 20;
            breaker.max_requests = 1 << 20;
        });
    let mesh = Mesh::with(plan, 1, |limits| {
        limits.workload_connections_max = 1 << 20;
        limits.upstream_idle_max = 1 << 15;
    });
    let mut client = Peer::start(CLIENT, &[mesh.address.port().to_string(), kind.to_owned()]);
    // What is made once: stores, arenas, pages of code.
    client.say("100");
    assert_eq!(client.line(), "open");
    let before = resident();
    client.say(&(count - 100).to_string());
    assert_eq!(client.line(), "open");
    let grown = resident().saturating_sub(before);
    let open = mesh
        .workload
        .connections
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(open as usize, count);
    grown * AIM / (count - 100)
}

fn check(protocol: Protocol, kind: &str, limit_mib: usize) {
    let _alone = ALONE.lock();
    let count = connections();
    let grown = growth(protocol, kind, count);
    println!(
        "{kind}: {:.1} MiB for {AIM} idle connections, {} bytes each ({count} were open)",
        grown as f64 / (1 << 20) as f64,
        grown / AIM
    );
    assert!(grown <= limit_mib << 20, "{grown} bytes");
}

#[test]
fn ten_thousand_idle_tcp_connections_cost_at_most_40_mib() {
    check(Protocol::Tcp, "tcp", 40);
}

#[test]
fn ten_thousand_idle_http_connections_cost_at_most_160_mib() {
    check(Protocol::Http, "http", 160);
}
