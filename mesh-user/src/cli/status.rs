//! `mesh status`.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;

use super::{
    Exit, Io,
    args::OutputArgs,
    client::Agent,
    columns,
    output::{self, Format, age, harmless},
};
use crate::admin::{Drain, Status, document};

/// Prints how the agent is; fails when it isn't ready.
pub(super) fn status(agent: &Agent, args: OutputArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let answer = agent.get("/status")?;
    let status: Status = serde_json::from_value(answer.clone())
        .context("the agent's status can't be read: another version of mesh runs?")?;
    match args.output {
        Format::Json | Format::Yaml => output::list(io.out, args, &[], &answer)?,
        Format::Table | Format::Wide => tell(&status, args, SystemTime::now(), io)?,
    }
    Ok(if status.ready() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

pub(super) fn tell(
    status: &Status,
    args: OutputArgs,
    now: SystemTime,
    io: &mut Io<'_>,
) -> anyhow::Result<()> {
    let paint = io.paint();
    let ago = |time: SystemTime| {
        age(now
            .duration_since(time)
            .unwrap_or(Duration::ZERO)
            .as_secs_f64())
    };
    writeln!(
        io.out,
        "agent      {} (pid {}, version {}, up {})",
        status.instance,
        status.pid,
        harmless(&status.version),
        ago(status.started),
    )?;
    let ready = match (status.ready(), status.drain) {
        (_, Drain::Draining) => paint.warn("no: stopping"),
        (true, _) => paint.good("yes"),
        (false, _) => paint.bad("no"),
    };
    writeln!(io.out, "ready      {ready}")?;
    for condition in &status.conditions {
        let word = if condition.ok {
            paint.good("ok  ")
        } else {
            paint.bad("FAIL")
        };
        writeln!(
            io.out,
            "  {word}     {}: {}",
            condition.name,
            harmless(&condition.detail)
        )?;
    }
    let taken = status
        .config
        .last_success
        .map_or("never taken over".to_owned(), |time| {
            format!(
                "generation {}, taken over {} ago",
                status.generation,
                ago(time)
            )
        });
    writeln!(
        io.out,
        "config     {} ({taken})",
        harmless(&status.config.path)
    )?;
    if let Some(error) = &status.config.last_error {
        let head = paint.bad("refused");
        writeln!(
            io.out,
            "  {head}  {} ago; the old one stays in force:",
            ago(error.at)
        )?;
        for line in error.message.lines() {
            writeln!(io.out, "           {}", harmless(line))?;
        }
    }
    if !status.restart_needed.is_empty() {
        let fields = status.restart_needed.join(", ");
        writeln!(
            io.out,
            "  {}  changed, but in force after a restart: {fields}",
            paint.warn("restart")
        )?;
    }
    let redirect = match status.redirect {
        true => paint.good("on"),
        false => paint.warn("off: every new connection passes untouched"),
    };
    writeln!(io.out, "redirect   {redirect}")?;
    writeln!(io.out, "workers    {}", status.workers)?;
    writeln!(io.out)?;
    let document = document::list("WorkloadList", &status.workloads)?;
    output::list(io.out, args, columns::WORKLOADS, &document)
}
