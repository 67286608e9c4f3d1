//! What one request's decisions cost: `cargo bench -p mesh-user --bench policy`.
//!
//! Prints nanoseconds for each step and for all of them, for a service with 10 rules of which one
//! matches a header, a 90/10 split, a breaker, and one keyed limit; then what a route costs with 10
//! to 100,000 rules, as a ratio to 10. Plain loops: enough for a figure of hundreds of nanoseconds,
//! and no dependency. The budget (400 ns) is this project's own aim: 3 % of the CPU that a proxied
//! request costs.

use std::{hint::black_box, sync::Arc, time::Instant};

use mesh_user::{
    clock::MonoNanos,
    model::{
        DialFrom, EjectionPolicy, Endpoint, Interception, Match, Model, Netns, PathChoice,
        PathMatch, Policy, Port, Protocol, RateLimitPolicy, Rule, Select, Service, Tags, Target,
        ValueMatch, Workload,
    },
    policy::{
        NoObserver, PortIx, RequestView, Snapshot, balance, rate_limit, rng::Rng, route,
        snapshot::Outcome, split::Cursors,
    },
};

const BUDGET_NS: f64 = 400.0;
const PORT: PortIx = PortIx(0);

fn main() {
    // `cargo test --benches` runs it, too: then once is enough.
    let rounds = if std::env::args().any(|arg| arg == "--bench") {
        2_000_000
    } else {
        1_000
    };
    request(rounds);
    routes(rounds / 4);
}

fn request(rounds: u64) {
    let snapshot = compile(example(10));
    let source = snapshot.source("shop/client");
    let headers = headers();
    let view = view(&headers, "/api/v1/items/42");
    let (mut cursors, mut rng) = (Cursors::default(), Rng::new(1));
    let mut now = MonoNanos(1_000_000_000);
    let plan = route::decide(
        &snapshot,
        PORT,
        source,
        &view,
        &mut cursors,
        &mut NoObserver,
    )
    .expect("a rule");

    println!("one request, {rounds} rounds, ns:");
    let decide = time(rounds, || {
        black_box(route::decide(
            &snapshot,
            PORT,
            source,
            &view,
            &mut cursors,
            &mut NoObserver,
        ))
        .ok();
    });
    println!("  decide   {decide:7.1}");
    let admit = time(rounds, || {
        now.0 += 1_000;
        let view = Some(&view);
        black_box(rate_limit::admit(
            &snapshot,
            &plan,
            source,
            view,
            now,
            &mut NoObserver,
        ));
    });
    println!("  admit    {admit:7.1}");
    let pick = time(rounds, || {
        black_box(balance::pick(&snapshot, plan.version, &[], &mut rng, now)).ok();
    });
    println!("  pick     {pick:7.1}");
    let version = snapshot.version(plan.version);
    let endpoint = balance::pick(&snapshot, plan.version, &[], &mut rng, now).expect("an endpoint");
    let permit = time(rounds, || {
        drop(black_box(version.breaker.request(&endpoint)));
    });
    println!("  permit   {permit:7.1}");
    let record = time(rounds, || {
        black_box(snapshot.record(plan.version, &endpoint, Outcome::Status(200), None, now));
    });
    println!("  record   {record:7.1}");
    let all = time(rounds, || {
        now.0 += 1_000;
        let plan = route::decide(
            &snapshot,
            PORT,
            source,
            &view,
            &mut cursors,
            &mut NoObserver,
        )
        .expect("a rule");
        let verdict =
            rate_limit::admit(&snapshot, &plan, source, Some(&view), now, &mut NoObserver);
        assert_eq!(verdict.refused, None);
        let endpoint =
            balance::pick(&snapshot, plan.version, &[], &mut rng, now).expect("an endpoint");
        let permit = snapshot
            .version(plan.version)
            .breaker
            .request(&endpoint)
            .expect("room");
        snapshot.record(plan.version, &endpoint, Outcome::Status(200), None, now);
        drop(permit);
    });
    println!(
        "  all      {all:7.1}   {:.2} of the budget of {BUDGET_NS} ns",
        all / BUDGET_NS
    );
}

fn routes(rounds: u64) {
    println!("decide by number of rules, ns, and as a ratio to 10:");
    let headers = headers();
    let mut base = None;
    for count in [10, 100, 1_000, 10_000, 100_000] {
        let snapshot = compile(example(count));
        let path = format!("/svc/{}/items", count - 3);
        let view = view(&headers, &path);
        let mut cursors = Cursors::default();
        let ns = time(rounds, || {
            black_box(route::decide(
                &snapshot,
                PORT,
                None,
                &view,
                &mut cursors,
                &mut NoObserver,
            ))
            .ok();
        });
        let base = *base.get_or_insert(ns);
        println!("  {count:6} rules {ns:7.1}   {:.2}", ns / base);
    }
}

