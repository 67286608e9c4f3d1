use std::{fs, path::PathBuf, time::Instant};

use super::*;
use crate::config::{self, LogFilter, LogFormat};

const MODEL: &str = r#"
apiVersion: mesh/v1alpha1
kind: MeshConfig
services:
  - name: reviews
    namespace: shop
    hostnames: [reviews, reviews.shop.svc.cluster.local]
    addresses: [10.96.0.10]
    ports: [{name: http, number: 80, target: 9080, protocol: http}]
    versions: {v1: {version: v1}, v2: {version: v2}}
    endpoints:
      - {address: 10.244.1.5, tags: {version: v1}, identity: "spiffe://x/reviews"}
      - {address: 10.244.2.6, tags: {version: v2}}
rules:
  - service: shop/reviews
    route: [{version: v1, weight: 90}, {version: v2, weight: 10}]
workloads:
  - name: client
    namespace: shop
    netns: /run/netns/client
    tags: {app: shopfront, version: "7"}
    identity: spiffe://x/client
"#;

fn snapshot() -> Snapshot {
    let config = config::parse("test.yaml", MODEL).expect("the model is valid");
    Snapshot::compile(Arc::new(config.model), None, MonoNanos(0))
}

/// A log file that is removed at the end.
struct Log {
    path: PathBuf,
    format: LogFormat,
    filter: LogFilter,
}

impl Log {
    fn new(name: &str, format: LogFormat, filter: LogFilter) -> Self {
        let name = format!("mesh-ops-telemetry-{name}-{}", std::process::id());
        Self {
            path: std::env::temp_dir().join(name),
            format,
            filter,
        }
    }

    fn telemetry(&self) -> Arc<Telemetry> {
        let settings = LogSettings {
            format: self.format,
            filter: self.filter,
            path: Some(self.path.clone()),
        };
        Telemetry::new(&settings).expect("the log opens")
    }

    fn lines(&self, telemetry: &Telemetry) -> Vec<String> {
        assert!(telemetry.flush(), "the writer answers");
        let text = fs::read_to_string(&self.path).expect("the log is there");
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn silent() -> Arc<Telemetry> {
    let off = LogSettings {
        format: LogFormat::Envoy,
        filter: LogFilter::Off,
        path: None,
    };
    Telemetry::new(&off).expect("no file to open")
}

fn workload() -> Arc<str> {
    "shop/client".into()
}

fn version(snapshot: &Snapshot, name: &str) -> Option<VersionIx> {
    let index = snapshot
        .versions
        .iter()
        .position(|version| &*version.name == name);
    index.map(|index| VersionIx(index as u32))
}

fn request<'a>(snapshot: &'a Snapshot, workload: &'a Arc<str>) -> RequestRecord<'a> {
    RequestRecord {
        snapshot,
        workload,
        direction: Direction::Outbound,
        source: snapshot.source(workload),
        rule: Some(RuleIx(0)),
        version: version(snapshot, "v1"),
        endpoint: Some(([10, 244, 1, 5], 9080).into()),
        peer: ([10, 244, 9, 9], 41_000).into(),
        destination: ([10, 96, 0, 10], 80).into(),
        spoken: Spoken::Http1,
        method: b"GET",
        target: b"/item?id=7",
        authority: b"reviews",
        request_id: b"id-1",
        user_agent: b"curl/8",
        status: 200,
        grpc_status: None,
        reject: None,
        actions: Default::default(),
        attempts: 1,
        bytes_in: 0,
        bytes_out: 42,
        duration: Duration::from_millis(3),
        upstream: Some(Duration::from_millis(2)),
    }
}

fn connection<'a>(snapshot: &'a Snapshot, workload: &'a Arc<str>) -> ConnectionRecord<'a> {
    ConnectionRecord {
        snapshot,
        workload,
        direction: Direction::Outbound,
        source: snapshot.source(workload),
        rule: Some(RuleIx(0)),
        version: version(snapshot, "v2"),
        endpoint: Some(([10, 244, 2, 6], 9080).into()),
        peer: ([10, 244, 9, 9], 41_001).into(),
        destination: ([10, 96, 0, 10], 80).into(),
        spoken: Spoken::Tcp,
        requests: 0,
        server_name: None,
        reject: None,
        bytes_in: 100,
        bytes_out: 2_000,
        duration: Duration::from_secs(1),
    }
}

fn exposed(telemetry: &Telemetry, scrape: &Scrape) -> String {
    let mut out = String::new();
    telemetry
        .expose_to(scrape, &mut out)
        .expect("a String takes everything");
    out
}

/// The value of the only line that begins with `name{` and has all of `labels`.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let found: Vec<&str> = text
        .lines()
        .filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or("x");
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| line.contains(label))
        })
        .collect();
    assert!(found.len() <= 1, "{name} {labels:?}: {found:#?}");
    found.first().map(|line| {
        let (_, value) = line.rsplit_once(' ').expect("a value");
        value.parse().expect("a number")
    })
}

