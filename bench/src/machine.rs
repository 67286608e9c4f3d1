//! The page around the table: command, machine, date, versions, method.

use std::{fmt::Write as _, process::Command};

use crate::{
    cores::Cores,
    leg::Tools,
    scenario::{CONNECTIONS, IDLE_CONNECTIONS, NEW_CONNECTIONS, OPEN_RATE, Plan},
    table::Table,
};

/// The whole page.
pub(crate) fn page(table: &Table, plan: &Plan, tools: &Tools) -> String {
    let mut text = String::from("# Performance\n\nWritten by `cargo xtask bench --markdown`.\n\n");
    text.push_str(&table.markdown());
    let command: Vec<String> = std::env::args().skip(1).collect();
    let _ = write!(
        text,
        "\n- command: `cargo xtask bench {}`\n- date: {}\n- machine: {}\n- kernel: {}\n- places: {}\n",
        shown_args(&command),
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
        processor(),
        kernel(),
        Cores::assign().map_or_else(|error| error.to_string(), Cores::text),
    );
    for (leg, version) in tools.versions() {
        let _ = writeln!(text, "- {}: {version}", leg.name());
    }
    let seconds = |time: std::time::Duration| time.as_secs_f64();
    let _ = write!(
        text,
        "
## Method

Medians of {rounds} rounds; in each, one leg after the other, in turn from either end. All legs use
the same three network namespaces (client, v1, v2) on one bridge and the same built-in client and
servers, and the same rules: `x-user: beta` to v2 (one request in ten has it), of the rest 90 % to
v1 and 10 % to v2, caps and ejection, a rate limit that every request is counted against and none
reaches. That the rules are in force is checked before each measurement; an answer other than 200,
or none, ends the run. Logs are off. nginx, HAProxy and Envoy listen on the node, and the client
dials them; mesh is not dialled: the client dials the service's virtual address. «mesh dialled» is
the same proxy behind a listener in the client's namespace that the client dials: the same way, but
no eBPF, no mark and no route. The difference of the whole path's CPU is what interception costs.

- CPU of the proxy: run time of all its threads, network work in the kernel included. CPU of the
  whole path: the same of client, servers, proxy and the kernel's network threads.
- requests: closed loop, {CONNECTIONS} connections that stay open, {http:.0} s.
- p50, p99: open loop, {OPEN_RATE} requests/s for {open:.0} s, measured from when each request should
  have started.
- connections: closed loop, {NEW_CONNECTIONS} at a time, one request each, {conn:.0} s.
- one body: 256 MiB, again and again on one connection, {bulk:.0} s.
- memory per idle connection: growth of the proxy's PSS by {IDLE_CONNECTIONS} connections that made
  one request each and then stay open; first round only, on a fresh process.
",
        rounds = plan.rounds,
        http = seconds(plan.http),
        open = seconds(plan.open),
        conn = seconds(plan.conn),
        bulk = seconds(plan.bulk),
    );
    text
}

/// The arguments as typed: without the paths that `cargo xtask bench` adds, and below the
/// workspace's root, where it runs us.
fn shown_args(args: &[String]) -> String {
    let root = std::env::current_dir().unwrap_or_default();
    let root = format!("{}/", root.display());
    let own = |arg: &&String| !arg.starts_with("--mesh=") && !arg.starts_with("--envoy=");
    let shown: Vec<_> = args
        .iter()
        .filter(own)
        .map(|arg| arg.replace(&root, ""))
        .collect();
    shown.join(" ")
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = text
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    format!("{count} x {}", model.map_or("unknown", |(_, name)| name))
}

fn kernel() -> String {
    let output = Command::new("uname").arg("-srm").output();
    output.map_or("unknown".into(), |o| {
        String::from_utf8_lossy(&o.stdout).trim().to_owned()
    })
}
