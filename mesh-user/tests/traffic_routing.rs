//! The version choice, end to end (ACCEPTANCE S4-S7, S9, S11-S16): unmodified programs in pods,
//! the virtual address, the real kernel.

mod scene;

use std::net::{IpAddr, Ipv6Addr};

use mesh_user::testbed::wait_until;
use scene::{PORT, SPLIT, VIP4, VIP6, json, shell, start};

#[test]
fn split_over_every_address_family_is_exact_on_one_connection() {
    let scene = start("t-split", SPLIT);
    let mapped = IpAddr::V6(VIP4.to_ipv6_mapped());
    for address in [IpAddr::V4(VIP4), IpAddr::V6(VIP6), mapped] {
        let answers = scene
            .ask_at(&scene.client, address, &["--count", "500"])
            .unwrap();
        assert_eq!(answers.status(200), 500, "{address}: {answers:?}");
        // One connection stays on one worker: there the split is exact at whole cycles.
        assert_eq!(answers.version("v2"), 50, "{address}: {answers:?}");
        assert_eq!(answers.connections, 1, "{address}: keep-alive");
        // What the client sees of its peer is what it dialled, in its own family.
        assert_eq!(answers.peer, Some((address, PORT).into()));
        let own = match address {
            IpAddr::V4(_) => IpAddr::V4(scene.client.v4),
            _ if address == mapped => IpAddr::V6(scene.client.v4.to_ipv6_mapped()),
            IpAddr::V6(_) => IpAddr::V6(scene.client.v6),
        };
        assert_eq!(answers.local.map(|local| local.ip()), Some(own));
    }
    // Over all workers: at most workers x backends off (SEMANTICS §5.9).
    let answers = scene
        .ask(&scene.client, &["--count", "1000", "--close"])
        .unwrap();
    let off = answers.version("v2").abs_diff(100);
    let workers = u32::try_from(scene.status().unwrap().workers).unwrap();
    assert!(off <= workers * 2, "{off} off: {answers:?}");
    scene.tear_down().unwrap();
}

const MATCHES: &str = r#"
rules:
  - {name: exact, service: web, precedence: 90, match: {headers: {x-user: beta}}, route: [{version: v2}]}
  - {name: prefix, service: web, precedence: 80, match: {headers: {x-build: {prefix: "canary-"}}}, route: [{version: v2}]}
  - {name: regex, service: web, precedence: 70, match: {headers: {cookie: {regex: "(.*; )?stage=b(;.*)?"}}}, route: [{version: v2}]}
  - {name: present, service: web, precedence: 60, match: {headers: {x-debug: {present: true}}}, route: [{version: v2}]}
  - {name: and, service: web, precedence: 50, match: {headers: {x-a: "1", x-b: "2"}}, route: [{version: v2}]}
  - {name: path-exact, service: web, precedence: 40, match: {path: {exact: /only}}, route: [{version: v2}]}
  - {name: path-prefix, service: web, precedence: 39, match: {path: {prefix: /abc}}, route: [{version: v2}]}
  - {name: path-regex, service: web, precedence: 38, match: {path: {regex: "/item/[0-9]+"}}, route: [{version: v2}]}
  - {name: method, service: web, precedence: 30, match: {method: DELETE}, route: [{version: v2}]}
  - {name: query, service: web, precedence: 20, match: {query: {a: "1"}}, route: [{version: v2}]}
  - {name: authority, service: web, precedence: 15, match: {authority: beta.web}, route: [{version: v2}]}
  - {name: tags, service: web, precedence: 12, match: {path: {exact: /tags}}, route: [{tags: {pod: web-v1-b}}]}
  - {name: source, service: web, precedence: 10, match: {source: {tags: {app: tester}}}, route: [{version: v2}]}
  - {name: rest, service: web, route: [{version: v1}]}
"#;

