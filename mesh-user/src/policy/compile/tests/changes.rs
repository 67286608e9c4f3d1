//! Changes at random.

use super::*;

mod rules;

/// Changes a model somehow; what was done.
pub(super) fn change(model: &mut Model, rng: &mut Rng) -> String {
    let services = model.services.len();
    if services == 0 {
        model.services.push(new_service(rng));
        return "first service".to_owned();
    }
    let at = rng.below(services as u32) as usize;
    match rng.below(25) {
        0 => {
            model.services.push(new_service(rng));
            "push service".to_owned()
        }
        1 => {
            model.remove_service(at);
            format!("remove service {at}")
        }
        2 => {
            insert_service(model, at, new_service(rng));
            format!("insert service {at}")
        }
        3 | 4 => change_endpoints(&mut model.services[at], rng),
        5 => change_names(&mut model.services[at], rng),
        6 => change_ports(&mut model.services[at], rng),
        7 => {
            let versions = &mut model.services[at].versions;
            if versions.remove("v2").is_none() {
                versions.insert("v2".to_owned(), tags(&[("version", "v2")]));
            }
            format!("version of {at}")
        }
        8..=10 => change_weight(model, rng),
        11 | 12 => {
            let rule = rules::new_rule(model, rng);
            let to = rng.below(model.rules.len() as u32 + 1) as usize;
            model.rules.insert(to, rule);
            format!("insert rule {to}")
        }
        13 if !model.rules.is_empty() => {
            let of = rng.below(model.rules.len() as u32) as usize;
            model.rules.remove(of);
            format!("remove rule {of}")
        }
        14 if !model.rules.is_empty() => {
            let of = rng.below(model.rules.len() as u32) as usize;
            let new = rules::new_rule(model, rng);
            model.rules[of].matches = new.matches;
            format!("match of {of}")
        }
        15 if !model.rules.is_empty() => {
            let of = rng.below(model.rules.len() as u32) as usize;
            model.rules[of].precedence = rng.below(3) as i32;
            format!("precedence of {of}")
        }
        16 | 17 => change_policies(model, at, rng),
        18 => change_workloads(model, rng),
        19 | 20 if !model.rules.is_empty() => {
            let of = rng.below(model.rules.len() as u32) as usize;
            let extra = rules::extra(model, rng);
            model.rules[of].extra = Some(Box::new(extra));
            format!("extra of {of}")
        }
        21 => {
            let places = ["", "eu/a", "eu/b", "us"];
            model.locality = places[rng.below(4) as usize].to_owned();
            format!("locality {}", model.locality)
        }
        22 => change_stores(model, rng),
        _ => change_inbound(model, rng),
    }
}

fn new_service(rng: &mut Rng) -> Service {
    let n = rng.below(200);
    let mut one = service(0, 0);
    one.name = format!("n{n}-{}", rng.below(1_000_000));
    one.hostnames = vec![format!("n{n}.example")];
    one.addresses = vec![address(rng)];
    one.endpoints = vec![endpoint(&format!("10.3.0.{n}"), "v1")];
    one.routable = rng.below(2) == 0;
    if rng.below(2) == 0 {
        one.ports = vec![port("tcp", 80, Protocol::Tcp)];
    }
    one
}

/// Hardly ever another's.
fn address(rng: &mut Rng) -> std::net::IpAddr {
    std::net::Ipv4Addr::from_bits(0x0b00_0000 + rng.below(1 << 24)).into()
}

/// Before another one, as a file that is read again has it.
fn insert_service(model: &mut Model, at: usize, service: Service) {
    model.services.insert(at, service);
    let up = |place: &mut usize| *place += usize::from(*place >= at);
    for rule in model.rules.iter_mut() {
        up(&mut rule.service);
        rule.each_target_mut(|target| {
            if let Some(backend) = &mut target.backend {
                up(&mut backend.service);
            }
        });
    }
    for policy in model.policies.iter_mut() {
        up(&mut policy.service);
    }
}

fn change_endpoints(service: &mut Service, rng: &mut Rng) -> String {
    let n = rng.below(250);
    let endpoints = &mut service.endpoints;
    let of = rng.below(endpoints.len().max(1) as u32) as usize;
    match rng.below(7) {
        0 => {
            let version = ["v1", "v2"][rng.below(2) as usize];
            endpoints.push(endpoint(&format!("10.4.0.{n}"), version));
        }
        3 if !endpoints.is_empty() => {
            endpoints.rotate_left(of);
        }
        4 if !endpoints.is_empty() => {
            let version = ["v1", "v2"][rng.below(2) as usize];
            endpoints[of].tags = tags(&[("version", version)]);
        }
        5 if !endpoints.is_empty() => {
            endpoints[of].locality = ["", "eu/a", "us/c"][rng.below(3) as usize].to_owned();
            endpoints[of].priority = rng.below(2);
        }
        1 if !endpoints.is_empty() => drop(endpoints.remove(of)),
        2 if !endpoints.is_empty() => endpoints[of].weight = rng.below(4),
        _ if !endpoints.is_empty() => endpoints[of].healthy = !endpoints[of].healthy,
        _ => {}
    }
    format!("endpoints of {}", service.name)
}

