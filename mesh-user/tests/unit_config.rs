//! The configuration file as a user meets it: examples, defaults, generated documentation, and
//! bytes that are no configuration at all.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_user::{
    config::{self, AgentConfig, Code, Config, Limits},
    model::{
        Attribute, BreakerPolicy, DialFrom, EjectionPolicy, Failure, Match, Netns, Protocol,
        Select, SourceMatch, Tags, TimeoutPolicy, ValueMatch,
    },
};

const HEAD: &str = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\n";

/// The example of the design, as it stands there.
const DESIGN: &str = r#"
services:
  - name: reviews
    hostnames: [reviews, reviews.shop.svc.cluster.local]
    addresses: [10.96.0.10, "fd00:96::10"]
    ports: [{name: http, number: 80, target: 9080, protocol: http}]
    versions: {v1: {version: v1}, v2: {version: v2}}
    endpoints:
      - {address: 10.244.1.5, tags: {version: v1}}
      - {address: 10.244.2.6, tags: {version: v2}}
rules:
  - service: reviews
    precedence: 10
    match: [{headers: {x-user: {exact: beta}}}, {source: {tags: {app: tester}}}]
    route: [{version: v2}]
  - service: reviews
    route: [{version: v1, weight: 90}, {version: v2, weight: 10}]
policies:
  - service: reviews
    breaker: {max-connections: 100, max-requests: 1000, ejection: {consecutive-5xx: 5, interval: 10s, base: 30s, max-percent: 50}}
    rate-limit: [{key: [source.workload], rate: 100/s, burst: 200}]
    timeout: {request: 15s, connect: 1s}
    retries: {attempts: 2, per-try: 2s}
workloads:
  - {name: client, netns: /run/netns/mesh-client, cgroup: mesh-demo/client, tags: {app: client}}
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn examples() -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(root().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    files
}

fn parse(text: &str) -> Config {
    config::parse("mesh.yaml", &format!("{HEAD}{text}")).unwrap_or_else(|error| panic!("{error}"))
}

fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn examples_are_valid_without_a_warning() {
    for file in examples() {
        let examined = config::examine(&file);
        assert!(
            examined.report.is_empty(),
            "{}",
            examined.report.render(false)
        );
        assert_eq!(config::load(&file).unwrap(), examined.config.unwrap());
    }
}

/// Without it: a field of the example is read into the wrong place.
#[test]
fn design_example_means_what_it_says() {
    let Config { agent, model } = parse(DESIGN);
    assert_eq!(agent, AgentConfig::default());

    let service = &model.services[0];
    assert_eq!(service.key(), "default/reviews");
    assert_eq!(
        service.hostnames,
        ["reviews", "reviews.shop.svc.cluster.local"]
    );
    let addresses: [IpAddr; 2] = [
        "10.96.0.10".parse().unwrap(),
        "fd00:96::10".parse().unwrap(),
    ];
    assert_eq!(service.addresses, addresses);
    let port = &service.ports[0];
    assert_eq!(
        (port.name.as_str(), port.number, port.target),
        ("http", 80, 9080)
    );
    assert_eq!(port.protocol, Protocol::Http);
    let version = |name: &str| (name.to_owned(), tags(&[("version", name)]));
    assert_eq!(
        service.versions,
        BTreeMap::from([version("v1"), version("v2")])
    );
    assert_eq!(service.endpoints[1].tags, tags(&[("version", "v2")]));
    assert_eq!(
        (service.endpoints[1].healthy, service.endpoints[1].weight),
        (true, 1)
    );
    assert_eq!(
        (service.routable, service.dial_from),
        (false, DialFrom::Workload)
    );

    let beta = &model.rules[0];
    assert_eq!(
        (beta.name.as_str(), beta.service, beta.precedence),
        ("rule-1", 0, 10)
    );
    let header = ("x-user".to_owned(), ValueMatch::Exact("beta".to_owned()));
    let source = SourceMatch {
        tags: tags(&[("app", "tester")]),
        ..SourceMatch::default()
    };
    let by_header = Match {
        headers: vec![header].into(),
        ..Match::default()
    };
    let by_source = Match {
        source: Some(Box::new(source)),
        ..Match::default()
    };
    assert_eq!(beta.matches, [by_header, by_source]);
    assert_eq!(beta.route[0].select, Select::Version("v2".to_owned()));
    assert!(beta.route[0].weight > 0);
    let split: Vec<_> = model.rules[1]
        .route
        .iter()
        .map(|target| target.weight)
        .collect();
    assert_eq!(
        (model.rules[1].name.as_str(), split),
        ("rule-2", vec![90, 10])
    );

    let policy = &model.policies[0];
    let caps = BreakerPolicy {
        max_connections: 100,
        max_requests: 1000,
        ..BreakerPolicy::default()
    };
    assert_eq!(policy.breaker, Some(caps));
    let ejection = EjectionPolicy {
        max_percent: 50,
        ..EjectionPolicy::default()
    };
    assert_eq!(policy.ejection, Some(ejection));
    let limit = &policy.rate_limits[0];
    assert_eq!(
        (limit.name.as_str(), limit.requests, limit.burst),
        ("limit-1", 100, 200)
    );
    assert_eq!(
        (&limit.key[..], limit.per),
        (&[Attribute::SourceWorkload][..], Duration::from_secs(1))
    );
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let timeouts = TimeoutPolicy {
        request: seconds(15),
        connect: seconds(1),
        idle: None,
    };
    assert_eq!((policy.timeouts, &policy.balance), (timeouts, &None));
    let retries = policy.retries.as_ref().unwrap();
    assert_eq!((retries.attempts, retries.per_try), (2, seconds(2)));
    assert!(!retries.non_idempotent);

    let workload = &model.workloads[0];
    assert_eq!(workload.netns, Netns::Path("/run/netns/mesh-client".into()));
    assert_eq!(workload.cgroup, Some("mesh-demo/client".into()));
    assert_eq!(
        (workload.interception.failure, workload.capture),
        (Failure::Open, true)
    );
}

