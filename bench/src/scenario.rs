//! What is measured, one leg at a time.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use mesh_user::demo::load::Report;

use crate::{
    cpu::{self, Cpu, Path_, Tree},
    leg::{self, Leg, Started, Tools, Variant},
    results::{Measured, Metric},
    stage::{Load, Stage},
};

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// Closed loop over 64 connections that stay open: what a request costs at capacity.
    Http,
    /// Open loop at a fixed rate: what latency is added.
    Open,
    /// A connection for each request.
    Conn,
    /// Memory: at the start, and of idle connections.
    Idle,
    /// One large body.
    Bulk,
    /// The same requests without any rule and with all kinds of rules. mesh alone.
    Rules,
    /// Requests that a limiter or a cap refuses, and the same ones forwarded. mesh alone.
    Refuse,
}

impl Scenario {
    const ALL: [Self; 7] = [
        Self::Idle,
        Self::Http,
        Self::Open,
        Self::Conn,
        Self::Bulk,
        Self::Rules,
        Self::Refuse,
    ];
}

/// Connections of the closed loop, and the most of the open loop.
pub(crate) const CONNECTIONS: u32 = 64;
/// Requests per second of the open loop: a third of what Envoy can do on one processor here, so
/// that no leg is measured in its own queue.
pub(crate) const OPEN_RATE: u32 = 8_000;
/// Connections at a time while each request makes its own.
pub(crate) const NEW_CONNECTIONS: u32 = 16;
/// Idle connections.
pub(crate) const IDLE_CONNECTIONS: u32 = 2_000;
/// Bytes of the large body.
const BULK_BYTES: u64 = 256 << 20;
/// One in ten requests asks for v2 by header.
const MIX: &str = "--mix=10:x-user: beta";
/// Idle connections must be made within this time, by the slowest leg, on a busy machine.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How long, how often.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) http: Duration,
    pub(crate) open: Duration,
    pub(crate) conn: Duration,
    pub(crate) bulk: Duration,
    scenarios: Vec<Scenario>,
}

impl Plan {
    pub(crate) fn new(quick: bool, scenarios: &[Scenario], rounds: Option<usize>) -> Self {
        let mut scenarios = scenarios.to_vec();
        if scenarios.is_empty() {
            scenarios = Scenario::ALL.to_vec();
        }
        let seconds = Duration::from_secs;
        if quick {
            let (http, open, conn, bulk) = (seconds(2), seconds(2), seconds(1), seconds(1));
            return Self {
                rounds: rounds.unwrap_or(1),
                http,
                open,
                conn,
                bulk,
                scenarios,
            };
        }
        let (http, open, conn, bulk) = (seconds(4), seconds(4), seconds(3), seconds(2));
        Self {
            rounds: rounds.unwrap_or(3),
            http,
            open,
            conn,
            bulk,
            scenarios,
        }
    }

    fn has(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario)
    }
}

