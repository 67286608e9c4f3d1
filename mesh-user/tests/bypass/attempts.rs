//! The table of attempts. Scripts are Python, with `PRELUDE` of the field at hand: `A4`, `A6` the
//! pod's addresses, `B4`, `B6` the destination's, `PORT` a port that the proxy decides about.

/// One way to try.
pub(crate) struct Attempt {
    /// As in docs/BYPASS.md.
    pub(crate) name: &'static str,
    /// What becomes of it without the guard.
    pub(crate) off: &'static str,
    /// With it.
    pub(crate) on: &'static str,
    pub(crate) script: &'static str,
    /// Takes back what the agent's audit does not, in the pod.
    pub(crate) undo: &'static str,
}

const fn row(
    name: &'static str,
    off: &'static str,
    on: &'static str,
    script: &'static str,
) -> Attempt {
    Attempt {
        name,
        off,
        on,
        script,
        undo: "",
    }
}

const fn row_undo(
    name: &'static str,
    off: &'static str,
    on: &'static str,
    script: &'static str,
    undo: &'static str,
) -> Attempt {
    Attempt {
        undo,
        ..row(name, off, on, script)
    }
}

const ARRIVES: &str = "arrives";
const CAPTURED: &str = "captured";
const NOWHERE: &str = "goes nowhere";
const EPERM: &str = "refused: EPERM";
const SYN: &str = "dropped: refuse_guard_syn";
const SOURCE: &str = "dropped: refuse_guard_source";
const FRAGMENT: &str = "dropped: refuse_guard_fragment";
const HEADER: &str = "dropped: refuse_guard_header";
const RULE: &str = "dropped: refuse_guard_rule";

