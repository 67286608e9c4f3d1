//! Which ports of its parent a route gets.

use super::{
    Kind,
    object::{Parent, Route},
    refs::Refs,
    status::Verdict,
};
use crate::model::{Port, Protocol};

/// A port of a service, and why the route does not fit there.
pub(super) type Taken = ((usize, usize), Option<String>);

/// The ports that a route gets at a parent.
pub(super) fn attach(refs: &Refs<'_>, route: &Route, parent: &Parent) -> (Verdict, Vec<Taken>) {
    if !parent.is_service() {
        return (Verdict::Foreign, Vec::new());
    }
    let key = format!("{}/{}", parent.namespace, parent.name);
    let refused = |reason, message, expected| {
        let verdict = Verdict::Refused {
            reason,
            message,
            expected,
        };
        (verdict, Vec::new())
    };
    let Some((service, found)) = refs.service(&parent.namespace, &parent.name) else {
        let message = format!("there is no service `{key}`");
        return refused(
            "NoMatchingParent",
            message,
            "an entry of `services` with this name and namespace",
        );
    };
    let wanted = |port: &Port| {
        parent.port.is_none_or(|number| number == port.number)
            && parent
                .section
                .as_ref()
                .is_none_or(|name| *name == port.name)
    };
    let ports: Vec<usize> = (0..found.ports.len())
        .filter(|at| found.ports.get(*at).is_some_and(wanted))
        .collect();
    if ports.is_empty() {
        let port = parent
            .port
            .map(|port| format!(" {port}"))
            .unwrap_or_default();
        let name = parent
            .section
            .as_ref()
            .map(|name| format!(" `{name}`"))
            .unwrap_or_default();
        let message = format!("`{key}` has no port{port}{name}");
        return refused(
            "NoMatchingParent",
            message,
            "a port of the service, or none for all of them",
        );
    }
    let taken: Vec<Taken> = ports
        .into_iter()
        .filter_map(|at| {
            let port = found.ports.get(at)?;
            let problem = (!fits(route.kind, port.protocol)).then(|| {
                let kind = route.kind.name();
                format!(
                    "a {kind} does not fit port {} of `{key}`, whose protocol is {}",
                    port.number,
                    protocol(port.protocol)
                )
            });
            Some(((service, at), problem))
        })
        .collect();
    if taken.iter().all(|(_, problem)| problem.is_some()) {
        let message = taken
            .into_iter()
            .find_map(|(_, problem)| problem)
            .unwrap_or_default();
        return refused(
            "NotAllowedByListeners",
            message,
            "a port that speaks what the route is about",
        );
    }
    (Verdict::Accepted, taken)
}

/// Whether a port speaks what a kind of route is about.
fn fits(kind: Kind, protocol: Protocol) -> bool {
    match kind {
        Kind::Grpc | Kind::Http => protocol != Protocol::Tcp,
        Kind::Tls => !protocol.is_http(),
        Kind::Tcp | Kind::ReferenceGrant => true,
    }
}

fn protocol(of: Protocol) -> &'static str {
    match of {
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
        _ => "auto",
    }
}
