//! The cases of Gateway API, decided without a proxy; and the support matrix of the README.

mod gateway_table;

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, sync::Arc};

use gateway_table::*;
use mesh_user::{
    clock::MonoNanos,
    policy::{
        Client, NoObserver, RequestView, Snapshot,
        action::{Asked, Then},
        request::HeaderList,
        rng::Rng,
        route::{self, Plan},
        split::Cursors,
    },
};

/// Where the endpoints would be.
fn endpoints(label: &str, protocol: &str) -> SocketAddr {
    let at = SERVICES.iter().position(|service| service.label == label);
    let port = 1000 + protocol.len();
    SocketAddr::from((
        [10, 1, 0, u8::try_from(at.unwrap()).unwrap()],
        u16::try_from(port).unwrap(),
    ))
}

fn compile(routes: &str) -> Snapshot {
    let config = scene(routes, endpoints);
    Snapshot::compile(Arc::new(config.model), None, MonoNanos(0))
}

/// The backend's label, or the status of the refusal.
fn decide(snapshot: &Snapshot, request: &Request, cursors: &mut Cursors) -> String {
    let to = virtual_address(request.to, request.port);
    let port = snapshot.port_at(to.ip(), to.port()).expect(request.line);
    let source = request.from.map(|from| snapshot.source(from).expect(from));
    let client = Client::from(source);
    let plan = if request.method == "TLS" {
        let name = request.target.to_ascii_lowercase();
        route::decide_tls(
            snapshot,
            port,
            client,
            Some(&name),
            cursors,
            &mut NoObserver,
        )
    } else if request.method == "TCP" {
        route::decide_tcp(snapshot, port, client, cursors, &mut NoObserver)
    } else {
        let (path, query) = match request.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (request.target, None),
        };
        let headers = HeaderList(
            request
                .headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        );
        let view = RequestView {
            method: if request.method == "GRPC" {
                "POST"
            } else {
                request.method
            },
            path,
            query,
            authority: "echo",
            headers: &headers,
        };
        let plan = route::decide(snapshot, port, client, &view, cursors, &mut NoObserver);
        if let Ok(plan) = &plan
            && let Some(status) = answered(snapshot, plan, request, client, &view)
        {
            return status;
        }
        plan
    };
    match plan {
        Ok(plan) => {
            let version = snapshot.version(plan.version);
            if version.endpoints.is_empty() {
                return "503".to_owned();
            }
            label(&snapshot.port(version.port).key).to_owned()
        }
        // An opaque connection gets no answer.
        Err(_) if request.method == "TLS" => "closed".to_owned(),
        Err(reject) => reject.status().to_string(),
    }
}

/// The status of the answer that a rule gives by itself.
fn answered(
    snapshot: &Snapshot,
    plan: &Plan,
    request: &Request,
    client: Client,
    view: &RequestView<'_, HeaderList>,
) -> Option<String> {
    let rule = snapshot.rule(plan.rule?);
    let actions = match rule.targets.get(plan.target as usize) {
        Some(target) => target.actions.as_ref().or(rule.actions.as_ref()),
        None => rule.actions.as_ref(),
    }?;
    let asked = Asked {
        client,
        request: view,
        scheme: "http",
        port: request.port,
        grpc: request.method == "GRPC",
    };
    match actions.decide(&asked, |_| true, &mut NoObserver).then {
        Then::Answer(answer) => Some(answer.status.to_string()),
        Then::Refuse(reject) => Some(reject.status().to_string()),
        _ => None,
    }
}

/// Whether it takes decisions only: no time, no second try, no session.
fn is_decided(case: &Case) -> bool {
    case.needs
        .iter()
        .all(|need| matches!(*need, "actions" | "mirror"))
}

#[test]
fn gateway_cases_are_decided_as_the_table_says() {
    let mut decided = 0;
    for case in cases().iter().filter(|case| is_decided(case)) {
        let snapshot = compile(&case.routes);
        for request in &case.requests {
            let mut cursors = Cursors::default();
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for _ in 0..request.times {
                *counts
                    .entry(decide(&snapshot, request, &mut cursors))
                    .or_default() += 1;
                decided += 1;
            }
            let place = format!("{}: {}: {counts:?}", case.name, request.line);
            if request.counts.is_empty() {
                assert_eq!(counts.len(), 1, "{place}");
                let got = counts.keys().next().unwrap();
                assert!(request.outcome.contains(&got.as_str()), "{place}");
            } else {
                let wanted: BTreeMap<String, usize> = request
                    .counts
                    .iter()
                    .map(|(what, count)| ((*what).to_owned(), *count))
                    .collect();
                assert_eq!(counts, wanted, "{place}");
            }
        }
    }
    assert!(decided > 500, "{decided}");
}

/// Without it: the 70/30 script of the conformance tests fails once in 70 runs, as it does for
/// independent random picks.
#[test]
fn gateway_weights_pass_the_conformance_script_1000_times() {
    let case = cases()
        .into_iter()
        .find(|case| case.name == "httproute-weight")
        .unwrap();
    let snapshot = compile(&case.routes);
    let seed = 20_261_125;
    let mut rng = Rng::new(seed);
    for run in 0..1000 {
        // Ten connections, spread over four workers.
        let mut workers = vec![Cursors::default(); 4];
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for _ in 0..500 {
            let worker = rng.below(10) as usize % 4;
            let got = decide(&snapshot, &case.requests[0], &mut workers[worker]);
            *counts.entry(got).or_default() += 1.0;
        }
        for (backend, share) in [("v1", 0.7), ("v2", 0.3), ("v3", 0.0)] {
            let got = counts.get(backend).copied().unwrap_or(0.0) / 500.0;
            assert!(
                (got - share).abs() <= 0.05,
                "run {run}, seed {seed}: {counts:?}"
            );
        }
        assert!(!counts.contains_key("v3"), "weight 0 receives nothing");
    }
}

