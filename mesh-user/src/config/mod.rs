//! The configuration file: text -> tree -> [`Config`]. Reports every problem at once, each with
//! file, line, column, an excerpt, the field and what would be right.
//!
//! ```text
//! source (bytes, bounds) -> tree (YAML with spans) -> walk (form) -> build (values) -> check (meaning)
//!                                                      ^ fields: the description of the file
//!                                                      v
//!                                        schema (JSON Schema), reference (docs/CONFIG.md)
//! ```
//! `fields` is the only place that names fields. Absent on purpose: environment variables, includes,
//! templates, defaults from elsewhere: what stands in the file is what holds.

use std::{
    hash::Hasher as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::model::{Model, shield::Shield};

mod analyze;
mod build;
mod check;
mod collect;
mod fields;
mod fnv;
mod gateway;
mod locate;
mod path;
mod reference;
mod render;
mod report;
mod schema;
mod shape;
mod source;
mod suggest;
mod text;
mod tree;
mod units;
mod walk;

pub use check::{Finding, check, is_sound_change};
pub use path::{FieldPath, Step};
pub use reference::reference_markdown;
pub use report::{Code, ConfigError, PROBLEMS_MAX, Problem, Report, Severity};
pub use schema::schema;

use collect::Collector;
pub(crate) use fnv::Fnv1a as Digest;
use gateway::Documents;
pub(crate) use gateway::files;
use path::Trail;
use source::{Source, Span};
pub(crate) use units::duration;

/// Reads and checks a configuration file.
///
/// Warnings are dropped: [`examine`] keeps them.
///
/// # Errors
/// Every problem of the file at once.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    examine(path).into_result()
}

/// Checks the text of a configuration file; `name` stands for the file in messages.
///
/// # Errors
/// Every problem of the text at once.
pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
    examine_text(name, text).into_result()
}

/// Reads and checks a configuration file, and keeps the warnings (`mesh validate`).
pub fn examine(path: &Path) -> Examined {
    match read_file(path) {
        Ok(text) => examine_text(&path.display().to_string(), &text),
        Err(report) => Examined::refused(report),
    }
}

/// [`examine`], and what is valid but probably not meant (`mesh analyze`).
pub fn analyze(path: &Path) -> Examined {
    match read_file(path) {
        Ok(text) => analyze_text(&path.display().to_string(), &text),
        Err(report) => Examined::refused(report),
    }
}

/// The text of a configuration file, not examined yet.
///
/// # Errors
/// The report on a file that can't be read.
pub(crate) fn read_file(path: &Path) -> Result<String, Report> {
    source::read(path).map_err(|(code, why, expected)| {
        let name = path.display().to_string();
        let mut out = Collector::new();
        let message = format!("`{name}` {why}");
        let expected = Some(expected.to_owned());
        out.error(
            code,
            Span::default(),
            FieldPath::default(),
            message,
            expected,
        );
        out.finish(Arc::new(Source::new(&name, "")))
    })
}

/// [`examine`] for a text at hand. What it names relatively lies in the folder of `name`.
pub fn examine_text(name: &str, text: &str) -> Examined {
    let folder = Path::new(name).parent().unwrap_or(Path::new(""));
    examine_text_in(folder, name, text)
}

/// [`examine_text`] for a text whose relative names are below `folder`.
pub fn examine_text_in(folder: &Path, name: &str, text: &str) -> Examined {
    examine_with(folder, name, text, check)
}

/// [`examine_text`], and what is valid but probably not meant (`mesh analyze`).
pub fn analyze_text(name: &str, text: &str) -> Examined {
    let folder = Path::new(name).parent().unwrap_or(Path::new(""));
    examine_with(folder, name, text, |model| {
        let mut findings = check(model);
        if findings
            .iter()
            .all(|found| found.severity != Severity::Error)
        {
            findings.extend(analyze::analyze(model));
        }
        findings
    })
}

