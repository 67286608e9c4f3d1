//! The envelope of everything that machines read: `apiVersion`, `kind`, and the content.

use serde::Serialize;
use serde_json::{Value, json};

/// Version of the machine-readable output.
pub const API_VERSION: &str = "mesh/v1alpha1";

/// A list: `kind` ends in `List`.
///
/// # Errors
/// A row can't be serialized: a bug, but one that must not take the agent down.
pub fn list<T: Serialize>(kind: &str, rows: &[T]) -> Result<Value, serde_json::Error> {
    Ok(json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "items": serde_json::to_value(rows)?,
    }))
}

/// One thing: its fields stand beside `apiVersion` and `kind`, or under `value` when it is no
/// object.
///
/// # Errors
/// As [`list`].
pub fn one<T: Serialize>(kind: &str, thing: &T) -> Result<Value, serde_json::Error> {
    let mut document = serde_json::Map::new();
    document.insert("apiVersion".into(), API_VERSION.into());
    document.insert("kind".into(), kind.into());
    match serde_json::to_value(thing)? {
        Value::Object(fields) => document.extend(fields),
        other => {
            document.insert("value".into(), other);
        }
    }
    Ok(Value::Object(document))
}
