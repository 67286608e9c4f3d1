//! The command line as clap reads it; help texts are the documentation (`docs/CLI.md`).

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::output::Format;
use crate::{kernel::Instance, model::shield::Net, telemetry::logging::LogStyle};

/// Transparent service mesh for one node: eBPF captures, one proxy decides, nothing is injected.
///
/// Data goes to standard output, everything else to standard error. Exit status: 0 done; 1 failed,
/// or the answer is no (not ready, not valid, a check failed); 2 wrong usage; 3 `explain`: the
/// request would be refused. NO_COLOR is respected.
#[derive(Debug, Parser)]
#[command(name = "mesh", version, max_term_width = 100)]
pub(super) struct Cli {
    /// Name that keeps several agents on one machine apart.
    #[arg(
        long,
        global = true,
        env = "MESH_INSTANCE",
        hide_env_values = true,
        default_value = "default",
        value_parser = Instance::new
    )]
    pub(super) instance: Instance,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the agent in the foreground.
    Run(RunArgs),
    /// Look at what this machine offers: kernel, BTF, cgroup2, bpffs, capabilities.
    ///
    /// With something of the instance attached: each hook with its program's tag, how full the maps
    /// are, hooks of others before ours, and for each workload whether the hooks are effective for
    /// its processes and a connection out of its namespace arrives (the agent counts it as one of
    /// an unknown destination). Leaves nothing behind. Exit status 1 when something required is
    /// missing.
    Check(OutputArgs),
    /// Say how the agent is.
    ///
    /// Exit status 1 when no agent runs or when it isn't ready.
    Status(OutputArgs),
    /// Read the pinned BPF maps, also with the agent dead.
    Bpf {
        #[command(subcommand)]
        what: BpfVerb,
        #[command(flatten)]
        output: GlobalOutputArgs,
    },
    /// Stream what an operator may have to act on: refusals and bypasses of the kernel's hooks,
    /// refusals of the proxy, lookup misses, ejections, repairs, hooks of others that run before ours.
    ///
    /// From now on, until ^C or until the agent stops (exit status 0 for both). A reader that is
    /// too slow loses the oldest events and is told how many. Of many refusals by the proxy at
    /// once the first 16 in each quarter of a second are shown, with how many more there were.
    Monitor(MonitorArgs),
    /// Show the decisions in force in the running agent.
    Config {
        #[command(subcommand)]
        what: ConfigVerb,
        #[command(flatten)]
        output: GlobalOutputArgs,
    },
    /// Say what would happen to a request, with every rule that is tried and why.
    ///
    /// Runs the data path's own decision code, in the running agent or, with -f, on a file. Nothing
    /// is spent and nothing is sent. Exit status 0: it would be forwarded, or not touched; 3: it
    /// would be refused.
    Explain(ExplainArgs),
    /// Check configuration files: every problem at once, with its place.
    Validate(ValidateArgs),
    /// Check configuration files, and tell what is valid but probably not meant: shadowed rules,
    /// versions that nothing is sent to, weights that don't add up, missing endpoints.
    ///
    /// Every finding has a code, a place and a severity. Exit status 1 when one is at least as bad
    /// as `--fail-on`.
    Analyze(AnalyzeArgs),
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Check a file, then put it in the place of the one that the agent watches, and wait for it.
    Apply(ApplyArgs),
    /// Pause or resume capture: off lets every new connection pass untouched.
    Redirect {
        /// on or off.
        #[arg(value_enum)]
        state: Switch,
    },
    /// What is dropped at the node's interfaces: look at it, change it during an attack.
    Shield {
        #[command(subcommand)]
        what: ShieldVerb,
        #[command(flatten)]
        output: GlobalOutputArgs,
    },
    /// Have the agent read its configuration file again now.
    Reload,
    /// Show or change what the agent logs.
    Logging {
        /// A level, or targets with levels: `debug`, `info,mesh_user::proxy=trace`.
        filter: Option<String>,
    },
    /// Remove everything that an instance left in the kernel: links, maps, pins, rules, routes.
    Cleanup(CleanupArgs),
    /// Make pods out of namespaces on this machine and show the mesh at work.
    ///
    /// Needs root. Everything it makes carries the demo's name and is removed at the end, which it
    /// proves.
    Demo(crate::demo::DemoArgs),
    /// Print a completion script.
    Completions {
        /// For which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the version, and that of the layout shared with the kernel.
    Version(OutputArgs),
}

