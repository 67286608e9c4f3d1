//! Caps and long connections on the real kernel, with the whole agent.

mod scene;

use std::time::Duration;

use mesh_user::testbed::{Pod, wait_until};
use scene::{Scene, Talker, VIP4, build, json, live, shell};

/// Ten more workloads beside the scene's two.
fn crowd(scene: &mut Scene) -> (Vec<Pod>, String) {
    let pods: Vec<Pod> = (0..10)
        .map(|at| scene.bed.pod(&format!("c{at}")).expect("a pod"))
        .collect();
    let mut workloads = scene.workloads_text("");
    for pod in &pods {
        workloads.push_str(&format!(
            "  - {{name: {0}, netns: {1}, tags: {{app: crowd}}}}\n",
            pod.name,
            pod.netns.display()
        ));
    }
    (pods, workloads)
}

/// Opens a hundred connections, asks on all of them at once, and tells the statuses.
const HUNDRED: &str = r#"
import selectors
ask = b'GET /delay/6000 HTTP/1.1\r\nhost: web\r\n\r\n'
kept = [dial(sys.argv[1], 80, limit=30) for _ in range(100)]
tell('open')
sys.stdin.readline()
for s in kept:
    s.sendall(ask)
tell('asked')
counts = {}
for s in kept:
    head = b''
    while b'\r\n\r\n' not in head:
        part = s.recv(65536)
        if not part:
            break
        head += part
    status = head.split(b' ')[1].decode() if head else 'none'
    name = 'overloaded' if b'x-mesh-overloaded: true' in head else 'plain'
    key = status + ' ' + name
    counts[key] = counts.get(key, 0) + 1
tell(counts)
"#;

/// Connections that a server has from anybody.
fn served(scene: &Scene, pod: &str) -> usize {
    let pods = scene.bed.pods();
    let pod = pods.iter().find(|p| p.name == pod).expect("the pod");
    let line = "cat /proc/net/tcp /proc/net/tcp6 | awk '$2 ~ /:1F90$/ && $4 == \"01\"' | wc -l";
    shell(scene, pod, line).trim().parse().expect("a number")
}

fn in_flight(scene: &Scene) -> u64 {
    let rows = json(scene, &["config", "endpoints", "-o", "json"]);
    let items = rows["items"].as_array().expect("a list");
    items
        .iter()
        .map(|row| row["in_flight"].as_u64().unwrap_or(0))
        .sum()
}

/// Part 2, item 4: cap 100, 1,000 concurrent requests from 10 pods: exactly 100 at the destination,
/// exactly 900 refused by name.
#[test]
fn cap_of_a_hundred_admits_exactly_a_hundred_of_a_thousand_from_ten_pods() {
    let mut scene = build("t-caps");
    let (pods, workloads) = crowd(&mut scene);
    let text = format!(
        "{}\n{}\nrules:\n  - {{service: web, port: http, route: [{{version: v1}}]}}\n\
         policies:\n  - service: web\n    timeout: {{request: 30s}}\n    \
         breaker: {{max-requests: 100, ejection: {{consecutive-5xx: 1}}}}\n{workloads}",
        scene.head_text(),
        scene.services_text(),
    );
    scene.start_with(&text).expect("the agent starts");
    live(&scene, 12);
    let address = VIP4.to_string();
    let mut talkers: Vec<Talker> = pods
        .iter()
        .map(|pod| Talker::start(&scene, pod, HUNDRED, &[&address]))
        .collect();
    for talker in &talkers {
        assert_eq!(talker.next(), "open");
    }
    talkers.iter_mut().for_each(|talker| talker.say("go"));
    for talker in &talkers {
        assert_eq!(talker.next(), "asked");
    }
    let mut seen = (0, 0);
    let full = wait_until(Duration::from_secs(4), || {
        seen = (
            in_flight(&scene),
            served(&scene, "web-v1-a") + served(&scene, "web-v1-b"),
        );
        seen == (100, 100)
    });
    assert!(full, "in flight, connections at the destination: {seen:?}");
    let mut sums = std::collections::BTreeMap::new();
    for talker in &talkers {
        let counts = talker.next();
        for (key, count) in counts.as_object().expect("counts") {
            *sums.entry(key.clone()).or_insert(0) += count.as_u64().unwrap_or(0);
        }
    }
    let wanted = [
        ("200 plain".to_owned(), 100),
        ("503 overloaded".to_owned(), 900),
    ];
    assert_eq!(sums, wanted.into());
    let rest = wait_until(Duration::from_secs(5), || in_flight(&scene) == 0);
    assert!(rest, "the gauge goes back to 0: {}", in_flight(&scene));
    let rows = json(&scene, &["config", "endpoints", "-o", "json"]);
    for row in rows["items"].as_array().expect("a list") {
        assert_eq!(row["ejections"], 0, "overflow never ejects: {row}");
    }
    drop(talkers);
    scene.tear_down().unwrap();
}

const FLOWS: &str = r#"
import selectors
count = int(sys.argv[2])
kept = [dial(sys.argv[1], 7, limit=30) for _ in range(count)]
for s in kept:
    s.sendall(b'ping')
for s in kept:
    assert s.recv(4) == b'ping'
tell('open')
start = None
ends = []
watch = selectors.DefaultSelector()
for s in kept:
    watch.register(s, selectors.EVENT_READ)
sys.stdin.readline()
start = time.time()
while len(ends) < count and time.time() - start < 20:
    for key, _ in watch.select(0.2):
        s = key.fileobj
        try:
            gone = not s.recv(16)
        except OSError:
            gone = True
        if gone:
            watch.unregister(s)
            s.close()
            ends.append(time.time() - start)
tell([len(ends), max(ends) if ends else -1])
"#;

/// Issue 4, item 9, through the agent: a reload that sends a version nothing drains its flows.
#[test]
fn reload_drains_the_flows_of_a_version_that_gets_nothing_any_more() {
    let mut scene = build("t-drain");
    let rules = |v1: u32, v2: u32| {
        format!(
            "rules:\n  - {{name: split, service: web, route: [{{version: v1, weight: {v1}}}, \
             {{version: v2, weight: {v2}}}]}}\npolicies:\n  - service: web\n    \
             on-change: {{action: drain, deadline: 3s}}\n"
        )
    };
    let text = scene.config_with(&rules(1, 0));
    scene.start_with(&text).expect("the agent starts");
    let mut talker = Talker::start(&scene, &scene.client, FLOWS, &[&VIP4.to_string(), "200"]);
    assert_eq!(talker.next(), "open");
    talker.say("go");
    scene
        .put_in_force(&scene.config_with(&rules(0, 1)))
        .expect("in force");
    let told = talker.next();
    assert_eq!(told[0], 200, "{told}");
    assert!(told[1].as_f64().is_some_and(|last| last < 6.0), "{told}");
    drop(talker);
    scene.tear_down().unwrap();
}
