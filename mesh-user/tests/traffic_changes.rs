//! Changes under traffic, with the whole agent on the real kernel.

mod scene;

use std::time::Duration;

use scene::{build, report};

/// What the file says in round `n`: other weights, an endpoint more or less.
fn text(scene: &scene::Scene, n: u32) -> String {
    let rules = format!(
        "
rules:
  - {{name: split, service: web, port: http, route: [{{version: v1, weight: {}}}, {{version: v2, weight: 10}}]}}
policies:
  - {{service: web, breaker: {{max-requests: {}}}}}
",
        50 + n % 40,
        1_000 + n,
    );
    let whole = scene.config_with(&rules);
    if n % 3 != 2 {
        return whole;
    }
    // One endpoint of several less.
    let mut left = true;
    let kept = whole.lines().filter(|line| {
        let goes = left && line.contains("tags: {version: v1");
        left &= !goes;
        !goes
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// Without it: a change that is right by itself cuts or refuses what is under way while it comes into
/// force: the kernel's tables, the workers, and what was in force before.
#[test]
fn changes_under_traffic_fail_no_request() {
    let mut scene = build("t-changes");
    let first = text(&scene, 0);
    scene.start_with(&first).expect("the agent starts");
    let before = scene.status().expect("a status").generation;
    let arguments = &["--connections=8", "--duration=6"];
    let kept = scene.load(&scene.client, "/", arguments).expect("a load");
    let arguments = &["--connections=4", "--duration=6", "--new-connection"];
    let anew = scene.load(&scene.client, "/", arguments).expect("a load");
    for n in 1..40 {
        let draft = scene.dir().join("next.draft");
        std::fs::write(&draft, text(&scene, n)).expect("written");
        std::fs::rename(&draft, scene.config_path()).expect("in place");
        // Slower than the watch gathers events, faster than anybody would by hand.
        std::thread::sleep(Duration::from_millis(100));
    }
    for load in [kept, anew] {
        let report = report(load);
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(
            report.statuses.keys().collect::<Vec<_>>(),
            [&200],
            "{report:?}"
        );
        assert!(report.requests > 100, "{report:?}");
    }
    let now = scene.status().expect("a status").generation;
    assert!(
        now > before + 10,
        "{before} to {now}: few changes came into force"
    );
    scene.tear_down().expect("gone");
}
