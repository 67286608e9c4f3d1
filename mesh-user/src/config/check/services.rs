//! Services, workloads, outbound exceptions.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{Findings, one_of};
use crate::{
    config::{path::FieldPath, report::Code, report::Severity},
    model::{
        DialFrom, List, Model, Netns, OutboundRule, PathChoice, Policy, Port, Rule, Service,
        Workload,
        kernel_path::{self, Place},
        selects,
    },
};

/// Entries of the kernel's map `SERVICES` (`mesh_common::maps`).
pub(super) const SERVICE_ENTRIES_MAX: usize = 131_072;
/// Entries of the kernel's map `OUT_RULES`.
pub(super) const OUT_RULES_MAX: usize = 65_536;

pub(super) fn check(model: &Model, out: &mut Findings) {
    names(model, out);
    addresses(&model.services, out);
    hostnames(&model.services, out);
    for (i, service) in model.services.iter().enumerate() {
        let item = FieldPath::item("services", i);
        ports(service, &item, out);
        endpoints(service, &item, out);
        versions(service, &item, out);
    }
    kernel_ports(model, out);
    workloads(&model.workloads, out);
    outbound(&model.outbound, out);
}

fn names(model: &Model, out: &mut Findings) {
    let mut seen = HashMap::new();
    for (i, service) in model.services.iter().enumerate() {
        if let Some(first) = seen.insert(service.key(), i) {
            let path = FieldPath::item("services", i).key("name");
            let message = format!("`{}` is the name of services[{first}] too", service.key());
            out.error(
                Code::Duplicate,
                path,
                message,
                "a name that is unique inside its namespace",
            );
        }
    }
}

/// Why clients or the proxy can't dial an address.
fn unusable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        _ if address.is_unspecified() => Some("is the unspecified address"),
        _ if address.is_loopback() => Some("is a loopback address"),
        _ if link_local => Some("is a link-local address"),
        _ if address.is_multicast() => Some("is a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("is an IPv4-mapped address"),
        _ => None,
    }
}

fn addresses(services: &List<Service>, out: &mut Findings) {
    let mut owners: HashMap<(IpAddr, u16), usize> = HashMap::new();
    for (i, service) in services.iter().enumerate() {
        let item = FieldPath::item("services", i);
        let mut own = HashSet::new();
        for (k, address) in service.addresses.iter().enumerate() {
            let path = item.key("addresses").at(k);
            if let Some(why) = unusable(*address) {
                let message = format!("`{address}` {why}");
                out.error(
                    Code::BadAddress,
                    path,
                    message,
                    "an address that every workload can route",
                );
                continue;
            }
            if !own.insert(*address) {
                let message = format!("`{address}` stands here twice");
                out.error(Code::Duplicate, path, message, "each address once");
                continue;
            }
            let mut said = HashSet::new();
            for port in &service.ports {
                let owner = *owners.entry((*address, port.number)).or_insert(i);
                if owner != i && said.insert(owner) {
                    let other = services.get(owner).map(Service::key).unwrap_or_default();
                    let message = format!(
                        "port {} of `{address}` belongs to `{other}` too",
                        port.number
                    );
                    let expected = "an address and port for each service alone";
                    out.error(Code::Duplicate, path.clone(), message, expected);
                }
            }
        }
    }
    if owners.len() > SERVICE_ENTRIES_MAX {
        let message = format!("there are {} pairs of address and port", owners.len());
        let path = FieldPath::default().key("services");
        let expected = format!("at most {SERVICE_ENTRIES_MAX}, what the kernel's map holds");
        out.error(Code::BadCount, path, message, &expected);
    }
}

