//! Kills at any moment, workers that stand still, pods that come and go by the hundred, and what is
//! left afterwards: nothing. The whole agent on the real kernel.

#[path = "churn/kills.rs"]
mod kills;
#[path = "churn/leftovers.rs"]
mod leftovers;
#[path = "churn/pods.rs"]
mod pods;
#[path = "churn/workers.rs"]
mod workers;

mod scene;

use std::collections::BTreeMap;

use scene::{SPLIT, Scene, json};

/// The tester is `failure: closed`, the client is `failure: open`.
fn one_open_one_closed(scene: &Scene) -> String {
    let text = scene.config_with(SPLIT);
    text.replace(
        "tags: {app: tester}",
        "tags: {app: tester}, failure: closed",
    )
}

/// Programs by attach point and name, as `mesh bpf progs` says.
fn hooks(scene: &Scene) -> BTreeMap<(String, String), usize> {
    let rows = json(scene, &["bpf", "progs", "-o", "json"]);
    let mut hooks = BTreeMap::new();
    for row in rows["items"].as_array().expect("a list") {
        let text = |field: &str| row[field].as_str().expect("text").to_owned();
        *hooks
            .entry((text("attached"), text("program")))
            .or_default() += 1;
    }
    hooks
}

/// Programs that really stand at the pods' cgroup, asked of another tool: by attach type.
fn at_pods_cgroup(scene: &Scene) -> BTreeMap<String, usize> {
    let path = scene.bed.pods_cgroup().display().to_string();
    let output = std::process::Command::new("bpftool")
        .args(["-j", "cgroup", "show", &path])
        .output()
        .expect("bpftool");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let mut found = BTreeMap::new();
    for row in rows.as_array().into_iter().flatten() {
        let kind = row["attach_type"].as_str().expect("text").to_owned();
        *found.entry(kind).or_default() += 1;
    }
    found
}

/// xorshift64: the seed is printed, for the moments are random.
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
