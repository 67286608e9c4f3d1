//! One line for each request and connection, in three spellings.
//!
//! `envoy` is Envoy's default line, so that tools that read it read ours. `json` and `logfmt` carry
//! the same fields under OpenTelemetry's names where it has one, and under `mesh.` where not.

use std::{
    io::Write as _,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::escape::{Style, bare, quoted};
use crate::{
    config::LogFormat,
    policy::{Reject, RuleIx, Snapshot, VersionIx, action::Done},
    telemetry::{ConnectionRecord, RequestRecord, Spoken, flags},
};

/// A point of wall-clock time as `2026-11-24T18:41:15.123Z`.
#[derive(Clone, Copy)]
pub(in crate::telemetry) struct Stamp<'a> {
    second: &'a str,
    millis: u32,
}

/// Reads the wall clock; formats a second once, however many lines fall into it.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Clock {
    second: u64,
    text: String,
}

impl Clock {
    /// The time `ago` before now.
    pub(in crate::telemetry) fn before(&mut self, ago: Duration) -> Stamp<'_> {
        self.stamp(SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH))
    }

    fn stamp(&mut self, time: SystemTime) -> Stamp<'_> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.text.is_empty() || self.second != since.as_secs() {
            self.second = since.as_secs();
            self.text.clear();
            let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
            let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
            let _ = std::fmt::Write::write_fmt(
                &mut self.text,
                format_args!("{}", time.strftime("%Y-%m-%dT%H:%M:%S")),
            );
        }
        Stamp {
            second: &self.text,
            millis: since.subsec_millis(),
        }
    }
}

/// gRPC statuses that OpenTelemetry counts as a server's errors: UNKNOWN, DEADLINE_EXCEEDED,
/// UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
pub(super) const fn grpc_server_error(status: u8) -> bool {
    matches!(status, 2 | 4 | 12 | 13 | 14 | 15)
}

/// Appends the line of a request.
pub(super) fn request(
    format: LogFormat,
    start: Stamp<'_>,
    record: &RequestRecord<'_>,
    out: &mut Vec<u8>,
) {
    match format {
        LogFormat::Envoy => envoy_request(&start, record, out),
        LogFormat::Json => Json::line(out, |to| request_fields(&start, record, to)),
        LogFormat::Logfmt => Logfmt::line(out, |to| request_fields(&start, record, to)),
    }
}

/// Appends the line of a connection.
pub(super) fn connection(
    format: LogFormat,
    start: Stamp<'_>,
    record: &ConnectionRecord<'_>,
    out: &mut Vec<u8>,
) {
    match format {
        LogFormat::Envoy => envoy_connection(&start, record, out),
        LogFormat::Json => Json::line(out, |to| connection_fields(&start, record, to)),
        LogFormat::Logfmt => Logfmt::line(out, |to| connection_fields(&start, record, to)),
    }
}

// Writing to a Vec can't fail: the results of `write!` carry nothing.

/// `[start] "METHOD path PROTOCOL" status flags in out duration upstream "xff" "agent" "id"
/// "authority" "endpoint"`.
fn envoy_request(start: &Stamp<'_>, record: &RequestRecord<'_>, out: &mut Vec<u8>) {
    let quote = |text: &[u8], out: &mut Vec<u8>| quoted(Style::Backslash, or_dash(text), out);
    let _ = write!(out, "[{}.{:03}Z] \"", start.second, start.millis);
    bare(Style::Backslash, or_dash(record.method), out);
    out.push(b' ');
    bare(Style::Backslash, or_dash(record.target), out);
    let _ = write!(
        out,
        " {}\" {} {} {} {} {} ",
        protocol(record.spoken),
        record.status,
        flags(record.actions, record.reject),
        record.bytes_in,
        record.bytes_out,
        record.duration.as_millis(),
    );
    match record.upstream {
        Some(upstream) => {
            let _ = write!(out, "{}", upstream.as_millis());
        }
        None => out.push(b'-'),
    }
    // The proxy adds no x-forwarded-for.
    out.extend_from_slice(b" \"-\" ");
    quote(record.user_agent, out);
    out.push(b' ');
    quote(record.request_id, out);
    out.push(b' ');
    quote(record.authority, out);
    out.push(b' ');
    endpoint(record.endpoint, out);
    out.push(b'\n');
}