/// Measures one leg in one round.
pub(crate) fn measure(
    stage: &Stage,
    tools: &Tools,
    leg: Leg,
    plan: &Plan,
    round: usize,
) -> Result<Measured> {
    let started = leg::start(stage, tools, leg)?;
    let tree = started.proxy.as_ref().map(|proxy| Tree::of(proxy.pid()));
    let path = Path_::new(&stage.bed.pods_cgroup(), tree.clone());
    let mut measured = BTreeMap::new();
    // Beside mesh, only what interception adds to a request and to a connection is asked.
    let whole = leg != Leg::Plain;
    // Memory hardly varies, and a fresh process is needed for it: once is enough.
    if plan.has(Scenario::Idle)
        && round == 0
        && whole
        && let Some(tree) = &tree
    {
        idle(stage, &started, tree, &mut measured).context("idle")?;
    }
    if plan.has(Scenario::Http) {
        let mut load = Load::new(started.to, CONNECTIONS, plan.http);
        load.more = vec![MIX.into()];
        let Outcome {
            report,
            cpu,
            foreign,
        } = run(stage, &path, &load).context("http")?;
        measured.insert(Metric::Foreign, foreign);
        measured.insert(Metric::Rps, report.rps);
        per(
            &mut measured,
            Metric::ProxyPerRequest,
            Metric::PathPerRequest,
            &report,
            cpu,
            leg,
        );
    }
    if plan.has(Scenario::Open) && whole {
        let mut load = Load::new(started.to, CONNECTIONS, plan.open);
        load.more = vec![MIX.into(), format!("--rate={OPEN_RATE}")];
        let Outcome { report, .. } = run(stage, &path, &load).context("open")?;
        measured.insert(Metric::OpenP50, report.latency_us.p50);
        measured.insert(Metric::OpenP99, report.latency_us.p99);
    }
    if plan.has(Scenario::Conn) {
        let mut load = Load::new(started.to, NEW_CONNECTIONS, plan.conn);
        load.more = vec![MIX.into(), "--new-connection".into()];
        let Outcome { report, cpu, .. } = run(stage, &path, &load).context("conn")?;
        measured.insert(Metric::ConnectionsPerSecond, report.rps);
        per(
            &mut measured,
            Metric::ProxyPerConnection,
            Metric::PathPerConnection,
            &report,
            cpu,
            leg,
        );
    }
    if plan.has(Scenario::Bulk) && whole {
        let mut load = Load::new(started.to, 1, plan.bulk);
        load.path = format!("/bytes/{BULK_BYTES}");
        let Outcome { report, cpu, .. } = run(stage, &path, &load).context("bulk")?;
        measured.insert(Metric::BulkMbps, report.bytes_per_second / 1e6);
        if leg != Leg::Direct {
            let megabytes = report.bytes as f64 / 1e6;
            measured.insert(Metric::ProxyPerMegabyte, micros(cpu.proxy) / megabytes);
        }
    }
    // They start the agent anew, with other rules.
    drop(started);
    if leg == Leg::Mesh {
        variants(stage, tools, plan, &mut measured)?;
    }
    Ok(measured)
}