#[test]
fn request_is_counted_under_istios_labels() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    telemetry.request(&request(&snapshot, &workload));
    let text = telemetry.expose();
    let line = text
        .lines()
        .find(|line| line.starts_with("istio_requests_total{"));
    assert_eq!(
        line,
        Some(
            "istio_requests_total{reporter=\"source\",source_workload=\"client\",\
             source_workload_namespace=\"shop\",source_principal=\"spiffe://x/client\",\
             source_app=\"shopfront\",source_version=\"7\",\
             source_canonical_service=\"shopfront\",source_canonical_revision=\"7\",\
             destination_service=\"reviews.shop.svc.cluster.local\",\
             destination_service_name=\"reviews\",destination_service_namespace=\"shop\",\
             destination_version=\"v1\",destination_principal=\"spiffe://x/reviews\",\
             request_protocol=\"http\",connection_security_policy=\"unknown\",\
             response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\"} 1"
        )
    );
}

/// What comes to a workload: it is the destination, and who asks from elsewhere has no name.
#[test]
fn inbound_request_is_counted_and_logged_at_the_destination() {
    let log = Log::new("inbound", LogFormat::Json, LogFilter::All);
    let (telemetry, snapshot, workload) = (log.telemetry(), snapshot(), workload());
    let port = snapshot.inbound_at(&workload, 8080).expect("it is known");
    let record = RequestRecord {
        direction: Direction::Inbound,
        source: None,
        rule: None,
        version: Some(snapshot.port(port).all),
        ..request(&snapshot, &workload)
    };
    telemetry.request(&record);
    telemetry.source_lost();
    let text = telemetry.expose();
    let labels = [
        "reporter=\"destination\"",
        "source_workload=\"unknown\"",
        "source_principal=\"unknown\"",
        "destination_service=\"client\"",
        "destination_service_namespace=\"shop\"",
        "destination_version=\"7\"",
        "destination_principal=\"spiffe://x/client\"",
    ];
    assert_eq!(value(&text, "istio_requests_total", &labels), Some(1.0));
    assert_eq!(
        value(&text, "mesh_inbound_source_lost_total", &[]),
        Some(1.0)
    );
    let line: serde_json::Value = serde_json::from_str(&log.lines(&telemetry)[0]).expect("JSON");
    assert_eq!(line["mesh.direction"], "inbound");
    assert_eq!(line["mesh.workload"], "shop/client");
    assert!(line.get("mesh.service").is_none(), "{line}");
}

#[test]
fn refusal_without_a_version_names_the_service_that_was_dialled() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    let record = RequestRecord {
        version: None,
        endpoint: None,
        status: 404,
        reject: Some(Reject::NoRoute),
        ..request(&snapshot, &workload)
    };
    telemetry.request(&record);
    let outside = RequestRecord {
        destination: ([192, 0, 2, 1], 80).into(),
        ..record
    };
    telemetry.request(&outside);
    let text = telemetry.expose();
    let labels = [
        "destination_service_name=\"reviews\"",
        "destination_version=\"unknown\"",
    ];
    assert_eq!(value(&text, "istio_requests_total", &labels), Some(1.0));
    let labels = [
        "destination_service_name=\"unknown\"",
        "response_flags=\"NR\"",
    ];
    assert_eq!(value(&text, "istio_requests_total", &labels), Some(1.0));
    assert_eq!(
        value(&text, "mesh_rejects_total", &["\"no_route\""]),
        Some(2.0)
    );
    assert_eq!(value(&text, "mesh_rejects_total", &["\"loop\""]), Some(0.0));
}

