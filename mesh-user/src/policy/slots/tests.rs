use std::{collections::HashMap, net::SocketAddr};

use super::{
    super::fixture::{compile, endpoint, model, port, recompile, rule, service, tags, to},
    *,
};
use crate::{
    clock::MonoNanos,
    model::{Match, Model, OutboundRule, Protocol, Target},
};

/// How many slots each address has, at the service's first address and port 80.
fn shares(table: &KernelTable, address: &str) -> HashMap<SocketAddr, u32> {
    let entry = table.services[&(Addr::from_ip(address.parse().unwrap()), 80)];
    let mut shares = HashMap::new();
    for slot in entry.slots_off..entry.slots_off + entry.slots_len {
        let backend = table.backends[table.slots[slot as usize] as usize];
        assert_eq!(backend.state, 1);
        *shares
            .entry(backend.addr.with_port(backend.port))
            .or_default() += 1;
    }
    shares
}

fn web(table: &KernelTable) -> HashMap<SocketAddr, u32> {
    shares(table, "10.96.0.1")
}

fn at(address: &str) -> SocketAddr {
    format!("{address}:8080").parse().unwrap()
}

#[test]
fn order_is_weighted_interleaved_and_exact() {
    assert_eq!(interleave(&[1, 1], 1_024), [0, 1]);
    assert_eq!(interleave(&[2, 1], 1_024), [0, 1, 0]);
    assert_eq!(interleave(&[900_000, 100_000], 1_024).len(), 10);
    assert_eq!(interleave(&[5, 0, 5], 1_024), [0, 2]);
    assert_eq!(interleave(&[], 1_024), [0_u32; 0]);
    assert_eq!(interleave(&[0, 0], 1_024), [0_u32; 0]);
    // Never two of the smaller one in a row.
    let order = interleave(&[90, 10], 1_024);
    assert_eq!(order.len(), 10);
    let order = interleave(&[7, 3], 1_024);
    assert!(order.windows(2).all(|pair| pair != [1, 1]), "{order:?}");
}

#[test]
fn shares_that_fit_no_short_list_are_within_a_tenth_of_a_point() {
    for weights in [
        &[1_000_000, 1][..],
        &[999_983, 17, 1],
        &[333_333, 333_334, 333_331],
        &[1; 900],
    ] {
        let weights: Vec<u128> = weights.iter().map(|weight| *weight as u128).collect();
        let order = interleave(&weights, SLOTS_MAX);
        assert!(order.len() <= SLOTS_MAX);
        let sum: u128 = weights.iter().sum();
        for (which, weight) in weights.iter().enumerate() {
            let count = order.iter().filter(|at| **at as usize == which).count();
            let off = count as f64 / order.len() as f64 - *weight as f64 / sum as f64;
            assert!(off.abs() < 0.001, "{which}: {off}");
        }
    }
}

#[test]
fn table_names_every_address_of_both_families_and_decides() {
    let snapshot = compile(model(service(2, 0), Vec::new(), Vec::new()));
    let table = snapshot.kernel_table();
    assert_eq!(table.services.len(), 2);
    for entry in table.services.values() {
        assert_eq!((entry.decision, entry.flags), (DECIDE_PASS, FLAG_ROUTABLE));
        assert_eq!(entry.service_id, 1);
    }
    let name = &table.names[&1];
    assert_eq!(
        (name.service.as_str(), name.port, name.path),
        ("default/web", 80, Path::Pass)
    );
    assert_eq!(
        web(&table),
        [(at("10.0.1.1"), 1), (at("10.0.1.2"), 1)].into()
    );
}

#[test]
fn unroutable_service_without_rules_is_served_by_the_proxy() {
    let mut unroutable = service(1, 0);
    unroutable.routable = false;
    let table = compile(model(unroutable, Vec::new(), Vec::new())).kernel_table();
    assert!(
        table
            .services
            .values()
            .all(|e| (e.decision, e.flags) == (DECIDE_PROXY, 0))
    );
    assert_eq!(web(&table).len(), 1);
}

