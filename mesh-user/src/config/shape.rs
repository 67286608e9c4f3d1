//! The language in which the file is described: one description feeds the check of a file, the
//! JSON Schema and `docs/CONFIG.md`, so that the three can't disagree.

use super::text::Text;

/// A mapping with known fields.
#[derive(Debug)]
pub(crate) struct Object {
    /// Its name in the schema's `$defs` and in the reference.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) doc: &'static str,
    /// Its fields, in the order in which the reference shows them.
    pub(crate) fields: &'static [Field],
    /// Fields that exclude each other.
    pub(crate) groups: &'static [Group],
}

impl Object {
    /// The field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// Fields of an object that exclude each other.
#[derive(Debug)]
#[expect(
    clippy::enum_variant_names,
    reason = "each says how many of the fields"
)]
pub(crate) enum Group {
    /// One of them must be there, and not two.
    ExactlyOne(&'static [&'static str]),
    /// Not two of them.
    AtMostOne(&'static [&'static str]),
    /// One of them must be there; more may be.
    AtLeastOne(&'static [&'static str]),
}

/// A field of an [`Object`].
#[derive(Debug)]
pub(crate) struct Field {
    /// Its name, kebab-case.
    pub(crate) name: &'static str,
    /// What it takes.
    pub(crate) shape: Shape,
    /// What holds when it is not there.
    pub(crate) absent: Absent,
    /// What it does; unit and range.
    pub(crate) doc: &'static str,
}

/// What holds when a field is not there.
#[derive(Debug)]
pub(crate) enum Absent {
    /// It must be there.
    Required,
    /// This value, as it could stand in the file, for this reason (which may be empty).
    Default(&'static str, &'static str),
    /// No value says the same; in words.
    Means(&'static str),
}

/// What a place in the file takes.
#[derive(Debug)]
pub(crate) enum Shape {
    /// A mapping with known fields.
    Object(&'static Object),
    /// A list.
    List {
        /// Of what.
        of: &'static Shape,
        /// Fewest items.
        min: usize,
        /// Most items.
        max: usize,
        /// A field that every item needs as soon as there are two.
        many_need: Option<&'static str>,
    },
    /// A list of at least one, or the one without a list.
    OneOrMore {
        /// Of what.
        of: &'static Shape,
        /// Most items.
        max: usize,
    },
    /// A mapping with free keys.
    Map {
        /// What the keys are.
        key: Text,
        /// What stands at each.
        of: &'static Shape,
        /// Most entries.
        max: usize,
    },
    /// A scalar as the short form of a mapping, or of another scalar type.
    Either(&'static Shape, &'static Shape),
    /// Text.
    Text(Text),
    /// A whole number.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A size: a whole number of bytes, or text such as `64KiB`.
    Size {
        /// Smallest, in bytes.
        min: i64,
        /// Largest, in bytes.
        max: i64,
    },
    /// `true` or `false`.
    Bool,
    /// One word of these, each with its meaning.
    Choice(&'static [(&'static str, &'static str)]),
}

impl Shape {
    /// A list of at most `max`.
    pub(crate) const fn list(of: &'static Self, max: usize) -> Self {
        Self::List {
            of,
            min: 0,
            max,
            many_need: None,
        }
    }

    /// What it takes, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Object(_) => "a mapping".to_owned(),
            Self::List { .. } => "a list".to_owned(),
            Self::OneOrMore { of, .. } => format!("{} or a list of them", of.describe()),
            Self::Map { .. } => "a mapping".to_owned(),
            Self::Either(short, long) => format!("{} or {}", short.describe(), long.describe()),
            Self::Text(text) => text.describe(),
            Self::Int { min, max } => format!("a whole number from {min} to {max}"),
            Self::Size { min, max } => format!(
                "a size from {} to {}, such as 64KiB, or a number of bytes",
                super::units::show_size(*min),
                super::units::show_size(*max)
            ),
            Self::Bool => "true or false".to_owned(),
            Self::Choice(words) => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                words.join(", ")
            }
        }
    }
}
