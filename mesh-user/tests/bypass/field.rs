//! A pod that tries, a destination that records every frame, an agent in between.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_user::{
    kernel::mounts,
    testbed::{Pod, wait_until},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Mesh, agent::Service, client::python};

/// The port of attempt 0: a service of the model, decided by the proxy. Its address is the
/// destination's own: whatever gets past us arrives there.
const FIRST_PORT: u16 = 7_000;
/// Not in the model.
const OUTSIDE_PORT: u16 = 9_000;
/// Denied to datagrams by an outbound rule.
pub(crate) const DENIED_UDP: u16 = 9_900;
const SERVICES: u16 = 100;
const REASONS: [&str; 5] = [
    "refuse_guard_syn",
    "refuse_guard_source",
    "refuse_guard_fragment",
    "refuse_guard_header",
    "refuse_guard_rule",
];

type Frames = Arc<Mutex<Vec<Vec<u8>>>>;

pub(crate) struct Field {
    pub(crate) mesh: Mesh,
    pub(crate) pod: Pod,
    pub(crate) there: Pod,
    frames: Frames,
    mac: String,
}

impl Field {
    pub(crate) fn new(name: &str, guarded: bool) -> Self {
        let mut mesh = Mesh::new(name);
        let there = mesh.bed.pod("b").expect("a pod");
        let (frames, mac) = record(&mesh, &there);
        let (pod, id) = mesh.live_pod("a", false);
        let mut services = Vec::new();
        for ip in [IpAddr::V4(there.v4), IpAddr::V6(there.v6)] {
            let ports = FIRST_PORT..FIRST_PORT + SERVICES;
            services.extend(ports.map(|port| Service::proxy(SocketAddr::new(ip, port))));
        }
        mesh.agent().table(&services, &[]).expect("table");
        deny_udp(&mesh, &there);
        mesh.agent().guard(id, false, guarded).expect("set");
        let field = Self {
            mesh,
            pod,
            there,
            frames,
            mac,
        };
        // Neighbours known: nobody waits for them later.
        let (seen, said) = field.attempt(99, "udp(B4, 9001, MARK)\nudp6(B6, 9001, MARK)");
        assert_eq!(seen, "arrives", "{said}");
        field
    }

    /// Runs a script as root inside the pod: what became of it, and what it said.
    pub(crate) fn attempt(&self, number: usize, script: &str) -> (String, String) {
        let first = if script.starts_with("#outside") {
            OUTSIDE_PORT
        } else {
            FIRST_PORT
        };
        let port = first + number as u16;
        let accepts = self.mesh.agent().accepts().len();
        let before = REASONS.map(|reason| self.mesh.count(reason));
        self.frames.lock().expect("no panic").clear();
        let said = self.run(number, script);
        let fence = format!("FENCE{number:05}");
        let fenced = wait_until(Duration::from_secs(5), || {
            self.arrived(|frame| contains(frame, fence.as_bytes()))
        });
        assert!(fenced, "{script}: the fence did not arrive ({said})");
        let mark = [b'B', b'Y', 0, number as u8];
        if self.arrived(|frame| contains(frame, &mark) || opens(frame, port)) {
            return ("arrives".to_owned(), said);
        }
        // The agent's threads and the counters may lag behind on a busy machine.
        let mut seen = None;
        wait_until(Duration::from_secs(2), || {
            seen = self.outcome(port, accepts, before, &said);
            seen.is_some()
        });
        (seen.unwrap_or_else(|| "goes nowhere".to_owned()), said)
    }

    /// What became of an attempt that did not arrive; `None`: nothing that shows (yet).
    fn outcome(&self, port: u16, accepts: usize, before: [u64; 5], said: &str) -> Option<String> {
        let accepted = self.mesh.agent().accepts();
        if accepted[accepts..].iter().any(|a| a.local.port() == port) {
            return Some("captured".to_owned());
        }
        let mut reasons = REASONS.iter().zip(before);
        if let Some((reason, _)) =
            reasons.find(|(reason, before)| self.mesh.count(reason) > *before)
        {
            return Some(format!("dropped: {reason}"));
        }
        let refused = said.lines().find_map(|line| line.strip_prefix("refused "));
        refused.map(|errno| format!("refused: {errno}"))
    }