#[test]
fn defaults_are_those_of_the_code() {
    let config = parse("");
    assert_eq!(config.agent, AgentConfig::default());
    assert_eq!(config.agent.limits, Limits::default());
    let config = parse(
        "services: [{name: a, addresses: [10.0.0.1], ports: [{number: 80}, {number: 81, protocol: tcp}], endpoints: [{address: 10.1.0.1}]}]\n\
         rules: [{service: a, route: [{}]}]\n\
         policies: [{service: a, rate-limit: {rate: 30/m}, breaker: {ejection: {base: 10m}}}]\n",
    );
    let ports = &config.model.services[0].ports;
    assert_eq!(
        (ports[0].name.as_str(), ports[1].name.as_str()),
        ("auto-80", "tcp-81")
    );
    assert_eq!(ports[0].target, 80);
    assert_eq!(config.model.rules[0].route[0].select, Select::All);
    let policy = &config.model.policies[0];
    assert_eq!(
        (policy.rate_limits[0].burst, policy.rate_limits[0].per),
        (30, Duration::from_secs(60))
    );
    // Ejection alone leaves the caps to others, and `max` is never below `base`.
    assert_eq!(policy.breaker, None);
    assert_eq!(policy.ejection.unwrap().max, Duration::from_secs(600));
}

/// Without it: what people write for the same thing means different things.
#[test]
fn spellings_of_the_same_are_equal() {
    let service = "services: [{name: a, namespace: n, hostnames: [A.Example], addresses: [10.0.0.1], \
                   ports: [{name: web, number: 80, protocol: http}], endpoints: [{address: 10.1.0.1}]}]\n";
    let pairs = [
        ("service: a", "service: n/a"),
        ("port: web", "port: 80"),
        ("match: {method: GET}", "match: [{method: [GET]}]"),
        (
            "match: {headers: {X-User: b}}",
            "match: {headers: {x-user: {exact: b}}}",
        ),
        (
            "match: {query: {q: \"1\"}}",
            "match: {query: {q: {exact: \"1\"}}}",
        ),
        (
            "match: {authority: A.Example}",
            "match: {authority: {exact: a.example}}",
        ),
        ("precedence: 16", "precedence: 0x10"),
        ("name: rule-1", ""),
    ];
    for (left, right) in pairs {
        let with = |field: &str| {
            let service_field = if field.starts_with("service") {
                ""
            } else {
                "service: a, "
            };
            parse(&format!(
                "{service}rules: [{{{service_field}{field}{} route: [{{}}]}}]\n",
                if field.is_empty() { "" } else { "," }
            ))
        };
        assert_eq!(with(left), with(right), "{left} / {right}");
    }
    assert_eq!(parse(service).model.services[0].hostnames, ["a.example"]);
}

/// Rewrites or compares a generated file.
fn generated(path: &str, content: &str) {
    let path = root().join(path);
    if std::env::var_os("MESH_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed
        .lines()
        .zip(content.lines())
        .position(|(a, b)| a != b);
    assert!(
        committed == content,
        "{} is not up to date (first difference in line {:?}): run with MESH_BLESS=1",
        path.display(),
        differs.map(|line| line + 1)
    );
}

#[test]
fn reference_in_docs_is_up_to_date() {
    generated("docs/CONFIG.md", &config::reference_markdown());
}

#[test]
fn schema_in_docs_is_up_to_date() {
    let schema = serde_json::to_string_pretty(&config::schema()).unwrap();
    generated("docs/mesh.schema.json", &format!("{schema}\n"));
}

/// Without it: links of the reference lead nowhere.
#[test]
fn reference_links_lead_to_sections() {
    let text = config::reference_markdown();
    let anchors: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-');
            format!(
                "](#{})",
                title
                    .to_lowercase()
                    .chars()
                    .filter(kept)
                    .collect::<String>()
                    .replace(' ', "-")
            )
        })
        .collect();
    let links = text.matches("](#").count();
    let known: usize = anchors
        .iter()
        .map(|anchor| text.matches(anchor.as_str()).count())
        .sum();
    assert!(links > 10);
    assert_eq!(links, known);
}

