//! One alternative of a rule, compiled: conditions that must all hold.

use std::fmt;

use regex::bytes::Regex;

use super::{
    HeaderView, RequestView, SourceIx,
    sni::SniCond,
    value::{ValueCond, host_of, whole},
};
use crate::model::{Match, PathMatch, SourceMatch, list::Few, selects};

/// A compiled [`PathMatch`].
#[derive(Debug)]
pub(super) enum PathCond {
    Exact(Box<str>),
    /// Without its trailing slashes; `/` is the empty string.
    Prefix(Box<str>),
    /// With its source. None: not valid, matches nothing. Boxed: most paths are none.
    Regex(Box<(Option<Regex>, Box<str>)>),
}

impl PathCond {
    fn new(from: &PathMatch) -> Self {
        match from {
            PathMatch::Exact(path) => Self::Exact(path.as_str().into()),
            PathMatch::Prefix(path) => Self::Prefix(path.trim_end_matches('/').into()),
            PathMatch::Regex(pattern) => {
                Self::Regex(Box::new((whole(pattern).ok(), pattern.as_str().into())))
            }
        }
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *path,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.starts_with('/') || (rest.is_empty() && !path.is_empty())),
            Self::Regex(regex) => (regex.0.as_ref()).is_some_and(|r| r.is_match(path.as_bytes())),
        }
    }
}

impl fmt::Display for PathCond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "{path:?}"),
            Self::Prefix(prefix) if prefix.is_empty() => f.write_str("prefix \"/\""),
            Self::Prefix(prefix) => write!(f, "prefix {:?}", &**prefix),
            Self::Regex(regex) => match &**regex {
                (Some(_), pattern) => write!(f, "regex {pattern:?}"),
                (None, pattern) => write!(f, "regex {pattern:?} (not valid)"),
            },
        }
    }
}

/// Which sources a set of conditions admits: one bit for each [`SourceIx`].
#[derive(Debug)]
pub(super) struct SourceSet {
    bits: Box<[u64]>,
    /// Nothing is asked but where it is not.
    unknown: bool,
    pub(super) text: Box<str>,
}

impl SourceSet {
    pub(super) fn new(from: &SourceMatch, sources: &[super::snapshot::Source]) -> Self {
        let mut bits = vec![0_u64; sources.len().div_ceil(64)];
        for (at, source) in sources.iter().enumerate() {
            let same = |wanted: &Option<String>, is: Option<&str>| {
                wanted.as_deref().is_none_or(|wanted| is == Some(wanted))
            };
            if same(&from.workload, Some(&source.workload))
                && same(&from.namespace, Some(&source.namespace))
                && same(&from.identity, source.identity.as_deref())
                && selects(&from.tags, &source.tags)
                && !from
                    .except_namespaces
                    .iter()
                    .any(|not| **not == *source.namespace)
            {
                bits[at / 64] |= 1 << (at % 64);
            }
        }
        Self {
            bits: bits.into(),
            unknown: !from.except_namespaces.is_empty()
                && *from
                    == SourceMatch {
                        except_namespaces: from.except_namespaces.clone(),
                        ..SourceMatch::default()
                    },
            text: source_text(from).into(),
        }
    }

    /// A condition on what the source is is never met by guess: an unknown one is in no such set.
    pub(super) fn has(&self, source: Option<SourceIx>) -> bool {
        source.map_or(self.unknown, |SourceIx(at)| {
            self.bits
                .get(at as usize / 64)
                .is_some_and(|word| word >> (at % 64) & 1 == 1)
        })
    }

    /// Whether an unknown source is in it: such a set can't be found by the source.
    pub(super) const fn has_unknown(&self) -> bool {
        self.unknown
    }
}

