//! What limits say, and how that stands in an answer's fields.

use std::{fmt::Write, ops::Deref, sync::Arc};

/// Largest integer of a structured field (RFC 9651 §3.3.1).
const FIELD_INTEGER_MAX: u64 = 999_999_999_999_999;

/// What the limits said: for the `RateLimit` fields of the answer. Cheap: no allocation unless a
/// second limit applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every limit that was asked.
    pub asked: AskedList,
    /// The limit that refused, an index into `asked`.
    pub refused: Option<usize>,
}

/// A slice of [`Asked`], of which one needs no allocation.
#[derive(Clone, Debug, Default)]
pub enum AskedList {
    /// No limit applies.
    #[default]
    None,
    /// One does.
    One([Asked; 1]),
    /// Several do.
    Many(Vec<Asked>),
}

/// One limit's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Policy name.
    pub name: Arc<str>,
    /// Quota of the policy (`q`): the bucket's size.
    pub quota: u64,
    /// Window of the policy (`w`) in seconds, at least 1: how long an empty bucket takes to fill.
    pub window_s: u64,
    /// Left (`r`).
    pub left: u64,
    /// Seconds to more quota (`t`), rounded up; also `Retry-After` when refused: a client that
    /// waits exactly so long is admitted.
    pub reset_s: u64,
}

impl Deref for AskedList {
    type Target = [Asked];

    fn deref(&self) -> &[Asked] {
        match self {
            Self::None => &[],
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

impl PartialEq for AskedList {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for AskedList {}

impl Verdict {
    /// The value of the `RateLimit-Policy` field (draft-ietf-httpapi-ratelimit-headers, 2025-09).
    /// Empty when no limit applies: there is then no such field.
    pub fn policy_field(&self) -> String {
        self.field(|asked| [('q', asked.quota), ('w', asked.window_s)])
    }

    /// The value of the `RateLimit` field. Empty when no limit applies.
    pub fn limit_field(&self) -> String {
        self.field(|asked| [('r', asked.left), ('t', asked.reset_s)])
    }

    /// Seconds for `Retry-After`, when refused.
    pub fn retry_after_s(&self) -> Option<u64> {
        // At least 1: 0 would invite an attempt that is known to fail.
        self.refused
            .and_then(|at| self.asked.get(at))
            .map(|asked| asked.reset_s.max(1))
    }

    /// A list of strings with parameters (RFC 9651).
    fn field(&self, parameters: impl Fn(&Asked) -> [(char, u64); 2]) -> String {
        let mut field = String::new();
        for asked in self.asked.iter() {
            if !field.is_empty() {
                field.push_str(", ");
            }
            quote(&mut field, &asked.name);
            for (key, value) in parameters(asked) {
                // Writing to a string can't fail.
                let _ = write!(field, ";{key}={}", value.min(FIELD_INTEGER_MAX));
            }
        }
        field
    }
}

/// A string of a structured field: printable ASCII, `"` and `\` escaped (RFC 9651 §3.3.3). What
/// can't stand in one becomes `?`; the configuration refuses such names anyway.
fn quote(field: &mut String, text: &str) {
    field.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => field.extend(['\\', char]),
            ' '..='~' => field.push(char),
            _ => field.push('?'),
        }
    }
    field.push('"');
}