#[test]
fn every_match_kind_decides_the_version() {
    let scene = start("t-match", MATCHES);
    let cases: &[(&[&str], &str)] = &[
        (&[], "v1"),
        (&["-H", "x-user: beta"], "v2"),
        (&["-H", "X-USER: beta"], "v2"),
        (&["-H", "x-user: Beta"], "v1"),
        (&["-H", "x-user: beta2"], "v1"),
        (&["-H", "x-build: canary-7"], "v2"),
        (&["-H", "x-build: my-canary-7"], "v1"),
        (&["-H", "cookie: a=1; stage=b; c=2"], "v2"),
        (&["-H", "cookie: stage=bb"], "v1"),
        (&["-H", "x-debug:"], "v2"),
        (&["-H", "x-a: 1"], "v1"),
        (&["-H", "x-a: 1", "-H", "x-b: 2"], "v2"),
        (&["--path", "/only"], "v2"),
        (&["--path", "/only/"], "v1"),
        (&["--path", "/only?q=1"], "v2"),
        (&["--path", "/abc"], "v2"),
        (&["--path", "/abc/"], "v2"),
        (&["--path", "/abc/d"], "v2"),
        (&["--path", "/abcd"], "v1"),
        (&["--path", "/item/17"], "v2"),
        (&["--path", "/item/17/x"], "v1"),
        (&["--method", "DELETE"], "v2"),
        (&["--path", "/?a=1&a=2"], "v2"),
        (&["--path", "/?a=2&a=1"], "v1"),
        (&["--host", "BETA.web:80"], "v2"),
        (&["--host", "beta.web.example"], "v1"),
    ];
    for (arguments, version) in cases {
        let answers = scene.ask(&scene.client, arguments).unwrap();
        assert_eq!(answers.version(version), 1, "{arguments:?}: {answers:?}");
    }
    // The source is the pod, by the kernel's word; a header can't say otherwise.
    assert_eq!(scene.ask(&scene.tester, &[]).unwrap().version("v2"), 1);
    let tags = scene
        .ask(&scene.client, &["--path", "/tags", "--count", "20"])
        .unwrap();
    assert_eq!(tags.servers.keys().collect::<Vec<_>>(), ["web-v1-b"]);
    // An unmodified program that is not ours.
    let curl = format!("curl -s -o /dev/null -D - -H 'x-user: beta' http://{VIP4}/");
    assert!(shell(&scene, &scene.client, &curl).contains("x-echo-version: v2"));
    scene.tear_down().unwrap();
}

#[test]
fn no_rule_is_404_and_an_empty_version_is_503_for_its_share() {
    let rules = "
rules:
  - {name: a, service: web, match: {path: {prefix: /a}}, route: [{version: v1}]}
  - {name: b, service: web, match: {path: {prefix: /b}}, route: [{tags: {version: v9}, weight: 1}, {version: v1, weight: 1}]}
";
    let scene = start("t-empty", rules);
    let none = scene.ask(&scene.client, &["--path", "/c"]).unwrap();
    assert_eq!(
        (none.status(404), none.rejects.get("no_route")),
        (1, Some(&1)),
        "{none:?}"
    );
    let half = scene
        .ask(&scene.client, &["--path", "/b", "--count", "100"])
        .unwrap();
    assert_eq!((half.status(503), half.status(200)), (50, 50), "{half:?}");
    assert_eq!(half.rejects.get("no_endpoint"), Some(&50));
    scene.tear_down().unwrap();
}

#[test]
fn rule_change_applies_to_the_next_request_on_an_open_connection() {
    let scene = start(
        "t-change",
        "rules:\n  - {service: web, route: [{version: v1}]}\n",
    );
    let mut load = scene
        .flood(&scene.client, 100, &["--pause-ms", "1"])
        .unwrap();
    let lines = std::io::BufReader::new(load.stdout.take().unwrap());
    let (sender, reports) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in std::io::BufRead::lines(lines).map_while(Result::ok) {
            let report: mesh_user::demo::ask::Answers = serde_json::from_str(&line).unwrap();
            if sender.send(report).is_err() {
                return;
            }
        }
    });
    let first = reports.recv().unwrap();
    assert_eq!(first.versions.keys().collect::<Vec<_>>(), ["v1"]);
    assert_eq!(first.connections, 1);
    let v2 = "rules:\n  - {service: web, route: [{version: v2}]}\n";
    scene.put_in_force(&scene.config_with(v2)).unwrap();
    let mut seen = Vec::new();
    let followed = wait_until(std::time::Duration::from_secs(5), || {
        seen.extend(reports.try_iter());
        seen.last()
            .is_some_and(|last: &mesh_user::demo::ask::Answers| last.versions.keys().eq(["v2"]))
    });
    load.kill().unwrap();
    load.wait().unwrap();
    drop(reports);
    reader.join().unwrap();
    assert!(followed, "{seen:?}");
    for report in &seen {
        assert_eq!(
            (report.failed(), report.connections),
            (0, 0),
            "the connection stayed open"
        );
        assert!(
            report.statuses.keys().eq(&[200]),
            "no request failed by the change"
        );
    }
    scene.tear_down().unwrap();
}