/// Deterministic noise (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }
}

/// Changes a few bytes, or moves, doubles or drops a piece.
fn mutate(bytes: &mut Vec<u8>, noise: &mut Noise) {
    const BYTES: &[u8] = b"{}[]:,-&*!|>'\"#%@`?~ \t\n\r\0\xff\xc3\x9f0x9-.<.";
    for _ in 0..=noise.below(4) {
        let at = noise.below(bytes.len());
        let end = (at + noise.below(40)).min(bytes.len());
        match noise.below(6) {
            0 if at < bytes.len() => bytes[at] = BYTES[noise.below(BYTES.len())],
            1 if at < bytes.len() => bytes[at] ^= 1 << noise.below(8),
            2 => bytes.insert(at, BYTES[noise.below(BYTES.len())]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = noise.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => bytes.truncate(bytes.len() - noise.below(10).min(bytes.len())),
        }
    }
}

/// Without it: a file can panic the agent, or be refused without a reason.
#[test]
fn mutated_files_never_panic_and_are_refused_with_a_place() {
    let seed = std::env::var("MESH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x5eed);
    println!("MESH_SEED={seed}");
    let mut noise = Noise(seed);
    let design = format!("{HEAD}{DESIGN}").into_bytes();
    // Without its expressions: compiling them takes most of the time of an unoptimised build.
    let full = fs::read_to_string(root().join("examples/full.yaml")).unwrap();
    let full = full.replace(".*", "").into_bytes();
    let start = Instant::now();
    let mut valid = 0;
    for round in 0..20_000 {
        let mut bytes = if round % 20 == 0 {
            full.clone()
        } else {
            design.clone()
        };
        mutate(&mut bytes, &mut noise);
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        let examined = config::examine_text("mesh.yaml", &text);
        let report = &examined.report;
        assert_eq!(examined.config.is_none(), report.has_errors(), "{text}");
        let rendered = report.render(round % 2 == 0);
        assert_eq!(rendered.is_empty(), report.is_empty());
        let lines = text.lines().count() + 1;
        for problem in &report.problems {
            assert!(
                problem.line <= lines && !problem.message.is_empty(),
                "{problem:?}\n{text}"
            );
        }
        valid += usize::from(examined.config.is_some());
    }
    // Some changes hit a name or a comment: a refusal of everything would show nothing.
    assert!(valid > 200, "{valid}");
    println!("{valid} of 20000 stayed valid, {:?}", start.elapsed());
}

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_that_can_not_be_read_are_refused_by_name() {
    let folder =
        Folder(std::env::temp_dir().join(format!("mesh-config-files-{}", std::process::id())));
    fs::create_dir(&folder.0).unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.0.join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let large = file("large", b"");
    fs::OpenOptions::new()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len((16 << 20) + 1)
        .unwrap();
    let full = {
        let path = file("full", HEAD.as_bytes());
        let mut text = HEAD.to_owned();
        text.push_str(&"#\n".repeat(((16 << 20) - HEAD.len()) / 2));
        fs::write(&path, &text).unwrap();
        path
    };
    assert!(config::load(&full).is_ok(), "at the limit");
    let cases = [
        (folder.0.join("none"), Code::FileMissing),
        (folder.0.clone(), Code::FileIsDirectory),
        (PathBuf::from("/dev/zero"), Code::FileNotRegular),
        (large, Code::FileTooLarge),
        (file("latin1", b"a: \xe4"), Code::FileNotUtf8),
        (file("utf16", b"\xff\xfea\0"), Code::FileNotUtf8),
        (file("empty", b""), Code::FileEmpty),
        (file("comment", b"# nothing\n---\n"), Code::FileEmpty),
        (
            file("deep", "[".repeat(100_000).as_bytes()),
            Code::YamlTooDeep,
        ),
    ];
    for (path, code) in cases {
        let error = config::load(&path).unwrap_err();
        let problems = &error.report().problems;
        assert_eq!(problems.len(), 1, "{error}");
        assert_eq!(problems[0].code, code, "{error}");
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
        assert!(problems[0].expected.is_some(), "{error}");
    }
    let with_bom = file("bom", format!("\u{feff}{HEAD}").as_bytes());
    assert!(
        config::load(&with_bom).is_ok(),
        "YAML 1.2 allows a byte-order mark"
    );
}

/// Without it: an example could be shown that does not run.
#[test]
fn every_example_is_valid() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap().flatten() {
        if entry.path().extension().is_none_or(|name| name != "yaml") {
            continue;
        }
        let examined = config::examine(&entry.path());
        let said = examined.report.render(false);
        assert!(examined.config.is_some(), "{said}");
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}
