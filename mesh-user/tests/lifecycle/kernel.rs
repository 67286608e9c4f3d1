//! What the kernel refuses by itself, and what it must not hold.

use mesh_user::testbed::Pod;

use crate::scene::{self, SPLIT, Scene, kernel_count, shell, told};

#[test]
fn denied_destination_is_refused_without_a_packet() {
    let mut scene = scene::build("t-deny");
    let server = scene
        .bed
        .pods()
        .iter()
        .find(|pod| pod.name == "web-v1-a")
        .unwrap()
        .clone();
    let text = format!(
        "{}outbound:\n  - {{cidr: {}/32, ports: [8080], action: deny}}\n  \
         - {{cidr: \"{}/128\", action: deny}}\n",
        scene.config_with(SPLIT),
        server.v4,
        server.v6
    );
    scene.start_with(&text).unwrap();
    // The destination listens: had a SYN left, it would have been answered.
    let program = r#"
def segments():
    lines = [line.split() for line in open('/proc/self/net/snmp') if line.startswith('Tcp:')]
    return int(lines[1][lines[0].index('OutSegs')])
seen = []
for host, port, mapped in [(sys.argv[1], 8080, False), (sys.argv[1], 8080, True), (sys.argv[2], 9000, False)]:
    before, begun = segments(), time.monotonic()
    try:
        dial(host, port, mapped)
        what = 'connected'
    except OSError as e:
        what = type(e).__name__
    seen.append([what, segments() - before, time.monotonic() - begun < 0.2])
s = dial(sys.argv[1], 9000)
s.sendall(b'x')
seen.append(s.recv(1).decode())
tell(seen)
"#;
    let before = kernel_count(&scene, "refuse_rule");
    let seen = told(
        &scene,
        &scene.client,
        program,
        &[&server.v4.to_string(), &server.v6.to_string()],
    );
    let refused = serde_json::json!(["ConnectionRefusedError", 0, true]);
    assert_eq!(
        seen,
        serde_json::json!([refused, refused, refused, "x"]),
        "port 9000 is not denied"
    );
    assert_eq!(kernel_count(&scene, "refuse_rule") - before, 3);
    scene.tear_down().unwrap();
}

/// What netfilter holds in a namespace, asked of the kernel itself: no tool needed. The generation
/// of nf_tables counts every change of a ruleset.
const NETFILTER: &str = r#"
def generation():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    s.settimeout(5)
    s.sendto(struct.pack('=LHHLLBBH', 20, 10 << 8 | 16, 1, 1, 0, 0, 0, 0), (0, 0))
    answer = s.recv(4096)
    if struct.unpack('=H', answer[4:6])[0] == 2:
        return ['error', struct.unpack('=i', answer[16:20])[0]]
    return ['generation', answer[20:28].hex()]
def read(path):
    try:
        return open('/proc/self/net/' + path).read()
    except OSError as e:
        return e.errno
try:
    nft = generation()
except OSError as e:
    nft = e.errno
tell([nft, read('ip_tables_names'), read('ip6_tables_names'), read('nf_conntrack')])
"#;

#[test]
fn netfilter_is_unchanged_before_during_and_after() {
    let mut scene = scene::build("t-netfilter");
    let tools = "for tool in iptables-save ip6tables-save 'nft list ruleset'; do \
                 command -v ${tool%% *} > /dev/null && $tool | grep -v '^#'; done";
    let look = |scene: &Scene| {
        let of = |pod: &Pod| (told(scene, pod, NETFILTER, &[]), shell(scene, pod, tools));
        let node = Pod {
            netns: scene.bed.node_netns(),
            ..scene.client.clone()
        };
        (of(&scene.client), of(&scene.tester), of(&node))
    };
    let before = look(&scene);
    scene.start_with(&scene.config_with(SPLIT)).unwrap();
    assert_eq!(
        scene
            .ask(&scene.client, &["--count", "20"])
            .unwrap()
            .status(200),
        20
    );
    assert_eq!(look(&scene), before, "during");
    scene.stop_agent().unwrap();
    assert!(scene.mesh(&["cleanup"]).unwrap().status.success());
    assert_eq!(look(&scene), before, "after");
    scene.tear_down().unwrap();
}
