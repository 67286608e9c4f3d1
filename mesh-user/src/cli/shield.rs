//! `mesh shield ...`: what is dropped at the node's interfaces, and what an operator types while it
//! is attacked.

use std::time::Duration;

use anyhow::Context as _;
use http::Method;
use serde_json::Value;

use super::{
    Exit, Io,
    args::{OutputArgs, ShieldVerb},
    client::Agent,
    columns as c,
    output::{self, Format, age, cell},
};
use crate::{admin::ShieldAsk, model::shield::Net};

/// One verb.
pub(super) fn shield(
    agent: &Agent,
    verb: ShieldVerb,
    args: OutputArgs,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    match verb {
        ShieldVerb::Status => status(&ask(agent, &ShieldAsk::Status)?, args, io)?,
        ShieldVerb::List => {
            let document = ask(agent, &ShieldAsk::Rules)?;
            output::list(io.out, args, c::SHIELD_RULES, &document)?;
        }
        ShieldVerb::Top { limit } => {
            let document = ask(agent, &ShieldAsk::Sources { limit })?;
            output::list(io.out, args, c::SHIELD_SOURCES, &document)?;
        }
        ShieldVerb::Check { address } => {
            check(&ask(agent, &ShieldAsk::Check { address })?, args, io)?;
        }
        ShieldVerb::Deny { cidr, duration } => add(agent, cidr, false, duration, io)?,
        ShieldVerb::Allow { cidr, duration } => add(agent, cidr, true, duration, io)?,
        ShieldVerb::Undeny { cidr } => remove(agent, cidr, false, io)?,
        ShieldVerb::Unallow { cidr } => remove(agent, cidr, true, io)?,
    }
    Ok(Exit::Done)
}

fn ask(agent: &Agent, question: &ShieldAsk) -> anyhow::Result<Value> {
    let body = serde_json::to_vec(question).context("can't ask this")?;
    Ok(agent.ask(Method::POST, "/shield", body)?)
}

fn add(
    agent: &Agent,
    cidr: Net,
    allow: bool,
    duration: Option<Duration>,
    io: &mut Io<'_>,
) -> anyhow::Result<()> {
    let for_s = duration.map(|duration| duration.as_secs().max(1));
    ask(agent, &ShieldAsk::Add { cidr, allow, for_s })?;
    let (action, undo) = words(allow);
    let until = match for_s {
        Some(seconds) => format!("for {}", age(seconds as f64)),
        None => format!("until `mesh shield {undo} {cidr}`"),
    };
    io.say(&format!("{cidr} is {action} {until}"));
    Ok(())
}

fn remove(agent: &Agent, cidr: Net, allow: bool, io: &mut Io<'_>) -> anyhow::Result<()> {
    ask(agent, &ShieldAsk::Remove { cidr, allow })?;
    let (action, _) = words(allow);
    io.say(&format!("{cidr} is no longer {action} by the command line"));
    Ok(())
}

const fn words(allow: bool) -> (&'static str, &'static str) {
    if allow {
        ("allowed", "unallow")
    } else {
        ("denied", "undeny")
    }
}

/// A list inside a document, as one of its own.
fn part(document: &Value, pointer: &str) -> Value {
    let items = document.pointer(pointer).cloned().unwrap_or_default();
    serde_json::json!({"items": items})
}

fn status(document: &Value, args: OutputArgs, io: &mut Io<'_>) -> anyhow::Result<()> {
    if matches!(args.output, Format::Json | Format::Yaml) {
        return output::list(io.out, args, &[], document);
    }
    if let Some(fault) = document["fault"].as_str() {
        io.say(&format!("fault: {}", output::harmless(fault)));
    }
    let interfaces = part(document, "/overview/interfaces");
    output::list(io.out, args, c::SHIELD_INTERFACES, &interfaces)?;
    let overview = &document["overview"];
    let (prefixes, manual) = (cell(&overview["prefixes"]), cell(&overview["manual"]));
    writeln!(
        io.out,
        "\n{prefixes} ranges, {manual} of them by the command line; bogus flags: {}",
        cell(&document["settings"]["bogus_flags"])
    )?;
    for file in document["files"].as_array().into_iter().flatten() {
        match file["error"].as_str() {
            None => writeln!(
                io.out,
                "{}: {} ranges",
                output::harmless(&cell(&file["path"])),
                cell(&file["prefixes"])
            )?,
            Some(error) => {
                for line in error.lines() {
                    io.say(&format!("list file refused: {}", output::harmless(line)));
                }
            }
        }
    }
    writeln!(io.out)?;
    output::list(
        io.out,
        args,
        c::SHIELD_COUNTS,
        &part(document, "/overview/counts"),
    )
}

fn check(document: &Value, args: OutputArgs, io: &mut Io<'_>) -> anyhow::Result<()> {
    if matches!(args.output, Format::Json | Format::Yaml) {
        return output::list(io.out, args, &[], document);
    }
    let (address, decision) = (cell(&document["address"]), cell(&document["decision"]));
    let rule = output::harmless(&cell(&document["rule"]));
    match decision.as_str() {
        "pass" => writeln!(io.out, "{address}: no list names it; flags and rates apply")?,
        "allow" => writeln!(io.out, "{address}: always passes, by rule {rule}")?,
        _ => writeln!(io.out, "{address}: dropped, by rule {rule}")?,
    }
    if document["kernel_agrees"] == Value::Bool(false) {
        io.say("the kernel's map says otherwise: `mesh reload` writes it anew");
    }
    if !document["source"].is_null() {
        writeln!(
            io.out,
            "SYNs of {}: {} passed, {} dropped",
            cell(&document["source"]["source"]),
            cell(&document["source"]["passed"]),
            cell(&document["source"]["dropped"])
        )?;
    }
    let holders = part(document, "/holders");
    if holders["items"]
        .as_array()
        .is_some_and(|items| !items.is_empty())
    {
        output::list(io.out, args, c::SHIELD_HOLDERS, &holders)?;
    }
    Ok(())
}
