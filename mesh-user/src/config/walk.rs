//! Checks a tree against the description of the file, and reports all that does not fit.

use std::collections::HashSet;

mod scalar;

use scalar::{report_type, walk_scalar, wrong_type};

use super::{
    collect::Collector,
    locate::{head, key_span},
    path::Trail,
    report::Code,
    shape::{Absent, Group, Object, Shape},
    source::Span,
    suggest,
    text::{self, Text},
    tree::{Key, Node, Value},
};

/// Checks `node`, which stands at `trail`.
pub(crate) fn walk(node: &Node, shape: &'static Shape, trail: Trail<'_>, out: &mut Collector) {
    match shape {
        Shape::Object(object) => walk_object(node, object, trail, out),
        Shape::List {
            of,
            min,
            max,
            many_need,
        } => {
            let Value::List(items) = &node.value else {
                return wrong_type(node, shape, trail, out);
            };
            count(items.len(), *min, *max, "items", node.span, trail, out);
            walk_items(items, of, trail, out);
            if let (Some(name), 2..) = (many_need, items.len()) {
                need_in_each(items, name, trail, out);
            }
        }
        Shape::OneOrMore { of, max } => match &node.value {
            Value::List(items) => {
                count(items.len(), 1, *max, "items", node.span, trail, out);
                walk_items(items, of, trail, out);
            }
            // Item 0, as in the model: the checks of meaning name it so.
            _ => walk(node, of, trail.at(0), out),
        },
        Shape::Map { key, of, max } => walk_map(node, (key, of, *max), shape, trail, out),
        Shape::Either(short, long) => match (&node.value, *long) {
            (Value::Map(_), Shape::Object(_)) | (Value::Int(_), Shape::Int { .. }) => {
                walk(node, long, trail, out);
            }
            (Value::Text(_), _) => walk(node, short, trail, out),
            _ => wrong_type(node, shape, trail, out),
        },
        _ => walk_scalar(node, shape, trail, out),
    }
}

fn walk_items(items: &[Node], of: &'static Shape, trail: Trail<'_>, out: &mut Collector) {
    for (index, item) in items.iter().enumerate() {
        walk(item, of, trail.at(index), out);
    }
}

/// Checks a mapping with known fields.
pub(crate) fn walk_object(
    node: &Node,
    object: &'static Object,
    trail: Trail<'_>,
    out: &mut Collector,
) {
    let Value::Map(entries) = &node.value else {
        let expected = format!("a mapping with the fields {}", names(object));
        return report_type(node, expected, trail, out);
    };
    duplicates(entries, |key| key.to_owned(), trail, out);
    let mut seen = HashSet::new();
    for (key, value) in entries {
        let here = trail.key(&key.text);
        match object.field(&key.text) {
            // The first of duplicates counts, and the others are refused already.
            Some(field) if seen.insert(field.name) => walk(value, &field.shape, here, out),
            Some(_) => {}
            None => unknown(key, object, here, out),
        }
    }
    for field in object.fields {
        if matches!(field.absent, Absent::Required) && !seen.contains(field.name) {
            let message = format!("the field `{}` is missing", field.name);
            let expected = Some(format!("`{}`: {}", field.name, field.shape.describe()));
            out.error(
                Code::MissingField,
                head(node),
                trail.key(field.name).path(),
                message,
                expected,
            );
        }
    }
    for group in object.groups {
        walk_group(node, group, &seen, trail, out);
    }
}

fn unknown(key: &Key, object: &'static Object, trail: Trail<'_>, out: &mut Collector) {
    let name = text::shown(&key.text);
    if &*key.text == "<<" {
        let message = "merge keys are not part of YAML 1.2".to_owned();
        let expected = Some("the fields themselves".to_owned());
        return out.error(Code::YamlKey, key.span, trail.path(), message, expected);
    }
    let known = object.fields.iter().map(|field| field.name);
    let expected = match suggest::nearest(&key.text, known) {
        Some(near) => format!("`{near}`; known here: {}", names(object)),
        None => format!("one of {}", names(object)),
    };
    let message = format!("unknown field `{name}`");
    out.error(
        Code::UnknownField,
        key.span,
        trail.path(),
        message,
        Some(expected),
    );
}

