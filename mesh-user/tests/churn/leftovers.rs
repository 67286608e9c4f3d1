//! What `mesh cleanup` leaves: nothing, whenever the agent was killed; and what becomes of pins of
//! another kernel layout.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use mesh_user::{
    kernel::{inventory, mounts},
    testbed::{Pod, wait_until},
};

use crate::{
    Random, at_pods_cgroup, hooks, one_open_one_closed,
    scene::{self, SPLIT, Scene, eventually, shell},
};

/// Everything that an agent may leave on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// Rules, routes, sysctl of each pod, listeners included.
    pods: Vec<String>,
    /// Below the bpffs, with directories.
    bpffs: Vec<PathBuf>,
    /// Programs at the pods' cgroup, of any name.
    hooks: usize,
    /// `sk_lookup` links at the pods' namespaces.
    steers: usize,
    cgroup: bool,
    run_dir: Vec<PathBuf>,
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.path().is_dir() {
            found.extend(tree(&entry.path()));
        }
    }
    found.sort();
    found
}

fn steers(pod: &Pod) -> usize {
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(&pod.netns).expect("a namespace").ino();
    let output = Command::new("bpftool")
        .args(["-j", "link", "list"])
        .output()
        .expect("bpftool");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let rows = rows.as_array().into_iter().flatten();
    rows.filter(|row| row["netns_ino"].as_u64() == Some(inode))
        .count()
}

impl State {
    fn of(scene: &Scene) -> Self {
        let line = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
                    cat /proc/sys/net/ipv4/tcp_fwmark_accept; ss -Hltn";
        let pods = [&scene.client, &scene.tester];
        let bpffs = mounts::bpffs().unwrap().expect("a bpffs").join("mesh");
        let own = bpffs.join(scene.instance.name());
        let mut entries = tree(&own);
        entries.extend(own.exists().then_some(own));
        let cgroup2 = mounts::cgroup2().unwrap().expect("cgroup2");
        let run_dir = scene.instance.run_dir();
        Self {
            pods: pods.map(|pod| shell(scene, pod, line)).to_vec(),
            bpffs: entries,
            hooks: at_pods_cgroup(scene).values().sum(),
            steers: pods.map(steers).iter().sum(),
            cgroup: cgroup2
                .join(format!("mesh-agent-{}", scene.instance.name()))
                .exists(),
            run_dir: tree(&run_dir),
        }
    }
}

/// Ids of what an instance has pinned: `name#id`.
fn pinned(scene: &Scene) -> BTreeSet<String> {
    inventory::pinned_maps(&scene.instance)
        .into_iter()
        .collect()
}

#[test]
fn cleanup_after_a_kill_at_any_of_twenty_moments_leaves_an_empty_difference() {
    let mut scene = scene::build("l-empty");
    let text = one_open_one_closed(&scene);
    std::fs::write(scene.config_path(), &text).unwrap();
    let before = State::of(&scene);
    assert!(before.bpffs.is_empty() && !before.cgroup && before.hooks == 0);
    let mut random = Random::new();
    let mut changed = 0;
    for round in 0..20 {
        scene.spawn_agent().unwrap();
        // The moment is the subject: of a start, or of a takeover, or of a stop.
        let kind = round % 4;
        std::thread::sleep(Duration::from_millis(random.below(800)));
        let mut successor = None;
        match kind {
            1 => {
                successor = Some(scene.spawn_successor(&scene.config_path()).unwrap());
                std::thread::sleep(Duration::from_millis(random.below(600)));
            }
            2 => {
                if let Ok(status) = scene.status() {
                    let pid = nix::unistd::Pid::from_raw(status.pid.try_into().unwrap());
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
                    std::thread::sleep(Duration::from_millis(random.below(300)));
                }
            }
            _ => {}
        }
        scene.kill_agent().unwrap();
        if let Some(mut successor) = successor {
            successor.kill().unwrap();
            successor.wait().unwrap();
        }
        let own = pinned(&scene);
        changed += usize::from(State::of(&scene) != before);
        let done = scene.mesh(&["cleanup"]).unwrap();
        assert!(done.status.success(), "round {round}: {done:?}");
        let mut now = State::of(&scene);
        // A killed process's sockets may take a moment.
        wait_until(Duration::from_secs(5), || {
            now = State::of(&scene);
            now == before
        });
        assert_eq!(now, before, "round {round}, kind {kind}");
        eventually("its maps are freed", || {
            let loaded = inventory::loaded_objects().unwrap();
            !loaded.maps.iter().any(|map| own.contains(map))
        });
    }
    assert!(
        changed > 5,
        "kills that left something to clean up: {changed}"
    );
    scene.tear_down().unwrap();
}

/// Without it: after an upgrade with another map layout two programs stand at every hook, one of
/// which nobody writes maps for.
#[test]
fn pins_of_another_kernel_layout_are_refused_by_name_and_left_in_force() {
    let mut scene = scene::build("l-layout");
    let text = one_open_one_closed(&scene);
    scene.start_with(&text).unwrap();
    let standing = at_pods_cgroup(&scene);
    scene.kill_agent().unwrap();
    let bpffs = mounts::bpffs().unwrap().expect("a bpffs");
    let root = bpffs.join("mesh").join(scene.instance.name());
    let ours = format!("v{}", mesh_common::abi::ABI_VERSION);
    std::fs::rename(root.join(&ours), root.join("v1")).unwrap();
    let left = tree(&root);
    for arguments in [&["run"][..], &["run", "--takeover"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
        command
            .args(arguments)
            .arg("--config")
            .arg(scene.config_path());
        command.args(["--instance", scene.instance.name()]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let agent = scene.bed.spawn_node(command).unwrap();
        let output = agent.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        let remedy = format!("mesh cleanup --instance {}", scene.instance.name());
        for words in ["kernel layout v1", &remedy] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert_eq!(tree(&root), left, "nothing of it is touched");
        assert_eq!(at_pods_cgroup(&scene), standing, "one program at each hook");
    }
    // What it left holds: closed is closed.
    let closed = scene.ask(&scene.tester, &[]).unwrap();
    assert_eq!(closed.errors.get("ECONNREFUSED"), Some(&1), "{closed:?}");
    let done = scene.mesh(&["cleanup"]).unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(!root.exists() && at_pods_cgroup(&scene).is_empty());
    scene.start_with(&text).unwrap();
    assert_eq!(hooks(&scene).values().sum::<usize>(), 12);
    // Empty directories of another layout are nothing.
    scene.kill_agent().unwrap();
    std::fs::create_dir_all(root.join("v9/links")).unwrap();
    scene.start_with(&scene.config_with(SPLIT)).unwrap();
    scene.tear_down().unwrap();
}
