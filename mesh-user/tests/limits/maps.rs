//! What happens when a map is full: nothing is misrouted, and what is lost is counted.

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use mesh_common::{
    flow::{FlowKey, Grant, LoopFlow, Tuple},
    maps::{OUT_DENY, get},
    plain::Plain,
    pod::{Guarded, InRuleKey, PodSources},
};
use mesh_user::testbed::Pod;

use crate::support::{
    LIMIT, Mesh, PORT, VIP4,
    agent::{Agent, CAPACITIES, Mode, Service},
    client::{connect, python},
    objects, serve_vips_on_node, vip4, vip6,
};

/// A mesh whose maps have these capacities (`NAME=ENTRIES,...`).
fn shrunk(name: &str, capacities: &str) -> Mesh {
    let mut mesh = Mesh::without_agent(name);
    let variable = format!("{CAPACITIES}={capacities}");
    let agent = Agent::spawn_by(&mesh.bed, &["env", &variable]);
    agent
        .start(&mesh.instance, &[mesh.bed.pods_cgroup()], 2, false)
        .expect("it starts");
    mesh.agent = Some(agent);
    mesh
}

const FLOOD: &str = "MESH_TEST_FLOOD";

/// Not a test: a client process's entry, which connects again and again. Does nothing in an ordinary
/// run. Prints how many were served by whom it expected.
#[test]
fn flood_process() {
    let Ok(text) = std::env::var(FLOOD) else {
        return;
    };
    let mut words = text.split(' ');
    let to: SocketAddr = words.next().unwrap().parse().unwrap();
    let count: u32 = words.next().unwrap().parse().unwrap();
    let limit = Duration::from_secs(words.next().unwrap().parse().unwrap());
    let (begun, mut served, mut wrong) = (Instant::now(), 0, Vec::new());
    while served < count && begun.elapsed() < limit && wrong.len() < 10 {
        let mut answer = String::new();
        let result = TcpStream::connect(to).and_then(|mut s| s.read_to_string(&mut answer));
        if result.is_ok() && answer == format!("proxy {to}") {
            served += 1;
        } else {
            wrong.push(format!("{result:?} {answer}"));
        }
    }
    println!("flood {served} {wrong:?}");
}

fn flood(mesh: &Mesh, pod: &Pod, count: u32, limit_s: u32) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "maps::flood_process", "--nocapture"])
        .env(FLOOD, format!("{} {count} {limit_s}", vip4()))
        .stdout(Stdio::piped());
    mesh.bed.spawn_in(pod, command).unwrap()
}

/// How many were served; everything else fails the test.
fn flooded(child: Child) -> u64 {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split("flood ").nth(1));
    let (served, wrong) = line
        .and_then(|rest| rest.split_once(' '))
        .unwrap_or_else(|| panic!("no report: {text}"));
    assert_eq!(wrong, "[]");
    served.parse().unwrap()
}

/// The issue wants a million short connections through 16,384 entries; this is three times the
/// ratio, two hundred thousand through 1,024 (fewer where the machine is slow: it says how many).
/// `MESH_TEST_CONNECTIONS=1000000 MESH_TEST_ENTRIES=16384` makes it the issue's own. Nothing is
/// misrouted, every flow is accounted for, and nothing is left.
#[test]
fn short_connections_by_the_hundred_thousand_leave_nothing_in_small_maps() {
    let number = |name, usual| std::env::var(name).map_or(usual, |n| n.parse().expect("a number"));
    let wanted = number("MESH_TEST_CONNECTIONS", 200_000);
    let entries = number("MESH_TEST_ENTRIES", 1_024);
    let small = format!("FLOWS={entries},INTENTS={entries},PROXY_FLOWS={entries}");
    let mut mesh = shrunk("flood", &small);
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let begun = Instant::now();
    let clients: Vec<Child> = (0..4)
        .map(|_| flood(&mesh, &pod, wanted / 4, 60 * wanted / 200_000))
        .collect();
    let served: u64 = clients.into_iter().map(flooded).sum();
    println!(
        "{served} connections through {entries} entries in {:?}",
        begun.elapsed()
    );
    assert!(served > 20 * u64::from(entries), "{served}");
    assert_eq!(mesh.count("captured"), served);
    assert_eq!(mesh.count("flow_opened"), served);
    mesh.eventually("every flow is closed, or counted as lost", || {
        mesh.count("flow_closed") + mesh.count("flow_lost") == served
    });
    for never in [
        "flow_map_full",
        "bypass_state_failed",
        "steer_miss_open",
        "event_lost",
    ] {
        assert_eq!(mesh.count(never), 0, "{never}");
    }
    assert!(mesh.count("steer_out") >= served);
    for map in ["FLOWS", "INTENTS"] {
        mesh.eventually("nothing is left", || {
            objects::entries(&mesh.instance, map) == 0
        });
    }
}

