//! What the guests reported, as a table.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{machine::Outcome, packages::Kernel};

const BEGIN: &str = "<!-- kernels: written by cargo xtask kernels --write -->";
const END: &str = "<!-- /kernels -->";

/// One kernel's outcome.
#[derive(Debug)]
pub(super) struct Row {
    /// What was asked for.
    pub(super) wanted: String,
    version: String,
    report: Value,
    /// Why there is no report.
    failed: Option<String>,
    seconds: f64,
}

impl Row {
    pub(super) fn new(kernel: &Kernel, outcome: Result<Outcome>) -> Self {
        let (report, failed, seconds) = match outcome {
            Ok(outcome) => (outcome.report, None, outcome.took.as_secs_f64()),
            Err(error) => (Value::Null, Some(format!("{error:#}")), 0.0),
        };
        Self {
            wanted: kernel.wanted.clone(),
            version: kernel.version.clone(),
            report,
            failed,
            seconds,
        }
    }

    /// Every program loaded and attached, every request proxied.
    pub(super) fn good(&self) -> bool {
        let programs = self.programs();
        self.error().is_none()
            && !programs.is_empty()
            && programs
                .iter()
                .all(|program| program["error"].is_null() || program["optional"] == true)
            && self.report["redirect"]["proxied"].as_u64().is_some()
    }

    fn error(&self) -> Option<&str> {
        self.failed
            .as_deref()
            .or_else(|| self.report["error"].as_str())
    }

    fn programs(&self) -> &[Value] {
        self.report["programs"]
            .as_array()
            .map_or(&[], Vec::as_slice)
    }

    fn program(&self, name: &str) -> Option<&Value> {
        self.programs()
            .iter()
            .find(|program| program["program"] == name)
    }

    /// What `mesh check` says is missing there.
    fn lacks(&self) -> Vec<&str> {
        let checks = self.report["checks"].as_array().into_iter().flatten();
        checks
            .filter(|check| check["ok"] == false)
            .filter_map(|check| check["name"].as_str())
            .collect()
    }

    fn redirect(&self) -> String {
        let redirect = &self.report["redirect"];
        match (redirect["proxied"].as_u64(), redirect["error"].as_str()) {
            (Some(count), _) => format!("{count} requests, IPv4 and IPv6"),
            (None, Some(error)) => format!("no: {error}"),
            (None, None) => "not tried".to_owned(),
        }
    }

    /// For whoever watches.
    pub(super) fn line(&self) -> String {
        let mut text = format!(
            "kernel {}: {} in {:.0} s (guest {:.0} s); redirected: {}",
            self.version,
            if self.good() { "good" } else { "NOT GOOD" },
            self.seconds,
            self.report["seconds"].as_f64().unwrap_or(0.0),
            self.redirect(),
        );
        if let Some(error) = self.error() {
            let _ = write!(text, "\n  {error}");
        }
        for program in self.programs() {
            if let (Some(name), Some(error)) =
                (program["program"].as_str(), program["error"].as_str())
            {
                let _ = write!(text, "\n  {name}: {error}");
            }
        }
        for lack in self.lacks() {
            let _ = write!(text, "\n  lacks: {lack}");
        }
        text
    }
}

/// The cell of one program on one kernel.
fn cell(program: Option<&Value>) -> String {
    let Some(program) = program else {
        return "absent".to_owned();
    };
    if program["loaded"] != true {
        return if program["optional"] == true {
            "does without".to_owned()
        } else {
            "refused".to_owned()
        };
    }
    // Verified instructions where the kernel tells, else those of the program.
    let count = match (
        program["verified"].as_u64(),
        program["instructions"].as_u64(),
    ) {
        (Some(count), _) => count.to_string(),
        (None, Some(count)) => format!("({count})"),
        (None, None) => "?".to_owned(),
    };
    match program["attached"].as_str() {
        Some("link") => count,
        Some(how) => format!("{count}, {how}"),
        None => format!("{count}, not attached"),
    }
}

/// The matrix as a Markdown table: a row a program, a column a kernel.
pub(super) fn text(rows: &[Row]) -> String {
    let names: BTreeSet<&str> = rows
        .iter()
        .flat_map(Row::programs)
        .filter_map(|program| program["program"].as_str())
        .collect();
    let mut out = String::from("| |");
    for row in rows {
        let _ = write!(out, " {} |", row.version);
    }
    out.push_str("\n|---|");
    out.push_str(&"---|".repeat(rows.len()));
    let mut line = |name: &str, cells: Vec<String>| {
        let _ = write!(out, "\n| {name} | {} |", cells.join(" | "));
    };
    for name in names {
        let cells = rows.iter().map(|row| cell(row.program(name)));
        line(&format!("`{name}`"), cells.collect());
    }
    line("redirected", rows.iter().map(Row::redirect).collect());
    let refused = rows.iter().map(|row| {
        let refused = row.report["redirect"]["refused"].as_str();
        refused.unwrap_or("not tried").to_owned()
    });
    line("refused connect", refused.collect());
    let lacks = rows.iter().map(|row| match row.lacks().as_slice() {
        [] => "nothing".to_owned(),
        lacks => lacks.join(", "),
    });
    line("lacks", lacks.collect());
    out
}

/// Puts the table between the markers of both documents.
pub(super) fn write(root: &Path, rows: &[Row]) -> Result<()> {
    let table = text(rows);
    for file in ["docs/KERNELS.md", "README.md"] {
        let path = root.join(file);
        let old = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let new = between(&old, &table)
            .with_context(|| format!("{file} lacks the lines {BEGIN} and {END}"))?;
        fs::write(&path, new)?;
        eprintln!("written: {file}");
    }
    Ok(())
}

fn between(old: &str, table: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(report: Value) -> Row {
        Row {
            wanted: "6.1".into(),
            version: "6.1.9-1".into(),
            report,
            failed: None,
            seconds: 1.0,
        }
    }

    #[test]
    fn kernel_is_good_only_when_all_is_attached_and_something_was_proxied() {
        let program = |error: Value| {
            json!({"program": "p", "loaded": true, "verified": 7, "attached": "link",
                   "error": error})
        };
        let good = json!({"programs": [program(Value::Null)], "redirect": {"proxied": 6}});
        assert!(row(good.clone()).good());
        let mut refused = good.clone();
        refused["programs"] = json!([program(json!("no"))]);
        let mut silent = good.clone();
        silent["redirect"] = json!({"error": "no answer"});
        let mut empty = good;
        empty["programs"] = json!([]);
        for bad in [refused, silent, empty, Value::Null] {
            assert!(!row(bad).good());
        }
    }

    #[test]
    fn table_tells_counts_refusals_and_ways_of_attaching() {
        let shown = |value: Value| cell(Some(&value));
        let base = json!({"loaded": true, "verified": 7, "attached": "link"});
        assert_eq!(shown(base.clone()), "7");
        let mut old = base.clone();
        old["verified"] = Value::Null;
        old["instructions"] = json!(5);
        assert_eq!(shown(old), "(5)");
        let mut tc = base.clone();
        tc["attached"] = json!("clsact");
        assert_eq!(shown(tc), "7, clsact");
        assert_eq!(shown(json!({"loaded": false})), "refused");
        assert_eq!(cell(None), "absent");
    }

    #[test]
    fn table_replaces_what_stands_between_the_markers_only() {
        let old = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between(&old, "new").expect("markers");
        assert_eq!(new, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(between("none", "new"), None);
    }
}
