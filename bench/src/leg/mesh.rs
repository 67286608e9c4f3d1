//! mesh: the client dials the service's virtual address, and the kernel hands the connection over.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::Variant;
use crate::stage::{Running, SERVER_PORT, Stage};

/// Nobody routes it: without the mesh it leads nowhere.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 80;
/// Where the proxy listens when it is dialled.
const PLAIN_PORT: u16 = 15_080;

/// The agent with interception.
pub(super) fn start(stage: &Stage, program: &Path) -> Result<(SocketAddr, Running)> {
    let to = SocketAddr::from((VIP, PORT));
    run(stage, program, "mesh", to, &config(stage, to))
}

/// The agent with other rules than those that all legs have.
pub(super) fn start_variant(
    stage: &Stage,
    program: &Path,
    variant: Variant,
) -> Result<(SocketAddr, Running)> {
    let to = SocketAddr::from((VIP, PORT));
    let rules = match variant {
        Variant::NoRules => NO_RULES,
        Variant::AllRules => ALL_RULES,
        Variant::Refusing => REFUSING,
    };
    run(
        stage,
        program,
        "mesh",
        to,
        &variant_config(stage, to, rules),
    )
}

/// The agent with a service that the kernel decides alone.
pub(super) fn start_kernel(stage: &Stage, program: &Path) -> Result<(SocketAddr, Running)> {
    let to = SocketAddr::from((VIP, PORT));
    run(stage, program, "mesh kernel", to, &kernel_config(stage, to))
}

fn run(
    stage: &Stage,
    program: &Path,
    name: &str,
    to: SocketAddr,
    config: &str,
) -> Result<(SocketAddr, Running)> {
    let path = stage.write("mesh.yaml", config)?;
    let args = ["--instance", "bench", "run", "--config", &path];
    // A killed agent leaves its pins, for the next one to take over; here there is none.
    let mut cleanup = Command::new(program);
    cleanup.args(["--instance", "bench", "cleanup", "--force"]);
    let before = cleanup.output().context("mesh cleanup does not start")?;
    ensure!(
        before.status.success(),
        "{}",
        String::from_utf8_lossy(&before.stderr).trim()
    );
    Ok((to, stage.proxy(name, program, &args)?.then(cleanup)))
}

/// The same proxy, dialled in the client's own namespace: the same way over `lo`, no interception.
pub(super) fn start_plain(stage: &Stage) -> Result<(SocketAddr, Running)> {
    let to = SocketAddr::from((stage.client.v4, PLAIN_PORT));
    let path = stage.write("plain.yaml", &config(stage, to))?;
    let netns = format!("--net={}", stage.client.netns.display());
    let own = stage.own.display().to_string();
    let listen = format!("--listen={to}");
    let args = [
        &netns,
        &own,
        "plain",
        "--config",
        &path,
        &listen,
        "--workload",
        "default/client",
    ];
    // In the node's cgroup, so that its time is not counted among the pods'.
    Ok((
        to,
        stage.proxy("mesh dialled", Path::new("nsenter"), &args)?,
    ))
}

/// One service at this address, with all rules.
fn config(stage: &Stage, at: SocketAddr) -> String {
    format!(
        "apiVersion: mesh/v1alpha1
kind: MeshConfig
attach: [{attach}]
agent:
  workers: 1
  metrics: off
  access-log: {{filter: off}}
services:
  - name: web
    hostnames: [web]
    addresses: [{ip}]
    ports: [{{name: http, number: {port}, target: {SERVER_PORT}, protocol: http}}]
    versions: {{v1: {{version: v1}}, v2: {{version: v2}}}}
    endpoints:
      - {{address: {v1}, tags: {{version: v1}}}}
      - {{address: {v2}, tags: {{version: v2}}}}
rules:
  - service: web
    precedence: 10
    match: [{{headers: {{x-user: {{exact: beta}}}}}}]
    route: [{{version: v2}}]
  - service: web
    route: [{{version: v1, weight: 90}}, {{version: v2, weight: 10}}]
policies:
  - service: web
    breaker:
      max-connections: 1000
      max-requests: 10000
      max-pending: 10000
      ejection: {{consecutive-5xx: 5, interval: 10s, base: 30s, max-percent: 50}}
    rate-limit: [{{name: all, key: [source.workload], rate: 1000000/s, burst: 1000000}}]
workloads:
  - {{name: client, netns: {netns}, tags: {{app: client}}}}
",
        attach = below_mount(&stage.bed.pods_cgroup()),
        netns = stage.client.netns.display(),
        v1 = stage.v1.v4,
        v2 = stage.v2.v4,
        ip = at.ip(),
        port = at.port(),
    )
}

