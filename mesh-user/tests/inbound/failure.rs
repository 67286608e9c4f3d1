//! What happens without an agent, after it, and when its own records are lost.

use std::{net::IpAddr, path::PathBuf};

use aya::maps::{HashMap, Map, MapData};
use mesh_user::kernel::{cleanup::cleanup, inventory, mounts};

use crate::{
    scene::{self, Talker, eventually},
    stage::{ECHO, HTTP, How, OPAQUE, PLAIN, Stage},
};

const CAPTURE: &str = "inbound:\n  - {workload: app, ports: [8080, 9000]}\n  \
                       - {workload: app, ports: [9001], action: deny}\n";

#[test]
fn without_an_agent_open_goes_to_the_application_and_closed_is_dropped() {
    for (name, failure, served) in [("in-open", "open", true), ("in-closed", "closed", false)] {
        let mut stage = Stage::start(name, &format!("failure: {failure}"), CAPTURE);
        let (v4, v6): (IpAddr, IpAddr) = (stage.app.v4.into(), stage.app.v6.into());
        assert_eq!(stage.ask(&stage.outside, v4, HTTP, PLAIN).status, 200);
        stage.accepted();
        stage.scene.kill_agent().unwrap();
        for to in [v4, v6] {
            let seen = stage.ask(&stage.outside, to, HTTP, PLAIN);
            assert_eq!(seen.status == 200, served, "{failure}: {seen:?}");
            if served {
                assert_eq!(stage.accepted().peer_port, seen.own_port, "direct");
            }
            let denied = stage.ask(&stage.outside, to, crate::stage::DENIED, OPAQUE);
            assert!(denied.cut(), "with or without an agent: {denied:?}");
        }
        assert_eq!(stage.others(), Vec::new());
        let reason = if served {
            "steer_miss_open"
        } else {
            "steer_miss_closed"
        };
        assert!(stage.count(reason) >= 2);
        // The next agent adopts what stands, and serves.
        stage.scene.start_agent().unwrap();
        scene::live(&stage.scene, 3);
        let seen = stage.ask(&stage.outside, v4, HTTP, PLAIN);
        assert_eq!(seen.body, stage.outside.v4.to_string(), "{seen:?}");
        assert_ne!(stage.accepted().peer_port, seen.own_port, "captured again");
        stage.scene.kill_agent().unwrap();
        let report = cleanup(&stage.scene.instance, false, true);
        assert!(report.failed.is_empty(), "{report:?}");
        assert!(inventory::pins(&stage.scene.instance).is_empty());
        let seen = stage.ask(&stage.outside, v4, crate::stage::DENIED, OPAQUE);
        assert_eq!(seen.body, "hello", "no program is left: {seen:?}");
    }
}

/// A hung agent gets no connection that would wait in its backlog for ever.
#[test]
fn hung_agent_is_passed_by_within_its_heartbeat() {
    use nix::sys::signal::{Signal, kill};
    let stage = Stage::start("in-hang", "failure: open", CAPTURE);
    let pid = stage.scene.status().unwrap().pid;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let to: IpAddr = stage.app.v4.into();
    eventually("the application is reached without it", || {
        stage.ask(&stage.outside, to, HTTP, PLAIN).status == 200
    });
    kill(pid, Signal::SIGCONT).unwrap();
    eventually("it serves again", || {
        let before = stage.count("steer_in");
        let seen = stage.ask(&stage.outside, to, HTTP, PLAIN);
        seen.status == 200 && stage.count("steer_in") > before
    });
}

pub(crate) fn pin(stage: &Stage, map: &str) -> PathBuf {
    let bpffs = mounts::bpffs().expect("mountinfo").expect("a bpffs");
    let root = bpffs.join("mesh").join(stage.scene.instance.name());
    let mut versions = std::fs::read_dir(root).expect("pins").flatten();
    versions.next().expect("one version").path().join(map)
}

