//! Reading the tree of an object, which may be malformed: what does not fit is not there.

use crate::config::tree::{Node, Value};

impl Node {
    /// The text at a key.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Self::as_text)
    }

    /// The text that it is.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number at a key.
    pub(super) fn int<T: TryFrom<i128>>(&self, name: &str) -> Option<T> {
        self.get(name).and_then(Self::as_int)
    }

    /// The whole number that it is.
    pub(super) fn as_int<T: TryFrom<i128>>(&self) -> Option<T> {
        match &self.value {
            Value::Int(value) => T::try_from(*value).ok(),
            _ => None,
        }
    }

    /// `true` or `false` at a key.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name)?.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The items of the list at a key.
    pub(super) fn items(&self, name: &str) -> &[Self] {
        match self.get(name).map(|node| &node.value) {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }

    /// The texts of the list at a key.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let texts = self.items(name).iter().filter_map(Self::as_text);
        texts.map(str::to_owned).collect()
    }

    /// Drops fields that are null: the API server takes them as not there.
    pub(super) fn drop_nulls(&mut self) {
        match &mut self.value {
            Value::Map(entries) => {
                entries.retain(|(_, node)| !matches!(node.value, Value::Null));
                entries.iter_mut().for_each(|(_, node)| node.drop_nulls());
            }
            Value::List(items) => items.iter_mut().for_each(Self::drop_nulls),
            _ => {}
        }
    }
}
