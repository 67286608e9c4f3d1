//! The built object against the shared table, and against the kernel of this machine.

use std::{collections::BTreeMap, path::PathBuf};

use aya::{EbpfLoader, programs::Program};
use aya_obj::Object;
use mesh_common::maps::{ALL, Kind};

fn object() -> Vec<u8> {
    let path = std::env::var_os("MESH_BPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh.o"),
        PathBuf::from,
    );
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run cargo xtask build-ebpf", path.display()))
}

/// Without it: user space and programs read each other's maps with different eyes.
#[test]
fn every_map_of_the_object_is_the_one_in_the_table_and_no_other() {
    let bytes = object();
    let object = Object::parse(&bytes).expect("an eBPF object");
    let found: BTreeMap<&str, String> = object
        .maps
        .iter()
        // Constants that the loader sets: the programs' own, not shared.
        .filter(|(name, _)| *name != ".rodata")
        .map(|(name, map)| {
            let (kind, key, value) = (map.map_type(), map.key_size(), map.value_size());
            let text = layout(kind, key, value, map.max_entries(), map.map_flags());
            (name.as_str(), text)
        })
        .collect();
    let expected: BTreeMap<&str, String> = ALL
        .iter()
        .map(|spec| {
            let (key, value) = (spec.key as u32, spec.value as u32);
            (
                spec.name,
                layout(spec.kind as u32, key, value, spec.capacity, spec.flags),
            )
        })
        .collect();
    assert_eq!(found, expected);
    assert!(
        ALL.iter()
            .any(|spec| spec.kind == Kind::SockHash && spec.value == 8)
    );
}

fn layout(kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> String {
    format!("type {kind} key {key} value {value} entries {entries} flags {flags:#x}")
}

/// Without it: what is shipped logs every connection, and costs twice as much.
#[test]
fn object_has_no_log_map() {
    let bytes = object();
    let object = Object::parse(&bytes).expect("an eBPF object");
    assert!(
        !object.maps.contains_key("AYA_LOGS"),
        "built with the feature log: run cargo xtask build-ebpf"
    );
}

/// Verified instructions of each program on Linux 6.18, plus a tenth: growth beyond is looked at.
/// Most of the connect hooks' is the search for an endpoint, four times over, each with the place
/// that it may take of a connection cap; what follows the decision is walked a few times only
/// (docs/decisions/0009). What `steer` asks about a captured inbound port (itself? our dial? a
/// probe?) is walked once for each family and way in. The kernel's limit is a million.
const CEILINGS: [(&str, u32); 17] = [
    ("bind4", 70),
    ("bind6", 75),
    ("connect4", 20_900),
    ("connect6", 29_300),
    ("flow_ops", 1_400),
    ("getpeername4", 190),
    ("getpeername6", 240),
    ("getsockname4", 260),
    ("getsockname6", 468),
    ("original_dst", 130),
    ("probe_ops", 126),
    ("sendmsg4", 400),
    ("sendmsg6", 578),
    ("sock_release", 60),
    ("steer", 3_000),
    ("mark_guard", 330),
    ("egress_guard", 7_100),
];

/// Pitfall 32: what the compiler makes of a context's loads may be refused, here or by another kernel
/// (`cargo xtask kernels` loads every program on those). Without it: a change makes a program so
/// costly to verify that the next kernel refuses it.
#[test]
fn programs_load_within_their_instruction_budget() {
    let bytes = object();
    let mut object = EbpfLoader::new()
        .btf(None)
        .load(&bytes)
        .expect("maps and relocations");
    let mut over = Vec::new();
    for (name, ceiling) in CEILINGS {
        let program = object
            .program_mut(name)
            .unwrap_or_else(|| panic!("no program {name}"));
        match program {
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSockopt(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            other => panic!("{name} is a {:?}", other.prog_type()),
        }
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let info = program.info().expect("loaded");
        let count = info.verified_instruction_count().expect("Linux 5.16 tells");
        println!("{name}: {count} verified instructions, ceiling {ceiling}");
        if count > ceiling {
            over.push((name, count, ceiling));
        }
    }
    assert!(over.is_empty(), "over their budget: {over:?}");
    let names: Vec<&str> = CEILINGS.iter().map(|(name, _)| *name).collect();
    assert!(
        object.programs().all(|(name, _)| names.contains(&name)),
        "an unknown program"
    );
}
