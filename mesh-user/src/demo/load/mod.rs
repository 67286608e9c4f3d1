//! `mesh demo load`: asks, and measures.
//!
//! One thread and plain sockets: on a small machine the generator must not take the processor from
//! what it measures. Two ways to ask:
//!
//! - closed loop (default): each connection asks again as soon as it is answered; finds out how
//!   much goes through;
//! - open loop (`--rate`): requests start at fixed times, whatever became of the earlier ones, and
//!   latency counts from the time at which a request *should* have started. A server that stalls
//!   for a second is charged for every request that the second held up (no coordinated omission).
//!
//! Every run ends: after `--duration`, and `--timeout` for what is still open then.

mod client;
mod decode;
mod pace;
mod plan;
mod report;
mod run;

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Result, bail};

pub use report::Report;

/// Arguments of `mesh demo load`.
#[derive(clap::Args, Clone, Debug)]
pub struct LoadArgs {
    /// What to ask: `http://HOST[:PORT][/PATH]`; with --tcp, `HOST:PORT`.
    pub target: String,
    /// Connect here, whatever the target's host says.
    #[arg(long, value_name = "ADDR:PORT")]
    pub connect: Option<SocketAddr>,
    /// Connections at a time.
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub connections: u32,
    /// Seconds to ask for.
    #[arg(short, long, default_value = "5", value_parser = seconds)]
    pub duration: Duration,
    /// Seconds that the last answers are waited for.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub timeout: Duration,
    /// Open loop: requests per second, started at fixed times.
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// A connection of its own for each request.
    #[arg(long)]
    pub new_connection: bool,
    /// One request on each connection, then keep all of them open, idle.
    #[arg(long, conflicts_with_all = ["rate", "new_connection", "tcp"])]
    pub hold: bool,
    /// No HTTP: connect, send a byte, wait for it to come back, close.
    #[arg(long, conflicts_with_all = ["headers", "mix", "method"])]
    pub tcp: bool,
    /// Method.
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: String,
    /// A field of every request, such as 'x-user: beta'.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// A field of so many per cent of the requests, such as '10:x-user: beta'.
    #[arg(long, value_name = "PERCENT:NAME: VALUE")]
    pub mix: Vec<String>,
    /// Print a line of JSON each so many seconds, and at the end the whole as with --json.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub every: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Longest time that can be asked for: nobody means a load for days.
const SECONDS_MAX: f64 = 3600.0;

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches('s').parse::<f64>().ok();
    match number.filter(|number| *number > 0.0 && *number <= SECONDS_MAX) {
        Some(number) => Ok(Duration::from_secs_f64(number)),
        None => Err(format!(
            "wanted seconds, more than 0 and at most {SECONDS_MAX}"
        )),
    }
}

/// Asks as the arguments say and prints the report.
///
/// # Errors
/// An argument makes no sense, or not one request was answered.
pub fn run_load(args: &LoadArgs) -> Result<()> {
    let every = |report: &Report| {
        // A reader that went away: the load itself still ends by its duration.
        let _ = writeln!(std::io::stdout(), "{}", report.json());
    };
    let report = measure(args, every)?;
    let text = if args.json || args.every.is_some() {
        report.json()
    } else {
        report.text()
    };
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    if report.answered() == 0 {
        bail!("not one answer: {}", report.error_text());
    }
    Ok(())
}

/// Asks as the arguments say; hands an interim report to `every` as often as `--every` says.
///
/// # Errors
/// An argument makes no sense.
pub fn measure(args: &LoadArgs, every: impl Fn(&Report) + 'static) -> Result<Report> {
    let plan = plan::Plan::new(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, run::run(plan, every))
}

#[cfg(test)]
mod tests;
