//! An agent that runs out of file descriptors: it survives, says so, refuses by name and recovers.

mod scene;

use std::process::Command;

use scene::{SPLIT, Talker, VIP4, eventually, live};

/// Lowers or restores the limit of a running process.
fn limit(pid: u32, number: usize) {
    let status = Command::new("prlimit")
        .args(["--pid", &pid.to_string()])
        .arg(format!("--nofile={number}:4096"))
        .status()
        .expect("prlimit");
    assert!(status.success());
}

/// The largest limit that leaves no number free.
fn used_up(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let fds: Vec<usize> = fds
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let full = |end: &usize| fds.iter().filter(|fd| *fd < end).count() == *end;
    (0..4_096).take_while(full).last().expect("at least zero")
}

const CLIENTS: &str = r#"
import http.client
def answer(s):
    r = http.client.HTTPResponse(s)
    r.begin()
    r.read()
    return [r.status, r.getheader('x-mesh-reject')]
ask = b'GET / HTTP/1.1\r\nhost: web\r\n\r\n'
kept = dial(sys.argv[1], 80, limit=30)
tell('kept')
sys.stdin.readline()
# On a connection that is open: needs a descriptor for the upstream.
kept.sendall(ask)
tell(answer(kept))
# A new one: the kernel completes its handshake, nobody can accept it.
fresh = dial(sys.argv[1], 80, limit=30)
fresh.sendall(ask)
tell('waiting')
tell(answer(fresh))
kept.sendall(ask)
tell(answer(kept))
"#;

/// Without it: a node that ran out of descriptors for a moment has to be restarted by hand.
#[test]
fn agent_without_descriptors_refuses_by_name_and_recovers() {
    let mut scene = scene::build("l-nofile");
    let path = scene
        .client
        .netns
        .to_string_lossy()
        .replace("-client", "-late");
    let text = format!(
        "{}  - {{name: late, netns: {path}}}\n",
        scene.config_with(SPLIT)
    );
    std::fs::write(scene.config_path(), text).unwrap();
    scene.spawn_agent().unwrap();
    live(&scene, 2);
    let pid = scene.status().unwrap().pid;
    let mut clients = Talker::start(&scene, &scene.client, CLIENTS, &[&VIP4.to_string()]);
    assert_eq!(clients.next(), "kept");
    eventually("it is accepted", || {
        let shown = scene::shell(&scene, &scene.client, "ss -Htn state established");
        shown.lines().count() >= 2
    });
    let file = scene.dir().join("agent.log");
    let log = || std::fs::read_to_string(&file).unwrap();
    // Its own tick opens and closes files meanwhile: as low as there is no gap.
    limit(pid, used_up(pid));
    let late = scene.bed.pod("late").unwrap();
    clients.say("now");
    assert_eq!(clients.next(), serde_json::json!([503, "dial_permits"]));
    assert_eq!(clients.next(), "waiting");
    eventually("the pauses are counted", || {
        log().contains("accept pauses, no descriptor is left")
    });
    eventually("the enrolment names it", || {
        let log = log();
        let mut lines = log
            .lines()
            .filter(|line| line.contains("workload not enrolled"));
        lines.any(|line| line.contains("late") && line.contains("Too many open files"))
    });
    limit(pid, 4_096);
    let good = serde_json::json!([200, null]);
    assert_eq!(clients.next(), good, "who waited is served");
    assert_eq!(clients.next(), good);
    live(&scene, 3);
    assert_eq!(scene.ask(&late, &[]).unwrap().status(200), 1);
    assert_eq!(scene.status().unwrap().pid, pid, "the same process");
    scene.tear_down().unwrap();
}
