//! Edits of header fields in normal form: for each name, whether what is there goes, and what comes.
//!
//! «Set, add, remove» of a rule, then of a target, then what CORS and sessions add: each step is
//! folded into the one before it when it is made, so that an engine walks the fields once.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::action::HeaderEdits;

/// What happens to the fields of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The name.
    pub name: HeaderName,
    /// Whether the fields that are there are taken away.
    pub replaces: bool,
    /// The fields that are appended, in order.
    pub values: Vec<HeaderValue>,
}

/// Edits, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits(Vec<Edit>);

/// Whether rules may edit fields of this name (lower-case). Not those that frame a message, are
/// hop-by-hop (RFC 9110 §7.6.1, RFC 9113 §8.2.2), or say where it goes: the authority is changed by
/// `rewrite`.
pub fn may_edit(name: &str) -> bool {
    !name.starts_with(':')
        && !matches!(
            name,
            "connection"
                | "content-length"
                | "expect"
                | "host"
                | "keep-alive"
                | "max-forwards"
                | "proxy-connection"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
        )
}

impl Edits {
    /// From the configuration. Names that [may not](may_edit) be edited, and what is no field at
    /// all, were refused there and are left out here.
    pub(in crate::policy) fn new(from: &HeaderEdits) -> Self {
        let mut edits = Self::default();
        for (name, value) in &from.set {
            if let (Some(name), Ok(value)) = (field(name), HeaderValue::from_str(value)) {
                edits.set(name, value);
            }
        }
        for (name, value) in &from.add {
            if let (Some(name), Ok(value)) = (field(name), HeaderValue::from_str(value)) {
                edits.add(name, value);
            }
        }
        for name in from.remove.iter().filter_map(|name| field(name)) {
            edits.remove(name);
        }
        edits
    }

    fn of(&mut self, name: HeaderName) -> &mut Edit {
        let at = self.0.iter().position(|edit| edit.name == name);
        let at = at.unwrap_or_else(|| {
            self.0.push(Edit {
                name,
                replaces: false,
                values: Vec::new(),
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// Replaces the fields of the name by one.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        let edit = self.of(name);
        edit.replaces = true;
        edit.values.clear();
        edit.values.push(value);
    }

    /// Appends a field.
    pub fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.of(name).values.push(value);
    }

    /// Takes the fields of the name away.
    pub fn remove(&mut self, name: HeaderName) {
        let edit = self.of(name);
        edit.replaces = true;
        edit.values.clear();
    }

    /// These, then `next`.
    #[must_use]
    pub fn then(mut self, next: &Self) -> Self {
        for edit in &next.0 {
            let mine = self.of(edit.name.clone());
            if edit.replaces {
                mine.replaces = true;
                mine.values.clear();
            }
            mine.values.extend(edit.values.iter().cloned());
        }
        self
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Name by name.
    pub fn iter(&self) -> impl Iterator<Item = &Edit> {
        self.0.iter()
    }

    /// Whether a field of this name, in any case, is taken away.
    pub fn replaces(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|edit| edit.replaces && edit.name.as_str().eq_ignore_ascii_case(name))
    }

    /// Whether anything is done to the fields of this name.
    pub fn touches(&self, name: &str) -> bool {
        self.0.iter().any(|edit| edit.name == name)
    }

    /// The fields that are appended, in order.
    pub fn added(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0
            .iter()
            .flat_map(|edit| edit.values.iter().map(move |value| (&edit.name, value)))
    }

    /// Changes a message's fields.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for edit in &self.0 {
            if edit.replaces {
                headers.remove(&edit.name);
            }
            for value in &edit.values {
                headers.append(&edit.name, value.clone());
            }
        }
    }
}

fn field(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    may_edit(name.as_str()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        pairs.iter().map(own).collect()
    }

    fn edits(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Edits {
        Edits::new(&HeaderEdits {
            set: pairs(set),
            add: pairs(add),
            remove: remove.iter().map(|name| (*name).to_owned()).collect(),
        })
    }

    fn applied(edits: &Edits, before: &[(&str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in before {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        edits.apply(&mut headers);
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn header_edits_set_overwrites_add_appends_remove_ignores_case() {
        let edits = edits(&[("x-a", "1")], &[("x-b", "2")], &["X-C"]);
        let before = [("x-a", "old"), ("x-a", "older"), ("x-b", "1"), ("x-c", "3")];
        assert_eq!(
            applied(&edits, &before),
            ["x-a: 1", "x-b: 1", "x-b: 2"].map(str::to_owned)
        );
        assert!(edits.replaces("X-A") && edits.replaces("x-c") && !edits.replaces("x-b"));
    }

    #[test]
    fn header_edits_of_the_target_come_after_those_of_the_rule() {
        let rule = edits(&[("x-a", "rule")], &[("x-b", "rule")], &["x-c"]);
        let target = edits(
            &[("x-b", "target")],
            &[("x-a", "target"), ("x-c", "t")],
            &[],
        );
        let both = rule.then(&target);
        let before = [("x-a", "0"), ("x-b", "0"), ("x-c", "0")];
        let want = ["x-a: rule", "x-a: target", "x-b: target", "x-c: t"];
        assert_eq!(applied(&both, &before), want.map(str::to_owned));
    }

    #[test]
    fn header_edits_never_touch_framing_hop_by_hop_or_pseudo_fields() {
        let names = [
            "connection",
            "Content-Length",
            "expect",
            "host",
            "keep-alive",
            "max-forwards",
            "proxy-connection",
            "te",
            "trailer",
            "Transfer-Encoding",
            "upgrade",
            ":path",
            "a b",
        ];
        for name in names {
            assert!(
                edits(&[(name, "1")], &[(name, "1")], &[name]).is_empty(),
                "{name}"
            );
        }
    }
}