#[test]
fn invalid_update_leaves_the_rules_in_force_and_is_seen_in_status() {
    let scene = start("t-invalid", SPLIT);
    let generation = scene.status().unwrap().generation;
    let broken = scene.config_with("rules:\n  - {service: wbe, route: [{version: v2}]}\n");
    std::fs::write(scene.config_path(), broken).unwrap();
    let mut message = String::new();
    let told = wait_until(std::time::Duration::from_secs(5), || {
        let error = scene.status().unwrap().config.last_error;
        message = error.map(|error| error.message).unwrap_or_default();
        !message.is_empty()
    });
    assert!(told, "the error is not in status");
    // Place, value and what would be right.
    assert!(
        message.contains("mesh.yaml:") && message.contains("wbe"),
        "{message}"
    );
    assert!(message.contains("web"), "{message}");
    assert_eq!(scene.status().unwrap().generation, generation);
    let answers = scene.ask(&scene.client, &["--count", "100"]).unwrap();
    assert_eq!(answers.version("v2"), 10);
    std::fs::remove_file(scene.config_path()).unwrap();
    let answers = scene.ask(&scene.client, &["--count", "100"]).unwrap();
    assert_eq!(answers.version("v2"), 10, "a deleted file changes nothing");
    let told = wait_until(std::time::Duration::from_secs(5), || {
        let error = scene.status().unwrap().config.last_error;
        error.is_some_and(|error| error.message.contains("does not exist"))
    });
    assert!(told, "the deleted file is not in status");
    scene.put_in_force(&scene.config_with(SPLIT)).unwrap();
    assert!(scene.status().unwrap().config.last_error.is_none());
    scene.tear_down().unwrap();
}

#[test]
fn untouched_are_pods_outside_loopback_and_pod_addresses() {
    let mut scene = start("t-outside", SPLIT);
    // A pod in the same cgroup tree, but not in the file.
    let outside = scene.bed.pod("outside").unwrap();
    let lost = scene.ask(&outside, &["--timeout-ms", "500"]).unwrap();
    assert_eq!(
        lost.failed(),
        1,
        "a pod that is not enrolled has no virtual address"
    );
    let direct = format!("curl -s -D - -o /dev/null http://{}:8080/", scene.client.v4);
    assert!(
        !shell(&scene, &outside, &direct).contains("200 OK"),
        "nobody listens there"
    );
    // By the address of a pod no routing applies: always the same server, 9 of 9 (S7 AC1).
    let address = IpAddr::V4(server_address(&scene, "web-v1-a"));
    let before = captured(&scene);
    let curl = format!(
        "for i in 1 2 3 4 5 6 7 8 9; do curl -s -D - -o /dev/null http://{address}:8080/; done"
    );
    let text = shell(&scene, &scene.client, &curl);
    assert_eq!(text.matches("x-echo-name: web-v1-a").count(), 9, "{text}");
    // Loopback, IPv4 and IPv6: refused by the pod's own kernel, not captured.
    for loopback in ["127.0.0.1", "[::1]"] {
        let text = shell(
            &scene,
            &scene.client,
            &format!("curl -s -o /dev/null -w '%{{exitcode}}' http://{loopback}:80/"),
        );
        assert_eq!(text, "7", "curl to {loopback}: connection refused");
    }
    assert_eq!(captured(&scene), before);
    scene.tear_down().unwrap();
}

fn captured(scene: &scene::Scene) -> u64 {
    let stats = json(scene, &["bpf", "stats", "list", "-o", "json"]);
    let items = stats["items"].as_array().expect("a list");
    let row = items
        .iter()
        .find(|row| row["reason"] == "captured")
        .expect("the counter");
    row["count"].as_u64().expect("a number")
}

fn server_address(scene: &scene::Scene, name: &str) -> std::net::Ipv4Addr {
    let pods = scene.bed.pods();
    pods.iter()
        .find(|pod| pod.name == name)
        .expect("the pod")
        .v4
}

