//! Objects of Gateway API in force in the whole agent on the real kernel: what a client gets depends
//! on the route, and on the namespace that it is in.

mod scene;

use scene::{PORT, Scene, build, eventually, json};

/// Where `web-v1` and `web-v2` listen.
const TARGET: u16 = 8080;

/// `web` of namespace default with a service for each version of it, and clients in two namespaces.
fn text(scene: &Scene) -> String {
    let mut services = scene.services_text();
    for (at, version) in ["v1", "v2"].into_iter().enumerate() {
        let of = format!("web-{version}");
        let pods = scene.bed.pods().iter();
        let endpoints: Vec<String> = pods
            .filter(|pod| pod.name.starts_with(&of))
            .map(|pod| format!("{{address: {}}}", pod.v4))
            .collect();
        assert!(!endpoints.is_empty(), "{of}");
        services.push_str(&format!(
            "  - {{name: {of}, addresses: [10.96.1.{}], ports: [{{name: http, number: {PORT}, \
             target: {TARGET}, protocol: http}}], endpoints: [{}]}}\n",
            at + 1,
            endpoints.join(", ")
        ));
    }
    let workloads = format!(
        "workloads:\n  - {{name: client, netns: {}}}\n  - {{name: tester, namespace: team, netns: {}}}\n",
        scene.client.netns.display(),
        scene.tester.netns.display()
    );
    format!(
        "{}gateway-api: [routes]\n{services}{workloads}",
        scene.head_text()
    )
}

/// The producer's route (9:1 and a header), the consumer's, and the grant that it needs.
fn routes(weights: [u32; 2], consumer: &str) -> String {
    let [v1, v2] = weights;
    format!(
        r#"apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: producer, namespace: default}}
spec:
  parentRefs: [{{group: "", kind: Service, name: web, port: 80}}]
  rules:
  - matches: [{{headers: [{{name: x-user, value: beta}}]}}]
    backendRefs: [{{name: web-v2, port: 80}}]
  - backendRefs:
    - {{name: web-v1, port: 80, weight: {v1}}}
    - {{name: web-v2, port: 80, weight: {v2}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: consumer, namespace: team}}
spec:
  parentRefs: [{{group: "", kind: Service, name: web, namespace: default, port: 80}}]
  rules:
  - matches: [{{path: {{value: /mine}}}}]
    backendRefs: [{{name: {consumer}, namespace: default, port: 80}}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {{name: team, namespace: default}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: team}}]
  to: [{{group: "", kind: Service}}]
"#
    )
}

/// As a whole: the agent may read in the middle of a write.
fn put(scene: &Scene, routes: &str) {
    let draft = scene.dir().join("routes.draft");
    std::fs::write(&draft, routes).expect("written");
    std::fs::rename(&draft, scene.dir().join("routes/web.yaml")).expect("in place");
}

/// Asks on one connection, so that splits are exact.
fn versions(scene: &Scene, pod: &mesh_user::testbed::Pod, arguments: &[&str]) -> [u32; 2] {
    let answers = scene.ask(pod, arguments).expect("answers");
    assert_eq!(answers.failed(), 0, "{arguments:?}: {answers:?}");
    [answers.version("v1"), answers.version("v2")]
}

/// Without it: routes hold in tests of the proxy alone, but the agent knows no namespace of a
/// client, or never reads a route's file again.
#[test]
fn routes_hold_by_namespace_and_are_reloaded_from_their_own_file() {
    let mut scene = build("t-gateway");
    std::fs::create_dir(scene.dir().join("routes")).expect("made");
    put(&scene, &routes([90, 10], "web-v2"));
    scene.start_with(&text(&scene)).expect("the agent starts");

    let many: &[&str] = &["--count", "200"];
    let beta: &[&str] = &["--count", "20", "-H", "x-user: beta"];
    let mine: &[&str] = &["--count", "20", "--path", "/mine/x"];
    assert_eq!(versions(&scene, &scene.client, many), [180, 20]);
    assert_eq!(versions(&scene, &scene.client, beta), [0, 20]);
    assert_eq!(versions(&scene, &scene.tester, mine), [0, 20]);
    // The consumer's route takes the place of the producer's in its namespace, and only there.
    let other = scene.ask(&scene.tester, &["-H", "x-user: beta"]).unwrap();
    assert_eq!(
        (other.status(404), other.rejects.get("no_route")),
        (1, Some(&1)),
        "{other:?}"
    );
    let shown = json(&scene, &["config", "gateway", "-o", "json"]).to_string();
    for name in ["producer", "consumer"] {
        assert!(shown.contains(name), "{shown}");
    }

    // Only the route's file changes.
    let before = scene.status().expect("a status").generation;
    put(&scene, &routes([50, 50], "web-v1"));
    eventually("the changed routes", || {
        scene.status().is_ok_and(|now| now.generation > before)
    });
    assert_eq!(versions(&scene, &scene.client, many), [100, 100]);
    assert_eq!(versions(&scene, &scene.tester, mine), [20, 0]);

    // What is not right names its own file, and leaves what is in force.
    let before = scene.status().expect("a status").generation;
    put(
        &scene,
        &routes([50, 50], "web-v1").replace("weight: 50", "weight: much"),
    );
    let mut message = String::new();
    eventually("the error in status", || {
        let error = scene.status().ok().and_then(|now| now.config.last_error);
        message = error.map(|error| error.message).unwrap_or_default();
        !message.is_empty()
    });
    assert!(
        message.contains("web.yaml:10:") && message.contains("much"),
        "{message}"
    );
    assert_eq!(scene.status().expect("a status").generation, before);
    assert_eq!(versions(&scene, &scene.client, many), [100, 100]);
    scene.tear_down().expect("gone");
}