/// The examples' routes mean what they say, whole files included.
#[test]
fn gateway_folder_of_the_example_is_in_force() {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/full.yaml");
    let config = mesh_user::config::load(&full).unwrap();
    let route = config
        .model
        .rules
        .iter()
        .find(|rule| rule.name == "httproute/shop/reviews-next/0")
        .unwrap();
    assert_eq!(route.matches.len(), 2);
    assert_eq!(route.route.len(), 2);
    assert!(config.model.routes[0].is_accepted());
}

/// Features of `pkg/features` (and their kinds) in the order of the matrix, with the tests of those
/// that no case of the table names. No test: not supported.
const FEATURES: &[(&str, &[&str])] = &[
    ("Mesh", &[]),
    ("MeshClusterIPMatching", &[]),
    ("MeshConsumerRoute", &[]),
    ("MeshHTTPRouteBackendRequestHeaderModification", &[]),
    ("MeshHTTPRouteNamedRouteRule", &[]),
    ("MeshHTTPRouteQueryParamMatching", &[]),
    ("MeshHTTPRouteRedirectPath", &[]),
    ("MeshHTTPRouteRedirectPort", &[]),
    ("MeshHTTPRouteRewritePath", &[]),
    ("MeshHTTPRouteSchemeRedirect", &[]),
    ("HTTPRouteRequestHeaderModification", &[]),
    ("HTTPRoute303RedirectStatusCode", &[]),
    ("HTTPRoute307RedirectStatusCode", &[]),
    ("HTTPRoute308RedirectStatusCode", &[]),
    ("HTTPRouteBackendProtocolH2C", &[]),
    (
        "HTTPRouteBackendProtocolWebSocket",
        &["websocket_upgrade_becomes_an_opaque_copy"],
    ),
    ("HTTPRouteBackendRequestHeaderModification", &[]),
    ("HTTPRouteBackendRequestRedirect", &[]),
    ("HTTPRouteBackendTimeout", &[]),
    ("HTTPRouteBackendURLRewrite", &[]),
    ("HTTPRouteCORS", &[]),
    ("HTTPRouteDestinationPortMatching", &[]),
    ("HTTPRouteHostRewrite", &[]),
    ("HTTPRouteMethodMatching", &[]),
    ("HTTPRouteNamedRouteRule", &[]),
    ("HTTPRouteParentRefPort", &[]),
    ("HTTPRoutePathRedirect", &[]),
    ("HTTPRoutePathRewrite", &[]),
    ("HTTPRoutePortRedirect", &[]),
    ("HTTPRouteQueryParamMatching", &[]),
    ("HTTPRouteReferenceGrant", &[]),
    ("HTTPRouteRequestMirror", &[]),
    ("HTTPRouteRequestMultipleMirrors", &[]),
    (
        "HTTPRouteRequestPercentageMirror",
        &["share_of_mirrored_requests_is_the_fraction"],
    ),
    ("HTTPRouteRequestTimeout", &[]),
    ("HTTPRouteResponseHeaderModification", &[]),
    ("HTTPRouteRetry", &[]),
    ("HTTPRouteRetryBackendTimeout", &[]),
    ("HTTPRouteRetryConnectionError", &[]),
    ("HTTPRouteSchemeRedirect", &[]),
    (
        "HTTPRouteSessionPersistence",
        &["session_by_cookie_stays_at_its_endpoint_when_the_weight_falls_to_0"],
    ),
    ("GRPCRoute", &[]),
    ("GRPCRouteNamedRouteRule", &[]),
    ("GRPCRouteRequestHeaderModifier", &[]),
    (
        "TLSRoute",
        &["server_name_chooses_the_version_and_nothing_is_decrypted"],
    ),
    ("TLSRouteModeTerminate", &[]),
    ("TLSRouteModeMixed", &[]),
    ("TCPRoute", &[]),
    ("UDPRoute", &[]),
    ("BackendTLSPolicy", &[]),
];

const BEGIN: &str = "<!-- gateway: written by MESH_BLESS=1 cargo test --test unit_gateway -->";
const END: &str = "<!-- /gateway -->";

/// Without it: the README promises features of Gateway API that no test runs.
#[test]
fn unit_gateway_matrix() {
    let cases = cases();
    for case in &cases {
        for feature in &case.features {
            let known = FEATURES.iter().any(|(name, _)| name == feature);
            assert!(known, "{}: {feature} is not in the matrix", case.name);
        }
    }
    let mut table = "| feature | | cases |\n|---|---|---|\n".to_owned();
    for (feature, tests) in FEATURES {
        let about: Vec<&Case> = cases
            .iter()
            .filter(|case| case.features.contains(feature))
            .collect();
        let ready = about.iter().all(|case| case.is_ready());
        let yes = ready && !(about.is_empty() && tests.is_empty());
        let names: Vec<String> = about
            .iter()
            .map(|case| case.name)
            .chain(tests.iter().copied())
            .map(|name| format!("`{name}`"))
            .collect();
        let names = if yes { names.join(", ") } else { String::new() };
        let word = if yes { "yes" } else { "no" };
        table.push_str(&format!("| {feature} | {word} | {names} |\n"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the mark of the beginning");
    let (_, after) = rest.split_once(END).expect("the mark of the end");
    let wanted = format!("{before}{BEGIN}\n\n{table}\n{END}{after}");
    if std::env::var_os("MESH_BLESS").is_some() {
        fs::write(&path, wanted).unwrap();
    } else {
        assert!(readme == wanted, "MESH_BLESS=1 rewrites the matrix");
    }
}
