//! `mesh explain --live`: one open connection.

use std::net::SocketAddr;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::super::{
    Exit, Io,
    args::PlainFormat,
    client::Agent,
    output::{self, cell, harmless},
};
use crate::{
    admin::{document, explain::Question},
    kernel::view::{ConnRow, View},
};

/// Tells what was decided for a connection, and what would be for a new one.
pub(super) fn explain(
    agent: &Agent,
    conn: &str,
    format: PlainFormat,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    let row = row(agent, conn)?;
    let peer = match (&row, conn.parse()) {
        (Some(row), _) => row.source,
        (None, Ok(peer)) => peer,
        (None, Err(_)) => anyhow::bail!(
            "no connection has the cookie {conn}; `mesh bpf conns -o wide` lists them"
        ),
    };
    let live = agent.get(&format!("/connections?peer={peer}"))?;
    let proxied = live["items"].as_array().cloned().unwrap_or_default();
    anyhow::ensure!(
        row.is_some() || !proxied.is_empty(),
        "no open connection comes from {peer}; `mesh bpf conns` lists them"
    );
    let now = now(agent, row.as_ref(), proxied.first());
    let answer = document::one(
        "LiveExplanation",
        &json!({ "connection": row, "proxy": proxied, "now": now }),
    )?;
    if !output::machine(io.out, format, &answer)? {
        tell(&answer, io)?;
    }
    Ok(Exit::Done)
}

/// The kernel's row. Its maps need root; a proxied connection is known to the agent anyway.
fn row(agent: &Agent, conn: &str) -> anyhow::Result<Option<ConnRow>> {
    let peer: Option<SocketAddr> = conn.parse().ok();
    let cookie: Option<u64> = conn.parse().ok();
    anyhow::ensure!(
        peer.is_some() || cookie.is_some(),
        "{conn:?} is no connection: expected the client's ADDRESS:PORT, or a cookie"
    );
    let view = match View::open(&agent.instance) {
        Ok(view) => view,
        Err(_) if peer.is_some() => return Ok(None),
        Err(error) => return Err(error).context("cookies are in the pinned maps"),
    };
    let is_it = |row: &ConnRow| {
        row.leg == "out" && (Some(row.source) == peer || Some(row.cookie) == cookie)
    };
    Ok(view.conns().into_iter().find(is_it))
}

/// What the rules say of a new opaque connection from the same workload to the same destination.
/// Requests differ: of those only the last decision is known.
fn now(agent: &Agent, row: Option<&ConnRow>, proxied: Option<&Value>) -> Value {
    let http = proxied.is_some_and(|live| cell(&live["protocol"]).starts_with("http"));
    let inbound = proxied.is_some_and(|live| live["direction"] == "inbound");
    let asked = row
        .map(|row| (row.workload.clone(), row.asked.unwrap_or(row.destination)))
        .or_else(|| {
            let live = proxied?;
            let at = live["destination"].as_str()?.parse().ok()?;
            Some((cell(&live["workload"]), at))
        });
    let Some((from, to)) = asked.filter(|_| !http && !inbound) else {
        return Value::Null;
    };
    let question = Question {
        from,
        host: to.ip().to_string(),
        port: to.port(),
        method: "GET".to_owned(),
        path: "/".to_owned(),
        headers: Vec::new(),
        tcp: true,
        sni: None,
    };
    let Ok(body) = serde_json::to_string(&question) else {
        return Value::Null;
    };
    // A workload or service that is gone has no answer: the connection's own stands above.
    agent
        .ask(http::Method::POST, "/explain", body)
        .unwrap_or(Value::Null)
}

fn tell(answer: &Value, io: &mut Io<'_>) -> std::io::Result<()> {
    let row = &answer["connection"];
    if row.is_object() {
        writeln!(
            io.out,
            "kernel    {} -> {} of {}: {}, {}, {} s old",
            cell(&row["source"]),
            cell(if row["asked"].is_null() {
                &row["destination"]
            } else {
                &row["asked"]
            }),
            harmless(&cell(&row["workload"])),
            cell(&row["verdict"]),
            cell(&row["state"]),
            cell(&row["age_s"]),
        )?;
        if row["verdict"] == "kernel" {
            writeln!(
                io.out,
                "chosen    version {} endpoint {}",
                harmless(&cell(&row["version"])),
                cell(&row["endpoint"]),
            )?;
        }
    }
    for live in answer["proxy"].as_array().into_iter().flatten() {
        connection(live, io)?;
    }
    if answer["now"].is_object() {
        writeln!(io.out, "\nA new connection now:")?;
        let now = &answer["now"];
        let paint = io.paint();
        super::rules(now, paint, io)?;
        super::version(now, io)?;
        super::limits(now, paint, io)?;
        super::outcome(now, paint, io)?;
    }
    Ok(())
}

fn connection(live: &Value, io: &mut Io<'_>) -> std::io::Result<()> {
    let paint = io.paint();
    writeln!(
        io.out,
        "proxy     {} {} -> {} of {}: {}, {} ms old, {} requests{}",
        cell(&live["direction"]),
        cell(&live["peer"]),
        cell(&live["destination"]),
        harmless(&cell(&live["workload"])),
        cell(&live["protocol"]),
        cell(&live["age_ms"]),
        cell(&live["requests"]),
        if live["idle"] == true { ", idle" } else { "" },
    )?;
    let last = &live["last"];
    if !last.is_object() {
        return writeln!(io.out, "decision  none yet");
    }
    let state = match last["current"] == true {
        true => "in force",
        false => "replaced since",
    };
    writeln!(
        io.out,
        "decision  {} ms ago by configuration {} ({state})",
        cell(&last["age_ms"]),
        cell(&last["generation"]),
    )?;
    let rule = match last["rule"].as_str() {
        Some(rule) => paint.bold(&harmless(rule)),
        None if last["current"] == true => "none on this port, or none matched".to_owned(),
        None => "forgotten with its configuration".to_owned(),
    };
    writeln!(io.out, "rule      {rule}")?;
    writeln!(
        io.out,
        "target    {} version {} endpoint {}",
        harmless(&cell(&last["service"])),
        harmless(&cell(&last["version"])),
        cell(&last["endpoint"]),
    )?;
    if let Some(reject) = last["reject"].as_str() {
        writeln!(io.out, "{} {}", paint.bad("ended:"), harmless(reject))
    } else if last["status"].is_u64() {
        writeln!(io.out, "answered  {}", cell(&last["status"]))
    } else {
        Ok(())
    }
}
