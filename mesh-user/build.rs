//! Embeds the eBPF object when it has been built.
//!
//! `cargo xtask build-ebpf` leaves it at `target/bpf/mesh.o` of the workspace root; the variable
//! `MESH_BPF_OBJECT` names another file. Without either the crate builds all the same, and
//! starting the kernel side says what to run.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rustc-check-cfg=cfg(mesh_bpf_object)");
    println!("cargo:rerun-if-env-changed=MESH_BPF_OBJECT");
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let object = env::var_os("MESH_BPF_OBJECT")
        .map_or_else(|| manifest.join("../target/bpf/mesh.o"), PathBuf::from);
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
            env::var_os("MESH_BPF_OBJECT").is_none(),
            "MESH_BPF_OBJECT names {}, which is not there",
            object.display()
        );
        return;
    };
    println!("cargo:rustc-cfg=mesh_bpf_object");
    println!("cargo:rustc-env=MESH_BPF_OBJECT_FILE={}", object.display());
}