/// `mesh run`.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// The configuration file; watched, taken over when it changes.
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Take over from the running agent of this instance, without a gap; with none, just start.
    ///
    /// The running one serves until this one is ready, then ends what it has and exits. When this one
    /// fails, the running one goes on. Both must have the same kernel layout (`mesh version`).
    #[arg(long)]
    pub(super) takeover: bool,
    /// What is logged: a level, or targets with levels.
    #[arg(
        long,
        env = "MESH_LOG",
        hide_env_values = true,
        default_value = "info",
        value_name = "FILTER"
    )]
    pub(super) log: String,
    /// How log lines look.
    #[arg(
        long,
        env = "MESH_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text",
        value_enum
    )]
    pub(super) log_format: LogStyleArg,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogStyleArg {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl From<LogStyleArg> for LogStyle {
    fn from(style: LogStyleArg) -> Self {
        match style {
            LogStyleArg::Text => Self::Text,
            LogStyleArg::Json => Self::Json,
        }
    }
}

/// How the answer is printed.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct OutputArgs {
    /// table, wide: for people; json, yaml: for machines, with a version in `apiVersion`.
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Format,
    /// Leave the table's head line out.
    #[arg(long)]
    pub(super) no_headers: bool,
}

/// The same for verbs with verbs below: accepted at any place.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct GlobalOutputArgs {
    /// table, wide: for people; json, yaml: for machines, with a version in `apiVersion`.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub(super) output: Format,
    /// Leave the table's head line out.
    #[arg(long, global = true)]
    pub(super) no_headers: bool,
}

impl From<GlobalOutputArgs> for OutputArgs {
    fn from(args: GlobalOutputArgs) -> Self {
        Self {
            output: args.output,
            no_headers: args.no_headers,
        }
    }
}

/// `mesh bpf ...`.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum BpfVerb {
    /// Which workloads are redirected, and to which listeners.
    #[command(subcommand)]
    Redirect(ListVerb),
    /// Enrolled workloads.
    #[command(subcommand)]
    Workloads(ListVerb),
    /// Service addresses and what a connect to them does.
    #[command(subcommand)]
    Services(ListVerb),
    /// Endpoints that the kernel may choose, with what became of its connections to them.
    #[command(subcommand)]
    Endpoints(ListVerb),
    /// What happens to connections that come in, by workload and port.
    #[command(subcommand)]
    Inbound(ListVerb),
    /// Live connections: who asked for what, who decided, where it went, bytes, age, RTT.
    ///
    /// Bytes and RTT are asked of TCP in the workloads' namespaces at this moment, which needs
    /// root. SERVICE and VERSION need a running agent. A connection to the proxy (VERDICT proxy)
    /// has no endpoint of its own: its requests are the proxy's, whose dials are the rows with
    /// LEG `up`.
    Conns {
        #[command(subcommand)]
        verb: Option<ListVerb>,
        #[command(flatten)]
        which: ConnsArgs,
    },
    /// What the programs did, by reason.
    #[command(subcommand)]
    Stats(ListVerb),
    /// Maps with their fill.
    #[command(subcommand)]
    Maps(ListVerb),
    /// Pinned links with their programs.
    Progs,
}

/// Which connections, in which order.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct ConnsArgs {
    /// Only of this workload: `namespace/name`, or a name in `default`.
    #[arg(long, global = true, value_name = "WORKLOAD")]
    pub(super) workload: Option<String>,
    /// Only to this service: `namespace/name`, a name in `default`, or an address with or without
    /// port, as it was asked for.
    #[arg(long, global = true, value_name = "SERVICE")]
    pub(super) service: Option<String>,
    /// Largest first, but for `workload`.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(super) sort: ConnsSort,
}

/// Orders of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ConnsSort {
    /// By workload, then the oldest first.
    #[default]
    Workload,
    /// By age.
    Age,
    /// By bytes of both directions.
    Bytes,
    /// By round-trip time.
    Rtt,
}

/// What can be done with what is in a map: it is read, never written.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ListVerb {
    /// List it.
    List,
}

