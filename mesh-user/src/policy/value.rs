//! Comparing values without building them: repeated header fields, escaped query parameters.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use super::HeaderView;
use crate::model::ValueMatch;

/// Compiled programs of one pattern may take this many bytes: bounds what a rule costs.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Compiles a pattern that must match the whole value.
///
/// # Errors
/// The pattern is not a regular expression, or compiles to more than 1 MiB.
pub fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    // The pattern alone first: `a)|(b` must not become valid by what stands around it.
    RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES_MAX)
        .build()?;
    // The anchors take a little more room, for which the pattern is not to blame.
    let build = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(2 * REGEX_BYTES_MAX)
            .build()
    };
    // In verbose mode a comment at the end would swallow the closing parenthesis: only then is a
    // line break needed, and only there is it not matched literally.
    build(&format!(r"\A(?:{pattern})\z")).or_else(|_| build(&format!("\\A(?:{pattern}\n)\\z")))
}

/// A compiled [`ValueMatch`].
#[derive(Debug)]
pub(super) enum ValueCond {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    /// With its source, for people. None: the pattern was not valid, and matches nothing. Boxed:
    /// most values are none.
    Regex(Box<(Option<Regex>, Box<str>)>),
    Present(bool),
}

impl ValueCond {
    pub(super) fn new(from: &ValueMatch) -> Self {
        match from {
            ValueMatch::Exact(value) => Self::Exact(value.as_bytes().into()),
            ValueMatch::Prefix(value) => Self::Prefix(value.as_bytes().into()),
            ValueMatch::Regex(pattern) => {
                Self::Regex(Box::new((whole(pattern).ok(), pattern.as_str().into())))
            }
            ValueMatch::Present(there) => Self::Present(*there),
        }
    }

    /// Against one value in one piece.
    pub(super) fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *value,
            Self::Prefix(prefix) => value.starts_with(prefix),
            Self::Regex(regex) => regex.0.as_ref().is_some_and(|regex| regex.is_match(value)),
            Self::Present(there) => *there,
        }
    }

    /// Against a value that comes byte by byte; `collect` builds it when a regex must see it.
    fn holds_bytes(&self, bytes: impl Iterator<Item = u8> + Clone) -> bool {
        match self {
            Self::Exact(wanted) => bytes.eq(wanted.iter().copied()),
            Self::Prefix(prefix) => {
                let mut bytes = bytes;
                prefix.iter().all(|wanted| bytes.next() == Some(*wanted))
            }
            Self::Regex(..) => self.holds(&bytes.collect::<Vec<u8>>()),
            Self::Present(there) => *there,
        }
    }

    /// Against a header field. Repeated fields count as one, joined with `, ` (RFC 9110 §5.3),
    /// but `set-cookie`, of which any one may match.
    pub(super) fn holds_header(&self, headers: &impl HeaderView, name: &str) -> bool {
        let mut values = headers.values(name);
        let Some(first) = values.next() else {
            return matches!(self, Self::Present(false));
        };
        if matches!(self, Self::Present(_)) {
            return self.holds(first);
        }
        match values.next() {
            None => self.holds(first),
            Some(_) if name.eq_ignore_ascii_case("set-cookie") => {
                headers.values(name).any(|value| self.holds(value))
            }
            Some(_) => self.holds_joined(headers, name),
        }
    }

    fn holds_joined(&self, headers: &impl HeaderView, name: &str) -> bool {
        match self {
            Self::Exact(wanted) => {
                let mut left = Some(&**wanted);
                each_joined(headers, name, |part| {
                    left = left.and_then(|rest| rest.strip_prefix(part));
                });
                left.is_some_and(<[u8]>::is_empty)
            }
            Self::Prefix(prefix) => {
                let mut left = Some(&**prefix);
                each_joined(headers, name, |part| {
                    left = left.and_then(|rest| {
                        let common = rest.len().min(part.len());
                        (rest[..common] == part[..common]).then(|| &rest[common..])
                    });
                });
                left.is_some_and(<[u8]>::is_empty)
            }
            Self::Regex(..) => {
                let mut joined = Vec::new();
                each_joined(headers, name, |part| joined.extend_from_slice(part));
                self.holds(&joined)
            }
            Self::Present(there) => *there,
        }
    }

    /// Against a query parameter: names and values are compared after percent-decoding, `+` stays
    /// `+` (it is a space only in form encoding, RFC 3986 knows no such rule), the first of
    /// repeated parameters counts, one without `=` has the empty value.
    pub(super) fn holds_query(&self, query: Option<&str>, name: &str) -> bool {
        match parameter(query, name) {
            None => matches!(self, Self::Present(false)),
            Some(value) if !value.contains('%') => self.holds(value.as_bytes()),
            Some(value) => self.holds_bytes(Decoded(value.as_bytes())),
        }
    }

    /// Against an authority without port, ASCII case aside.
    pub(super) fn holds_authority(&self, host: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted.eq_ignore_ascii_case(host.as_bytes()),
            Self::Prefix(prefix) => host
                .as_bytes()
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
            Self::Regex(..) if host.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                self.holds(host.to_ascii_lowercase().as_bytes())
            }
            Self::Regex(..) => self.holds(host.as_bytes()),
            Self::Present(there) => *there != host.is_empty(),
        }
    }
}

/// As in `exact "beta"`.
impl fmt::Display for ValueCond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "{:?}", String::from_utf8_lossy(value)),
            Self::Prefix(value) => write!(f, "prefix {:?}", String::from_utf8_lossy(value)),
            Self::Regex(regex) => match &**regex {
                (Some(_), pattern) => write!(f, "regex {pattern:?}"),
                (None, pattern) => write!(f, "regex {pattern:?} (not valid)"),
            },
            Self::Present(true) => f.write_str("present"),
            Self::Present(false) => f.write_str("absent"),
        }
    }
}

/// Calls `each` with every piece of the field's joined value, separators included.
pub(super) fn each_joined(headers: &impl HeaderView, name: &str, mut each: impl FnMut(&[u8])) {
    for (at, value) in headers.values(name).enumerate() {
        if at > 0 {
            each(b", ");
        }
        each(value);
    }
}

/// The raw value of the first parameter of that (decoded) name.
pub(super) fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let equal = if key.contains('%') {
            Decoded(key.as_bytes()).eq(name.bytes())
        } else {
            key == name
        };
        // `a&&b` has an empty piece, not a parameter with an empty name.
        (equal && !pair.is_empty()).then_some(value)
    })
}

/// Percent-decoding (RFC 3986 §2.1), byte by byte; what is no escape stays as it is.
#[derive(Clone, Debug)]
pub(super) struct Decoded<'a>(pub(super) &'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        if let [b'%', high, low, rest @ ..] = self.0
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            self.0 = rest;
            return Some(high << 4 | low);
        }
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}

/// `Host` or `:authority` without its port: `[::1]:80` is `[::1]`.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        // A colon inside brackets belongs to the address.
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests;
