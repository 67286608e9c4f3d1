//! How answers are printed: one list of rows, four formats.
//!
//! Rows are JSON values, whether they came from an agent's socket or from a struct at hand, so
//! that a table and `-o json` can't say different things.

use std::io::{self, Write};

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::args::{OutputArgs, PlainFormat};

/// The formats of `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For people with wide terminals.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// One column of a table.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// Its head.
    pub(super) head: &'static str,
    /// Its text, from the row.
    pub(super) text: fn(&Value) -> String,
    /// Whether only `-o wide` shows it.
    pub(super) wide: bool,
    /// Whether it is a number.
    pub(super) right: bool,
}

/// Prints a list document (`{apiVersion, kind, items}`).
pub(super) fn list(
    out: &mut dyn Write,
    args: OutputArgs,
    columns: &[Column],
    document: &Value,
) -> anyhow::Result<()> {
    let wide = match args.output {
        Format::Table => false,
        Format::Wide => true,
        Format::Json => return json(out, document),
        Format::Yaml => return yaml(out, document),
    };
    let rows = document["items"]
        .as_array()
        .map_or(&[] as &[Value], Vec::as_slice);
    let columns: Vec<&Column> = columns
        .iter()
        .filter(|column| wide || !column.wide)
        .collect();
    Ok(table(out, &columns, rows, !args.no_headers)?)
}

/// Prints a document for machines; whether it did, or the caller must print text.
pub(super) fn machine(
    out: &mut dyn Write,
    format: PlainFormat,
    document: &Value,
) -> anyhow::Result<bool> {
    match format {
        PlainFormat::Text => return Ok(false),
        PlainFormat::Json => json(out, document)?,
        PlainFormat::Yaml => yaml(out, document)?,
    }
    Ok(true)
}

/// Prints JSON, indented.
pub(super) fn json(out: &mut dyn Write, document: &Value) -> anyhow::Result<()> {
    Ok(writeln!(out, "{document:#}")?)
}

fn yaml(out: &mut dyn Write, document: &Value) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(document).context("can't write this as YAML")?;
    Ok(writeln!(out, "{}", text.trim_end())?)
}

fn table(
    out: &mut dyn Write,
    columns: &[&Column],
    rows: &[Value],
    headers: bool,
) -> io::Result<()> {
    if rows.is_empty() && !headers {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if headers {
        table.set_header(columns.iter().map(|column| column.head));
    }
    for row in rows {
        table.add_row(columns.iter().map(|column| harmless(&(column.text)(row))));
    }
    for (column, drawn) in columns.iter().zip(table.column_iter_mut()) {
        drawn.set_padding((0, 2));
        if column.right {
            drawn.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{}", table.trim_fmt())
}

/// Text without control characters: names come from files and maps, and go to terminals.
pub(super) fn harmless(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { '\u{fffd}' } else { char })
        .collect()
}

/// A value in a table: absent is `-`, lists and maps have commas and no spaces.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(fields) if fields.is_empty() => "-".into(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name}={}", cell(value)))
            .collect::<Vec<_>>()
            .join(","),
    }
}

/// A duration as people say it: `850ms`, `12s`, `3m20s`, `5h02m`, `9d4h`.
pub(super) fn age(seconds: f64) -> String {
    // Ages are not negative and below the age of the machine.
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 => format!("{}ms", (seconds.max(0.0) * 1_000.0) as u64),
        1..60 => format!("{whole}s"),
        60..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Colours, when they are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(super) fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn age_changes_its_unit_where_people_do() {
        let said = [
            0.0, 0.85, 1.0, 59.9, 60.0, 3_599.0, 3_600.0, 86_399.0, 86_400.0, -1.0,
        ]
        .map(age);
        assert_eq!(
            said,
            [
                "0ms", "850ms", "1s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d0h", "0ms"
            ]
        );
    }

    #[test]
    fn cell_of_what_is_absent_is_a_dash() {
        for absent in [json!(null), json!(""), json!([]), json!({})] {
            assert_eq!(cell(&absent), "-", "{absent}");
        }
        assert_eq!(cell(&json!(["a", 1, true])), "a,1,yes");
        assert_eq!(cell(&json!({"app": "x", "v": "1"})), "app=x,v=1");
    }

    #[test]
    fn table_keeps_control_characters_from_the_terminal() {
        let column = Column {
            head: "NAME",
            text: |row| cell(row),
            wide: false,
            right: false,
        };
        let mut out = Vec::new();
        table(&mut out, &[&column], &[json!("a\u{1b}[2Jb\nc")], false).expect("memory");
        assert_eq!(String::from_utf8_lossy(&out), "a\u{fffd}[2Jb\u{fffd}c\n");
    }
}