/// Every attempt.
pub(crate) const ATTEMPTS: &[Attempt] = &[
    row(
        "connect, IPv4",
        CAPTURED,
        CAPTURED,
        "go(tcps(), (B4, PORT))",
    ),
    row(
        "connect, IPv6",
        CAPTURED,
        CAPTURED,
        "go(tcps(True), (B6, PORT))",
    ),
    row(
        "connect, v4-mapped",
        CAPTURED,
        CAPTURED,
        "go(tcps(True), ('::ffff:' + B4, PORT))",
    ),
    row(
        "SO_MARK with the agent's mark",
        CAPTURED,
        EPERM,
        "s = tcps(); mark(s, AGENT); go(s, (B4, PORT))",
    ),
    row(
        "SO_MARK with the capture mark",
        CAPTURED,
        EPERM,
        "s = tcps(); mark(s, CAPTURE); go(s, (B4, PORT))",
    ),
    row(
        "SO_MARK on an IPv6 socket",
        CAPTURED,
        EPERM,
        "s = tcps(True); mark(s, AGENT | 1); go(s, (B6, PORT))",
    ),
    row(
        "SO_MARK with bits of others",
        CAPTURED,
        CAPTURED,
        "s = tcps(); mark(s, 0x539); go(s, (B4, PORT)); assert s.getsockopt(1, 36) & 0x539 == 0x539",
    ),
    row(
        "SO_MARK in an option of 5,000 bytes",
        CAPTURED,
        EPERM,
        "s = tcps(); s.setsockopt(1, 36, struct.pack('I', AGENT) + b'x' * 4996); go(s, (B4, PORT))",
    ),
    row(
        "SO_MARK by io_uring",
        CAPTURED,
        EPERM,
        r"libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 4, params)
if ring < 0: raise OSError(ctypes.get_errno(), 'io_uring_setup')
sqo, cqo = struct.unpack_from('<10I', params, 40), struct.unpack_from('<10I', params, 80)
m = mmap.mmap(ring, 4096, offset=0)
sqes = mmap.mmap(ring, 4096, offset=0x10000000)
s = tcps()
value = ctypes.c_uint32(AGENT)
sqe = struct.pack('<BBHiIIIIIIQHHIQQ', 46, 0, 0, s.fileno(), 3, 0, 1, 36, 0, 0, 7, 0, 0, 4, ctypes.addressof(value), 0)
sqes[:64] = sqe.ljust(64, b'\0')
struct.pack_into('<I', m, sqo[6], 0)
struct.pack_into('<I', m, sqo[1], 1)
assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1
result = struct.unpack_from('<Qi', m, cqo[5])[1]
print('io_uring', result)
if result == -1: raise OSError(1, 'io_uring')
assert result == 0 and s.getsockopt(1, 36) == AGENT
go(s, (B4, PORT))",
    ),
    row(
        "SO_MARK overwritten after connect",
        // Its next segment leaves by eth0, for a connection that nobody there knows.
        CAPTURED,
        CAPTURED,
        "s = tcps(); go(s, (B4, PORT))\ntry: mark(s, 0)\nexcept OSError as e: print(e)\ntry: s.send(b'x')\nexcept OSError: pass",
    ),
    row(
        "SO_BINDTODEVICE eth0",
        ARRIVES,
        SYN,
        "s = tcps(); s.setsockopt(1, 25, b'eth0\\0'); go(s, (B4, PORT))",
    ),
    row(
        "raw socket with IP_HDRINCL",
        ARRIVES,
        SYN,
        "raw4(ip4(6, syn4()))",
    ),
    row("packet socket", ARRIVES, SYN, "frame(ip4(6, syn4()))"),
    row("packet socket, IPv6", ARRIVES, SYN, "frame(ip6(6, syn6()))"),
    row(
        "packet socket, SYN with PSH and URG",
        ARRIVES,
        SYN,
        "frame(ip4(6, syn4(flags=2 | 8 | 32)))",
    ),
    row(
        "packet socket, SYN with data (fast open)",
        ARRIVES,
        SYN,
        "frame(ip4(6, syn4(data=b'GET / HTTP/1.1')))",
    ),
    row(
        "packet socket, forged source",
        ARRIVES,
        SOURCE,
        "frame(ip4(6, tcp(n4('10.77.9.9'), n4(B4)), src='10.77.9.9'))",
    ),
    row(
        "packet socket, forged source of a datagram",
        ARRIVES,
        SOURCE,
        "frame(ip4(17, udphead(9001, MARK), src='10.77.9.9'))",
    ),
    row(
        "packet socket, link-local source to the world",
        ARRIVES,
        SOURCE,
        "frame(ip6(6, tcp(n6('fe80::9'), n6(B6)), src='fe80::9'))",
    ),
    row(
        "packet socket, v4-mapped source",
        ARRIVES,
        HEADER,
        "frame(ip6(6, tcp(n6('::ffff:' + A4), n6(B6)), src='::ffff:' + A4))",
    ),
    row(
        "IP_TRANSPARENT, forged source bound",
        NOWHERE,
        NOWHERE,
        "s = tcps(); s.setsockopt(0, 19, 1); s.bind(('10.77.9.9', 0)); go(s, (B4, PORT))",
    ),
    row(
        "IP_TRANSPARENT in the root cgroup",
        ARRIVES,
        SOURCE,
        "into(ROOT); s = tcps(); s.setsockopt(0, 19, 1); s.bind(('10.77.9.9', 0)); go(s, (B4, PORT))",
    ),
    row(
        "rule deleted",
        ARRIVES,
        SYN,
        "sh('ip rule del pref 150'); go(tcps(), (B4, PORT))",
    ),
    row(
        "IPv6 rule deleted",
        ARRIVES,
        SYN,
        "sh('ip -6 rule del pref 150'); go(tcps(True), (B6, PORT))",
    ),
    row(
        "routes deleted",
        ARRIVES,
        SYN,
        "sh('ip route flush table 1512'); go(tcps(), (B4, PORT))",
    ),
    row_undo(
        "a rule before ours",
        ARRIVES,
        SYN,
        "sh('ip rule add pref 100 lookup main'); go(tcps(), (B4, PORT))",
        "ip rule del pref 100",
    ),
    row(
        "lo taken down",
        NOWHERE,
        NOWHERE,
        "sh('ip link set lo down'); go(tcps(), (B4, PORT))",
    ),
    row(
        "tcp_fwmark_accept off",
        CAPTURED,
        CAPTURED,
        "sh('echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept'); go(tcps(), (B4, PORT))",
    ),
    row_undo(
        "rp_filter, accept_local and route_localnet turned",
        CAPTURED,
        CAPTURED,
        "sh('cd /proc/sys/net/ipv4/conf/all; echo 2 > rp_filter; echo 1 > accept_local; echo 1 > route_localnet'); go(tcps(), (B4, PORT))",
        "cd /proc/sys/net/ipv4/conf/all; echo 0 > rp_filter; echo 0 > accept_local; echo 0 > route_localnet",
    ),
    row(
        "process in the root cgroup",
        ARRIVES,
        SYN,
        "into(ROOT); go(tcps(), (B4, PORT))",
    ),
    row(
        "process in a cgroup of its own",
        CAPTURED,
        CAPTURED,
        "os.mkdir(CGROUP + '/own'); into(CGROUP + '/own'); go(tcps(), (B4, PORT)); into(CGROUP); os.rmdir(CGROUP + '/own')",
    ),
    row_undo(
        "new namespace with a veth, routed through the pod",
        ARRIVES,
        SOURCE,
        r"p = subprocess.Popen(['unshare', '-n', 'sh', '-c', 'echo; exec sleep 20'], stdout=subprocess.PIPE)
p.stdout.readline()
inside = 'nsenter --net=/proc/%d/ns/net ' % p.pid
sh('ip link add vx type veth peer name vy netns %d; ip addr add 192.168.99.1/24 dev vx; ip link set vx up' % p.pid)
for line in ['ip addr add 192.168.99.2/24 dev vy', 'ip link set vy up', 'ip route add default via 192.168.99.1']: sh(inside + line)
sh('echo 1 > /proc/sys/net/ipv4/ip_forward')
code = 'import socket; s = socket.socket(); s.settimeout(0.4); print(s.connect_ex((%r, %d)))' % (B4, PORT)
subprocess.run(inside.split() + [sys.executable, '-c', code], check=True)
p.kill()",
        "echo 0 > /proc/sys/net/ipv4/ip_forward; ip link del vx 2>/dev/null; true",
    ),
    row_undo(
        "tun device, own source, forwarded",
        ARRIVES,
        SYN,
        r"import fcntl
t = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(t, 0x400454ca, struct.pack('16sH22x', b'tun9', 0x1001))
sh('ip link set tun9 up; cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 1 > conf/all/accept_local; echo 0 > conf/tun9/rp_filter; echo 0 > conf/all/rp_filter')
os.write(t, ip4(6, syn4()))",
        "cd /proc/sys/net/ipv4; echo 0 > ip_forward; echo 0 > conf/all/accept_local",
    ),
    row(
        "fast open",
        CAPTURED,
        CAPTURED,
        "s = tcps()\ntry: s.sendto(b'x', 0x20000000, (B4, PORT))\nexcept BlockingIOError: pass\nselect.select([], [s], [], 0.4)",
    ),
    row(
        "multipath TCP",
        CAPTURED,
        CAPTURED,
        "s = socket.socket(2, 1, 262); s.setblocking(False); go(s, (B4, PORT))",
    ),
    row(
        "multipath TCP join from a packet socket",
        ARRIVES,
        SYN,
        "frame(ip4(6, syn4(options=bytes([30, 12, 0x10, 1]) + b'\\x01' * 8)))",
    ),
    row(
        "AF_UNSPEC, then another connect",
        CAPTURED,
        CAPTURED,
        r"s = tcps(); go(s, (B4, OUTSIDE))
libc = ctypes.CDLL(None)
libc.connect(s.fileno(), ctypes.create_string_buffer(16), 16)
go(s, (B4, PORT))",
    ),
    row(
        "the tuple of a dead grant",
        ARRIVES,
        SYN,
        r"s = tcps(); s.setsockopt(1, 13, struct.pack('ii', 1, 0)); s.bind((A4, 0)); own = s.getsockname()[1]
go(s, (B4, OUTSIDE)); s.close()
frame(ip4(6, syn4(sport=own, dport=OUTSIDE)))",
    ),
    row(
        "the port of a live grant, another destination",
        ARRIVES,
        SYN,
        r"k = socket.socket(); k.bind((A4, 0)); own = k.getsockname()[1]; k.close()
l = tcps(); l.bind((A4, own)); l.connect_ex((B4[:-1] + '250', OUTSIDE))
frame(ip4(6, syn4(sport=own)))",
    ),
    row(
        "a service that the model does not name",
        ARRIVES,
        ARRIVES,
        "#outside\ngo(tcps(), (B4, OUTSIDE))",
    ),
    row("datagram", ARRIVES, ARRIVES, "udp(B4, 9001, MARK)"),
    row(
        "datagram to port 443 (QUIC)",
        ARRIVES,
        ARRIVES,
        "udp(B4, 443, MARK)",
    ),
    row(
        "datagram that a rule denies",
        ARRIVES,
        RULE,
        "frame(ip4(17, udphead(9900, MARK)))",
    ),
    row(
        "VXLAN to a port where nodes take it apart",
        ARRIVES,
        HEADER,
        "udp(B4, 4789, b'\\x08\\0\\0\\0\\0\\0\\x01\\0' + BMAC + BMAC + b'\\x08\\0' + ip4(6, syn4()))",
    ),
    row(
        "IPv4 fragments, tiny first one",
        ARRIVES,
        FRAGMENT,
        "p = syn4(); frame(ip4(6, p[:8], frag=0x2000)); frame(ip4(6, p[8:], frag=1))",
    ),
    row(
        "IPv4 options",
        ARRIVES,
        SYN,
        r"p = ip4(6, syn4()); h = bytearray(p[:20] + bytes([7, 7, 4, 0, 0, 0, 0, 0])); h[0] = 0x47; h[2:4] = struct.pack('>H', len(p) + 8); h[10:12] = b'\0\0'
h[10:12] = struct.pack('>H', csum(bytes(h))); frame(bytes(h) + p[20:])",
    ),
    row(
        "IPv6 hop-by-hop header",
        ARRIVES,
        SYN,
        "frame(ip6(0, ext(6) + syn6()))",
    ),
    row(
        "IPv6 destination options",
        ARRIVES,
        SYN,
        "frame(ip6(60, ext(60) + ext(6, 4) + syn6()))",
    ),
    row(
        "IPv6 chain of eight headers",
        ARRIVES,
        HEADER,
        "frame(ip6(60, ext(60) * 7 + ext(6) + syn6()))",
    ),
    row(
        "IPv6 routing header",
        ARRIVES,
        HEADER,
        "frame(ip6(43, bytes([6, 0, 4, 0, 0, 0, 0, 0]) + syn6()))",
    ),
    row(
        "IPv6 fragment header",
        ARRIVES,
        FRAGMENT,
        "frame(ip6(44, bytes([6, 0, 0, 0, 0, 0, 0, 1]) + syn6()))",
    ),
    row(
        "VLAN tag",
        ARRIVES,
        SYN,
        "frame(ip4(6, syn4()), tags=[0x8100])",
    ),
    row(
        "two VLAN tags",
        ARRIVES,
        SYN,
        "frame(ip4(6, syn4()), tags=[0x88a8, 0x8100])",
    ),
    row(
        "four VLAN tags",
        ARRIVES,
        HEADER,
        "frame(ip4(6, syn4()), tags=[0x8100] * 4)",
    ),
    row(
        "MPLS label",
        ARRIVES,
        HEADER,
        "frame(b'\\0\\0\\x11\\x40' + ip4(6, syn4()), kind=0x8847)",
    ),
    row(
        "PPPoE session",
        ARRIVES,
        HEADER,
        "p = ip4(6, syn4()); frame(struct.pack('>BBHHH', 0x11, 0, 1, len(p) + 2, 0x21) + p, kind=0x8864)",
    ),
    row("IP in IP", ARRIVES, HEADER, "raw4(ip4(4, ip4(6, syn4())))"),
    row(
        "IPv6 in IP",
        ARRIVES,
        HEADER,
        "raw4(ip4(41, ip6(6, syn6())))",
    ),
    row(
        "GRE",
        ARRIVES,
        HEADER,
        "raw4(ip4(47, b'\\0\\0\\x08\\0' + ip4(6, syn4())))",
    ),
    row(
        "SCTP",
        ARRIVES,
        HEADER,
        "raw4(ip4(132, struct.pack('>HHI', 40000, PORT, 0) + MARK))",
    ),
    row(
        "DCCP",
        ARRIVES,
        HEADER,
        "raw4(ip4(33, struct.pack('>HHI', 40000, PORT, 0) + MARK + b'\\0' * 8))",
    ),
    row(
        "ICMP with data (a tunnel to a helper)",
        ARRIVES,
        ARRIVES,
        "raw4(ip4(1, b'\\x08\\0' + struct.pack('>H', csum(b'\\x08\\0\\0\\0\\0\\1\\0\\1' + MARK)) + b'\\0\\1\\0\\1' + MARK))",
    ),
    row(
        "a segment without SYN",
        ARRIVES,
        ARRIVES,
        "frame(ip4(6, syn4(flags=16, data=b'data')))",
    ),
    row(
        "an address that the pod gave itself",
        NOWHERE,
        NOWHERE,
        "sh('ip addr add 10.77.99.9/16 dev eth0'); s = tcps(); s.bind(('10.77.99.9', 0)); go(s, (B4, PORT)); sh('ip addr del 10.77.99.9/16 dev eth0')",
    ),
    row(
        "an address that the pod gave itself, packet socket",
        ARRIVES,
        SOURCE,
        "sh('ip addr add 10.77.99.8/16 dev eth0'); frame(ip4(6, tcp(n4('10.77.99.8'), n4(B4)), src='10.77.99.8')); sh('ip addr del 10.77.99.8/16 dev eth0')",
    ),
];
