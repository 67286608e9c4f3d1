//! Targets of rules.

use super::{
    Reader, reader,
    rules::{Index, NO_SERVICE},
};
use crate::{
    config::{
        collect::Collector,
        path::FieldPath,
        report::Code,
        suggest,
        tree::{Node, Value},
    },
    model::{Backend, Port, Select, Service, Target},
};

/// The targets of the rule `(number, service)`. Services and ports that are not there are reported.
pub(super) fn targets(
    rule: Reader<'_>,
    (number, own): (usize, usize),
    index: &Index,
    services: &[Service],
    out: &mut Collector,
) -> Vec<Target> {
    let path = FieldPath::item("rules", number).key("route");
    let target = |(at, from): (usize, Reader<'_>)| {
        let path = path.at(at);
        let backend = backend(from, own, &path, index, services, out);
        let select = match from.text("version") {
            Some(version) => Select::Version(version.to_owned()),
            None if from.has("tags") => Select::Tags(from.tags("tags")),
            None if from.has("endpoints") => {
                let addresses = from.nodes("endpoints").iter();
                let addresses = addresses.filter_map(|node| reader::text(node)?.parse().ok());
                Select::Endpoints(addresses.collect())
            }
            None => Select::All,
        };
        Target {
            select,
            weight: from.int("weight").unwrap_or(100),
            backend,
            ..Target::default()
        }
    };
    rule.items("route").enumerate().map(target).collect()
}

/// Another service's port, or another port of the rule's own service.
fn backend(
    from: Reader<'_>,
    own: usize,
    path: &FieldPath,
    index: &Index,
    services: &[Service],
    out: &mut Collector,
) -> Option<Backend> {
    let other = from.has("service");
    if !other && !from.has("port") {
        return None;
    }
    let service = if other {
        index.resolve(from, path, out)
    } else {
        own
    };
    // None for `NO_SERVICE`, which is reported already.
    debug_assert!(services.len() < NO_SERVICE);
    let of = services.get(service)?;
    let port = match from.get("port") {
        Some(node) => match of.ports.iter().find(|port| names(node, port)) {
            Some(port) => port.number,
            None => {
                if !out.spoils(&path.key("port")) {
                    let shown = match &node.value {
                        Value::Int(number) => number.to_string(),
                        _ => reader::text(node).unwrap_or_default().to_owned(),
                    };
                    let message = format!("`{}` has no port `{shown}`", of.key());
                    let known = || of.ports.iter().map(|port| port.name.as_str());
                    let expected = suggest::nearest(&shown, known()).map_or_else(
                        || format!("one of {}", known().collect::<Vec<_>>().join(", ")),
                        |near| format!("`{near}`"),
                    );
                    out.error(
                        Code::UnknownPort,
                        node.span,
                        path.key("port"),
                        message,
                        Some(expected),
                    );
                }
                0
            }
        },
        None => match of.ports.as_slice() {
            [only] => only.number,
            several => {
                let message = format!(
                    "the field `port` is missing: `{}` has {} ports",
                    of.key(),
                    several.len()
                );
                let expected = Some("`port`: the name or number of one of them".to_owned());
                let node = from.get("service")?;
                out.error(
                    Code::MissingField,
                    node.span,
                    path.key("port"),
                    message,
                    expected,
                );
                0
            }
        },
    };
    Some(Backend { service, port })
}

fn names(node: &Node, port: &Port) -> bool {
    match &node.value {
        Value::Int(number) => i128::from(port.number) == *number,
        _ => reader::text(node) == Some(port.name.as_str()),
    }
}