fn names(object: &Object) -> String {
    object
        .fields
        .iter()
        .map(|field| field.name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn walk_group(
    node: &Node,
    group: &Group,
    seen: &HashSet<&'static str>,
    trail: Trail<'_>,
    out: &mut Collector,
) {
    // Whether there may be none, and whether there may be several.
    let (all, exactly, several) = match group {
        Group::ExactlyOne(all) => (*all, true, false),
        Group::AtMostOne(all) => (*all, false, false),
        Group::AtLeastOne(all) => (*all, true, true),
    };
    let given: Vec<_> = all
        .iter()
        .filter(|name| seen.contains(**name))
        .copied()
        .collect();
    let list = all.join(", ");
    match (given.as_slice(), exactly) {
        ([], true) => {
            let message = format!("one of {list} is missing");
            let expected = Some(if several {
                format!("at least one of {list}")
            } else {
                format!("exactly one of {list}")
            });
            out.error(
                Code::MissingField,
                head(node),
                trail.path(),
                message,
                expected,
            );
        }
        ([first, second, ..], _) if !several => {
            let span = key_span(node, second).unwrap_or_else(|| head(node));
            let message = format!("`{second}` and `{first}` exclude each other");
            let expected = Some(format!(
                "{} one of {list}",
                if exactly { "exactly" } else { "at most" }
            ));
            out.error(
                Code::Conflict,
                span,
                trail.key(second).path(),
                message,
                expected,
            );
        }
        _ => {}
    }
}

fn walk_map(
    node: &Node,
    (key_kind, of, max): (&'static Text, &'static Shape, usize),
    shape: &'static Shape,
    trail: Trail<'_>,
    out: &mut Collector,
) {
    let Value::Map(entries) = &node.value else {
        return wrong_type(node, shape, trail, out);
    };
    count(entries.len(), 0, max, "entries", node.span, trail, out);
    // Field names are equal without case (RFC 9110 §5.1).
    let folds = *key_kind == Text::HeaderName;
    let fold = |key: &str| {
        if folds {
            key.to_ascii_lowercase()
        } else {
            key.to_owned()
        }
    };
    duplicates(entries, fold, trail, out);
    for (key, value) in entries {
        let here = trail.key(&key.text);
        if let Err(fault) = key_kind.check(&key.text) {
            let message = format!("the key {}", fault.message);
            let expected = fault.expected.or_else(|| Some(key_kind.describe()));
            out.error(fault.code, key.span, here.path(), message, expected);
        }
        walk(value, of, here, out);
    }
}

fn duplicates(
    entries: &[(Key, Node)],
    fold: impl Fn(&str) -> String,
    trail: Trail<'_>,
    out: &mut Collector,
) {
    let mut seen = HashSet::with_capacity(entries.len());
    for (key, _) in entries {
        if !seen.insert(fold(&key.text)) {
            let message = format!("the key `{}` stands here twice", text::shown(&key.text));
            let expected = Some("each key once".to_owned());
            out.error(
                Code::DuplicateKey,
                key.span,
                trail.key(&key.text).path(),
                message,
                expected,
            );
        }
    }
}

fn need_in_each(items: &[Node], name: &'static str, trail: Trail<'_>, out: &mut Collector) {
    for (index, item) in items.iter().enumerate() {
        if matches!(item.value, Value::Map(_)) && item.get(name).is_none() {
            let message = format!("`{name}` is missing: there are {} here", items.len());
            let expected = Some(format!("`{name}` in each, or one alone without it"));
            let path = trail.at(index).key(name).path();
            out.error(Code::MissingField, head(item), path, message, expected);
        }
    }
}

fn count(
    length: usize,
    min: usize,
    max: usize,
    what: &str,
    span: Span,
    trail: Trail<'_>,
    out: &mut Collector,
) {
    if (min..=max).contains(&length) {
        return;
    }
    let message = format!("there are {length} {what}");
    let expected = Some(if length < min {
        format!("at least {min}")
    } else {
        format!("at most {max}")
    });
    out.error(Code::BadCount, span, trail.path(), message, expected);
}
