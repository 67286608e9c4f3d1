//! The agent's life and death under traffic, end to end: kill, hang, stop, reload, pods that come and
//! go, starts that fail, and what metrics and log say of it. Unmodified programs, the real kernel.

#[path = "lifecycle/death.rs"]
mod death;
#[path = "lifecycle/kernel.rs"]
mod kernel;
#[path = "lifecycle/pods.rs"]
mod pods;
#[path = "lifecycle/starts.rs"]
mod starts;
#[path = "lifecycle/stop.rs"]
mod stop;
#[path = "lifecycle/telemetry.rs"]
mod telemetry;

mod scene;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    process::Child,
};

use mesh_user::demo::load::Report;
use scene::{Scene, eventually, json, kernel_count};

/// The tester is `failure: closed`, the client is `failure: open`.
fn one_open_one_closed(scene: &Scene, rules: &str) -> String {
    let text = scene.config_with(rules);
    text.replace(
        "tags: {app: tester}",
        "tags: {app: tester}, failure: closed",
    )
}

/// Programs by attach point and name, as `mesh bpf progs` says.
fn hooks(scene: &Scene) -> BTreeMap<(String, String), usize> {
    let rows = json(scene, &["bpf", "progs", "-o", "json"]);
    let mut hooks = BTreeMap::new();
    for row in rows["items"].as_array().expect("a list") {
        let text = |field: &str| row[field].as_str().expect("text").to_owned();
        *hooks
            .entry((text("attached"), text("program")))
            .or_default() += 1;
    }
    hooks
}

/// A steady load, started and seen by the kernel.
fn steady(scene: &Scene, arguments: &[&str]) -> Child {
    let before = kernel_count(scene, "captured");
    let load = scene.load(&scene.client, "/", arguments).unwrap();
    eventually("the load runs", || kernel_count(scene, "captured") > before);
    load
}

fn assert_no_failure(what: &str, report: &Report) {
    assert!(report.errors.is_empty(), "{what}: {report:?}");
    assert!(report.statuses.keys().eq(&[200]), "{what}: {report:?}");
    assert!(
        report.requests > 100,
        "{what}: there was a load: {report:?}"
    );
}

/// A port of the node that nobody has.
fn free_port(scene: &Scene) -> SocketAddr {
    scene
        .bed
        .in_node(|| TcpListener::bind("127.0.0.1:0")?.local_addr())
        .unwrap()
        .unwrap()
}

/// The node's metrics port.
fn scrape(scene: &Scene, to: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
    let text = scene.bed.in_node(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(to)?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    let text = text.unwrap().expect("the port answers");
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    (status, text)
}