#[test]
fn slots_follow_the_first_rule_without_conditions() {
    let conditional = Match {
        methods: vec!["GET".into()].into(),
        ..Match::default()
    };
    let rules = vec![
        rule("narrow", 10, vec![conditional], vec![to("v2", 1)]),
        rule("default", 0, Vec::new(), vec![to("v1", 90), to("v2", 10)]),
    ];
    let snapshot = compile(model(service(3, 1), rules, Vec::new()));
    // 90 % over three, 10 % on one: 30 slots in all.
    let expected = [
        (at("10.0.1.1"), 3),
        (at("10.0.1.2"), 3),
        (at("10.0.1.3"), 3),
        (at("10.0.2.1"), 1),
    ];
    assert_eq!(web(&snapshot.kernel_table()), expected.into());
}

#[test]
fn slots_without_such_a_rule_are_all_endpoints_by_weight() {
    let conditional = Match {
        methods: vec!["GET".into()].into(),
        ..Match::default()
    };
    let mut web_service = service(2, 1);
    web_service.endpoints[0].weight = 3;
    web_service.endpoints[1].weight = 0;
    let rules = vec![rule("narrow", 10, vec![conditional], vec![to("v2", 1)])];
    let snapshot = compile(model(web_service, rules, Vec::new()));
    let expected = [(at("10.0.1.1"), 3), (at("10.0.2.1"), 1)];
    assert_eq!(web(&snapshot.kernel_table()), expected.into());
}

#[test]
fn unready_endpoints_and_empty_versions_have_no_slots() {
    let mut web_service = service(2, 0);
    web_service.endpoints[0].healthy = false;
    let rules = vec![rule(
        "default",
        0,
        Vec::new(),
        vec![to("v1", 50), to("v2", 50)],
    )];
    let table = compile(model(web_service, rules, Vec::new())).kernel_table();
    assert_eq!(web(&table), [(at("10.0.1.2"), 1)].into());

    let nobody = compile(model(service(0, 0), Vec::new(), Vec::new())).kernel_table();
    assert!(nobody.services.values().all(|entry| entry.slots_len == 0));
}

#[test]
fn endpoint_in_two_targets_has_the_sum_of_both_shares() {
    let all = Target {
        weight: 1,
        ..Target::default()
    };
    let rules = vec![rule("default", 0, Vec::new(), vec![to("v1", 1), all])];
    let table = compile(model(service(1, 1), rules, Vec::new())).kernel_table();
    assert_eq!(
        web(&table),
        [(at("10.0.1.1"), 3), (at("10.0.2.1"), 1)].into()
    );
}

/// `n` services, of one endpoint each.
fn many(names: &[usize]) -> Model {
    let services = names.iter().map(|n| {
        let mut one = service(0, 0);
        one.name = format!("s{n}");
        one.addresses = vec![format!("10.96.1.{n}").parse().unwrap()];
        one.endpoints = vec![endpoint(&format!("10.1.0.{n}"), "v1")];
        one
    });
    Model {
        services: services.collect(),
        ..Model::default()
    }
}

#[test]
fn service_ids_stay_and_new_ports_get_the_lowest_free_ones() {
    let first = compile(many(&[1, 2, 3]));
    let second = recompile(many(&[3, 4, 1]), &first, MonoNanos(1));
    let id = |snapshot: &Snapshot, n: usize| {
        let address = Addr::from_ip(format!("10.96.1.{n}").parse().unwrap());
        snapshot.kernel_table().services[&(address, 80)].service_id
    };
    assert_eq!([1, 2, 3].map(|n| id(&first, n)), [1, 2, 3]);
    assert_eq!([1, 3, 4].map(|n| id(&second, n)), [1, 3, 2]);
}

