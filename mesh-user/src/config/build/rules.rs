//! Rules, and how rules and policies name services and ports.

use std::collections::{HashMap, HashSet};

use super::{Reader, actions, policies, reader, resilience};
use crate::{
    config::{
        collect::Collector,
        path::FieldPath,
        report::Code,
        suggest,
        tree::{Node, Value},
    },
    model::{Match, PathMatch, Rule, RuleExtra, Service, SourceMatch, Target, ValueMatch},
};

/// The index that a reference to an unknown service gets; the checks skip it.
pub(super) const NO_SERVICE: usize = usize::MAX;

/// Services by name and by `namespace/name`.
pub(super) struct Index {
    by_key: HashMap<String, usize>,
    by_name: HashMap<String, Vec<usize>>,
}

impl Index {
    pub(super) fn new(services: &[Service]) -> Self {
        let mut index = Self {
            by_key: HashMap::new(),
            by_name: HashMap::new(),
        };
        for (i, service) in services.iter().enumerate() {
            index.by_key.entry(service.key()).or_insert(i);
            let same = index.by_name.entry(service.name.clone()).or_default();
            // Of a service that is there twice the first counts; the second is refused.
            if same
                .iter()
                .all(|other| services.get(*other).map(Service::key) != Some(service.key()))
            {
                same.push(i);
            }
        }
        index
    }

    /// The service that a rule or policy names, or [`NO_SERVICE`] and a report.
    pub(super) fn resolve(&self, from: Reader<'_>, item: &FieldPath, out: &mut Collector) -> usize {
        let path = item.key("service");
        let Some(node) = from.get("service") else {
            return NO_SERVICE;
        };
        let Some(name) = reader::text(node) else {
            return NO_SERVICE;
        };
        if out.spoils(&path) {
            return NO_SERVICE;
        }
        if name.contains('/') {
            if let Some(index) = self.by_key.get(name) {
                return *index;
            }
        } else {
            match self.by_name.get(name).map(Vec::as_slice) {
                Some([only]) => return *only,
                Some(several) => {
                    // `default` is where names without a namespace live.
                    if let Some(index) = self.by_key.get(&format!("default/{name}")) {
                        return *index;
                    }
                    let message = format!("`{name}` is the name of {} services", several.len());
                    let expected = Some(format!("`NAMESPACE/{name}`"));
                    out.error(Code::UnknownService, node.span, path, message, expected);
                    return NO_SERVICE;
                }
                None => {}
            }
        }
        let expected = self.expected(name);
        let message = format!("there is no service `{name}`");
        out.error(
            Code::UnknownService,
            node.span,
            path,
            message,
            Some(expected),
        );
        NO_SERVICE
    }
}

impl Index {
    /// What a reference to a service that is not there should have been.
    fn expected(&self, name: &str) -> String {
        let known = self
            .by_name
            .keys()
            .chain(self.by_key.keys())
            .map(String::as_str);
        if let Some(near) = suggest::nearest(name, known) {
            return format!("`{near}`");
        }
        let mut keys: Vec<_> = self.by_key.keys().map(String::as_str).collect();
        keys.sort_unstable();
        match keys.len() {
            0 => "an entry of `services` with this name".to_owned(),
            1..=10 => format!("one of {}", keys.join(", ")),
            _ => "the name of an entry of `services`".to_owned(),
        }
    }
}

/// The name of the port that a rule or policy means: as given, or by number.
///
/// A number that the service does not have stays as text: the checks report it as an unknown port.
pub(super) fn port_name(from: Reader<'_>, service: Option<&Service>) -> Option<String> {
    let node = from.get("port")?;
    match &node.value {
        Value::Int(number) => {
            let known = service.and_then(|service| {
                service
                    .ports
                    .iter()
                    .find(|p| i128::from(p.number) == *number)
            });
            Some(known.map_or_else(|| number.to_string(), |port| port.name.clone()))
        }
        _ => reader::text(node).map(str::to_owned),
    }
}