/// The best of five: what the machine's other work adds is left out.
fn time(rounds: u64, mut one: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let begun = Instant::now();
            (0..rounds).for_each(|_| one());
            begun.elapsed().as_nanos() as f64 / rounds as f64
        })
        .fold(f64::INFINITY, f64::min)
}

fn headers() -> http::HeaderMap {
    let fields = [
        ("host", "web"),
        ("user-agent", "bench/1.0"),
        ("accept", "*/*"),
        ("x-request-id", "3f2a9f0e-8f6c-4d2b"),
        ("x-user", "alpha"),
    ];
    let field = |(name, value): (&'static str, &'static str)| {
        (
            http::HeaderName::from_static(name),
            http::HeaderValue::from_static(value),
        )
    };
    fields.into_iter().map(field).collect()
}

fn view<'a>(headers: &'a http::HeaderMap, path: &'a str) -> RequestView<'a, http::HeaderMap> {
    RequestView {
        method: "GET",
        path,
        query: None,
        authority: "web:80",
        headers,
    }
}

fn compile(model: Model) -> Snapshot {
    Snapshot::compile(Arc::new(model), None, MonoNanos(0))
}

/// `count` rules: one on a header, one on all, the others on paths.
fn example(count: usize) -> Model {
    let version = |name: &str| -> Tags { [("version".to_owned(), name.to_owned())].into() };
    let to = |name: &str, weight| Target {
        select: Select::Version(name.to_owned()),
        weight,
        ..Target::default()
    };
    let rule = |name: String, precedence, matches, route| Rule {
        name,
        service: 0,
        port: None,
        precedence,
        matches,
        route,
        extra: None,
    };
    let beta = Match {
        headers: vec![("x-user".to_owned(), ValueMatch::Exact("beta".to_owned()))].into(),
        ..Match::default()
    };
    let mut rules = vec![
        rule("beta".to_owned(), 10, vec![beta], vec![to("v2", 1)]),
        rule(
            "split".to_owned(),
            -1,
            Vec::new(),
            vec![to("v1", 90), to("v2", 10)],
        ),
    ];
    rules.extend((0..count - 2).map(|n| {
        let path = Match {
            path: Some(PathMatch::Prefix(format!("/svc/{n}"))),
            ..Match::default()
        };
        rule(format!("path-{n}"), 0, vec![path], vec![to("v1", 1)])
    }));
    let endpoint = |n: usize| Endpoint {
        address: format!("10.1.0.{n}").parse().expect("an address"),
        tags: version(if n < 5 { "v1" } else { "v2" }),
        ..Endpoint::default()
    };
    let service = Service {
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        hostnames: vec!["web".to_owned()],
        addresses: vec!["10.96.0.1".parse().expect("an address")],
        ports: vec![Port {
            name: "http".to_owned(),
            number: 80,
            target: 8080,
            protocol: Protocol::Http,
            path: PathChoice::Auto,
            tls: None,
        }],
        versions: [
            ("v1".to_owned(), version("v1")),
            ("v2".to_owned(), version("v2")),
        ]
        .into(),
        endpoints: (1..7).map(endpoint).collect(),
        routable: true,
        dial_from: DialFrom::Workload,
    };
    let policy = Policy {
        service: 0,
        breaker: Some(mesh_user::model::BreakerPolicy::default()),
        ejection: Some(EjectionPolicy::default()),
        rate_limits: vec![RateLimitPolicy {
            name: "each".to_owned(),
            key: vec![mesh_user::model::Attribute::SourceWorkload],
            requests: 10_000_000,
            per: std::time::Duration::from_secs(1),
            burst: 10_000_000,
            ..RateLimitPolicy::default()
        }],
        ..Policy::default()
    };
    let client = Workload {
        name: "client".to_owned(),
        namespace: "shop".to_owned(),
        netns: Netns::Path("/run/netns/client".into()),
        cgroup: None,
        tags: [("app".to_owned(), "client".to_owned())].into(),
        identity: None,
        interception: Interception::default(),
        capture: true,
    };
    Model {
        services: vec![service].into(),
        rules: rules.into(),
        policies: vec![policy].into(),
        workloads: vec![client],
        ..Model::default()
    }
}