/// One service of protocol tcp: its weights, cap and ejection are the kernel's.
fn kernel_config(stage: &Stage, at: SocketAddr) -> String {
    format!(
        "apiVersion: mesh/v1alpha1
kind: MeshConfig
attach: [{attach}]
agent:
  workers: 1
  metrics: off
  access-log: {{filter: off}}
services:
  - name: web
    addresses: [{ip}]
    ports: [{{name: tcp, number: {port}, target: {SERVER_PORT}, protocol: tcp, path: kernel}}]
    versions: {{v1: {{version: v1}}, v2: {{version: v2}}}}
    endpoints:
      - {{address: {v1}, tags: {{version: v1}}}}
      - {{address: {v2}, tags: {{version: v2}}}}
rules:
  - service: web
    route: [{{version: v1, weight: 1}}, {{version: v2, weight: 0}}]
policies:
  - service: web
    breaker:
      max-connections: 10000
      max-requests: 10000
      ejection: {{consecutive-5xx: 5, interval: 10s, base: 30s, max-percent: 50}}
workloads:
  - {{name: client, netns: {netns}, tags: {{app: client}}}}
",
        attach = below_mount(&stage.bed.pods_cgroup()),
        netns = stage.client.netns.display(),
        v1 = stage.v1.v4,
        v2 = stage.v2.v4,
        ip = at.ip(),
        port = at.port(),
    )
}

/// One service of one endpoint, with these rules and policies.
fn variant_config(stage: &Stage, at: SocketAddr, rules: &str) -> String {
    format!(
        "apiVersion: mesh/v1alpha1
kind: MeshConfig
attach: [{attach}]
agent:
  workers: 1
  metrics: off
  access-log: {{filter: off}}
services:
  - name: web
    hostnames: [web]
    addresses: [{ip}]
    ports: [{{name: http, number: {port}, target: {SERVER_PORT}, protocol: http, path: proxy}}]
    versions: {{v1: {{version: v1}}, limited: {{}}, capped: {{}}}}
    endpoints:
      - {{address: {v1}, tags: {{version: v1}}}}
{rules}workloads:
  - {{name: client, netns: {netns}, tags: {{app: client}}}}
",
        attach = below_mount(&stage.bed.pods_cgroup()),
        netns = stage.client.netns.display(),
        v1 = stage.v1.v4,
        ip = at.ip(),
        port = at.port(),
    )
}

const NO_RULES: &str = "";

/// What is asked of a request is asked; what comes last takes all.
const ALL_RULES: &str = r#"rules:
  - {service: web, precedence: 9, match: [{path: {exact: /never}}], route: [{version: capped}]}
  - {service: web, precedence: 8, match: [{path: {prefix: /never/below}}], route: [{version: capped}]}
  - {service: web, precedence: 7, match: [{path: {regex: "/never/[0-9]+"}}], route: [{version: capped}]}
  - {service: web, precedence: 6, match: [{headers: {x-user: {exact: beta}}}], route: [{version: capped}]}
  - {service: web, precedence: 5, match: [{headers: {x-user: {regex: "be.+"}}}], route: [{version: capped}]}
  - {service: web, precedence: 4, match: [{query: {debug: "1"}}], route: [{version: capped}]}
  - {service: web, precedence: 3, match: [{method: DELETE}], route: [{version: capped}]}
  - {service: web, precedence: 2, match: [{authority: never.web}], route: [{version: capped}]}
  - {service: web, precedence: 1, match: [{source: {tags: {app: another}}}], route: [{version: capped}]}
  - {service: web, route: [{version: v1, weight: 90}, {version: limited, weight: 10}]}
policies:
  - service: web
    breaker:
      max-connections: 1000
      max-requests: 10000
      max-pending: 10000
      ejection: {consecutive-5xx: 5, interval: 10s, base: 30s, max-percent: 50}
    rate-limit:
      - {name: all, rate: 1000000/s, burst: 1000000}
      - {name: each, key: [source.workload], rate: 1000000/s, burst: 1000000}
    timeout: {request: 10s, connect: 1s, idle: 1m}
    retries: {attempts: 2, on: [connect-failure, refused-stream]}
    balance: least-request
"#;

const REFUSING: &str = r#"rules:
  - {service: web, precedence: 2, match: [{headers: {x-refuse: {exact: limit}}}], route: [{version: limited}]}
  - {service: web, precedence: 1, match: [{headers: {x-refuse: {exact: cap}}}], route: [{version: capped}]}
  - {service: web, route: [{version: v1}]}
policies:
  - {service: web, version: limited, rate-limit: [{name: none, rate: 1/h, burst: 1}]}
  - {service: web, version: capped, breaker: {max-requests: 0}}
"#;

/// The bed's cgroup of pods, as the configuration names it: below the mount.
fn below_mount(pods: &Path) -> String {
    // `mb-NAME/pods`, as the test bed makes it.
    let parts: Vec<_> = pods.components().rev().take(2).collect();
    parts
        .iter()
        .rev()
        .map(|part| part.as_os_str().to_string_lossy())
        .collect::<Vec<_>>()
        .join("/")
}