/// `mesh shield ...`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ShieldVerb {
    /// Where it stands, why not elsewhere, and what it did with frames, by reason.
    Status,
    /// Rules with what they dropped or let pass, where they come from and when they end.
    List,
    /// Sources with the most SYNs dropped, then passed (with a rate configured).
    Top {
        /// Most rows.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// Say what happens to an address, and which entries name it.
    Check {
        /// The address.
        address: IpAddr,
    },
    /// Drop every frame from a range, at once. Kept apart from the lists of the configuration; an
    /// agent's restart keeps it.
    Deny {
        /// A range, or one address.
        cidr: Net,
        /// End it after this time: 10m, 1h30m.
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
        duration: Option<Duration>,
    },
    /// Take an entry of `deny` back.
    Undeny {
        /// The range as it was given.
        cidr: Net,
    },
    /// Let every frame from a range pass, whatever else is said.
    Allow {
        /// A range, or one address.
        cidr: Net,
        /// End it after this time: 10m, 1h30m.
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
        duration: Option<Duration>,
    },
    /// Take an entry of `allow` back.
    Unallow {
        /// The range as it was given.
        cidr: Net,
    },
}

/// `mesh config ...`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Service ports, who decides for each (PATH), and what forced that.
    Services,
    /// Rules in the order in which they are tried, with their targets' shares.
    Routes,
    /// Endpoints with their state.
    Endpoints,
    /// Effective values, defaults included, and where each comes from.
    Policies,
}

/// `mesh monitor`.
#[derive(Args, Clone, Debug)]
pub(super) struct MonitorArgs {
    /// Only of this workload: `namespace/name`, or a name in `default`.
    #[arg(long, value_name = "WORKLOAD")]
    pub(super) workload: Option<String>,
    /// Only of these kinds; with commas.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "KIND",
        value_parser = ["refused", "bypass", "miss", "ejection", "foreign-hook"]
    )]
    pub(super) kind: Vec<String>,
    /// Only with these reasons, as `mesh bpf stats list` names them; with commas.
    #[arg(long, value_delimiter = ',', value_name = "REASON")]
    pub(super) reason: Vec<String>,
    /// text: for people; json: one object a line.
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: MonitorFormat,
}

/// The formats of [`MonitorArgs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum MonitorFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `mesh explain`.
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    /// The workload that asks: `namespace/name`, or a name in `default`.
    #[arg(long, value_name = "WORKLOAD", required_unless_present = "live")]
    pub(super) from: Option<String>,
    /// Where to: a service's hostname or address, and port. IPv6 in brackets.
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_parser = parse_target,
        required_unless_present = "live"
    )]
    pub(super) to: Option<Target>,
    /// A live connection instead: the client's ADDRESS:PORT, or its cookie (`mesh bpf conns -o
    /// wide`). Tells what was decided for it last, by which configuration, and what would be
    /// decided for a new one. Needs a running agent.
    #[arg(
        long,
        value_name = "CONN",
        conflicts_with_all = ["from", "to", "method", "path", "headers", "file", "tcp"]
    )]
    pub(super) live: Option<String>,
    /// An opaque connection: no request.
    #[arg(long, conflicts_with_all = ["method", "path", "headers"])]
    pub(super) tcp: bool,
    /// Method.
    #[arg(long, default_value = "GET", value_name = "M", value_parser = parse_method)]
    pub(super) method: String,
    /// Path, with query.
    #[arg(long, default_value = "/", value_name = "P", value_parser = parse_path)]
    pub(super) path: String,
    /// A header field; may be given more than once. `host` takes the place of HOST:PORT.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    pub(super) headers: Vec<(String, String)>,
    /// A TLS connection that is passed on as it is, with this server name (`""`: without), in place
    /// of a request.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["method", "path", "headers"])]
    pub(super) sni: Option<String>,
    /// Ask this file instead of the running agent.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: PlainOutputArgs,
}

/// How an answer that is no list is printed.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct PlainOutputArgs {
    /// text: for people; json, yaml: for machines, with a version in `apiVersion`.
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: PlainFormat,
}

/// The formats of [`PlainOutputArgs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum PlainFormat {
    /// For people.
    #[default]
    Text,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

/// `mesh validate`.
#[derive(Args, Debug)]
pub(super) struct ValidateArgs {
    /// The files; `-`: standard input.
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    pub(super) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) output: PlainOutputArgs,
}

