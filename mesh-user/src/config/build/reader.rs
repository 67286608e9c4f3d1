//! Typed access to the fields of a mapping.

use std::time::Duration;

use super::super::{
    fields::ROOT,
    shape::{Object, Shape},
    tree::{Node, Value},
    units,
};
use crate::model::Tags;

/// A mapping and its description.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'t> {
    node: &'t Node,
    object: &'static Object,
}

/// The empty mapping, which stands for what is not there.
static NOTHING: Node = Node {
    span: super::super::source::Span { start: 0, end: 0 },
    value: Value::Null,
};

impl<'t> Reader<'t> {
    pub(super) const fn new(node: &'t Node, object: &'static Object) -> Self {
        Self { node, object }
    }

    /// Whether the field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether any field is there.
    pub(super) fn is_empty(&self) -> bool {
        !matches!(&self.node.value, Value::Map(entries) if !entries.is_empty())
    }

    /// The value of a field.
    pub(super) fn get(&self, name: &str) -> Option<&'t Node> {
        debug_assert!(
            self.object.field(name).is_some(),
            "`{}` has no field `{name}`: fields.rs and build.rs differ",
            self.object.name
        );
        self.node.get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&'t str> {
        self.get(name).and_then(text)
    }

    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        match self.get(name)?.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A whole number, or a size.
    pub(super) fn int<T: TryFrom<i128>>(&self, name: &str) -> Option<T> {
        self.get(name).and_then(int)
    }

    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        self.text(name).and_then(units::duration)
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    /// A mapping inside; all its fields are absent when it is.
    pub(super) fn object(&self, name: &str) -> Reader<'t> {
        let object = match self.object.field(name).map(|field| &field.shape) {
            Some(Shape::Object(object) | Shape::Either(_, Shape::Object(object))) => object,
            _ => &ROOT,
        };
        Reader {
            node: self.get(name).unwrap_or(&NOTHING),
            object,
        }
    }

    /// The mappings of a list, or the one without a list.
    pub(super) fn items(&self, name: &str) -> impl Iterator<Item = Reader<'t>> + use<'t> {
        let object = match self.object.field(name).map(|field| &field.shape) {
            Some(
                Shape::List {
                    of: Shape::Object(object),
                    ..
                }
                | Shape::OneOrMore {
                    of: Shape::Object(object),
                    ..
                },
            ) => *object,
            _ => &ROOT,
        };
        self.nodes(name)
            .iter()
            .map(move |node| Reader { node, object })
    }

    /// The values of a list, or the one without a list.
    pub(super) fn nodes(&self, name: &str) -> &'t [Node] {
        match self.get(name) {
            Some(Node {
                value: Value::List(items),
                ..
            }) => items,
            Some(node) => std::slice::from_ref(node),
            None => &[],
        }
    }

    /// The entries of a mapping with free keys; the first of equal keys.
    pub(super) fn entries(
        &self,
        name: &str,
    ) -> impl Iterator<Item = (&'t str, &'t Node)> + use<'t> {
        let entries: &[_] = match self.get(name) {
            Some(Node {
                value: Value::Map(entries),
                ..
            }) => entries,
            _ => &[],
        };
        entries.iter().map(|(key, node)| (&*key.text, node))
    }

    /// A mapping inside at a free key, described by `object`.
    pub(super) fn tags(&self, name: &str) -> Tags {
        self.entries(name)
            .filter_map(|(key, node)| Some((key.to_owned(), text(node)?.to_owned())))
            .collect()
    }
}

/// A text.
pub(super) fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// A whole number, or a size.
pub(super) fn int<T: TryFrom<i128>>(node: &Node) -> Option<T> {
    match &node.value {
        Value::Int(value) => T::try_from(*value).ok(),
        Value::Text(text) => T::try_from(i128::from(units::size(text)?)).ok(),
        _ => None,
    }
}

/// The entries of a mapping as tags.
pub(super) fn tags(node: &Node) -> Tags {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .filter_map(|(key, value)| Some((key.text.to_string(), text(value)?.to_owned())))
            .collect(),
        _ => Tags::new(),
    }
}
