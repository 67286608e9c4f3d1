//! What 100,000 services or routes cost: `cargo bench -p mesh-user --bench scale`.
//!
//! Prints the bytes of a route and of a service, and the ratios and times of the targets;
//! then criterion measures look-ups by number of rules, and full and partial compilations. Figures
//! of one run compare; those of two machines don't.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion};
use mesh_user::{
    clock::MonoNanos,
    model::{
        DialFrom, Endpoint, Match, Model, PathChoice, PathMatch, Port, Protocol, Rule, Select,
        Service, Tags, Target, ValueMatch,
    },
    policy::{
        NoObserver, PortIx, RequestView, Snapshot, request::HeaderList, route, split::Cursors,
    },
};

const MANY: usize = 100_000;

/// Counts what is allocated and not given back.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "counts allocations")]
// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Relaxed);
        #[expect(unsafe_code, reason = "passed on")]
        // SAFETY: the caller's promise is passed on.
        unsafe {
            System.alloc(layout)
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Relaxed);
        #[expect(unsafe_code, reason = "passed on")]
        // SAFETY: the caller's promise is passed on.
        unsafe {
            System.dealloc(block, layout);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.fetch_add(size, Relaxed);
        BYTES.fetch_sub(layout.size(), Relaxed);
        #[expect(unsafe_code, reason = "passed on")]
        // SAFETY: the caller's promise is passed on.
        unsafe {
            System.realloc(block, layout, size)
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The condition of each rule.
#[derive(Clone, Copy, Debug)]
enum By {
    Exact,
    Prefix,
    Header,
    Host,
}

const ALL: [By; 4] = [By::Exact, By::Prefix, By::Header, By::Host];

fn condition(by: By, n: usize) -> Match {
    let mut condition = Match::default();
    match by {
        By::Exact => condition.path = Some(PathMatch::Exact(format!("/svc/{n}/items"))),
        By::Prefix => condition.path = Some(PathMatch::Prefix(format!("/svc/{n}"))),
        By::Header => {
            let value = ValueMatch::Exact(format!("tenant-{n}"));
            condition.headers = vec![("x-tenant".to_owned(), value)].into();
        }
        By::Host => {
            let value = ValueMatch::Exact(format!("t{n}.example"));
            condition.authority = Some(Box::new(value));
        }
    }
    condition
}

fn rule(service: usize, name: String, matches: Vec<Match>) -> Rule {
    Rule {
        name,
        service,
        matches,
        route: vec![Target {
            select: Select::Version("v1".to_owned()),
            weight: 1,
            ..Target::default()
        }],
        ..Rule::default()
    }
}

fn service(n: usize, endpoints: usize) -> Service {
    let version = |name: &str| -> Tags { [("version".to_owned(), name.to_owned())].into() };
    let endpoint = |at: usize| Endpoint {
        address: std::net::Ipv4Addr::from_bits(0x0b00_0000 + (n * endpoints + at) as u32).into(),
        tags: version("v1"),
        ..Endpoint::default()
    };
    Service {
        name: format!("web-{n}"),
        namespace: "shop".to_owned(),
        hostnames: vec![format!("web-{n}.shop.svc.cluster.local")],
        addresses: vec![std::net::Ipv4Addr::from_bits(0x0a60_0000 + n as u32).into()],
        ports: vec![Port {
            name: "http".to_owned(),
            number: 80,
            target: 8080,
            protocol: Protocol::Http,
            path: PathChoice::Auto,
            tls: None,
        }],
        versions: [("v1".to_owned(), version("v1"))].into(),
        endpoints: (0..endpoints).map(endpoint).collect(),
        routable: true,
        dial_from: DialFrom::Workload,
    }
}

/// One service with so many rules.
fn routes(by: By, count: usize) -> Model {
    let one = |n: usize| rule(0, format!("route-{n}"), vec![condition(by, n)]);
    Model {
        services: vec![service(0, 2)].into(),
        rules: (0..count).map(one).collect(),
        ..Model::default()
    }
}

/// So many services of one port and one endpoint; with a rule each, if asked for.
fn services(count: usize, with_rule: bool) -> Model {
    let one = |n: usize| rule(n, "route".to_owned(), vec![condition(By::Prefix, 7)]);
    let rules = if with_rule { count } else { 0 };
    Model {
        services: (0..count).map(|n| service(n, 1)).collect(),
        rules: (0..rules).map(one).collect(),
        ..Model::default()
    }
}

fn compile(model: Model, previous: Option<&Snapshot>) -> Snapshot {
    let snapshot = Snapshot::compile(Arc::new(model), previous, MonoNanos(0));
    snapshot.enforce();
    snapshot
}

/// A request that the rule `n` matches.
struct Ask {
    path: String,
    authority: String,
    headers: HeaderList,
}

impl Ask {
    fn new(n: usize) -> Self {
        let fields = [
            ("user-agent", "bench/1.0".to_owned()),
            ("accept", "*/*".to_owned()),
            ("x-tenant", format!("tenant-{n}")),
        ];
        let field = |(name, value): (&str, String)| (name.to_owned(), value);
        Self {
            path: format!("/svc/{n}/items"),
            authority: format!("t{n}.example"),
            headers: HeaderList(fields.map(field).to_vec()),
        }
    }

    fn view(&self) -> RequestView<'_, HeaderList> {
        RequestView {
            method: "GET",
            path: &self.path,
            query: None,
            authority: &self.authority,
            headers: &self.headers,
        }
    }
}

fn decide(snapshot: &Snapshot, port: PortIx, ask: &Ask, cursors: &mut Cursors) {
    let plan = route::decide(snapshot, port, None, &ask.view(), cursors, &mut NoObserver);
    assert!(black_box(plan).is_ok());
}

/// Nanoseconds of a look-up. Requests go to rules all over the table.
fn lookup_ns(snapshot: &Snapshot, ports: usize, rules: usize) -> f64 {
    const ASKS: usize = 512;
    let asks: Vec<(PortIx, Ask)> = (0..ASKS)
        .map(|at| {
            let n = at * 7_919;
            let rule = if ports > 1 { 7 } else { n % rules };
            (PortIx((n % ports) as u32), Ask::new(rule))
        })
        .collect();
    let mut cursors = Cursors::default();
    best_of_five(ASKS, |at| {
        let (port, ask) = &asks[at];
        decide(snapshot, *port, ask, &mut cursors);
    })
}

fn main() {
    let benching = std::env::args().any(|arg| arg == "--bench");
    // `cargo test --benches` runs it, too: then small is enough.
    let many = if benching { MANY } else { 200 };
    bytes(many);
    lookups(many);
    changes(many);
    if benching {
        let mut criterion = Criterion::default()
            .configure_from_args()
            .sample_size(20)
            .measurement_time(Duration::from_secs(2));
        measure(&mut criterion);
        criterion.final_summary();
    }
}

fn bytes(many: usize) {
    println!("bytes of each of {many}, model and snapshot:");
    let show = |what: &str, make: &dyn Fn() -> Model| {
        let before = BYTES.load(Relaxed);
        let model = make();
        let of_model = BYTES.load(Relaxed) - before;
        let snapshot = compile(model, None);
        let all = BYTES.load(Relaxed) - before;
        let each = |bytes: usize| bytes as f64 / many as f64;
        let (model, all) = (each(of_model), each(all));
        println!(
            "  {what:24} model {model:6.0}   snapshot {:6.0}   both {all:6.0}",
            all - model
        );
        drop(snapshot);
    };
    for by in ALL {
        show(&format!("routes by {by:?}"), &|| routes(by, many));
    }
    show("services", &|| services(many, false));
    show("services with a route", &|| services(many, true));
}

fn lookups(many: usize) {
    println!("a look-up, ns (the target: 300 more at most):");
    for by in ALL {
        let of = |count| lookup_ns(&compile(routes(by, count), None), 1, count);
        print_ratio(&format!("{by:?}, one port"), of(10), of(many), many);
    }
    let of = |count| lookup_ns(&compile(services(count, true), None), count, 1);
    print_ratio("a route each, services", of(10), of(many), many);
    by_server_name(many);
}

/// By the server name of a TLS connection that is passed on, each second with a wildcard.
fn by_server_name(many: usize) {
    let name = |n: usize| match n % 2 {
        0 => format!("t{n}.example"),
        _ => format!("*.t{n}.example"),
    };
    let make = |count: usize| {
        let condition = |n| Match {
            sni: vec![name(n)].into(),
            ..Match::default()
        };
        let mut service = service(0, 2);
        service.ports[0].protocol = Protocol::Tls;
        let one = |n: usize| rule(0, format!("route-{n}"), vec![condition(n)]);
        let model = Model {
            services: vec![service].into(),
            rules: (0..count).map(one).collect(),
            ..Model::default()
        };
        compile(model, None)
    };
    let of = |count: usize| {
        let snapshot = make(count);
        let asks: Vec<String> = (0..512)
            .map(|at| name(at * 7_919 % count).replace('*', "a.b"))
            .collect();
        let mut cursors = Cursors::default();
        best_of_five(asks.len(), |at| {
            let name = Some(&*asks[at]);
            let observer = &mut NoObserver;
            let plan = route::decide_tls(&snapshot, PortIx(0), None, name, &mut cursors, observer);
            assert!(black_box(plan).is_ok());
        })
    };
    print_ratio("Sni, one port", of(10), of(many), many);
}

/// Nanoseconds of one of so many calls, the best of five rounds: what other work on the machine adds
/// is left out.
fn best_of_five(asks: usize, mut one: impl FnMut(usize)) -> f64 {
    const ROUNDS: usize = 200;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let begun = Instant::now();
        for _ in 0..ROUNDS {
            (0..asks).for_each(&mut one);
        }
        best = best.min(begun.elapsed().as_nanos() as f64 / (asks * ROUNDS) as f64);
    }
    best
}