/// S8 AC1: what the kernel captured is what the proxy accepted, connection by connection.
#[test]
fn kernel_counter_equals_the_proxys_over_many_connects() {
    let scene = start("t-count", SPLIT);
    let before = captured(&scene);
    let answers = scene
        .ask(&scene.client, &["--count", "5000", "--close"])
        .unwrap();
    assert_eq!(answers.status(200), 5000, "{answers:?}");
    assert_eq!(captured(&scene) - before, 5000);
    let log = wait_until(std::time::Duration::from_secs(5), || {
        let log = std::fs::read_to_string(scene.access_log()).unwrap_or_default();
        // One line for each request and one for each connection.
        log.lines().count() >= 10_000
    });
    let lines = std::fs::read_to_string(scene.access_log())
        .unwrap()
        .lines()
        .count();
    assert!(
        log && lines == 10_000,
        "{lines} log lines for 5000 requests and connections"
    );
    let conns = json(&scene, &["bpf", "conns", "list", "-o", "json"]);
    let left = conns["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["leg"] == "out")
        .count();
    assert_eq!(left, 0, "flows are deleted at close: {conns}");
    scene.tear_down().unwrap();
}

#[test]
fn explain_prints_the_decision_of_the_data_path() {
    let scene = start("t-explain", MATCHES);
    let to = format!("{VIP4}:{PORT}");
    for (from, header, rule) in [
        ("default/client", "x-user: beta", "exact"),
        ("default/client", "x-user: nobody", "rest"),
        ("default/tester", "x-user: nobody", "source"),
    ] {
        let explained = json(
            &scene,
            &[
                "explain", "--from", from, "--to", &to, "-H", header, "-o", "json",
            ],
        );
        assert!(
            explained.to_string().contains(&format!("\"{rule}\"")),
            "{explained}"
        );
        let pod = if from.ends_with("client") {
            &scene.client
        } else {
            &scene.tester
        };
        let answers = scene.ask(pod, &["-H", header]).unwrap();
        let version = if rule == "rest" { "v1" } else { "v2" };
        assert_eq!(answers.version(version), 1);
    }
    let address = Ipv6Addr::LOCALHOST;
    let none = scene.mesh(&[
        "explain",
        "--from",
        "default/client",
        "--to",
        &format!("[{address}]:1"),
    ]);
    assert!(none.unwrap().status.success(), "not of the mesh: passes");
    scene.tear_down().unwrap();
}

/// `docs/CONFIG.md` says that limits apply to the next connection.
#[test]
fn limits_change_without_a_restart() {
    let scene = start("t-limits", SPLIT);
    let long = format!("x-long: {}", "a".repeat(9000));
    let taken = scene.ask(&scene.client, &["-H", &long]).unwrap();
    assert_eq!(taken.status(200), 1, "{taken:?}");
    let small = scene.config_with(SPLIT).replace(
        "agent:\n",
        "agent:\n  limits: {head-bytes-max: 8KiB, target-bytes-max: 8000B}\n",
    );
    scene.put_in_force(&small).unwrap();
    let refused = scene.ask(&scene.client, &["-H", &long]).unwrap();
    assert_eq!(
        refused.rejects.get("head_too_large"),
        Some(&1),
        "{refused:?}"
    );
    assert_eq!(scene.status().unwrap().restart_needed, Vec::<String>::new());
    scene.tear_down().unwrap();
}

/// `mesh status` says which changed settings wait for a restart, also when the watcher saw them.
#[test]
fn settings_that_wait_for_a_restart_are_said() {
    let scene = start("t-waits", SPLIT);
    let changed = scene
        .config_with(SPLIT.replace("90", "50").replace("10", "50").as_str())
        .replace(
            "agent:\n",
            "agent:\n  unknown-netns: refuse\n  workers: 1\n",
        );
    scene.put_in_force(&changed).unwrap();
    let told = scene.status().unwrap().restart_needed;
    assert_eq!(told, ["agent.workers", "agent.unknown-netns"]);
    let answers = scene.ask(&scene.client, &["--count", "100"]).unwrap();
    assert_eq!(
        answers.version("v2"),
        50,
        "the rest of the file is in force"
    );
    scene.tear_down().unwrap();
}
