//! `mesh config ...` and `mesh validate`.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::json;

use super::{
    Exit, Io,
    args::{AnalyzeArgs, ConfigVerb, FailOn, OutputArgs, PlainFormat, ValidateArgs},
    client::Agent,
    columns, output,
};
use crate::{
    admin::document,
    config::{self, Examined, Severity},
};

/// Largest configuration that is read from standard input, in bytes.
const STDIN_BYTES_MAX: u64 = 64 << 20;

/// Prints one list of the snapshot in force.
pub(super) fn list(
    agent: &Agent,
    what: ConfigVerb,
    args: OutputArgs,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    let (path, columns) = match what {
        ConfigVerb::Services => ("/config/services", columns::SERVICES),
        ConfigVerb::Routes => ("/config/routes", columns::ROUTES),
        ConfigVerb::Endpoints => ("/config/endpoints", columns::ENDPOINTS),
        ConfigVerb::Policies => ("/config/policies", columns::POLICIES),
    };
    let document = agent.get(path)?;
    output::list(io.out, args, columns, &document)?;
    Ok(Exit::Done)
}

/// Checks files; fails when one of them has an error.
pub(super) fn validate(args: &ValidateArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let files = (&args.files[..], args.output.output);
    look_at(files, "ValidationList", examine, Severity::Error, io)
}

/// Checks and analyzes files; fails when one of them has a finding that is bad enough.
pub(super) fn analyze(args: &AnalyzeArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let worst = match args.fail_on {
        FailOn::Error => Severity::Error,
        FailOn::Warning => Severity::Warning,
        FailOn::Note => Severity::Note,
    };
    let files = (&args.files[..], args.output.output);
    look_at(files, "AnalysisList", examine_and_analyze, worst, io)
}

/// Reports on each file; fails when a problem of one is `worst` or worse.
fn look_at(
    (files, format): (&[PathBuf], PlainFormat),
    kind: &str,
    examine: impl Fn(&Path) -> anyhow::Result<(String, Examined)>,
    worst: Severity,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    let mut rows = Vec::new();
    let mut good = true;
    for path in files {
        let (name, examined) = examine(path)?;
        let mut problems = examined.report.problems.iter();
        good &= examined.config.is_some() && problems.all(|problem| problem.severity > worst);
        if format == PlainFormat::Text {
            say(&name, &examined, io)?;
        }
        rows.push(json!({
            "file": name,
            "valid": examined.config.is_some(),
            "problems": examined.report.to_json(),
        }));
    }
    let document = document::list(kind, &rows)?;
    output::machine(io.out, format, &document)?;
    Ok(if good { Exit::Done } else { Exit::Failed })
}

fn examine_and_analyze(path: &Path) -> anyhow::Result<(String, Examined)> {
    if path == Path::new("-") {
        let text = read_stdin()?;
        let name = "<stdin>".to_owned();
        let examined = config::analyze_text(&name, &text);
        return Ok((name, examined));
    }
    let name = path.display().to_string();
    let examined = config::analyze(path);
    Ok((name, examined))
}

/// Examines a file, or standard input for `-`.
pub(super) fn examine(path: &Path) -> anyhow::Result<(String, Examined)> {
    if path != Path::new("-") {
        return Ok((path.display().to_string(), config::examine(path)));
    }
    let text = read_stdin()?;
    let name = "<stdin>".to_owned();
    let examined = config::examine_text(&name, &text);
    Ok((name, examined))
}

/// All of standard input.
pub(super) fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::io::stdin()
        .lock()
        .take(STDIN_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .context("standard input: can't read it as UTF-8 text")?;
    anyhow::ensure!(
        read as u64 <= STDIN_BYTES_MAX,
        "standard input: longer than {STDIN_BYTES_MAX} bytes, the largest configuration"
    );
    Ok(text)
}

/// The verdict is data; problems of a valid file (warnings) are talk.
fn say(name: &str, examined: &Examined, io: &mut Io<'_>) -> std::io::Result<()> {
    if !examined.report.problems.is_empty() {
        let colour = io.colour_err;
        io.say(&examined.report.render(colour));
    }
    let count = |severity| {
        examined
            .report
            .problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let notes = count(Severity::Note);
    let paint = io.paint();
    let warned = plural(warnings, "warning", "warnings");
    match &examined.config {
        Some(config) => {
            let model = &config.model;
            let content = [
                plural(model.services.len(), "service", "services"),
                plural(model.rules.len(), "rule", "rules"),
                plural(model.policies.len(), "policy", "policies"),
                plural(model.workloads.len(), "workload", "workloads"),
            ];
            let mut tail = String::new();
            if warnings > 0 {
                tail.push_str(&format!("; {warned}"));
            }
            if notes > 0 {
                tail.push_str(&format!("; {}", plural(notes, "note", "notes")));
            }
            writeln!(
                io.out,
                "{} {name}: {}{tail}",
                paint.good("valid"),
                content.join(", ")
            )
        }
        None => {
            let errors = plural(errors, "error", "errors");
            writeln!(
                io.out,
                "{} {name}: {errors}, {warned}",
                paint.bad("invalid")
            )
        }
    }
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The problems of a report as one error, for verbs that need a valid file.
pub(super) fn invalid(name: &str, examined: &Examined) -> anyhow::Error {
    anyhow::anyhow!(
        "{name} is not valid; nothing was changed\n{}",
        examined.report.render(false)
    )
}