fn print_ratio(what: &str, few: f64, all: f64, many: usize) {
    println!(
        "  {what:24} 10: {few:6.0}   {many}: {all:6.0}   ratio {:.2}",
        all / few
    );
}

/// Prints how long something takes: the best of some rounds, and the processor's time of it.
fn took(what: &str, rounds: usize, mut one: impl FnMut() -> Duration) {
    let mut best = Duration::MAX;
    for _ in 0..rounds {
        best = best.min(one());
    }
    println!("  {what:48} {:9.3} ms", best.as_secs_f64() * 1e3);
}

fn timed<T>(one: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let made = one();
    (begun.elapsed(), made)
}

fn changes(many: usize) {
    println!("compilation with {many}, tables of the kernel included:");
    took("services, all", 3, || {
        let model = services(many, false);
        timed(|| compile(model, None)).0
    });
    took("services with a route, all", 3, || {
        let model = services(many, true);
        timed(|| compile(model, None)).0
    });
    let model = services(many, true);
    let base = compile(model.clone(), None);
    took("one endpoint's weight, in place", 20, || {
        delta(&base, &model, |model| {
            model.services[many / 2].endpoints[0].weight = 7
        })
    });
    took("one rule's weight, in place", 20, || {
        delta(&base, &model, |model| {
            model.rules[many / 2].route[0].weight = 7
        })
    });
    took("one endpoint more", 20, || {
        delta(&base, &model, |model| {
            let more = service(many + 1, 1).endpoints.remove(0);
            model.services[many / 2].endpoints.push(more);
        })
    });
    took("one service more", 5, || {
        delta(&base, &model, |model| model.services.push(service(many, 1)))
    });
    took("one service less", 5, || {
        delta(&base, &model, |model| model.remove_service(many / 2))
    });
    took("nothing, from a file that was read again", 3, || {
        let again = services(many, true);
        timed(|| compile(again, Some(&base))).0
    });
    let model = routes(By::Prefix, many);
    let base = compile(model.clone(), None);
    took("one weight among the routes of one port", 20, || {
        delta(&base, &model, |model| {
            model.rules[many / 2].route[0].weight = 7
        })
    });
    took("one endpoint of a port with all routes", 20, || {
        delta(&base, &model, |model| {
            model.services[0].endpoints[0].weight = 7
        })
    });
    took("one route more on that port", 3, || {
        delta(&base, &model, |model| {
            model.rules.push(rule(
                0,
                "more".to_owned(),
                vec![condition(By::Prefix, many)],
            ));
        })
    });
}