pub(super) fn rules(
    root: Reader<'_>,
    index: &Index,
    services: &[Service],
    out: &mut Collector,
) -> Vec<Rule> {
    let mut rules: Vec<Rule> = root
        .items("rules")
        .enumerate()
        .map(|(i, from)| {
            let item = FieldPath::item("rules", i);
            let service = index.resolve(from, &item, out);
            let known = actions::Services {
                index,
                list: services,
                own: service,
            };
            let targets = from.items("route").enumerate();
            let targets = targets.map(|(k, target)| {
                let path = item.key("route").at(k);
                Target {
                    weight: target.int("weight").unwrap_or(100),
                    actions: known.of_target(target, &path, out),
                    ..known.target(target, &path, out)
                }
            });
            let route = targets.collect();
            Rule {
                name: from.text("name").unwrap_or_default().to_owned(),
                service,
                port: port_name(from, services.get(service)),
                precedence: from.int("precedence").unwrap_or(0),
                matches: from.items("match").map(condition).collect(),
                route,
                extra: known.rule(from, &item, out, extra(from)),
            }
        })
        .collect();
    name_rules(&mut rules);
    rules
}

/// Names the rules that have no name: `rule-N`, N counting the rules of the service from 1.
fn name_rules(rules: &mut [Rule]) {
    let taken: HashSet<(usize, String)> = rules
        .iter()
        .map(|rule| (rule.service, rule.name.clone()))
        .collect();
    let mut counts: HashMap<usize, usize> = HashMap::new();
    for rule in rules {
        let count = counts.entry(rule.service).or_default();
        *count += 1;
        if rule.name.is_empty() {
            let mut name = format!("rule-{count}");
            // Somebody may have given this very name to another rule.
            while taken.contains(&(rule.service, name.clone())) {
                name.push_str(".auto");
            }
            rule.name = name;
        }
    }
}

/// Time-outs and retries of a rule.
fn extra(from: Reader<'_>) -> RuleExtra {
    RuleExtra {
        timeouts: resilience::rule_timeouts(from.object("timeout")),
        retries: from
            .has("retries")
            .then(|| policies::retries(from.object("retries"))),
        rate_limits: super::limits::rate_limits(from),
        ..RuleExtra::default()
    }
}

pub(super) fn condition(from: Reader<'_>) -> Match {
    Match {
        path: path_match(from.object("path")),
        methods: from
            .nodes("method")
            .iter()
            .filter_map(reader::text)
            .map(str::to_owned)
            .collect(),
        headers: from
            .entries("headers")
            .filter_map(|(name, node)| Some((name.to_ascii_lowercase(), value_match(node)?)))
            .collect(),
        query: from
            .entries("query")
            .filter_map(|(name, node)| Some((name.to_owned(), value_match(node)?)))
            .collect(),
        authority: from
            .get("authority")
            .and_then(value_match)
            .map(|value| Box::new(lower(value))),
        source: from
            .has("source")
            .then(|| Box::new(source(from.object("source")))),
        sni: super::tls::names(from, "sni").into(),
    }
}

/// Hosts are compared in lower case. (A regular expression can't be lowered: `\S` is not `\s`.)
fn lower(value: ValueMatch) -> ValueMatch {
    match value {
        ValueMatch::Exact(text) => ValueMatch::Exact(text.to_ascii_lowercase()),
        ValueMatch::Prefix(text) => ValueMatch::Prefix(text.to_ascii_lowercase()),
        other => other,
    }
}

fn path_match(from: Reader<'_>) -> Option<PathMatch> {
    let kind =
        |name, make: fn(String) -> PathMatch| from.text(name).map(|text| make(text.to_owned()));
    kind("exact", PathMatch::Exact)
        .or_else(|| kind("prefix", PathMatch::Prefix))
        .or_else(|| kind("regex", PathMatch::Regex))
}

/// A value's matcher; text alone means `exact`.
pub(super) fn value_match(node: &Node) -> Option<ValueMatch> {
    if let Some(text) = reader::text(node) {
        return Some(ValueMatch::Exact(text.to_owned()));
    }
    let kind = |name, make: fn(String) -> ValueMatch| {
        node.get(name)
            .and_then(reader::text)
            .map(|text| make(text.to_owned()))
    };
    let present = || match node.get("present")?.value {
        Value::Bool(value) => Some(ValueMatch::Present(value)),
        _ => None,
    };
    kind("exact", ValueMatch::Exact)
        .or_else(|| kind("prefix", ValueMatch::Prefix))
        .or_else(|| kind("regex", ValueMatch::Regex))
        .or_else(present)
}

pub(super) fn source(from: Reader<'_>) -> SourceMatch {
    let owned = |name| from.text(name).map(str::to_owned);
    SourceMatch {
        workload: owned("workload"),
        namespace: owned("namespace"),
        identity: owned("identity"),
        tags: from.tags("tags"),
        except_namespaces: Vec::new(),
    }
}
