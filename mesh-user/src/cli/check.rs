//! `mesh check`: what this machine offers, and whether what an instance attached is in force.

use anyhow::Context as _;
use serde_json::Value;

use super::{
    Exit, Io,
    args::OutputArgs,
    columns,
    output::{self, Format, Paint, harmless},
};
use crate::{
    admin::document,
    kernel::{
        Instance,
        probe::{self, Check},
        verify,
    },
};

/// Prints the checks; fails when something required is missing.
pub(super) fn check(
    instance: &Instance,
    args: OutputArgs,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    let mut checks = probe::check();
    // What this machine offers, then what stands on it.
    let standing = verify::verify(instance).with_context(|| {
        format!(
            "can't look at what instance {:?} has attached",
            instance.name()
        )
    });
    match standing {
        Ok(Some(found)) => checks.extend(found),
        Ok(None) => io.say(&format!(
            "instance {:?} has attached nothing: only the machine was looked at",
            instance.name()
        )),
        Err(error) => checks.push(Check {
            name: "instance".to_owned(),
            ok: false,
            required: true,
            found: format!("{error:#}"),
            remedy: Some("run as root; pins of another version go with `mesh cleanup`".to_owned()),
        }),
    }
    print(&checks, args, io)?;
    let missing = checks
        .iter()
        .filter(|check| check.required && !check.ok)
        .count();
    if missing == 0 {
        return Ok(Exit::Done);
    }
    let all = checks.len();
    io.say(&format!(
        "{missing} of {all} checks failed: what they name is needed"
    ));
    if !nix::unistd::geteuid().is_root() {
        io.say("note: you are not root, so some checks see less than the agent would");
    }
    Ok(Exit::Failed)
}

pub(super) fn print(checks: &[Check], args: OutputArgs, io: &mut Io<'_>) -> anyhow::Result<()> {
    let document = document::list("CheckList", checks)?;
    output::list(io.out, args, columns::CHECKS, &document)?;
    if args.output == Format::Table {
        let paint = io.paint();
        for row in document["items"].as_array().into_iter().flatten() {
            remedy(row, paint, io)?;
        }
    }
    Ok(())
}

/// What to do, below the table: it is a sentence and would tear the columns apart.
fn remedy(row: &Value, paint: Paint, io: &mut Io<'_>) -> std::io::Result<()> {
    let Some(remedy) = row["remedy"]
        .as_str()
        .filter(|_| row["ok"] != Value::Bool(true))
    else {
        return Ok(());
    };
    let name = harmless(row["name"].as_str().unwrap_or("?"));
    let word = match columns::check_result(row) {
        "FAIL" => paint.bad("FAIL"),
        word => paint.warn(word),
    };
    writeln!(io.out, "{word}  {name}: {}", harmless(remedy))
}