/// Without it: a node with more connections than rows loses connections, or the count of those whose
/// row is lost.
#[test]
fn flow_that_gives_way_is_counted_and_its_connection_served() {
    let mut mesh = shrunk("flows", "FLOWS=256");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    mesh.agent().hold(true);
    // Each answer is read before the next is dialled, and all stay open; then all end.
    let script = "import socket, sys\n\
                  held, seen = [], set()\n\
                  for _ in range(900):\n\
                  \x20   s = socket.create_connection((sys.argv[1], 80), 5)\n\
                  \x20   seen.add(s.recv(100).decode())\n\
                  \x20   held.append(s)\n\
                  for s in held:\n\
                  \x20   s.close()\n\
                  print(sorted(seen))\n";
    let seen = python(&mesh.bed, &pod, script, &[&VIP4.to_string()]);
    assert_eq!(seen.trim(), format!("['proxy {VIP4}:{PORT}']"));
    assert_eq!(mesh.count("flow_opened"), 900);
    assert!(mesh.entries("FLOWS") <= 256);
    mesh.eventually("every end is counted", || {
        mesh.count("flow_closed") + mesh.count("flow_lost") == 900
    });
    let lost = mesh.count("flow_lost");
    assert!(lost >= 900 - 256, "lost entries are counted: {lost}");
    assert_eq!(mesh.entries("FLOWS"), 0);
    assert_eq!(mesh.count("steer_miss_open"), 0);
}

/// Without it: the agent's dial meets its own listener when its entry found no room, or the loss is
/// not seen. (Its own permits keep the agent below the limit: here it has none.)
#[test]
fn dial_without_an_entry_is_counted_and_goes_through() {
    let mut mesh = shrunk("dials", "PROXY_FLOWS=8");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    // A server on the node that answers and holds the connection open for as long as it is asked.
    let node = Ipv4Addr::new(10, 77, 0, 1);
    let listener = mesh
        .bed
        .in_node(move || TcpListener::bind((node, 0)).expect("bind"))
        .unwrap();
    let to = listener.local_addr().unwrap();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        use std::io::Write as _;
        let mut held = Vec::new();
        for stream in listener.incoming().take(30) {
            let mut stream = stream.expect("accepted");
            stream.write_all(b"server").expect("written");
            held.push(stream);
        }
        let _all_are_there = tell.send(());
        // Dropped here: the dials end.
        held.clear();
    });
    mesh.agent().dial_back(Some(to));
    let script = "import socket, sys\n\
                  held = [socket.create_connection((sys.argv[1], 80), 5) for _ in range(30)]\n\
                  data = []\n\
                  for s in held:\n\
                  \x20   text = b''\n\
                  \x20   while part := s.recv(100): text += part\n\
                  \x20   data.append(text.decode())\n\
                  print(sorted(set(data)))\n";
    let seen = python(&mesh.bed, &pod, script, &[&VIP4.to_string()]);
    told.recv_timeout(LIMIT).expect("thirty dials arrived");
    server.join().unwrap();
    assert_eq!(seen.trim(), "['server']");
    let (opened, full) = (
        mesh.count("proxy_flow_opened"),
        mesh.count("proxy_flow_map_full"),
    );
    // Two self-probes at enrolment were dials, too.
    assert!(full >= 20, "{opened} opened, {full} found no room");
    assert_eq!(opened + full, 30 + 2, "{opened} + {full}");
    mesh.eventually("what was entered is taken away", || {
        mesh.entries("PROXY_FLOWS") == 0
    });
    assert_eq!(mesh.count("proxy_flow_closed"), opened);
}

