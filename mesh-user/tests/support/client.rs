//! Applications: python3 children in a pod's namespace and cgroup, unmodified by anything.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use mesh_user::testbed::{Pod, Testbed};
use serde::Deserialize;

const SCRIPT: &str = r"
import json, socket, sys, time
family, host, port, mark, bind = sys.argv[1:6]
s = socket.socket(socket.AF_INET6 if family == '6' else socket.AF_INET, socket.SOCK_STREAM)
s.settimeout(5)
if mark != '0':
    s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(mark))
if bind:
    s.bind((bind, 0))
out = {'errno': 0, 'data': '', 'peer': '', 'sock': ''}
start = time.monotonic()
try:
    s.connect((host, int(port)))
except OSError as e:
    out['errno'] = e.errno or -1
out['ms'] = (time.monotonic() - start) * 1000
out['mark'] = s.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
if out['errno'] == 0:
    out['peer'], out['peer_port'] = s.getpeername()[:2]
    out['sock'] = s.getsockname()[0]
    try:
        while chunk := s.recv(4096):
            out['data'] += chunk.decode()
    except OSError as e:
        out['errno'] = e.errno or -1
print(json.dumps(out))
";

/// What the application saw.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) errno: i32,
    pub(crate) data: String,
    pub(crate) peer: String,
    #[serde(default)]
    pub(crate) peer_port: u16,
    pub(crate) sock: String,
    pub(crate) ms: f64,
    pub(crate) mark: u32,
}

impl Outcome {
    /// The peer as the application has it, v4-mapped taken as IPv4.
    pub(crate) fn peer(&self) -> SocketAddr {
        SocketAddr::new(ip(&self.peer), self.peer_port)
    }

    /// The application's own address.
    pub(crate) fn own(&self) -> IpAddr {
        ip(&self.sock)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse::<IpAddr>()
        .unwrap_or_else(|_| panic!("address {text:?}"))
        .to_canonical()
}

/// How an application dials.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dial<'a> {
    /// An IPv6 socket for an IPv4 address.
    pub(crate) mapped: bool,
    /// `SO_MARK` before connect.
    pub(crate) mark: u32,
    /// Local address to bind.
    pub(crate) bind: &'a str,
}

pub(crate) fn connect(bed: &Testbed, pod: &Pod, to: SocketAddr) -> Outcome {
    dial(bed, pod, to, Dial::default())
}

pub(crate) fn dial(bed: &Testbed, pod: &Pod, to: SocketAddr, how: Dial<'_>) -> Outcome {
    let (family, host) = match to.ip() {
        IpAddr::V4(ip) if how.mapped => ("6", format!("::ffff:{ip}")),
        IpAddr::V4(ip) => ("4", ip.to_string()),
        IpAddr::V6(ip) => ("6", ip.to_string()),
    };
    let (port, mark) = (to.port().to_string(), how.mark.to_string());
    let text = python(bed, pod, SCRIPT, &[family, &host, &port, &mark, how.bind]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// Runs a script in a pod; what it printed.
pub(crate) fn python(bed: &Testbed, pod: &Pod, script: &str, args: &[&str]) -> String {
    let mut command = Command::new("python3");
    command
        .arg("-c")
        .arg(script)
        .args(args)
        .stdout(Stdio::piped());
    let output = bed
        .spawn_in(pod, command)
        .expect("python3")
        .wait_with_output()
        .expect("it ends");
    assert!(output.status.success(), "python3: {:?}", output.status);
    String::from_utf8(output.stdout).expect("text")
}
