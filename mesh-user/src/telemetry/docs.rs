//! `docs/METRICS.md`, made from the table of metrics.

use super::{
    metrics::{ALL, Kind, REQUEST_LABELS, TCP_LABELS},
    series::{GONE_KEPT, SERIES_MAX},
};
use crate::policy::Reject;

/// The text of `docs/METRICS.md`.
pub fn markdown() -> String {
    let mut out = format!(
        "# Metrics\n\n\
         Generated from `mesh-user/src/telemetry/metrics.rs`; a test compares, \
         `MESH_BLESS=1 cargo test` rewrites.\n\n\
         Served as OpenMetrics text on `/metrics` (also `/stats/prometheus`) of the agent's \
         metrics port. Request and TCP metrics carry Istio's names and labels; what is absent is \
         `unknown`. Each of their families keeps at most {SERIES_MAX} label sets; what comes above \
         is counted in one whose labels are all `overflow`. Label sets of a workload that is gone \
         are removed after {} s. No label holds a path, a client's address or a string from a \
         request.\n\n\
         *Request labels* are {}. *TCP labels* are the same up to `{}`.\n\n\
         | metric | type | labels | says |\n|---|---|---|---|\n",
        GONE_KEPT.as_secs(),
        names(REQUEST_LABELS),
        TCP_LABELS.last().unwrap_or(&""),
    );
    for metric in ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let (name, help, labels) = (metric.name, metric.help, labels(metric.labels));
        out += &format!("| `{name}` | {kind} | {labels} | {help} |\n");
    }
    out += "\n## Reasons\n\n\
            `mesh_rejects_total{reason}`, the field `mesh.reject` of the access log and the \
            header `x-mesh-reject` use these names. The flag is Envoy's, in the access log and in \
            `response_flags`.\n\n\
            | reason | status | gRPC | flag | means |\n|---|---|---|---|---|\n";
    for reject in Reject::ALL {
        out += &format!(
            "| `{}` | {} | {} | `{}` | {} |\n",
            reject.label(),
            if reject.status() == 0 {
                "-".into()
            } else {
                reject.status().to_string()
            },
            reject.grpc_status(),
            reject.flag(),
            reject.explain(),
        );
    }
    out
}

fn labels(labels: &[&str]) -> String {
    match labels {
        REQUEST_LABELS => "*request labels*".to_owned(),
        TCP_LABELS => "*TCP labels*".to_owned(),
        [] => "-".to_owned(),
        labels => names(labels),
    }
}

fn names(labels: &[&str]) -> String {
    let quoted: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
    quoted.join(", ")
}