#[test]
fn every_reject_has_its_own_counter() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    for (index, reject) in Reject::ALL.iter().enumerate() {
        assert_eq!(
            index, *reject as usize,
            "counters are found by the order of the enum"
        );
        for _ in 0..=index {
            telemetry.request(&RequestRecord {
                reject: Some(*reject),
                ..request(&snapshot, &workload)
            });
        }
    }
    let text = telemetry.expose();
    for (index, reject) in Reject::ALL.iter().enumerate() {
        let label = format!("{{reason=\"{}\"}}", reject.label());
        let counted = value(&text, "mesh_rejects_total", &[&label]);
        assert_eq!(counted, Some(index as f64 + 1.0), "{label}");
    }
}

#[test]
fn grpc_status_is_a_label_of_grpc_only() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    let grpc = RequestRecord {
        spoken: Spoken::Grpc,
        grpc_status: Some(14),
        ..request(&snapshot, &workload)
    };
    telemetry.request(&grpc);
    telemetry.request(&RequestRecord {
        grpc_status: None,
        ..grpc.clone()
    });
    telemetry.request(&RequestRecord {
        spoken: Spoken::Http2,
        ..grpc
    });
    let text = telemetry.expose();
    for labels in [
        ["request_protocol=\"grpc\"", "grpc_response_status=\"14\""],
        [
            "request_protocol=\"grpc\"",
            "grpc_response_status=\"unknown\"",
        ],
        ["request_protocol=\"http\"", "grpc_response_status=\"\""],
    ] {
        assert_eq!(
            value(&text, "istio_requests_total", &labels),
            Some(1.0),
            "{labels:?}"
        );
    }
}

#[test]
fn histogram_counts_a_value_at_a_bound_below_it() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    for micros in [499, 500, 501, 60_000_000, 60_000_001] {
        let duration = Duration::from_micros(micros);
        let bytes_out = micros;
        telemetry.request(&RequestRecord {
            duration,
            bytes_out,
            ..request(&snapshot, &workload)
        });
    }
    let text = telemetry.expose();
    let bucket = |le: &str| {
        let label = format!("le=\"{le}\"");
        value(
            &text,
            "istio_request_duration_milliseconds_bucket",
            &[&label],
        )
    };
    assert_eq!(bucket("0.5"), Some(2.0));
    assert_eq!(bucket("1.0"), Some(3.0));
    assert_eq!(bucket("60000.0"), Some(4.0));
    assert_eq!(bucket("+Inf"), Some(5.0));
    assert_eq!(
        value(&text, "istio_request_duration_milliseconds_count", &[]),
        Some(5.0)
    );
    let sum = value(&text, "istio_request_duration_milliseconds_sum", &[]);
    assert!(
        sum.is_some_and(|sum| (sum - 120_001.501).abs() < 1e-6),
        "{sum:?}"
    );
    assert_eq!(
        value(&text, "istio_response_bytes_sum", &[]),
        Some(120_001_501.0)
    );
}

#[test]
fn deliveries_beyond_the_first_are_retries() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    for attempts in [0, 1, 2, 4] {
        telemetry.request(&RequestRecord {
            attempts,
            ..request(&snapshot, &workload)
        });
    }
    assert_eq!(
        value(&telemetry.expose(), "mesh_retries_total", &[]),
        Some(4.0)
    );
}

