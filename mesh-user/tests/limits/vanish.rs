//! Descriptors used up, namespaces and cgroups that vanish: named errors, nothing left.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use mesh_user::{kernel::view::REMOVED_CGROUP, testbed::wait_until};
use nix::mount::{MntFlags, umount2};

use crate::support::{Mesh, agent::Agent, client::connect, objects, vip4};

/// xorshift64: the seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = mesh_user::clock::now().0;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Without it: the enrolment that finds no descriptor leaves half a workload, or ends the agent.
#[test]
fn enrolment_without_descriptors_is_refused_by_name_and_leaves_nothing() {
    let mut mesh = Mesh::without_agent("fds");
    let agent = Agent::spawn(&mesh.bed);
    agent
        .start(&mesh.instance, &[mesh.bed.pods_cgroup()], 2, false)
        .expect("it starts");
    mesh.agent = Some(agent);
    let (first, _) = mesh.live_pod("first", false);
    mesh.proxied();
    let pod = mesh.bed.pod("next").unwrap();
    let before = objects::network(&pod.netns);
    let agent = mesh.agent();
    let pid = agent.pid().to_string();
    let limit = |number: usize| {
        let nofile = format!("--nofile={number}:4096");
        let status = Command::new("prlimit")
            .args(["--pid", &pid, &nofile])
            .status()
            .unwrap();
        assert!(status.success());
    };
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let fds: Vec<usize> = fds
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // The limit is one of numbers, not of how many: where so many are free below it.
    let with_room = |room: usize| {
        (0..4_096).find(|end| end - fds.iter().filter(|fd| *fd < end).count() == room)
    };
    // Each step of an enrolment is the first that finds none left.
    let mut refusals = Vec::new();
    for room in 0..20 {
        limit(with_room(room).expect("there are free numbers"));
        let result = agent.enrol("next", &pod.netns, false);
        limit(4_096);
        match result {
            Ok(id) => {
                agent.release(id);
                break;
            }
            Err(error) => refusals.push(error),
        }
        assert_eq!(objects::network(&pod.netns), before, "{refusals:?}");
        assert_eq!(objects::steers(&pod.netns), 0, "{refusals:?}");
        assert_eq!(mesh.entries("LISTENERS"), 4, "{refusals:?}");
        assert_eq!(mesh.entries("POD_BY_ADDR"), 2, "{refusals:?}");
    }
    assert!(refusals.len() >= 3, "{refusals:?}");
    for error in &refusals {
        assert!(error.contains("Too many open files"), "{error}");
    }
    let id = agent.enrol("next", &pod.netns, false).expect("recovered");
    agent.live(id).unwrap();
    for pod in [&first, &pod] {
        assert!(connect(&mesh.bed, pod, vip4()).data.starts_with("proxy "));
    }
}

/// Without it: a namespace that goes away in the middle of its enrolment leaves links, entries or a
/// namespace that somebody holds.
#[test]
fn namespace_that_goes_in_the_middle_of_its_enrolment_leaves_nothing() {
    let mesh = Mesh::new("mid");
    let mut random = Random::new();
    let name = format!("mb-l-mid-{}", std::process::id());
    let path = std::path::Path::new("/run/netns").join(&name);
    let ip = |words: &[&str]| Command::new("ip").args(words).status().unwrap().success();
    let (mut enrolled, mut refused) = (0, Vec::new());
    let begun = Instant::now();
    for round in 0..60 {
        if begun.elapsed() > Duration::from_secs(30) {
            break;
        }
        assert!(ip(&["netns", "add", &name]));
        assert!(ip(&["-n", &name, "link", "set", "lo", "up"]));
        assert!(ip(&[
            "-n",
            &name,
            "addr",
            "add",
            "10.91.0.1/32",
            "dev",
            "lo"
        ]));
        // The moment is the subject.
        let wait = Duration::from_micros(random.below(1_500));
        let result = std::thread::scope(|scope| {
            let gone = scope.spawn(|| {
                std::thread::sleep(wait);
                umount2(&path, MntFlags::MNT_DETACH).is_ok() && std::fs::remove_file(&path).is_ok()
            });
            let result = mesh.agent().enrol("mid", &path, round % 2 == 0);
            let result = result.and_then(|id| mesh.agent().live(id));
            assert!(gone.join().unwrap());
            result
        });
        match result {
            Ok(()) => enrolled += 1,
            Err(error) => refused.push(error),
        }
        let nothing_left = wait_until(Duration::from_secs(5), || {
            mesh.agent().poll();
            mesh.view().workloads().is_empty()
                && mesh.view().progs().iter().all(|row| row.program != "steer")
                && ["LISTENERS", "POD_BY_ADDR", "POD_BY_NETNS"]
                    .iter()
                    .all(|map| mesh.entries(map) == 0)
        });
        assert!(
            nothing_left,
            "round {round}, after {wait:?}: {:?} {:?} {refused:?}",
            mesh.view().workloads(),
            mesh.view().progs()
        );
    }
    println!(
        "{enrolled} enrolled before it went, {} refused: {refused:?}",
        refused.len()
    );
    assert!(enrolled + refused.len() > 10);
    for error in refused {
        assert!(!error.is_empty() && !error.contains("panicked"), "{error}");
    }
}

/// Without it: after the platform made its cgroup anew (a runtime that restarts), hooks stand at the
/// dead one and nobody says so.
#[test]
fn attach_point_that_was_removed_is_attached_anew_at_the_next_start() {
    let mut mesh = Mesh::new("cgone");
    let pods = mesh.bed.pods_cgroup();
    let count = |mesh: &Mesh| mesh.view().progs().len();
    let before = count(&mesh);
    std::fs::remove_dir(&pods).unwrap();
    // Under the agent: its links are dead, and are said to be.
    mesh.eventually("its links are said to be dead", || {
        let rows = mesh.view().progs();
        let dead = rows.iter().filter(|row| row.attached == REMOVED_CGROUP);
        dead.count() >= 5
    });
    // A start while it is missing names it.
    mesh.agent = None;
    let error = mesh.start_agent(2, false).expect_err("refused");
    assert!(error.contains("does not exist"), "{error}");
    std::fs::create_dir(&pods).unwrap();
    mesh.start_agent(2, false).unwrap();
    assert_eq!(count(&mesh), before, "{:?}", mesh.view().progs());
    for attach in ["inet4_connect", "inet6_connect", "sock_ops"] {
        assert_eq!(objects::at_cgroup(&pods, attach), 1, "{attach}");
    }
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
}