fn envoy_connection(start: &Stamp<'_>, record: &ConnectionRecord<'_>, out: &mut Vec<u8>) {
    let _ = write!(
        out,
        "[{}.{:03}Z] \"- - {}\" 0 {} {} {} {} - \"-\" \"-\" \"-\" \"{}\" ",
        start.second,
        start.millis,
        if record.spoken == Spoken::Tcp {
            "-"
        } else {
            protocol(record.spoken)
        },
        flags(Done::default(), record.reject),
        record.bytes_in,
        record.bytes_out,
        record.duration.as_millis(),
        record.destination,
    );
    endpoint(record.endpoint, out);
    out.push(b'\n');
}

fn endpoint(endpoint: Option<SocketAddr>, out: &mut Vec<u8>) {
    let _ = match endpoint {
        Some(address) => write!(out, "\"{address}\""),
        None => write!(out, "\"-\""),
    };
}

fn or_dash(text: &[u8]) -> &[u8] {
    if text.is_empty() { b"-" } else { text }
}

fn protocol(spoken: Spoken) -> &'static str {
    match spoken {
        Spoken::Http1 => "HTTP/1.1",
        Spoken::Http2 | Spoken::Grpc => "HTTP/2",
        Spoken::Tcp => "TCP",
    }
}

/// Takes fields in order; absent ones are not given.
trait Fields {
    /// What a client chose.
    fn text(&mut self, name: &str, value: &[u8]);
    /// A word of ours or a name of the model.
    fn word(&mut self, name: &str, value: &str) {
        self.text(name, value.as_bytes());
    }
    /// A number, or another value that needs no quotes and no escapes in any format.
    fn number(&mut self, name: &str, value: std::fmt::Arguments<'_>);
    /// A value that needs quotes, but no escapes.
    fn plain(&mut self, name: &str, value: std::fmt::Arguments<'_>);
}

fn request_fields(start: &Stamp<'_>, record: &RequestRecord<'_>, to: &mut impl Fields) {
    to.plain(
        "time",
        format_args!("{}.{:03}Z", start.second, start.millis),
    );
    to.word("mesh.record", "request");
    present("http.request.method", record.method, to);
    let mut parts = record.target.splitn(2, |byte| *byte == b'?');
    present("url.path", parts.next().unwrap_or_default(), to);
    present("url.query", parts.next().unwrap_or_default(), to);
    to.word(
        "network.protocol.name",
        if record.spoken == Spoken::Grpc {
            "grpc"
        } else {
            "http"
        },
    );
    to.word(
        "network.protocol.version",
        if record.spoken == Spoken::Http1 {
            "1.1"
        } else {
            "2"
        },
    );
    to.number(
        "http.response.status_code",
        format_args!("{}", record.status),
    );
    if let Some(status) = record.grpc_status {
        to.number("rpc.grpc.status_code", format_args!("{status}"));
    }
    common(
        (record.actions, record.reject),
        record.bytes_in,
        record.bytes_out,
        record.duration,
        to,
    );
    if let Some(upstream) = record.upstream {
        to.number("mesh.upstream_ms", format_args!("{:.3}", millis(upstream)));
    }
    to.number("mesh.attempts", format_args!("{}", record.attempts));
    present("user_agent.original", record.user_agent, to);
    present("mesh.request_id", record.request_id, to);
    present("server.address", record.authority, to);
    to.word("mesh.direction", record.direction.label());
    place(
        record.snapshot,
        record.workload,
        record.version,
        record.rule,
        to,
    );
    addresses(record.peer, record.destination, record.endpoint, to);
}

fn connection_fields(start: &Stamp<'_>, record: &ConnectionRecord<'_>, to: &mut impl Fields) {
    to.plain(
        "time",
        format_args!("{}.{:03}Z", start.second, start.millis),
    );
    to.word("mesh.record", "connection");
    to.word(
        "network.protocol.name",
        match record.spoken {
            Spoken::Http1 | Spoken::Http2 => "http",
            Spoken::Grpc => "grpc",
            Spoken::Tcp => "tcp",
        },
    );
    common(
        (Done::default(), record.reject),
        record.bytes_in,
        record.bytes_out,
        record.duration,
        to,
    );
    if record.spoken != Spoken::Tcp {
        to.number("mesh.requests", format_args!("{}", record.requests));
    }
    present(
        "tls.client.server_name",
        record.server_name.unwrap_or_default().as_bytes(),
        to,
    );
    to.word("mesh.direction", record.direction.label());
    place(
        record.snapshot,
        record.workload,
        record.version,
        record.rule,
        to,
    );
    addresses(record.peer, record.destination, record.endpoint, to);
}

fn present(name: &str, value: &[u8], to: &mut impl Fields) {
    if !value.is_empty() {
        to.text(name, value);
    }
}

fn common(
    (done, reject): (Done, Option<Reject>),
    bytes_in: u64,
    bytes_out: u64,
    duration: Duration,
    to: &mut impl Fields,
) {
    to.word("mesh.flags", &flags(done, reject));
    if let Some(reject) = reject {
        to.word("mesh.reject", reject.label());
    }
    to.number("mesh.bytes_received", format_args!("{bytes_in}"));
    to.number("mesh.bytes_sent", format_args!("{bytes_out}"));
    to.number("mesh.duration_ms", format_args!("{:.3}", millis(duration)));
}

fn place(
    snapshot: &Snapshot,
    workload: &str,
    version: Option<VersionIx>,
    rule: Option<RuleIx>,
    to: &mut impl Fields,
) {
    to.word("mesh.workload", workload);
    if let Some(version) = version.and_then(|ix| snapshot.versions.get(ix.0 as usize)) {
        let port = snapshot.ports.get(version.port.0 as usize);
        // Of what comes in the workload itself is the destination, judged by an inbound rule.
        if let Some(inbound) = port.and_then(|port| port.inbound.as_ref()) {
            if let Some(rule) = &inbound.rule {
                to.word("mesh.rule", rule);
            }
            return;
        }
        if let Some(port) = port {
            to.word("mesh.service", &port.service);
            to.word("mesh.service_namespace", &port.namespace);
        }
        to.word("mesh.version", &version.name);
    }
    if let Some(rule) = rule.and_then(|ix| snapshot.rules.get(ix.0 as usize)) {
        to.word("mesh.rule", &rule.name);
    }
}

fn addresses(
    peer: SocketAddr,
    destination: SocketAddr,
    endpoint: Option<SocketAddr>,
    to: &mut impl Fields,
) {
    to.plain("client.address", format_args!("{peer}"));
    to.plain("mesh.destination", format_args!("{destination}"));
    if let Some(endpoint) = endpoint {
        to.plain("mesh.endpoint", format_args!("{endpoint}"));
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

struct Json<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Json<'a> {
    fn line(out: &'a mut Vec<u8>, fields: impl FnOnce(&mut Self)) {
        out.push(b'{');
        let mut json = Self { out };
        fields(&mut json);
        json.out.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        let _ = write!(self.out, "\"{name}\":");
    }
}

impl Fields for Json<'_> {
    fn text(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        quoted(Style::Json, value, self.out);
    }

    fn number(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        self.name(name);
        let _ = self.out.write_fmt(value);
    }

    fn plain(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        self.name(name);
        let _ = write!(self.out, "\"{value}\"");
    }
}

struct Logfmt<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Logfmt<'a> {
    fn line(out: &'a mut Vec<u8>, fields: impl FnOnce(&mut Self)) {
        let mut logfmt = Self { out, first: true };
        fields(&mut logfmt);
        logfmt.out.push(b'\n');
    }

    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b' ');
        }
        let _ = write!(self.out, "{name}=");
    }
}

impl Fields for Logfmt<'_> {
    fn text(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        let simple = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
        if !value.is_empty() && value.iter().copied().all(simple) {
            bare(Style::Backslash, value, self.out);
        } else {
            quoted(Style::Backslash, value, self.out);
        }
    }

    fn number(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        self.name(name);
        let _ = self.out.write_fmt(value);
    }

    fn plain(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        self.number(name, value);
    }
}