fn examine_with(
    folder: &Path,
    name: &str,
    text: &str,
    meaning: impl Fn(&Model) -> Vec<Finding>,
) -> Examined {
    let source = Arc::new(Source::new(name, text));
    let mut out = Collector::new();
    let mut documents = Documents::default();
    let mut beside = Beside::default();
    let place = (&*source, folder);
    let config = read(place, &mut documents, &mut beside, &mut out, meaning);
    let good = !out.has_errors() && !documents.has_errors();
    let files = std::iter::once((out, source));
    let more = documents
        .files
        .into_iter()
        .map(|(source, out)| (out, source));
    Examined {
        config: config.filter(|_| good),
        report: Collector::finish_all(files.chain(more)),
        beside,
    }
}

/// Text to tree, tree to values, and all the checks. What comes back may hold placeholders when
/// there are errors.
fn read(
    (source, folder): (&Source, &Path),
    documents: &mut Documents,
    beside: &mut Beside,
    out: &mut Collector,
    meaning: impl Fn(&Model) -> Vec<Finding>,
) -> Option<Config> {
    if source.text.len() as u64 > source::FILE_BYTES_MAX {
        let message = format!("there are {} bytes", source.text.len());
        let expected = Some("at most 16 MiB".to_owned());
        out.error(
            Code::FileTooLarge,
            Span::default(),
            FieldPath::default(),
            message,
            expected,
        );
        return None;
    }
    let root = root(source, documents, out)?;
    walk::walk_object(&root, &fields::ROOT, Trail::ROOT, out);
    let mut config = build::config(&root, out);
    beside.entries = gateway::entries(&root, folder);
    let found = files::read(&beside.entries);
    let mut digest = Digest::default();
    files::digest(&found, &mut digest);
    beside.digest = digest.finish();
    documents.load(&root, found, out);
    let objects = documents.objects(source, out);
    // References into a file with errors would often be said to lead nowhere.
    let good = !out.has_errors() && !documents.has_errors();
    let made = good.then(|| gateway::apply(&objects, &mut config.model));
    let made = made.unwrap_or(gateway::Made::NOTHING);
    let mut findings = meaning(&config.model);
    findings.extend(check::agent(&config.agent));
    findings.sort_by_key(|finding| finding.severity);
    for finding in findings {
        // A warning about a file that is refused anyway would often follow from the error.
        let errors = out.has_errors() || documents.has_errors();
        let needless = finding.severity != Severity::Error && errors;
        let follows = out.spoils(&finding.path)
            || finding
                .because
                .as_ref()
                .is_some_and(|because| out.spoils(because));
        if needless || follows || documents.finding(&objects, &made, &finding, out) {
            continue;
        }
        let span = locate::locate(&root, &finding.path);
        let Finding {
            severity,
            code,
            path,
            message,
            expected,
            ..
        } = finding;
        out.add(severity, code, span, path, message, expected);
    }
    if !out.has_errors() && !documents.has_errors() {
        documents.say(&objects, made, source, out);
    }
    Some(config)
}

/// The mesh's own document; the others are objects of Kubernetes.
fn root(source: &Source, documents: &mut Documents, out: &mut Collector) -> Option<tree::Node> {
    let nodes = match tree::parse_all(source) {
        Ok(nodes) => nodes,
        Err(fault) => {
            let expected = fault.expected.map(str::to_owned);
            let path = FieldPath::default();
            out.error(fault.code, fault.span, path, fault.message, expected);
            return None;
        }
    };
    let mut root = None;
    for node in nodes {
        if gateway::is_object(&node) {
            documents.add(node);
        } else if root.is_none() {
            root = Some(node);
        } else {
            let message = "a second document of the mesh's own begins here".to_owned();
            let expected = Some("one MeshConfig, and objects of Gateway API".to_owned());
            let (span, path) = (locate::head(&node), FieldPath::default());
            out.error(Code::YamlSecondDocument, span, path, message, expected);
        }
    }
    if root.is_none() {
        let (code, message) = if documents.is_empty() {
            (Code::FileEmpty, format!("`{}` is empty", source.name))
        } else {
            let message = "there are objects of Kubernetes, and no MeshConfig".to_owned();
            (Code::MissingField, message)
        };
        let expected = Some(format!(
            "`apiVersion: {}`, `kind: {}` and what they describe",
            fields::API_VERSION,
            fields::KIND
        ));
        let (span, path) = (Span::default(), FieldPath::default());
        out.error(code, span, path, message, expected);
    }
    root
}

