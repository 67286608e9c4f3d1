//! One document: what it is, its metadata, its `spec`.

use super::{
    Document, Kind, check,
    object::{GROUP, Meta},
    text,
};
use crate::config::{
    collect::Collector,
    locate::{head, key_span, locate},
    path::{FieldPath, Trail},
    report::Code,
    source::Span,
    suggest,
    text::shown,
    tree::{Node, Value},
    walk,
};

/// The objects of lists, as `kubectl get -o yaml` prints them, in their place.
pub(super) fn flatten(documents: Vec<Document>) -> Vec<Document> {
    let mut out = Vec::new();
    for Document { file, node } in documents {
        let is_list = node.text("kind") == Some("List") && node.text("apiVersion") == Some("v1");
        let mut node = node;
        node.drop_nulls();
        let items = match &mut node.value {
            Value::Map(entries) if is_list => entries
                .iter_mut()
                .find(|(key, _)| &*key.text == "items")
                .and_then(|(_, items)| match &mut items.value {
                    Value::List(items) => Some(std::mem::take(items)),
                    _ => None,
                }),
            _ => None,
        };
        match items {
            Some(items) => out.extend(items.into_iter().map(|node| Document { file, node })),
            None => out.push(Document { file, node }),
        }
    }
    out
}

/// Checks one object. None: it is none of ours.
pub(super) fn read(node: &Node, out: &mut Collector) -> Option<(Kind, Meta, Node)> {
    let kind = kind(node, out)?;
    let Value::Map(entries) = &node.value else {
        return None;
    };
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let mut seen: Vec<&str> = Vec::new();
    for (key, _) in entries {
        let path = FieldPath::default().key(&key.text);
        if !known.contains(&&*key.text) {
            let message = format!("unknown field `{}`", shown(&key.text));
            let near = suggest::nearest(&key.text, known).map(|near| format!("`{near}`; "));
            let expected = format!("{}one of {}", near.unwrap_or_default(), known.join(", "));
            out.error(Code::UnknownField, key.span, path, message, Some(expected));
        } else if seen.contains(&&*key.text) {
            let message = format!("the key `{}` stands here twice", key.text);
            out.error(
                Code::DuplicateKey,
                key.span,
                path,
                message,
                Some("each key once".to_owned()),
            );
        }
        seen.push(&key.text);
    }
    let meta = meta(node, out);
    let root = Trail::ROOT;
    let at = root.key("spec");
    let Some(spec) = node.get("spec") else {
        let message = "the field `spec` is missing".to_owned();
        let expected = Some(format!("`spec` of a {}", kind.name()));
        out.error(Code::MissingField, head(node), at.path(), message, expected);
        return None;
    };
    walk::walk_object(spec, kind.shape(), at, out);
    check::spec(kind, spec, at, out);
    Some((kind, meta, spec.clone()))
}

/// What a document is; reports what is not ours.
fn kind(node: &Node, out: &mut Collector) -> Option<Kind> {
    let text = |name| node.text(name).unwrap_or_default();
    let (version, name) = (text("apiVersion"), text("kind"));
    let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let names = names.join(", ");
    let at = |field: &str| {
        let value = node.get(field).map(|value| value.span);
        let span: Span = value
            .or_else(|| key_span(node, field))
            .unwrap_or_else(|| head(node));
        (span, FieldPath::default().key(field))
    };
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let found = Kind::ALL.iter().find(|kind| kind.name() == name).copied();
    let Some(kind) = found.filter(|_| group == GROUP) else {
        let (span, path) = at("kind");
        let of = if group.is_empty() {
            String::new()
        } else {
            format!(" of {}", shown(group))
        };
        let message = if name.is_empty() {
            "this is no Kubernetes object: it has no `kind`".to_owned()
        } else {
            format!("`{}`{of} is no kind that is taken", shown(name))
        };
        let expected = format!("{names} of {GROUP}");
        out.error(Code::UnknownKind, span, path, message, Some(expected));
        return None;
    };
    if !kind.versions().contains(&version) {
        let (span, path) = at("apiVersion");
        let message = format!("version `{}` of {name} is not taken", shown(version));
        let versions: Vec<_> = kind
            .versions()
            .iter()
            .map(|version| format!("{GROUP}/{version}"))
            .collect();
        out.error(
            Code::UnknownKind,
            span,
            path,
            message,
            Some(versions.join(", ")),
        );
        return None;
    }
    Some(kind)
}

/// Reads `metadata`: name, namespace and time. Everything else there is the cluster's.
fn meta(node: &Node, out: &mut Collector) -> Meta {
    let nothing = Node {
        span: Span::default(),
        value: Value::Null,
    };
    let metadata = node.get("metadata").unwrap_or(&nothing);
    let path = |name: &str| FieldPath::default().key("metadata").key(name);
    let mut check =
        |name: &'static str, needed: bool, good: &dyn Fn(&str) -> bool, expected: &str| {
            let value = metadata.get(name);
            let text = value.and_then(Node::as_text);
            if text.is_some_and(good) || (value.is_none() && !needed) {
                return text.map(str::to_owned);
            }
            let path = path(name);
            let span = locate(node, &path);
            let (code, message) = match (value, text) {
                (None, _) => (Code::MissingField, format!("the field `{name}` is missing")),
                (Some(_), None) => (Code::WrongType, format!("`{name}` is no text")),
                (_, Some(text)) => (
                    Code::BadValue,
                    format!("`{}` is not allowed here", shown(text)),
                ),
            };
            out.error(code, span, path, message, Some(expected.to_owned()));
            None
        };
    let name = check(
        "name",
        true,
        &text::is_subdomain,
        "a name: lower-case letters, digits, `-`, `.`",
    );
    let namespace = check(
        "namespace",
        false,
        &text::is_label,
        "a namespace: lower-case letters, digits, `-`",
    );
    let created = check(
        "creationTimestamp",
        false,
        &is_time,
        "a time such as 2025-01-31T12:00:00Z",
    );
    Meta {
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        name: name.unwrap_or_default(),
        generation: metadata.int("generation").unwrap_or(0),
        created,
    }
}

/// As Kubernetes writes times: RFC 3339 in UTC, whole seconds. So they sort as text.
fn is_time(text: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    text.len() == FORM.len()
        && text.bytes().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == *form,
        })
}