fn source_text(from: &SourceMatch) -> String {
    let mut parts = Vec::new();
    for (name, value) in [
        ("workload", &from.workload),
        ("namespace", &from.namespace),
        ("identity", &from.identity),
    ] {
        parts.extend(value.as_ref().map(|value| format!("{name} {value:?}")));
    }
    parts.extend(
        from.tags
            .iter()
            .map(|(key, value)| format!("tag {key}={value}")),
    );
    parts.extend(
        from.except_namespaces
            .iter()
            .map(|namespace| format!("not in namespace {namespace:?}")),
    );
    if parts.is_empty() {
        "any known workload".to_owned()
    } else {
        parts.join(" and ")
    }
}

/// One alternative of one rule.
#[derive(Debug)]
pub(super) struct Entry {
    /// Place of the rule in the port's order.
    pub(super) rank: u32,
    pub(super) path: Option<PathCond>,
    pub(super) methods: Few<Box<str>>,
    pub(super) headers: Few<(Box<str>, ValueCond)>,
    pub(super) query: Few<(Box<str>, ValueCond)>,
    pub(super) authority: Option<Box<ValueCond>>,
    /// Index into the table's source sets.
    pub(super) source: Option<u32>,
    /// Of a TLS connection that is passed on as it is.
    pub(super) sni: Option<Box<SniCond>>,
}

impl Entry {
    /// `source`: where the set of `from.source` stands.
    pub(super) fn new(rank: u32, from: &Match, source: Option<u32>) -> Self {
        Self {
            rank,
            path: from.path.as_ref().map(PathCond::new),
            methods: from
                .methods
                .iter()
                .map(|method| method.as_str().into())
                .collect(),
            headers: conditions(&from.headers, str::eq_ignore_ascii_case),
            query: conditions(&from.query, |a, b| a == b),
            authority: from
                .authority
                .as_deref()
                .map(|value| Box::new(ValueCond::new(value))),
            source,
            sni: SniCond::new(&from.sni),
        }
    }

    /// Holds for everything, known source or not.
    pub(super) fn is_catch_all(&self) -> bool {
        !self.needs_http() && self.source.is_none() && self.sni.is_none()
    }

    pub(super) fn needs_http(&self) -> bool {
        self.path.is_some()
            || !self.methods.is_empty()
            || !self.headers.is_empty()
            || !self.query.is_empty()
            || self.authority.is_some()
    }

    /// For a connection of which only the source and, of TLS, the server name is known.
    pub(super) fn holds_tls(
        &self,
        sets: &[SourceSet],
        source: Option<SourceIx>,
        sni: Option<&str>,
    ) -> bool {
        !self.needs_http()
            && self.source.is_none_or(|set| sets[set as usize].has(source))
            && self.sni.as_ref().is_none_or(|cond| cond.holds(sni))
    }

    /// Cheapest conditions first. A request has no server name.
    pub(super) fn holds<H: HeaderView>(
        &self,
        sets: &[SourceSet],
        source: Option<SourceIx>,
        request: &RequestView<'_, H>,
    ) -> bool {
        self.sni.is_none()
            && self.source.is_none_or(|set| sets[set as usize].has(source))
            && self.method_holds(request.method)
            && self
                .path
                .as_ref()
                .is_none_or(|path| path.holds(request.path))
            && self
                .authority
                .as_ref()
                .is_none_or(|cond| cond.holds_authority(host_of(request.authority)))
            && self
                .headers
                .iter()
                .all(|(name, cond)| cond.holds_header(request.headers, name))
            && self
                .query
                .iter()
                .all(|(name, cond)| cond.holds_query(request.query, name))
    }

