//! Alternatives that never decide, because an earlier one takes all that they would.

use std::collections::{BTreeSet, HashMap};

use super::{Placed, covers, finding};
use crate::{
    config::{
        check::Finding,
        path::FieldPath,
        report::{Code, Severity},
    },
    model::{Match, PathMatch, Service},
};

/// Comparisons for one alternative at most: what is behind is not looked at, and that is said.
const COMPARISONS_MAX: usize = 512;

/// An alternative: the place of its rule among the rules of the service, and its own in the rule.
type Place = (usize, usize);

/// Finds them on all ports of a service. Whole rules that an earlier catch-all hides are the
/// check's.
pub(super) fn find(service: &Service, rules: &[Placed<'_>], out: &mut Vec<Finding>) {
    // By alternative: on how many ports it stands, and by which it is hidden on each.
    let mut stands: HashMap<Place, usize> = HashMap::new();
    let mut hidden: HashMap<Place, BTreeSet<Place>> = HashMap::new();
    let mut counts: HashMap<Place, usize> = HashMap::new();
    let mut cut = false;
    for port in &service.ports {
        let mut seen = Seen::default();
        for (at, (_, rule)) in rules.iter().enumerate() {
            if !rule.covers(&port.name) {
                continue;
            }
            for (k, one) in rule.matches.iter().enumerate() {
                *stands.entry((at, k)).or_default() += 1;
                let by = seen.covering(one, rules, &mut cut);
                if let Some(by) = by.filter(|by| by.0 != at || by.1 < k) {
                    hidden.entry((at, k)).or_default().insert(by);
                    *counts.entry((at, k)).or_default() += 1;
                } else {
                    seen.add((at, k), one);
                }
            }
        }
    }
    for (at, (place, rule)) in rules.iter().enumerate() {
        let gone: Vec<usize> = (0..rule.matches.len())
            .filter(|k| {
                let on = stands.get(&(at, *k)).copied().unwrap_or(0);
                on > 0 && counts.get(&(at, *k)) == Some(&on)
            })
            .collect();
        if gone.is_empty() {
            continue;
        }
        let by = |k: usize| {
            let by = hidden.get(&(at, k)).and_then(|by| by.first().copied());
            by.unwrap_or((at, k))
        };
        if gone.len() == rule.matches.len() {
            let (first, _) = by(gone[0]);
            if first != at {
                out.push(whole((*place, rule), rules[first]));
                continue;
            }
        }
        for k in gone {
            out.push(part((*place, rule), k, rules[by(k).0], by(k).1));
        }
    }
    if cut {
        let message = format!(
            "there are so many similar rules on `{}` that not all were compared with each other",
            service.key()
        );
        let path = rules
            .first()
            .map_or_else(FieldPath::default, |(at, _)| FieldPath::item("rules", *at));
        out.push(finding(
            Severity::Note,
            Code::AnalysisBounded,
            path,
            message,
            "",
        ));
    }
}

fn whole((place, rule): Placed<'_>, by: Placed<'_>) -> Finding {
    let message = format!(
        "`{}` never decides: whatever it matches, `{}` ({}) has matched before",
        rule.name,
        by.1.name,
        written(by, None),
    );
    let expected = if rule.extra().origin.is_some() {
        "a narrower match there, or none here: the order of routes is that of Gateway API"
    } else {
        "a higher `precedence`, a place before that rule, or a narrower match there"
    };
    finding(
        Severity::Warning,
        Code::ShadowedRule,
        FieldPath::item("rules", place),
        message,
        expected,
    )
}

fn part((place, rule): Placed<'_>, k: usize, by: Placed<'_>, of: usize) -> Finding {
    let message = format!(
        "this alternative of `{}` never decides: `{}` ({}) takes all of it",
        rule.name,
        by.1.name,
        written(by, Some(of)),
    );
    finding(
        Severity::Note,
        Code::ShadowedMatch,
        FieldPath::item("rules", place).key("match").at(k),
        message,
        "to be left out, or an order in which it comes first",
    )
}

/// Where a rule, or an alternative of it, is written. Alternatives of a route may be spread over
/// several rules here: there its rule is named.
fn written((at, rule): Placed<'_>, alternative: Option<usize>) -> String {
    match (&rule.extra().origin, alternative) {
        (Some(from), _) => format!(
            "{} {}/{}, spec.rules[{}]",
            from.kind, from.namespace, from.name, from.rule
        ),
        (None, None) => format!("rules[{at}]"),
        (None, Some(of)) => format!("rules[{at}].match[{of}]"),
    }
}

/// Earlier alternatives of a port, by what of the path they ask: an alternative can only be covered
/// by one whose path condition is none, equal, or a prefix of its own.
#[derive(Default)]
struct Seen<'m> {
    any: Vec<Place>,
    exact: HashMap<&'m str, Vec<Place>>,
    prefix: HashMap<&'m str, Vec<Place>>,
    regex: Vec<Place>,
}

impl<'m> Seen<'m> {
    fn add(&mut self, place: Place, one: &'m Match) {
        match &one.path {
            None => self.any.push(place),
            Some(PathMatch::Exact(path)) => self.exact.entry(path).or_default().push(place),
            Some(PathMatch::Prefix(path)) => {
                let list = self.prefix.entry(path.trim_end_matches('/')).or_default();
                list.push(place);
            }
            Some(PathMatch::Regex(_)) => self.regex.push(place),
        }
    }

    /// The first that covers `one`.
    fn covering(&self, one: &Match, rules: &[Placed<'_>], cut: &mut bool) -> Option<Place> {
        let mut left = COMPARISONS_MAX;
        let mut best: Option<Place> = None;
        let mut look = |list: &[Place]| {
            for place in list {
                if best.is_some_and(|best| best <= *place) {
                    break;
                }
                if left == 0 {
                    *cut = true;
                    return;
                }
                left -= 1;
                if covers::covers(&rules[place.0].1.matches[place.1], one) {
                    best = Some(*place);
                    return;
                }
            }
        };
        look(&self.any);
        match &one.path {
            None => {}
            Some(PathMatch::Exact(path)) => {
                look(self.exact.get(path.as_str()).map_or(&[][..], Vec::as_slice));
                self.each_prefix(path, &mut look);
                look(&self.regex);
            }
            Some(PathMatch::Prefix(path)) => self.each_prefix(path, &mut look),
            Some(PathMatch::Regex(_)) => {
                look(self.prefix.get("").map_or(&[][..], Vec::as_slice));
                look(&self.regex);
            }
        }
        best
    }

    fn each_prefix(&self, path: &str, look: &mut impl FnMut(&[Place])) {
        let path = path.trim_end_matches('/');
        let ends = path
            .match_indices('/')
            .map(|(at, _)| at)
            .chain([path.len()]);
        for end in ends {
            if let Some(list) = self.prefix.get(&path[..end]) {
                look(list);
            }
        }
    }
}
