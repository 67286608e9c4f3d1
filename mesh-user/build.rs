//! Embeds the eBPF objects when they have been built.
//!
//! `cargo xtask build-ebpf` leaves them at `target/bpf/mesh.o` and `target/bpf/shield.o` of the
//! workspace root; the variables `MESH_BPF_OBJECT` and `MESH_BPF_SHIELD_OBJECT` name other files.
//! Without either the crate builds all the same, and starting the kernel side says what to run.

use std::{env, fs, path::PathBuf};

fn main() {
    embed("MESH_BPF_OBJECT", "mesh.o", "mesh_bpf_object");
    embed(
        "MESH_BPF_SHIELD_OBJECT",
        "shield.o",
        "mesh_bpf_shield_object",
    );
}

/// One object: `VARIABLE_FILE` says where it is and `cfg` that it is there.
fn embed(variable: &str, name: &str, cfg: &str) {
    println!("cargo:rustc-check-cfg=cfg({cfg})");
    println!("cargo:rerun-if-env-changed={variable}");
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let object = env::var_os(variable)
        .map_or_else(|| manifest.join("../target/bpf").join(name), PathBuf::from);
    // The folder is watched, not the file: cargo takes a missing file for a changed one and would
    // build the crate anew each time. So the folder must be there before the object is.
    let folder = object
        .parent()
        .expect("a file stands in a folder")
        .to_owned();
    let _ = fs::create_dir_all(&folder);
    println!("cargo:rerun-if-changed={}", folder.display());
    let Ok(object) = fs::canonicalize(&object) else {
        assert!(
            env::var_os(variable).is_none(),
            "{variable} names {}, which is not there",
            object.display()
        );
        return;
    };
    println!("cargo:rustc-cfg={cfg}");
    println!("cargo:rustc-env={variable}_FILE={}", object.display());
}