/// Without it: events that nobody reads stop the hooks, or are lost in silence.
#[test]
fn event_without_room_is_lost_and_counted() {
    let mut mesh = shrunk("events", "EVENTS=4096");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.agent()
        .table(&[], &[(VIP4, 32, PORT, OUT_DENY)])
        .unwrap();
    let script = "import socket, sys\n\
                  seen = set()\n\
                  for _ in range(300):\n\
                  \x20   with socket.socket() as s: seen.add(s.connect_ex((sys.argv[1], 80)))\n\
                  print(seen)\n";
    let seen = python(&mesh.bed, &pod, script, &[&VIP4.to_string()]);
    assert_eq!(seen.trim(), format!("{{{}}}", libc::ECONNREFUSED));
    assert_eq!(mesh.count("refuse_rule"), 300, "each is refused");
    let lost = mesh.count("event_lost");
    let told = mesh.agent().events();
    assert!(lost > 200, "{lost}");
    assert_eq!(told.len() as u64 + lost, 300, "told or counted");
    assert!(told.iter().all(|event| event == "refuse_rule"));
    // There is room again.
    assert_eq!(connect(&mesh.bed, &pod, vip4()).errno, libc::ECONNREFUSED);
    assert_eq!(mesh.agent().events(), ["refuse_rule"]);
}

/// Without it: what failed connects leave keeps the next ones from being captured.
#[test]
fn intents_of_failed_connects_give_way_to_those_of_good_ones() {
    let mut mesh = shrunk("intents", "INTENTS=256");
    let (pod, _) = mesh.live_pod("a", true);
    mesh.proxied();
    mesh.agent().hold(true);
    // With one port to dial from, and that in use, a connect fails behind the hook.
    let script = "import errno, socket, sys\n\
                  path = '/proc/sys/net/ipv4/ip_local_port_range'\n\
                  before = open(path).read()\n\
                  open(path, 'w').write('41000 41000')\n\
                  one = socket.create_connection((sys.argv[1], 80), 5)\n\
                  failed = 0\n\
                  for _ in range(1000):\n\
                  \x20   with socket.socket() as s:\n\
                  \x20       failed += s.connect_ex((sys.argv[1], 80)) == errno.EADDRNOTAVAIL\n\
                  open(path, 'w').write(before)\n\
                  print(failed)\n";
    let failed = python(&mesh.bed, &pod, script, &[&VIP4.to_string()]);
    assert_eq!(failed.trim(), "1000");
    assert_eq!(mesh.count("captured"), 1_001);
    let left = objects::entries(&mesh.instance, "INTENTS");
    assert!((1..=256).contains(&left), "bounded: {left}");
    mesh.agent().hold(false);
    let opened = mesh.count("flow_opened");
    for _ in 0..20 {
        let seen = connect(&mesh.bed, &pod, vip4());
        assert_eq!(seen.data, format!("proxy {}", vip4()), "{seen:?}");
    }
    assert_eq!(mesh.count("flow_opened") - opened, 20, "each has its row");
    assert_eq!(mesh.count("refuse_state_failed"), 0);
}

/// Without it: a snapshot with too many endpoints is written in part.
#[test]
fn table_with_too_many_endpoints_changes_nothing() {
    let mut mesh = Mesh::new("ends");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let before = format!("{:?}", mesh.view().services());
    let capacity = get("BACKENDS").capacity;
    let ends: Vec<SocketAddr> = (0..=capacity)
        .map(|n| (Ipv4Addr::from_bits(0x0b00_0000 + n), 80).into())
        .collect();
    let table = [Service::kernel(vip4()).to(&ends)];
    let error = mesh.agent().table(&table, &[]).expect_err("refused");
    assert!(error.contains("map BACKENDS is full"), "{error}");
    assert_eq!(before, format!("{:?}", mesh.view().services()));
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
}