/// What an examination of a file found.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The configuration; none when the report has an error.
    pub config: Option<Config>,
    /// Errors and warnings, in the order of the file.
    pub report: Report,
    /// What else was read.
    pub(crate) beside: Beside,
}

/// Files beside the configuration file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside {
    /// The files and folders that it names.
    pub(crate) entries: Vec<PathBuf>,
    /// Hash of what was read of them.
    pub(crate) digest: u64,
}

impl Examined {
    /// A file that can't be read.
    pub(crate) fn refused(report: Report) -> Self {
        Self {
            config: None,
            report,
            beside: Beside::default(),
        }
    }

    /// The configuration without its warnings.
    ///
    /// # Errors
    /// The report, when it has an error.
    pub fn into_result(self) -> Result<Config, ConfigError> {
        match self.config {
            Some(config) => Ok(config),
            None => Err(ConfigError::from(self.report)),
        }
    }
}

/// A valid configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Settings of the agent.
    pub agent: AgentConfig,
    /// The model.
    pub model: Model,
}

/// Settings of the agent. What can't change without a restart says so in its documentation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentConfig {
    /// Cgroups (below the cgroup2 mount) at which the connect hooks attach. Empty: the kubepods
    /// parent is searched. Needs a restart.
    pub attach: Vec<PathBuf>,
    /// Worker threads, 1 to 8; default: the CPUs that the process may use, at most 8. Needs a
    /// restart.
    pub workers: usize,
    /// What happens to network namespaces that are not enrolled.
    pub unknown_netns: UnknownNetns,
    /// Where `/metrics`, `/livez`, `/readyz` are served; none: nowhere. Needs a restart.
    pub metrics: Option<SocketAddr>,
    /// The access log.
    pub access_log: AccessLog,
    /// Limits of the data path. Apply to the next connection.
    pub limits: Limits,
    /// The kubelet's own cgroup, whose connections are probes; none: looked for. Needs a restart.
    pub kubelet_cgroup: Option<PathBuf>,
    /// How long a stop waits for requests in flight.
    pub drain: Duration,
    /// The shield of this node's interfaces; none: nothing of it is loaded.
    pub shield: Option<Shield>,
    /// Which bits of the socket mark are ours. Needs a restart.
    pub marks: MarkBits,
}

/// Two bits of the socket mark, which differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MarkBits {
    /// Number of the bit of captured sockets, 0 to 31.
    pub capture_bit: u8,
    /// Number of the bit of the agent's own sockets, 0 to 31.
    pub agent_bit: u8,
}

impl Default for MarkBits {
    fn default() -> Self {
        Self {
            capture_bit: 20,
            agent_bit: 21,
        }
    }
}

/// What happens to a network namespace that is not enrolled, below the attach point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownNetns {
    /// It connects as if there were no mesh.
    #[default]
    Pass,
    /// ECONNREFUSED.
    Refuse,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccessLog {
    /// How a line looks.
    pub format: LogFormat,
    /// Which lines are written.
    pub filter: LogFilter,
    /// Where to; none: standard output.
    pub path: Option<PathBuf>,
}

/// How an access-log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Envoy's default line.
    #[default]
    Envoy,
    /// One JSON object.
    Json,
    /// `key=value`.
    Logfmt,
}

