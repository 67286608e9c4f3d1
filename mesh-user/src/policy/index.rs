//! Finding the alternatives that can match without trying all of them.
//!
//! Every alternative stands in exactly one list: under the hash of the rarest of its exact
//! conditions (path, header, query parameter, authority, path prefix, set of sources), else among
//! the path patterns, which are searched together, else in the rest, which is tried one by one. A request asks the lists that its own values name. Whatever is
//! found is checked in full, so the index can only save work, never change the answer.

use std::collections::{HashMap, HashSet};

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::{
    HeaderView, RequestView, SourceIx,
    hash::{Fold, IdMap, join, of},
    matcher::{Entry, PathCond, SourceSet},
    value::{Decoded, ValueCond, host_of, parameter},
};

/// Header names, and query names, of which the exact values are indexed: each costs a look-up in
/// every request. Those that most alternatives use are taken; the others stay in the rest.
const NAMES_MAX: usize = 16;

/// Path patterns that are searched together. From [`PATTERNS_MIN`] on that is faster than one by
/// one; more than [`PATTERNS_MAX`] in one automaton make its cache thrash.
const PATTERNS_MIN: usize = 4;
const PATTERNS_MAX: usize = 64;
/// Compiled size of one such set, at most; what would be larger is tried one by one.
const PATTERNS_BYTES_MAX: usize = 8 << 20;

/// Prefixes with more elements stay in the rest: depths are kept in one word.
const DEPTH_MAX: usize = 63;

// Seeds keep the kinds apart.
const PATH: u64 = 1;
const PREFIX: u64 = 2;
const ELEMENT: u64 = 3;
const HEADER: u64 = 4;
const QUERY: u64 = 5;
const AUTHORITY: u64 = 6;
const SOURCE: u64 = 7;
const VALUE: u64 = 8;

/// The lists.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Where each list stands in `members`: its start and length.
    lists: IdMap<(u32, u32)>,
    /// Numbers of alternatives: of each list ascending (and so in the order of their rules).
    members: Box<[u32]>,
    paths: bool,
    /// Bit n: there are prefixes of n elements.
    depths: u64,
    /// Names, with what their values' hashes are joined to.
    headers: Vec<(Box<str>, u64)>,
    query: Vec<(Box<str>, u64)>,
    authority: bool,
    /// By source: the sets that have it and have a list.
    sets_of: Vec<Vec<u32>>,
    patterns: Vec<Patterns>,
    rest: Vec<u32>,
}

/// Alternatives without an exact condition, by the pattern of their path.
#[derive(Debug)]
struct Patterns {
    set: RegexSet,
    /// The alternative of each pattern.
    entries: Vec<u32>,
}

/// A key under which an alternative could stand.
#[derive(Clone, Copy)]
enum Key {
    Path(u64),
    Header(u64),
    Query(u64),
    Authority(u64),
    Prefix(u64, usize),
    Source(u64),
}

impl Key {
    const fn hash(self) -> u64 {
        match self {
            Self::Path(hash)
            | Self::Header(hash)
            | Self::Query(hash)
            | Self::Authority(hash)
            | Self::Prefix(hash, _)
            | Self::Source(hash) => hash,
        }
    }
}

