//! New paths and locations: the tables of SEMANTICS §5.1.

use std::borrow::Cow;

use super::Asked;
use crate::{
    model::{
        Match, PathMatch, SourceMatch,
        action::{PathRewrite, Redirect},
    },
    policy::{
        HeaderView, RequestView, SourceIx,
        matcher::{Entry, SourceSet},
        snapshot::Source,
        value::host_of,
    },
};

/// Which prefix of the path a rule's conditions matched.
#[derive(Debug, Default)]
pub(in crate::policy) struct Prefixes {
    /// The alternatives, with what they match of the path.
    alternatives: Vec<(Entry, Matched)>,
    sets: Vec<SourceSet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Matched {
    /// A prefix, without its trailing slashes.
    Prefix(Box<str>),
    /// All of it: exact, or a pattern.
    Whole,
}

impl Prefixes {
    pub(in crate::policy) fn new(matches: &[Match], sources: &[Source]) -> Self {
        let mut prefixes = Self::default();
        for from in matches {
            let source = from.source.as_deref().map(|source: &SourceMatch| {
                prefixes.sets.push(SourceSet::new(source, sources));
                prefixes.sets.len() as u32 - 1
            });
            let matched = match &from.path {
                None => Matched::Prefix("".into()),
                Some(PathMatch::Prefix(prefix)) => {
                    Matched::Prefix(prefix.trim_end_matches('/').into())
                }
                Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => Matched::Whole,
            };
            prefixes
                .alternatives
                .push((Entry::new(0, from, source), matched));
        }
        prefixes
    }

    /// How many bytes of the path the first alternative that holds has matched. Without
    /// alternatives, and without a condition on the path, that is the prefix `/`.
    fn matched<H: HeaderView>(
        &self,
        source: Option<SourceIx>,
        request: &RequestView<'_, H>,
    ) -> usize {
        let mut alternatives = self.alternatives.iter();
        let first = alternatives.find(|(entry, _)| entry.holds(&self.sets, source, request));
        match first {
            Some((_, Matched::Prefix(prefix))) if request.path.starts_with(&**prefix) => {
                prefix.len()
            }
            Some((_, Matched::Whole)) => request.path.len(),
            _ => 0,
        }
    }
}

/// The path with its first `matched` bytes replaced (Gateway API, ReplacePrefixMatch): by elements,
/// a trailing slash of either side ignored where the path goes on, and never empty.
fn replace_prefix(path: &str, matched: usize, replacement: &str) -> String {
    let rest = path.get(matched..).unwrap_or_default();
    let path = if rest.is_empty() {
        replacement.to_owned()
    } else {
        format!("{}{rest}", replacement.trim_end_matches('/'))
    };
    if path.is_empty() {
        "/".to_owned()
    } else {
        path
    }
}

/// The new path, without a query. The asterisk form (RFC 9112 §3.2.4) has no path to change.
pub(super) fn rewritten<H: HeaderView>(
    rewrite: &PathRewrite,
    prefixes: &Prefixes,
    asked: &Asked<'_, H>,
) -> Option<String> {
    let request = asked.request;
    if request.path == "*" {
        return None;
    }
    Some(match rewrite {
        PathRewrite::Full(path) if path.is_empty() => "/".to_owned(),
        PathRewrite::Full(path) => path.clone(),
        PathRewrite::Prefix(replacement) => {
            let matched = prefixes.matched(asked.client.source, request);
            replace_prefix(request.path, matched, replacement)
        }
    })
}

/// Where a redirect leads: always an absolute URI, so that no path can be taken for a host.
pub(super) fn location<H: HeaderView>(
    redirect: &Redirect,
    prefixes: &Prefixes,
    asked: &Asked<'_, H>,
) -> String {
    let request = asked.request;
    let scheme = redirect.scheme.as_deref().unwrap_or(asked.scheme);
    let well_known = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    // An explicit port wins; a scheme brings its own; else it is the one that was dialled.
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => Some(port),
        (None, Some(_)) => well_known,
        (None, None) => Some(asked.port),
    };
    let port = port.filter(|port| Some(*port) != well_known);
    let host = redirect
        .hostname
        .as_deref()
        .unwrap_or_else(|| host_of(request.authority));
    let path = match &redirect.path {
        Some(path) => rewritten(path, prefixes, asked).map(Cow::Owned),
        None => Some(Cow::Borrowed(request.path)).filter(|path| path != "*"),
    };
    let mut location = format!("{scheme}://{host}");
    if let Some(port) = port {
        location.push_str(&format!(":{port}"));
    }
    location.push_str(path.as_deref().unwrap_or_default());
    if let Some(query) = request.query {
        location.push('?');
        location.push_str(query);
    }
    location
}

#[cfg(test)]
mod tests;
