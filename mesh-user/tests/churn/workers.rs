//! A single worker stands still.

use std::time::Duration;

use mesh_user::{kernel::view::View, testbed::wait_until};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::scene::{self, SPLIT, Scene, eventually, kernel_count};

/// The threads that serve, by name.
fn worker_threads(pid: u32) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .flatten()
    {
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if let Some(index) = name.trim().strip_prefix("mesh-worker-") {
            let tid = entry.file_name().to_str().unwrap().parse().unwrap();
            found.push((index.to_owned(), Pid::from_raw(tid)));
        }
    }
    found.sort();
    found.into_iter().map(|(_, tid)| tid).collect()
}

/// One thread that the kernel holds, as a page fault on a dead disk would; the others run on.
struct Held(Pid);

impl Held {
    fn hold(tid: Pid) -> Self {
        ptrace::seize(tid, ptrace::Options::empty()).expect("PTRACE_SEIZE");
        ptrace::interrupt(tid).expect("PTRACE_INTERRUPT");
        waitpid(tid, Some(WaitPidFlag::__WALL)).expect("it stops");
        Self(tid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

fn heartbeat_is_fresh(scene: &Scene) -> bool {
    let view = View::open(&scene.instance).unwrap();
    let age = view.heartbeat_age(mesh_user::clock::now());
    age.is_some_and(|age| age < Duration::from_secs(1))
}

/// How many connections hang among many fresh ones.
fn hanging(scene: &Scene) -> u32 {
    let arguments = ["--count", "40", "--close", "--timeout-ms", "700"];
    scene.ask(&scene.client, &arguments).unwrap().failed()
}

/// Without it: one worker that stands still takes the whole node out of the mesh, or every second
/// connection hangs until somebody restarts the agent.
#[test]
fn shards_of_a_worker_that_stands_still_lead_to_the_others_and_back() {
    let mut scene = scene::build("l-stuck");
    let text = scene
        .config_with(SPLIT)
        .replace("agent:\n", "agent:\n  workers: 3\n");
    scene.start_with(&text).unwrap();
    let pid = scene.status().unwrap().pid;
    let workers = worker_threads(pid);
    assert_eq!(workers.len(), 3);
    // The connect hooks look at shard 0: it is the hard one.
    for index in [0, 2] {
        let held = Held::hold(workers[index]);
        let led = wait_until(Duration::from_secs(5), || hanging(&scene) == 0);
        assert!(led, "worker {index}: connections hang");
        // For longer than the heartbeat lives.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(1_500) {
            assert_eq!(hanging(&scene), 0, "worker {index}");
            assert!(heartbeat_is_fresh(&scene), "worker {index}");
        }
        let (captured, direct) = (
            kernel_count(&scene, "captured"),
            kernel_count(&scene, "direct_agent_gone"),
        );
        assert_eq!(hanging(&scene), 0);
        assert_eq!(
            kernel_count(&scene, "captured") - captured,
            40,
            "by the others"
        );
        assert_eq!(kernel_count(&scene, "direct_agent_gone"), direct);
        drop(held);
        eventually("its shard is its own again", || {
            served_by(&scene, workers[index])
        });
    }
    let log = std::fs::read_to_string(scene.dir().join("agent.log")).unwrap();
    assert!(log.contains("workers stand still"), "{log}");
    assert!(log.contains("all workers turn again"), "{log}");
    scene.tear_down().unwrap();
}

/// Whether this thread works when many connect.
fn served_by(scene: &Scene, tid: Pid) -> bool {
    let ran = || {
        let stat = std::fs::read_to_string(format!("/proc/{tid}/schedstat")).unwrap();
        let mut fields = stat.split(' ');
        fields.next().unwrap().parse::<u64>().unwrap()
    };
    let before = ran();
    assert_eq!(hanging(scene), 0);
    // A third of forty connections, a millisecond at the least; a tick takes microseconds.
    ran() - before > 1_500_000
}

/// Without it: with every worker standing still, connections pile up in queues that nobody empties.
#[test]
fn agent_whose_workers_all_stand_still_counts_as_hung() {
    let mut scene = scene::build("l-all");
    let text = scene
        .config_with(SPLIT)
        .replace("agent:\n", "agent:\n  workers: 2\n");
    scene.start_with(&text).unwrap();
    let pid = scene.status().unwrap().pid;
    let held: Vec<Held> = worker_threads(pid).into_iter().map(Held::hold).collect();
    assert_eq!(held.len(), 2);
    eventually("the heartbeat is stale", || !heartbeat_is_fresh(&scene));
    let before = kernel_count(&scene, "direct_agent_gone");
    let open = scene.ask(&scene.client, &["--timeout-ms", "2000"]).unwrap();
    assert_eq!(open.status(200), 1, "{open:?}");
    assert_eq!(kernel_count(&scene, "direct_agent_gone") - before, 1);
    drop(held);
    eventually("it is fresh again", || heartbeat_is_fresh(&scene));
    assert_eq!(hanging(&scene), 0);
    scene.tear_down().unwrap();
}

/// The CLI works with the agent's workers held; so does `mesh run --takeover`.
#[test]
fn successor_takes_over_from_an_agent_with_a_worker_that_stands_still() {
    let mut scene = scene::build("l-stuck2");
    let text = scene
        .config_with(SPLIT)
        .replace("agent:\n", "agent:\n  workers: 2\n");
    scene.start_with(&text).unwrap();
    let pid = scene.status().unwrap().pid;
    let held = Held::hold(worker_threads(pid)[0]);
    let successor = scene.spawn_successor(&scene.config_path()).unwrap();
    let new = successor.id();
    eventually("it took over", || {
        scene.status().is_ok_and(|status| status.pid == new)
    });
    let mut old = scene.replace_agent(successor).unwrap();
    assert_eq!(hanging(&scene), 0);
    drop(held);
    let ended = wait_until(Duration::from_secs(10), || {
        old.try_wait().unwrap().is_some()
    });
    assert!(ended, "it ends once its worker turns");
    scene.tear_down().unwrap();
}