/// `mesh analyze`.
#[derive(Args, Debug)]
pub(super) struct AnalyzeArgs {
    /// The files; `-`: standard input.
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    pub(super) files: Vec<PathBuf>,
    /// From which severity on the exit status is 1.
    #[arg(long, value_enum, default_value_t)]
    pub(super) fail_on: FailOn,
    #[command(flatten)]
    pub(super) output: PlainOutputArgs,
}

/// Severities of [`AnalyzeArgs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum FailOn {
    /// Only what makes the file invalid.
    #[default]
    Error,
    /// What does probably not do what was meant, too.
    Warning,
    /// Anything.
    Note,
}

/// `mesh apply`.
#[derive(Args, Debug)]
pub(super) struct ApplyArgs {
    /// The new configuration; `-`: standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: PathBuf,
}

/// `mesh cleanup`.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct CleanupArgs {
    /// Only say what would be removed.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Also while a live agent holds the instance: its workloads fall to their failure mode.
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) output: PlainOutputArgs,
}

/// on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    /// Capture.
    On,
    /// Let everything pass.
    Off,
}

fn parse_target(text: &str) -> Result<Target, String> {
    let expected = "expected HOST:PORT, as in `reviews:80`, `10.96.0.10:80` or `[fd00::1]:80`";
    let (host, port) = text.rsplit_once(':').ok_or(expected)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or(expected)?,
        None if host.contains(':') => return Err(expected.into()),
        None => host,
    };
    if host.is_empty() {
        return Err(expected.into());
    }
    match port.parse() {
        Ok(port) if port > 0 => Ok(Target {
            host: host.to_owned(),
            port,
        }),
        _ => Err(format!("port {port:?}: expected 1 to 65535")),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    crate::config::duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a duration such as 30s, 10m or 1h30m".to_owned())
}

fn parse_method(text: &str) -> Result<String, String> {
    http::Method::from_bytes(text.as_bytes())
        .map(|method| method.to_string())
        .map_err(|_| "expected a token such as GET or POST (RFC 9110 §9.1)".to_owned())
}

fn parse_path(text: &str) -> Result<String, String> {
    let clean = text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() || byte >= 0x80);
    if (text.starts_with('/') || text == "*") && clean {
        Ok(text.to_owned())
    } else {
        Err("expected a path that begins with `/`, without spaces (encode them as %20)".to_owned())
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("expected `NAME: VALUE`, as in `x-user: beta`")?;
    let name = http::HeaderName::from_bytes(name.trim().as_bytes())
        .map_err(|_| format!("header name {name:?}: expected a token (RFC 9110 §5.1)"))?;
    let value = value.trim_matches([' ', '\t']);
    http::HeaderValue::from_str(value)
        .map_err(|_| format!("header value {value:?}: control characters are not allowed"))?;
    Ok((name.as_str().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_takes_names_and_both_address_families() {
        let target = |host: &str, port| {
            Ok(Target {
                host: host.into(),
                port,
            })
        };
        assert_eq!(parse_target("reviews:80"), target("reviews", 80));
        assert_eq!(
            parse_target("10.96.0.10:65535"),
            target("10.96.0.10", 65535)
        );
        assert_eq!(parse_target("[fd00::1]:1"), target("fd00::1", 1));
    }

    #[test]
    fn target_without_host_or_port_is_refused() {
        for bad in [
            "",
            "reviews",
            ":80",
            "reviews:",
            "reviews:0",
            "reviews:65536",
            "fd00::1:80",
            "[fd00::1",
            "[]:80",
        ] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn header_is_a_lower_case_name_and_a_trimmed_value() {
        assert_eq!(
            parse_header("X-User:  beta "),
            Ok(("x-user".into(), "beta".into()))
        );
        assert_eq!(parse_header("a:b:c"), Ok(("a".into(), "b:c".into())));
        assert!(parse_header("no-colon").is_err());
        assert!(parse_header("bad name: x").is_err());
        assert!(parse_header("a: b\r\nc: d").is_err());
    }

    #[test]
    fn path_and_method_must_be_what_a_request_line_can_carry() {
        assert!(parse_path("/a?b=c").is_ok() && parse_path("*").is_ok());
        assert!(
            parse_path("a").is_err() && parse_path("/a b").is_err() && parse_path("/\n").is_err()
        );
        assert!(parse_method("PROPFIND").is_ok());
        assert!(parse_method("G T").is_err() && parse_method("").is_err());
    }
}