#[test]
fn tcp_connection_is_counted_at_both_ends_with_its_bytes() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    let record = connection(&snapshot, &workload);
    telemetry.connection_opened(&workload, Spoken::Tcp);
    telemetry.tcp_opened(&record);
    let open = telemetry.expose();
    let labels = ["destination_version=\"v2\"", "request_protocol=\"tcp\""];
    assert_eq!(
        value(&open, "istio_tcp_connections_opened_total", &labels),
        Some(1.0)
    );
    assert_eq!(
        value(&open, "istio_tcp_connections_closed_total", &labels),
        Some(0.0)
    );
    telemetry.connection(&record);
    let closed = telemetry.expose();
    assert_eq!(
        value(&closed, "istio_tcp_connections_closed_total", &labels),
        Some(1.0)
    );
    assert_eq!(
        value(&closed, "istio_tcp_sent_bytes_total", &labels),
        Some(2_000.0)
    );
    assert_eq!(
        value(&closed, "istio_tcp_received_bytes_total", &labels),
        Some(100.0)
    );
    assert_eq!(
        value(&closed, "mesh_connections_opened_total", &["\"tcp\""]),
        Some(1.0)
    );
    assert_eq!(
        value(&closed, "mesh_connections_closed_total", &["\"tcp\""]),
        Some(1.0)
    );
}

#[test]
fn http_connection_is_no_tcp_connection() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    let spoken = Spoken::Http2;
    telemetry.connection(&ConnectionRecord {
        spoken,
        ..connection(&snapshot, &workload)
    });
    let text = telemetry.expose();
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", &[]),
        None
    );
    assert_eq!(
        value(&text, "mesh_connections_closed_total", &["\"http2\""]),
        Some(1.0)
    );
}

#[test]
fn workloads_outside_the_snapshot_are_told_apart_by_name() {
    let (telemetry, snapshot) = (silent(), snapshot());
    for (name, times) in [("a/x", 1), ("a/y", 2), ("b/x", 4), ("plain", 8)] {
        let workload: Arc<str> = name.into();
        for _ in 0..times {
            telemetry.request(&RequestRecord {
                source: None,
                ..request(&snapshot, &workload)
            });
        }
    }
    let text = telemetry.expose();
    for (name, namespace, times) in [
        ("x", "a", 1.0),
        ("y", "a", 2.0),
        ("x", "b", 4.0),
        ("plain", "unknown", 8.0),
    ] {
        let name = format!("source_workload=\"{name}\"");
        let namespace = format!("source_workload_namespace=\"{namespace}\"");
        let counted = value(&text, "istio_requests_total", &[&name, &namespace]);
        assert_eq!(counted, Some(times), "{name} {namespace}");
    }
}

#[test]
fn names_without_end_stay_bounded_and_are_not_mixed_up() {
    let (telemetry, snapshot) = (silent(), snapshot());
    for n in 0..SERIES_MAX + 100 {
        let workload: Arc<str> = format!("n/w{n}").into();
        telemetry.request(&RequestRecord {
            source: None,
            ..request(&snapshot, &workload)
        });
    }
    let text = telemetry.expose();
    let overflow = value(
        &text,
        "istio_requests_total",
        &["source_workload=\"overflow\""],
    );
    assert_eq!(overflow, Some(100.0));
    assert_eq!(
        value(&text, "istio_requests_total", &["source_workload=\"w7\""]),
        Some(1.0)
    );
    let kept = value(&text, "mesh_metric_series", &["\"requests\""]);
    assert_eq!(kept, Some(SERIES_MAX as f64 + 1.0));
}

#[test]
fn reload_goes_on_counting_in_the_same_series() {
    let (telemetry, first, workload) = (silent(), snapshot(), workload());
    let second = Snapshot::compile(first.model.clone(), Some(&first), MonoNanos(1));
    assert!(second.generation > first.generation);
    for snapshot in [&first, &second, &first] {
        telemetry.request(&request(snapshot, &workload));
    }
    assert_eq!(
        value(&telemetry.expose(), "istio_requests_total", &[]),
        Some(3.0)
    );
}

