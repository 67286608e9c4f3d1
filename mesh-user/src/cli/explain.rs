//! `mesh explain`: asks the agent or a file, and tells the answer as a story.

use std::{path::Path, sync::Arc};

use http::Method;
use serde_json::Value;

use super::{
    Exit, Io,
    args::ExplainArgs,
    client::Agent,
    config,
    output::{self, Paint, cell, harmless},
};
mod live;

use crate::{
    admin::{
        document,
        explain::{self, Question},
    },
    clock,
    policy::Snapshot,
};

/// Explains; exit status 3 when the request would be refused.
pub(super) fn explain(agent: &Agent, args: ExplainArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    if let Some(conn) = &args.live {
        return live::explain(agent, conn, args.output.output, io);
    }
    let (Some(from), Some(to)) = (args.from, args.to) else {
        anyhow::bail!("--from and --to are needed, or --live");
    };
    let question = Question {
        from,
        host: to.host,
        port: to.port,
        method: args.method,
        path: args.path,
        headers: args.headers,
        tcp: args.tcp,
        sni: args.sni,
    };
    let answer = match &args.file {
        Some(file) => from_file(file, &question)?,
        None => agent.ask(Method::POST, "/explain", serde_json::to_string(&question)?)?,
    };
    if !output::machine(io.out, args.output.output, &answer)? {
        tell(&question, &answer, io)?;
    }
    let refused = answer["outcome"].get("refused").is_some();
    Ok(if refused { Exit::Refused } else { Exit::Done })
}

fn from_file(file: &Path, question: &Question) -> anyhow::Result<Value> {
    let (name, examined) = config::examine(file)?;
    let Some(config) = examined.config else {
        return Err(config::invalid(&name, &examined));
    };
    let now = clock::now();
    let snapshot = Snapshot::compile(Arc::new(config.model), None, now);
    let answer = explain::answer(&snapshot, question, now)?;
    Ok(document::one("Explanation", &answer)?)
}

fn tell(question: &Question, answer: &Value, io: &mut Io<'_>) -> std::io::Result<()> {
    let paint = io.paint();
    let what = match question.sni.as_deref() {
        Some("") => "TLS without server name".to_owned(),
        Some(name) => format!("TLS to server name {name}"),
        None if question.tcp => "an opaque connection".to_owned(),
        None => format!("{} {}", question.method, question.path),
    };
    writeln!(
        io.out,
        "{what} from {} to {}:{}",
        question.from, question.host, question.port,
    )?;
    if answer["destination"] == "outside" {
        let because = harmless(&cell(&answer["because"]));
        return writeln!(io.out, "{} {because}", paint.good("not touched:"));
    }
    if answer["destination"] == "rule" {
        let range = harmless(&cell(&answer["range"]));
        return match answer["action"].as_str() {
            Some("deny") => writeln!(
                io.out,
                "{} by the outbound rule for {range}: ECONNREFUSED from the kernel",
                paint.bad("refused")
            ),
            _ => writeln!(
                io.out,
                "{} the outbound rule for {range} lets it pass",
                paint.good("not touched:")
            ),
        };
    }
    writeln!(
        io.out,
        "service   {} port {}, decided by: {} ({})",
        cell(&answer["service"]),
        cell(&answer["port"]),
        cell(&answer["path"]),
        harmless(&cell(&answer["path_reason"])),
    )?;
    rules(answer, paint, io)?;
    version(answer, io)?;
    limits(answer, paint, io)?;
    outcome(answer, paint, io)
}

fn rules(answer: &Value, paint: Paint, io: &mut Io<'_>) -> std::io::Result<()> {
    for tried in items(&answer["tried"]) {
        let name = harmless(&cell(&tried["rule"]));
        let precedence = cell(&tried["precedence"]);
        match tried["failed"].as_str() {
            Some(why) => {
                writeln!(
                    io.out,
                    "rule      {name} (precedence {precedence}): no, {}",
                    harmless(why)
                )?;
            }
            None => writeln!(
                io.out,
                "rule      {} (precedence {precedence}): {}",
                paint.bold(&name),
                paint.good("matches"),
            )?,
        }
    }
    if answer["rule"].is_null() && items(&answer["tried"]).is_empty() {
        writeln!(io.out, "rule      none on this port: every endpoint serves")?;
    }
    Ok(())
}