/// A port that insists on the kernel, with a rule or policy that only the proxy can honour.
fn kernel_ports(model: &Model, out: &mut Findings) {
    let insists = |port: &&Port| port.path == PathChoice::Kernel;
    if !model
        .services
        .iter()
        .any(|s| s.ports.iter().any(|p| insists(&p)))
    {
        return;
    }
    let mut rules: HashMap<usize, Vec<(usize, &Rule)>> = HashMap::new();
    for (at, rule) in model.rules.iter().enumerate() {
        rules.entry(rule.service).or_default().push((at, rule));
    }
    let mut policies: HashMap<usize, Vec<(usize, &Policy)>> = HashMap::new();
    for (at, policy) in model.policies.iter().enumerate() {
        policies
            .entry(policy.service)
            .or_default()
            .push((at, policy));
    }
    for (i, service) in model.services.iter().enumerate() {
        for port in service.ports.iter().filter(insists) {
            let covers = |of: &Option<String>| of.as_ref().is_none_or(|name| *name == port.name);
            let obstacle = kernel_path::first(
                service,
                port,
                rules
                    .get(&i)
                    .into_iter()
                    .flatten()
                    .copied()
                    .filter(|(_, r)| covers(&r.port)),
                policies
                    .get(&i)
                    .into_iter()
                    .flatten()
                    .copied()
                    .filter(|(_, p)| covers(&p.port)),
            );
            let Some(obstacle) = obstacle else {
                continue;
            };
            let item = FieldPath::item("services", i);
            let path = match obstacle.place {
                Place::Rule(at) => FieldPath::item("rules", at),
                Place::Policy(at) => FieldPath::item("policies", at),
                Place::DialFrom => item.key("dial-from"),
                Place::Tls => item.key("ports"),
                Place::Priority => item.key("endpoints"),
            };
            let message = format!(
                "{}, and port `{}` of `{}` has `path: kernel`",
                obstacle.why,
                port.name,
                service.key()
            );
            out.push(
                Severity::Error,
                Code::NeedsProxy,
                path,
                Some(item.key("ports")),
                message,
                "`path: prefer-kernel` or `proxy`, or nothing that needs the proxy",
            );
        }
    }
}

fn hostnames(services: &List<Service>, out: &mut Findings) {
    let mut owners: HashMap<(&str, u16), usize> = HashMap::new();
    for (i, service) in services.iter().enumerate() {
        for (k, hostname) in service.hostnames.iter().enumerate() {
            let taken = service.ports.iter().find_map(|port| {
                let owner = *owners.entry((hostname, port.number)).or_insert(i);
                (owner != i).then_some((owner, port.number))
            });
            if let Some((owner, number)) = taken {
                let other = services.get(owner).map(Service::key).unwrap_or_default();
                let message = format!("`{hostname}` with port {number} means `{other}` too");
                let path = FieldPath::item("services", i).key("hostnames").at(k);
                out.warning(Code::Duplicate, path, message, "a hostname of one service");
            }
        }
        if service.addresses.is_empty() {
            let message = format!(
                "`{}` has no address: nothing is captured for it",
                service.key()
            );
            let path = FieldPath::item("services", i).key("addresses");
            out.warning(
                Code::NoEffect,
                path,
                message,
                "at least one virtual address",
            );
        }
    }
}

fn ports(service: &Service, item: &FieldPath, out: &mut Findings) {
    let (mut by_name, mut by_number) = (HashMap::new(), HashMap::new());
    for (j, port) in service.ports.iter().enumerate() {
        let path = item.key("ports").at(j);
        if port.number == 0 || port.target == 0 {
            let field = if port.number == 0 { "number" } else { "target" };
            let message = "port 0 can't be dialled".to_owned();
            out.error(
                Code::OutOfRange,
                path.key(field),
                message,
                "a whole number from 1 to 65535",
            );
            continue;
        }
        if let Some(first) = by_number.insert(port.number, j) {
            let message = format!("port {} is ports[{first}] too", port.number);
            out.error(
                Code::Duplicate,
                path.key("number"),
                message,
                "each number once",
            );
        } else if let Some(first) = by_name.insert(port.name.as_str(), j) {
            let message = format!("`{}` is the name of ports[{first}] too", port.name);
            out.error(Code::Duplicate, path.key("name"), message, "each name once");
        }
    }
}