#[test]
fn table_is_the_same_for_the_same_model_and_survives_many_reloads() {
    let mut snapshot = compile(many(&[1, 2, 3]));
    assert_eq!(
        snapshot.kernel_table(),
        compile(many(&[1, 2, 3])).kernel_table()
    );
    for n in 0..200 {
        let services: Vec<usize> = (1..4 + n % 7).collect();
        snapshot = recompile(many(&services), &snapshot, MonoNanos(1));
        let table = snapshot.kernel_table();
        assert!(
            table.backends.len() < 40 && table.slots.len() < 40,
            "numbers leak"
        );
        for service in &services {
            let shares = shares(&table, &format!("10.96.1.{service}"));
            let expected: SocketAddr = format!("10.1.0.{service}:8080").parse().unwrap();
            assert_eq!(shares, [(expected, 1)].into());
        }
    }
}

/// `n` TCP services of two versions whose split needs 1,000 slots each.
fn wide(n: usize) -> Model {
    let mut model = Model::default();
    for at in 0..n {
        let mut one = service(1, 1);
        one.name = format!("s{at}");
        let [high, low] = (at as u16).to_be_bytes();
        one.addresses = vec![[10, 97, high, low].into()];
        one.ports = vec![port("tcp", 80, Protocol::Tcp)];
        model.services.push(one);
        let mut split = rule("r", 0, Vec::new(), vec![to("v1", 999), to("v2", 1)]);
        split.service = at;
        model.rules.push(split);
    }
    model
}

/// Without it: what the kernel has no room for is refused by it for ever.
#[test]
fn port_without_room_in_slots_is_the_proxys_and_says_so() {
    let capacity = maps::get("SLOTS").capacity as usize;
    let snapshot = compile(wide(capacity / 1_000 + 1));
    let table = snapshot.kernel_table();
    let last = snapshot.ports.last().unwrap();
    assert_eq!(snapshot.ports[0].path, Path::Kernel);
    assert_eq!(last.path, Path::Proxy);
    assert!(
        last.path_reason.ends_with("SLOTS is full"),
        "{}",
        last.path_reason
    );
    let decisions = table
        .services
        .values()
        .filter(|e| e.decision == DECIDE_PROXY);
    let left: Vec<u32> = decisions.map(|entry| entry.slots_len).collect();
    assert_eq!(left, [0]);
    assert!(table.slots.len() <= capacity);
}

/// `web` with a TCP port, 70 % to v1 and 30 % to v2.
fn direct(v1: usize, v2: usize) -> Model {
    let mut web = service(v1, v2);
    web.ports = vec![port("tcp", 80, Protocol::Tcp)];
    let split = rule("r", 0, Vec::new(), vec![to("v1", 70), to("v2", 30)]);
    model(web, vec![split], Vec::new())
}

/// States of the slots of an address, in order, with the endpoints of those that choose one.
fn states(table: &KernelTable, address: &str) -> HashMap<Option<SocketAddr>, u32> {
    let entry = table.services[&(Addr::from_ip(address.parse().unwrap()), 80)];
    let mut found = HashMap::new();
    for slot in entry.slots_off..entry.slots_off + entry.slots_len {
        let backend = table.backends[table.slots[slot as usize] as usize];
        let to = match backend.state {
            BACKEND_ON => Some(backend.addr.with_port(backend.port)),
            BACKEND_REFUSE => None,
            state => panic!("state {state} in a slot"),
        };
        *found.entry(to).or_default() += 1;
    }
    found
}

/// Without it: a change of path changes what clients get.
#[test]
fn share_of_a_version_without_endpoints_is_refused_on_the_kernel_path() {
    let snapshot = compile(direct(1, 0));
    assert_eq!(snapshot.ports[0].path, Path::Kernel);
    let expected = [(Some(at("10.0.1.1")), 7), (None, 3)];
    assert_eq!(
        states(&snapshot.kernel_table(), "10.96.0.1"),
        expected.into()
    );
}

