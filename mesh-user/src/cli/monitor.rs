//! `mesh monitor`: what an operator may have to act on, as it happens.

use http::Method;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Exit, Io,
    args::{MonitorArgs, MonitorFormat},
    client::{Agent, ClientError},
    output::harmless,
};
use crate::admin::{
    document,
    events::{EventBatch, EventRow},
};

/// Prints events until interrupted, or until the agent stops: both are its ordinary end.
pub(super) fn monitor(agent: &Agent, args: &MonitorArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(watch(agent, args, io))
}

async fn watch(agent: &Agent, args: &MonitorArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    // Before anything is said: whoever reads that may interrupt at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Nobody to watch is a failure; from here on an agent that goes is the end.
    let mut seen = ask(agent, None).await?;
    io.say("watching; interrupt with ^C");
    loop {
        let batch = tokio::select! {
            batch = follow(agent, &seen) => batch,
            _ = interrupt.recv() => return Ok(Exit::Done),
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(ClientError::NoAgent { .. } | ClientError::Broken(_)) => {
                io.say("the agent has stopped");
                return Ok(Exit::Done);
            }
            Err(error) => return Err(error.into()),
        };
        if batch.epoch != seen.epoch {
            changed(args, io)?;
        }
        if batch.lost > 0 {
            lost(batch.lost, args, io)?;
        }
        for row in batch.items.iter().filter(|row| wanted(row, args)) {
            print(row, args, io)?;
        }
        // Whoever reads the other end of a pipe wants each event when it happens.
        io.out.flush()?;
        seen = batch;
    }
}

/// What came after a batch. An agent that leaves after a takeover ends its answers: then the next
/// one is asked.
async fn follow(agent: &Agent, seen: &EventBatch) -> Result<EventBatch, ClientError> {
    match ask(agent, Some(seen)).await {
        Err(ClientError::Broken(_)) => ask(agent, Some(seen)).await,
        answer => answer,
    }
}

async fn ask(agent: &Agent, seen: Option<&EventBatch>) -> Result<EventBatch, ClientError> {
    let path = match seen {
        // An agent of before there were epochs.
        Some(seen) if seen.epoch == 0 => format!("/events?from={}", seen.next),
        Some(seen) => format!("/events?from={}&epoch={}", seen.next, seen.epoch),
        None => "/events".to_owned(),
    };
    let answer = agent.exchange(Method::GET, &path, Bytes::new()).await?;
    serde_json::from_value(answer).map_err(|error| ClientError::Broken(error.to_string()))
}

/// Whether the filters let it through; several values of one filter are alternatives.
fn wanted(row: &EventRow, args: &MonitorArgs) -> bool {
    let one_of = |wanted: &[String], given: &str| {
        wanted.is_empty() || wanted.iter().any(|wanted| wanted == given)
    };
    let workload = match (&args.workload, &row.workload) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wanted), Some(name)) => name == wanted || *name == format!("default/{wanted}"),
    };
    workload && one_of(&args.kind, &row.kind) && one_of(&args.reason, &row.reason)
}

/// Another agent answers: what follows is all that it told since its start.
fn changed(args: &MonitorArgs, io: &mut Io<'_>) -> anyhow::Result<()> {
    match args.output {
        MonitorFormat::Text => io.say(
            "another agent answers: its events since its start follow, the last ones of the agent \
             before may be missing",
        ),
        MonitorFormat::Json => {
            let line = document::one("AgentChanged", &serde_json::json!({}))?;
            writeln!(io.out, "{line}")?;
        }
    }
    Ok(())
}

fn lost(count: u64, args: &MonitorArgs, io: &mut Io<'_>) -> anyhow::Result<()> {
    match args.output {
        MonitorFormat::Text => io.say(&format!("{count} events lost: this reader is too slow")),
        MonitorFormat::Json => {
            let line = document::one("Lost", &serde_json::json!({ "count": count }))?;
            writeln!(io.out, "{line}")?;
        }
    }
    Ok(())
}

fn print(row: &EventRow, args: &MonitorArgs, io: &mut Io<'_>) -> anyhow::Result<()> {
    match args.output {
        MonitorFormat::Json => writeln!(io.out, "{}", document::one("Event", row)?)?,
        MonitorFormat::Text => writeln!(io.out, "{}", harmless(&line(row)))?,
    }
    Ok(())
}

/// `2026-11-24T22:05:23.515Z refused refuse_rule default/client - -> 10.0.0.1:80 tgid=7`.
fn line(row: &EventRow) -> String {
    let place = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut line = format!(
        "{} {:<12} {:<20} {}  {} -> {}",
        time(row.time),
        row.kind,
        row.reason,
        place(&row.workload),
        place(&row.source),
        place(&row.destination)
    );
    for (name, value) in [
        ("service", row.service.clone().map(Value::from)),
        ("tgid", row.tgid.map(Value::from)),
        ("detail", row.detail.clone().map(Value::from)),
    ] {
        match value {
            Some(Value::String(text)) => line += &format!(" {name}={text}"),
            Some(value) => line += &format!(" {name}={value}"),
            None => {}
        }
    }
    line
}

fn time(seconds: f64) -> String {
    // In range: it comes from the agent's clock, and anything else is printed as the epoch.
    let millis = (seconds * 1_000.0) as i64;
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> EventRow {
        EventRow {
            seq: 1,
            time: 1_700_000_000.25,
            kind: "refused".into(),
            reason: "refuse_rule".into(),
            workload: Some("default/client".into()),
            destination: Some("10.0.0.1:80".into()),
            tgid: Some(7),
            ..EventRow::default()
        }
    }

    #[test]
    fn filters_are_all_met_or_the_event_is_left_out() {
        let args = |workload: Option<&str>, kind: &[&str], reason: &[&str]| MonitorArgs {
            workload: workload.map(str::to_owned),
            kind: kind.iter().map(|&text| text.to_owned()).collect(),
            reason: reason.iter().map(|&text| text.to_owned()).collect(),
            output: MonitorFormat::Text,
        };
        for good in [
            args(None, &[], &[]),
            args(Some("client"), &[], &[]),
            args(
                Some("default/client"),
                &["miss", "refused"],
                &["refuse_rule"],
            ),
        ] {
            assert!(wanted(&row(), &good), "{good:?}");
        }
        for bad in [
            args(Some("other"), &[], &[]),
            args(None, &["miss"], &[]),
            args(None, &["refused"], &["refuse_mark"]),
        ] {
            assert!(!wanted(&row(), &bad), "{bad:?}");
        }
    }

    #[test]
    fn line_names_what_is_known_and_nothing_else() {
        assert_eq!(
            line(&row()),
            "2023-11-14T22:13:20.250Z refused      refuse_rule          default/client  - -> \
             10.0.0.1:80 tgid=7"
        );
    }
}
