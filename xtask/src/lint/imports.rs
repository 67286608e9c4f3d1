//! The modules' imports form a DAG (DESIGN, section 5).
//!
//! What is not in the table is not allowed: a new module gets its line here, and whoever reviews
//! the line reviews the architecture.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::source;

/// Module of `mesh-user`, and the modules that it may name. `a::b` allows only that part of `a`.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("main", &[]),
    ("lib", &[]),
    (
        "cli",
        &[
            "admin",
            "app",
            "clock",
            "config",
            "demo",
            "kernel",
            "model",
            "platform",
            "policy",
            "telemetry",
        ],
    ),
    (
        "app",
        &[
            "admin",
            "clock",
            "config",
            "drain",
            "kernel",
            "model",
            "platform",
            "policy",
            "proxy",
            "telemetry",
        ],
    ),
    (
        "demo",
        &[
            "admin",
            "clock",
            "config",
            "kernel",
            "model",
            "policy",
            "telemetry",
            "testbed",
        ],
    ),
    ("testbed", &["kernel"]),
    (
        "admin",
        &["clock", "config", "kernel", "model", "policy", "telemetry"],
    ),
    ("platform", &["clock", "config", "model"]),
    (
        "proxy",
        &["clock", "config", "drain", "model", "policy", "telemetry"],
    ),
    // Only the traits through which `app` introduces the two.
    ("kernel", &["clock", "model", "proxy::wire"]),
    ("proxy::wire", &["clock", "model"]),
    ("telemetry", &["clock", "config", "model", "policy"]),
    ("config", &["clock", "model", "policy"]),
    ("policy", &["clock", "model"]),
    ("model", &[]),
    ("clock", &[]),
    ("drain", &[]),
];

/// Crates that parts of the code must not name, and why.
const MUST_NOT_USE: &[(&str, &[&str], &str)] = &[
    (
        "mesh-user/src/policy",
        &["tokio", "hyper", "hyper_util", "aya"],
        "decisions are pure",
    ),
    (
        "mesh-user/src/model",
        &["tokio", "hyper", "hyper_util", "aya"],
        "values only",
    ),
    (
        "mesh-user/src/clock.rs",
        &["tokio", "hyper", "hyper_util", "aya"],
        "a leaf",
    ),
    ("mesh-user/src/proxy", &["aya"], "only kernel/ names aya"),
    (
        "mesh-user/src/config",
        &["aya", "tokio", "hyper"],
        "parsing needs no I/O",
    ),
    (
        "mesh-user/src",
        &["mesh_ebpf"],
        "the object is embedded, the crate is for the kernel",
    ),
    (
        "mesh-ebpf/src/decide",
        &["aya_ebpf"],
        "decisions are tested on the host",
    ),
];

/// Every import that the tables do not allow, as `file:line: what and why`.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in rust_files(&root.join("mesh-user/src"))? {
        let shown = shown(root, &file);
        let module = module(&shown);
        let code = source::code(&read(&file)?);
        found.extend(
            foreign_modules(&module, &code)
                .into_iter()
                .map(|f| format!("{shown}:{f}")),
        );
    }
    for (part, crates, why) in MUST_NOT_USE {
        for file in rust_files(&root.join(part))? {
            let code = source::code(&read(&file)?);
            for name in *crates {
                for (line, path) in source::paths(&code, name) {
                    let shown = shown(root, &file);
                    found.push(format!("{shown}:{line}: {name}::{path} in {part} ({why})"));
                }
            }
        }
    }
    found.dedup();
    Ok(found)
}

fn foreign_modules(module: &str, code: &str) -> Vec<String> {
    // Inside the crate `crate::`, in main.rs the library's name, of which only the CLI is for it.
    let (root, own_may): (_, &[&str]) = if module == "main" {
        ("mesh_user", &["cli"])
    } else {
        ("crate", &[])
    };
    let top = module.split("::").next().unwrap_or(module);
    let Some(may) = allowed(module) else {
        return vec![format!(
            "1: module {module} has no line in xtask/src/lint/imports.rs"
        )];
    };
    let mut found = Vec::new();
    for (line, path) in source::paths(code, root) {
        let own = path.split("::").next() == Some(top);
        // Macros and items at the crate's root name no module.
        let known = MAY_IMPORT
            .iter()
            .any(|(name, _)| path.split("::").next() == Some(*name));
        let permitted = may.iter().chain(own_may).any(|name| {
            path.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        });
        if known && !own && !permitted {
            found.push(format!("{line}: {module} must not import {path}"));
        }
    }
    found
}

/// What a module may import: its own line, or that of the module it lies in.
fn allowed(module: &str) -> Option<&'static [&'static str]> {
    let line = |name: &str| {
        MAY_IMPORT
            .iter()
            .find(|(m, _)| *m == name)
            .map(|(_, may)| *may)
    };
    line(module).or_else(|| line(module.split("::").next()?))
}

/// `a::b` of `mesh-user/src/a/b.rs`, `a` of `mesh-user/src/a/mod.rs`.
fn module(file: &str) -> String {
    let path = file
        .trim_start_matches("mesh-user/src/")
        .trim_end_matches(".rs");
    path.trim_end_matches("/mod").replace('/', "::")
}

/// All `.rs` files below a folder (or the file itself), without test modules; none when the part
/// does not exist.
fn rust_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("can't list {}", path.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "tests" {
            files.extend(rust_files(&path)?);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

fn shown(root: &Path, file: &Path) -> String {
    file.strip_prefix(root)
        .unwrap_or(file)
        .display()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_no_cycle() {
        fn visit(module: &str, path: &mut Vec<String>) {
            assert!(
                !path.iter().any(|m| m == module),
                "cycle: {path:?} -> {module}"
            );
            path.push(module.to_owned());
            for next in allowed(module).unwrap_or_else(|| panic!("{module} has no line")) {
                visit(next, path);
            }
            path.pop();
        }
        for (module, _) in MAY_IMPORT {
            visit(module, &mut Vec::new());
        }
    }

    #[test]
    fn proxy_and_kernel_never_meet() {
        let found = foreign_modules("proxy::http", "use crate::kernel::Kernel;");
        assert_eq!(found, ["1: proxy::http must not import kernel::Kernel"]);
        let found = foreign_modules("kernel::attach", "use crate::proxy::{wire::X, http::Y};");
        assert_eq!(found, ["1: kernel::attach must not import proxy::http::Y"]);
    }

    #[test]
    fn own_parts_and_allowed_parts_are_fine() {
        assert!(foreign_modules("policy::route", "use crate::{policy::x, model::y};").is_empty());
        assert!(foreign_modules("main", "fn main() { mesh_user::cli::main() }").is_empty());
    }

    #[test]
    fn main_takes_the_cli_only() {
        assert_eq!(foreign_modules("main", "use mesh_user::proxy::x;").len(), 1);
    }

    #[test]
    fn new_module_needs_a_line() {
        assert_eq!(foreign_modules("cache", "").len(), 1);
    }

    #[test]
    fn modules_are_named_after_files() {
        assert_eq!(module("mesh-user/src/policy/mod.rs"), "policy");
        assert_eq!(module("mesh-user/src/policy/route.rs"), "policy::route");
        assert_eq!(module("mesh-user/src/app.rs"), "app");
    }
}
