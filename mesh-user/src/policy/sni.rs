//! Rules by the server name of a TLS ClientHello.

use std::fmt;

use super::{
    SourceIx,
    hash::{IdMap, of},
    matcher::{Entry, SourceSet},
};

// Seeds keep the kinds apart.
const EXACT: u64 = 1;
const SUFFIX: u64 = 2;

/// Names, one of which must be the client's: exact, or `*.` and a suffix, which takes the place of
/// one label or more (Gateway API, `TLSRoute`). Lower-case.
#[derive(Debug)]
pub(super) struct SniCond(Box<[Box<str>]>);

impl SniCond {
    /// From a rule. None: nothing is asked.
    pub(super) fn new(names: &[String]) -> Option<Box<Self>> {
        let names = names.iter().map(|name| name.to_ascii_lowercase().into());
        let names: Box<[Box<str>]> = names.collect();
        (!names.is_empty()).then(|| Box::new(Self(names)))
    }

    /// `name`: lower-case, without trailing dot. A client that names nobody meets no name.
    pub(super) fn holds(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| self.0.iter().any(|wanted| matches(wanted, name)))
    }
}

fn matches(wanted: &str, name: &str) -> bool {
    match wanted.strip_prefix('*') {
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => wanted == name,
    }
}

impl fmt::Display for SniCond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("|"))
    }
}

/// Finds the alternatives that ask for a name: what is looked up is the name and each of its
/// suffixes, whatever the number of rules.
#[derive(Debug, Default)]
pub(super) struct SniIndex {
    /// Numbers of alternatives, ascending (and so in the order of their rules).
    lists: IdMap<Vec<u32>>,
    suffixes: bool,
}

impl SniIndex {
    pub(super) fn new(entries: &[Entry]) -> Self {
        let mut index = Self::default();
        for (at, entry) in (0_u32..).zip(entries) {
            if entry.needs_http() {
                continue;
            }
            for name in entry.sni.iter().flat_map(|names| &names.0) {
                let key = match name.strip_prefix('*') {
                    Some(suffix) => {
                        index.suffixes = true;
                        of(SUFFIX, suffix.as_bytes())
                    }
                    None => of(EXACT, name.as_bytes()),
                };
                let list = index.lists.entry(key).or_default();
                // A name that stands twice in one alternative.
                if list.last() != Some(&at) {
                    list.push(at);
                }
            }
        }
        index
    }

    /// Whether any rule asks for a name.
    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The rank of the first rule that takes the name and stands before `best`, else `best`.
    pub(super) fn find(
        &self,
        entries: &[Entry],
        sets: &[SourceSet],
        source: Option<SourceIx>,
        name: &str,
        best: Option<u32>,
    ) -> Option<u32> {
        let mut best = best.unwrap_or(u32::MAX);
        let mut look = |key: u64| {
            for entry in self.lists.get(&key).into_iter().flatten() {
                let entry = &entries[*entry as usize];
                // Lists are in order: nothing behind can be better.
                if entry.rank >= best {
                    break;
                }
                if entry.holds_tls(sets, source, Some(name)) {
                    best = entry.rank;
                    break;
                }
            }
        };
        look(of(EXACT, name.as_bytes()));
        if self.suffixes {
            for (at, _dot) in name.match_indices('.') {
                look(of(SUFFIX, &name.as_bytes()[at..]));
            }
        }
        (best != u32::MAX).then_some(best)
    }
}

#[cfg(test)]
mod tests;
