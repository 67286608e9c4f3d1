//! What stands in the kernel, by name: to compare before and after.

use std::process::Command;

/// Runs a command that prints JSON.
fn json(program: &str, args: &[&str]) -> serde_json::Value {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("installed");
    if output.stdout.is_empty() {
        return serde_json::Value::Null;
    }
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Ids of all programs, maps and links of the machine that carry one of our names.
pub(crate) fn bpf() -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["prog", "map", "link"] {
        let list = json("bpftool", &["-j", kind, "list"]);
        for object in list.as_array().into_iter().flatten() {
            found.push(format!("{kind} {}", object["id"]));
        }
    }
    found.sort();
    found
}

/// Rules and routes of a namespace.
pub(crate) fn network(netns: &std::path::Path) -> Vec<String> {
    let name = netns
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    let mut found = Vec::new();
    for args in [
        ["-4", "rule", "list"].as_slice(),
        &["-6", "rule", "list"],
        &["-4", "route", "list", "table", "all"],
        &["-6", "route", "list", "table", "all"],
    ] {
        let all = [&["-j", "-n", name], args].concat();
        let list = json("ip", &all);
        found.extend(
            list.as_array()
                .into_iter()
                .flatten()
                .map(ToString::to_string),
        );
    }
    found.sort();
    found
}