    /// Runs a script; what it said.
    pub(crate) fn run(&self, number: usize, script: &str) -> String {
        let root = mounts::cgroup2().expect("mountinfo").expect("cgroup2");
        let listener = *self.mesh.agent().ports().first().expect("a listener");
        let arguments = format!(
            "A4, A6, B4, B6 = {:?}, {:?}, {:?}, {:?}\nBMAC = bytes.fromhex({:?})\n\
             ROW, PORT, OUTSIDE, LISTENER = {number}, {}, {}, {listener}\n\
             ROOT, CGROUP = {:?}, {:?}\nCGROUP_FILE = '/tmp/' + CGROUP.replace('/', '-')\n",
            self.pod.v4.to_string(),
            self.pod.v6.to_string(),
            self.there.v4.to_string(),
            self.there.v6.to_string(),
            self.mac.replace(':', ""),
            FIRST_PORT as usize + number,
            OUTSIDE_PORT as usize + number,
            root.display().to_string(),
            self.pod.cgroup.display().to_string(),
        );
        let body: String = script.lines().map(|line| format!("    {line}\n")).collect();
        let text = format!("{arguments}{PRELUDE}\ntry:\n{body}{AFTERWARDS}");
        python(&self.mesh.bed, &self.pod, &text, &[])
    }

    /// Takes back what an attempt did to the pod, and has the agent repair the rest.
    pub(crate) fn restore(&self, undo: &str) {
        if !undo.is_empty() {
            let mut command = Command::new("sh");
            command.args(["-c", undo]).stdout(Stdio::null());
            let mut child = self.mesh.bed.spawn_in(&self.pod, command).expect("sh");
            assert!(child.wait().expect("it ends").success(), "{undo}");
        }
        self.mesh.agent().audit();
    }

    fn arrived(&self, f: impl Fn(&[u8]) -> bool) -> bool {
        let frames = self.frames.lock().expect("no panic");
        frames.iter().any(|frame| f(frame))
    }

    /// Forgets what arrived.
    pub(crate) fn forget(&self) {
        self.frames.lock().expect("no panic").clear();
    }

    /// SYNs to this port that arrived.
    pub(crate) fn syns(&self, port: u16) -> usize {
        let frames = self.frames.lock().expect("no panic");
        frames.iter().filter(|frame| opens(frame, port)).count()
    }
}

fn contains(frame: &[u8], what: &[u8]) -> bool {
    frame.windows(what.len()).any(|part| part == what)
}

/// Whether it is a SYN to this port, without options or extension headers in its network header.
fn opens(frame: &[u8], port: u16) -> bool {
    let at = match (frame.get(12..14), frame.get(23), frame.get(20)) {
        (Some([0x08, 0x00]), Some(6), _) => 34,
        (Some([0x86, 0xdd]), _, Some(6)) => 54,
        _ => return false,
    };
    frame.get(at + 2..at + 4) == Some(&port.to_be_bytes()[..])
        && frame.get(at + 13).is_some_and(|flags| flags & 0x12 == 2)
}

/// Records what the pod's interface receives; the frames and its hardware address.
fn record(mesh: &Mesh, pod: &Pod) -> (Frames, String) {
    let socket = mesh.bed.in_netns(pod, || {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        Socket::new(Domain::PACKET, Type::RAW, Some(all)).expect("a packet socket")
    });
    let socket = socket.expect("netns");
    let mac = python(&mesh.bed, pod, OWN_MAC, &[]).trim().to_owned();
    let frames = Frames::default();
    let (kept, own) = (Arc::clone(&frames), mac.clone());
    std::thread::spawn(move || {
        use std::io::Read as _;
        let mut frame = vec![0; 70_000];
        while let Ok(length) = (&socket).read(&mut frame) {
            let from: Vec<String> = frame[6..12].iter().map(|b| format!("{b:02x}")).collect();
            // What it sends itself.
            if length > 14 && from.join(":") != own {
                kept.lock()
                    .expect("no panic")
                    .push(frame[..length].to_vec());
            }
        }
    });
    (frames, mac)
}

/// An outbound rule for datagrams, as the agent writes those for connections.
fn deny_udp(mesh: &Mesh, there: &Pod) {
    let mut key = vec![160, 0, 0, 0, 17, 4];
    key.extend(DENIED_UDP.to_be_bytes());
    key.extend(there.v4.to_ipv6_mapped().octets());
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|b| format!("{b:#04x}"))
            .collect::<Vec<_>>()
    };
    let pin = mesh.pin("OUT_RULES").display().to_string();
    let mut command = Command::new("bpftool");
    command.args(["map", "update", "pinned", &pin, "key"]);
    command
        .args(hex(&key))
        .arg("value")
        .args(hex(&[1, 0, 0, 0]));
    assert!(command.status().expect("bpftool").success());
}