/// What the proxy's CPU is for a request, by what the agent's rules are.
fn variants(stage: &Stage, tools: &Tools, plan: &Plan, measured: &mut Measured) -> Result<()> {
    /// What is measured, how the load asks to be refused, the answer's status.
    type Measure = (Metric, Option<&'static str>, u16);
    let loads: &[(Scenario, Variant, &[Measure])] = &[
        (
            Scenario::Rules,
            Variant::NoRules,
            &[(Metric::RulesOff, None, 200)],
        ),
        (
            Scenario::Rules,
            Variant::AllRules,
            &[(Metric::RulesOn, None, 200)],
        ),
        (
            Scenario::Refuse,
            Variant::Refusing,
            &[
                (Metric::Forwarded, None, 200),
                (Metric::Limited, Some("limit"), 429),
                (Metric::Capped, Some("cap"), 503),
            ],
        ),
    ];
    for (scenario, variant, loads) in loads {
        if !plan.has(*scenario) {
            continue;
        }
        let started = leg::start_variant(stage, tools, *variant)?;
        let tree = started.proxy.as_ref().map(|proxy| Tree::of(proxy.pid()));
        let path = Path_::new(&stage.bed.pods_cgroup(), tree);
        for (metric, refuse, status) in *loads {
            let mut load = Load::new(started.to, CONNECTIONS, plan.http);
            load.more = refuse
                .map(|how| format!("--header=x-refuse: {how}"))
                .into_iter()
                .collect();
            let what = || format!("{scenario:?}: {metric:?}");
            let outcome = run_to(stage, &path, &load, *status).with_context(what)?;
            let requests = outcome.report.requests as f64;
            measured.insert(*metric, micros(outcome.cpu.proxy) / requests);
        }
    }
    Ok(())
}

/// What a load saw and used.
struct Outcome {
    report: Report,
    cpu: Cpu,
    /// What others used meanwhile, in per cent of a processor.
    foreign: f64,
}

/// Runs a load; every answer must be a 200.
fn run(stage: &Stage, path: &Path_, load: &Load) -> Result<Outcome> {
    run_to(stage, path, load, 200)
}

/// Runs a load; every answer must have this status.
fn run_to(stage: &Stage, path: &Path_, load: &Load, status: u16) -> Result<Outcome> {
    let (before, machine, start) = (path.cpu()?, cpu::machine()?, Instant::now());
    let report = stage.load(load)?;
    let (used, machine) = (
        path.cpu()?.since(before),
        cpu::machine()?.saturating_sub(machine),
    );
    let foreign = machine.saturating_sub(used.path).as_secs_f64() / start.elapsed().as_secs_f64();
    ensure!(
        report.errors.is_empty(),
        "requests without an answer: {:?}",
        report.errors
    );
    ensure!(
        report.statuses.keys().eq([&status]),
        "answers by status: {:?}",
        report.statuses
    );
    Ok(Outcome {
        report,
        cpu: used,
        foreign: foreign * 100.0,
    })
}

fn per(measured: &mut Measured, proxy: Metric, path: Metric, report: &Report, cpu: Cpu, leg: Leg) {
    let requests = report.requests as f64;
    if leg != Leg::Direct {
        measured.insert(proxy, micros(cpu.proxy) / requests);
    }
    measured.insert(path, micros(cpu.path) / requests);
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Memory of a fresh proxy, and what idle connections add to it.
fn idle(stage: &Stage, started: &Started, tree: &Tree, measured: &mut Measured) -> Result<()> {
    measured.insert(
        Metric::RssStart,
        tree.memory("Rss")? as f64 / f64::from(1 << 20),
    );
    let before = tree.memory("Pss")?;
    let mut load = Load::new(started.to, IDLE_CONNECTIONS, IDLE_MAX);
    load.more = vec!["--hold".into()];
    let held = stage.start_load(&load)?;
    let open = || stage.bed.in_netns(&stage.client, established);
    let end = Instant::now() + IDLE_MAX;
    // Connections of the client that are established and have nothing under way.
    while open()? < u64::from(IDLE_CONNECTIONS) {
        ensure!(
            Instant::now() < end,
            "only {} idle connections were made",
            open()?
        );
        sleep(Duration::from_millis(20));
    }
    // Established is not yet answered: the time is the proxy's until it has used none of it.
    let mut used = tree.cpu()?;
    loop {
        sleep(Duration::from_millis(100));
        let now = tree.cpu()?;
        if now.saturating_sub(used) < Duration::from_millis(2) || Instant::now() > end {
            break;
        }
        used = now;
    }
    let after = tree.memory("Pss")?;
    drop(held);
    let bytes = after.saturating_sub(before) as f64 / f64::from(IDLE_CONNECTIONS);
    measured.insert(Metric::IdleKib, bytes / 1024.0);
    Ok(())
}

/// Established TCP sockets of a namespace's own, from `/proc/net/sockstat`.
fn established() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap_or_default();
    inuse(&text).unwrap_or(0)
}

fn inuse(sockstat: &str) -> Option<u64> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP: inuse "))?;
    line.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_in_use_are_read() {
        let text = "sockets: used 190\nTCP: inuse 2003 orphan 0 tw 4 alloc 5 mem 1\nUDP: inuse 0\n";
        assert_eq!(inuse(text), Some(2003));
        assert_eq!(inuse(""), None);
    }

    #[test]
    fn full_run_fits_into_eight_minutes_and_a_quick_one_into_two() {
        for (quick, limit) in [(false, 480), (true, 120)] {
            let plan = Plan::new(quick, &[], None);
            let loads = plan.http + plan.open + plan.conn + plan.bulk;
            // Start, check of the rules, processes: under three seconds for each leg and round.
            let rounds = u32::try_from(plan.rounds).expect("few");
            // Five loads of other rules, in three starts, of one leg.
            let variants = (plan.http * 5 + Duration::from_secs(9)) * rounds;
            let all =
                (loads + Duration::from_secs(3)) * rounds * 7 + variants + Duration::from_secs(20);
            assert!(all.as_secs() <= limit, "{quick} {all:?}");
        }
    }
}