impl Index {
    pub(super) fn new(entries: &[Entry], sets: &[SourceSet], sources: usize) -> Self {
        let mut index = Self {
            headers: common_names(
                HEADER,
                entries.iter().map(|entry| entry.headers.as_slice()),
                |name| !name.eq_ignore_ascii_case("set-cookie"),
            ),
            query: common_names(
                QUERY,
                entries.iter().map(|entry| entry.query.as_slice()),
                |_| true,
            ),
            ..Self::default()
        };
        let mut uses: IdMap<u32> = IdMap::default();
        let mut keys = Vec::new();
        for entry in entries {
            index.keys(entry, sets, &mut keys);
            for key in keys.drain(..) {
                *uses.entry(key.hash()).or_default() += 1;
            }
        }
        let mut used_sets = vec![false; sets.len()];
        let (mut headers_used, mut query_used) = (false, false);
        let mut listed: Vec<(u64, u32)> = Vec::with_capacity(entries.len());
        for (at, entry) in (0_u32..).zip(entries) {
            // Never a request's; the index of names has it.
            if entry.sni.is_some() {
                continue;
            }
            index.keys(entry, sets, &mut keys);
            // The first of equally rare ones: they stand in the order of their look-up's cost.
            let rarest = keys.iter().min_by_key(|key| uses[&key.hash()]).copied();
            keys.clear();
            let Some(key) = rarest else {
                index.rest.push(at);
                continue;
            };
            match key {
                Key::Path(_) => index.paths = true,
                Key::Header(_) => headers_used = true,
                Key::Query(_) => query_used = true,
                Key::Authority(_) => index.authority = true,
                Key::Prefix(_, depth) => index.depths |= 1 << depth,
                Key::Source(_) => {
                    used_sets[entries[at as usize].source.unwrap_or_default() as usize] = true;
                }
            }
            listed.push((key.hash(), at));
        }
        index.list(listed);
        index.gather_patterns(entries);
        if !headers_used {
            index.headers.clear();
        }
        if !query_used {
            index.query.clear();
        }
        // Without such lists nobody need be looked up.
        let sources = if used_sets.contains(&true) {
            sources
        } else {
            0
        };
        index.sets_of = (0..sources as u32)
            .map(|source| {
                (0_u32..)
                    .zip(sets)
                    .filter(|(set, bits)| {
                        used_sets[*set as usize] && bits.has(Some(SourceIx(source)))
                    })
                    .map(|(set, _)| set)
                    .collect()
            })
            .collect();
        index
    }

    /// Puts alternatives, in order, into the lists of their keys.
    fn list(&mut self, mut listed: Vec<(u64, u32)>) {
        listed.sort_unstable();
        self.members = listed.iter().map(|(_, at)| *at).collect();
        let lists = listed.chunk_by(|a, b| a.0 == b.0);
        let mut start = 0;
        self.lists.reserve(lists.clone().count());
        for list in lists {
            let length = list.len() as u32;
            self.lists.insert(list[0].0, (start, length));
            start += length;
        }
    }

    /// The keys under which an alternative could stand.
    fn keys(&self, entry: &Entry, sets: &[SourceSet], keys: &mut Vec<Key>) {
        if let Some(PathCond::Exact(path)) = &entry.path {
            keys.push(Key::Path(of(PATH, path.as_bytes())));
        }
        if let Some(ValueCond::Exact(host)) = entry.authority.as_deref() {
            keys.push(Key::Authority(authority(host)));
        }
        let named = |names: &[(Box<str>, u64)], (name, cond): &(Box<str>, ValueCond)| {
            let ValueCond::Exact(value) = cond else {
                return None;
            };
            let (_, seed) = names.iter().find(|(known, _)| known == name)?;
            Some(join(*seed, of(VALUE, value)))
        };
        keys.extend(
            entry
                .headers
                .iter()
                .filter_map(|c| named(&self.headers, c))
                .map(Key::Header),
        );
        keys.extend(
            entry
                .query
                .iter()
                .filter_map(|c| named(&self.query, c))
                .map(Key::Query),
        );
        if let Some(PathCond::Prefix(prefix)) = &entry.path {
            keys.extend(prefix_key(prefix));
        }
        if let Some(set) = entry
            .source
            .filter(|set| !sets[*set as usize].has_unknown())
        {
            keys.push(Key::Source(join(SOURCE, u64::from(set))));
        }
    }

    /// Calls `visit` with every list that can hold a match.
    pub(super) fn each_list<H: HeaderView>(
        &self,
        source: Option<SourceIx>,
        request: &RequestView<'_, H>,
        mut visit: impl FnMut(&[u32]),
    ) {
        let mut look = |hash: u64| {
            if let Some((start, length)) = self.lists.get(&hash) {
                visit(&self.members[*start as usize..(start + length) as usize]);
            }
        };
        if self.paths {
            look(of(PATH, request.path.as_bytes()));
        }
        if self.authority {
            look(authority(host_of(request.authority).as_bytes()));
        }
        for (name, seed) in &self.headers {
            if let Some(value) = header_hash(request.headers, name) {
                look(join(*seed, value));
            }
        }
        for (name, seed) in &self.query {
            if let Some(value) = parameter(request.query, name) {
                let mut fold = Fold::new(VALUE);
                Decoded(value.as_bytes()).for_each(|byte| fold.byte(byte));
                look(join(*seed, fold.finish()));
            }
        }
        if self.depths != 0 {
            each_prefix(request.path, self.depths, &mut look);
        }
        if let Some(SourceIx(at)) = source {
            for set in self.sets_of.get(at as usize).into_iter().flatten() {
                look(join(SOURCE, u64::from(*set)));
            }
        }
        for patterns in &self.patterns {
            let hits: Vec<u32> = patterns
                .set
                .matches(request.path.as_bytes())
                .into_iter()
                .map(|at| patterns.entries[at])
                .collect();
            visit(&hits);
        }
        visit(&self.rest);
    }

