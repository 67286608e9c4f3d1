//! `docs/ROUTING.md` and `docs/LIMITS.md` state rules with their tests: every test that they name
//! must be there, and every row of a table must name one.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// Tables whose last column is the test.
const DOCUMENTS: [&str; 2] = ["docs/ROUTING.md", "docs/LIMITS.md"];

#[test]
fn every_rule_of_the_documents_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = HashSet::new();
    for folder in [
        "mesh-user/src",
        "mesh-user/tests",
        "mesh-ebpf/src",
        "mesh-common/src",
    ] {
        collect(&root.join(folder), &mut tests);
    }
    let mut faults = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).unwrap();
        for (at, row) in rows(&text) {
            let named: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
            if named.is_empty() {
                faults.push(format!("{document}:{at}: names no test"));
            }
            for name in named.iter().filter(|name| !tests.contains(**name)) {
                faults.push(format!("{document}:{at}: there is no test `{name}`"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The last column of each row of a table that is headed `test`, with its line.
fn rows(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut about_tests = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let Some(inner) = line
            .trim()
            .strip_prefix('|')
            .and_then(|l| l.strip_suffix('|'))
        else {
            about_tests = false;
            return None;
        };
        let last = inner.rsplit(" | ").next()?.trim();
        if last == "test" {
            about_tests = true;
            return None;
        }
        let rule = last.chars().all(|c| matches!(c, '-' | '|' | ':' | ' '));
        (about_tests && !rule).then_some((at + 1, last))
    })
}

/// Names of all functions that stand below `#[test]`, or in a `proptest!`.
fn collect(folder: &Path, tests: &mut HashSet<String>) {
    let mut open: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            let mut marked = false;
            for line in text.lines().map(str::trim_start) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    marked = true;
                } else if let Some(rest) = line
                    .strip_prefix("fn ")
                    .or_else(|| line.strip_prefix("async fn "))
                {
                    if marked && let Some(end) = rest.find('(') {
                        tests.insert(rest[..end].to_owned());
                    }
                    marked = false;
                }
            }
        }
    }
}