    fn method_holds(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|wanted| **wanted == *method)
    }

    /// The first condition that does not hold, and how many held before it. `request` is none for
    /// an opaque connection, for which no HTTP condition holds; `sni` is none unless it is TLS.
    pub(super) fn first_failure<'a, H: HeaderView>(
        &'a self,
        sets: &'a [SourceSet],
        source: Option<SourceIx>,
        request: Option<&RequestView<'_, H>>,
        sni: Option<&str>,
    ) -> Option<(usize, Condition<'a>)> {
        let path = self.path.iter().map(|path| {
            (
                request.is_some_and(|r| path.holds(r.path)),
                Condition::Path(path),
            )
        });
        let methods = (!self.methods.is_empty()).then(|| {
            (
                request.is_some_and(|r| self.method_holds(r.method)),
                Condition::Method(&self.methods),
            )
        });
        let headers = self.headers.iter().map(|(name, cond)| {
            let holds = request.is_some_and(|r| cond.holds_header(r.headers, name));
            (holds, Condition::Header(name, cond))
        });
        let query = self.query.iter().map(|(name, cond)| {
            let holds = request.is_some_and(|r| cond.holds_query(r.query, name));
            (holds, Condition::Query(name, cond))
        });
        let authority = self.authority.as_deref().map(|cond| {
            let holds = request.is_some_and(|r| cond.holds_authority(host_of(r.authority)));
            (holds, Condition::Authority(cond))
        });
        let sources = self.source.iter().map(|set| {
            let set = &sets[*set as usize];
            (set.has(source), Condition::Source(set))
        });
        let names = self
            .sni
            .iter()
            .map(|cond| (cond.holds(sni), Condition::Sni(cond)));
        path.chain(methods)
            .chain(headers)
            .chain(query)
            .chain(authority)
            .chain(sources)
            .chain(names)
            .enumerate()
            .find_map(|(at, (holds, condition))| (!holds).then_some((at, condition)))
    }

    /// All conditions, for people.
    pub(super) fn text(&self, sets: &[SourceSet]) -> String {
        let path = self.path.iter().map(Condition::Path);
        let methods = (!self.methods.is_empty()).then_some(Condition::Method(&self.methods));
        let headers = self
            .headers
            .iter()
            .map(|(name, cond)| Condition::Header(name, cond));
        let query = self
            .query
            .iter()
            .map(|(name, cond)| Condition::Query(name, cond));
        let authority = self.authority.as_deref().map(Condition::Authority);
        let source = self
            .source
            .map(|set| Condition::Source(&sets[set as usize]));
        let all = path
            .chain(methods)
            .chain(headers)
            .chain(query)
            .chain(authority)
            .chain(source)
            .chain(self.sni.iter().map(|cond| Condition::Sni(cond)));
        let texts: Vec<String> = all.map(|condition| condition.to_string()).collect();
        if texts.is_empty() {
            "always".to_owned()
        } else {
            texts.join(", ")
        }
    }
}

/// Of names that come twice only the first counts (Gateway API).
fn conditions(
    from: &[(String, crate::model::ValueMatch)],
    same: impl Fn(&str, &str) -> bool,
) -> Few<(Box<str>, ValueCond)> {
    let repeated = |at: usize| from[..at].iter().any(|(name, _)| same(name, &from[at].0));
    (0..from.len())
        .filter(|at| !repeated(*at))
        .map(|at| (from[at].0.as_str().into(), ValueCond::new(&from[at].1)))
        .collect()
}

/// One condition, for people: `header x-user: "beta"`.
#[derive(Debug)]
pub(super) enum Condition<'a> {
    Path(&'a PathCond),
    Method(&'a [Box<str>]),
    Header(&'a str, &'a ValueCond),
    Query(&'a str, &'a ValueCond),
    Authority(&'a ValueCond),
    Source(&'a SourceSet),
    Sni(&'a SniCond),
}

impl fmt::Display for Condition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(cond) => write!(f, "path {cond}"),
            Self::Method(methods) => write!(f, "method {}", methods.join("|")),
            Self::Header(name, cond) => write!(f, "header {name}: {cond}"),
            Self::Query(name, cond) => write!(f, "query {name}: {cond}"),
            Self::Authority(cond) => write!(f, "authority {cond}"),
            Self::Source(set) => write!(f, "source {}", set.text),
            Self::Sni(cond) => write!(f, "sni {cond}"),
        }
    }
}