#[test]
fn index_that_means_another_version_after_a_reload_is_not_mixed_up() {
    let (telemetry, first, workload) = (silent(), snapshot(), workload());
    let mut model = (*first.model).clone();
    // `a1` comes before the others now, so that every index moves.
    let service = &mut model.services[0];
    service.versions.insert(
        "a1".into(),
        [("version".to_owned(), "v1".to_owned())].into(),
    );
    model.rules[0].route[0].select = crate::model::Select::Version("a1".into());
    let second = Snapshot::compile(Arc::new(model), Some(&first), MonoNanos(1));
    let before = request(&first, &workload);
    telemetry.request(&before);
    let version = version(&second, "a1");
    telemetry.request(&RequestRecord {
        version,
        ..request(&second, &workload)
    });
    let text = telemetry.expose();
    for name in ["v1", "a1"] {
        let label = format!("destination_version=\"{name}\"");
        assert_eq!(
            value(&text, "istio_requests_total", &[&label]),
            Some(1.0),
            "{name}"
        );
    }
}

#[test]
fn threads_are_summed() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope
                .spawn(|| (0..500).for_each(|_| telemetry.request(&request(&snapshot, &workload))));
        }
    });
    assert_eq!(
        value(&telemetry.expose(), "istio_requests_total", &[]),
        Some(2_000.0)
    );
}

#[test]
fn agents_in_one_process_do_not_mix() {
    let (one, other, snapshot, workload) = (silent(), silent(), snapshot(), workload());
    one.request(&request(&snapshot, &workload));
    other.request(&request(&snapshot, &workload));
    one.request(&request(&snapshot, &workload));
    assert_eq!(value(&one.expose(), "istio_requests_total", &[]), Some(2.0));
    assert_eq!(
        value(&other.expose(), "istio_requests_total", &[]),
        Some(1.0)
    );
}

#[test]
fn retired_workload_that_speaks_again_is_counted_again() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    telemetry.request(&request(&snapshot, &workload));
    telemetry.retire(&|_| false, MonoNanos(0));
    assert_eq!(telemetry.retire(&|_| false, MonoNanos(60_000_000_000)), 1);
    assert_eq!(
        value(&telemetry.expose(), "istio_requests_total", &[]),
        None
    );
    telemetry.request(&request(&snapshot, &workload));
    assert_eq!(
        value(&telemetry.expose(), "istio_requests_total", &[]),
        Some(1.0)
    );
}

#[test]
fn panics_and_ejections_are_counted() {
    let telemetry = silent();
    telemetry.task_panicked("connection");
    telemetry.task_panicked("connection");
    for what in [What::Returned, What::Returned, What::Returned] {
        let endpoint = ([10, 0, 0, 1], 80).into();
        telemetry.ejection(&Change {
            service: "a/b:80".into(),
            endpoint,
            what,
        });
    }
    let text = telemetry.expose();
    assert_eq!(
        value(&text, "mesh_task_panics_total", &["task=\"connection\""]),
        Some(2.0)
    );
    assert_eq!(
        value(&text, "mesh_ejections_total", &["event=\"returned\""]),
        Some(3.0)
    );
}

/// Without it: what goes past the proxy goes past the metrics.
#[test]
fn connections_of_the_kernel_path_are_counted_by_version() {
    let (telemetry, snapshot) = (silent(), snapshot());
    let version = VersionIx(0);
    for _ in 0..2 {
        telemetry.kernel_counted(
            &snapshot,
            version,
            &KernelCounts {
                opened: 9,
                established: 6,
                failed: 2,
                abandoned: 1,
                closed: 5,
                sent: 1_000,
                received: 500,
            },
        );
    }
    // A version of another snapshot counts nothing.
    telemetry.kernel_counted(&snapshot, VersionIx(u32::MAX), &KernelCounts::default());
    let text = telemetry.expose();
    for (event, wanted) in [
        ("opened", 18.0),
        ("established", 12.0),
        ("failed", 4.0),
        ("abandoned", 2.0),
        ("closed", 10.0),
    ] {
        let label = format!("event=\"{event}\"");
        let found = value(&text, "mesh_kernel_connections_total", &[&label]);
        assert_eq!(found, Some(wanted), "{event}");
    }
    for (direction, wanted) in [("sent", 2_000.0), ("received", 1_000.0)] {
        let label = format!("direction=\"{direction}\"");
        let found = value(&text, "mesh_kernel_bytes_total", &[&label, "version=\"*\""]);
        assert_eq!(found, Some(wanted), "{direction}");
    }
}

