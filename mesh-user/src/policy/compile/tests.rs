//! A snapshot that was compiled change by change is the one that would be compiled at once.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use crate::{
    clock::MonoNanos,
    model::{
        AdaptivePolicy, Attribute, Backend, Balance, BalancePolicy, BreakerPolicy, EjectionPolicy,
        HealthCheck, HedgePolicy, List, LocalityPolicy, Match, Model, OnChange, PathMatch, Policy,
        Protocol, RateLimitPolicy, RateLimitService, RetryBudget, RetryPolicy, Rule, RuleExtra,
        Select, Service, SourceMatch, Target, ValueMatch,
        action::{
            Actions, DirectResponse, Fraction, Mirror, PathRewrite, Persistence, Rewrite,
            RuleTimeouts, SessionCarrier, Sticky, Terminal,
        },
        balance::Level,
        inbound::{InboundAction, InboundRule, PeerMatch},
        limit::{GlobalLimit, RedisStore, StoreAddress, StoreKind},
        tls::{Originate, UpstreamTls},
    },
    policy::{
        NoObserver, PortIx, Snapshot, VersionIx,
        fixture::{self, Ask, endpoint, get, port, recompile, service, tags, workload},
        rng::Rng,
        route,
        snapshot::EndpointState,
        split::Cursors,
    },
};

mod changes;
mod extras;

use changes::change;

/// `n` services of one TCP or HTTP port and one endpoint each.
fn many(n: usize) -> Model {
    let one = |at: usize| {
        let mut one = service(0, 0);
        one.name = format!("s{at}");
        one.hostnames = vec![format!("s{at}.example")];
        let [high, low] = (at as u16).to_be_bytes();
        one.addresses = vec![[10, 96, high, low].into()];
        one.endpoints = vec![
            endpoint(&format!("10.1.{high}.{low}"), "v1"),
            endpoint(&format!("10.2.{high}.{low}"), "v2"),
        ];
        one
    };
    Model {
        services: (0..n).map(one).collect(),
        ..Model::default()
    }
}

fn label(snapshot: &Snapshot, ix: VersionIx) -> String {
    let version = snapshot.version(ix);
    format!("{} {}", snapshot.port(version.port).label(), version.name)
}

/// Everything that a snapshot decides and shows, by names.
#[derive(Debug, PartialEq)]
struct Shown {
    services: Vec<crate::policy::describe::ServiceRow>,
    routes: Vec<crate::policy::describe::RouteRow>,
    endpoints: Vec<String>,
    policies: Vec<crate::policy::describe::PolicyRow>,
    targets: Vec<String>,
    decisions: Vec<String>,
    names: Vec<Option<String>>,
    kernel: BTreeMap<String, Vec<String>>,
    outbound: usize,
    inbound: Vec<String>,
    extras: Vec<String>,
}

/// `deep`: with the extras, which take their time.
fn show(snapshot: &Snapshot, deep: bool) -> Shown {
    let now = MonoNanos(1);
    let endpoints = snapshot.describe_endpoints(now).into_iter();
    let port_label = |ix: PortIx| snapshot.port(ix).label();
    let mut targets = Vec::new();
    for port in snapshot.service_ports() {
        for rule in port.routes.rules().iter().map(|ix| snapshot.rule(*ix)) {
            for target in &rule.targets {
                let to = label(snapshot, target.version);
                targets.push(format!(
                    "{} {} -> {to} {} {}",
                    port.label(),
                    rule.name,
                    target.weight,
                    target.invalid
                ));
            }
        }
    }
    let names = snapshot.model.services.iter().flat_map(|service| {
        let key = [service.key()];
        let names = service.hostnames.iter().chain(&key);
        let found = names.map(|name| snapshot.port_named(&name.to_uppercase(), 80));
        let addresses = service.addresses.iter();
        let by_address = addresses.map(|address| snapshot.port_at(*address, 80));
        found.chain(by_address).collect::<Vec<_>>()
    });
    Shown {
        services: snapshot.describe_services(),
        routes: snapshot.describe_routes(),
        endpoints: endpoints
            .map(|row| {
                let key = (row.address, row.weight, row.state, row.tags, row.versions);
                format!("{} {} {key:?}", row.service, row.port)
            })
            .collect(),
        policies: snapshot.describe_policies(),
        targets,
        decisions: decisions(snapshot),
        names: names.map(|ix| ix.map(port_label)).collect(),
        kernel: kernel(snapshot),
        outbound: snapshot.kernel_tables().outbound.len(),
        inbound: inbound(snapshot),
        extras: match deep {
            true => extras::extras(snapshot),
            false => Vec::new(),
        },
    }
}

