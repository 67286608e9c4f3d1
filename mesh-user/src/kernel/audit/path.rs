//! The path of a marked connection inside a workload's namespace: `lo`, rule, route, sysctl. By
//! asking the kernel where such a packet would go, which covers whatever stands in between.
//!
//! Everything here works on the calling thread's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh_common::abi::{ROUTE_TABLE, RULE_PREFERENCE};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteType},
    rule::{RuleAttribute, RuleMessage},
};

use super::{
    super::{
        netns,
        route::{Netlink, Steering},
        workload::Sources,
    },
    Outcome, failed,
};

/// Documentation addresses (RFC 5737, RFC 3849): no rule is about them.
const SOMEBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const SOMEBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

pub(super) fn addresses() -> io::Result<Vec<IpAddr>> {
    Netlink::open()?.addresses()
}

/// What was not as it should be, and what became of it.
///
/// `steering`: `None` where no connection is marked, and `lo` is all there is.
pub(super) fn look_and_repair(
    steering: Option<Steering>,
    source: Sources,
) -> Vec<(String, Outcome)> {
    let mut found = Vec::new();
    match Netlink::open() {
        Ok(mut netlink) => {
            found.extend(loopback(&mut netlink));
            let Some(steering) = steering else {
                return found;
            };
            for v6 in [false, true] {
                found.extend(family(&mut netlink, steering, source, v6));
            }
        }
        Err(error) => found.push(("netlink".to_owned(), failed(&error))),
    }
    if steering.is_none() {
        return found;
    }
    match netns::set_sysctls() {
        Ok(changed) => found.extend(
            (changed.iter().flat_map(|all| all.split_ascii_whitespace()))
                .filter_map(|word| word.split_once('='))
                .map(|(name, _)| (name.to_owned(), Outcome::Repaired)),
        ),
        Err(error) => found.push(("tcp_fwmark_accept".to_owned(), failed(&error))),
    }
    found
}

/// Without `lo` there is no way back.
fn loopback(netlink: &mut Netlink) -> Option<(String, Outcome)> {
    let what = || "interface lo".to_owned();
    let mut ask = LinkMessage::default();
    ask.header.index = 1;
    match netlink.ask(RouteNetlinkMessage::GetLink(ask), NLM_F_ACK) {
        Ok(answers) => {
            let up = answers.iter().any(|answer| {
                matches!(answer, RouteNetlinkMessage::NewLink(link)
                    if link.header.flags.contains(LinkFlags::Up))
            });
            if up {
                return None;
            }
        }
        Err(error) => return Some((what(), failed(&error))),
    }
    let mut set = LinkMessage::default();
    set.header.index = 1;
    set.header.flags = LinkFlags::Up;
    set.header.change_mask = LinkFlags::Up;
    Some(
        match netlink.ask(RouteNetlinkMessage::SetLink(set), NLM_F_ACK) {
            Ok(_) => (what(), Outcome::Repaired),
            Err(error) => (what(), failed(&error)),
        },
    )
}

fn family(
    netlink: &mut Netlink,
    steering: Steering,
    source: Sources,
    v6: bool,
) -> Vec<(String, Outcome)> {
    let (name, source_here) = if v6 {
        ("IPv6", source.v6)
    } else {
        ("IPv4", source.v4)
    };
    let Ok(rules) = rules(netlink, steering, v6) else {
        // The namespace has no such family.
        return Vec::new();
    };
    let mut found: Vec<(String, Outcome)> = rules
        .before
        .iter()
        .map(|preference| (format!("{name} rule {preference}"), Outcome::Foreign))
        .collect();
    let fine = rules.ours && source_here.is_none_or(|source| arrives(netlink, steering, source));
    if fine {
        return found;
    }
    let what = if rules.ours {
        format!("{name} route in table {ROUTE_TABLE}")
    } else {
        format!("{name} rule {RULE_PREFERENCE}")
    };
    let outcome = match netlink.steer(steering, source) {
        Err(error) => failed(&error),
        Ok(()) if source_here.is_none_or(|source| arrives(netlink, steering, source)) => {
            Outcome::Repaired
        }
        Ok(()) => Outcome::Failed("a marked packet still goes elsewhere".to_owned()),
    };
    found.push((what, outcome));
    found
}

/// The rules of a family.
struct Rules {
    ours: bool,
    /// Preferences of those that are asked before ours, but for the local table's.
    before: Vec<u32>,
}

fn rules(netlink: &mut Netlink, steering: Steering, v6: bool) -> io::Result<Rules> {
    let mut message = RuleMessage::default();
    message.header.family = family_of(v6);
    let dump = netlink.ask(RouteNetlinkMessage::GetRule(message), NLM_F_DUMP)?;
    let mut rules = Rules {
        ours: false,
        before: Vec::new(),
    };
    for answer in dump {
        let RouteNetlinkMessage::NewRule(rule) = answer else {
            continue;
        };
        let has = |attribute| rule.attributes.contains(&attribute);
        let preference = rule
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RuleAttribute::Priority(preference) => Some(*preference),
                _ => None,
            });
        let ours = has(RuleAttribute::FwMark(steering.mark))
            && has(RuleAttribute::FwMask(steering.mask))
            && has(RuleAttribute::Table(ROUTE_TABLE));
        match preference {
            Some(RULE_PREFERENCE) if ours => rules.ours = true,
            Some(preference) if preference > 0 && preference <= RULE_PREFERENCE => {
                rules.before.push(preference);
            }
            _ => {}
        }
    }
    Ok(rules)
}

/// Whether the kernel would send a marked packet to `lo` by our table, from this address.
fn arrives(netlink: &mut Netlink, steering: Steering, source: IpAddr) -> bool {
    let v6 = source.is_ipv6();
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(v6);
    message.header.destination_prefix_length = if v6 { 128 } else { 32 };
    message.header.flags = RouteFlags::LookupTable;
    let somebody = if v6 { SOMEBODY_V6 } else { SOMEBODY_V4 };
    message
        .attributes
        .push(RouteAttribute::Destination(somebody.into()));
    message.attributes.push(RouteAttribute::Mark(steering.mark));
    let Ok(answers) = netlink.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK) else {
        return false;
    };
    answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewRoute(route) = answer else {
            return false;
        };
        let has = |attribute| route.attributes.contains(&attribute);
        route.header.kind == RouteType::Local
            && has(RouteAttribute::Table(ROUTE_TABLE))
            && has(RouteAttribute::PrefSource(source.into()))
    })
}

const fn family_of(v6: bool) -> AddressFamily {
    if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}
