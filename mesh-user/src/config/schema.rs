//! The JSON Schema of the file, for editors and for whoever makes such files.
//!
//! It takes exactly what the check of form takes, except that it can't say: ranges of durations
//! and of sizes in text (in `description`), host bits of ranges, `.` and `..` in cgroup paths,
//! equality of header names without case, and keys that are there twice.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    fields::{API_VERSION, ROOT},
    shape::{Absent, Field, Group, Object, Shape},
    source::Source,
    text::Text,
    tree,
};

/// The JSON Schema (draft 2020-12) of the file.
pub fn schema() -> Value {
    let mut defs = BTreeMap::new();
    let mut root = object(&ROOT, &mut defs);
    if let Value::Object(map) = &mut root {
        map.insert(
            "$schema".into(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        map.insert(
            "$id".into(),
            json!(format!("urn:{}", API_VERSION.replace('/', ":"))),
        );
        map.insert("$defs".into(), json!(defs));
    }
    root
}

fn object(object: &'static Object, defs: &mut BTreeMap<String, Value>) -> Value {
    let mut properties = Map::new();
    for field in object.fields {
        properties.insert(field.name.to_owned(), property(field, defs));
    }
    let required: Vec<_> = object
        .fields
        .iter()
        .filter(|field| matches!(field.absent, Absent::Required))
        .map(|field| field.name)
        .collect();
    let mut out = json!({
        "title": object.name,
        "description": object.doc,
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "required": required,
    });
    for group in object.groups {
        match group {
            Group::ExactlyOne(names) => {
                out["oneOf"] = names
                    .iter()
                    .map(|name| json!({"required": [name]}))
                    .collect::<Vec<_>>()
                    .into();
            }
            Group::AtLeastOne(names) => {
                out["anyOf"] = names
                    .iter()
                    .map(|name| json!({"required": [name]}))
                    .collect::<Vec<_>>()
                    .into();
            }
            Group::AtMostOne(names) => out["not"] = json!({"required": names}),
        }
    }
    out
}

fn property(field: &'static Field, defs: &mut BTreeMap<String, Value>) -> Value {
    let mut out = shape(&field.shape, defs);
    let mut doc = field.doc.to_owned();
    match &field.absent {
        Absent::Required => {}
        Absent::Default(value, reason) => {
            out["default"] = default(value);
            doc.push_str(&format!(" Default: {value} ({reason})."));
        }
        Absent::Means(what) => doc.push_str(&format!(" When absent: {what}.")),
    }
    if let Some(range) = range(&field.shape) {
        doc.push_str(&format!(" Takes {range}."));
    }
    out["description"] = json!(doc);
    out
}

/// The range of a value that is written as text, which no pattern can say.
fn range(shape: &Shape) -> Option<String> {
    match shape {
        Shape::Text(text @ Text::Duration(..)) => Some(text.describe()),
        Shape::Size { .. } => Some(shape.describe()),
        _ => None,
    }
}

/// A default as JSON: it is written as it could stand in the file.
fn default(text: &str) -> Value {
    match tree::parse(&Source::new("default", text)) {
        Ok(Some(node)) => plain(&node),
        _ => json!(text),
    }
}

/// A tree as JSON.
pub(crate) fn plain(node: &tree::Node) -> Value {
    match &node.value {
        tree::Value::Null => Value::Null,
        tree::Value::Bool(value) => json!(value),
        tree::Value::Int(value) => {
            i64::try_from(*value).map_or_else(|_| json!(*value as f64), Value::from)
        }
        tree::Value::Float => json!(0.5),
        tree::Value::Text(text) => json!(text),
        tree::Value::List(items) => items.iter().map(plain).collect(),
        tree::Value::Map(entries) => entries
            .iter()
            .map(|(key, node)| (key.text.to_string(), plain(node)))
            .collect(),
    }
}

fn shape(of: &'static Shape, defs: &mut BTreeMap<String, Value>) -> Value {
    match of {
        Shape::Object(inner) => {
            if !defs.contains_key(inner.name) {
                // First a placeholder, so that a description that holds itself would end.
                defs.insert(inner.name.to_owned(), Value::Null);
                let made = object(inner, defs);
                defs.insert(inner.name.to_owned(), made);
            }
            json!({"$ref": format!("#/$defs/{}", inner.name)})
        }
        Shape::List {
            of,
            min,
            max,
            many_need,
        } => {
            let mut out = json!({"type": "array", "items": shape(of, defs), "minItems": min, "maxItems": max});
            if let Some(name) = many_need {
                out["anyOf"] = json!([{"maxItems": 1}, {"items": {"required": [name]}}]);
            }
            out
        }
        Shape::OneOrMore { of, max } => {
            let one = shape(of, defs);
            json!({"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": max}]})
        }
        Shape::Map { key, of, max } => json!({
            "type": "object",
            "propertyNames": text(key),
            "additionalProperties": shape(of, defs),
            "maxProperties": max,
        }),
        Shape::Either(short, long) => json!({"anyOf": [shape(short, defs), shape(long, defs)]}),
        Shape::Text(kind) => text(kind),
        Shape::Int { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Shape::Size { min, max } => json!({"anyOf": [
            {"type": "integer", "minimum": min, "maximum": max},
            {"type": "string", "pattern": "^[0-9]{1,18}(?:GiB|MiB|KiB|B)$"},
        ]}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Choice([(only, _)]) => json!({"type": "string", "const": only}),
        Shape::Choice(words) => {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            json!({"type": "string", "enum": words})
        }
    }
}

fn text(kind: &Text) -> Value {
    let (min, max) = kind.length();
    let mut out = json!({"type": "string", "minLength": min, "maxLength": max});
    if let Some(pattern) = kind.pattern() {
        out["pattern"] = json!(pattern);
    }
    match kind {
        Text::Address => out["anyOf"] = json!([{"format": "ipv4"}, {"format": "ipv6"}]),
        Text::Regex => out["format"] = json!("regex"),
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests;
