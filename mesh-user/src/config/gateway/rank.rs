//! Which match is tried first: the order of Gateway API.

use super::object::{Route, RouteMatch};
use crate::model::PathMatch;

/// Where a match stands in the order; the smallest is tried first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// How specific it is, most specific first.
    specific: [std::cmp::Reverse<usize>; 5],
    /// The oldest route; one without a time is younger than those with one.
    created: (bool, Option<String>),
    /// `namespace/name`, alphabetically.
    name: String,
    /// The first rule, and of it the first match.
    place: (usize, usize),
}

impl Rank {
    /// Of a match of a rule of a route.
    pub(super) fn new(route: &Route, rule: usize, at: usize, specific: [usize; 5]) -> Self {
        Self {
            specific: specific.map(std::cmp::Reverse),
            created: (route.created.is_none(), route.created.clone()),
            name: format!("{}/{}", route.namespace, route.name),
            place: (rule, at),
        }
    }
}

/// How specific a match is.
///
/// HTTPRoute: an exact path, else an expression (the longest), else a prefix (the longest); then a
/// method; then the number of header fields; then that of query parameters. GRPCRoute: characters of
/// the service, then of the method, then the number of header fields.
pub(super) fn specific(condition: &RouteMatch) -> [usize; 5] {
    match condition {
        RouteMatch::Http {
            path,
            method,
            headers,
            query,
        } => {
            let (class, length) = match path {
                // Two exact paths that match the same request are equal.
                PathMatch::Exact(_) => (2, 0),
                PathMatch::Regex(pattern) => (1, pattern.chars().count()),
                PathMatch::Prefix(prefix) => (0, prefix.chars().count()),
            };
            [
                class,
                length,
                usize::from(method.is_some()),
                headers.len(),
                query.len(),
            ]
        }
        RouteMatch::Grpc {
            service,
            method,
            regex,
            headers,
        } => {
            let length =
                |text: &Option<String>| text.as_deref().map_or(0, |text| text.chars().count());
            [
                length(service),
                length(method),
                headers.len(),
                // Of equal length the exact one first.
                usize::from(!regex),
                0,
            ]
        }
    }
}

/// How specific a server name is: exact ones first, then by length.
pub(super) fn specific_name(name: &str) -> [usize; 5] {
    let exact = usize::from(!name.starts_with("*."));
    [exact, name.chars().count(), 0, 0, 0]
}