/// Which access-log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFilter {
    /// None.
    Off,
    /// Refusals and 5xx.
    Errors,
    /// All.
    #[default]
    All,
}

/// Limits of the data path. Every one has a default with a reason and a test at the limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Largest request or response head in bytes. Default 64 KiB: Envoy's 60 KiB, rounded up.
    pub head_bytes_max: usize,
    /// Most fields in a head. Default 100, as Envoy.
    pub head_fields_max: usize,
    /// Longest request target in bytes. Default 16 KiB; RFC 9110 §4.1 asks for at least 8,000.
    pub target_bytes_max: usize,
    /// A request head must be complete so long after its first byte. Default 10 s.
    pub header_timeout: Duration,
    /// A body must make progress in each such span. Default 30 s.
    pub body_timeout: Duration,
    /// An HTTP connection without a request is closed after this. Default 1 h, as Envoy.
    pub keep_alive_timeout: Duration,
    /// How long an undeclared (`auto`) port is sniffed before it is opaque. Default 50 ms, at most
    /// 100 ms: server-first protocols wait for it.
    pub detect_timeout: Duration,
    /// HTTP/2: concurrent streams per connection. Default 100 (RFC 9113 §6.5.2 says not less).
    pub h2_streams_max: u32,
    /// HTTP/2: streams that the peer opened and reset before they were accepted. Default 20.
    /// More: GOAWAY ENHANCE_YOUR_CALM («rapid reset», CVE-2023-44487).
    pub h2_reset_streams_max: usize,
    /// HTTP/2: largest frame in bytes, 16,384 to 16,777,215. Default 16,384.
    pub h2_frame_bytes_max: u32,
    /// Open connections per workload. Default 10,000.
    pub workload_connections_max: u32,
    /// Upstream connections of the node, idle ones included. Default 32,768: half of
    /// `PROXY_FLOWS`, so that its entry is never refused.
    pub upstream_connections_max: u32,
    /// Idle upstream connections per (core, workload, endpoint). Default 64.
    pub upstream_idle_max: u32,
    /// An idle upstream connection is closed after this. Default 60 s: below the 75 s of nginx and
    /// the keep-alive of most servers.
    pub upstream_idle_timeout: Duration,
    /// Largest request body kept for a retry, in bytes. Default 64 KiB, as Linkerd. 0: requests
    /// with a body are not retried.
    pub replay_bytes_max: usize,
    /// A client's HTTP connection that is older is closed between requests (`Connection: close`,
    /// GOAWAY). Zero, the default: never.
    pub downstream_age_max: Duration,
    /// By how many percent of that, at random, it may become older. Default 10.
    pub downstream_age_jitter: u8,
    /// One more header field, lower-case, of refusals by a cap, such as `x-envoy-overloaded`.
    /// Default none.
    pub overload_header: Option<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes_max: 64 << 10,
            head_fields_max: 100,
            target_bytes_max: 16 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(3600),
            detect_timeout: Duration::from_millis(50),
            h2_streams_max: 100,
            h2_reset_streams_max: 20,
            h2_frame_bytes_max: 16_384,
            workload_connections_max: 10_000,
            upstream_connections_max: 32_768,
            upstream_idle_max: 64,
            upstream_idle_timeout: Duration::from_secs(60),
            replay_bytes_max: 64 << 10,
            downstream_age_max: Duration::ZERO,
            downstream_age_jitter: 10,
            overload_header: None,
        }
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            attach: Vec::new(),
            workers: std::thread::available_parallelism().map_or(1, |n| n.get().min(8)),
            unknown_netns: UnknownNetns::default(),
            kubelet_cgroup: None,
            metrics: Some(SocketAddr::from(([0, 0, 0, 0], 15020))),
            access_log: AccessLog {
                format: LogFormat::default(),
                filter: LogFilter::default(),
                path: None,
            },
            limits: Limits::default(),
            drain: Duration::from_secs(30),
            shield: None,
            marks: MarkBits::default(),
        }
    }
}
