//! Pods by the hundred.

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use mesh_user::testbed::wait_until;

use crate::scene::{self, SPLIT, Scene, json, live};

/// Namespaces at a time, and how often: 500 in all.
const BATCH: usize = 50;
const ROUNDS: usize = 10;

/// Plain namespaces with one address each: nothing of a pod that the agent does not need.
struct Batch(Vec<String>);

impl Batch {
    fn make(round: usize) -> Self {
        let batch = Self((0..BATCH).map(|n| format!("mb-l-churn-x{n}")).collect());
        // What a killed run left.
        batch.remove();
        let lines = batch.0.iter().enumerate().map(|(n, name)| {
            format!(
                "ip netns add {name} && ip -n {name} link set lo up && \
                 ip -n {name} addr add 10.90.{round}.{n}/32 dev lo || exit 1\n"
            )
        });
        assert!(sh(&lines.collect::<String>()), "namespaces are made");
        batch
    }

    fn remove(&self) {
        let lines = self
            .0
            .iter()
            .map(|name| format!("[ -e /run/netns/{name} ] && ip netns del {name}\n"));
        sh(&lines.collect::<String>());
    }

    fn workloads(&self) -> String {
        let lines = self.0.iter();
        lines
            .map(|name| format!("  - {{name: {name}, netns: /run/netns/{name}}}\n"))
            .collect()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.remove();
    }
}

fn sh(script: &str) -> bool {
    Command::new("sh")
        .args(["-c", script])
        .status()
        .is_ok_and(|status| status.success())
}

/// Entries of the maps that hold workloads.
fn fills(scene: &Scene) -> BTreeMap<String, u64> {
    let rows = json(scene, &["bpf", "maps", "list", "-o", "json"]);
    let names = ["LISTENERS", "POD_BY_ADDR", "POD_BY_NETNS"];
    let rows = rows["items"].as_array().expect("a list").iter();
    rows.filter_map(|row| Some((row["map"].as_str()?, row["entries"].as_u64()?)))
        .filter(|(map, _)| names.contains(map))
        .map(|(map, entries)| (map.to_owned(), entries))
        .collect()
}

/// Links of `steer`, by pins.
fn steers(scene: &Scene) -> usize {
    let rows = json(scene, &["bpf", "progs", "-o", "json"]);
    let rows = rows["items"].as_array().expect("a list").iter();
    rows.filter(|row| row["program"] == "steer").count()
}

/// Pitfall 20: dead pinned links pile up, and so do entries of pods that are gone.
#[test]
fn five_hundred_pods_churned_leave_as_many_links_as_pods() {
    let mut scene = scene::build("l-churn");
    let text = scene.config_with(SPLIT);
    scene.start_with(&text).unwrap();
    let before = fills(&scene);
    assert_eq!(before.len(), 3, "{before:?}");
    assert_eq!(steers(&scene), 2);
    let begun = Instant::now();
    for round in 0..ROUNDS {
        let batch = Batch::make(round);
        std::fs::write(scene.config_path(), format!("{text}{}", batch.workloads())).unwrap();
        live(&scene, 2 + BATCH);
        assert_eq!(steers(&scene), 2 + BATCH, "links = pods");
        assert_eq!(fills(&scene)["POD_BY_NETNS"], 2 + BATCH as u64);
        batch.remove();
        let gone = Instant::now();
        let done = wait_until(Duration::from_secs(5), || steers(&scene) == 2);
        assert!(done, "round {round}: {} links are left", steers(&scene));
        assert_eq!(fills(&scene), before, "round {round}");
        println!("round {round}: let go in {:?}", gone.elapsed());
    }
    println!("{} pods in {:?}", BATCH * ROUNDS, begun.elapsed());
    assert_eq!(scene.ask(&scene.client, &[]).unwrap().status(200), 1);
    scene.tear_down().unwrap();
}