#[test]
fn ejected_endpoint_leaves_the_slots_and_keeps_its_entry() {
    use crate::model::EjectionPolicy;

    let mut model = direct(2, 1);
    model.policies = vec![crate::model::Policy {
        ejection: Some(EjectionPolicy {
            consecutive_5xx: 3,
            max_percent: 100,
            ..EjectionPolicy::default()
        }),
        ..super::super::fixture::policy()
    }]
    .into();
    let snapshot = compile(model);
    let table = snapshot.kernel_table();
    assert!(
        snapshot
            .kernel_tables_now(snapshot.kernel_tables())
            .is_none()
    );
    let place = table
        .backends
        .iter()
        .position(|b| b.addr.with_port(b.port) == at("10.0.1.2"))
        .unwrap();
    let version = VersionIx(table.backends[place].version_id);
    let endpoint = crate::policy::snapshot::EndpointIx(table.endpoints[place]);
    let now = MonoNanos(1_000_000_000);
    // Good and bad ones in one look are never consecutive for certain.
    for _ in 0..4 {
        assert_eq!(snapshot.record_kernel(version, endpoint, (1, 9), now), None);
    }
    assert_eq!(snapshot.record_kernel(version, endpoint, (0, 2), now), None);
    assert!(
        snapshot
            .record_kernel(version, endpoint, (0, 1), now)
            .is_some()
    );
    let after = snapshot.kernel_tables_now(snapshot.kernel_tables());
    let after = after.expect("another table");
    assert!(snapshot.kernel_tables_now(&after).is_none());
    let after = flat(&snapshot, &after);
    let expected = [(Some(at("10.0.1.1")), 7), (Some(at("10.0.2.1")), 3)];
    assert_eq!(states(&after, "10.96.0.1"), expected.into());
    assert_eq!(after.backends[place].state, BACKEND_OUT);
    let (tried, failed) = snapshot.version(version).endpoints[1].live.recorded();
    assert_eq!((tried, failed), (4 * 10 + 3, 4 * 9 + 3));
}

/// Without it: an IPv4 client is refused where its turn is an IPv6 endpoint's.
#[test]
fn each_family_has_the_split_over_endpoints_that_it_reaches() {
    let mut model = direct(2, 2);
    let web = &mut model.services[0];
    web.endpoints[0].address = "fd00::11".parse().unwrap();
    let six: SocketAddr = "[fd00::11]:8080".parse().unwrap();
    let table = compile(model).kernel_table();
    let v2 = |count| [(Some(at("10.0.2.1")), count), (Some(at("10.0.2.2")), count)];
    let four: HashMap<_, _> = [(Some(at("10.0.1.2")), 14)]
        .into_iter()
        .chain(v2(3))
        .collect();
    assert_eq!(states(&table, "10.96.0.1"), four);
    let mixed: HashMap<_, _> = [(Some(six), 14)].into_iter().chain(v2(3)).collect();
    assert_eq!(states(&table, "fd00:96::1"), mixed);
}

#[test]
fn nobody_of_a_very_long_list_is_rounded_to_nothing() {
    let mut model = direct(0, 0);
    model.rules.clear();
    let web = &mut model.services[0];
    web.routable = false;
    web.endpoints = (0..3_000_u32)
        .map(|n| {
            endpoint(
                &std::net::Ipv4Addr::from_bits(0x0a01_0000 + n).to_string(),
                "v1",
            )
        })
        .collect();
    let seen = states(&compile(model).kernel_table(), "10.96.0.1");
    assert_eq!(seen.len(), 3_000);
    assert!(seen.values().all(|count| *count == 1));
}

#[test]
fn outbound_rules_are_prefixes_over_128_bits() {
    let model = Model {
        outbound: vec![
            OutboundRule {
                cidr: "10.0.0.0/8".parse().unwrap(),
                ports: vec![80, 443],
                protocol: Transport::Tcp,
                action: OutboundAction::Deny,
            },
            OutboundRule {
                cidr: "fd00::/16".parse().unwrap(),
                ports: Vec::new(),
                protocol: Transport::Any,
                action: OutboundAction::Pass,
            },
        ],
        ..Model::default()
    };
    let v4 = Addr::from_ip("10.0.0.0".parse().unwrap());
    let v6 = Addr::from_ip("fd00::".parse().unwrap());
    let snapshot = compile(model);
    let table = snapshot.kernel_table();
    assert_eq!(
        table.outbound,
        [
            (v4, 104, 80, maps::OUT_DENY),
            (v4, 104, 443, maps::OUT_DENY),
            (v6, 16, 0, maps::OUT_PASS)
        ]
    );
    assert_eq!(table.outbound_udp, [(v6, 16, 0, maps::OUT_PASS)]);
    assert!(!table.denies_datagrams());
}