fn endpoints(service: &Service, item: &FieldPath, out: &mut Findings) {
    if service.endpoints.is_empty() {
        let message = format!("`{}` has no endpoints: it answers 503", service.key());
        out.warning(
            Code::EmptyVersion,
            item.key("endpoints"),
            message,
            "at least one endpoint",
        );
    }
    let names: Vec<_> = service
        .ports
        .iter()
        .map(|port| port.name.as_str())
        .collect();
    let mut seen = HashMap::new();
    for (j, endpoint) in service.endpoints.iter().enumerate() {
        let path = item.key("endpoints").at(j);
        let own_node = service.dial_from == DialFrom::Node && endpoint.address.is_loopback();
        if let Some(why) = unusable(endpoint.address).filter(|_| !own_node) {
            let message = format!("`{}` {why}", endpoint.address);
            let expected = if endpoint.address.is_loopback() {
                "an address that every client can reach, or `dial-from: node`"
            } else {
                "an address that the proxy can dial"
            };
            out.error(Code::BadAddress, path.key("address"), message, expected);
            continue;
        }
        if let Some(first) = seen.insert((endpoint.address, &endpoint.ports), j) {
            let message = format!("`{}` is endpoints[{first}] too", endpoint.address);
            out.error(
                Code::Duplicate,
                path.key("address"),
                message,
                "each endpoint once, with all its tags",
            );
        }
        if endpoint.weight > 1_000_000 {
            let message = format!("`{}` is out of range", endpoint.weight);
            out.error(
                Code::OutOfRange,
                path.key("weight"),
                message,
                "0 to 1000000",
            );
        }
        for (name, number) in &endpoint.ports {
            if *number == 0 {
                let message = "port 0 can't be dialled".to_owned();
                out.error(
                    Code::OutOfRange,
                    path.key("ports").key(name),
                    message,
                    "1 to 65535",
                );
            }
            if !names.contains(&name.as_str()) {
                let message = format!("`{}` has no port `{name}`", service.key());
                let because = Some(item.key("ports"));
                let at = path.key("ports").key(name);
                let expected = one_of(name, &names);
                out.push(
                    Severity::Error,
                    Code::UnknownPort,
                    at,
                    because,
                    message,
                    &expected,
                );
            }
        }
    }
}

fn versions(service: &Service, item: &FieldPath, out: &mut Findings) {
    if service.endpoints.is_empty() {
        return;
    }
    for (name, tags) in &service.versions {
        if !service
            .endpoints
            .iter()
            .any(|endpoint| selects(tags, &endpoint.tags))
        {
            let message = format!("no endpoint belongs to version `{name}`: its share answers 503");
            let path = item.key("versions").key(name);
            out.warning(
                Code::EmptyVersion,
                path,
                message,
                "an endpoint that carries its tags",
            );
        }
    }
}

fn workloads(workloads: &[Workload], out: &mut Findings) {
    let (mut names, mut places) = (HashMap::new(), HashMap::new());
    for (i, workload) in workloads.iter().enumerate() {
        let item = FieldPath::item("workloads", i);
        if let Some(first) = names.insert(workload.key(), i) {
            let message = format!("`{}` is the name of workloads[{first}] too", workload.key());
            out.error(
                Code::Duplicate,
                item.key("name"),
                message,
                "a name that is unique inside its namespace",
            );
        }
        if let Some(first) = places.insert(&workload.netns, i) {
            let (field, shown) = match &workload.netns {
                Netns::Path(path) => ("netns", path.display().to_string()),
                Netns::Pid(pid) => ("pid", pid.to_string()),
            };
            let message = format!("`{shown}` is the network namespace of workloads[{first}] too");
            out.error(
                Code::Duplicate,
                item.key(field),
                message,
                "a network namespace for each workload alone",
            );
        }
    }
}

fn outbound(rules: &[OutboundRule], out: &mut Findings) {
    let mut seen: HashMap<_, usize> = HashMap::new();
    for (i, rule) in rules.iter().enumerate() {
        let ports: &[u16] = if rule.ports.is_empty() {
            &[0]
        } else {
            &rule.ports
        };
        let (tcp, udp) = (rule.protocol.tcp(), rule.protocol.udp());
        let protocols = || [(tcp, "tcp"), (udp, "udp")].into_iter();
        for port in ports {
            let held = protocols()
                .filter(|(about, _)| *about)
                .fold(None, |held, (_, protocol)| {
                    seen.insert((rule.cidr, *port, protocol), i).or(held)
                });
            let Some(first) = held else {
                continue;
            };
            let message = match port {
                0 => format!("`{}` is decided by outbound[{first}] too", rule.cidr),
                port => format!(
                    "port {port} of `{}` is decided by outbound[{first}] too",
                    rule.cidr
                ),
            };
            let path = FieldPath::item("outbound", i).key("cidr");
            out.error(
                Code::Duplicate,
                path,
                message,
                "one decision for each range, port and protocol",
            );
        }
    }
    if seen.len() > OUT_RULES_MAX {
        let message = format!(
            "there are {} combinations of range, port and protocol",
            seen.len()
        );
        let expected = format!("at most {OUT_RULES_MAX}, what the kernel's map holds");
        out.error(
            Code::BadCount,
            FieldPath::default().key("outbound"),
            message,
            &expected,
        );
    }
}
