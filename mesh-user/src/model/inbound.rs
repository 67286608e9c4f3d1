//! Inbound rules: what happens to connections that come to a workload of this node.

use ipnet::IpNet;
use serde::Serialize;

use super::{Inbound, RateLimitPolicy, SourceMatch, Tags, Workload, selects};

/// One inbound rule. Of a workload and a port the first rule that covers both decides, alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InboundRule {
    /// Name for logs, metrics and limits. Made by the adapter when the user gave none.
    pub name: String,
    /// The workloads that it covers.
    pub select: WorkloadSelect,
    /// Ports that it covers, as the application listens on them. Empty: all.
    pub ports: Vec<u16>,
    /// What happens.
    pub action: InboundAction,
    /// Who may connect. Empty: everybody who is not denied.
    pub allow: Vec<PeerMatch>,
    /// Who may not, whatever `allow` says.
    pub deny: Vec<PeerMatch>,
    /// Rate limits, for each workload; a request or opaque connection must pass all of them.
    pub rate_limits: Vec<RateLimitPolicy>,
    /// Caps, for each workload.
    pub caps: InboundCaps,
}

/// Which workloads a rule covers. All that is given must hold; nothing given: every workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkloadSelect {
    /// Name.
    pub workload: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Tags that it must carry.
    pub tags: Tags,
}

impl WorkloadSelect {
    /// Whether it covers the workload.
    pub fn covers(&self, workload: &Workload) -> bool {
        let is = |want: &Option<String>, has: &str| want.as_deref().is_none_or(|want| want == has);
        is(&self.workload, &workload.name)
            && is(&self.namespace, &workload.namespace)
            && selects(&self.tags, &workload.tags)
    }
}

/// What happens to a connection that comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InboundAction {
    /// It passes the proxy.
    #[default]
    Capture,
    /// It goes to the application untouched.
    Pass,
    /// It is dropped.
    Deny,
}

/// Who connects. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerMatch {
    /// What is known of the address: a workload of this node, or an endpoint of the model. An
    /// address that nobody knows is no source.
    pub source: Option<SourceMatch>,
    /// Its address.
    pub cidr: Option<IpNet>,
}

/// Caps of a workload's application, exact over the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InboundCaps {
    /// Connections to it. Default: no cap.
    pub max_connections: u32,
    /// Requests in flight, opaque connections included. Default: no cap.
    pub max_requests: u32,
}

impl Default for InboundCaps {
    fn default() -> Self {
        Self {
            max_connections: u32::MAX,
            max_requests: u32::MAX,
        }
    }
}

impl InboundRule {
    /// Whether it covers the port.
    pub fn covers_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    /// Whether it asks anything that only the proxy can answer.
    pub fn needs_proxy(&self) -> bool {
        !self.allow.is_empty()
            || !self.deny.is_empty()
            || !self.rate_limits.is_empty()
            || self.caps != InboundCaps::default()
    }
}

/// What the kernel does with connections to one workload, by port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InboundPorts {
    /// Ports without an entry.
    pub default: InboundAction,
    /// The others.
    pub ports: std::collections::BTreeMap<u16, InboundAction>,
}

impl Default for InboundPorts {
    fn default() -> Self {
        Self {
            default: InboundAction::Pass,
            ports: std::collections::BTreeMap::new(),
        }
    }
}

impl InboundPorts {
    /// Whether anything may be captured: the dial to the application needs the way back that a
    /// mark gives.
    pub fn captures(&self) -> bool {
        self.default == InboundAction::Capture
            || self
                .ports
                .values()
                .any(|action| *action == InboundAction::Capture)
    }

    /// From the rules that cover a workload, in their order.
    ///
    /// `inbound: pass` of the workload wins over every rule, `inbound: capture` only fills in what
    /// no rule says.
    pub fn of<'r>(workload: &Workload, rules: impl IntoIterator<Item = &'r InboundRule>) -> Self {
        let mut found = Self::default();
        if workload.interception.inbound == Inbound::Pass {
            return found;
        }
        let mut rest = None;
        for rule in rules {
            if !rule.select.covers(workload) {
                continue;
            }
            if rule.ports.is_empty() {
                // Nothing behind it decides any more.
                rest = Some(rule.action);
                break;
            }
            for port in &rule.ports {
                found.ports.entry(*port).or_insert(rule.action);
            }
        }
        found.default = rest.unwrap_or(match workload.interception.inbound {
            Inbound::Capture => InboundAction::Capture,
            Inbound::Rules | Inbound::Pass => InboundAction::Pass,
        });
        found.ports.retain(|_, action| *action != found.default);
        found
    }

    /// What happens at a port.
    pub fn action(&self, port: u16) -> InboundAction {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }

    /// On the way from `self` to `next`: what `next` no longer captures, and nothing that only
    /// `next` does. In force while the proxy changes its rules, so that no connection arrives for
    /// which it has none.
    pub fn towards(&self, next: &Self) -> Self {
        let both = |a: InboundAction, b: InboundAction| match (a, b) {
            (InboundAction::Capture, InboundAction::Capture) => InboundAction::Capture,
            (_, InboundAction::Deny) => InboundAction::Deny,
            // What begins to be captured stays as it was for a moment.
            (before, InboundAction::Capture) => before,
            (_, InboundAction::Pass) => InboundAction::Pass,
        };
        let default = both(self.default, next.default);
        let ports = self.ports.keys().chain(next.ports.keys());
        let ports = ports
            .map(|port| (*port, both(self.action(*port), next.action(*port))))
            .filter(|(_, action)| *action != default)
            .collect();
        Self { default, ports }
    }
}

