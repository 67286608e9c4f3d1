//! Active health checks.

use super::{Reader, reader};
use crate::{
    config::tree::Node,
    model::health::{GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe},
};

pub(super) fn checks(policy: Reader<'_>) -> Vec<HealthCheck> {
    policy.items("health-checks").map(check).collect()
}

fn check(from: Reader<'_>) -> HealthCheck {
    let default = HealthCheck::default();
    HealthCheck {
        probe: probe(from),
        port: from.int("port"),
        interval: from.duration("interval").unwrap_or(default.interval),
        no_traffic_interval: from
            .duration("no-traffic-interval")
            .unwrap_or(default.no_traffic_interval),
        jitter_percent: from.int("jitter-percent").unwrap_or(default.jitter_percent),
        timeout: from.duration("timeout").unwrap_or(default.timeout),
        unhealthy_threshold: from
            .int("unhealthy-threshold")
            .unwrap_or(default.unhealthy_threshold),
        healthy_threshold: from
            .int("healthy-threshold")
            .unwrap_or(default.healthy_threshold),
        reuse_connection: from
            .bool("reuse-connection")
            .unwrap_or(default.reuse_connection),
        uneject: from.bool("uneject").unwrap_or(default.uneject),
    }
}

fn probe(from: Reader<'_>) -> Probe {
    let text = |from: Reader<'_>, name: &str| from.text(name).unwrap_or_default().to_owned();
    if from.has("grpc") {
        let grpc = from.object("grpc");
        return Probe::Grpc(GrpcProbe {
            service: text(grpc, "service"),
            authority: grpc.text("authority").map(str::to_owned),
        });
    }
    if from.has("tcp") {
        let tcp = from.object("tcp");
        return Probe::Tcp(TcpProbe {
            send: text(tcp, "send"),
            expect: text(tcp, "expect"),
        });
    }
    let http = from.object("http");
    let default = HttpProbe::default();
    Probe::Http(HttpProbe {
        path: http.text("path").map_or(default.path, str::to_owned),
        host: http.text("host").map(str::to_owned),
        method: http.text("method").map_or(default.method, str::to_owned),
        statuses: http.nodes("statuses").iter().filter_map(statuses).collect(),
        retriable: http
            .nodes("retriable")
            .iter()
            .filter_map(statuses)
            .collect(),
    })
}

/// A number, or a class such as `2xx`.
fn statuses(node: &Node) -> Option<(u16, u16)> {
    if let Some(code) = reader::int(node) {
        return Some((code, code));
    }
    let class: u16 = reader::text(node)?.strip_suffix("xx")?.parse().ok()?;
    Some((class * 100, class * 100 + 99))
}