fn proxy_flows(stage: &Stage) -> HashMap<MapData, [u8; 36], [u8; 16]> {
    let data = MapData::from_pin(pin(stage, "PROXY_FLOWS")).expect("the pin");
    HashMap::try_from(Map::HashMap(data)).expect("a hash map")
}

/// Pitfall 3: the record of our own dial is gone, or there was no room for it. The dial comes back
/// to our listener once, whose answer leaves for the real client: no handshake, no loop, no
/// descriptors eaten. It is made again with the workload's own address.
#[test]
fn dial_whose_record_is_lost_comes_back_once_and_is_made_by_the_fallback() {
    let stage = Stage::start("in-loop", "", CAPTURE);
    let to: IpAddr = stage.app.v4.into();
    // A live connection does not need its record any more.
    let program = "
s = dial(sys.argv[1], 9000)
while True:
    s.sendall(b'x')
    tell(s.recv(10).decode())
    if not sys.stdin.readline():
        break
";
    let host = stage.app.v4.to_string();
    let mut client = Talker::start(&stage.scene, &stage.outside, program, &[&host]);
    assert_eq!(client.next(), "x");
    let mut flows = proxy_flows(&stage);
    let keys: Vec<[u8; 36]> = flows.keys().flatten().collect();
    assert_eq!(keys.len(), 1, "one dial is open");
    flows.remove(&keys[0]).unwrap();
    client.say("again");
    assert_eq!(client.next(), "x");
    let next = stage.ask(&stage.outside, to, ECHO, OPAQUE);
    assert_eq!(next.body, "hello", "the next dial has its own record");
    // No room for any record.
    let junk = |n: u32| {
        let mut key = [0xee; 36];
        key[..4].copy_from_slice(&n.to_ne_bytes());
        key
    };
    let mut full = 0;
    while flows.insert(junk(full), [0; 16], 0).is_ok() {
        full += 1;
    }
    assert!(full > 60_000, "{full}");
    stage.others();
    let before = stage.count("steer_in");
    let asked: u64 = 3;
    for _ in 0..asked {
        let how = How {
            path: "/last",
            ..PLAIN
        };
        let seen = stage.ask(&stage.outside, to, HTTP, how);
        // By the fallback: both ends are the workload's own then.
        assert_eq!((seen.status, &seen.body), (200, &host), "{seen:?}");
        assert!(seen.ms < 500.0, "{seen:?}");
    }
    let turns = stage.count("steer_in") - before;
    assert_eq!(turns, 2 * asked, "the client's, and ours once");
    assert_eq!(stage.others().len(), asked as usize, "one for each request");
    for n in 0..full {
        flows.remove(&junk(n)).unwrap();
    }
    assert_eq!(stage.ask(&stage.outside, to, HTTP, PLAIN).status, 200);
}

/// Pitfall 35: an agent that is started inside the captured cgroup does not capture itself.
#[test]
fn agent_that_is_started_in_a_pods_cgroup_serves_like_any_other() {
    let stage = Stage::build("in-cg");
    let text = stage.config(&crate::stage::Setup {
        app: "",
        more: CAPTURE,
        agent: "",
    });
    std::fs::write(stage.scene.config_path(), text).unwrap();
    let pods = stage.scene.bed.pods_cgroup();
    let mut command = std::process::Command::new("sh");
    let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
    command.args(["-c", script]).arg(pods.join("outside"));
    command
        .arg(env!("CARGO_BIN_EXE_mesh"))
        .arg("run")
        .arg("--config");
    command.arg(stage.scene.config_path());
    command.args(["--instance", stage.scene.instance.name()]);
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut agent = stage.scene.bed.spawn_node(command).unwrap();
    scene::live(&stage.scene, 3);
    let seen = stage.ask(&stage.outside, stage.app.v4, HTTP, PLAIN);
    let vip: IpAddr = crate::stage::VIP.parse().unwrap();
    let out = stage.ask(&stage.scene.client, vip, 80, PLAIN);
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(seen.body, stage.outside.v4.to_string(), "{seen:?}");
    assert_eq!(out.status, 200, "{out:?}");
}
