//! What metrics and access log say.

use crate::{
    free_port,
    scene::{self, TCP_PORT, VIP4, eventually, kernel_count, told},
    scrape,
};

/// Sum of the samples of a family whose labels hold all of these.
fn sample(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[test]
fn metrics_count_what_was_asked_with_the_right_labels() {
    let mut scene = scene::build("t-metrics");
    let free = free_port(&scene);
    let rules = "
rules:
  - {name: all, service: web, port: http, match: {path: {prefix: /v2}}, route: [{version: v2}]}
  - {name: one, service: web, port: http, match: {path: {prefix: /v1}}, route: [{version: v1}]}
  - {name: tcp, service: web, port: tcp, route: [{version: v1}]}
";
    let text = scene
        .config_with(rules)
        .replace("metrics: off", &format!("metrics: {free}"));
    scene.start_with(&text).unwrap();
    for path in ["/livez", "/readyz"] {
        let (status, text) = scrape(&scene, free, path);
        assert_eq!(status, 200, "{path}: {text}");
    }
    assert_eq!(
        scene
            .ask(&scene.client, &["--path", "/v1", "--count", "30"])
            .unwrap()
            .status(200),
        30
    );
    let v2 = ["--path", "/v2", "--count", "7", "--close"];
    assert_eq!(scene.ask(&scene.tester, &v2).unwrap().status(200), 7);
    assert_eq!(
        scene
            .ask(&scene.client, &["--path", "/none", "--count", "3"])
            .unwrap()
            .status(404),
        3
    );
    let echo = "s = dial(sys.argv[1], int(sys.argv[2])); s.sendall(b'x' * 1000); \
                s.shutdown(socket.SHUT_WR); tell(len(everything(s)))";
    let port = TCP_PORT.to_string();
    assert_eq!(
        told(&scene, &scene.client, echo, &[&VIP4.to_string(), &port]),
        1000
    );
    let good = [
        "reporter=\"source\"",
        "destination_service_name=\"web\"",
        "destination_service_namespace=\"default\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
    ];
    let with = |more: &[&'static str]| -> Vec<&str> {
        good.iter().copied().chain(more.iter().copied()).collect()
    };
    let mut text = String::new();
    eventually("the last connection is counted", || {
        text = scrape(&scene, free, "/metrics").1;
        sample(&text, "istio_tcp_connections_closed_total", &[]) >= 1.0
    });
    let requests = |labels: &[&str]| sample(&text, "istio_requests_total", labels);
    let client = with(&[
        "source_workload=\"client\"",
        "source_app=\"client\"",
        "destination_version=\"v1\"",
    ]);
    assert_eq!(requests(&client), 30.0, "{text}");
    let tester = with(&["source_workload=\"tester\"", "destination_version=\"v2\""]);
    assert_eq!(requests(&tester), 7.0, "{text}");
    let refused = [
        "source_workload=\"client\"",
        "response_code=\"404\"",
        "response_flags=\"NR\"",
    ];
    assert_eq!(requests(&refused), 3.0, "{text}");
    assert_eq!(requests(&[]), 40.0, "and nothing else: {text}");
    assert_eq!(
        sample(&text, "istio_request_duration_milliseconds_count", &[]),
        40.0
    );
    assert_eq!(
        sample(&text, "mesh_rejects_total", &["reason=\"no_route\""]),
        3.0
    );
    let tcp = [
        "source_workload=\"client\"",
        "destination_version=\"v1\"",
        "request_protocol=\"tcp\"",
    ];
    assert_eq!(
        sample(&text, "istio_tcp_received_bytes_total", &tcp),
        1000.0,
        "{text}"
    );
    assert_eq!(sample(&text, "istio_tcp_sent_bytes_total", &tcp), 1000.0);
    // One connection, seven, one, one: by the kernel's count and by the proxy's.
    let captured = sample(&text, "mesh_bpf_redirects_total", &["reason=\"captured\""]);
    assert_eq!(captured, 10.0, "{text}");
    assert_eq!(captured, kernel_count(&scene, "captured") as f64);
    assert_eq!(sample(&text, "mesh_connections_opened_total", &[]), 10.0);
    assert_eq!(sample(&text, "mesh_workloads", &["state=\"live\""]), 2.0);
    assert_eq!(text.matches("\n# EOF\n").count(), 1, "whole: {text}");
    scene.tear_down().unwrap();
}

#[test]
fn every_refusal_has_one_log_line_with_its_flag_and_the_headers_name() {
    let mut scene = scene::build("t-log");
    let rules = "
rules:
  - {name: good, service: web, port: http, match: {path: {prefix: /ok}}, route: [{version: v1}]}
  - {name: full, service: web, port: http, match: {path: {prefix: /uo}}, route: [{version: v2}]}
  - {name: empty, service: web, port: http, match: {path: {prefix: /uh}}, route: [{tags: {version: v9}}]}
policies:
  - {service: web, rate-limit: [{name: once, key: [path], rate: 1/h, burst: 1}]}
  - {service: web, version: v2, breaker: {max-requests: 0}}
";
    let text = scene
        .config_with(rules)
        .replace("format: envoy", "format: json");
    scene.start_with(&text).unwrap();
    let cases = [
        ("/ok?a=1", 200, None, "-"),
        ("/ok", 429, Some("rate_limited"), "RL"),
        ("/nr", 404, Some("no_route"), "NR"),
        ("/uo", 503, Some("overflow_requests"), "UO"),
        ("/uh", 503, Some("no_endpoint"), "UH"),
    ];
    for (path, status, reject, _) in cases {
        let answers = scene.ask(&scene.client, &["--path", path]).unwrap();
        assert_eq!(answers.status(status), 1, "{path}: {answers:?}");
        let named = answers.headers.get("x-mesh-reject").map(String::as_str);
        assert_eq!(named, reject, "{path}: {answers:?}");
    }
    let mut lines: Vec<serde_json::Value> = Vec::new();
    eventually("a line for each request and connection", || {
        let text = std::fs::read_to_string(scene.access_log()).unwrap_or_default();
        lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        lines.len() >= 2 * cases.len()
    });
    let of = |kind: &str| -> Vec<_> {
        lines
            .iter()
            .filter(|line| line["mesh.record"] == kind)
            .collect()
    };
    let requests = of("request");
    assert_eq!(
        (requests.len(), of("connection").len()),
        (5, 5),
        "{lines:?}"
    );
    for (path, status, reject, flag) in cases {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        // Workers write side by side: the order says nothing.
        let mut own = requests.iter().filter(|line| {
            let asked = line
                .get("url.query")
                .and_then(|query| query.as_str())
                .unwrap_or_default();
            line["url.path"] == path && asked == query
        });
        let line = own
            .next()
            .unwrap_or_else(|| panic!("no line for {path}: {lines:?}"));
        assert!(own.next().is_none(), "one line for {path}: {lines:?}");
        assert_eq!(line["http.response.status_code"], status, "{line}");
        assert_eq!(line["mesh.flags"], flag, "{line}");
        assert_eq!(
            line.get("mesh.reject").and_then(|name| name.as_str()),
            reject,
            "{line}"
        );
        assert_eq!(line["mesh.workload"], "default/client", "{line}");
        assert_eq!(line["mesh.destination"], format!("{VIP4}:80"), "{line}");
        let deliveries = u32::from(reject.is_none());
        assert_eq!(
            line["mesh.attempts"], deliveries,
            "refused before anything is forwarded: {line}"
        );
    }
    scene.tear_down().unwrap();
}
