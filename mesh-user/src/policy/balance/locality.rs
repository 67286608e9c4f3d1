//! Which endpoints are asked first: explicit priorities, and inside one of them nearness.
//!
//! With `prefer: LEVEL`, endpoints whose locality is this node's down to that level come first,
//! then those that share one part less, then other regions: those that `failover` names, in its
//! order, then the rest. A node or endpoint that doesn't know its locality shares nothing.

use std::{collections::BTreeMap, sync::Arc};

use super::loads::PRIORITIES_MAX;
use crate::{model::LocalityPolicy, policy::snapshot::EndpointState};

/// Positions in `endpoints` by priority, the first first, without those of weight 0; none when all
/// are of one.
pub(super) fn groups(
    endpoints: &[Arc<EndpointState>],
    policy: Option<&LocalityPolicy>,
    node: &str,
) -> Option<Vec<Vec<u32>>> {
    let explicit = endpoints.iter().any(|endpoint| endpoint.priority != 0);
    let prefers = policy.is_some_and(|policy| policy.prefer.is_some());
    if !explicit && (!prefers || node.is_empty()) {
        return None;
    }
    let mut by_rank: BTreeMap<(u32, usize), Vec<u32>> = BTreeMap::new();
    for (at, endpoint) in (0_u32..).zip(endpoints) {
        if endpoint.weight > 0 {
            let locality = endpoint.locality.as_deref().unwrap_or_default();
            let distance = policy.map_or(0, |policy| distance(policy, node, locality));
            let rank = (endpoint.priority, distance);
            by_rank.entry(rank).or_default().push(at);
        }
    }
    let mut groups: Vec<Vec<u32>> = by_rank.into_values().collect();
    if groups.len() > PRIORITIES_MAX {
        let rest = groups.split_off(PRIORITIES_MAX);
        groups[PRIORITIES_MAX - 1].extend(rest.into_iter().flatten());
    }
    (groups.len() > 1).then_some(groups)
}

/// How far away a locality is: 0 is nearest.
fn distance(policy: &LocalityPolicy, node: &str, locality: &str) -> usize {
    let Some(level) = policy.prefer.filter(|_| !node.is_empty()) else {
        return 0;
    };
    let depth = level.depth();
    let parts = |text: &'_ str| -> Vec<String> {
        let parts = text.split('/').take(depth);
        parts.map(str::to_owned).collect()
    };
    let (here, there) = (parts(node), parts(locality));
    let both = here.iter().zip(&there);
    let shared = both.take_while(|(a, b)| a == b && !a.is_empty()).count();
    if shared > 0 {
        // A node that knows less than the level asks is near to all that it can't tell apart.
        return here.len().min(depth) - shared;
    }
    let region = there.first().map(String::as_str).unwrap_or_default();
    let named = policy.failover.iter().position(|name| name == region);
    depth + named.unwrap_or(policy.failover.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::balance::Level;

    #[test]
    fn distance_grows_from_subzone_to_the_regions_in_order() {
        let policy = LocalityPolicy {
            prefer: Some(Level::Subzone),
            failover: vec!["us".to_owned(), "asia".to_owned()],
            ..LocalityPolicy::default()
        };
        let node = "eu/eu-1/rack-1";
        for (locality, expected) in [
            ("eu/eu-1/rack-1", 0),
            ("eu/eu-1/rack-2", 1),
            ("eu/eu-1", 1),
            ("eu/eu-2/rack-1", 2),
            ("eu", 2),
            ("us/us-1/rack-1", 3),
            ("asia", 4),
            ("mars/eu-1/rack-1", 5),
            ("", 5),
        ] {
            assert_eq!(distance(&policy, node, locality), expected, "{locality}");
        }
        let zone = LocalityPolicy {
            prefer: Some(Level::Zone),
            ..policy.clone()
        };
        assert_eq!(distance(&zone, node, "eu/eu-1/rack-2"), 0);
        assert_eq!(distance(&zone, node, "eu/eu-2/rack-1"), 1);
        assert_eq!(distance(&zone, node, "us"), 2);
        // Who doesn't know where it is prefers nobody.
        assert_eq!(distance(&policy, "", "us"), 0);
        assert_eq!(distance(&policy, "eu/eu-1", "eu/eu-1/rack-7"), 0);
    }
}