#[test]
fn scrape_shows_what_others_know() {
    let (telemetry, snapshot) = (silent(), snapshot());
    let mut scrape = Scrape {
        ready: true,
        reload_seconds: Some(1_700_000_000.5),
        workloads: vec![("live".into(), 3)],
        kernel: vec![
            ("captured".into(), 5),
            ("steer_out".into(), 6),
            ("proxy_flow_opened".into(), 7),
            ("event_lost".into(), 8),
        ],
        maps: vec![
            ("FLOWS".into(), Some(9), 65_536),
            ("EVENTS".into(), None, 4_096),
        ],
        ..Scrape::default()
    };
    scrape.breakers(&snapshot);
    let text = exposed(&telemetry, &scrape);
    for (name, labels, expected) in [
        ("mesh_ready", &[] as &[&str], 1.0),
        ("mesh_config_last_reload_successful", &[], 0.0),
        (
            "mesh_config_last_reload_success_timestamp_seconds",
            &[],
            1_700_000_000.5,
        ),
        ("mesh_model_generation", &[], snapshot.generation as f64),
        ("mesh_workloads", &["live"], 3.0),
        ("mesh_bpf_redirects_total", &["captured"], 5.0),
        ("mesh_bpf_steer_total", &["steer_out"], 6.0),
        ("mesh_bpf_flows_total", &["proxy_flow_opened"], 7.0),
        ("mesh_bpf_events_lost_total", &[], 8.0),
        ("mesh_bpf_map_entries", &["FLOWS"], 9.0),
        ("mesh_bpf_map_capacity", &["EVENTS"], 4_096.0),
        (
            "mesh_breaker_limit",
            &["version=\"v1\"", "\"requests\""],
            1_024.0,
        ),
        (
            "mesh_breaker_in_use",
            &["version=\"v2\"", "\"retries\""],
            0.0,
        ),
        ("mesh_breakers_omitted", &[], 0.0),
    ] {
        assert_eq!(value(&text, name, labels), Some(expected), "{name}");
    }
    assert_eq!(value(&text, "mesh_bpf_map_entries", &["EVENTS"]), None);
}

#[test]
fn every_metric_of_the_table_is_exposed_and_nothing_else() {
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    telemetry.request(&request(&snapshot, &workload));
    let kernel = vec![("event_lost".into(), 0)];
    let text = exposed(
        &telemetry,
        &Scrape {
            kernel,
            shield: Some(ShieldSample::default()),
            ..Scrape::default()
        },
    );
    let mut exposed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let mut documented: Vec<&str> = metrics::ALL.iter().map(metrics::Metric::family).collect();
    exposed.sort_unstable();
    documented.sort_unstable();
    assert_eq!(exposed, documented);
    assert!(text.ends_with("# EOF\n"));
    for metric in metrics::ALL {
        assert!(
            metric.help.ends_with('.') && metric.help.len() > 10,
            "{}",
            metric.name
        );
    }
}

#[test]
fn shield_is_exposed_by_reason_rule_and_interface_where_there_is_one() {
    let shield = ShieldSample {
        counts: vec![("drop_deny", 7, 700), ("pass", 9, 900)],
        rules: vec![("203.0.113.0/24".into(), 7)],
        interfaces: vec![("eth0".into(), "tcx")],
        prefixes: 3,
    };
    let scrape = |shield| Scrape {
        shield,
        ..Scrape::default()
    };
    let text = exposed(&silent(), &scrape(Some(shield)));
    for (name, labels, expected) in [
        ("mesh_shield_packets_total", &["drop_deny"][..], 7.0),
        ("mesh_shield_bytes_total", &["drop_deny"], 700.0),
        ("mesh_shield_rule_packets_total", &["203.0.113.0/24"], 7.0),
        ("mesh_shield_attached", &["eth0", "how=\"tcx\""], 1.0),
        ("mesh_shield_prefixes", &[], 3.0),
    ] {
        assert_eq!(value(&text, name, labels), Some(expected), "{name}");
    }
    assert!(!exposed(&silent(), &scrape(None)).contains("mesh_shield"));
}