fn version(answer: &Value, io: &mut Io<'_>) -> std::io::Result<()> {
    if !items(&answer["targets"]).is_empty() {
        writeln!(
            io.out,
            "targets   {}",
            harmless(&super::columns::targets(answer))
        )?;
    }
    if let Some(next) = answer["next"].as_str() {
        let why = match answer["chosen_by"].as_str() {
            Some(by) => format!("by {}", harmless(by)),
            None => "is next in turn".to_owned(),
        };
        writeln!(io.out, "version   {} {why}", harmless(next))?;
    }
    for action in items(&answer["actions"]) {
        writeln!(io.out, "action    {}", harmless(&cell(action)))?;
    }
    if let Some(balance) = answer["balance"].as_str().filter(|text| !text.is_empty()) {
        writeln!(io.out, "balance   {}", harmless(balance))?;
    }
    for endpoint in items(&answer["endpoints"]) {
        writeln!(
            io.out,
            "endpoint  {} {}, {} in flight, {} requests, {} failures{}",
            cell(&endpoint["address"]),
            cell(&endpoint["state"]),
            cell(&endpoint["in_flight"]),
            cell(&endpoint["requests"]),
            cell(&endpoint["failures"]),
            check(endpoint),
        )?;
    }
    let terms: Vec<String> = items(&answer["terms"]).iter().map(cell).collect();
    if !terms.is_empty() {
        writeln!(io.out, "terms     {}", harmless(&terms.join(", ")))?;
    }
    let (caps, gauges) = (&answer["caps"], &answer["gauges"]);
    if caps.is_object() {
        let pair = |name: &str| {
            format!(
                "{name} {}/{}",
                cell(&gauges[name]),
                cell(&caps[format!("max_{name}")])
            )
        };
        let all = ["connections", "pending", "requests", "retries"]
            .map(pair)
            .join(", ");
        writeln!(io.out, "breaker   {all}")?;
    }
    Ok(())
}

/// What active checks found last of an endpoint, where somebody checks it.
fn check(endpoint: &Value) -> String {
    match endpoint["check"].as_str() {
        Some(found) => format!(", check: {}", harmless(found)),
        None => String::new(),
    }
}

fn limits(answer: &Value, paint: Paint, io: &mut Io<'_>) -> std::io::Result<()> {
    for limit in items(&answer["limits"]) {
        let word = match limit["admitted"].as_bool() {
            Some(true) => paint.good("admits"),
            _ => paint.bad("refuses"),
        };
        let note = limit["note"].as_str().unwrap_or_default();
        let between = if note.is_empty() { "" } else { "; " };
        writeln!(
            io.out,
            "limit     {} [{}] {word}, {} left{between}{}",
            harmless(&cell(&limit["name"])),
            harmless(&cell(&limit["key"])),
            cell(&limit["left"]),
            harmless(note),
        )?;
    }
    Ok(())
}

fn outcome(answer: &Value, paint: Paint, io: &mut Io<'_>) -> std::io::Result<()> {
    let outcome = &answer["outcome"];
    if let Some(refused) = outcome.get("refused") {
        return writeln!(
            io.out,
            "{} {} {}: {}",
            paint.bad("refused:"),
            cell(&refused["status"]),
            cell(&refused["reject"]),
            harmless(&cell(&refused["because"])),
        );
    }
    if let Some(answered) = outcome.get("answered") {
        let (status, by) = (cell(&answered["status"]), cell(&answered["by"]));
        return writeln!(io.out, "{} {status} by {by}", paint.good("answered:"));
    }
    let to = cell(&outcome["forwarded"]["to"]);
    writeln!(io.out, "{} to one of {to}", paint.good("forwarded:"))
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