/// A key for each number.
fn key<const N: usize>(number: u32) -> [u8; N] {
    let bytes = number.to_be_bytes();
    core::array::from_fn(|at| *bytes.get(at).unwrap_or(&0))
}

fn open<const K: usize, const V: usize>(
    mesh: &Mesh,
    map: &str,
) -> HashMap<MapData, [u8; K], [u8; V]> {
    let data = MapData::from_pin(mesh.pin(map)).unwrap();
    let data = Map::from_map_data(data).unwrap();
    data.try_into().unwrap()
}

/// Fills a map; the last one too many is refused, one that goes makes room.
fn refuses_one_more<const K: usize, const V: usize>(mesh: &Mesh, map: &str) {
    let mut entries = open::<K, V>(mesh, map);
    let capacity = get(map).capacity;
    for number in 0..capacity {
        entries.insert(key::<K>(number), [0; V], 0).unwrap();
    }
    let error = entries
        .insert(key::<K>(capacity), [0; V], 0)
        .expect_err("refused");
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    let mut text = String::new();
    while let Some(error) = cause {
        text += &error.to_string();
        cause = error.source();
    }
    assert!(text.contains("os error 7"), "{map}: E2BIG, but {text}");
    entries.remove(&key::<K>(0)).unwrap();
    entries.insert(key::<K>(capacity), [0; V], 0).unwrap();
}

/// Maps whose writers are elsewhere: the limit is the table's, and one more is an error, never an
/// entry lost.
#[test]
fn maps_without_a_writer_here_refuse_one_more_at_their_limit() {
    let mut mesh = Mesh::new("others");
    refuses_one_more::<{ Tuple::SIZE }, { Grant::SIZE }>(&mesh, "GRANTS");
    refuses_one_more::<4, { Guarded::SIZE }>(&mesh, "GUARDED");
    refuses_one_more::<4, { PodSources::SIZE }>(&mesh, "POD_SOURCES");
    refuses_one_more::<{ InRuleKey::SIZE }, 4>(&mesh, "IN_RULES");
    refuses_one_more::<{ FlowKey::SIZE }, { LoopFlow::SIZE }>(&mesh, "LOOP_FLOWS");
    // None of them is in the way of a captured connection.
    let (pod, _) = mesh.live_pod("a", true);
    mesh.proxied();
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
}

/// Probes are many and short: the newest one always finds room.
#[test]
fn probes_at_the_limit_let_the_oldest_go() {
    let mesh = Mesh::new("probes");
    let mut entries = open::<{ Tuple::SIZE }, 8>(&mesh, "PROBE_FLOWS");
    let capacity = get("PROBE_FLOWS").capacity;
    for number in 0..capacity * 2 {
        entries.insert(key(number), [0; 8], 0).unwrap();
        assert!(entries.get(&key(number), 0).is_ok(), "the newest is there");
    }
    let left = entries.keys().flatten().count();
    assert!(left <= capacity as usize, "{left}");
    assert!(entries.get(&key(0), 0).is_err(), "the oldest is not");
}

/// Without it: a workload that must not bypass the mesh, and whose last step fails, goes past it.
#[test]
fn workload_that_must_not_bypass_and_can_not_go_live_is_refused() {
    let mut mesh = shrunk("golive", "POD_SOURCES=1");
    mesh.agent().mode(Mode::Loopback);
    mesh.live_pod("a", true);
    let routed = [vip4(), vip6()].map(|vip| Service::proxy(vip).routable());
    mesh.agent().table(&routed, &[]).unwrap();
    serve_vips_on_node(&mesh.bed);
    let pod = mesh.bed.pod("b").unwrap();
    let id = mesh.agent().enrol("b", &pod.netns, true).unwrap();
    let error = mesh.agent().live(id).unwrap_err();
    assert!(error.contains("POD_SOURCES"), "{error}");
    // As the agent does with one that it could not put live.
    mesh.agent().release(id);
    let seen = connect(&mesh.bed, &pod, vip4());
    assert_eq!(seen.errno, libc::ECONNREFUSED, "{seen:?}");
    assert_eq!(mesh.count("refuse_agent_gone"), 1);
}