#[test]
fn envoy_line_is_envoys_default_line() {
    let log = Log::new("envoy", LogFormat::Envoy, LogFilter::All);
    let (telemetry, snapshot, workload) = (log.telemetry(), snapshot(), workload());
    telemetry.request(&request(&snapshot, &workload));
    telemetry.connection(&connection(&snapshot, &workload));
    let lines = log.lines(&telemetry);
    assert_eq!(lines.len(), 2, "one line for each: {lines:#?}");
    let (time, rest) = lines[0].split_once("] ").expect("a time in brackets");
    assert!(
        time.starts_with('[') && time.ends_with('Z') && time.len() == 25,
        "{time}"
    );
    time[1..].parse::<jiff::Timestamp>().expect("RFC 3339");
    assert_eq!(
        rest,
        "\"GET /item?id=7 HTTP/1.1\" 200 - 0 42 3 2 \"-\" \"curl/8\" \"id-1\" \"reviews\" \
         \"10.244.1.5:9080\""
    );
    let (_, rest) = lines[1].split_once("] ").expect("a time in brackets");
    assert_eq!(
        rest,
        "\"- - -\" 0 - 100 2000 1000 - \"-\" \"-\" \"-\" \"10.96.0.10:80\" \"10.244.2.6:9080\""
    );
}

#[test]
fn json_line_is_one_object_with_the_names_of_the_model() {
    let log = Log::new("json", LogFormat::Json, LogFilter::All);
    let (telemetry, snapshot, workload) = (log.telemetry(), snapshot(), workload());
    let evil = RequestRecord {
        target: b"/\"},{\"x\":\"\xff\r\n?q=\"",
        user_agent: b"\n{\"fake\":1}",
        reject: Some(Reject::RateLimited),
        status: 429,
        endpoint: None,
        upstream: None,
        ..request(&snapshot, &workload)
    };
    telemetry.request(&evil);
    telemetry.connection(&connection(&snapshot, &workload));
    let lines = log.lines(&telemetry);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("valid JSON");
    assert_eq!(line["url.path"], "/\"},{\"x\":\"\u{fffd}\r\n");
    assert_eq!(line["url.query"], "q=\"");
    assert_eq!(line["user_agent.original"], "\n{\"fake\":1}");
    assert_eq!(line["http.response.status_code"], 429);
    assert_eq!(line["mesh.reject"], "rate_limited");
    assert_eq!(line["mesh.flags"], "RL");
    assert_eq!(line["mesh.workload"], "shop/client");
    assert_eq!(line["mesh.service"], "reviews");
    assert_eq!(line["mesh.version"], "v1");
    assert_eq!(line["mesh.duration_ms"], 3.0);
    assert_eq!(line["client.address"], "10.244.9.9:41000");
    assert!(line.get("mesh.endpoint").is_none() && line.get("mesh.upstream_ms").is_none());
    let line: serde_json::Value = serde_json::from_str(&lines[1]).expect("valid JSON");
    assert_eq!(line["mesh.record"], "connection");
    assert_eq!(line["mesh.bytes_sent"], 2_000);
}

