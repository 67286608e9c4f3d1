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
    model::{Backend, Port, Service},
};

/// Another service's port, or another port of the rule's own service.
pub(super) fn backend(
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