/// The first lines that differ.
fn difference(one: &Shown, two: &Shown) -> String {
    let (one, two) = (format!("{one:#?}"), format!("{two:#?}"));
    let mut lines = one.lines().zip(two.lines()).enumerate();
    match lines.find(|(_, (one, two))| one != two) {
        Some((at, (left, right))) => {
            let before: Vec<&str> = one.lines().take(at).collect();
            let before = before[at.saturating_sub(12)..].join("\n");
            format!("{before}\nis     {left}\nwanted {right}")
        }
        None => "one is longer".to_owned(),
    }
}

fn asks() -> Vec<Ask> {
    let mut asks = vec![get("/"), get("/elsewhere")];
    for n in 0..4 {
        asks.push(get(&format!("/p{n}/x")));
        asks.push(get("/").with("x-user", &format!("u{n}")));
    }
    asks
}

fn decisions(snapshot: &Snapshot) -> Vec<String> {
    let mut all = Vec::new();
    let sources = (0..snapshot.sources.len() as u32).map(|at| Some(crate::policy::SourceIx(at)));
    let sources: Vec<_> = sources.chain([None]).collect();
    let ports = snapshot.units.iter().flat_map(|unit| unit.ports.clone());
    for ix in ports {
        for source in &sources {
            for ask in asks() {
                let mut cursors = Cursors::default();
                let observer = &mut NoObserver;
                let view = ask.view();
                let to = route::decide(snapshot, ix, *source, &view, &mut cursors, observer);
                let tcp = route::decide_tcp(snapshot, ix, *source, &mut cursors, observer);
                all.push(match to {
                    Ok(plan) => {
                        let rule = plan.rule.map(|rule| &snapshot.rule(rule).name);
                        format!("{rule:?} {}", label(snapshot, plan.version))
                    }
                    Err(reject) => format!("{reject:?}"),
                });
                all.push(format!(
                    "{:?}",
                    tcp.map(|plan| label(snapshot, plan.version))
                ));
            }
        }
    }
    all
}

/// By address and port: decision, flags, and the slots in order.
fn kernel(snapshot: &Snapshot) -> BTreeMap<String, Vec<String>> {
    let table = snapshot.kernel_table();
    let entry = |(key, entry): (&(_, u16), &mesh_common::service::ServiceEntry)| {
        let slots = entry.slots_off as usize..(entry.slots_off + entry.slots_len) as usize;
        let slots = table.slots[slots].iter().map(|slot| {
            let backend = &table.backends[*slot as usize];
            let version = &table.versions[backend.version_id as usize];
            format!(
                "{:?} {} {} {version:?}",
                backend.addr, backend.port, backend.state
            )
        });
        let head = format!("{} {}", entry.decision, entry.flags);
        let named = table.names.contains_key(&entry.service_id);
        assert!(named, "a service number without a name");
        (
            format!("{key:?}"),
            [head].into_iter().chain(slots).collect(),
        )
    };
    table.services.iter().map(entry).collect()
}

fn inbound(snapshot: &Snapshot) -> Vec<String> {
    let mut all = Vec::new();
    for workload in &snapshot.model.workloads {
        for number in [80, 8080, 9090] {
            let ix = snapshot.inbound_at(&workload.key(), number);
            all.push(match ix {
                Some(ix) => {
                    let port = snapshot.port(ix);
                    let plan = port.inbound.as_ref().expect("an inbound port");
                    let version = snapshot.version(port.all);
                    let key = (&plan.workload, &plan.rule, version.effective.breaker.value);
                    format!("{number} {key:?} {}", version.limits.len())
                }
                None => format!("{number} none"),
            });
            let before = snapshot.inbound_before_dialling(&workload.key(), number);
            all.push(match before {
                crate::policy::inbound::BeforeDialling::Judge(_) => "judged".to_owned(),
                other => format!("{other:?}"),
            });
        }
    }
    for service in &snapshot.model.services {
        for endpoint in &service.endpoints {
            let at = SocketAddr::new(endpoint.address, 8080);
            let peer = snapshot.peer(endpoint.address, None);
            all.push(format!("{:?} {peer:?}", snapshot.inbound_protocol(at)));
        }
    }
    all
}

