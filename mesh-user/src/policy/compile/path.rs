//! Who decides for a port: the cheapest that can honour its rules and policies.

use crate::model::{
    PathChoice, Policy, Port, Protocol, Rule, Service, kernel_path, kernel_table::Path,
};

/// Who decides for the port, and what forced it. `rules` and `policies` are those that cover it.
pub(super) fn path(
    service: &Service,
    port: &Port,
    rules: &[&Rule],
    policies: &[(usize, &Policy)],
) -> (Path, String) {
    let wanted = match port.path {
        PathChoice::Proxy => return (Path::Proxy, "path: proxy".to_owned()),
        PathChoice::Kernel => Some("path: kernel"),
        PathChoice::PreferKernel => Some("path: prefer-kernel"),
        PathChoice::Auto => None,
    };
    if wanted.is_none()
        && rules.is_empty()
        && policies.is_empty()
        && service.routable
        && port.tls.is_none()
    {
        return (Path::Pass, "no rule, no policy".to_owned());
    }
    if let Some(obstacle) = kernel_path::first(
        service,
        port,
        rules.iter().copied().enumerate(),
        policies.iter().copied(),
    ) {
        return (Path::Proxy, obstacle.why);
    }
    if wanted.is_some() || port.protocol == Protocol::Tcp {
        let why = wanted.unwrap_or("tcp, and nothing needs the proxy");
        return (Path::Kernel, why.to_owned());
    }
    (Path::Proxy, what_there_is(service, rules, policies))
}

/// What the proxy is needed for on a port whose requests, not only connections, are routed: the
/// kernel could honour all of it for each connection.
fn what_there_is(service: &Service, rules: &[&Rule], policies: &[(usize, &Policy)]) -> String {
    if let Some(rule) = rules.iter().find(|rule| rule.route.len() > 1) {
        return format!("rule {:?} splits by weight", rule.name);
    }
    if let Some(rule) = rules.first() {
        return format!("rule {:?} chooses endpoints", rule.name);
    }
    if let Some((_, policy)) = policies.first() {
        return format!("policy: {}", policy_parts(policy));
    }
    if service.routable {
        "no rule, no policy".to_owned()
    } else {
        "nobody else routes the address".to_owned()
    }
}

fn policy_parts(policy: &Policy) -> String {
    let timeouts = policy.timeouts;
    let parts = [
        ("breaker", policy.breaker.is_some()),
        ("ejection", policy.ejection.is_some()),
        ("rate-limit", !policy.rate_limits.is_empty()),
        ("balance", policy.balance.is_some()),
        ("locality", policy.locality.is_some()),
        ("health-checks", !policy.health_checks.is_empty()),
        (
            "timeout",
            timeouts
                .request
                .or(timeouts.connect)
                .or(timeouts.idle)
                .is_some(),
        ),
        ("retries", policy.retries.is_some()),
        ("retry-budget", policy.retry_budget.is_some()),
        ("adaptive", policy.adaptive.is_some()),
        ("hedge", policy.hedge.is_some()),
        ("connection", policy.connection.is_some()),
        ("on-change", policy.on_change.is_some()),
        ("tls", policy.tls.is_some()),
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
