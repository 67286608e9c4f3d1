//! Paths of fields: `policies[2].rate-limit[0].rate`.

use std::fmt;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A field or key.
    Key(String),
    /// An item of a list, from 0.
    Index(usize),
}

/// The path of a field from the root of the file, or of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldPath(pub Vec<Step>);

impl FieldPath {
    /// The root's item `index` of the list `list`.
    pub fn item(list: &str, index: usize) -> Self {
        Self(vec![Step::Key(list.to_owned()), Step::Index(index)])
    }

    /// One field deeper.
    #[must_use]
    pub fn key(&self, name: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(name.to_owned()));
        Self(steps)
    }

    /// One item deeper.
    #[must_use]
    pub fn at(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    /// Whether it is `other` or inside it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(name) if is_plain(name) => {
                    write!(f, "{}{name}", if i > 0 { "." } else { "" })?;
                }
                // Tags such as `app.kubernetes.io/name`: `tags["app.kubernetes.io/name"]`.
                Step::Key(name) => write!(f, "[{name:?}]")?,
            }
        }
        Ok(())
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// A path on the stack of a walk, which costs nothing until it is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trail<'a> {
    above: Option<&'a Trail<'a>>,
    step: TrailStep<'a>,
}

#[derive(Clone, Copy, Debug)]
enum TrailStep<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> Trail<'a> {
    /// The root.
    pub(crate) const ROOT: Self = Self {
        above: None,
        step: TrailStep::Root,
    };

    pub(crate) const fn key(&'a self, name: &'a str) -> Self {
        Self {
            above: Some(self),
            step: TrailStep::Key(name),
        }
    }

    pub(crate) const fn at(&'a self, index: usize) -> Self {
        Self {
            above: Some(self),
            step: TrailStep::Index(index),
        }
    }

    pub(crate) fn path(&self) -> FieldPath {
        let mut steps = Vec::new();
        let mut here = Some(self);
        while let Some(trail) = here {
            match trail.step {
                TrailStep::Root => {}
                TrailStep::Key(name) => steps.push(Step::Key(name.to_owned())),
                TrailStep::Index(index) => steps.push(Step::Index(index)),
            }
            here = trail.above;
        }
        steps.reverse();
        FieldPath(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_reads_as_it_would_be_written() {
        let path = FieldPath::item("policies", 2)
            .key("rate-limit")
            .at(0)
            .key("rate");
        assert_eq!(path.to_string(), "policies[2].rate-limit[0].rate");
        assert_eq!(
            FieldPath::default().key("tags").key("a/b.c").to_string(),
            r#"tags["a/b.c"]"#
        );
        assert!(path.is_within(&FieldPath::item("policies", 2)));
        assert!(!path.is_within(&FieldPath::item("policies", 1)));
        let root = Trail::ROOT;
        let rules = root.key("rules");
        assert_eq!(rules.at(3).key("x").path().to_string(), "rules[3].x");
    }
}