#[test]
fn logfmt_line_quotes_only_what_needs_it() {
    let log = Log::new("logfmt", LogFormat::Logfmt, LogFilter::All);
    let (telemetry, snapshot, workload) = (log.telemetry(), snapshot(), workload());
    telemetry.request(&RequestRecord {
        user_agent: b"a b=c\nx=y",
        ..request(&snapshot, &workload)
    });
    let lines = log.lines(&telemetry);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    for part in [
        " http.request.method=GET url.path=/item url.query=\"id=7\" ",
        " user_agent.original=\"a b=c\\x0ax=y\" ",
        " mesh.endpoint=10.244.1.5:9080",
    ] {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
}

#[test]
fn request_that_forges_lines_stays_one_line_in_every_format() {
    for (name, format) in [
        ("forge-envoy", LogFormat::Envoy),
        ("forge-json", LogFormat::Json),
        ("forge-logfmt", LogFormat::Logfmt),
    ] {
        let log = Log::new(name, format, LogFilter::All);
        let (telemetry, snapshot, workload) = (log.telemetry(), snapshot(), workload());
        let evil: &[u8] = b"\r\n\x0b\x0c\x1b[A\x00\xff\xe2\x80\xa8\"' \\";
        telemetry.request(&RequestRecord {
            method: evil,
            target: evil,
            authority: evil,
            request_id: evil,
            user_agent: evil,
            ..request(&snapshot, &workload)
        });
        assert!(telemetry.flush());
        let bytes = fs::read(&log.path).expect("the log");
        let controls = bytes
            .iter()
            .filter(|byte| **byte < 0x20 || **byte == 0x7f)
            .count();
        assert_eq!(controls, 1, "{name}: only the line end");
        let text = String::from_utf8(bytes).expect("UTF-8");
        assert!(text.ends_with('\n') && !text.contains('\u{2028}'), "{name}");
    }
}

#[test]
fn errors_filter_keeps_refusals_and_server_errors() {
    let log = Log::new("errors", LogFormat::Envoy, LogFilter::Errors);
    let (telemetry, snapshot, workload) = (log.telemetry(), snapshot(), workload());
    let with = |status, grpc_status, reject, target: &'static [u8]| {
        telemetry.request(&RequestRecord {
            status,
            grpc_status,
            reject,
            target,
            ..request(&snapshot, &workload)
        });
    };
    with(200, None, None, b"/no");
    with(499, None, None, b"/no");
    with(500, None, None, b"/yes");
    with(404, None, None, b"/no");
    with(404, None, Some(Reject::NoRoute), b"/yes");
    with(200, Some(5), None, b"/no");
    with(200, Some(14), None, b"/yes");
    telemetry.connection(&connection(&snapshot, &workload));
    let lines = log.lines(&telemetry);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("/yes")), "{lines:#?}");
}

/// The budget of the hot path. In a debug build (tests) everything is some ten times slower; a
/// lock, an allocation or a formatted label would still show.
#[test]
fn request_costs_less_than_its_budget() {
    let budget = if cfg!(debug_assertions) { 3_000 } else { 150 };
    let (telemetry, snapshot, workload) = (silent(), snapshot(), workload());
    let record = request(&snapshot, &workload);
    const ROUNDS: u32 = 20_000;
    let best = (0..20)
        .map(|_| {
            let begin = Instant::now();
            (0..ROUNDS).for_each(|_| telemetry.request(std::hint::black_box(&record)));
            begin.elapsed().as_nanos() / u128::from(ROUNDS)
        })
        .min()
        .expect("20 rounds");
    println!("one request: {best} ns");
    assert!(best < budget, "{best} ns, budget {budget} ns");
}

/// The same with its line in the log: formatted in place, written by another thread.
#[test]
fn logged_request_costs_less_than_its_budget() {
    let budget = if cfg!(debug_assertions) {
        20_000
    } else {
        1_500
    };
    let path = Some("/dev/null".into());
    let settings = LogSettings {
        format: LogFormat::Envoy,
        filter: LogFilter::All,
        path,
    };
    let telemetry = Telemetry::new(&settings).expect("/dev/null opens");
    let (snapshot, workload) = (snapshot(), workload());
    let record = request(&snapshot, &workload);
    // So few that they find room in the buffer: a lost line would cost nothing.
    const ROUNDS: u32 = 2_000;
    let best = (0..20)
        .map(|_| {
            let begin = Instant::now();
            (0..ROUNDS).for_each(|_| telemetry.request(std::hint::black_box(&record)));
            let spent = begin.elapsed().as_nanos() / u128::from(ROUNDS);
            assert!(telemetry.flush());
            spent
        })
        .min()
        .expect("20 rounds");
    println!("one logged request: {best} ns");
    assert_eq!(telemetry.log.lost(), 0);
    assert!(best < budget, "{best} ns, budget {budget} ns");
}