/// State that must be the same one: what is counted where, by names.
fn states(snapshot: &Snapshot) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for port in snapshot.service_ports() {
        for version in port.versions.iter().map(|ix| snapshot.version(*ix)) {
            let name = format!("{} {}", port.label(), version.name);
            all.insert(
                format!("breaker {name}"),
                Arc::as_ptr(&version.breaker).addr(),
            );
        }
        for endpoint in &snapshot.version(port.all).endpoints {
            let EndpointState { address, live, .. } = &**endpoint;
            let name = format!("endpoint {} {address}", port.label());
            all.insert(name, Arc::as_ptr(live).addr());
        }
        let id = port.service_id as usize;
        all.insert(format!("id {}", port.label()), id);
    }
    snapshot.each_limiter(|key, limiter| {
        // The same name with other values is another limit.
        let (policy, store) = (limiter.policy(), limiter.global().map(|it| &it.service));
        let name = format!("limiter {key:?} {policy:?} {store:?}");
        all.insert(name, Arc::as_ptr(limiter).addr());
    });
    all
}

/// Numbers that mean one thing each.
fn assert_sound(snapshot: &Snapshot) {
    let mut ids = std::collections::BTreeSet::new();
    for port in snapshot.service_ports() {
        assert!(
            port.service_id > 0 && ids.insert(port.service_id),
            "{}",
            port.label()
        );
        for ix in &port.versions {
            assert_eq!(snapshot.version(*ix).port, ix_of(snapshot, port));
        }
    }
    let ports = snapshot.ports.iter().count();
    let rules: usize = snapshot
        .ports
        .iter()
        .map(|port| port.routes.rules().len())
        .sum();
    let versions: usize = snapshot.ports.iter().map(|port| port.versions.len()).sum();
    let services = snapshot.service_ports().count();
    let inbound = snapshot.ports.iter().filter(|port| port.inbound.is_some());
    assert_eq!(ports, services + inbound.count(), "ports leak");
    assert_eq!(snapshot.rules.iter().count(), rules, "rules leak");
    assert_eq!(snapshot.versions.iter().count(), versions, "versions leak");
}

fn ix_of(snapshot: &Snapshot, port: &crate::policy::snapshot::PortPlan) -> PortIx {
    let mut ports = snapshot.ports.entries();
    let same = |plan: &crate::policy::snapshot::PortPlan| std::ptr::eq(plan, port);
    let (ix, _) = ports
        .find(|(_, plan)| same(plan))
        .expect("a port of the snapshot");
    PortIx(ix)
}

/// Without it: after the hundredth change of a day a service goes somewhere else than its
/// configuration says, until the agent is restarted.
#[test]
fn snapshot_compiled_change_by_change_is_the_one_compiled_at_once() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut model = many(3 + rng.below(4) as usize);
        let mut snapshot = fixture::compile(model.clone());
        for step in 0..25 {
            let mut what = Vec::new();
            for _ in 0..=rng.below(3) {
                what.push(change(&mut model, &mut rng));
            }
            if rng.below(5) == 0 {
                // As a file that is read again: nothing is shared.
                model = unshared(&model);
                what.push("unshared".to_owned());
            }
            let next = recompile(model.clone(), &snapshot, MonoNanos(step));
            let place = || format!("seed {seed}, step {step}, {what:?}");
            let whole = fixture::compile(model.clone());
            // What is wrong once mostly stays wrong.
            let deep = (seed + step) % 4 == 0;
            let (shown, wanted) = (show(&next, deep), show(&whole, deep));
            if shown != wanted {
                panic!("{}\n{}", place(), difference(&shown, &wanted));
            }
            assert_sound(&next);
            let (before, after) = (states(&snapshot), states(&next));
            for (name, state) in &before {
                if let Some(now) = after.get(name) {
                    assert_eq!(now, state, "{name}: {}", place());
                }
            }
            snapshot = next;
        }
    }
}

fn unshared(model: &Model) -> Model {
    fn copy<T: Clone>(list: &List<T>) -> List<T> {
        list.iter().cloned().collect()
    }
    Model {
        services: copy(&model.services),
        rules: copy(&model.rules),
        policies: copy(&model.policies),
        ..model.clone()
    }
}

