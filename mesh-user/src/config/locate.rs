//! Where a path of a field leads in the text.

use super::{
    path::{FieldPath, Step},
    source::Span,
    tree::{Node, Value},
};

/// Where a value begins: a mark over a whole mapping would say nothing.
pub(crate) fn head(node: &Node) -> Span {
    match &node.value {
        Value::Map(entries) => entries.first().map_or(node.span, |(key, _)| {
            if node.span.start < key.span.start {
                Span {
                    start: node.span.start,
                    end: node.span.start + 1,
                }
            } else {
                key.span
            }
        }),
        Value::List(_) => Span {
            start: node.span.start,
            end: node.span.start + 1,
        },
        _ => node.span,
    }
}

/// Where a key of a mapping stands.
pub(crate) fn key_span(node: &Node, name: &str) -> Option<Span> {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .find(|(key, _)| &*key.text == name)
            .map(|(key, _)| key.span),
        _ => None,
    }
}

/// Where a path leads, as far as it leads: what is not there is marked at what would hold it.
pub(crate) fn locate(root: &Node, path: &FieldPath) -> Span {
    let (mut node, mut span) = (root, head(root));
    for step in &path.0 {
        let next = match (step, &node.value) {
            (Step::Key(name), Value::Map(entries)) => entries
                .iter()
                .find(|(key, _)| &*key.text == name.as_str())
                .or_else(|| {
                    entries
                        .iter()
                        .find(|(key, _)| key.text.eq_ignore_ascii_case(name))
                })
                .map(|(key, value)| (value, key.span)),
            (Step::Index(index), Value::List(items)) => {
                items.get(*index).map(|item| (item, head(item)))
            }
            // The one without a list.
            (Step::Index(_), _) => Some((node, span)),
            _ => None,
        };
        let Some((found, at)) = next else { return span };
        (node, span) = (found, at);
        if !matches!(node.value, Value::Map(_) | Value::List(_)) {
            span = node.span;
        }
    }
    span
}