fn change_names(service: &mut Service, rng: &mut Rng) -> String {
    let n = rng.below(100);
    match rng.below(4) {
        0 => service.name = format!("renamed-{}", rng.below(1_000_000)),
        // A name that others may have, too.
        1 => service.hostnames = vec!["shared.example.".to_owned(), format!("h{n}.example")],
        2 => service.addresses = vec![address(rng)],
        _ => service.routable = !service.routable,
    }
    format!("names of {}", service.name)
}

fn change_ports(service: &mut Service, rng: &mut Rng) -> String {
    if service.ports.len() < 2 {
        let protocol = [Protocol::Tcp, Protocol::Http][rng.below(2) as usize];
        let number = if service.ports[0].number == 80 {
            81
        } else {
            80
        };
        service
            .ports
            .push(port(&format!("p{number}"), number, protocol));
    } else {
        let gone = rng.below(2) as usize;
        service.ports.remove(gone);
    }
    format!("ports of {}", service.name)
}

fn change_weight(model: &mut Model, rng: &mut Rng) -> String {
    if model.rules.is_empty() {
        return "nothing".to_owned();
    }
    let of = rng.below(model.rules.len() as u32) as usize;
    let rule = &mut model.rules[of];
    if let Some(target) = rule.route.first_mut() {
        target.weight = rng.below(3);
    }
    format!("weight of rule {of}")
}

fn change_policies(model: &mut Model, at: usize, rng: &mut Rng) -> String {
    let known = model
        .policies
        .iter()
        .position(|policy| policy.service == at);
    if let Some(known) = known
        && rng.below(2) == 0
    {
        model.policies.remove(known);
        return format!("no policy of {at}");
    }
    let cap = 1 + rng.below(5);
    let limit = rules::limit(rng);
    let policy = Policy {
        service: at,
        version: (rng.below(3) == 0).then(|| "v1".to_owned()),
        breaker: (rng.below(2) == 0).then(|| BreakerPolicy {
            max_connections: cap,
            ..BreakerPolicy::default()
        }),
        ejection: (rng.below(2) == 0).then(EjectionPolicy::default),
        health_checks: vec![HealthCheck::default(); rng.below(2) as usize],
        locality: (rng.below(2) == 0).then(|| LocalityPolicy {
            prefer: [None, Some(Level::Region), Some(Level::Zone)][rng.below(3) as usize],
            ..LocalityPolicy::default()
        }),
        balance: (rng.below(2) == 0).then(|| BalancePolicy {
            hash: vec![Attribute::Path],
            table_size: [101, 103][rng.below(2) as usize],
            panic_threshold: (rng.below(2) == 0).then_some(40),
            ..BalancePolicy::from([Balance::Maglev, Balance::Random][rng.below(2) as usize])
        }),
        retry_budget: (rng.below(2) == 0).then(|| RetryBudget {
            percent: 10 + cap as u8,
            floor: 1,
            interval: None,
        }),
        adaptive: (rng.below(3) == 0).then(AdaptivePolicy::default),
        hedge: (rng.below(3) == 0).then(|| HedgePolicy {
            after: Some(fixture::secs(u64::from(cap))),
            max: 1,
            non_idempotent: false,
        }),
        on_change: (rng.below(3) == 0).then(OnChange::default),
        tls: (rng.below(3) == 0).then(|| {
            let sni = Some(format!("{cap}.example"));
            UpstreamTls::Simple(Arc::new(Originate {
                sni,
                ..Originate::default()
            }))
        }),
        rate_limits: if rng.below(2) == 0 {
            vec![limit]
        } else {
            Vec::new()
        },
        ..Policy::default()
    };
    match known {
        Some(known) => model.policies.set(known, policy),
        None => model.policies.push(policy),
    }
    format!("policy of {at}")
}

fn change_stores(model: &mut Model, rng: &mut Rng) -> String {
    if model.rate_limit_services.pop().is_none() {
        model.rate_limit_services.push(RateLimitService {
            name: "store".to_owned(),
            address: StoreAddress::Unix("/x".into()),
            kind: StoreKind::Redis(RedisStore::default()),
            timeout: fixture::secs(1 + u64::from(rng.below(2))),
        });
    }
    "stores".to_owned()
}

fn change_workloads(model: &mut Model, rng: &mut Rng) -> String {
    let n = rng.below(3);
    let name = format!("w{n}");
    let known = model.workloads.iter().position(|one| one.name == name);
    match known {
        Some(known) => drop(model.workloads.remove(known)),
        None => {
            let app = ["a", "b"][rng.below(2) as usize];
            model.workloads.push(workload(&name, &[("app", app)]));
        }
    }
    format!("workload {n}")
}

fn change_inbound(model: &mut Model, rng: &mut Rng) -> String {
    let n = rng.below(3);
    let name = format!("in{n}");
    let known = model.inbound.iter().position(|rule| rule.name == name);
    if let Some(known) = known {
        model.inbound.remove(known);
        return format!("no inbound rule {n}");
    }
    let source = SourceMatch {
        tags: tags(&[("version", "v1")]),
        ..SourceMatch::default()
    };
    let rule = InboundRule {
        name,
        ports: if n == 0 { Vec::new() } else { vec![8080] },
        action: InboundAction::Capture,
        allow: if rng.below(2) == 0 {
            vec![PeerMatch {
                source: Some(source),
                cidr: None,
            }]
        } else {
            Vec::new()
        },
        ..fixture::inbound_rule()
    };
    model.inbound.push(rule);
    format!("inbound rule {n}")
}
