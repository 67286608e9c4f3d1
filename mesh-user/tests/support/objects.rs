//! What stands in the kernel, asked of other tools than the one under test.

use std::{os::unix::fs::MetadataExt as _, path::Path, process::Command};

use mesh_common::maps::ALL;
use mesh_user::kernel::{Instance, mounts, view::View};
use serde_json::Value;

/// The object that was built last.
pub(crate) fn bpf_object() -> std::path::PathBuf {
    match std::env::var_os("MESH_BPF_OBJECT") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh.o"),
    }
}

/// Runs a command that prints JSON.
fn json(program: &str, args: &[&str]) -> Value {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("installed");
    // With nothing to list, bpftool prints an empty line.
    if output.stdout.trim_ascii().is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn list(program: &str, args: &[&str]) -> Vec<Value> {
    match json(program, args) {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

/// Ids of every program, map and link of an instance: `prog 7`.
pub(crate) fn ids(instance: &Instance) -> Vec<String> {
    let mut found = Vec::new();
    for row in View::open(instance).expect("pins").progs() {
        found.push(format!("link {}", row.link_id));
        found.push(format!("prog {}", row.prog_id));
    }
    for spec in ALL {
        let pin = pinned(instance, spec.name);
        found.push(format!(
            "map {}",
            json("bpftool", &["-j", "map", "show", "pinned", &pin])["id"]
        ));
    }
    found.sort();
    found.dedup();
    found
}

/// Where a map is pinned.
fn pinned(instance: &Instance, map: &str) -> String {
    let bpffs = mounts::bpffs().expect("mountinfo").expect("a bpffs");
    let dir = bpffs.join("mesh").join(instance.name());
    let mut versions = std::fs::read_dir(dir).expect("pins");
    let root = versions.next().expect("a version").expect("one");
    root.path().join(map).display().to_string()
}

/// How many entries a map has.
pub(crate) fn entries(instance: &Instance, map: &str) -> usize {
    let pin = pinned(instance, map);
    list("bpftool", &["-j", "map", "dump", "pinned", &pin]).len()
}

/// Whether the kernel has freed such an object.
pub(crate) fn is_gone(id: &str) -> bool {
    let (kind, number) = id.split_once(' ').expect("as made above");
    let output = Command::new("bpftool")
        .args(["-j", kind, "show", "id", number])
        .output();
    !output.expect("installed").status.success()
}

/// Rules and routes of a namespace.
pub(crate) fn network(netns: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for args in [
        ["-4", "rule", "list"].as_slice(),
        &["-6", "rule", "list"],
        &["-4", "route", "list", "table", "all"],
        &["-6", "route", "list", "table", "all"],
    ] {
        let all = [&["-j", "-n", name(netns)], args].concat();
        // What the kernel adds by itself comes when duplicate address detection is over.
        let own = |entry: &String| !entry.contains("fe80:") && !entry.contains("\"ff00::/8\"");
        found.extend(list("ip", &all).iter().map(ToString::to_string).filter(own));
    }
    found.sort();
    found
}

/// Names of the interfaces of a namespace.
pub(crate) fn links(netns: &Path) -> Vec<String> {
    list("ip", &["-j", "-n", name(netns), "link", "list"])
        .iter()
        .filter_map(|link| link["ifname"].as_str().map(str::to_owned))
        .collect()
}

fn name(netns: &Path) -> &str {
    netns
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name")
}

/// How many programs of an attach type stand at a cgroup.
pub(crate) fn at_cgroup(cgroup: &Path, attach: &str) -> usize {
    let path = cgroup.display().to_string();
    list("bpftool", &["-j", "cgroup", "show", &path])
        .iter()
        .filter(|row| {
            row["attach_type"]
                .as_str()
                .is_some_and(|kind| kind.ends_with(attach))
        })
        .count()
}

/// How many `sk_lookup` links stand at a network namespace.
pub(crate) fn steers(netns: &Path) -> usize {
    let inode = std::fs::metadata(netns).expect("a namespace").ino();
    list("bpftool", &["-j", "link", "list"])
        .iter()
        .filter(|link| link["netns_ino"].as_u64() == Some(inode))
        .count()
}