/// From the old model to the new snapshot in force, and the old one's replacement let go.
fn delta(base: &Snapshot, model: &Model, edit: impl FnOnce(&mut Model)) -> Duration {
    let (took, snapshot) = timed(|| {
        let mut next = model.clone();
        edit(&mut next);
        let snapshot = compile(next, Some(base));
        let written: usize = base
            .kernel_tables()
            .ports
            .changes(&snapshot.kernel_tables().ports)
            .count();
        (snapshot, written)
    });
    drop(snapshot);
    took
}

fn measure(criterion: &mut Criterion) {
    for by in ALL {
        let mut group = criterion.benchmark_group(format!("lookup/{by:?}"));
        for count in [10, 1_000, MANY] {
            let snapshot = compile(routes(by, count), None);
            let asks: Vec<Ask> = (0..64).map(|n| Ask::new(n * 7_919 % count)).collect();
            let mut cursors = Cursors::default();
            let mut next = 0;
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| {
                    next = (next + 1) % asks.len();
                    decide(&snapshot, PortIx(0), &asks[next], &mut cursors);
                });
            });
        }
        group.finish();
    }
    let model = services(MANY, true);
    let base = compile(model.clone(), None);
    criterion.bench_function("compile/one endpoint of 100,000 services", |bencher| {
        bencher.iter(|| {
            delta(&base, &model, |model| {
                model.services[500].endpoints[0].weight = 7
            })
        });
    });
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    group.bench_function("all of 100,000 services", |bencher| {
        bencher.iter(|| compile(model.clone(), None));
    });
    group.finish();
}