#[test]
fn ports_of_one_service_have_numbers_and_backends_of_their_own() {
    let mut two = service(1, 0);
    two.ports.push(port("admin", 81, Protocol::Tcp));
    two.endpoints[0].ports.insert("admin".into(), 9_090);
    two.endpoints[0].tags = tags(&[]);
    let table = compile(model(two, Vec::new(), Vec::new())).kernel_table();
    assert_eq!(table.names.keys().copied().collect::<Vec<_>>(), [1, 2]);
    let entry = table.services[&(Addr::from_ip("10.96.0.1".parse().unwrap()), 81)];
    assert_eq!(entry.service_id, 2);
    let backend = table.backends[table.slots[entry.slots_off as usize] as usize];
    assert_eq!(
        backend.addr.with_port(backend.port),
        "10.0.1.1:9090".parse().unwrap()
    );
}

/// The kernel's two look-ups (exact port, then any port), each of the longest prefix, against the
/// plain reading of the file: the longest range wins.
#[test]
fn outbound_look_ups_find_the_longest_range_of_the_right_family() {
    use crate::model::OutboundRule;

    let mut rng = crate::policy::rng::Rng::new(7);
    let networks = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3/32",
        "::/0",
        "fd00::/8",
        "fd00:1::/32",
    ];
    let asked = [
        "10.1.2.3",
        "10.1.9.9",
        "10.9.9.9",
        "192.0.2.1",
        "fd00:1::1",
        "fd00:2::1",
        "2001:db8::1",
    ];
    for round in 0..2000 {
        let mut model = Model::default();
        for network in networks {
            if rng.below(2) == 0 {
                continue;
            }
            let ports = [vec![], vec![443], vec![443, 80]][rng.below(3) as usize].clone();
            let action = [OutboundAction::Pass, OutboundAction::Deny][rng.below(2) as usize];
            let protocol = [Transport::Tcp, Transport::Udp, Transport::Any][rng.below(3) as usize];
            model.outbound.push(OutboundRule {
                cidr: network.parse().unwrap(),
                ports,
                protocol,
                action,
            });
        }
        // What is about UDP, read as if it were about TCP.
        let mut datagrams = model.clone();
        datagrams.outbound.retain(|rule| rule.protocol.udp());
        for rule in &mut datagrams.outbound {
            rule.protocol = Transport::Tcp;
        }
        assert_eq!(
            outbound(&model, Transport::udp),
            outbound(&datagrams, Transport::tcp)
        );
        let table = outbound(&model, Transport::tcp);
        for ip in asked {
            let ip: std::net::IpAddr = ip.parse().unwrap();
            for port in [443, 80, 22] {
                let wanted = model.outbound_rule(ip, port).map(|rule| match rule.action {
                    OutboundAction::Pass => maps::OUT_PASS,
                    OutboundAction::Deny => maps::OUT_DENY,
                });
                assert_eq!(
                    hook(&table, ip, port),
                    wanted,
                    "round {round}, {ip}:{port}, {model:?}"
                );
            }
        }
    }
}

fn hook(table: &[OutboundEntry], ip: std::net::IpAddr, port: u16) -> Option<u32> {
    let addr = Addr::from_ip(ip);
    let longest = |port: u16| {
        table
            .iter()
            .filter(|rule| rule.2 == port && rule.0.is_v4() == addr.is_v4())
            .filter(|rule| {
                let shift = 128 - u32::from(rule.1);
                let bits = |a: Addr| {
                    u128::from_be_bytes(a.octets())
                        .checked_shr(shift)
                        .unwrap_or(0)
                };
                bits(rule.0) == bits(addr)
            })
            .max_by_key(|rule| rule.1)
            .map(|rule| rule.3)
    };
    longest(port).or_else(|| longest(0))
}
