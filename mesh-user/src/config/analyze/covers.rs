//! Whether one set of conditions holds whenever another does.
//!
//! «No» may also mean that it can't be told (two different regular expressions): a finding is made
//! only of what is certain.

use crate::{
    model::{Match, PathMatch, Protocol, Rule, SourceMatch, ValueMatch},
    policy::route::compile_regex,
};

/// Whether `first` holds whenever `second` does.
pub(super) fn covers(first: &Match, second: &Match) -> bool {
    path(first.path.as_ref(), second.path.as_ref())
        && (first.methods.is_empty()
            || !second.methods.is_empty()
                && second
                    .methods
                    .iter()
                    .all(|method| first.methods.contains(method)))
        && named(&first.headers, &second.headers)
        && named(&first.query, &second.query)
        && value(first.authority.as_deref(), second.authority.as_deref())
        && source(first.source.as_deref(), second.source.as_deref())
        && (first.sni.is_empty()
            || !second.sni.is_empty()
                && second
                    .sni
                    .iter()
                    .all(|name| first.sni.iter().any(|wide| server_name(wide, name))))
}

/// Whether a rule takes all that reaches it on a port of this protocol.
pub(super) fn takes_all(rule: &Rule, protocol: Protocol) -> bool {
    rule.matches.is_empty() || rule.matches.iter().any(|one| always(one, protocol))
}

fn always(one: &Match, protocol: Protocol) -> bool {
    let mut rest = one.clone();
    if protocol.is_http() && rest.path == Some(PathMatch::Prefix("/".to_owned())) {
        rest.path = None;
    }
    rest == Match::default()
}

fn path(first: Option<&PathMatch>, second: Option<&PathMatch>) -> bool {
    let Some(first) = first else { return true };
    match (first, second) {
        (first, Some(second)) if first == second => true,
        (PathMatch::Prefix(wide), Some(PathMatch::Exact(narrow) | PathMatch::Prefix(narrow))) => {
            is_below(wide, narrow)
        }
        (PathMatch::Regex(pattern), Some(PathMatch::Exact(text))) => fits(pattern, text),
        // Every path of a request begins with a slash, but `*`.
        (PathMatch::Prefix(wide), Some(PathMatch::Regex(pattern))) => {
            wide == "/" && pattern.starts_with('/')
        }
        _ => false,
    }
}

/// Whether `narrow` is `wide` or below it, by `/`-elements.
fn is_below(wide: &str, narrow: &str) -> bool {
    let (wide, narrow) = (wide.trim_end_matches('/'), narrow.trim_end_matches('/'));
    narrow
        .strip_prefix(wide)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn named(first: &[(String, ValueMatch)], second: &[(String, ValueMatch)]) -> bool {
    first.iter().all(|(name, wide)| {
        let narrow = second.iter().find(|(other, _)| other == name);
        value(Some(wide), narrow.map(|(_, narrow)| narrow))
    })
}

fn value(first: Option<&ValueMatch>, second: Option<&ValueMatch>) -> bool {
    let Some(first) = first else { return true };
    match (first, second) {
        (first, Some(second)) if first == second => true,
        (ValueMatch::Present(true), Some(second)) => *second != ValueMatch::Present(false),
        (
            ValueMatch::Prefix(wide),
            Some(ValueMatch::Exact(narrow) | ValueMatch::Prefix(narrow)),
        ) => narrow.starts_with(wide.as_str()),
        (ValueMatch::Regex(pattern), Some(ValueMatch::Exact(text))) => fits(pattern, text),
        _ => false,
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    compile_regex(pattern).is_ok_and(|regex| regex.is_match(text.as_bytes()))
}

fn source(first: Option<&SourceMatch>, second: Option<&SourceMatch>) -> bool {
    let Some(first) = first else { return true };
    let Some(second) = second else { return false };
    let same = |wide: &Option<String>, narrow: &Option<String>| wide.is_none() || wide == narrow;
    same(&first.workload, &second.workload)
        && same(&first.namespace, &second.namespace)
        && same(&first.identity, &second.identity)
        && first
            .tags
            .iter()
            .all(|(key, value)| second.tags.get(key) == Some(value))
        && first.except_namespaces.iter().all(|not| {
            second.except_namespaces.contains(not)
                || second
                    .namespace
                    .as_ref()
                    .is_some_and(|namespace| namespace != not)
        })
}

/// Whether the pattern `wide` (exact, or `*.` and a suffix) takes every name that `narrow` does.
fn server_name(wide: &str, narrow: &str) -> bool {
    wide == narrow
        || wide
            .strip_prefix('*')
            .is_some_and(|suffix| narrow.trim_start_matches('*').ends_with(suffix))
}
