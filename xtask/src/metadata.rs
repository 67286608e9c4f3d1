//! What cargo says about the workspace: its packages and their test targets.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::run;

/// One member of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// Names of its integration tests (`tests/NAME.rs`).
    pub(crate) tests: Vec<String>,
}

/// The workspace's members, by name.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let mut cargo = run::cargo();
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--locked"]);
    let output = cargo.output().context("can't start cargo metadata")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    parse(&serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?)
}

fn parse(metadata: &Value) -> Result<Vec<Package>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let mut packages: Vec<Package> = packages.iter().map(package).collect::<Result<_>>()?;
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

fn package(value: &Value) -> Result<Package> {
    let text = |field: &str| {
        value[field]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("package without {field}"))
    };
    let targets = value["targets"]
        .as_array()
        .context("package without targets")?;
    let of_kind = |kind: &'static str| {
        targets.iter().filter(move |target| {
            target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|k| k == kind))
        })
    };
    let mut dir = PathBuf::from(text("manifest_path")?);
    dir.pop();
    Ok(Package {
        name: text("name")?,
        dir,
        tests: of_kind("test")
            .filter_map(|t| t["name"].as_str().map(str::to_owned))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_this_workspace_are_found() {
        let packages = packages().expect("this workspace is valid");
        let xtask = packages
            .iter()
            .find(|p| p.name == "xtask")
            .expect("xtask is a member");
        assert!(xtask.dir.ends_with("xtask") && xtask.tests.is_empty());
    }
}
