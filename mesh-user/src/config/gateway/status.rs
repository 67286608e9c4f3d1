//! The conditions of a route at a parent.

use super::{
    object::{Parent, Route},
    rules::Fault,
};
use crate::config::report::Code;
use crate::model::route_status::{ParentRef, RouteCondition, RouteStatus};

/// Whether a parent takes a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The parent is not ours to speak for.
    Foreign,
    /// It does, at one port at least.
    Accepted,
    /// It does at one port at least; elsewhere a route of another kind comes first.
    Kept,
    /// A route of another kind comes first at each port so far, for this reason.
    Lost(String),
    /// It does not.
    Refused {
        reason: &'static str,
        message: String,
        expected: &'static str,
    },
}

impl Verdict {
    /// A route of another kind comes first at a port.
    pub(super) fn lose(&mut self, message: String) {
        if *self == Self::Accepted {
            *self = Self::Lost(message);
        }
    }

    /// At a port the route is in force.
    pub(super) fn keep(&mut self) {
        if matches!(self, Self::Accepted | Self::Lost(_)) {
            *self = Self::Kept;
        }
    }
}

/// The status at a parent; none for one that is not ours.
pub(super) fn status(
    route: &Route,
    parent: &Parent,
    verdict: &Verdict,
    faults: &[Fault],
) -> Option<RouteStatus> {
    let (accepted, reason, message) = match verdict {
        Verdict::Foreign => return None,
        Verdict::Accepted | Verdict::Kept => (true, "Accepted", "the route is in force".to_owned()),
        Verdict::Lost(message) => (false, "Conflicted", message.clone()),
        Verdict::Refused {
            reason, message, ..
        } => (false, *reason, message.clone()),
    };
    let mut conditions = vec![RouteCondition {
        kind: "Accepted",
        status: accepted,
        reason,
        message,
    }];
    let unresolved = faults
        .iter()
        .find_map(|fault| Some((fault.unresolved?, fault)));
    conditions.push(match unresolved {
        None => RouteCondition {
            kind: "ResolvedRefs",
            status: true,
            reason: "ResolvedRefs",
            message: "all references lead to services".to_owned(),
        },
        Some((reason, fault)) => RouteCondition {
            kind: "ResolvedRefs",
            status: false,
            reason,
            message: fault.message.clone(),
        },
    });
    if let Some(fault) = faults.iter().find(|fault| fault.code == Code::OutOfRange) {
        conditions.push(RouteCondition {
            kind: "PartiallyInvalid",
            status: true,
            reason: "UnsupportedValue",
            message: fault.message.clone(),
        });
    }
    Some(RouteStatus {
        kind: route.kind.name().to_owned(),
        namespace: route.namespace.clone(),
        name: route.name.clone(),
        generation: route.generation,
        parent: ParentRef {
            group: parent.group.clone(),
            kind: parent.kind.clone(),
            namespace: parent.namespace.clone(),
            name: parent.name.clone(),
            section_name: parent.section.clone(),
            port: parent.port,
        },
        conditions,
    })
}
