//! The model itself as a matcher: no index, no tricks, everything built as a string.

use std::{cell::RefCell, collections::BTreeMap};

use crate::{
    model::{Match, Model, PathMatch, Rule, SourceMatch, ValueMatch, Workload, selects},
    policy::fixture::Ask,
};

fn naive_value(cond: &ValueMatch, value: Option<&str>) -> bool {
    match (cond, value) {
        (ValueMatch::Present(there), value) => *there == value.is_some(),
        (_, None) => false,
        (ValueMatch::Exact(wanted), Some(value)) => wanted == value,
        (ValueMatch::Prefix(prefix), Some(value)) => value.starts_with(prefix.as_str()),
        (ValueMatch::Regex(pattern), Some(value)) => naive_regex(pattern, value),
    }
}

/// Compiled once: the patterns are few, the questions many.
fn naive_regex(pattern: &str, value: &str) -> bool {
    thread_local! {
        static KNOWN: RefCell<BTreeMap<String, regex::Regex>> = const { RefCell::new(BTreeMap::new()) };
    }
    KNOWN.with_borrow_mut(|known| {
        let compile = || regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        known
            .entry(pattern.to_owned())
            .or_insert_with(compile)
            .is_match(value)
    })
}

fn naive_match(from: &Match, source: Option<&Workload>, ask: &Ask) -> bool {
    let path = match &from.path {
        None => true,
        Some(PathMatch::Exact(path)) => *path == ask.path,
        Some(PathMatch::Regex(pattern)) => {
            naive_value(&ValueMatch::Regex(pattern.clone()), Some(&ask.path))
        }
        Some(PathMatch::Prefix(prefix)) => {
            let elements = |path: &str| -> Vec<String> {
                path.trim_end_matches('/')
                    .split('/')
                    .map(str::to_owned)
                    .collect()
            };
            let (wanted, is) = (elements(prefix), elements(&ask.path));
            ask.path.starts_with('/') && is.len() >= wanted.len() && is[..wanted.len()] == wanted
        }
    };
    let header = |name: &str| {
        let values: Vec<&str> = ask
            .headers
            .0
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| &**v)
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    };
    let parameter = |name: &str| {
        let query = ask.query.as_ref()?;
        let mut pairs = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.replace("%31", "1"))
    };
    let workload = match (&from.source, source) {
        (None, _) => true,
        (Some(cond), None) => {
            let mut only = cond.clone();
            only.except_namespaces.clear();
            !cond.except_namespaces.is_empty() && *only == SourceMatch::default()
        }
        (Some(cond), Some(source)) => {
            cond.workload
                .as_ref()
                .is_none_or(|name| *name == source.name)
                && cond
                    .namespace
                    .as_ref()
                    .is_none_or(|name| *name == source.namespace)
                && cond
                    .identity
                    .as_ref()
                    .is_none_or(|id| Some(id) == source.identity.as_ref())
                && selects(&cond.tags, &source.tags)
                && !cond.except_namespaces.contains(&source.namespace)
        }
    };
    let host = ask.authority.split(':').next().unwrap().to_lowercase();
    path && workload
        && (from.methods.is_empty() || from.methods.contains(&ask.method))
        && from
            .headers
            .iter()
            .all(|(name, cond)| naive_value(cond, header(name).as_deref()))
        && from
            .query
            .iter()
            .all(|(name, cond)| naive_value(cond, parameter(name).as_deref()))
        && from
            .authority
            .as_ref()
            .is_none_or(|cond| naive_value(cond, Some(&host)))
}

pub(super) fn naive_rule(model: &Model, source: Option<&Workload>, ask: &Ask) -> Option<String> {
    let mut best: Option<&Rule> = None;
    for rule in &model.rules {
        let hit = rule.matches.is_empty()
            || rule
                .matches
                .iter()
                .any(|alternative| naive_match(alternative, source, ask));
        if hit && best.is_none_or(|best| rule.precedence > best.precedence) {
            best = Some(rule);
        }
    }
    best.map(|rule| rule.name.clone())
}