#[cfg(test)]
mod tests {
    use super::{InboundAction::*, *};
    use crate::model::{Interception, Netns};

    fn workload(inbound: Inbound) -> Workload {
        Workload {
            name: "web".into(),
            namespace: "shop".into(),
            netns: Netns::Pid(1),
            cgroup: None,
            tags: Tags::from([("app".into(), "web".into())]),
            identity: None,
            interception: Interception {
                inbound,
                ..Interception::default()
            },
            capture: true,
        }
    }

    fn rule(ports: &[u16], action: InboundAction) -> InboundRule {
        InboundRule {
            name: "r".into(),
            select: WorkloadSelect::default(),
            ports: ports.to_vec(),
            action,
            allow: Vec::new(),
            deny: Vec::new(),
            rate_limits: Vec::new(),
            caps: InboundCaps::default(),
        }
    }

    #[test]
    fn first_rule_that_covers_workload_and_port_decides() {
        let other = InboundRule {
            select: WorkloadSelect {
                workload: Some("db".into()),
                ..WorkloadSelect::default()
            },
            ..rule(&[], Deny)
        };
        let rules = [
            other,
            rule(&[80, 81], Capture),
            rule(&[81, 82], Deny),
            rule(&[], Pass),
            rule(&[83], Deny),
        ];
        let ports = InboundPorts::of(&workload(Inbound::Rules), &rules);
        let actions = [80, 81, 82, 83, 84].map(|port| ports.action(port));
        assert_eq!(actions, [Capture, Capture, Deny, Pass, Pass]);
        assert_eq!(ports.ports.len(), 3, "the default needs no entry");
    }

    #[test]
    fn workload_setting_fills_in_or_overrules() {
        let rules = [rule(&[80], Deny), rule(&[81], Pass)];
        let of = |inbound, rules: &[InboundRule]| InboundPorts::of(&workload(inbound), rules);
        let capture = of(Inbound::Capture, &rules);
        assert_eq!(
            [80, 81, 82].map(|p| capture.action(p)),
            [Deny, Pass, Capture]
        );
        assert_eq!(of(Inbound::Pass, &rules), InboundPorts::default());
        assert_eq!(of(Inbound::Rules, &[]), InboundPorts::default());
    }

    #[test]
    fn selector_needs_all_that_it_says() {
        let web = workload(Inbound::Rules);
        let select = |workload: Option<&str>, namespace: Option<&str>, tag: Option<&str>| {
            WorkloadSelect {
                workload: workload.map(str::to_owned),
                namespace: namespace.map(str::to_owned),
                tags: tag
                    .map(|tag| ("app".to_owned(), tag.to_owned()))
                    .into_iter()
                    .collect(),
            }
            .covers(&web)
        };
        assert!(select(None, None, None));
        assert!(select(Some("web"), Some("shop"), Some("web")));
        assert!(!select(Some("web"), Some("other"), None));
        assert!(!select(Some("db"), None, None));
        assert!(!select(None, None, Some("db")));
    }

    /// Without it: a connection is captured for rules that the proxy doesn't know yet, or no more.
    #[test]
    fn step_between_two_states_captures_only_what_both_capture() {
        let ports = |default, list: &[(u16, InboundAction)]| InboundPorts {
            default,
            ports: list.iter().copied().collect(),
        };
        let before = ports(
            Pass,
            &[(80, Capture), (81, Capture), (82, Deny), (83, Capture)],
        );
        let after = ports(Capture, &[(81, Pass), (82, Pass), (83, Deny)]);
        let step = before.towards(&after);
        let actions = [80, 81, 82, 83, 84].map(|port| step.action(port));
        assert_eq!(actions, [Capture, Pass, Pass, Deny, Pass]);
        assert_eq!(step.towards(&after).action(84), Pass);
    }
}
