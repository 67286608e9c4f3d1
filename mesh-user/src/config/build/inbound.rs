//! Inbound rules.

use super::{Reader, limits::rate_limits, reader, rules::source};
use crate::{
    config::text,
    model::inbound::{InboundAction, InboundCaps, InboundRule, PeerMatch, WorkloadSelect},
};

pub(super) fn rules(root: Reader<'_>) -> Vec<InboundRule> {
    root.items("inbound")
        .enumerate()
        .map(|(i, from)| rule(i, from))
        .collect()
}

fn rule(i: usize, from: Reader<'_>) -> InboundRule {
    InboundRule {
        name: from
            .text("name")
            .map_or_else(|| format!("inbound-{}", i + 1), str::to_owned),
        select: WorkloadSelect {
            workload: from.text("workload").map(str::to_owned),
            namespace: from.text("namespace").map(str::to_owned),
            tags: from.tags("tags"),
        },
        ports: from
            .nodes("ports")
            .iter()
            .map(|node| reader::int(node).unwrap_or(0))
            .collect(),
        action: match from.text("action") {
            Some("pass") => InboundAction::Pass,
            Some("deny") => InboundAction::Deny,
            _ => InboundAction::Capture,
        },
        allow: from.items("allow").map(peer).collect(),
        deny: from.items("deny").map(peer).collect(),
        rate_limits: rate_limits(from),
        caps: caps(from.object("breaker")),
    }
}

fn peer(from: Reader<'_>) -> PeerMatch {
    PeerMatch {
        source: from.has("source").then(|| source(from.object("source"))),
        cidr: from.text("cidr").and_then(text::cidr),
    }
}

fn caps(from: Reader<'_>) -> InboundCaps {
    let none = InboundCaps::default();
    InboundCaps {
        max_connections: from.int("max-connections").unwrap_or(none.max_connections),
        max_requests: from.int("max-requests").unwrap_or(none.max_requests),
    }
}