    /// Moves alternatives with a path pattern from the rest into sets.
    fn gather_patterns(&mut self, entries: &[Entry]) {
        let pattern = |at: &u32| match &entries[*at as usize].path {
            Some(PathCond::Regex(regex)) => regex.0.as_ref().map(regex::bytes::Regex::as_str),
            _ => None,
        };
        let with: Vec<u32> = self
            .rest
            .iter()
            .copied()
            .filter(|at| pattern(at).is_some())
            .collect();
        if with.len() < PATTERNS_MIN {
            return;
        }
        let mut gathered: HashSet<u32> = HashSet::new();
        for chunk in with.chunks(PATTERNS_MAX) {
            let set = RegexSetBuilder::new(chunk.iter().filter_map(pattern))
                .size_limit(PATTERNS_BYTES_MAX)
                .build();
            if let Ok(set) = set {
                gathered.extend(chunk);
                self.patterns.push(Patterns {
                    set,
                    entries: chunk.to_vec(),
                });
            }
        }
        self.rest.retain(|at| !gathered.contains(at));
    }
}

/// The names that most alternatives ask for an exact value, at most [`NAMES_MAX`].
fn common_names<'a>(
    kind: u64,
    conditions: impl Iterator<Item = &'a [(Box<str>, ValueCond)]>,
    may: impl Fn(&str) -> bool,
) -> Vec<(Box<str>, u64)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for (name, cond) in conditions.flatten() {
        if matches!(cond, ValueCond::Exact(_)) && may(name) {
            *counts.entry(name).or_default() += 1;
        }
    }
    let mut names: Vec<(&str, usize)> = counts.into_iter().collect();
    names.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    names
        .into_iter()
        .take(NAMES_MAX)
        .map(|(name, _)| (name.into(), of(kind, name.as_bytes())))
        .collect()
}

fn authority(host: &[u8]) -> u64 {
    let mut fold = Fold::new(AUTHORITY);
    host.iter()
        .for_each(|byte| fold.byte(byte.to_ascii_lowercase()));
    fold.finish()
}

/// The hash of a field's joined value; none when there is no such field.
fn header_hash(headers: &impl HeaderView, name: &str) -> Option<u64> {
    let mut values = headers.values(name);
    let mut fold = Fold::new(VALUE);
    fold.write(values.next()?);
    for value in values {
        fold.write(b", ");
        fold.write(value);
    }
    Some(fold.finish())
}

/// A prefix as rules have it: `/a/b` has two elements, the empty one (from `/`) none.
fn prefix_key(prefix: &str) -> Option<Key> {
    let (mut hash, mut depth) = (PREFIX, 0);
    if !prefix.is_empty() {
        for element in prefix.strip_prefix('/')?.split('/') {
            hash = join(hash, of(ELEMENT, element.as_bytes()));
            depth += 1;
        }
    }
    (depth <= DEPTH_MAX).then_some(Key::Prefix(hash, depth))
}

/// Looks up every prefix of the path that has a depth in question.
fn each_prefix(path: &str, depths: u64, look: &mut impl FnMut(u64)) {
    let Some(elements) = path.strip_prefix('/') else {
        return;
    };
    let mut hash = PREFIX;
    if depths & 1 == 1 {
        look(hash);
    }
    let deepest = depths.ilog2() as usize;
    for (element, depth) in elements.split('/').zip(1..=deepest) {
        hash = join(hash, of(ELEMENT, element.as_bytes()));
        if depths >> depth & 1 == 1 {
            look(hash);
        }
    }
}