/// Which plans two snapshots don't share: ports, versions, tables of the kernel.
fn differing(one: &Snapshot, two: &Snapshot) -> (usize, usize, usize) {
    let ports = one.ports.entries().filter(|(ix, port)| {
        let other = two.ports.get(*ix as usize);
        !other.is_some_and(|other| Arc::ptr_eq(port, other))
    });
    let versions = one.versions.entries().filter(|(ix, version)| {
        let other = two.versions.get(*ix as usize);
        !other.is_some_and(|other| Arc::ptr_eq(version, other))
    });
    let tables = one
        .kernel_tables()
        .ports
        .changes(&two.kernel_tables().ports);
    (ports.count(), versions.count(), tables.count())
}

/// Without it: one endpoint that comes costs the compilation of 100,000 services.
#[test]
fn changed_endpoint_compiles_its_service_alone() {
    let model = many(1_000);
    let before = fixture::compile(model.clone());
    let mut next = model.clone();
    next.services[500].endpoints[0].weight = 7;
    let after = recompile(next.clone(), &before, MonoNanos(1));
    // Its port, and its versions `*` and v1; v2 has another endpoint.
    assert_eq!(differing(&before, &after), (1, 2, 1));
    let mut named = next.services[400].clone();
    named.endpoints.pop();
    next.services.set(400, named);
    let last = recompile(next, &after, MonoNanos(2));
    assert_eq!(differing(&after, &last), (1, 2, 1));
    assert_eq!(last.generation, 2);
}

/// Without it: one weight that changes costs the index over 100,000 rules.
#[test]
fn changed_weight_keeps_the_index_and_all_other_rules() {
    let mut model = many(2);
    for n in 0..2_000 {
        let path = Match {
            path: Some(PathMatch::Exact(format!("/{n}"))),
            ..Match::default()
        };
        let to = vec![fixture::to("v1", 1), fixture::to("v2", 1)];
        model
            .rules
            .push(fixture::rule(&format!("r{n}"), 0, vec![path], to));
    }
    let before = fixture::compile(model.clone());
    model.rules[1_234].route[0].weight = 9;
    let after = recompile(model.clone(), &before, MonoNanos(1));
    let port = |snapshot: &Snapshot| Arc::clone(&snapshot.ports[0]);
    assert!(Arc::ptr_eq(&port(&before).routes, &port(&after).routes));
    assert_eq!(differing(&before, &after).1, 0);
    let split = |snapshot: &Snapshot, at: usize| snapshot.rules[at].split.id;
    let others = (0..2_000).filter(|at| split(&before, *at) != split(&after, *at));
    assert_eq!(others.collect::<Vec<_>>(), [1_234]);
    assert_eq!(after.rules[1_234].targets[0].weight, 9);
    // And the next change is against the new one.
    model.rules[1_234].route[0].weight = 1;
    let again = recompile(model, &after, MonoNanos(2));
    assert_eq!(again.rules[1_234].targets[0].weight, 1);
}

/// Without it: caps of a snapshot that was thrown away, or put back, stay in force.
#[test]
fn caps_of_changed_versions_are_put_in_force_with_the_snapshot() {
    let capped = |cap| Policy {
        breaker: Some(BreakerPolicy {
            max_requests: cap,
            ..BreakerPolicy::default()
        }),
        ..fixture::policy()
    };
    let mut model = many(2);
    model.policies.push(capped(10));
    let first = fixture::compile(model.clone());
    first.enforce();
    let caps = |snapshot: &Snapshot| {
        let all = snapshot.version(snapshot.port(fixture::PORT).all);
        all.breaker.caps().max_requests
    };
    assert_eq!(caps(&first), 10);
    model.policies.set(0, capped(20));
    let thrown_away = Snapshot::compile(Arc::new(model.clone()), Some(&first), MonoNanos(1));
    assert_eq!(caps(&thrown_away), 10, "not in force");
    model.policies.set(0, capped(30));
    let second = Snapshot::compile(Arc::new(model.clone()), Some(&thrown_away), MonoNanos(1));
    second.enforce();
    assert_eq!(caps(&second), 30);
    first.enforce();
    assert_eq!(caps(&second), 10, "the first was put back");
    // Compiled from one that was never in force: its caps count all the same.
    let unrelated = recompile(
        {
            model.services[1].endpoints[0].weight = 3;
            model
        },
        &thrown_away,
        MonoNanos(2),
    );
    assert_eq!(caps(&unrelated), 30);
}
