//! Who decides for a port: the cheapest that can honour its rules and policies.

use crate::model::{Match, Policy, Rule, Service, kernel_table::Path};

/// Who decides for the port, and what forced it.
pub(super) fn path(
    service: &Service,
    rules: &[&Rule],
    policies: &[(usize, &Policy)],
) -> (Path, String) {
    let http = |rule: &&&Rule| rule.matches.iter().any(Match::needs_http);
    if let Some(rule) = rules.iter().find(http) {
        return (Path::Proxy, format!("rule {:?} matches on HTTP", rule.name));
    }
    if let Some(rule) = rules.iter().find(|rule| rule.route.len() > 1) {
        return (
            Path::Proxy,
            format!("rule {:?} splits by weight", rule.name),
        );
    }
    if let Some(rule) = rules.first() {
        let what = if rule.matches.is_empty() {
            "chooses endpoints"
        } else {
            "matches the source"
        };
        return (Path::Proxy, format!("rule {:?} {what}", rule.name));
    }
    if let Some((_, policy)) = policies.first() {
        return (Path::Proxy, format!("policy: {}", policy_parts(policy)));
    }
    if !service.routable {
        return (Path::Proxy, "nobody else routes the address".to_owned());
    }
    (Path::Pass, "no rule, no policy".to_owned())
}

fn policy_parts(policy: &Policy) -> String {
    let timeouts = policy.timeouts;
    let parts = [
        ("breaker", policy.breaker.is_some()),
        ("ejection", policy.ejection.is_some()),
        ("rate-limit", !policy.rate_limits.is_empty()),
        ("balance", policy.balance.is_some()),
        (
            "timeout",
            timeouts
                .request
                .or(timeouts.connect)
                .or(timeouts.idle)
                .is_some(),
        ),
        ("retries", policy.retries.is_some()),
    ];
    let named: Vec<&str> = parts
        .iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| *name)
        .collect();
    if named.is_empty() {
        "empty".to_owned()
    } else {
        named.join(", ")
    }
}