const OWN_MAC: &str = r"
import socket
s = socket.socket(17, 3, 0)
s.bind(('eth0', 0))
print(':'.join('%02x' % b for b in s.getsockname()[4]))
";

/// What every script has at hand.
const PRELUDE: &str = r"
import ctypes, errno, mmap, os, select, signal, socket, struct, subprocess, sys, time
MARK = b'BY' + struct.pack('>H', ROW)
AGENT, CAPTURE = 0x200000, 0x100000
SYN = 2
def sh(line): subprocess.run(['sh', '-c', line], check=True)
def csum(b):
    b += b'\0' * (len(b) % 2)
    s = sum(struct.unpack('>%dH' % (len(b) // 2), b))
    while s >> 16: s = (s & 0xffff) + (s >> 16)
    return ~s & 0xffff
def n4(a): return socket.inet_aton(a)
def n6(a): return socket.inet_pton(10, a)
def tcp(src, dst, sport=40000, dport=None, flags=SYN, data=b'', options=b''):
    dport = PORT if dport is None else dport
    off = (20 + len(options)) // 4 << 4
    head = struct.pack('>HH4sIBBHHH', sport, dport, MARK, 0, off, flags, 64240, 0, 0) + options
    body = head + data
    if len(src) == 4: pseudo = src + dst + struct.pack('>BBH', 0, 6, len(body))
    else: pseudo = src + dst + struct.pack('>IHBB', len(body), 0, 0, 6)
    return body[:16] + struct.pack('>H', csum(pseudo + body)) + body[18:]
def udphead(dport, data, sport=40000): return struct.pack('>HHHH', sport, dport, 8 + len(data), 0) + data
def ip4(proto, body, src=None, dst=None, frag=0):
    h = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(body), ROW, frag, 64, proto, 0, n4(src or A4), n4(dst or B4))
    return h[:10] + struct.pack('>H', csum(h)) + h[12:] + body
def ip6(nxt, body, src=None, dst=None):
    return struct.pack('>IHBB', 6 << 28, len(body), nxt, 64) + n6(src or A6) + n6(dst or B6) + body
def syn4(**k): return tcp(n4(A4), n4(B4), **k)
def syn6(**k): return tcp(n6(A6), n6(B6), **k)
def ext(nxt, words=1): return bytes([nxt, words - 1]) + b'\x01' + bytes([8 * words - 4]) + b'\0' * (8 * words - 4)
def frame(body, kind=None, tags=()):
    s = socket.socket(17, 3, 0)
    s.bind(('eth0', 0))
    kind = kind or (0x0800 if body[0] >> 4 == 4 else 0x86dd)
    tagged = b''.join(struct.pack('>HH', t, 5) for t in tags)
    s.send(BMAC + s.getsockname()[4] + tagged + struct.pack('>H', kind) + body)
def raw4(packet, dst=None):
    s = socket.socket(2, 3, 255)
    s.sendto(packet, (dst or B4, 0))
def tcps(v6=False): 
    s = socket.socket(10 if v6 else 2, 1)
    s.setblocking(False)
    return s
def go(s, to, wait=0.4):
    e = s.connect_ex(to)
    if e == errno.EINPROGRESS:
        r = select.select([], [s], [], wait)[1]
        e = s.getsockopt(1, socket.SO_ERROR) if r else errno.ETIMEDOUT
    if e: print('connect', errno.errorcode.get(e, e))
    return e
def mark(s, m): s.setsockopt(1, 36, m)
def udp(to, port, data): socket.socket(2, 2).sendto(data, (to, port))
def udp6(to, port, data): socket.socket(10, 2).sendto(data, (to, port))
def into(cgroup): open(cgroup + '/cgroup.procs', 'w').write('0')
";

const AFTERWARDS: &str = r"
except OSError as e:
    print('refused', errno.errorcode.get(e.errno, e.errno))
f = socket.socket(2, 2)
for i in range(50):
    try: f.sendto(b'FENCE%05d' % ROW, (B4, 9002))
    except OSError: time.sleep(0.02)
    else: break
";
