//! `docs/CONFIG.md`, made from the description of the file.

use std::fmt::Write as _;

use super::{
    fields::ROOT,
    report::Code,
    shape::{Absent, Field, Group, Object, Shape},
    text::Text,
};

const HEAD: &str = "\
# Configuration

Generated from `mesh-user/src/config/fields` by `config::reference_markdown`; do not edit. \
`MESH_BLESS=1 cargo test -p mesh-user --test unit_config` rewrites it.

`mesh run --config FILE` reads one YAML file of at most 16 MiB (YAML 1.2: `on` and `yes` are text; \
no tags, no merge keys). Further documents (`---`) of it, and the files that `gateway-api` names, are \
objects of Gateway API as Kubernetes has them ([ROUTING.md](ROUTING.md#gateway-api)). `mesh validate -f FILE` checks it, `mesh schema` prints its \
JSON Schema, and editors with the YAML language server use the schema through the first line \
`# yaml-language-server: $schema=mesh.schema.json`. Examples are in [`examples/`](../examples).

* Every problem of a file is reported at once, with `file:line:column`, an excerpt, the field and \
what would be right. Unknown fields are errors: what is not implemented is refused, never ignored.
* The file is reloaded when it changes. A file with an error changes nothing: the last good one \
stays in force, and `mesh status` says so. Settings that say «needs a restart» are kept until then.
* Durations are whole numbers with units, the larger first: `1h`, `1m30s`, `15s`, `250ms`, `50us`. \
Sizes are numbers of bytes, or `512B`, `64KiB`, `1MiB`, `1GiB`.
* Text that looks like a number needs quotes: `tags: {version: \"2\"}`.

";

/// `docs/CONFIG.md`: every field with type, range, default and reason.
pub fn reference_markdown() -> String {
    let mut out = HEAD.to_owned();
    let mut done = Vec::new();
    section(&ROOT, "The file", &mut done, &mut out);
    errors(&mut out);
    out
}

fn section(object: &'static Object, title: &str, done: &mut Vec<&'static str>, out: &mut String) {
    if done.contains(&object.name) {
        return;
    }
    done.push(object.name);
    // Writing to a String can't fail.
    let _ = write!(out, "## {title}\n\n{}\n\n", object.doc);
    for group in object.groups {
        let (what, names) = match group {
            Group::ExactlyOne(names) => ("Exactly one of", names),
            Group::AtMostOne(names) => ("At most one of", names),
            Group::AtLeastOne(names) => ("At least one of", names),
        };
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = write!(out, "{what} {}.\n\n", names.join(", "));
    }
    out.push_str("| field | takes | default | what it does |\n| --- | --- | --- | --- |\n");
    for field in object.fields {
        row(field, out);
    }
    out.push('\n');
    for field in object.fields {
        if let Some(inner) = inner(&field.shape) {
            section(
                inner,
                &format!("{} (`{}`)", inner.name, field.name),
                done,
                out,
            );
        }
    }
}

/// The mapping behind a shape.
fn inner(shape: &Shape) -> Option<&'static Object> {
    match shape {
        Shape::Object(object) => Some(object),
        Shape::List { of, .. } | Shape::OneOrMore { of, .. } | Shape::Map { of, .. } => inner(of),
        Shape::Either(_, long) => inner(long),
        _ => None,
    }
}

fn row(field: &Field, out: &mut String) {
    let mut doc = field.doc.to_owned();
    if let Some(words) = words(&field.shape) {
        doc.push(' ');
        doc.push_str(&words);
    }
    let absent = match &field.absent {
        Absent::Required => "**required**".to_owned(),
        Absent::Default(value, "") => format!("`{value}`"),
        Absent::Default(value, reason) => format!("`{value}`: {reason}"),
        Absent::Means(what) => (*what).to_owned(),
    };
    let cells = [
        format!("`{}`", field.name),
        takes(&field.shape),
        absent,
        doc,
    ];
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

/// The words of a choice with their meanings.
fn words(shape: &Shape) -> Option<String> {
    match shape {
        Shape::Choice([_]) => None,
        Shape::Choice(words) => {
            let words: Vec<_> = words
                .iter()
                .map(|(word, meaning)| format!("`{word}`: {meaning}"))
                .collect();
            Some(format!("{}.", words.join("; ")))
        }
        Shape::List { of, .. } | Shape::OneOrMore { of, .. } => words(of),
        _ => None,
    }
}

fn takes(shape: &Shape) -> String {
    match shape {
        Shape::Object(object) => format!("mapping [{}]({})", object.name, anchor(object)),
        Shape::List { of, min, max, .. } => {
            format!("list of {min} to {max}: {}", takes(of))
        }
        Shape::OneOrMore { of, max } => format!("{}, or a list of 1 to {max}", takes(of)),
        Shape::Map { key, of, max } => {
            format!(
                "mapping of at most {max} from {} to {}",
                brief(&key.describe()),
                takes(of)
            )
        }
        Shape::Either(short, long) => format!("{}, or {}", takes(short), takes(long)),
        Shape::Choice([(only, _)]) => format!("`{only}`"),
        Shape::Choice(words) => {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            words.join(", ")
        }
        Shape::Text(Text::RateKey) => "an attribute".to_owned(),
        _ => brief(&shape.describe()),
    }
}

/// A description without its examples, which the sentence beside it has.
fn brief(description: &str) -> String {
    let ends = [":", ", such as", " (", "; "];
    let end = ends.iter().filter_map(|end| description.find(end)).min();
    description
        .get(..end.unwrap_or(description.len()))
        .unwrap_or(description)
        .to_owned()
}

/// GitHub's anchor of an object's section.
fn anchor(object: &Object) -> String {
    let title = match field_of(&ROOT, object) {
        Some(name) => format!("{} {name}", object.name),
        None => "the file".to_owned(),
    };
    format!("#{}", title.to_lowercase().replace(' ', "-"))
}

/// The first field that leads to an object, in the order of the sections.
fn field_of(from: &'static Object, wanted: &Object) -> Option<&'static str> {
    from.fields.iter().find_map(|field| {
        let inner = inner(&field.shape)?;
        if inner.name == wanted.name {
            Some(field.name)
        } else {
            field_of(inner, wanted)
        }
    })
}

fn errors(out: &mut String) {
    out.push_str("## Problems\n\nEach has a name, which `-o json` gives as `code`.\n\n");
    out.push_str("| code | meaning |\n| --- | --- |\n");
    for code in Code::ALL {
        let _ = writeln!(out, "| `{}` | {} |", code.name(), code.meaning());
    }
}
